"""How long measuring is expected to take; it needs nothing that measures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from meshdns.core.world import World
from meshdns.measure.factors import fault
from meshdns.measure.plan import Plan, Trial

FORGET_S = 1.0  # a name table is written and read anew within less
# Of a trial beside its load (from data/sample): readings before and after; a policy that takes another's place; a
# change that is taken back.
OVERHEAD_S, POLICY_S, RESTORE_S = 0.018, 0.4, 2.0


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
    cell = trial.cell
    expected_s = trial.seconds(world) + OVERHEAD_S
    if before is not None and before.cell.policy != cell.policy:
        expected_s += POLICY_S
    expected_s += fault.of(cell.fault).drain_s
    if cell.change != "none":
        expected_s += FORGET_S + RESTORE_S
    return expected_s
