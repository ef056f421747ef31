"""The load generator: clock, punctuality, bias against the wire, straightness, head-room, and others beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import absent, cells, provenance, stats
from meshdns.analysis.gates import AMBER, RED, STATED, UNKNOWN, UNMEASURED, Check, fact, judge, within
from meshdns.core import units

WIRE, LADDER, RATE, OTHERS = "card-wire", "card-ladder", "card-rate", "card-ruler"  # experiments
READ_NS = 1_000  # the clock's step, and what a reading may cost: a fifth of the finest gate below
GAP_SHARE = 0.001  # more stolen time than this and a pause is as likely as an effect
GAP_SHARE_AMBER = 0.05  # the share at which a cell is invalid; between the two the medians hold and tails do not
LAG_SHARE = 0.05  # of the median latency: a p99 of lateness above it shows in the tail of what is reported
LAG_NS = 1_000_000  # and above this in whatever is
LAG_RATE_HZ = 500.0  # the rate of the gate
BEHIND_NS = 300_000  # an arrival so soon after another can find the client at work for that one
MATCHED = 0.99  # share of requests whose packets were found: a bias of the others would not show
BIAS_NS = {"dns_bias": 10_000, "total_bias": 20_000}  # p50 against packet stamps on the wire
_BIASED = {"dns_bias": "lookup", "total_bias": "request"}  # what shows it
SLOPE = (0.98, 1.02)
RESIDUAL_NS, RESIDUAL_SHARE = 5_000, 0.02  # of a straight line through the known delays
HEADROOM = 2.0  # maximum rate over the highest planned one
AGREE = 0.05  # p50 of another generator
LITTLE = 0.02  # a generator that misses Little's law by more does not keep in flight what was asked
LIKE = "agent, block"  # the agent that waits as other generators do


def clock(runs: store.Runs) -> list[Check]:
    """Step, cost of reading, and the time that others take from the agent, worst arm of all runs."""
    judged = [each for header in runs.headers for each in provenance.branch(header.facts, "clock").values()]
    if not judged:
        return [Check("clock")]
    step, cost, tail, share = (
        max(fact(each, name) for each in judged)
        for name in ("resolution_ns", "cost_p50_ns", "cost_p99_ns", "gap_share")
    )
    steps = [fact(each, "backwards") for each in judged if "backwards" in each]
    stolen = judge(share <= GAP_SHARE, AMBER if share <= GAP_SHARE_AMBER else RED)
    return [
        Check("clock_step", judge(step <= READ_NS), {"step": step, "limit_us": READ_NS / units.NS_PER_US}),
        Check("clock_cost", judge(cost <= READ_NS), {"p50": cost, "p99": tail, "limit_us": READ_NS / units.NS_PER_US}),
        Check("clock_backwards", judge(sum(steps) == 0), {"steps": sum(steps)}) if steps else Check("clock_backwards"),
        Check("clock_stolen", stolen, {"share": share, "limit": GAP_SHARE}),
    ]


_LOAD = ["kind", "connection", "arrival", "rate_hz"]


def lag_table(runs: store.Runs) -> pd.DataFrame:
    """A row per planned rate: how late requests started, all blocks together.

    Of every cell and whatever became of the request: cells with late starts are invalid, and leaving them out would
    leave out what is looked for.
    """
    chosen = cells.select(runs, tool="agent", rejected=True)
    chosen = chosen[chosen["rate_hz"] > 0].reset_index(drop=True)
    rows, position = cells.requests_of(runs, chosen, failed=None)
    late = pd.DataFrame({"cell": position, "ns": cells.MEASURES["lag"](rows), "due": rows["due_ns"].to_numpy()})
    if late.empty:
        return late
    late["latency"] = cells.MEASURES["from_due"](rows)
    late = late.sort_values(["cell", "due"])
    late["over"] = late["ns"] >= LAG_NS
    late["behind"] = late["over"] & (late.groupby("cell")["due"].diff() < BEHIND_NS)
    for name in _LOAD:
        late[name] = chosen[name].to_numpy()[late["cell"]]
    groups = late.groupby(_LOAD, observed=True)
    table = groups["ns"].quantile(np.array([0.5, 0.99])).unstack()
    table.columns = ["p50", "p99"]
    stood = chosen.assign(ns=[fact(each, "gap_ns") for each in chosen["agent"]])
    return table.assign(
        latency=groups["latency"].median(), requests=groups.size(),
        over=groups["over"].sum(), behind=groups["behind"].sum(),
        stood_ns=stood.groupby(_LOAD, observed=True)["ns"].sum(),
    ).reset_index()  # fmt: skip


def lag(runs: store.Runs) -> list[Check]:
    """Send lag at each planned rate; the gate is at the one that the bar names.

    Amber while lateness is felt in tails alone: a late start is charged to the request, whose median stays.
    """
    found, gate = [], {"limit": LAG_SHARE, "gate_hz": LAG_RATE_HZ, "behind_ns": BEHIND_NS}
    for row in cells.rows(lag_table(runs)):
        late = RED if row["p99"] >= LAG_NS else AMBER
        verdict = judge(row["p99"] < min(LAG_SHARE * row["latency"], LAG_NS), late)
        found.append(Check("send_lag", verdict if row["rate_hz"] == LAG_RATE_HZ else STATED, row | gate))
    if all(each.verdict == STATED for each in found):
        found.append(Check("send_lag_gate", values=gate))
    return found


def bias_values(runs: store.Runs) -> pd.DataFrame:
    """A row per captured request: kind, and how much longer the agent's stamps are than the wire's (ns)."""
    chosen = cells.select(runs, WIRE)
    rows, position = cells.requests_of(runs, chosen)
    table = pd.DataFrame({name: cells.MEASURES[name](rows) for name in BIAS_NS})
    table["dns_bias"] = table["dns_bias"].where((rows["wire_dns_ns"] >= 0).to_numpy())
    table["total_bias"] = table["total_bias"].where((rows["wire_total_ns"] >= 0).to_numpy())
    return table.assign(kind=chosen["kind"].to_numpy()[position], cell=position)


def bias(runs: store.Runs) -> list[Check]:
    """The agent's stamps against those of packets: lookups for the DNS phase, requests for the total.

    On sockets that are kept: a new flow's way through the rules lies between stamp and packet and is no fault of the
    load generator but part of what an arm costs.
    """
    values, checked = bias_values(runs), []
    for name, kind in _BIASED.items():
        every = values[values["kind"] == kind]
        found = every.dropna(subset=[name])
        share = len(found) / max(len(every), 1)
        verdict = judge(share >= MATCHED) if len(every) else UNMEASURED
        checked.append(Check(f"{name}_matched", verdict, {"share": share, "limit": MATCHED, "requests": len(every)}))
        middle = stats.interval(found.groupby("cell")[name].median().to_numpy())
        numbers = {"p50": middle, "p99": found[name].quantile(0.99), "requests": len(found), "limit": BIAS_NS[name]}
        checked.append(Check(name, within(middle, -BIAS_NS[name], BIAS_NS[name]), numbers))
    return checked


def ladder(runs: store.Runs) -> tuple[pd.DataFrame, stats.Line | None]:
    """A row per known delay: what was measured, and the distance from the fitted line; with the line itself (µs).

    The delay is known twice: as asked of the target, and as it passed between packets; the line is against the latter,
    since a target that has waited also answers through colder caches.
    """
    chosen = cells.select(runs, LADDER, arm="null")
    medians, wires = (cells.medians(runs, chosen, ["null_delay_us"], what) for what in ("from_start", "on_the_wire"))
    both = medians.index[medians.notna().all(axis=1) & (wires > 0).all(axis=1)]
    medians, wires = medians.loc[both], wires.loc[both]
    if medians.shape[0] < 1 or medians.shape[1] < 2:
        return absent.knowing(pd.DataFrame(), [LADDER]), None
    measured = medians.to_numpy(dtype=float)
    wire = wires.to_numpy(dtype=float).mean(axis=0) / units.NS_PER_US
    line = stats.slope_intercept(wire, measured / units.NS_PER_US)
    rows = {
        "added_us": medians.columns.to_numpy(dtype=float),
        "wire_us": wire,
        "measured": [stats.interval(each) for each in measured.T],
        "residual_us": line.residuals,
        "values": [*measured.T],
    }
    return pd.DataFrame(rows), line


def linearity(runs: store.Runs) -> list[Check]:
    """Known delays against measured ones."""
    table, line = ladder(runs)
    if line is None:
        return [Check("linearity", values={"limits": SLOPE})]
    allowed = max(RESIDUAL_NS / units.NS_PER_US, RESIDUAL_SHARE * float(table["added_us"].max()))
    start, us = line.intercept, units.NS_PER_US
    intercept = stats.Interval(us * start.estimate, us * start.low, us * start.high, start.n)
    return [
        Check("linearity", within(line.slope, *SLOPE), {"slope": line.slope, "limits": SLOPE}),
        Check("linearity_intercept", STATED, {"intercept": intercept}),
        Check("linearity_residual", judge(line.residual <= allowed), {"residual": line.residual, "limit": allowed}),
    ]


def headroom(runs: store.Runs) -> list[Check]:
    """The agent's maximum rate against the highest planned one."""
    chosen = cells.select(runs, RATE, tool="agent")
    planned = runs.cells[runs.cells["experiment"] != RATE].groupby("kind")["rate_hz"].max()
    checked = []
    for kind in dict.fromkeys(["lookup", "request", *map(str, chosen["kind"])]):
        mine = chosen[chosen["kind"] == kind].reset_index(drop=True)
        rows, position = cells.requests_of(runs, mine)
        values: dict[str, Any] = {"kind": kind, "limit": HEADROOM}
        if rows.empty:
            checked.append(Check("rate", values=values))
            continue
        groups = rows.groupby(position)
        rates = groups.size() / (groups["end_ns"].max() - groups["start_ns"].min()) * units.NS_PER_S
        rate, highest = stats.interval(rates.to_numpy()), float(planned.get(kind, 0.0))
        verdict = within(rate, HEADROOM * highest, math.inf) if highest else STATED
        checked.append(Check("rate", verdict, {**values, "rate": rate, "planned_hz": highest}))
    return checked


def compared(runs: store.Runs) -> pd.DataFrame:
    """A row per kind and load generator: p50 over blocks, its difference from the agent that waits alike, Little's
    residual."""
    chosen = cells.select(runs, OTHERS)
    names = [f"agent, {w}" if t == "agent" else t for t, w in zip(chosen["tool"], chosen["wait"], strict=True)]
    measured = cells.per_cell(runs, chosen, "from_start").assign(generator=names)
    medians = cells.matrix(measured, ["kind", "generator"])
    residual = cells.matrix(measured.assign(residual=_loop_residual(runs, chosen)), ["kind", "generator"], "residual")
    rows = [
        {
            "kind": level[0],
            "generator": level[1],
            "blocks": len(cells.column(medians, level)),
            "p50": cells.interval(medians, level),
            "against_agent": cells.paired(medians, (level[0], LIKE), level) if level[1] != LIKE else None,
            "littles_residual": residual.get(level, pd.Series(dtype=float)).median(),
        }
        for level in map(tuple, medians.columns)
    ]
    return absent.of(pd.DataFrame(rows), runs, OTHERS)


def _loop_residual(runs: store.Runs, chosen: pd.DataFrame) -> NDArray[np.float64]:
    """(X·R - N) / N of each closed loop; other tools state their own running time and count."""
    rows, position = cells.requests_of(runs, chosen)
    spent = np.bincount(position, weights=cells.MEASURES["from_start"](rows), minlength=len(chosen))
    n = np.bincount(position, minlength=len(chosen))
    facts = [*chosen["agent"]]
    wall = np.array([each.get("run_time_s", each.get("wall_ns", np.nan) / 1e9) for each in facts], dtype=float)
    done = np.array([each.get("completed", count) for each, count in zip(facts, n, strict=True)], dtype=float)
    mean_s = np.divide(spent, n, out=np.full(len(chosen), np.nan), where=n > 0) / units.NS_PER_S
    return stats.littles_residual(done * mean_s / wall, chosen["concurrency"].to_numpy(dtype=float))


def others(runs: store.Runs) -> list[Check]:
    """Others on the same loop. Each, the agent too, is held to Little's law before its p50 is compared."""
    rows = cells.rows(compared(runs))
    laws = {(row["kind"], row["generator"]): row["littles_residual"] for row in rows}
    checked = []
    for row in rows:
        found = row["against_agent"]
        if row["generator"].startswith("agent") or found is None:
            continue
        idle = {who: laws.get((row["kind"], who), math.nan) for who in (row["generator"], LIKE)}
        lawful = all(abs(each) <= LITTLE for each in idle.values())
        verdict = within(found.relative, -AGREE, AGREE, AMBER) if lawful else UNKNOWN
        numbers = {"against": found.relative, "idle": idle, "lawful": lawful, "limit": AGREE}
        checked.append(Check("generator", verdict, row | numbers))
    return checked or [Check("generators", values={"limit": AGREE})]
