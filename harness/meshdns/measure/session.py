"""Trials on a place that is up, one after the other; what is opened for them stays open from one to the next.

Order of a trial: counters, CPU, load, CPU, counters. Nothing but the load happens between the two CPU readings.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from meshdns.core.progress import Progress
from meshdns.lab import observers, readiness
from meshdns.lab.place import Place
from meshdns.lab.watch import Watch
from meshdns.measure import counters, validity
from meshdns.measure.cell import Cell
from meshdns.measure.conditions import Conditions
from meshdns.measure.load import Agents, Loads
from meshdns.measure.plan import Trial
from meshdns.store import samples


@dataclass(frozen=True)
class Measured:
    """A trial's samples, and what stood around them."""

    table: pa.Table
    record: samples.CellRecord


@dataclass
class Session:
    """Conversations with a place, and what is known of its state."""

    place: Place
    watch: Watch
    observers: observers.Observers
    agents: Agents
    reader: counters.Reader
    conditions: Conditions
    refused: Mapping[str, str]  # arms and backends whose way of capturing is not allowed there -> why
    progress: Progress
    _medians: dict[str, float] = field(default_factory=dict)
    # At the end of the last trial, for it and for the one to follow.
    _read: dict[Cell, counters.Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loads = Loads(self.place, self.agents, self.observers, self.conditions)

    def during(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Raises LostPartError if a part that is not down on purpose is lost when this is left."""
        return self.watch.during(what, self.conditions.ended)

    def trial(self, index: int, trial: Trial, seed: int, following: Cell | None = None) -> Measured:
        """One trial, measured and judged.

        Counters of the cell to follow are read together with the last ones of this one, to lose no time between them.
        """
        cell = trial.cell
        self.progress.doing(f"{cell.experiment} {cell.arm}")
        changed = self.conditions.prepare(cell)
        before = self._read.get(cell, {})
        if changed or cell not in self._read:
            (before,) = self.reader.counts(cell)
        started_ns, used_before = time.monotonic_ns(), self.reader.usage(cell)
        table, agent = self.loads.make(index, trial, seed)
        used = self.reader.usage(cell)
        counts = self.reader.difference(cell, before, self._read_after(cell, following))
        reasons = validity.reasons(trial, table, counts, agent, world=self.place.world, nets=self.place.nets)
        record = samples.CellRecord(
            cell=index,
            parameters={name: getattr(cell, name) for name in cell.__dataclass_fields__},
            valid=not reasons,
            reasons=reasons,
            offered=trial.count,
            started_ns=started_ns,
            wall_s=_wall_s(table),
            counters={name: count for name, count in counts.items() if count > 0},
            cpu_us={name: round(use.cpu_us - used_before[name].cpu_us, 1) for name, use in used.items()},
            memory_bytes={name: use.memory_bytes for name, use in used.items() if use.memory_bytes is not None},
            agent=agent,
        )
        self._note(cell, table)
        return Measured(table, record)

    def _read_after(self, cell: Cell, following: Cell | None) -> counters.Counts:
        # A pod whose sidecar comes and goes is read on its own.
        alone = following is None or following == cell or cell.answer != "none" or following.answer != "none"
        read = [cell] if alone or following is None else [cell, following]
        self._read = dict(zip(read, self.reader.counts(*read), strict=True))
        return self._read[cell]

    def done(self, trial: Trial, before: Trial | None) -> None:
        """The bar moves on by a trial, however often it was measured, and shows how the medians stand."""
        note = ", ".join(f"{name} {value:.0f} µs" for name, value in sorted(self._medians.items()))
        self.progress.advance(trial.measuring_s(before, self.place.world), note)

    def _note(self, cell: Cell, table: pa.Table) -> None:
        """Live medians of the headline experiments, by arm."""
        if cell.experiment in ("lookup", "request") and table.num_rows:
            took = table.column("end_ns").to_numpy() - table.column("start_ns").to_numpy()
            self._medians[f"{cell.experiment} {cell.arm}"] = float(np.median(took)) / 1000


@contextlib.contextmanager
def opened(place: Place, progress: Progress | None = None) -> Iterator[Session]:
    """A session on a place that is up, and as it was afterwards. Raises TestbedError and LostPartError."""
    watch = Watch(place)
    with contextlib.ExitStack() as stack:
        with watch.during("before the first block"):
            asking = stack.enter_context(observers.opened(place))
            agents = stack.enter_context(Agents(place))
            refused = _refused(place)
            reader = counters.Reader(place, asking)
            conditions = stack.enter_context(Conditions(place, asking))
        shown = progress or stack.enter_context(Progress(0, "measuring"))
        yield Session(place, watch, asking, agents, reader, conditions, refused, shown)


def _refused(place: Place) -> dict[str, str]:
    pods = readiness.refusals(place)
    arms = {client.arm: pods[client.pod] for client in observers.clients(place) if client.pod in pods}
    return arms | {each.backend: pods[each.name] for each in place.world.inbound if each.name in pods}


def _wall_s(table: pa.Table) -> float:
    if not table.num_rows:
        return 0.0
    return float(table.column("end_ns").to_numpy().max() - table.column("due_ns").to_numpy().min()) / 1e9
