"""Mechanisms side by side: its own figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from meshdns.analysis import absent, drawing, looks
from meshdns.studies.interception.answer import WORDS


def contrasts(table: pd.DataFrame, column: str, label: str) -> Axes:
    """A row per measure, mechanisms side by side: paired differences; grey is what equal arms differ by there."""
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    table = table.assign(row=[_row(each) for each in table.to_dict("records")])
    measures, seen = list(dict.fromkeys(table["row"])), looks.of(table)
    arms = seen.held(table["arm"])
    with drawing.axes(1.3 + (0.16 + 0.19 * len(arms)) * len(measures)) as ax:
        floors = table.groupby("row", sort=False)["noise_floor_us"].first().fillna(0)
        ax.barh(range(len(measures)), 2 * floors, left=-floors, height=0.94, color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for row in table.to_dict("records"):
            y = measures.index(row["row"]) + 0.8 / len(arms) * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            drawing.mark(ax, y, row[column].absolute, seen[row["arm"]], row["values"], spread=0.07)
        drawing.rows(ax, measures)
        ax.set_xlabel(f"{label}, µs (grey: noise floor)" + _around_zero(ax, table, column, floors))
        shown = table.drop_duplicates("arm").set_index("arm")["mechanism"]
        handles = drawing.arm_handles(seen, arms)
        for handle, arm in zip(handles, arms, strict=True):
            handle.set_label(str(WORDS.value("mechanism", shown[arm])))
        drawing.legend(ax, handles, drawing.columns(shown, drawing.AXES_LETTERS))
        return ax


def _row(row: dict[Any, Any]) -> str:
    """`kept alive, 100 rules`."""
    rules = f", {row['extra_rules']} rules" if "extra_rules" in row else ""
    return f"{WORDS.value('measure', row['measure'])}{rules}"


def _around_zero(ax: Axes, table: pd.DataFrame, column: str, floors: pd.Series[float]) -> str:
    """An axis that holds zero, the floors, the intervals and the bulk of drawn blocks; what to say of the rest."""
    drawn = [drawing.us(each) for each in table["values"] if len(each) < drawing.VISIBLE_BLOCKS]
    ends = [drawing.us([each.absolute.low, each.absolute.estimate, each.absolute.high]) for each in table[column]]
    bulk = [np.quantile(each, (0.1, 0.9)) for each in drawn]
    known = np.concatenate([[0.0, -floors.max(), floors.max()], *ends, *bulk])
    known = known[np.isfinite(known)]
    room = 0.05 * float(np.ptp(known)) or 1.0
    left, right = known.min() - room, known.max() + room
    ax.set_xlim(left, right)
    beyond = sum(int(((each < left) | (each > right)).sum()) for each in drawn)
    return f"\n{beyond} of the blocks beyond the axis" if beyond else ""
