"""How long measuring is expected to take; it needs nothing that measures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from meshdns.core.world import World
from meshdns.measure import factors
from meshdns.measure.plan import Plan, Trial

OVERHEAD_S = 0.018  # of a trial beside its load: readings before and after (from data/sample)


def seconds(what: Plan, blocks: Iterable[int]) -> float:
    """Expected duration of measuring these blocks of a plan."""
    return sum(
        of_trial(trial, before, what.world)
        for number in blocks
        for before, trial in itertools.pairwise([None, *what.block(number)])
        if trial is not None
    )


def of_trial(trial: Trial, before: Trial | None, world: World) -> float:
    """Expected duration of a trial after the one before it in its block."""
    previous = before.cell if before else None
    more_s = sum(factor.seconds(trial.cell, previous) for factor in factors.ALL)
    return trial.seconds(world) + OVERHEAD_S + more_s
