"""Experiments that no study reads, such as those of a plan of one's own, as levels without a claim."""

from __future__ import annotations

from typing import Any

import pandas as pd

from meshdns import store, studies
from meshdns.analysis import cells, looks, text

COLUMNS = ["experiment", "arm", "factors", "blocks", "invalid_cells", "p50", "p90"]
_ALWAYS = ("experiment", "arm")


def experiments(runs: store.Runs) -> list[str]:
    """Their names."""
    return sorted(set(map(str, runs.cells["experiment"])) - studies.experiments())


def levels(runs: store.Runs) -> pd.DataFrame:
    """A row per experiment, arm and level of the other factors that it varies: p50 and p90 from the due time."""
    rows = [row for name in experiments(runs) for row in _rows(runs, name)]
    return looks.known(pd.DataFrame(rows, columns=COLUMNS), looks.of_runs(runs))


def _rows(runs: store.Runs, experiment: str) -> list[dict[str, Any]]:
    every = cells.select(runs, experiment, rejected=True)
    factors = [name for name in store.parameters(runs) if name not in _ALWAYS and every[name].nunique() > 1]
    every = every.assign(factors=[_said(row, factors) for row in every.to_dict("records")])
    chosen = every[every["valid"].astype(bool)].reset_index(drop=True)
    by = ["arm", "factors"]
    p50, p90 = (cells.matrix(cells.per_cell(runs, chosen, "from_due", p), by) for p in (0.5, 0.9))
    rows, order = [], looks.of_runs(runs).held(every["arm"])
    for level, mine in sorted(every.groupby(by, sort=False), key=lambda each: order.index(str(each[0][0]))):
        good = mine[mine["valid"].astype(bool)]
        row = {"experiment": experiment} | dict(zip(by, level, strict=True))
        row |= {"blocks": cells.blocks_of(good), "invalid_cells": len(mine) - len(good)}
        rows.append(row | {"p50": cells.interval(p50, level), "p90": cells.interval(p90, level)})
    return rows


def _said(row: dict[Any, Any], factors: list[str]) -> str:
    """`backend shop, body_bytes 1024`; what an arm lacks is left out."""
    return ", ".join(f"{name} {row[name]}" for name in factors if row[name] != "none") or text.ABSENT
