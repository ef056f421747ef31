"""One block of a plan: what a run stores of it, measured on a place that is up, by whichever process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from meshdns.core import errors
from meshdns.lab.place import Place
from meshdns.measure import session
from meshdns.measure.plan import Plan, Trial
from meshdns.measure.session import Measured, Session
from meshdns.store import samples

ATTEMPTS = 3  # measurements of one cell in one block, until one is valid


@dataclass(frozen=True)
class Block:
    """What is stored of a block."""

    number: int
    started: str  # UTC
    table: pa.Table  # all samples
    records: list[samples.CellRecord]


def measure_block(what: Plan, number: int, place: Place, opened: Session | None = None) -> Block:
    """Every trial of a block, measured on a place that is up; in a session that is `opened` already, or one of its own.

    Raises TestbedError; LostPartError that names the part that was lost meanwhile.
    """
    if opened is None:
        with session.opened(place) as own:
            return measure_block(what, number, place, own)
    started = now()
    with opened.during(f"while block {number} was measured"):
        measured = list(_trials(opened, what, number))
    return Block(number, started, joined(measured), [one.record for one in measured])


def _trials(opened: Session, what: Plan, number: int) -> Iterator[Measured]:
    """Every trial of a block, an invalid one measured again at once: what disturbed it seldom lasts.

    The rule is the same whatever the reason, and the invalid ones are kept beside the valid one.
    """
    index = 0
    trials = allowed(what.block(number), opened.refused)
    for before, trial, after in zip([None, *trials], trials, [*trials[1:], None], strict=False):
        for _ in range(ATTEMPTS):
            measured = opened.trial(index, trial, _seed(what, number, index), after.cell if after else None)
            index += 1
            yield measured
            if measured.record.valid:
                break
        opened.done(trial, before)


def _seed(what: Plan, block: int, index: int) -> int:
    """The seed of one trial's arrivals: recorded by being a function of what is recorded."""
    return int.from_bytes(hashlib.sha256(f"{what.seed}/{block}/{index}".encode()).digest()[:4], "big")


def allowed(trials: Sequence[Trial], refused: Mapping[str, str]) -> list[Trial]:
    """Those whose arm and backend capture in a way that the place allows."""
    return [trial for trial in trials if not {trial.cell.arm, trial.cell.backend} & refused.keys()]


def require_some(what: Plan, refused: Mapping[str, str]) -> None:
    """Raises EnvironmentProblem where nothing is left to measure."""
    if any(allowed(what.block(number), refused) for number in range(what.blocks)):
        return
    reasons = "; ".join(dict.fromkeys(refused.values()))
    raise errors.EnvironmentProblem(
        f"nothing of this plan can be measured here ({reasons})", place=what.name, step="take another plan or machine"
    )


def joined(measured: Sequence[Measured]) -> pa.Table:
    """All samples of a block; none where the place allows none of its trials."""
    return pa.concat_tables([samples.SCHEMA.empty_table(), *(one.table for one in measured)]).unify_dictionaries()


def now() -> str:
    """This second in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
