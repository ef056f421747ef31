"""What the mesh's configuration says beyond the services themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.lab.plane import Plane
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Rules

POLICY_S = 0.4  # until one has taken another's place at every sidecar (from data/sample)
# Each is a file of compose/policies.
LEVELS = ("retries", "timeouts", "outlier", "breaker", "split", "strict", "permissive", "disable", "reconnect")


class Control(factor.Control):
    """The control plane's configuration."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def apply(self, cell: Cell) -> None:
        self._plane.govern(cell.policy)

    def undo(self) -> None:
        self._plane.govern("none")

    def state(self) -> object:
        return self._plane.policy

    def ended(self) -> Ended:
        """See `factor.Control`: by changes."""
        return self._plane.ended


class Policy(Factor):
    def levels(self, world: World) -> dict[str, tuple[Any, ...]]:
        return {"policy": (*LEVELS, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        pushed = world.is_governed(cell.backend)
        yield pushed or cell.policy == "none", "policy and change are of the control plane's backends"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return POLICY_S if before is not None and before.policy != cell.policy else 0.0

    def controls(self, place: Place, observers: Observers, plane: Plane | None) -> Iterator[factor.Control]:
        if plane:
            yield Control(plane)
