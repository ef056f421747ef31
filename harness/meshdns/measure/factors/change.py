"""What becomes of the replicas, of other Services or of Istio's own control plane while the load runs."""

from __future__ import annotations

from meshdns.core.schema import Limits
from meshdns.core.world import World
from meshdns.lab.controlplane import EFFECTS
from meshdns.measure.cell import Cell
from meshdns.measure.factors.backend import service_of
from meshdns.measure.factors.factor import Factor, Rules

RESTORE_S = 2.0  # until it is taken back (from data/sample)


class Change(Factor):
    def levels(self, world: World) -> Limits:
        return {"change": (*EFFECTS, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        live = world.is_live(cell.backend)
        yield live or cell.change == "none", "a change is one of a backend that Istio's own control plane tells of"
        moved = {pod for pods in EFFECTS.get(cell.change, ()) for pod in pods}
        behind = {*service_of(cell, world).replicas}
        ready = {pod.pod for pod in world.pods if pod.ready}
        yield moved & ready <= behind, f"{cell.change} changes {', '.join(sorted(moved))}, which the backend has not"
        yield cell.change == "none" or cell.arrival != "closed", "a change happens under a load with a rate"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return RESTORE_S if cell.change != "none" else 0.0
