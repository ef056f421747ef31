"""A selection becomes numbers: one value per block, intervals over blocks, and distributions of requests.

A cell that was found invalid is left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import cells, stats, text

TOTAL = "total"
PHASES = (*cells.PHASES, TOTAL)
ORIGINS = ("due", "start")
CURVE_POINTS = 400  # more than the pixels of a panel's width, fewer than the requests of a run
NOT_APPLICABLE = "none"  # a cell whose arm lacks a factor (no lookup by address) is never filtered by it
NONE_IS_A_LEVEL = ("policy", "fault", "change")  # here it is what the others are compared with
# What a person chooses by a widget of its own, or what says nothing within one experiment.
NOT_FURTHER = ("experiment", "arm", "name_kind", "kind")
IN_ORDER = ["rank", "series"]
IDENTITY = ["series", "phase", "percentile"]


@dataclass(frozen=True)
class Selection:
    """What is looked at."""

    runs: tuple[str, ...]
    experiment: str
    arms: tuple[str, ...]
    phases: tuple[str, ...] = (TOTAL,)
    name_kinds: tuple[str, ...] = ()  # () is all of them
    percentiles: tuple[float, ...] = (50.0, 90.0)
    origin: str = "due"  # the total counts from when a request was due, or from when it started
    invalid: bool = False  # also cells that failed a check
    further: Mapping[str, tuple[Hashable, ...]] = field(default_factory=dict)  # other factors: levels


def levels(runs: store.Runs, experiment: str, factor: str) -> tuple[Any, ...]:
    """The levels of a factor within an experiment, in order; none where the factor does not apply."""
    found = set(runs.cells.loc[runs.cells["experiment"] == experiment, factor]) - {*_skipped(factor)}
    return tuple(sorted(found, key=lambda level: (isinstance(level, str), _rank(runs, level), level)))


def begin_with(runs: store.Runs, experiment: str, usual: Sequence[Hashable]) -> dict[str, tuple[Any, ...]]:
    """A level of each further factor, a usual one where there is one, that were measured together."""
    rows, begun = runs.cells[runs.cells["experiment"] == experiment], dict[str, tuple[Any, ...]]()
    for name, found in further_factors(runs, experiment).items():
        here = [level for level in found if level in set(rows[name])] or [*found]
        begun[name] = tuple([*(level for level in here if level in usual), *here][:1])
        rows = rows[rows[name].isin([*begun[name], *_skipped(name)])]
    return begun


def further_factors(runs: store.Runs, experiment: str) -> dict[str, tuple[Any, ...]]:
    """The factors, beside arm and kind of name, that the experiment varies."""
    names = [each for each in _parameters(runs) if each not in NOT_FURTHER]
    varied = {name: levels(runs, experiment, name) for name in names}
    return {name: found for name, found in varied.items() if len(found) > 1}


def chosen(runs: store.Runs, selection: Selection) -> pd.DataFrame:
    """The selected cells with their key and the series they belong to."""
    wanted: dict[str, Sequence[Hashable]] = {
        "run": selection.runs,
        "experiment": (selection.experiment,),
        "arm": selection.arms,
        **({"name_kind": selection.name_kinds} if selection.name_kinds else {}),
        **selection.further,
    }
    rows = runs.cells
    for name, found in wanted.items():
        rows = rows[rows[name].isin([*found, *_skipped(name)])]
    if not selection.invalid:
        rows = rows[rows["valid"].astype(bool)]
    rows = rows.assign(key=cells.keys(rows, runs.headers)).sort_values("key").reset_index(drop=True)
    return rows.assign(series=_series(runs, rows), rank=[_rank(runs, arm) for arm in rows["arm"]])


def points(runs: store.Runs, selection: Selection) -> pd.DataFrame:
    """One row per series, phase, percentile, run and block: `value_ns`, NaN with too few requests."""
    rows = chosen(runs, selection)
    requests, position = cells.requests_of(runs, rows)
    parts = []
    for phase in selection.phases:
        values = _measure(phase, selection.origin)(requests)
        found = _quantiles(values, position, len(rows), selection.percentiles)
        n = np.bincount(position, minlength=len(rows))
        for column, percentile in enumerate(selection.percentiles):
            value = np.where(_enough(n, percentile), found[:, column], np.nan)
            part = rows[[*IN_ORDER, "arm", "run", "block"]].assign(phase=phase, percentile=percentile)
            parts.append(part.assign(requests=n, value_ns=value).sort_values(IN_ORDER, kind="stable"))
    return pd.concat(parts, ignore_index=True) if parts and len(rows) else _no_points()


def table(per_block: pd.DataFrame) -> pd.DataFrame:
    """One row per series, phase and percentile: `interval` over blocks, blocks, requests. Takes what `points` gives."""
    out = []
    for identity, group in per_block.groupby(IDENTITY, sort=False, observed=True):
        blocks = group.dropna(subset=["value_ns"]).groupby(cells.BLOCK, observed=True)["value_ns"].mean()
        row = dict(zip(IDENTITY, identity, strict=True)) | {"arm": group["arm"].iloc[0]}
        spread = stats.interval(blocks.to_numpy(dtype=float))
        out.append(row | {"interval": spread, "blocks": len(blocks), "requests": int(group["requests"].sum())})
    return pd.DataFrame(out, columns=[*IDENTITY, "arm", "interval", "blocks", "requests"])


def ecdf(runs: store.Runs, selection: Selection) -> pd.DataFrame:
    """Per series and phase, `latency_ns` at evenly spaced shares of the requests of all blocks together."""
    rows = chosen(runs, selection)
    requests, position = cells.requests_of(runs, rows)
    names = rows["series"].to_numpy()[position]
    parts = []
    for phase in selection.phases:
        values = _measure(phase, selection.origin)(requests)
        for series, arm in rows.sort_values(IN_ORDER)[["series", "arm"]].drop_duplicates().itertuples(index=False):
            mine = values[names == series]
            if not mine.size:
                continue
            share = np.linspace(0, 1, min(CURVE_POINTS, mine.size))
            parts.append(pd.DataFrame({"share": share, "latency_ns": np.quantile(mine, share)}).assign(
                series=series, arm=arm, phase=phase
            ))  # fmt: skip
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["series", "arm", "phase", "share", "latency_ns"])
    )


def shown(numbers: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    return pd.DataFrame(
        {
            "series": numbers["series"],
            "phase": numbers["phase"],
            "percentile": [f"p{percentile:g}" for percentile in numbers["percentile"]],
            "estimate, 95 % interval": [text.interval(each) for each in numbers["interval"]],
            "blocks": numbers["blocks"],
            "requests": numbers["requests"],
        }
    )


def _skipped(factor: str) -> tuple[str, ...]:
    """What a cell has in place of a level where it lacks the factor."""
    return () if factor in NONE_IS_A_LEVEL else (NOT_APPLICABLE,)


def _parameters(runs: store.Runs) -> list[str]:
    """The columns of cells that are factors of the plan."""
    about = {"run", "block", "cell", "valid", "reasons", "offered", "started_ns", "wall_s"}
    about |= {"counters", "cpu_us", "memory_bytes", "agent"}
    return [str(name) for name in runs.cells.columns if name not in about]


def _rank(runs: store.Runs, level: Hashable) -> int:
    """Arms stand in the order of their world; other words in that of the alphabet."""
    arms = list(runs.world.arms)
    return arms.index(str(level)) if level in arms else len(arms)


def _series(runs: store.Runs, rows: pd.DataFrame) -> list[str]:
    """`mode1`, or `mode1, short, ndots 1`: the arm and whatever else differs among these cells."""
    names = [name for name in _parameters(runs) if name not in ("arm", "experiment")]
    differing = [name for name in names if len(set(rows[name]) - {*_skipped(name)}) > 1]
    return [
        ", ".join([str(row["arm"]), *(_level(name, row[name]) for name in differing if row[name] != NOT_APPLICABLE)])
        for row in rows[["arm", *differing]].to_dict("records")
    ]


def _level(name: str, level: object) -> str:
    """A level as a label; a number or a truth needs the factor's name."""
    return level if isinstance(level, str) else f"{name} {level:g}" if isinstance(level, float) else f"{name} {level}"


def _measure(phase: str, origin: str) -> Any:
    return cells.MEASURES[f"from {origin}" if phase == TOTAL else phase]


def _quantiles(
    values: NDArray[np.float64], position: NDArray[np.int64], count: int, percentiles: Sequence[float]
) -> NDArray[np.float64]:
    out = np.full((count, len(percentiles)), np.nan)
    found = stats.quantiles_by_group(values, position, [percentile / 100 for percentile in percentiles])
    out[: len(found)] = found
    return out


def _enough(n: NDArray[Any], percentile: float) -> NDArray[np.bool_]:
    return np.asarray(cells.enough(n.astype(float), percentile / 100))


def _no_points() -> pd.DataFrame:
    return pd.DataFrame(columns=[*IDENTITY, "arm", "run", "block", "requests", "value_ns"])
