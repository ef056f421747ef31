"""For how long istiod gathers changes before it tells sidecars of them."""

from __future__ import annotations

from collections.abc import Iterator

from meshdns.core.schema import Limits
from meshdns.core.world import World
from meshdns.lab.parts import istiod
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Reach, Rules

RESTART_S = 6.0  # of istiod, until every sidecar has found it again (from data/sample)


class Debounce(Factor):
    def levels(self, world: World) -> Limits:
        return {"debounce": (*istiod.DEBOUNCE,)}

    def rules(self, cell: Cell, world: World) -> Rules:
        usual = cell.debounce == istiod.USUAL
        yield usual or cell.change != "none", "debounce is of trials with a change"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return RESTART_S if before is not None and before.debounce != cell.debounce else 0.0

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        if reach.control:  # starts istiod anew
            yield factor.OfControlPlane(reach.control, "debounce", reach.control.gather)
