"""What must agree: counters with each other, rates with times, phases with totals, equal arms with their twins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from harness import stats, store, units
from harness.mesh import topology
from harness.tables import cells, gates, lookups, requests, ruler, text

OWN_WORK_NS = 50_000  # between requests, in no latency: sockets opened (20 µs each), the answer read, its row written
BLOCK_COUNTS = (5, 10, 20, 40)
PRECISION = 0.03  # what a plan must resolve: far below any difference between arms


def conservation(runs: store.Runs) -> list[gates.Row]:
    """Queries at client, proxy and cluster DNS; requests at client, sidecars and servers."""
    every = cells.select(runs, tool="agent")
    # Of these, what becomes of a request is the question.
    asked = [name for name, service in topology.BACKENDS.items() if service.governed]
    every = every[(every["answer"] == "none") & ~every["backend"].isin(asked)]
    dns = every[(every["arm"] != "null") & (every["lookup"] != "none")].reset_index(drop=True)
    left_over = _dns_residual(dns)
    served = every[(every["kind"] == "request") & (every["arm"] != "null")].reset_index(drop=True)
    unserved = np.abs(cells.counter(served, "servers/nginx_rq") - cells.asked(runs, served))
    return [
        _residual_row("conservation: DNS queries", left_over),
        _residual_row("conservation: requests at the servers", unserved),
    ]


def _dns_residual(chosen: pd.DataFrame) -> NDArray[np.float64]:
    client, proxy = cells.counter(chosen, "pod/rule/dns_client"), cells.counter(chosen, "pod/rule/dns_proxy")
    proxied = np.array([topology.ARMS[str(arm)].dns_proxy for arm in chosen["arm"]], dtype=bool)
    at_cluster = cells.counter(chosen, "dnsdist/from_pod") - proxy - np.where(proxied, 0, client)
    at_proxy = np.where(proxied, cells.counter(chosen, "pod/dnsproxy/queries") - client, 0)
    return np.abs(at_cluster) + np.abs(at_proxy)


def _residual_row(item: str, residual: NDArray[np.float64]) -> gates.Row:
    gate = "residual 0 in every cell"
    if not residual.size:
        return gates.missing(item, gate)
    off = int((residual != 0).sum())
    return gates.Row(
        item, f"{off} of {residual.size} cells differ, by {residual.sum():.0f} in all", gate, gates.judge(off == 0)
    )


def little_residuals(runs: store.Runs) -> pd.DataFrame:
    """A row per cell of the agent: mean in flight from the samples against what it must be."""
    chosen = cells.select(runs, tool="agent")
    rows, position = cells.requests_of(runs, chosen)
    start, end = rows["start_ns"].to_numpy(), rows["end_ns"].to_numpy()
    n = np.bincount(position, minlength=len(chosen))
    chosen, keep = chosen[n > 0].reset_index(drop=True), n > 0
    sums = np.bincount(position, weights=(end - start).astype(float), minlength=len(keep))[keep]
    first, last = np.full(len(keep), np.iinfo(np.int64).max), np.zeros(len(keep), np.int64)
    np.minimum.at(first, position, start)
    np.maximum.at(last, position, end)
    in_flight = sums / np.maximum((last - first)[keep], 1)
    is_closed = (chosen["arrival"] == "closed").to_numpy()
    integral = np.array([float(facts.get("in_flight_ns", np.nan)) for facts in chosen["agent"]], dtype=float)
    expected = np.where(
        is_closed, chosen["concurrency"].to_numpy(dtype=float), integral / np.maximum((last - first)[keep], 1)
    )
    residual = in_flight / expected - 1
    between = (expected - in_flight) * (last - first)[keep] / n[keep]
    levels = ["experiment", "arm", "kind", "arrival", "wait", "lookup"]
    return chosen[levels].assign(residual=residual, between_ns=np.where(is_closed, between, 0.0))


def little(runs: store.Runs) -> list[gates.Row]:
    """Little's law: N = X·R with the workers (closed loop) or with the agent's own in-flight integral (open loop)."""
    table = little_residuals(runs).dropna(subset=["residual"])
    lines = []
    for item, closed in (("Little's law, closed loop", True), ("Little's law, open loop", False)):
        gate = f"residual under {units.percent(ruler.LITTLE)}"
        found = table[(table["arrival"] == "closed") == closed]
        if found.empty:
            lines.append(gates.missing(item, gate))
            continue
        sizes, between = found["residual"].abs(), float(found["between_ns"].median())
        verdict = gates.judge(bool(sizes.max() < ruler.LITTLE), gates.AMBER if between <= OWN_WORK_NS else gates.RED)
        note = f"{int((sizes >= ruler.LITTLE).sum())} of {len(found)} cells above the gate"
        if closed:
            note += f"; {units.duration(between, 'µs')} between requests (the agent's own work), which is in no latency"
        said = f"median {units.percent(float(sizes.median()))}, worst {units.percent(float(sizes.max()))}"
        lines.append(gates.Row(item, said, gate, verdict, note))
    return lines


def additivity(runs: store.Runs) -> list[gates.Row]:
    """Phases against the total, request by request."""
    rows, _ = cells.requests_of(runs, cells.select(runs, tool="agent"))
    if rows.empty:
        return [gates.missing("additivity", "0 ns")]
    parts = sum(cells.MEASURES[phase](rows) for phase in cells.PHASES)
    largest = float(np.max(np.abs(parts - cells.MEASURES["from start"](rows))))
    measured = f"largest difference {largest:.0f} ns in {len(rows)} requests"
    return [
        gates.Row(
            "additivity: phases and total", measured, "0 ns: one clock, shared instants", gates.judge(largest == 0)
        )
    ]


def equal_arms(runs: store.Runs) -> list[gates.Row]:
    """The A/A comparison: noise floor, false positives, smallest effect that so many blocks can show."""
    floors = {
        "lookup": lookups.floor(runs),
        "request": requests.floor(runs),
        "keepalive": requests.floor(runs, "keepalive"),
    }
    measured = {name: each for name, each in floors.items() if each is not None}
    if not measured:
        return [gates.missing("A/A: noise floor", "zero inside the interval")]
    lines = []
    for name, each in measured.items():
        found = each.difference
        value = f"floor {units.duration(each.absolute)} ({units.percent(each.relative)})"
        note = f"plain-aa minus plain {units.interval(found.absolute, signed=True)}, {text.blocks(found.absolute.n)}"
        lines.append(
            gates.Row(
                f"A/A, {name}: noise floor",
                value,
                "zero inside the interval",
                gates.judge(not found.clear, gates.AMBER),
                note,
            )
        )
    clear = sum(each.difference.clear for each in measured.values())
    expected = (1 - stats.CONFIDENCE) * len(measured)
    said = f"{clear} of {len(measured)} comparisons differ, {units.number(expected)} expected by chance"
    lines.append(gates.Row("A/A: false positives", said, "at most 1", gates.judge(clear <= 1, gates.AMBER)))
    return lines


def precision(runs: store.Runs) -> list[gates.Row]:
    """How sure the differences are: the widest interval of a paired difference among all pairs of steps."""
    lines = []
    for experiment, by in (("lookup", ["arm"]), ("request", ["arm", "backend"]), ("keepalive", ["arm", "backend"])):
        medians = cells.matrix(cells.per_cell(runs, cells.select(runs, experiment), "from start"), by)
        pairs = [(a, b, cells.paired(medians, a, b)) for a, b in itertools.combinations(medians.columns, 2)]
        shares = {
            (a, b): found.absolute.half_width / max(medians[a].mean(), medians[b].mean())
            for a, b, found in pairs
            if found is not None
        }
        gate = f"half-width at most {units.percent(PRECISION)} of the slower p50"
        if not shares:
            lines.append(gates.missing(f"precision: {experiment}", gate))
            continue
        worst = max(shares, key=shares.__getitem__)
        names = " and ".join(" → ".join(step) if isinstance(step, tuple) else str(step) for step in worst)
        said = f"widest {units.percent(shares[worst])}, middle {units.percent(float(np.median(list(shares.values()))))}"
        verdict = gates.judge(shares[worst] <= PRECISION, gates.AMBER)
        note = f"{len(shares)} pairs of steps; widest: {names}"
        lines.append(gates.Row(f"precision of p50 differences: {experiment}", said, gate, verdict, note))
    return lines


def detectable(runs: store.Runs) -> pd.DataFrame:
    """The smallest true difference of p50 that so many blocks find in 4 of 5 tries, from the A/A pairs."""
    rows = []
    for name, twin in (
        ("lookup", lookups.floor(runs)),
        ("request", requests.floor(runs)),
        ("keepalive", requests.floor(runs, "keepalive")),
    ):
        if twin is None:
            continue
        each = twin.difference.absolute
        t = float(scipy_stats.t.ppf((1 + each.confidence) / 2, each.n - 1))
        sd = each.half_width * math.sqrt(each.n) / t  # back from the interval to what it was made of
        rows.append(
            {"comparison": name}
            | {f"{n} blocks": units.duration(stats.minimum_detectable(sd, n), "µs") for n in BLOCK_COUNTS}
        )
    return pd.DataFrame(rows)
