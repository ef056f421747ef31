"""iptables that redirect, as Istio has it."""

from __future__ import annotations

from typing import ClassVar

from .. import iptables, routing
from ..conventions import ISTIO
from ..options import Options
from ..ruleset import build
from .mechanism import RULES, Command, Mechanism


class Iptables(Mechanism):
    """See the module."""

    outbound_tproxy: ClassVar[bool] = False

    def files(self, options: Options) -> dict[str, str]:
        """The rules, first in OUTPUT: the engine's own name server rule (127.0.0.11) must not come before ours."""
        rules = build(options, "ipv4", outbound_tproxy=self.outbound_tproxy)
        routes = routing.render(rules)["ipv4"]
        found = {"iptables": iptables.render(rules, first=True, named=True)}
        return found | ({"policy-routes": routes} if routes else {})

    def load(self, files: dict[str, str]) -> list[str]:
        """Routes first."""
        routes = [f"ip -batch {RULES}/policy-routes"] if "policy-routes" in files else []
        return [*routes, f"iptables-restore --noflush {RULES}/iptables"]

    def capture(self, on: bool) -> list[Command]:
        """The jump to the rules that capture stands, or is taken out."""
        where = ("-I", "OUTPUT", "1") if on else ("-D", "OUTPUT")
        return [Command(("iptables", "-t", self.table, *where, "-j", ISTIO.chains.output))]


MECHANISM = Iptables()
