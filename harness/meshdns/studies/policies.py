"""Notebook 04: what becomes of requests to faulty replicas, with and without a sidecar and its policies.

Each arm and policy is compared with `plain`, which has no mesh, under the same fault in the same block. A request is
served if it was answered with success in time; the latency of a share of requests says nothing without that share.
`split` is the same for traffic that is divided on purpose. What mutual TLS and external names do is in `mtls` and
`external`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, provenance, shares, stats, text
from meshdns.core import errors
from meshdns.studies import lookups

FAULTS, SPLIT, MTLS, EXTERNAL = "faults", "split", "mtls", "external"  # experiments of this notebook
EXPERIMENTS = (FAULTS, SPLIT, MTLS, EXTERNAL)
PLAIN = "plain"  # what every arm is compared with
NONE = "none"
LEVEL = ["fault", "policy", "arm"]
PLAN = "`meshdns report --plan policies`"


@dataclass(frozen=True)
class Fault:
    """What is wrong with the replicas, as rows and sentences name it."""

    name: str
    said: str


FAULT = {
    NONE: Fault("no fault", "no fault"),
    "fail30": Fault("503s", "one replica answering 503 to 30 % of its requests"),
    "slow": Fault("slow replica", "one replica taking 100 ms more"),
    "dead": Fault("dead address", "one address of four dead"),
    "overload": Fault("overload", "more requests than the replicas may serve"),
}
POLICIES = (NONE, "retries", "timeouts", "outlier", "breaker", "split", "strict", "permissive", "disable", "reconnect")
V2, PROMISED = ("shop-3",), 0.10  # as compose/policies/split.yaml has it
UNDIVIDED = 1 / 3  # what one of three replicas gets anyway: an interval that holds both tells nothing
BASELINE = "without a mesh"
ONCE = 1.01  # more requests at the replicas per request made than this are retries
EVEN = 0.5  # replicas whose shares differ by less than this factor share the load
AGAINST, ALONE = "against plain", "against no policy"
TAIL = 0.9  # a third of the requests meet the slow replica; of fewer requests few blocks tell a quantile
TAIL_AGAINST, TAIL_BASELINE = "p90 against plain", "p90 without a mesh"
# What the client's sidecar counts.
_EVENTS = {
    "retries": ("pod/envoy/retries",),
    "retries that succeeded": ("pod/envoy/retry_success",),
    "time-outs": ("pod/envoy/rq_timeout", "pod/envoy/per_try_timeout"),
    "breaker overflows": ("pod/envoy/breaker_overflow",),
    "ejections": ("pod/envoy/ejections",),
    "tries": ("pod/envoy/tries",),
}
EVENTS = list(_EVENTS)


def experiments(runs: store.Runs) -> list[str]:
    """Those of this notebook that the runs hold."""
    there = set(runs.cells["experiment"])
    return [name for name in EXPERIMENTS if name in there]


def modes(table: pd.DataFrame) -> list[str]:
    """Its arms that have a sidecar."""
    seen = looks.of(table)
    return [arm for arm in seen.held(table["arm"]) if seen.pod(arm).sidecar]


def wrong(fault: str) -> Fault:
    """The fault in words; one that has none here by its name."""
    return FAULT.get(fault, Fault(fault, fault))


def policy_name(policy: str) -> str:
    """As rows name it."""
    return "no policy" if policy == NONE else policy


def counted(runs: store.Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """`chosen` with its recorded requests (`n`) and how many of them were served (`hits`)."""
    _, position = cells.requests_of(runs, chosen)
    _, bad_position = cells.requests_of(runs, chosen, failed=True)
    served = np.bincount(position, minlength=len(chosen))
    failed = np.bincount(bad_position, minlength=len(chosen))
    return chosen.assign(n=served + failed, hits=served)


# --- faults ---


@cells.once
def faults(runs: store.Runs) -> pd.DataFrame:
    """A row per fault, policy and arm: served requests, their latency, and what that took.

    Shares are intervals of fractions, latencies intervals in ns; `attempts` are what a sidecar tried per request made,
    `arrived` what reached a replica.
    """
    chosen = counted(runs, cells.select(runs, FAULTS))
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=_FAULTS), runs, FAULTS)
    chosen = chosen.assign(
        level=chosen[LEVEL].agg("/".join, axis=1),
        **{name: sum(cells.counter(chosen, key) for key in keys) for name, keys in _EVENTS.items()},
    )
    sums = shares.levels(chosen[[*LEVEL, *cells.BLOCK, "n", "hits", *EVENTS]], LEVEL)
    made = np.maximum(cells.asked(runs, chosen), 1)
    per_request = {
        "attempts": chosen["tries"].where(chosen["tries"] > 0) / made,  # nobody counts them where there is no sidecar
        "arrived": cells.counter(chosen, "servers/nginx_rq") / made,
    }
    tried = {name: cells.matrix(chosen.assign(value=value), LEVEL) for name, value in per_request.items()}
    found = {p: cells.matrix(cells.per_cell(runs, chosen, "from due", p), LEVEL) for p in cells.PROBABILITIES}
    over_all = cells.pooled(runs, chosen, "level", "from due", 0.99)
    rows = []
    for level in _levels(runs, chosen):
        fault, policy, arm = level
        mine, sidecar = sums[level], looks.of_runs(runs).pod(arm).sidecar
        plain, alone = (sums.get((fault, NONE, other)) for other in (PLAIN, arm))
        against = None if plain is None or arm == PLAIN else shares.difference(plain, mine)
        rows.append(
            {
                "row": f"{wrong(fault).name}, {policy_name(policy)}",
                "fault": fault,
                "policy": policy,
                "arm": arm,
                "blocks": len(mine),
                "requests": int(mine["n"].to_numpy().sum()),
                "served": shares.interval(mine["hits"], mine["n"]),
                AGAINST: against,
                "reading": "the baseline" if arm == PLAIN else shares.reading(against),
                ALONE: None if policy == NONE or alone is None else shares.difference(alone, mine),
                "p50": cells.interval(found[0.5], level),
                "p90": cells.interval(found[TAIL], level),
                TAIL_AGAINST: None if arm == PLAIN else cells.paired(found[TAIL], (fault, NONE, PLAIN), level),
                "p99": lookups.tail(cells.interval(found[0.99], level), over_all.get("/".join(level))),
                **{name: cells.interval(values, level) for name, values in tried.items()},
                **{name: int(mine[name].to_numpy().sum()) if sidecar else None for name in EVENTS},
                BASELINE: None if plain is None else shares.interval(plain["hits"], plain["n"]),
                TAIL_BASELINE: cells.interval(found[TAIL], (fault, NONE, PLAIN)),
                "values": (mine["hits"] / mine["n"].clip(lower=1)).to_numpy(dtype=float),
                "p90 values": cells.column(found[TAIL], level),
            }
        )
    return absent.of(pd.DataFrame(rows, columns=_FAULTS), runs, FAULTS)


_FAULTS = [
    "row", *LEVEL, "blocks", "requests", "served", AGAINST, "reading", ALONE, "p50", "p90", TAIL_AGAINST, "p99",
    "attempts", "arrived", *EVENTS, BASELINE, TAIL_BASELINE, "values", "p90 values",
]  # fmt: skip


def _levels(runs: store.Runs, chosen: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Fault, policy and arm of the rows, in the order in which they are read."""
    ranks: tuple[Sequence[str], ...] = (list(FAULT), POLICIES, list(runs.world.arms))
    found = {(str(fault), str(policy), str(arm)) for fault, policy, arm in chosen[LEVEL].itertuples(index=False)}
    return sorted(found, key=lambda level: [(looks.place(*each), each[1]) for each in zip(ranks, level, strict=True)])


def outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """For people: how many were served, and what the sidecar did for it."""
    out = pd.DataFrame(
        {
            "fault": [wrong(each).name for each in table["fault"]],
            "policy": [policy_name(each) for each in table["policy"]],
            "arm": table["arm"],
            "blocks": table["blocks"],
            "requests": table["requests"],
            "served": [shares.percent(each) for each in table["served"]],
            AGAINST: [shares.points(each) for each in table[AGAINST]],
            "reading": table["reading"],
            ALONE: [shares.points(each) for each in table[ALONE]],
            "tries per request": [_number(each) for each in table["attempts"]],
            "at a replica per request": [_number(each) for each in table["arrived"]],
            **{name: [text.ABSENT if pd.isna(each) else int(each) for each in table[name]] for name in EVENTS},
        }
    )
    return absent.knowing(out, absent.known(table))


def latencies(table: pd.DataFrame) -> pd.DataFrame:
    """For people: how long served requests took, from when they were due."""
    front = outcomes(table)[["fault", "policy", "arm", "served"]]
    out = pd.concat([front, table[["p50", "p90", "p99", TAIL_AGAINST]]], axis=1)
    return absent.knowing(out, absent.known(table))


def _number(each: stats.Interval) -> str:
    """`1.10 ± 0.02`: what has no unit."""
    return text.ABSENT if not each.n else f"{each.estimate:.2f} ± {each.half_width:.2f}"


@cells.once
def replicas(runs: store.Runs) -> pd.DataFrame:
    """A row per fault, policy and arm: the share of each replica in the requests that were answered, with or without
    success."""
    chosen = cells.select(runs, FAULTS)
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=["fault", "policy", "arm", "answered"]), runs, FAULTS)
    answered = _by_replica(runs, chosen)
    rows = []
    for fault, policy, arm in (level for level in _levels(runs, chosen) if level in answered):
        mine = answered[fault, policy, arm]
        whole = mine.sum(axis="columns")
        rows.append(
            {
                "fault": wrong(fault).name,
                "policy": policy_name(policy),
                "arm": arm,
                "answered": int(whole.to_numpy().sum()),
            }
            | {str(name): shares.interval(mine[name], whole) for name in mine.columns}
        )
    return pd.DataFrame(rows)


def _by_replica(runs: store.Runs, chosen: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """Requests per level: a row per block, a column per replica, of those that a replica answered."""
    parts = []
    for failed in (False, True):
        rows, position = cells.requests_of(runs, chosen, failed=failed)
        levels = chosen[[*LEVEL, *cells.BLOCK]].iloc[position].reset_index(drop=True)
        parts.append(levels.assign(replica=rows["replica"].astype(str).to_numpy()))
    found = pd.concat(parts, ignore_index=True)
    found = found[found["replica"] != ""]
    counts = pd.get_dummies(found["replica"], dtype=int)
    return shares.levels(pd.concat([found.drop(columns="replica"), counts], axis="columns"), LEVEL)


# --- traffic split ---


@cells.once
def split(runs: store.Runs) -> pd.DataFrame:
    """A row per policy and arm: the share of answered requests that v2 got, and whether the promised one lies inside.

    Inside is asked of the interval over blocks; Wilson's, of requests as if they were independent, stands beside it.
    """
    chosen = cells.select(runs, SPLIT)
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=_SPLIT), runs, SPLIT)
    answered = _by_replica(runs, chosen)
    rows = []
    for fault, policy, arm in (level for level in _levels(runs, chosen) if level in answered):
        mine = answered[fault, policy, arm]
        whole, second = (mine[each].sum(axis="columns") for each in (list(mine), [v for v in V2 if v in mine]))
        share = shares.interval(second, whole)
        rows.append(
            {
                "policy": policy_name(policy),
                "arm": arm,
                "blocks": len(mine),
                "answered": int(whole.to_numpy().sum()),
                "by v2": int(second.to_numpy().sum()),
                "share of v2": share,
                "all requests": shares.wilson(second.to_numpy().sum(), whole.to_numpy().sum(), len(mine)),
                "10 % inside": _inside(share),
            }
        )
    return absent.of(pd.DataFrame(rows, columns=_SPLIT), runs, SPLIT)


_SPLIT = ["policy", "arm", "blocks", "answered", "by v2", "share of v2", "all requests", "10 % inside"]


def _inside(share: stats.Interval) -> str:
    if share.n < 2:
        return text.ABSENT
    if not share.holds(PROMISED):
        return "NO"
    return gates.UNKNOWN if share.holds(UNDIVIDED) else "yes"


def in_percent(table: pd.DataFrame) -> pd.DataFrame:
    """For people: every interval is one of a share."""
    out = table.copy()
    for name, values in table.items():
        if any(isinstance(each, stats.Interval) for each in values):
            out[name] = [shares.percent(each) for each in values]
    return out


# --- may it be used ---


def checks(runs: store.Runs) -> pd.DataFrame:
    """A row per experiment of this notebook. Raises ReportError if most cells are invalid or there is but one block.

    Here failures are the question, so that their number condemns nothing.
    """
    rows = []
    for name in experiments(runs):
        every, chosen = runs.cells[runs.cells["experiment"] == name], cells.select(runs, name)
        found = counted(runs, chosen)
        invalid, blocks = len(every) - len(chosen), cells.blocks_of(chosen)
        problem = ""
        if invalid > provenance.MAX_INVALID * len(every):
            problem = f"experiment {name}: {invalid} of {len(every)} cells are invalid"
        elif blocks < provenance.MIN_BLOCKS:
            problem = f"experiment {name} has {blocks} block(s), an interval needs {provenance.MIN_BLOCKS}"
        if problem:
            place = ", ".join(header.name for header in runs.headers)
            raise errors.ReportError(problem, place=place, step="measure again")
        rows.append(
            {
                "experiment": name,
                "blocks": blocks,
                "cells": len(every),
                "invalid cells": invalid,
                "requests": int(found["n"].sum()),
                "of those offered": float(found["n"].sum() / max(found["offered"].sum(), 1)),
                "not served": int((found["n"] - found["hits"]).sum()),
            }
        )
    return provenance.reconciled(runs, pd.DataFrame(rows))


# --- sentences ---


Rows = list[dict[Any, Any]]


def answer(table: pd.DataFrame) -> str:
    """What a sidecar and its policies buy against each fault."""
    if table.empty:
        return f"What passing a sidecar buys was not measured in these runs; {PLAN} measures it."
    each = [_of(table[table["fault"] == fault]) for fault in dict.fromkeys(table["fault"])]
    return "\n".join([_headline(_meshed(table)), "", *(f"- {said}" for said in each if said)])


def _headline(rows: Rows) -> str:
    """The largest gain, of those that all modes measured agree on: with many rows one alone may differ by chance."""
    by_level: dict[tuple[str, str], Rows] = {}
    for row in rows:
        by_level.setdefault((row["fault"], row["policy"]), []).append(row)
    clear = [level for level, found in by_level.items() if {row["reading"] for row in found} == {"more"}]
    if not clear:
        return "No policy was seen to serve more requests in every mode than are served without a mesh."
    best = max((row for level in clear for row in by_level[level]), key=lambda row: float(row[AGAINST].estimate))
    alone = [wrong(fault).said for fault, policy in clear if policy == NONE]
    return (
        f"Passing the sidecar buys most against {wrong(best['fault']).said}: "
        f"{shares.points(best[AGAINST]).lstrip('+')} more requests are served with {_with(best['policy'])} in "
        f"{best['arm']} than without a mesh. A sidecar without a policy is seen to serve more against "
        f"{text.listed(alone, 'or') if alone else 'none of the faults'}."
    )


def _meshed(table: pd.DataFrame) -> Rows:
    return table[table["arm"].isin(modes(table))].to_dict("records")


def _with(policy: str) -> str:
    return "a sidecar and no policy" if policy == NONE else policy


def _of(table: pd.DataFrame) -> str:
    """One fault: how many are served without a mesh and by which policy more or fewer, and p90 where it is shorter."""
    rows = table[(table["arm"] == PLAIN) & (table["policy"] == NONE)].to_dict("records")
    plain, meshed = next(iter(rows), None), [row for row in _meshed(table) if row[AGAINST] is not None]
    if plain is None or not meshed:
        return ""
    said = wrong(plain["fault"]).said
    opening = f"{said[0].upper()}{said[1:]}: {shares.percent(plain['served'])} of requests are served without a mesh"
    return "; ".join([opening, *_served(meshed), *_shorter(meshed, plain)]) + "."


def _served(rows: Rows) -> list[str]:
    """The policy that serves most, and those that serve clearly fewer."""
    said = []
    best = _best([row for row in rows if row["reading"] == "more"], lambda row: float(row[AGAINST].estimate), rows)
    if best:
        said.append(_each(best, "served", shares.percent))
    fewer = dict.fromkeys(row["policy"] for row in rows if row["reading"] == "fewer")
    said += [
        f"fewer {_each([row for row in rows if row['policy'] == policy], 'served', shares.percent)}" for policy in fewer
    ]
    if not said:
        told = [row for row in rows if row[AGAINST].n > 1]
        if not told:
            return ["one block does not tell what a sidecar changes"]
        widest = max(told, key=lambda row: float(row[AGAINST].half_width))
        alone = {row["policy"] for row in told} == {NONE}
        what = "what a sidecar changes" if alone else "what a policy changes"
        said.append(f"{what} is {text.UNRESOLVED} ({shares.span(widest[AGAINST])} at the widest)")
    return said


def _shorter(rows: Rows, plain: dict[Any, Any]) -> list[str]:
    """The policy under which p90 is shortest, if it is clearly shorter than without a mesh."""
    timed = [row for row in rows if row[TAIL_AGAINST] is not None]
    clear = [row for row in timed if row[TAIL_AGAINST].clear and row[TAIL_AGAINST].absolute.estimate < 0]
    quick = _best(clear, lambda row: -float(row[TAIL_AGAINST].absolute.estimate), timed)
    if not quick:
        return []
    return [
        f"p90 of those served is {text.interval(plain['p90'])} without a mesh, {_each(quick, 'p90', text.interval)}"
    ]


def _best(clear: Rows, gain: Callable[[dict[Any, Any]], float], rows: Rows) -> Rows:
    """All rows of that policy, of those with a clear gain, under which arms gain most on average."""
    order = dict.fromkeys(row["policy"] for row in clear)  # of equals the first, which is none at all if it is there
    found = {policy: [row for row in rows if row["policy"] == policy] for policy in order}
    return max(found.values(), key=lambda mine: float(np.mean([gain(row) for row in mine])), default=[])


def _each(rows: Rows, column: str, said: Callable[[Any], str]) -> str:
    """`with retries 99.9 % [99.7, 100.0] in mode1-xds and …`."""
    return f"with {_with(rows[0]['policy'])} " + text.listed(f"{said(row[column])} in {row['arm']}" for row in rows)


def split_answer(table: pd.DataFrame) -> str:
    """What share v2 got; "" if nothing was measured."""
    if table.empty:
        return ""
    said = [f"{shares.percent(row['share of v2'])} in {row['arm']}" for row in _divided(table)]
    promised = f"{100 * PROMISED:.0f} %"
    if not said:
        return f"A split of the traffic ({promised} to v2) was not measured where it is in force."
    inside = [row["arm"] for row in _divided(table) if row["10 % inside"] == "yes"]
    outside = [row["arm"] for row in _divided(table) if row["10 % inside"] == "NO"]
    tail = f"the promised {promised} lies inside the interval in {text.listed(inside) if inside else 'no arm'}"
    tail += f" and outside it in {text.listed(outside)}" if outside else ""
    vague = [row["arm"] for row in _divided(table) if row["10 % inside"] == gates.UNKNOWN]
    if not inside and not outside:
        why = f"the interval in {text.listed(vague)} holds an even third too and" if vague else "one block"
        tail = f"{why} does not tell whether that is the promised {promised}"
    elif vague:
        tail += f"; in {text.listed(vague)} the interval holds an even third too"
    other = [f"{shares.percent(row['share of v2'])} in {row['arm']}" for row in _undivided(table)]
    rest = f" Without a sidecar that divides v2 gets {text.listed(other)}." if other else ""
    return f"Of traffic split 90/10, v2 got {text.listed(said)}: {tail}.{rest}"


def _divided(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return [row for row in _meshed(table) if row["policy"] == SPLIT]


def _undivided(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table[(table["policy"] != SPLIT) | ~table["arm"].isin(modes(table))].to_dict("records")
