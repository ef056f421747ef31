"""iptables that hand packets over with their addresses as they were: Istio's TPROXY, outbound too."""

from __future__ import annotations

from typing import Any, ClassVar

from .iptables import Iptables


class Tproxy(Iptables):
    """See the module."""

    transparent: ClassVar[bool] = True
    table: ClassVar[str] = "mangle"
    outbound_tproxy: ClassVar[bool] = True

    def options(self) -> dict[str, Any]:
        """Istio's own mode."""
        return {"inbound_interception_mode": "TPROXY"}


MECHANISM = Tproxy()
