"""What becomes of requests to faulty replicas, with and without a sidecar and its policies: the numbers.

Each arm and policy is compared with `plain`, which has no mesh, under the same fault in the same block. A request is
served if it was answered with success in time; the latency of a share of requests says nothing without that share.
`split` is the same for traffic that is divided on purpose. What mutual TLS and external names do is in `mtls` and
`external`, when a policy that denies is in force in `deny`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, provenance, shares, stats, text
from meshdns.core import units
from meshdns.studies.names.tables import tail

FAULTS, SPLIT, MTLS, DENY, EXTERNAL = EXPERIMENTS = ("faults", "split", "mtls", "deny", "external")
PLAIN = "plain"  # what every arm is compared with
NONE = "none"
STRICT, PERMISSIVE, DISABLE = WANTED = ("strict", "permissive", "disable")  # mutual TLS, of the servers
HTTP, *TCP = BACKENDS = ("api", "postgres", "redis")  # outside the mesh; a TCP server tells who it is
LEVEL = ["fault", "policy", "arm"]
# In the order in which they are read; others come after them.
_ORDER: dict[str, Iterable[str]] = {
    "fault": (NONE, "fail30", "slow", "dead", "overload"),
    "policy": (NONE, "retries", "timeouts", "outlier", "breaker", SPLIT, *WANTED),
    "backend": BACKENDS,
}
V2, PROMISED = ("shop-3",), 0.10  # as compose/policies/split.yaml has it
UNDIVIDED = 1 / 3  # what one of three replicas gets anyway: an interval that holds both tells nothing
INSIDE, OUTSIDE = "inside", "outside"
TAIL = 0.9  # a third of the requests meet the slow replica; of fewer requests few blocks tell a quantile
# What the client's sidecar counts.
_EVENTS = {
    "retries": ("pod/envoy/retries",),
    "retries_that_succeeded": ("pod/envoy/retry_success",),
    "time_outs": ("pod/envoy/rq_timeout", "pod/envoy/per_try_timeout"),
    "breaker_overflows": ("pod/envoy/breaker_overflow",),
    "ejections": ("pod/envoy/ejections",),
    "tries": ("pod/envoy/tries",),
}
EVENTS = [*_EVENTS]
Row = dict[Any, Any]
Rows = list[Row]


class Times(stats.Interval):
    """How often something happened, on average."""

    def __str__(self) -> str:
        """`1.10 ± 0.02`."""
        half_width = f"{self.half_width:.2f}" if np.isfinite(self.half_width) else units.UNKNOWN
        return f"{self.estimate:.2f} ± {half_width}" if self.n else text.ABSENT


def modes(table: pd.DataFrame) -> list[str]:
    """Its arms that have a sidecar."""
    seen = looks.of(table)
    return [arm for arm in seen.held(table["arm"]) if seen.pod(arm).sidecar]


def meshed(table: pd.DataFrame) -> Rows:
    """The rows of arms that have a sidecar."""
    return table[table["arm"].isin(modes(table))].to_dict("records")


def parts(runs: store.Runs, frame: pd.DataFrame, *by: str) -> Iterator[tuple[Row, pd.DataFrame]]:
    """The levels that the frame has, in the order of the page, each with its rows."""
    order = _ORDER | {"arm": runs.world.arms}
    found = {tuple(map(str, level)): part for level, part in frame.groupby([*by], observed=True)}

    def place(level: tuple[str, ...]) -> list[tuple[int, str]]:
        return [(looks.place(order[name], each), each) for name, each in zip(by, level, strict=True)]

    for level in sorted(found, key=place):
        yield dict(zip(by, level, strict=True)), found[level]


def counted(runs: store.Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """`chosen` with its recorded requests (`n`) and how many of them were served (`hits`)."""
    requests, position = cells.requests_of(runs, chosen, failed=None)
    served = position[(requests["outcome"] == "ok").to_numpy()]
    n, hits = (np.bincount(each, minlength=len(chosen)) for each in (position, served))
    return chosen.assign(n=n, hits=hits)


# --- faults ---


@cells.once
def faults(runs: store.Runs) -> pd.DataFrame:
    """A row per fault, policy and arm: served requests, their latency, and what that took.

    `attempts` are what a sidecar tried per request made, `arrived` what reached a replica.
    """
    chosen = counted(runs, cells.select(runs, FAULTS))
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=_FAULTS), runs, FAULTS)
    chosen = chosen.assign(
        level=chosen[LEVEL].agg("/".join, axis=1),
        **{name: sum(cells.counter(chosen, key) for key in keys) for name, keys in _EVENTS.items()},
    )
    made = np.maximum(cells.asked(runs, chosen), 1)
    per_request = {
        "attempts": chosen["tries"].where(chosen["tries"] > 0) / made,  # nobody counts them where there is no sidecar
        "arrived": cells.counter(chosen, "servers/nginx_rq") / made,
    }
    tried = {name: cells.matrix(chosen.assign(value=value), LEVEL) for name, value in per_request.items()}
    found = {p: cells.matrix(cells.per_cell(runs, chosen, "from_due", p), LEVEL) for p in cells.PROBABILITIES}
    over_all = cells.pooled(runs, chosen, "level", "from_due", 0.99)
    sums = {
        tuple(row.values()): mine.groupby(cells.BLOCK, observed=True)[["n", "hits", *EVENTS]].sum()
        for row, mine in parts(runs, chosen, *LEVEL)
    }
    rows = []
    for level, mine in sums.items():
        fault, policy, arm = level
        base = (fault, NONE, PLAIN)
        plain, alone = sums.get(base), sums.get((fault, NONE, arm))
        against = None if plain is None or arm == PLAIN else shares.difference(plain, mine)
        row: Row = {
            "blocks": len(mine),
            "requests": int(mine["n"].sum()),
            "served": shares.interval(mine["hits"], mine["n"]),
            "against_plain": against,
            "reading": text.BASELINE if arm == PLAIN else shares.reading(against),
            "against_no_policy": None if policy == NONE or alone is None else shares.difference(alone, mine),
            "p50": cells.interval(found[0.5], level),
            "p90": cells.interval(found[TAIL], level),
            "p90_against_plain": None if arm == PLAIN else cells.paired(found[TAIL], base, level),
            "p99": tail(cells.interval(found[0.99], level), over_all.get("/".join(level))),
            "served_without_mesh": None if plain is None else shares.interval(plain["hits"], plain["n"]),
            "p90_without_mesh": cells.interval(found[TAIL], base),
            "served_values": (mine["hits"] / mine["n"].clip(lower=1)).to_numpy(dtype=float),
            "p90_values": cells.column(found[TAIL], level),
        }
        row |= {name: Times(*dataclasses.astuple(cells.interval(tried[name], level))) for name in per_request}
        row |= {name: int(mine[name].sum()) for name in EVENTS if looks.of_runs(runs).pod(arm).sidecar}
        rows.append(dict(zip(LEVEL, level, strict=True)) | row)
    return absent.of(pd.DataFrame(rows, columns=_FAULTS), runs, FAULTS)


_FAULTS = [
    *LEVEL, "blocks", "requests", "served", "against_plain", "reading", "against_no_policy", "p50", "p90",
    "p90_against_plain", "p99", "attempts", "arrived", *EVENTS, "served_without_mesh", "p90_without_mesh",
    "served_values", "p90_values",
]  # fmt: skip


@cells.once
def replicas(runs: store.Runs) -> pd.DataFrame:
    """A row per fault, policy and arm: the share of each replica in the requests that were answered, with or without
    success."""
    rows = []
    for row, mine in _answered(runs, FAULTS):
        whole = mine.sum(axis="columns")
        each = {str(name): shares.interval(mine[name], whole) for name in mine}
        rows.append(row | {"answered": int(whole.sum())} | each)
    return absent.of(pd.DataFrame(rows, columns=None if rows else [*LEVEL, "answered"]), runs, FAULTS)


def _answered(runs: store.Runs, experiment: str) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Each level with its requests that a replica answered: a row per block, a column per replica."""
    chosen = cells.select(runs, experiment)
    requests, position = cells.requests_of(runs, chosen, failed=None)
    levels = chosen[[*LEVEL, *cells.BLOCK]].iloc[position].reset_index(drop=True)
    found = levels.assign(replica=requests["replica"].astype(str).to_numpy()).query("replica != ''")
    for row, mine in parts(runs, found, *LEVEL):
        counts = mine.groupby([*cells.BLOCK, "replica"], observed=True).size().unstack(fill_value=0)
        yield row, counts.reindex(columns=sorted(set(found["replica"])), fill_value=0)


# --- traffic split ---


@cells.once
def split(runs: store.Runs) -> pd.DataFrame:
    """A row per policy and arm: the share of answered requests that v2 got, and whether the promised one lies inside.

    Inside is asked of the interval over blocks; Wilson's, of requests as if they were independent, stands beside it.
    """
    rows = []
    for row, mine in _answered(runs, SPLIT):
        whole, second = (mine[each].sum(axis="columns") for each in (list(mine), [v for v in V2 if v in mine]))
        share = shares.interval(second, whole)
        counts = {"blocks": len(mine), "answered": int(whole.sum()), "by_v2": int(second.sum())}
        independent = shares.wilson(second.sum(), whole.sum(), len(mine))
        rows.append(row | counts | {"share_of_v2": share, "all_requests": independent, "promised": promise(share)})
    columns = ["policy", "arm", "blocks", "answered", "by_v2", "share_of_v2", "all_requests", "promised"]
    return absent.of(pd.DataFrame(rows, columns=columns), runs, SPLIT)


def promise(share: stats.Interval) -> str | None:
    """Where the promised share lies; None if one block cannot tell."""
    if share.n < 2:
        return None
    if not share.holds(PROMISED):
        return OUTSIDE
    return gates.UNKNOWN if share.holds(UNDIVIDED) else INSIDE


# --- may it be used ---


def checks(runs: store.Runs) -> text.Shown:
    """A row per experiment of this study that is there. Raises ReportError if most cells are invalid or there is but
    one block; failures are the question here, so that their number condemns nothing."""
    rows = []
    for name in (each for each in EXPERIMENTS if each in set(runs.cells["experiment"])):
        found = counted(runs, cells.select(runs, name))
        n, hits = int(found["n"].sum()), int(found["hits"].sum())
        shares = {"requests": n, "of_those_offered": n / max(float(found["offered"].sum()), 1), "not_served": n - hits}
        rows.append(provenance.counted(runs, name, found) | shares)
    return provenance.judged(runs, rows, provenance.lacking)
