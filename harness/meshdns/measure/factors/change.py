"""What becomes of the replicas, or of their records, while the load runs."""

from __future__ import annotations

from typing import Any

from meshdns.core.world import World
from meshdns.lab.controlplane import EFFECTS
from meshdns.measure.cell import Cell
from meshdns.measure.factors.backend import service_of
from meshdns.measure.factors.factor import Factor, Rules

FORGET_S = 1.0  # a name table is written and read anew within less
RESTORE_S = 2.0  # until it is taken back (from data/sample)


class Change(Factor):
    def levels(self, world: World) -> dict[str, tuple[Any, ...]]:
        return {"change": (*EFFECTS, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        pushed = world.is_managed(cell.backend)
        yield pushed or cell.change == "none", "policy and change are of the control plane's backends"
        moved = {pod for pods in EFFECTS.get(cell.change, ()) for pod in pods}
        behind = {*service_of(cell, world).replicas}
        ready = {pod.pod for pod in world.pods if pod.ready}
        yield moved & ready <= behind, f"{cell.change} changes {', '.join(sorted(moved))}, which the backend has not"
        yield cell.change == "none" or cell.arrival != "closed", "a change happens under a load with a rate"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return FORGET_S + RESTORE_S if cell.change != "none" else 0.0
