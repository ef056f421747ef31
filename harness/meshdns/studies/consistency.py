"""What must agree: counters with each other, rates with times, phases with totals, equal arms with their twins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from meshdns import store
from meshdns.analysis import cells, gates, looks, stats, text
from meshdns.core import units
from meshdns.studies import lookups, requests, ruler

OWN_WORK_NS = 50_000  # between requests, in no latency: sockets opened (20 µs each), the answer read, its row written
BLOCK_COUNTS = (5, 10, 20, 40)
PRECISION = 0.03  # what a plan must resolve: far below any difference between arms
REJECTED = "path not taken"  # how validity begins when counters disagree with the client's own count
STRAY = 0.01  # share of cells that may be rejected for it: they are left out, but they must be few
COMPARED = ("lookup", "request", "keepalive")  # what arms are compared by: one request at a time


def conservation(runs: store.Runs) -> list[gates.Row]:
    """Queries at client, proxy and cluster DNS; requests at client, sidecars and servers; in rejected cells too."""
    every = cells.select(runs, tool="agent", rejected=True)
    # Of these, what becomes of a request is the question.
    asked = [name for name, service in runs.world.backends.items() if service.governed]
    every = every[(every["answer"] == "none") & ~every["backend"].isin(asked) & (every["arm"] != "null")]
    dns = every[every["lookup"] != "none"].reset_index(drop=True)
    served = every[every["kind"] == "request"].reset_index(drop=True)
    # A request that was never made, or failed on its way, is no loss between the counters.
    served = served[_answered(runs, served) == served["offered"]].reset_index(drop=True)
    unserved = np.abs(cells.counter(served, "servers/nginx_rq") - cells.asked(runs, served))
    return [
        _residual_row("conservation: DNS queries", dns, _dns_residual(runs, dns)),
        _residual_row("conservation: requests at the servers", served, unserved),
        _rejected_row(every),
    ]


def _answered(runs: store.Runs, chosen: pd.DataFrame) -> NDArray[np.int64]:
    _, position = cells.requests_of(runs, chosen)
    return np.bincount(position, minlength=len(chosen))


def _dns_residual(runs: store.Runs, chosen: pd.DataFrame) -> NDArray[np.float64]:
    counts = {name: cells.counter(chosen, counter) for name, counter in lookups.COUNTERS.items()}
    seen = looks.of_runs(runs)
    proxied = np.array([seen.pod(str(arm)).dns_proxy for arm in chosen["arm"]], dtype=bool)
    return lookups.disagreement(counts, proxied)


def _residual_row(item: str, chosen: pd.DataFrame, residual: NDArray[np.float64]) -> gates.Row:
    gate = "residual 0 in every cell, rejected ones too"
    if not residual.size:
        return gates.missing(item, gate)
    off = residual != 0
    trusted = int((off & chosen["valid"].to_numpy(dtype=bool)).sum())
    measured = f"{int(off.sum())} of {residual.size} cells differ, by {residual.sum():.0f} in all"
    verdict = gates.judge(not off.any(), gates.RED if trusted or off.mean() > STRAY else gates.AMBER)
    return gates.Row(item, measured, gate, verdict, f"{trusted} of them in cells that count" if off.any() else "")


def _rejected_row(every: pd.DataFrame) -> gates.Row:
    item, gate = "conservation: cells rejected for it", f"at most {units.percent(STRAY)}"
    if every.empty:
        return gates.missing(item, gate)
    refused = sum(any(str(reason).startswith(REJECTED) for reason in reasons) for reasons in every["reasons"])
    note = "counters that disagree with the client's own count; left out of every number"
    return gates.Row(item, f"{refused} of {len(every)}", gate, gates.judge(refused <= STRAY * len(every)), note)


def gaps(runs: store.Runs) -> pd.DataFrame:
    """A row per cell that is compared and has one request at a time: its mean request, and the gap to the next, ns.

    Without the arm that looks nothing up: its agent has a socket less to open, and so another gap.
    """
    chosen = cells.select(runs, *COMPARED, tool="agent", arrival="closed", concurrency=1, lookup="wire")
    rows, position = cells.requests_of(runs, chosen)
    spans = pd.DataFrame({"cell": position, "start": rows["start_ns"].to_numpy(), "end": rows["end_ns"].to_numpy()})
    spans["spent"] = spans["end"] - spans["start"]
    found = spans.groupby("cell").agg(
        n=("spent", "size"), spent=("spent", "sum"), first=("start", "min"), last=("end", "max")
    )
    found = found[found["n"] > 1]
    wall = found["last"] - found["first"]
    levels = chosen.loc[found.index, [*cells.BLOCK, "experiment", "arm", "backend"]]
    return levels.assign(
        mean_ns=found["spent"] / found["n"],
        gap_ns=(wall - found["spent"]) / (found["n"] - 1),
        wall_ns=wall,
        n=found["n"],
    ).reset_index(drop=True)


def little_steps(runs: store.Runs) -> pd.DataFrame:
    """A row per step: Little's residual with the agent's own work as it is in `plain`, and by how much that differs.

    The work between two requests is in no latency, so it is harmless only if it is small and alike in all arms.
    """
    table = gaps(runs)
    own = table[table["arm"] == lookups.BASE].groupby("experiment", observed=True)["gap_ns"].median()
    table = table.assign(own_ns=table["experiment"].astype(str).map(own).astype(float)).dropna(subset=["own_ns"])
    spent = table["n"] * table["mean_ns"] + (table["n"] - 1) * table["own_ns"]
    table = table.assign(
        residual=stats.littles_residual(spent, table["wall_ns"]), off_ns=table["gap_ns"] - table["own_ns"]
    )
    steps = table.groupby(["experiment", "arm", "backend"], observed=True)[["residual", "off_ns", "own_ns"]]
    return steps.median().reset_index()


def little(runs: store.Runs) -> list[gates.Row]:
    """Little's law: rate times time is the number in flight."""
    return [_closed_loop(runs), _open_loop(runs)]


def _closed_loop(runs: store.Runs) -> gates.Row:
    """One request at a time: requests and the work between them fill the cell.

    Amber while what is off could still be the agent's work; else requests or their time are lost.
    """
    item = "Little's law, closed loop"
    gate = f"X·(R + W) = 1 within {units.percent(ruler.LITTLE)} in every step, W at most {units.duration(OWN_WORK_NS)}"
    steps = little_steps(runs)
    if steps.empty:
        return gates.missing(item, gate)
    sizes = steps["residual"].abs()
    worst = steps.iloc[int(sizes.argmax())]
    holds = bool(sizes.max() <= ruler.LITTLE and steps["own_ns"].max() <= OWN_WORK_NS)
    verdict = gates.judge(holds, gates.AMBER if steps["off_ns"].abs().max() <= OWN_WORK_NS else gates.RED)
    measured = f"median {units.percent(float(sizes.median()))}, worst {units.percent(worst['residual'], signed=True)}"
    works = steps.groupby("experiment", observed=True)["own_ns"].first()
    told = ", ".join(f"{units.duration(float(each), 'µs')} ({name})" for name, each in works.items())
    where = " ".join(str(worst[name]) for name in ("experiment", "arm", "backend"))
    note = f"{len(steps)} steps; worst: {where}; W, the agent's own work between requests of plain: {told}"
    return gates.Row(item, measured, gate, verdict, note)


def _open_loop(runs: store.Runs) -> gates.Row:
    """In the middle of the cells, those that arrive must spend as much time as is seen: else work piles up."""
    item, gate = "Little's law, open loop", f"residual under {units.percent(ruler.LITTLE)}"
    chosen = cells.select(runs, tool="agent")
    governed = [
        name for name, service in runs.world.backends.items() if service.governed
    ]  # overload is a question there
    chosen = chosen[(chosen["arrival"] != "closed") & ~chosen["backend"].isin(governed)].reset_index(drop=True)
    rows, position = cells.requests_of(runs, chosen)
    spans = pd.DataFrame({"start": rows["start_ns"].to_numpy(), "end": rows["end_ns"].to_numpy()})
    both = [stats.steady(each["start"], each["end"]) for _, each in spans.groupby(position)]
    if not both:
        return gates.missing(item, gate)
    seen, arrived = np.sum(both, axis=0)
    residual = float(stats.littles_residual(arrived, seen))
    note = f"all {len(both)} cells together, without the first and last tenth of each; fails where work piles up"
    verdict = gates.judge(abs(residual) < ruler.LITTLE)
    return gates.Row(item, units.percent(residual, signed=True), gate, verdict, note)


def additivity(runs: store.Runs) -> list[gates.Row]:
    """Phases against the total: nothing that could fail, since each phase begins where the one before it ended."""
    rows, _ = cells.requests_of(runs, cells.select(runs, tool="agent"))
    if rows.empty:
        return [gates.missing("additivity: phases and total")]
    note = "so the parts of a bar are the whole; that the whole is right is what the bias against packets says"
    return [gates.Row("additivity: phases and total", "0 ns", "none: shared instants", gates.STATED, note)]


def _floors(runs: store.Runs) -> dict[str, stats.NoiseFloor]:
    """What equal arms differ by, per experiment that has them."""
    found = {"lookup": lookups.floor(runs)} | {name: requests.floor(runs, name) for name in (*COMPARED[1:], "open")}
    return {name: each for name, each in found.items() if each is not None}


def twins(runs: store.Runs) -> list[stats.Difference]:
    """p50 of `plain-aa` against `plain` in everything that both were asked alike, in two blocks or more."""
    chosen = cells.select(runs, tool="agent")
    chosen = chosen[chosen["arm"].isin((lookups.BASE, lookups.TWIN))]
    by = [*(name for name in store.parameters(runs) if name not in ("arm", "tool")), "arm"]
    medians = cells.matrix(cells.per_cell(runs, chosen, "from due"), by)
    levels = [level for level in map(tuple, medians.columns) if level[-1] == lookups.BASE]
    found = (cells.paired(medians, level, (*level[:-1], lookups.TWIN)) for level in levels)
    return [each for each in found if each is not None and each.absolute.n > 1]


def equal_arms(runs: store.Runs) -> list[gates.Row]:
    """The A/A comparison: noise floor, false positives, smallest effect that so many blocks can show."""
    gate = f"zero inside the interval, which is within {units.percent(PRECISION)}"
    measured = _floors(runs)
    if not measured:
        return [gates.missing("A/A: noise floor", gate)]
    lines = []
    for name, each in measured.items():
        found = each.difference
        value = f"floor {units.duration(each.absolute)} ({units.percent(each.relative)})"
        note = f"plain-aa minus plain {units.interval(found.absolute, signed=True)}, {text.blocks(found.absolute.n)}"
        wide = gates.within(found.relative, -PRECISION, PRECISION, gates.AMBER)
        verdict = gates.AMBER if found.clear else wide
        lines.append(gates.Row(f"A/A, {name}: noise floor", value, gate, verdict, note))
    return [*lines, _false_positives(twins(runs))]


def _false_positives(compared: Sequence[stats.Difference]) -> gates.Row:
    """How many comparisons of equal arms differ, of all that are made."""
    if not compared:
        return gates.missing("A/A: false positives")
    clear, chance = sum(each.clear for each in compared), 1 - stats.CONFIDENCE
    most = int(scipy_stats.binom.ppf(stats.CONFIDENCE, len(compared), chance))
    said = f"{clear} of {len(compared)} comparisons differ, {units.number(chance * len(compared))} expected by chance"
    gate = f"at most {most}, as chance has it in 19 of 20 runs"
    note = "every kind of lookup, request and delay that both equal arms were asked"
    return gates.Row("A/A: false positives", said, gate, gates.judge(clear <= most, gates.AMBER), note)


def precision(runs: store.Runs) -> list[gates.Row]:
    """How sure the differences are: the widest interval of a paired difference between two arms at one backend."""
    lines = []
    for experiment in COMPARED:
        by = ["arm"] if experiment == "lookup" else ["arm", "backend"]
        medians = cells.matrix(cells.per_cell(runs, cells.select(runs, experiment), "from start"), by)
        pairs = pd.DataFrame(
            [
                {"names": f"{_name(a)} and {_name(b)}", "slower": width / max(p50s), "faster": width / min(p50s)}
                for a, b in itertools.combinations(medians.columns, 2)
                if (found := cells.paired(medians, a, b)) is not None and _backend(a) == _backend(b)
                for width, p50s in [(found.absolute.half_width, (medians[a].mean(), medians[b].mean()))]
            ]
        )
        gate = f"half-width at most {units.percent(PRECISION)} of the slower p50"
        if pairs.empty:
            lines.append(gates.missing(f"precision: {experiment}", gate))
            continue
        worst = pairs.sort_values("slower").iloc[-1]
        said = f"widest {units.percent(worst['slower'])}, middle {units.percent(pairs['slower'].median())}"
        verdict = gates.judge(worst["slower"] <= PRECISION, gates.MISSED)
        wide = int((pairs["slower"] > PRECISION).sum())
        note = f"{wide} of {len(pairs)} pairs of arms wider; widest: {worst['names']}; of the faster p50 "
        note += f"{units.percent(pairs['faster'].max())} at most, middle {units.percent(pairs['faster'].median())}"
        lines.append(gates.Row(f"precision of p50 differences: {experiment}", said, gate, verdict, note))
    return lines


def _name(step: tuple[str, str] | str) -> str:
    return " → ".join(step) if isinstance(step, tuple) else step


def _backend(step: tuple[str, str] | str) -> str:
    """What the arm calls; how its sidecar finds the replicas (static or not) is no other backend."""
    return "" if isinstance(step, str) else step[1].replace("static", "meshed")


def detectable(runs: store.Runs) -> pd.DataFrame:
    """The smallest true difference of p50 that so many blocks find in 4 of 5 tries, from the A/A pairs."""
    rows = [
        {"comparison": name}
        | {
            f"{n} blocks": units.duration(stats.minimum_detectable(each.difference.absolute.sd, n), "µs")
            for n in BLOCK_COUNTS
        }
        for name, each in _floors(runs).items()
    ]
    return pd.DataFrame(rows)
