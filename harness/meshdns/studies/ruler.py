"""The ruler itself: clock, punctuality, bias against the wire, straightness, head-room, other rulers beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import cells, gates, provenance, stats, text
from meshdns.core import units

GAP_SHARE = 0.001  # more stolen time than this and a pause is as likely as an effect
GAP_SHARE_AMBER = 0.05  # the share at which a cell is invalid; between the two the medians hold and tails do not
LAG_SHARE = 0.05  # of the median latency: a p99 of lateness above it shows in the tail of what is reported
LAG_NS = 1_000_000  # and above this in whatever is
LAG_RATE_HZ = 500.0  # the rate of the gate
BEHIND_NS = 300_000  # an arrival so soon after another can find the client at work for that one
MATCHED = 0.99  # share of requests whose packets were found: a bias of the others would not show
BIAS_NS = {"dns bias": 10_000, "total bias": 20_000}  # p50 against packet stamps on the wire
SLOPE = (0.98, 1.02)
RESIDUAL_NS, RESIDUAL_SHARE = 5_000, 0.02  # of a straight line through the known delays
HEADROOM = 2.0  # maximum rate over the highest planned one
AGREE = 0.05  # p50 of another ruler
LITTLE = 0.02  # a ruler that misses Little's law by more does not keep in flight what was asked
LIKE = "agent, block"  # the agent that waits as other rulers do


def clock(runs: store.Runs) -> list[gates.Row]:
    """Step, cost of reading, and the time that others take from the agent, worst arm of all runs."""
    judged = [
        each
        for header in runs.headers
        for each in provenance.branch(header.facts, "clock").values()
        if isinstance(each, dict)
    ]
    if not judged:
        return [gates.missing("clock")]
    step = max(gates.fact(each, "resolution_ns") for each in judged)
    cost = max(gates.fact(each, "cost_p50_ns", "read_p50_ns") for each in judged)
    tail = max(gates.fact(each, "cost_p99_ns", "read_p99_ns") for each in judged)
    share = max(_gap_share(each) for each in judged)
    counted = [gates.fact(each, "backwards") for each in judged if "backwards" in each]
    stolen = gates.judge(share <= GAP_SHARE, gates.AMBER if share <= GAP_SHARE_AMBER else gates.RED)
    return [
        gates.Row("clock: step", units.duration(step, "ns"), "at most 1 µs", gates.judge(step <= 1_000)),
        gates.Row(
            "clock: cost of a reading, p50 / p99",
            f"{units.number(cost)} / {units.number(tail)} ns",
            "p50 at most 1 µs",
            gates.judge(cost <= 1_000),
        ),
        gates.Row("clock: steps backwards", f"{sum(counted):g}", "0", gates.judge(sum(counted) == 0))
        if counted
        else gates.missing("clock: steps backwards", "0"),
        gates.Row(
            "clock: time taken by others",
            units.percent(share),
            f"at most {units.percent(GAP_SHARE)}",
            stolen,
            "gaps over 50 µs in a spin of one second before the first block, worst run; touches tails, not medians",
        ),
    ]


def _gap_share(facts: dict[str, Any]) -> float:
    if "gap_share" in facts:
        return gates.fact(facts, "gap_share")
    return gates.fact(facts, "gap_ns") / gates.fact(facts, "spin_ns")


def lag_table(runs: store.Runs) -> pd.DataFrame:
    """A row per planned rate: how late requests started, all blocks together.

    Of every cell and whatever became of the request: cells with late starts are invalid, and leaving them out would
    leave out what is looked for.
    """
    chosen = cells.select(runs, tool="agent", rejected=True)
    chosen = chosen[chosen["rate_hz"] > 0].reset_index(drop=True)
    rows, position = cells.requests_of(runs, chosen, failed=None)
    late = pd.DataFrame({"cell": position, "ns": cells.MEASURES["lag"](rows), "due": rows["due_ns"].to_numpy()})
    late["latency"] = cells.MEASURES["from due"](rows)
    late = late.sort_values(["cell", "due"])
    late["over"] = late["ns"] >= LAG_NS
    late["behind"] = late["over"] & (late.groupby("cell")["due"].diff() < BEHIND_NS)
    what = ["kind", "connection", "arrival", "rate_hz"]
    for name in what:
        late[name] = chosen[name].to_numpy()[late["cell"]]
    if late.empty:
        return pd.DataFrame(columns=[*what, "p50", "p99", "latency", "requests", "over", "behind", "stood_ns"])
    groups = late.groupby(what, observed=True)
    table = groups["ns"].quantile(np.array([0.5, 0.99])).unstack()
    table.columns = ["p50", "p99"]
    stood = chosen.assign(ns=[gates.fact(each, "gap_ns") for each in chosen["agent"]])
    return table.assign(
        latency=groups["latency"].median(), requests=groups.size(),
        over=groups["over"].sum(), behind=groups["behind"].sum(),
        stood_ns=stood.groupby(what, observed=True)["ns"].sum(),
    ).reset_index()  # fmt: skip


def lag(runs: store.Runs) -> list[gates.Row]:
    """Send lag at each planned rate; the gate is at the one that the bar names."""
    gate = f"p99 under {units.percent(LAG_SHARE)} of the median latency at {units.rate(LAG_RATE_HZ)}"
    lines = []
    for row in lag_table(runs).to_dict("records"):
        gated = row["rate_hz"] == LAG_RATE_HZ
        lines.append(
            gates.Row(
                f"send lag: {row['kind']}, {row['connection']}, {row['arrival']} {units.rate(row['rate_hz'])}",
                f"p50 {units.duration(row['p50'], 'µs')}, p99 {units.duration(row['p99'], 'µs')}, "
                f"median latency {units.duration(row['latency'], 'µs')}",
                gate if gated else "none at this rate",
                _punctual(row) if gated else gates.STATED,
                _lateness(row),
            )
        )
    if not any(row.verdict != gates.STATED for row in lines):
        lines.append(gates.missing(f"send lag at {units.rate(LAG_RATE_HZ)}", gate))
    return lines


def _punctual(row: dict[Any, Any]) -> str:
    """Amber while lateness is felt in tails alone: a late start is charged to the request, whose median stays."""
    late = gates.RED if row["p99"] >= LAG_NS else gates.AMBER
    return gates.judge(row["p99"] < min(LAG_SHARE * row["latency"], LAG_NS), late)


def _lateness(row: dict[Any, Any]) -> str:
    """Whether late starts come from the client's own work or from a CPU that was taken away."""
    said = f"{row['requests']} requests, all cells"
    if not row["over"]:
        return said
    own = f"{row['over']} over 1 ms late, {row['behind']} of them within {units.duration(BEHIND_NS, 'µs')} of another"
    return f"{said}; {own}; the idle client lost its CPU for {units.duration(row['stood_ns'])}"


def bias_values(runs: store.Runs) -> pd.DataFrame:
    """A row per captured request: kind, and how much longer the agent's stamps are than the wire's (ns)."""
    chosen = cells.select(runs, "card-wire")
    rows, position = cells.requests_of(runs, chosen)
    table = pd.DataFrame({name: cells.MEASURES[name](rows) for name in BIAS_NS})
    table["dns bias"] = table["dns bias"].where((rows["wire_dns_ns"] >= 0).to_numpy())
    table["total bias"] = table["total bias"].where((rows["wire_total_ns"] >= 0).to_numpy())
    table["kind"] = chosen["kind"].to_numpy()[position]
    table["cell"] = position
    return table


def bias(runs: store.Runs) -> list[gates.Row]:
    """The agent's stamps against those of packets: lookups for the DNS phase, requests for the total.

    On sockets that are kept: a new flow's way through the rules lies between stamp and packet and is no fault of the
    ruler but part of what an arm costs.
    """
    values = bias_values(runs)
    lines = []
    for name, kind, item in (
        ("dns bias", "lookup", "bias of the DNS phase"),
        ("total bias", "request", "bias of the request total"),
    ):
        gate = f"p50 within {units.duration(BIAS_NS[name], 'µs')}, interval too"
        every = values[values["kind"] == kind]
        lines.append(_matched(f"{item}: matched to packets", every[name]))
        found = every.dropna(subset=[name])
        if found.empty:
            lines.append(gates.missing(item, gate))
            continue
        middle = stats.interval(found.groupby("cell")[name].median().to_numpy())
        tail = f"p99 {units.duration(float(found[name].quantile(0.99)), 'µs')}"
        measured = f"p50 {units.interval(middle, 'µs', signed=True)}, {tail}"
        verdict = gates.within(middle, -BIAS_NS[name], BIAS_NS[name])
        lines.append(gates.Row(item, measured, gate, verdict, f"{len(found)} requests"))
    return lines


def _matched(item: str, found: pd.Series[float]) -> gates.Row:
    """The share of requests whose packets were found."""
    gate = f"at least {units.percent(MATCHED)}"
    if not len(found):
        return gates.missing(item, gate)
    share = float(found.notna().mean())
    return gates.Row(item, units.percent(share), gate, gates.judge(share >= MATCHED), f"of {len(found)} requests")


def ladder(runs: store.Runs) -> tuple[pd.DataFrame, stats.Line | None]:
    """A row per known delay: what was measured, and the distance from the fitted line; with the line itself (µs).

    The delay is known twice: as asked of the target, and as it passed between packets; the line is against the latter,
    since a target that has waited also answers through colder caches.
    """
    columns = ["added, µs", "on the wire, µs", "measured", "residual, µs", "values"]
    chosen = cells.select(runs, "card-ladder", arm="null")
    if chosen.empty:
        return pd.DataFrame(columns=columns), None
    medians = cells.matrix(cells.per_cell(runs, chosen, "from start"), ["null_delay_us"])
    wires = cells.matrix(cells.per_cell(runs, chosen, "on the wire"), ["null_delay_us"])
    both = medians.index[medians.notna().all(axis=1) & (wires > 0).all(axis=1)]
    medians, wires = medians.loc[both], wires.loc[both]
    if medians.shape[0] < 1 or medians.shape[1] < 2:
        return pd.DataFrame(columns=columns), None
    added = medians.columns.to_numpy(dtype=float)
    measured = medians.to_numpy(dtype=float)
    wire = wires.to_numpy(dtype=float).mean(axis=0) / 1_000
    line = stats.slope_intercept(wire, measured / 1_000)
    rows = [
        {
            "added, µs": x,
            "on the wire, µs": float(wire[k]),
            "measured": stats.interval(measured[:, k]),
            "residual, µs": line.residuals[k],
            "values": measured[:, k],
        }
        for k, x in enumerate(added)
    ]
    return pd.DataFrame(rows, columns=columns), line


def linearity(runs: store.Runs) -> list[gates.Row]:
    """Known delays against measured ones."""
    table, line = ladder(runs)
    gate = f"slope in [{SLOPE[0]}, {SLOPE[1]}], interval too"
    if line is None:
        return [gates.missing("linearity", gate)]
    span = float(table["added, µs"].max())
    allowed = max(RESIDUAL_NS / 1_000, RESIDUAL_SHARE * span)
    slope = f"{line.slope.estimate:.4f} [{line.slope.low:.4f}, {line.slope.high:.4f}]"
    start = line.intercept
    intercept = replace(start, estimate=1_000 * start.estimate, low=1_000 * start.low, high=1_000 * start.high)
    return [
        gates.Row(
            "linearity: slope",
            slope,
            gate,
            gates.within(line.slope, *SLOPE),
            text.blocks(line.slope.n),
        ),
        gates.Row("linearity: intercept", units.interval(intercept, "µs"), "none: the round trip", gates.STATED),
        gates.Row(
            "linearity: largest residual",
            f"{units.number(line.residual)} µs",
            f"at most {units.number(allowed)} µs",
            gates.judge(line.residual <= allowed),
        ),
    ]


def headroom(runs: store.Runs) -> list[gates.Row]:
    """The agent's maximum rate against the highest planned one."""
    chosen = cells.select(runs, "card-rate", tool="agent")
    planned = runs.cells[runs.cells["experiment"] != "card-rate"].groupby("kind")["rate_hz"].max()
    lines = []
    for kind in ("lookup", "request"):
        item, gate = f"maximum rate, {kind}", f"at least {HEADROOM:g} times any planned rate"
        mine = chosen[chosen["kind"] == kind].reset_index(drop=True)
        rows, position = cells.requests_of(runs, mine)
        if rows.empty:
            lines.append(gates.missing(item, gate))
            continue
        spans = pd.DataFrame({"cell": position, "start": rows["start_ns"].to_numpy(), "end": rows["end_ns"].to_numpy()})
        groups = spans.groupby("cell")
        rates = groups.size() / (groups["end"].max() - groups["start"].min()) * units.NS_PER_S
        rate = stats.interval(rates.to_numpy())
        highest = float(planned.get(kind, 0.0))
        said = f"{units.rate(rate.estimate)} [{units.number(rate.low)}, {units.number(rate.high)}]"
        if not highest:
            lines.append(gates.Row(item, said, "none: no rate is planned", gates.STATED))
            continue
        note = f"{units.number(rate.estimate / highest)} times the highest planned, {units.rate(highest)}"
        lines.append(
            gates.Row(item, said, f"{gate}, interval too", gates.within(rate, HEADROOM * highest, math.inf), note)
        )
    return lines


def rulers_table(runs: store.Runs) -> pd.DataFrame:
    """A row per kind and ruler: p50 over blocks, its difference from the agent that waits alike, Little's residual."""
    chosen = cells.select(runs, "card-ruler")
    measured = cells.per_cell(runs, chosen, "from start")
    measured = measured.assign(
        ruler=[f"agent, {w}" if t == "agent" else t for t, w in zip(chosen["tool"], chosen["wait"], strict=True)]
    )
    medians = cells.matrix(measured, ["kind", "ruler"])
    residual = cells.matrix(measured.assign(residual=_loop_residual(runs, chosen)), ["kind", "ruler"], "residual")
    rows = [
        {
            "kind": kind,
            "ruler": ruler,
            "blocks": len(cells.column(medians, (kind, ruler))),
            "p50": cells.interval(medians, (kind, ruler)),
            "against agent, block": cells.paired(medians, (kind, LIKE), (kind, ruler)) if ruler != LIKE else None,
            "Little's residual": float(np.median(found))
            if (found := cells.column(residual, (kind, ruler))).size
            else math.nan,
        }
        for kind, ruler in map(tuple, medians.columns)
    ]
    return pd.DataFrame(rows, columns=["kind", "ruler", "blocks", "p50", "against agent, block", "Little's residual"])


def _loop_residual(runs: store.Runs, chosen: pd.DataFrame) -> NDArray[np.float64]:
    """(X·R - N) / N of each closed loop; other tools state their own running time and count."""
    rows, position = cells.requests_of(runs, chosen)
    spent = np.bincount(position, weights=cells.MEASURES["from start"](rows), minlength=len(chosen))
    n = np.bincount(position, minlength=len(chosen))
    wall = np.array(
        [float(facts.get("run_time_s", facts.get("wall_ns", np.nan * 1.0) / 1e9)) for facts in chosen["agent"]],
        dtype=float,
    )
    done = np.array(
        [float(facts.get("completed", count)) for facts, count in zip(chosen["agent"], n, strict=True)], dtype=float
    )
    mean_s = np.divide(spent, n, out=np.full(len(chosen), np.nan), where=n > 0) / units.NS_PER_S
    concurrency = chosen["concurrency"].to_numpy(dtype=float)
    return stats.littles_residual(done * mean_s / wall, concurrency)


def rulers(runs: store.Runs) -> list[gates.Row]:
    """Other rulers on the same loop. Each, the agent too, is held to Little's law before its p50 is compared."""
    table = rulers_table(runs)
    gate = f"p50 within {units.percent(AGREE)} of the agent's, interval too; both keep Little's law"
    laws = {(row["kind"], row["ruler"]): row["Little's residual"] for row in table.to_dict("records")}
    lines = []
    for row in table.to_dict("records"):
        found = row["against agent, block"]
        if row["ruler"].startswith("agent") or found is None:
            continue
        said = f"p50 {text.microseconds(row['p50'])}, {text.percent(found.relative)} against the agent"
        idle = {who: laws.get((row["kind"], who), math.nan) for who in (row["ruler"], LIKE)}
        lawful = all(abs(each) <= LITTLE for each in idle.values())
        verdict = gates.within(found.relative, -AGREE, AGREE, gates.AMBER) if lawful else gates.UNKNOWN
        lines.append(
            gates.Row(f"cross-ruler: {row['ruler']} ({row['kind']})", said, gate, verdict, _laws(idle, lawful=lawful))
        )
    return lines or [gates.missing("cross-rulers", gate)]


def _laws(idle: dict[str, float], *, lawful: bool) -> str:
    """What Little's law says of both, in one way for both."""
    told = ", ".join(
        f"{who} {text.ABSENT if math.isnan(each) else units.percent(each, signed=True)}" for who, each in idle.items()
    )
    if lawful:
        return f"Little's residual: {told}"
    different = "not both keep in flight what was asked, so that the p50s are of different loads"
    return f"Little's residual: {told}; {different}"
