"""iptables that hand packets over with their addresses as they were: Istio's TPROXY, outbound too."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import iptables, routing
from ..conventions import ISTIO
from ..options import Options
from ..ruleset import build
from .mechanism import RULES, Mechanism


class Tproxy(Mechanism):
    """See the module."""

    transparent: ClassVar[bool] = True
    table: ClassVar[str] = "mangle"
    captures: ClassVar[str] = ISTIO.chains.output

    def options(self) -> dict[str, Any]:
        """Istio's own mode."""
        return {"inbound_interception_mode": "TPROXY"}

    def files(self, options: Options) -> dict[str, str]:
        """The rules, first in OUTPUT: the engine's own name server rule (127.0.0.11) must not come before ours."""
        rules = build(options, "ipv4", outbound_tproxy=True)
        found = {"iptables": iptables.render(rules, first=True, named=True)}
        return {"policy-routes": routing.render(rules)["ipv4"], **found}

    def load(self, files: dict[str, str]) -> list[str]:
        """Routes first."""
        return [f"ip -batch {RULES}/policy-routes", f"iptables-restore --noflush {RULES}/iptables"]


MECHANISM = Tproxy()
