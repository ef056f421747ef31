"""What must agree: counters with each other, rates with times, phases with totals, equal arms with their twins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from meshdns import store
from meshdns.analysis import cells, looks, stats
from meshdns.analysis.gates import AMBER, MISSED, RED, STATED, UNMEASURED, Check, judge, within
from meshdns.core import units
from meshdns.studies.calibration.generators import LITTLE
from meshdns.studies.cost import tables as cost
from meshdns.studies.names import tables as names

OWN_WORK_NS = 50_000  # between requests, in no latency: sockets opened (20 µs each), the answer read, its row written
BLOCKS = (5, 10, 20, 40)
PRECISION = 0.03  # what a plan must resolve: far below any difference between arms
REJECTED = "path not taken"  # how validity begins when counters disagree with the client's own count
STRAY = 0.01  # share of cells that may be rejected for it: they are left out, but they must be few
COMPARED = (names.LOOKUP, cost.REQUEST, cost.KEPT)  # what arms are compared by: one request at a time


def conservation(runs: store.Runs) -> list[Check]:
    """Queries at client, proxy and cluster DNS; requests at client, sidecars and servers; in rejected cells too."""
    every = cells.select(runs, tool="agent", rejected=True)
    # Of these, what becomes of a request is the question.
    asked = [name for name in runs.world.backends if runs.world.is_live(name)]
    every = every[(every["answer"] == "none") & ~every["backend"].isin(asked) & (every["arm"] != "null")]
    dns = every[every["lookup"] != "none"].reset_index(drop=True)
    served = every[every["kind"] == "request"].reset_index(drop=True)
    # A request that was never made, or failed on its way, is no loss between the counters.
    answered = np.bincount(cells.requests_of(runs, served)[1], minlength=len(served))
    served = served[answered == served["offered"]].reset_index(drop=True)
    unserved = np.abs(cells.counter(served, "servers/nginx_rq") - cells.asked(runs, served))
    counts = {name: cells.counter(dns, counter) for name, counter in names.COUNTERS.items()}
    seen = looks.of_runs(runs)
    proxied = np.array([seen.pod(str(arm)).dns_proxy for arm in dns["arm"]], dtype=bool)
    refused = sum(any(str(reason).startswith(REJECTED) for reason in reasons) for reasons in every["reasons"])
    verdict = judge(refused <= STRAY * len(every)) if len(every) else UNMEASURED
    return [
        _residual("conservation_dns", dns, names.disagreement(counts, proxied)),
        _residual("conservation_servers", served, unserved),
        Check("conservation_rejected", verdict, {"refused": refused, "cells": len(every), "limit": STRAY}),
    ]


def _residual(item: str, chosen: pd.DataFrame, residual: NDArray[np.float64]) -> Check:
    if not residual.size:
        return Check(item)
    off = residual != 0
    trusted = int((off & chosen["valid"].to_numpy(dtype=bool)).sum())
    verdict = judge(not off.any(), RED if trusted or off.mean() > STRAY else AMBER)
    counted = {"off": int(off.sum()), "cells": residual.size, "by": residual.sum(), "trusted": trusted}
    return Check(item, verdict, counted)


def gaps(runs: store.Runs) -> pd.DataFrame:
    """A row per cell that is compared and has one request at a time: its mean request, and the gap to the next, ns.

    Without the arm that looks nothing up: its agent has a socket less to open, and so another gap.
    """
    chosen = cells.select(runs, *COMPARED, tool="agent", arrival="closed", concurrency=1, lookup="wire")
    rows, position = cells.requests_of(runs, chosen)
    groups = rows.assign(spent_ns=rows["end_ns"] - rows["start_ns"]).groupby(position)
    n, spent, wall = groups.size(), groups["spent_ns"].sum(), groups["end_ns"].max() - groups["start_ns"].min()
    n = n[n > 1]
    levels = chosen.loc[n.index, [*cells.BLOCK, "experiment", "arm", "backend"]]
    levels = levels.assign(mean_ns=spent / n, gap_ns=(wall - spent) / (n - 1), wall_ns=wall, n=n)
    return levels.reset_index(drop=True)


def little_steps(runs: store.Runs) -> pd.DataFrame:
    """A row per step: Little's residual with the agent's own work as it is in `plain`, and by how much that differs.

    The work between two requests is in no latency, so it is harmless only if it is small and alike in all arms.
    """
    table = gaps(runs)
    own = table[table["arm"] == names.BASE].groupby("experiment", observed=True)["gap_ns"].median()
    table = table.assign(own_ns=table["experiment"].astype(str).map(own).astype(float)).dropna(subset=["own_ns"])
    spent = table["n"] * table["mean_ns"] + (table["n"] - 1) * table["own_ns"]
    table = table.assign(
        residual=stats.littles_residual(spent, table["wall_ns"]), off_ns=table["gap_ns"] - table["own_ns"]
    )
    steps = table.groupby(["experiment", "arm", "backend"], observed=True)[["residual", "off_ns", "own_ns"]]
    return steps.median().reset_index()


def little(runs: store.Runs) -> list[Check]:
    """Little's law: rate times time is the number in flight."""
    return [_closed_loop(runs), _open_loop(runs)]


def _closed_loop(runs: store.Runs) -> Check:
    """One request at a time: requests and the work between them fill the cell.

    Amber while what is off could still be the agent's work; else requests or their time are lost.
    """
    steps, limits = little_steps(runs), {"limit": LITTLE, "work": OWN_WORK_NS}
    if steps.empty:
        return Check("little_closed", values=limits)
    sizes = steps["residual"].abs()
    worst = steps.iloc[int(sizes.argmax())]
    holds = bool(sizes.max() <= LITTLE and steps["own_ns"].max() <= OWN_WORK_NS)
    verdict = judge(holds, AMBER if steps["off_ns"].abs().max() <= OWN_WORK_NS else RED)
    found = {
        "median": sizes.median(),
        "worst": worst["residual"],
        "where": " ".join(str(worst[name]) for name in ("experiment", "arm", "backend")),
        "steps": len(steps),
        "works": steps.groupby("experiment", observed=True)["own_ns"].first().to_dict(),
    }
    return Check("little_closed", verdict, found | limits)


def _open_loop(runs: store.Runs) -> Check:
    """In the middle of the cells, those that arrive must spend as much time as is seen: else work piles up."""
    chosen = cells.select(runs, tool="agent")
    # Overload is a question there.
    overloaded = [name for name in runs.world.backends if runs.world.is_live(name)]
    chosen = chosen[(chosen["arrival"] != "closed") & ~chosen["backend"].isin(overloaded)].reset_index(drop=True)
    rows, position = cells.requests_of(runs, chosen)
    both = [stats.steady(each["start_ns"], each["end_ns"]) for _, each in rows.groupby(position)]
    if not both:
        return Check("little_open", values={"limit": LITTLE})
    seen, arrived = np.sum(both, axis=0)
    residual = float(stats.littles_residual(arrived, seen))
    found = {"residual": residual, "cells": len(both), "limit": LITTLE}
    return Check("little_open", judge(abs(residual) < LITTLE), found)


def additivity(runs: store.Runs) -> list[Check]:
    """Phases against the total: nothing that could fail, since each phase begins where the one before it ended."""
    return [Check("additivity", UNMEASURED if cells.select(runs, tool="agent").empty else STATED)]


def _floors(runs: store.Runs) -> dict[str, stats.NoiseFloor]:
    """What equal arms differ by, per experiment that has them."""
    found = {names.LOOKUP: names.floor(runs)}
    found |= {name: cost.floor(runs, name) for name in (cost.REQUEST, cost.KEPT, cost.OPEN)}
    return {name: each for name, each in found.items() if each is not None}


def twins(runs: store.Runs) -> list[stats.Difference]:
    """p50 of `plain-aa` against `plain` in everything that both were asked alike, in two blocks or more."""
    chosen = cells.select(runs, tool="agent")
    chosen = chosen[chosen["arm"].isin((names.BASE, names.TWIN))]
    by = [*(name for name in store.parameters(runs) if name not in ("arm", "tool")), "arm"]
    medians = cells.medians(runs, chosen, by)
    levels = [level for level in map(tuple, medians.columns) if level[-1] == names.BASE]
    found = (cells.paired(medians, level, (*level[:-1], names.TWIN)) for level in levels)
    return [each for each in found if each is not None and each.absolute.n > 1]


def equal_arms(runs: store.Runs) -> list[Check]:
    """The A/A comparison: noise floor, false positives, smallest effect that so many blocks can show."""
    measured = _floors(runs)
    if not measured:
        return [Check("noise_floors", values={"limit": PRECISION})]
    checked = []
    for name, each in measured.items():
        wide = within(each.difference.relative, -PRECISION, PRECISION, AMBER)
        values = {"experiment": name, "floor": each, "found": each.difference.absolute, "limit": PRECISION}
        checked.append(Check("noise_floor", AMBER if each.difference.clear else wide, values))
    return [*checked, _false_positives(twins(runs))]


def _false_positives(compared: Sequence[stats.Difference]) -> Check:
    if not compared:
        return Check("false_positives")
    clear, chance = sum(each.clear for each in compared), 1 - stats.CONFIDENCE
    most = int(scipy_stats.binom.ppf(stats.CONFIDENCE, len(compared), chance))
    counted = {"clear": clear, "compared": len(compared), "expected": chance * len(compared), "most": most}
    return Check("false_positives", judge(clear <= most, AMBER), counted)


def precision(runs: store.Runs) -> list[Check]:
    """How sure the differences are: the widest interval of a paired difference between two arms at one backend."""
    checked = []
    for experiment in COMPARED:
        by = ["arm"] if experiment == names.LOOKUP else ["arm", "backend"]
        medians = cells.medians(runs, cells.select(runs, experiment), by, "from_start")
        values: dict[str, Any] = {"experiment": experiment, "limit": PRECISION}
        rows = []
        for a, b in itertools.combinations(medians.columns, 2):
            found = cells.paired(medians, a, b) if _backend(a) == _backend(b) else None
            if found is not None:
                width, p50s = found.absolute.half_width, (medians[a].mean(), medians[b].mean())
                rows.append({"names": (_name(a), _name(b)), "slower": width / max(p50s), "faster": width / min(p50s)})
        if not rows:
            checked.append(Check("precision", values=values))
            continue
        pairs = pd.DataFrame(rows)
        worst = pairs.sort_values("slower").iloc[-1]
        values |= {"widest": worst["slower"], "middle": pairs["slower"].median(), "names": worst["names"]}
        values |= {"wide": int((pairs["slower"] > PRECISION).sum()), "pairs": len(pairs)}
        values |= {"most_of_faster": pairs["faster"].max(), "middle_of_faster": pairs["faster"].median()}
        checked.append(Check("precision", judge(worst["slower"] <= PRECISION, MISSED), values))
    return checked


def _name(step: tuple[str, str] | str) -> str:
    return " → ".join(step) if isinstance(step, tuple) else step


def _backend(step: tuple[str, str] | str) -> str:
    """What the arm calls; how its sidecar finds the replicas (static or not) is no other backend."""
    return "" if isinstance(step, str) else step[1].replace("static", "meshed")


def detectable(runs: store.Runs) -> pd.DataFrame:
    """The smallest true difference of p50 that so many blocks find in 4 of 5 tries, from the A/A pairs."""
    rows = [
        {"comparison": name}
        | {f"blocks_{n}_us": stats.minimum_detectable(each.difference.absolute.sd, n) / units.NS_PER_US for n in BLOCKS}
        for name, each in _floors(runs).items()
    ]
    return pd.DataFrame(rows)
