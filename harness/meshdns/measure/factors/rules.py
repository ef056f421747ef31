"""Rules that match nothing, before those that capture."""

from __future__ import annotations

from collections.abc import Iterator

from meshdns.core.schema import Bounds, Limits
from meshdns.core.world import Pod, World
from meshdns.interception import mechanisms
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Reach, Rules


class Control(factor.OfPods):
    """The pod's observer puts them before the others."""

    column = "extra_rules"

    def set(self, client: Pod, level: int) -> None:
        self.run(client, mechanisms.ALL[client.mechanism].extra_rules(level))


class ExtraRules(Factor):
    def levels(self, world: World) -> Limits:
        return {"extra_rules": Bounds(0, 10_000)}

    def rules(self, cell: Cell, world: World) -> Rules:
        client = world.arms.get(cell.arm)
        yield cell.extra_rules == 0 or (client is not None and client.sidecar), "extra_rules need an arm that captures"

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        yield Control(reach)
