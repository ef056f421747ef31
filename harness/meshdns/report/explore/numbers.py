"""A selection becomes numbers: one value per block, intervals over blocks, and distributions of requests.

A cell that was found invalid is left out unless asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import cells, looks, stats, text

TOTAL = "total"
PHASES = (*cells.PHASES, TOTAL)
CURVE_POINTS = 400  # more than the pixels of a panel's width, fewer than the requests of a run
NOT_APPLICABLE = "none"  # a cell whose arm lacks a factor (no lookup by address) is never filtered by it
NONE_IS_A_LEVEL = ("policy", "fault", "change")  # here it is what the others are compared with
# What a person chooses by a widget of its own, or what says nothing within one experiment.
NOT_FURTHER = ("experiment", "arm", "name_kind", "kind")
IN_ORDER = ["rank", "series"]
IDENTITY = ["series", "phase", "percentile"]
POINT = [*IDENTITY, "arm", "run", "block", "requests", "value_ns"]
CURVE = ["series", "arm", "phase", "share", "latency_ns"]


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
    names = [each for each in store.parameters(runs) if each not in NOT_FURTHER]
    varied = {name: levels(runs, experiment, name) for name in names}
    return {name: found for name, found in varied.items() if len(found) > 1}


def chosen(runs: store.Runs, selection: Selection) -> pd.DataFrame:
    """The selected cells with their key and the series they belong to."""
    wanted = {"run": selection.runs, "arm": selection.arms, **selection.further}
    if selection.name_kinds:
        wanted["name_kind"] = selection.name_kinds
    rows = cells.select(runs, selection.experiment, rejected=selection.invalid)
    for name, found in wanted.items():
        rows = rows[rows[name].isin([*found, *_skipped(name)])]
    rows = rows.assign(series=_series(runs, rows), rank=[_rank(runs, arm) for arm in rows["arm"]])
    return rows.reset_index(drop=True)


def points(runs: store.Runs, selection: Selection) -> pd.DataFrame:
    """One row per series, phase, percentile, run and block: `value_ns`, NaN with too few requests."""
    rows, parts = chosen(runs, selection), []
    for phase, percentile in itertools.product(selection.phases, selection.percentiles):
        values = cells.per_cell(runs, rows, _measure(selection, phase), percentile / 100)
        values = values.rename(columns={"value": "value_ns", "n": "requests"}).sort_values(IN_ORDER, kind="stable")
        parts.append(values.assign(phase=phase, percentile=percentile)[POINT])
    whole = pd.concat(parts, ignore_index=True) if len(rows) and parts else pd.DataFrame(columns=POINT)
    return looks.known(whole, looks.of_runs(runs))


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
    rows, curves = chosen(runs, selection), [pd.DataFrame(columns=CURVE)]
    requests, position = cells.requests_of(runs, rows)
    for phase in selection.phases:
        values = cells.MEASURES[_measure(selection, phase)](requests)
        for (_, series, arm), mine in rows.groupby([*IN_ORDER, "arm"], observed=True):
            if (found := values[np.isin(position, mine.index)]).size:
                share = np.linspace(0, 1, min(CURVE_POINTS, found.size))
                curve = {"series": series, "arm": arm, "phase": phase, "share": share}
                curves.append(pd.DataFrame(curve | {"latency_ns": np.quantile(found, share)}))
    return looks.known(pd.concat(curves[1:] or curves, ignore_index=True), looks.of_runs(runs))


def shown(numbers: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it."""
    words = numbers.assign(percentile=[f"p{percentile:g}" for percentile in numbers["percentile"]])
    words["estimate, 95 % interval"] = [text.interval(each) for each in numbers["interval"]]
    return words[["series", "phase", "percentile", "estimate, 95 % interval", "blocks", "requests"]]


def _skipped(factor: str) -> tuple[str, ...]:
    """What a cell has in place of a level where it lacks the factor."""
    return () if factor in NONE_IS_A_LEVEL else (NOT_APPLICABLE,)


def _rank(runs: store.Runs, level: Hashable) -> int:
    """Arms stand in the order of their world; other words in that of the alphabet."""
    return looks.place(runs.world.arms, level)


def _series(runs: store.Runs, rows: pd.DataFrame) -> list[str]:
    """`mode1`, or `mode1, short, ndots 1`: the arm and whatever else differs among these cells."""
    names = [name for name in store.parameters(runs) if name not in ("arm", "experiment")]
    differing = [name for name in names if len(set(rows[name]) - {*_skipped(name)}) > 1]
    return [
        ", ".join([str(row["arm"]), *(_level(name, row[name]) for name in differing if row[name] != NOT_APPLICABLE)])
        for row in rows[["arm", *differing]].to_dict("records")
    ]


def _level(name: str, level: object) -> str:
    """A level as a label; a number or a truth needs the factor's name."""
    return level if isinstance(level, str) else f"{name} {level:g}" if isinstance(level, float) else f"{name} {level}"


def _measure(selection: Selection, phase: str) -> str:
    return f"from_{selection.origin}" if phase == TOTAL else phase
