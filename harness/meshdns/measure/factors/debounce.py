"""For how long istiod gathers changes before it tells sidecars of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.lab.controlplane import ControlPlane
from meshdns.lab.observers import Observers
from meshdns.lab.parts import istiod
from meshdns.lab.place import Place
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Rules

RESTART_S = 6.0  # of istiod, until every sidecar has found it again (from data/sample)


class Control(factor.Control):
    """istiod is started anew with another setting."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def apply(self, cell: Cell) -> None:
        self._control.gather(cell.debounce)

    def undo(self) -> None:
        self._control.gather(istiod.USUAL)

    def state(self) -> object:
        return self._control.debounce


class Debounce(Factor):
    def levels(self, world: World) -> dict[str, tuple[Any, ...]]:
        return {"debounce": (*istiod.DEBOUNCE,)}

    def rules(self, cell: Cell, world: World) -> Rules:
        usual = cell.debounce == istiod.USUAL
        yield usual or cell.change != "none", "debounce is of trials with a change"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return RESTART_S if before is not None and before.debounce != cell.debounce else 0.0

    def controls(self, place: Place, observers: Observers, control: ControlPlane | None) -> Iterator[factor.Control]:
        if control:
            yield Control(control)
