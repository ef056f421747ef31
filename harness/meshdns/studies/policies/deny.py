"""From when on a caller is refused whom a policy denies, and what is answered with success after that.

The policy comes while one request after the other is made, on connections between the sidecars that an earlier load has
left. Every sidecar has accepted it when istiod says so (`done_ns`); a request that starts later and is served is late.
What is tested is that each of those connections serves one late request. Without istiod's word: what starts after the
first refusal has come and is served all the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, stats, text
from meshdns.studies.change import load
from meshdns.studies.change.load import Change, Load
from meshdns.studies.policies.tables import DENY, Row, Times

FORBIDDEN = 403  # how a sidecar refuses
EACH = 1.0  # late requests on a kept connection, as is expected
ONE_EACH, FEWER, MORE, ONE_BLOCK = "one each", "fewer", "more", "one block: no interval"


class Wait(stats.Interval):
    """How long something took, ns."""

    def __str__(self) -> str:
        """`121 ± 3 ms`."""
        return text.interval(self)


@cells.once
def table(runs: store.Runs) -> pd.DataFrame:
    """A row per arm and number of connections: late requests, and when the first was refused and the last served.

    `blocks` are those whose load went on after every sidecar had accepted the policy, `blocks_refused` those of them in
    which anybody was refused. Durations begin when the API server was told, and end with an answer.
    """
    loads = load.made(runs, cells.select(runs, DENY))
    went_on = [row | seen(mine, change) for row, mine, change in loads if change.done_ns < mine.start_ns[-1]]
    order, found = runs.world.arms, pd.DataFrame(went_on)
    groups = found.groupby(["arm", "concurrency"], observed=True) if len(found) else ()
    rows = sorted(
        (_row(mine) for _, mine in groups), key=lambda row: (looks.place(order, row["arm"]), row["connections"])
    )
    return absent.of(pd.DataFrame(rows, columns=_TABLE), runs, DENY)


_TIMES = ("late", "since_refusal", "pooled")
_WAITS = ("accepted", "first_refused", "last_served")
_TABLE = [
    "arm", "connections", "blocks", "late", "late_p50", "per_connection", "reading", *_WAITS, "since_refusal",
    "refused", "blocks_refused", "pooled", "late_values",
]  # fmt: skip


def seen(requests: Load, change: Change) -> Row:
    """What became of the requests of one requests."""
    refused = (requests.status == FORBIDDEN) & (requests.end_ns >= change.at_ns)
    first_ns = requests.end_ns[refused].min(initial=np.iinfo(np.int64).max)
    ended_ns = requests.end_ns[requests.ok].max(initial=change.at_ns)
    return {
        "pooled": change.pooled,
        "late": int((requests.ok & (requests.start_ns > change.done_ns)).sum()),
        "since_refusal": int((requests.ok & (requests.start_ns > first_ns)).sum()),
        "accepted": float(change.done_ns - change.at_ns),
        "first_refused": float(first_ns - change.at_ns) if refused.any() else np.nan,
        "last_served": float(ended_ns - change.at_ns) if refused.any() else np.nan,
        "refused": int(refused.sum()),
    }


def _row(mine: pd.DataFrame) -> Row:
    arm, connections = str(mine["arm"].iloc[0]), int(mine["concurrency"].iloc[0])
    by_block = mine.groupby(cells.BLOCK, observed=True)[[*_TIMES, *_WAITS]].mean()
    late = by_block["late"].to_numpy(dtype=float)
    each = late / np.maximum(by_block["pooled"].to_numpy(dtype=float), 1)
    per_connection = Times(*dataclasses.astuple(stats.interval(each)))
    found: Row = {name: Times(*dataclasses.astuple(stats.interval(by_block[name]))) for name in _TIMES}
    found |= {name: Wait(*dataclasses.astuple(stats.interval(by_block[name].dropna()))) for name in _WAITS}
    return found | {
        "arm": arm,
        "connections": connections,
        "blocks": len(by_block),
        "late_p50": float(np.median(late)),
        "per_connection": per_connection,
        "reading": reading(per_connection),
        "refused": int(mine["refused"].sum()),
        "blocks_refused": int(by_block["first_refused"].notna().sum()),
        "late_values": late,
    }


def reading(per_connection: stats.Interval) -> str:
    """Whether that is one late request on each connection; an interval that holds none or two as well tells nothing."""
    if per_connection.n < 2:
        return ONE_BLOCK
    if per_connection.holds(EACH):
        return gates.UNKNOWN if per_connection.holds(0.0) or per_connection.holds(2 * EACH) else ONE_EACH
    return FEWER if per_connection.estimate < EACH else MORE
