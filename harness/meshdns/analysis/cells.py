"""Samples -> one value per cell -> intervals over blocks.

A value is a quantile (or the mean) of the successful requests of one valid cell. Cells become a matrix, blocks by
levels; intervals and paired differences are taken down its columns. Levels that a table does not name are averaged in
each block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from meshdns import store
from meshdns.analysis import stats

Values = NDArray[np.float64]
BLOCK = ["run", "block"]  # the unit of replication: a block of a run
KEY = [*BLOCK, "cell"]
BEYOND = 10  # samples that must lie beyond a quantile; with fewer it is an anecdote about single requests
MEAN = "mean"
PROBABILITIES = (0.5, 0.9, 0.99)


def _span(later: str, earlier: str) -> Callable[[pd.DataFrame], Values]:
    return lambda rows: (rows[later].to_numpy() - rows[earlier].to_numpy()).astype(float)


PHASES = {  # in the order in which they happen; each ends at the instant named first
    "dns": ("dns_ns", "start_ns"),
    "connect": ("connect_ns", "dns_ns"),
    "tls": ("tls_ns", "connect_ns"),
    "first_byte": ("first_byte_ns", "tls_ns"),
    "transfer": ("end_ns", "first_byte_ns"),
}
MEASURES: Mapping[str, Callable[[pd.DataFrame], Values]] = {
    "from_due": _span("end_ns", "due_ns"),  # latency: a late start is charged to the request
    "from_start": _span("end_ns", "start_ns"),
    "lag": _span("start_ns", "due_ns"),
    **{phase: _span(*instants) for phase, instants in PHASES.items()},
    "on_the_wire": lambda rows: rows["wire_total_ns"].to_numpy().astype(float),
    "dns_bias": lambda rows: _span("dns_ns", "start_ns")(rows) - rows["wire_dns_ns"].to_numpy(),
    "total_bias": lambda rows: _span("end_ns", "start_ns")(rows) - rows["wire_total_ns"].to_numpy(),
}


def once(table: Callable[[store.Runs], pd.DataFrame]) -> Callable[[store.Runs], pd.DataFrame]:
    """The same, worked out once for the same runs: a page, its answer and the claims all ask for it."""
    kept: WeakKeyDictionary[store.Runs, pd.DataFrame] = WeakKeyDictionary()

    @functools.wraps(table)
    def of(runs: store.Runs) -> pd.DataFrame:
        if runs not in kept:
            kept[runs] = table(runs)
        return kept[runs].copy()

    return of


def keys(frame: pd.DataFrame, headers: Sequence[store.RunHeader]) -> NDArray[np.int64]:
    """One number per row that tells run, block and cell; the same in samples and cells."""
    names = {header.name: number for number, header in enumerate(headers)}
    run = frame["run"].map(names).to_numpy().astype(np.int64)
    return run << 40 | frame["block"].to_numpy().astype(np.int64) << 16 | frame["cell"].to_numpy().astype(np.int64)


def select(runs: store.Runs, *experiments: str, rejected: bool = False, **levels: Hashable) -> pd.DataFrame:
    """The valid (`rejected`: all) cells of these experiments, or of all, at these levels, with their key."""
    wanted = runs.cells["valid"].to_numpy(bool) | rejected
    if experiments:
        wanted &= runs.cells["experiment"].isin(experiments).to_numpy(bool)
    for name, level in levels.items():
        wanted &= (runs.cells[name] == level).to_numpy(bool)
    rows = runs.cells[wanted]
    return rows.assign(key=keys(rows, runs.headers)).sort_values("key").reset_index(drop=True)


def requests_of(
    runs: store.Runs, chosen: pd.DataFrame, *, failed: bool | None = False
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Their successful (or failed, or with None all) requests, and for each the position of its cell in `chosen`."""
    near = np.full(len(runs.samples), True)
    if len(chosen) < len(runs.cells):  # comparing categories is ten times cheaper than comparing keys
        near &= runs.samples["experiment"].isin(chosen["experiment"].unique()).to_numpy(bool)
    if failed is not None:
        near &= ((runs.samples["outcome"] == "ok") != failed).to_numpy(bool)
    all_keys = chosen["key"].to_numpy(dtype=np.int64)
    found = keys(runs.samples.loc[near, KEY], runs.headers)
    position = np.searchsorted(all_keys, found)
    mine = position < len(all_keys)
    mine[mine] = all_keys[position[mine]] == found[mine]
    return runs.samples.take(np.flatnonzero(near)[mine]), position[mine]


def enough(n: ArrayLike, probability: float) -> NDArray[np.bool_]:
    """Whether so many samples have a quantile worth telling."""
    beyond = np.asarray(n, dtype=float) * min(probability, 1 - probability)
    return np.asarray(beyond >= BEYOND - 1e-9)  # 100 * (1 - 0.9) is a little less than 10


def per_cell(runs: store.Runs, chosen: pd.DataFrame, measure: str, statistic: float | str = 0.5) -> pd.DataFrame:
    """`chosen` with `value` (ns; NaN with too few samples) and `n`; statistic is a probability or "mean"."""
    rows, position = requests_of(runs, chosen)
    values = MEASURES[measure](rows)
    n = np.bincount(position, minlength=len(chosen)).astype(float)
    out = np.full(len(chosen), np.nan)
    if statistic == MEAN:
        np.divide(np.bincount(position, weights=values, minlength=len(chosen)), n, out=out, where=n > 0)
    else:
        probability = float(statistic)
        found = stats.quantiles_by_group(values, position, (probability,))[:, 0]
        out[: len(found)] = found
        out[~enough(n, probability)] = np.nan
    return chosen.assign(value=out, n=n.astype(int))


def pooled(runs: store.Runs, chosen: pd.DataFrame, by: str, measure: str, probability: float) -> dict[str, float]:
    """The quantile over all blocks together per level of `by`; a level with too few samples is left out."""
    rows, position = requests_of(runs, chosen)
    values, levels = MEASURES[measure](rows), chosen[by].to_numpy()[position]
    groups = {str(level): values[levels == level] for level in pd.unique(chosen[by])}
    known = {level: each for level, each in groups.items() if enough(len(each), probability)}
    return {level: float(np.quantile(each, probability)) for level, each in known.items()}


def matrix(frame: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Blocks by levels."""
    present = frame.dropna(subset=[value])
    return present.pivot_table(index=BLOCK, columns=list(by), values=value, aggfunc="mean", observed=True)


def medians(runs: store.Runs, chosen: pd.DataFrame, by: Sequence[str], measure: str = "from_due") -> pd.DataFrame:
    """Blocks by levels: p50 of that measure."""
    return matrix(per_cell(runs, chosen, measure), by)


def column(values: pd.DataFrame, level: Hashable) -> Values:
    """What the blocks have at this level; nothing if it was not measured."""
    if level not in values.columns:
        return np.empty(0)
    found: Values = values[level].to_numpy(dtype=float)
    return found[~np.isnan(found)]


def interval(values: pd.DataFrame, level: Hashable) -> stats.Interval:
    """Over the blocks that have this level."""
    return stats.interval(column(values, level))


def paired(values: pd.DataFrame, a: Hashable, b: Hashable) -> stats.Difference | None:
    """b minus a in the blocks that have both; None if there is no such block."""
    first, second = _both(values, a, b)
    return stats.paired(first, second) if len(first) else None


def noise_floor(values: pd.DataFrame, a: Hashable, twin: Hashable) -> stats.NoiseFloor | None:
    """What two equal arms still differ by; None without at least two blocks of both."""
    first, second = _both(values, a, twin)
    return stats.noise_floor(first, second) if len(first) > 1 else None


def _both(values: pd.DataFrame, a: Hashable, b: Hashable) -> tuple[Values, Values]:
    if a not in values.columns or b not in values.columns:
        return np.empty(0), np.empty(0)
    first, second = (values[level].to_numpy(dtype=float) for level in (a, b))
    there = ~(np.isnan(first) | np.isnan(second))
    return first[there], second[there]


def asked(runs: store.Runs, chosen: pd.DataFrame) -> Values:
    """Requests per cell that the counters saw: recorded ones and the warm-up before them, from the plan."""
    before = np.zeros(len(chosen))
    for header in runs.headers:
        for planned in header.plan.get("experiment", []):
            before[_of(planned, header.name, chosen)] = float(planned.get("warmup", 0))
    return np.asarray(chosen["offered"].to_numpy(dtype=float) + before)


def _of(planned: Mapping[str, Any], run: str, chosen: pd.DataFrame) -> NDArray[np.bool_]:
    """Which cells of the run belong to this part of its plan: those of its series that have its levels."""
    series = planned.get("series") or planned["name"]
    found = np.array((chosen["experiment"] == series) & (chosen["run"] == run), dtype=bool)
    for factor in planned.keys() & set(chosen.columns) if found.any() else ():
        levels = planned[factor]
        found &= chosen[factor].isin(levels if isinstance(levels, list | tuple) else [levels]).to_numpy(bool)
    return found


def counter(chosen: pd.DataFrame, name: str) -> Values:
    """That counter of each cell; 0 where the cell's path has none."""
    return np.array([float(each.get(name, 0)) for each in chosen["counters"]], dtype=float)


def rows(table: pd.DataFrame, **levels: object) -> list[dict[Any, Any]]:
    """The rows of a table at these levels."""
    for name, level in levels.items():
        table = table[table[name] == level]
    return table.to_dict("records")


def blocks_of(frame: pd.DataFrame) -> int:
    """How many blocks the rows come from."""
    return len({*zip(frame["run"], frame["block"], strict=True)}) if len(frame) else 0
