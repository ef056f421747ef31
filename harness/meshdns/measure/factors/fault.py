"""Faults of the replicas: how a request asks for one, or which backend has it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Job, Reach, Rules

NONE, SERVER = "none", "shop"  # the part that can fail


@dataclass(frozen=True)
class Fault:
    """One of the two says what fails; a fault that neither does would be an ordinary request under its name."""

    path: str = ""  # before that of a request: there the servers fail (compose/web/shop.conf)
    backend: str = ""  # the one that has it, and it alone
    request_s: float = 0.0  # what a request then takes; 0: as usual
    drain_s: float = 0.0  # until the queues that it leaves are empty again

    def __post_init__(self) -> None:
        """Raises ValueError where nothing would fail."""
        if bool(self.path) == bool(self.backend):
            raise ValueError("a fault has a path at the servers, or a backend")


LEVELS = {
    "fail30": Fault("/fail30"),
    "slow": Fault("/slow", request_s=0.035),  # one replica in three takes 100 ms
    "dead": Fault(backend="shop-dead"),
    "overload": Fault("/overload", drain_s=1.5),
}
USUAL = Fault(backend="any")


def of(level: str) -> Fault:
    """What the level stands for; `none` is the usual request of any backend."""
    return LEVELS.get(level, USUAL)


class Control(factor.Control):
    """Only waits until what an earlier one has left behind is gone; the fault itself is asked for by each request."""

    def apply(self, cell: Cell) -> None:
        if drain_s := of(cell.fault).drain_s:
            time.sleep(drain_s)


class Faults(Factor):
    def levels(self, world: World) -> Limits:
        return {"fault": (*LEVELS, NONE)}

    def rules(self, cell: Cell, world: World) -> Rules:
        level, backend = cell.fault, cell.backend
        service = world.backends.get(backend)
        own = {each.backend: name for name, each in LEVELS.items() if each.backend}
        able = service is not None and any(world.named(pod).part == SERVER for pod in service.replicas)
        yield level == NONE or able, f"fault is of backends whose replicas are the part {SERVER}"
        yield own.get(backend, level) == level, f"the backend {backend} has the fault {own.get(backend)}, and no other"
        where = of(level).backend
        yield level == NONE or not where or where == backend, f"the fault {level} is the backend {where}, and it alone"

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        return replace(so_far, path=f"{of(cell.fault).path}{so_far.path}")

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        return of(cell.fault).request_s or so_far_s

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return of(cell.fault).drain_s

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        yield Control()
