"""What a plan varies, a module for each knob; `factor` says what one is."""

from __future__ import annotations

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors.answer import Answer
from meshdns.measure.factors.arm import Arm
from meshdns.measure.factors.backend import Backend
from meshdns.measure.factors.change import Change
from meshdns.measure.factors.debounce import Debounce
from meshdns.measure.factors.delay import Delay
from meshdns.measure.factors.factor import Factor, Job
from meshdns.measure.factors.fault import Faults
from meshdns.measure.factors.load import Load
from meshdns.measure.factors.name import Name
from meshdns.measure.factors.policy import Policy
from meshdns.measure.factors.rules import ExtraRules

# In the order in which their rules are told, their levels set, and their parts of a job put together.
ALL: tuple[Factor, ...] = (
    Load(), Backend(), Name(), Arm(), Delay(), Policy(), Faults(), ExtraRules(), Answer(), Change(),
    Debounce(),
)  # fmt: skip


def levels(world: World) -> Limits:
    """Of all factors."""
    return {column: limit for factor in ALL for column, limit in factor.levels(world).items()}


def job(start: Job, cell: Cell, world: World, nets: Nets) -> Job:
    """The agent's job for a cell, begun with what no factor says."""
    for factor in ALL:
        start = factor.job(start, cell, world, nets)
    return start


def request_s(cell: Cell, world: World, timeout_s: float) -> float:
    """Expected duration of one request in a closed loop, as warm-ups are."""
    spent_s = 0.0
    for factor in ALL:
        spent_s = factor.request_s(spent_s, cell, world, timeout_s)
    return spent_s
