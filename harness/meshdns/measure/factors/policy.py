"""What the mesh's configuration says beyond the services themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.lab.place import Ended
from meshdns.lab.plane import Plane
from meshdns.measure.cell import Cell

# Each is a file of compose/policies.
LEVELS = ("retries", "timeouts", "outlier", "breaker", "split", "strict", "permissive", "disable", "reconnect")
BOUNDS: dict[str, tuple[float, float]] = {}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """All of them."""
    return {"policy": (*LEVELS, "none")}


class Control:
    """The control plane's configuration; where there is none nothing is wanted of it."""

    def __init__(self, plane: Plane | None) -> None:
        self._plane = plane

    def apply(self, cell: Cell) -> None:
        """See `control.Control`."""
        if self._plane:
            self._plane.govern(cell.policy)

    def undo(self) -> None:
        """See `control.Control`."""
        if self._plane:
            self._plane.govern("none")

    def state(self) -> object:
        """See `control.Control`."""
        return self._plane.policy if self._plane else ""

    def ended(self) -> Ended:
        """See `control.Control`: by changes."""
        return self._plane.ended if self._plane else Ended()


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    pushed = world.is_governed(cell.backend)
    yield pushed or cell.policy == "none", "policy and change are of the control plane's backends"
