"""What is called."""

from __future__ import annotations

from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell
from meshdns.measure.factors.factor import Factor, Rules


class Backend(Factor):
    """See the module."""

    def levels(self, world: World) -> dict[str, tuple[Any, ...]]:
        """Those of the world."""
        return {"backend": (*world.backends, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        """As (holds, rule)."""
        by_address = cell.backend in {each.backend for each in world.inbound}
        pushed = world.is_governed(cell.backend)
        client = world.arms.get(cell.arm)
        mode = client is not None and client.governed
        request = cell.kind == "request"
        yield request == (cell.backend != "none"), "a request needs a backend, a lookup has none"
        yield cell.arm != "ip" or cell.backend != "static", "static is a way for a sidecar to know its endpoints"
        yield cell.arm == "ip" or not by_address, "one replica alone is called by its address: arm ip"
        yield not pushed or mode or cell.arm == "plain", "backends of the control plane are called by plain or its arms"
        yield pushed or not mode, "arms of the control plane call its backends"
        yield (
            not pushed or (not cell.tls and cell.lookup == "wire"),
            "the control plane's backends: no tls, lookup wire",
        )
