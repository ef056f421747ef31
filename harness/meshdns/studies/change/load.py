"""Loads in the middle of which something is changed, and what becomes of the requests of one: pure functions.

What did not happen before the load ended is infinite, not absent: the median over blocks can tell it, a mean cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import cells
from meshdns.core import units

Row = dict[Any, Any]
Instants = NDArray[np.int64]
Flags = NDArray[np.bool_]

# What was seen last may be seen again: it has ended only after a silence of twice the longest before the change. A
# second is enough in any case.
SLACK, ENOUGH_NS = 2, units.NS_PER_S


@dataclass(frozen=True)
class Load:
    """The requests of a cell, in the order in which they started."""

    due_ns: Instants
    start_ns: Instants
    end_ns: Instants
    outcome: NDArray[Any]
    status: Instants
    replica: NDArray[Any]  # that answered; "": none
    local_port: Instants

    @cached_property
    def ok(self) -> Flags:
        """The requests that were served."""
        return np.asarray(self.outcome == "ok", dtype=bool)

    def served_by(self, replicas: Sequence[str]) -> Flags:
        """The requests that one of these replicas served."""
        return np.asarray(self.ok & np.isin(self.replica, list(replicas)), dtype=bool)


@dataclass(frozen=True)
class Change:
    """What was done during the load."""

    at_ns: int  # on the clock of the requests
    done_ns: int  # when making it had ended
    added: tuple[str, ...]
    removed: tuple[str, ...]
    pooled: int = 0  # connections to replicas that the client's sidecar kept right before

    @classmethod
    def of(cls, agent: dict[str, Any]) -> Self | None:
        """The one that a cell's agent made."""
        change = agent.get("change")
        if not isinstance(change, dict):
            return None
        instants = int(change["at_ns"]), int(change["done_ns"])
        return cls(*instants, tuple(change["added"]), tuple(change["removed"]), int(change.get("pooled", 0)))

    def within(self, load: Load) -> bool:
        """Whether the load was there before it and after it."""
        return bool(load.start_ns.size and load.start_ns[0] < self.at_ns < load.start_ns[-1])

    def rest_s(self, load: Load) -> float:
        """How long the load went on after it."""
        return float(load.start_ns[-1] - self.at_ns) / units.NS_PER_S


def made(runs: store.Runs, chosen: pd.DataFrame) -> Iterator[tuple[Row, Load, Change]]:
    """The cells in which a change was made while the load ran, with their requests."""
    if chosen.empty:
        return
    names = list(Load.__dataclass_fields__)
    there = runs.samples["experiment"].isin(chosen["experiment"].unique())
    near = runs.samples.loc[there, [*cells.KEY, *names]]
    keys = cells.keys(near, runs.headers)
    order = np.lexsort((near["start_ns"].to_numpy(), keys))
    keys = keys[order]
    columns = [np.asarray(near[name])[order] for name in names]
    for row in chosen.to_dict("records"):
        change = Change.of(row["agent"])
        begin, end = np.searchsorted(keys, (row["key"], row["key"] + 1))
        load = Load(*(each[begin:end] for each in columns))
        if change is not None and change.within(load):
            yield row, load, change


def lasting(seen_ns: Instants, load: Load, change: Change) -> bool:
    """Whether what was seen at these instants still goes on when the load ends."""
    if not (seen_ns >= change.at_ns).any():
        return False
    before = seen_ns[seen_ns < change.at_ns]
    longest = int(np.diff([load.start_ns[0], *before, change.at_ns]).max())
    return bool(load.start_ns[-1] - seen_ns[-1] <= min(SLACK * longest, ENOUGH_NS))


def _until_last(seen_ns: Instants, load: Load, change: Change) -> float:
    """ns from the change to the last of these; infinite if it is not the last."""
    if not seen_ns.size:
        return 0.0
    return np.inf if lasting(seen_ns, load, change) else max(float(seen_ns[-1] - change.at_ns), 0.0)


def until_added(load: Load, change: Change) -> float:
    """ns from the change to the first request served by an added replica; NaN if none was added."""
    if not change.added:
        return np.nan
    seen_ns = load.start_ns[load.served_by(change.added)]
    return max(float(seen_ns[0] - change.at_ns), 0.0) if seen_ns.size else np.inf


def until_left(load: Load, change: Change) -> float:
    """ns from the change to the last request served by a removed replica; NaN if it never served any."""
    seen_ns = load.start_ns[load.served_by(change.removed)]
    return _until_last(seen_ns, load, change) if seen_ns.size else np.nan


def until_followed(load: Load, change: Change) -> float:
    """ns from the change until every request that starts is served, none by a removed replica, and added ones serve.

    NaN if the change did not concern this load: its connections were all to other replicas.
    """
    removed, failed = load.served_by(change.removed), ~load.ok
    if not change.added and not removed.any() and not failed.any():
        return np.nan
    wrong = _until_last(load.start_ns[removed | failed], load, change)
    return float(np.nanmax([wrong, until_added(load, change)]))


def failed_after(load: Load, change: Change) -> Flags:
    """The requests that failed, and not before the change."""
    return np.asarray(~load.ok & (load.end_ns >= change.at_ns), dtype=bool)


def error_ns(load: Load, change: Change, rate_hz: float) -> float:
    """How long the load offers as many requests as failed: error-seconds, in ns."""
    return float(failed_after(load, change).sum()) / rate_hz * units.NS_PER_S


def failing_ns(load: Load, change: Change, rate_hz: float) -> float:
    """ns from the first failed request to the last, each of which stands for one interval of the load."""
    due_ns = load.due_ns[failed_after(load, change)]
    # Due times are rounded to nanoseconds, which would show as digits.
    return round(float(np.ptp(due_ns)) + units.NS_PER_S / rate_hz, -3) if due_ns.size else 0.0


def stay(load: Load, change: Change) -> dict[str, int]:
    """What became of connections (source ports) to removed replicas.

    Those that one served before the change, those of them that it still served when the load ended, and the requests
    that it served on these after the change.
    """
    there = load.served_by(change.removed) & (load.local_port > 0)
    ports = np.unique(load.local_port[there & (load.start_ns < change.at_ns)])
    kept = [port for port in ports if lasting(load.start_ns[there & (load.local_port == port)], load, change)]
    later = there & (load.start_ns >= change.at_ns) & np.isin(load.local_port, kept)
    return {"connections": len(ports), "stayed": len(kept), "requests_on_them": int(later.sum())}


def kinds(load: Load, change: Change) -> dict[str, int]:
    """How many requests ended how, from the change on: `ok`, an outcome, or the status that came with an HTTP error."""
    after = load.end_ns >= change.at_ns
    named = [
        f"HTTP {status}" if outcome == "http_error" else str(outcome)
        for outcome, status in zip(load.outcome[after], load.status[after], strict=True)
    ]
    found, counts = np.unique(named, return_counts=True)
    return {str(name): int(count) for name, count in zip(found, counts, strict=True)}
