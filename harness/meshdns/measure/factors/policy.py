"""What the mesh's configuration says beyond the services themselves."""

from __future__ import annotations

from collections.abc import Iterator

from meshdns.core.schema import Limits
from meshdns.core.world import World
from meshdns.lab.controlplane import POLICIES
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Reach, Rules

POLICY_S = 0.4  # until one has taken another's place at every sidecar (from data/sample)
LEVELS = sorted(file.stem for file in POLICIES.glob("*.yaml"))


class Policy(Factor):
    def levels(self, world: World) -> Limits:
        return {"policy": (*LEVELS, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        live = world.is_live(cell.backend)
        yield live or cell.policy == "none", "a policy is one of a backend that Istio's own control plane tells of"

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return POLICY_S if before is not None and before.policy != cell.policy else 0.0

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        if reach.control:
            yield factor.OfControlPlane(reach.control, "policy", reach.control.enforce)
