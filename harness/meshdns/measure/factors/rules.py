"""Rules that match nothing, before those that capture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import Pod, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors import control

BOUNDS = {"extra_rules": (0.0, 10_000.0)}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """Any within the bounds."""
    return {}


class Control(control.OfPods[int]):
    """The pod's observer puts them before the others."""

    usual = 0

    def wanted(self, cell: Cell) -> int:
        """How many."""
        return cell.extra_rules

    def set(self, client: Pod, level: int) -> None:
        """See `control.OfPods`."""
        self.tell(client, {"op": "extra_rules", "count": level, "mechanism": client.mechanism})


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    client = world.arms.get(cell.arm)
    yield cell.extra_rules == 0 or (client is not None and client.sidecar), "extra_rules need an arm that captures"
