"""Figures that any study may draw from a table of its own: one figure, one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from meshdns.analysis import absent, drawing, looks, stats
from meshdns.analysis.text import Words

NONE = Words()
# Phases and containers are told apart by lightness and hatch: colour is taken.
_SHADES = (
    ("#f2f2f2", ""),
    ("#cfcfcf", "///"),
    ("#9c9c9c", ""),
    ("#e6e6e6", "xxx"),
    ("#6b6b6b", ""),
    ("#b8b8b8", "..."),
)


PERCENT = 0.01  # what an axis of shares counts in
_LEVELS_APART = 30  # values further apart than this need a logarithmic axis


def latencies(table: pd.DataFrame, label: str = "p50 from the due time", rows: str = "arm") -> Axes:
    """One row per arm or step: p50 with its interval, and every block."""
    seen = looks.of(table)
    with drawing.axes(drawing.tall(len(table))) as ax:
        if table.empty:
            drawing.unmeasured(ax, absent.known(table))
            return ax
        for y, row in enumerate(table.to_dict("records")):
            drawing.mark(ax, y, row["p50"], seen[row["arm"]], row["values"])
        drawing.rows(ax, list(table[rows]))
        drawing.from_zero(ax, table, "p50", label)
        return ax


def stacked(table: pd.DataFrame, parts: Sequence[str], label: str, total: str = "total", words: Words = NONE) -> Axes:
    """One bar per step, its parts end to end; the line at its end is the interval of the total."""
    seen = looks.of(table)
    with drawing.axes(1.7 + 0.36 * len(table)) as ax:
        if table.empty:
            drawing.unmeasured(ax, absent.known(table))
            return ax
        shown = [part for part in parts if max(each.estimate for each in table[part]) > 0]
        left = np.zeros(len(table))
        for part, (colour, hatch) in zip(shown, _SHADES, strict=False):
            width = np.maximum(drawing.us([each.estimate for each in table[part]]), 0)
            ax.barh(
                range(len(table)), width, left=left, height=0.66, color=colour, hatch=hatch, edgecolor="#444444",
                linewidth=0.6, label=words.heading(part),
            )  # fmt: skip
            left += width
        for y, (whole, arm) in enumerate(zip(table[total], table["arm"], strict=True)):
            drawing.mark(ax, y, whole, seen[str(arm)], np.empty(0))
        drawing.rows(ax, list(table["step"]))
        ax.set_xlim(0, None)
        ax.set_xlabel(label)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4)
        return ax


def differences(
    table: pd.DataFrame,
    floor: stats.NoiseFloor | None,
    label: str = "difference of p50, µs",
    words: Words = NONE,
) -> Axes:
    """One row per change: the paired difference with its interval; the band is what equal arms differ by."""
    seen = looks.of(table)
    with drawing.axes(drawing.tall(len(table))) as ax:
        if table.empty:
            drawing.unmeasured(ax, absent.known(table))
            return ax
        if floor is not None:
            ax.axvspan(-drawing.us(floor.absolute), drawing.us(floor.absolute), color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for y, row in enumerate(table.to_dict("records")):
            drawing.mark(ax, y, row["p50"].absolute, seen[row["arm"]], row["values"])
        drawing.rows(ax, [str(words.value("change", each)) for each in table["change"]])
        ends = [drawing.us(v) for row in table["p50"] for v in (row.absolute.low, row.absolute.high) if np.isfinite(v)]
        if ends:
            span = max(ends) - min(*ends, 0)
            ax.set_xlim(min(*ends, 0) - 0.08 * span, max(*ends, 0) + 0.08 * span)
        ax.set_xlabel(f"{label} (grey: noise floor)" if floor is not None else label)
        return ax


def compared(
    table: pd.DataFrame, column: str, label: str, *, unit: float = PERCENT, values: str = "values", band: str = ""
) -> Axes:
    """A row per `row` of the table, arms side by side: intervals, and in grey that of the column `band`.

    Shares have an axis up to 100 %; durations are in ms, on a logarithmic axis where they are far apart.
    """
    rows, arms = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["arm"]))
    seen = looks.of(table)
    lanes = max(len(arms), drawing.LANES)
    with drawing.axes(1.3 + 0.14 * lanes * max(len(rows), 1)) as ax:
        if table.empty:
            drawing.unmeasured(ax, absent.known(table))
            return ax
        ends = _compared_axis(ax, table, column, values, unit=unit, label=label)
        for y, name in enumerate(rows):
            grey = [each for each in table.loc[table["row"] == name, band] if drawing.known(each)] if band else []
            for each in grey[:1]:
                low, high = np.clip([each.low / unit, each.high / unit], *ends)
                ax.barh([y], [high - low], left=[low], height=0.94, color="#d4d4d4", edgecolor="#d4d4d4", zorder=0)
        for row in table.to_dict("records"):
            if drawing.known(row[column]):
                offset = 0.81 / lanes * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
                drawing.mark(
                    ax,
                    rows.index(row["row"]) + offset,
                    row[column],
                    seen[row["arm"]],
                    row[values],
                    spread=0.08,
                    unit=unit,
                )
        drawing.rows(ax, rows)
        groups = [name.partition(",")[0] for name in rows]
        for y in [n for n in range(1, len(rows)) if groups[n] != groups[n - 1] and len(set(groups)) < len(groups)]:
            ax.axhline(y - 0.5, color="#bbbbbb", linewidth=0.8)
        # Of the figure: four arms are wider than the axes.
        ax.figure.legend(
            handles=drawing.arm_handles(seen, arms),
            loc="outside upper left",
            ncols=drawing.columns(arms),
            handletextpad=0.3,
        )
        return ax


def _compared_axis(
    ax: Axes, table: pd.DataFrame, column: str, values: str, *, unit: float, label: str
) -> tuple[float, float]:
    """The axis that holds every mark and every drawn block, labelled; its ends.

    An interval of few blocks may reach to zero and below, which no duration does and no logarithm shows: there it runs
    out of the axis.
    """
    marks = [[each.estimate] for each in table[column] if drawing.known(each)]
    bounds = [[each.low, each.high] for each in table[column] if drawing.known(each)]
    drawn = [each for each in table[values] if len(each) < drawing.VISIBLE_BLOCKS]
    known = np.concatenate([*marks, *bounds, *drawn, []]) / unit
    known = known[np.isfinite(known)]
    least = min((float(np.min(each)) / unit for each in [*marks, *drawn] if len(each)), default=0.0)
    above = known[known >= least / _LEVELS_APART]
    if unit == PERCENT:
        low = float(np.floor(known.min() / 10) * 10) if known.size else 0.0
        ends = (low - 0.02 * (100 - low) - 1e-9, 100 + 0.02 * (100 - low) + 1e-9) if low < 100 else (90.0, 100.2)
        ax.set_xlabel(f"{label}, %")
    elif least > 0 and above.max() > _LEVELS_APART * above.min():
        ends = (0.7 * float(above.min()), 1.4 * float(above.max()))
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlabel(f"{label}, ms (logarithmic)")
    else:
        ends = (0.0, 1.08 * float(known.max()) if known.size else 1.0)
        ax.set_xlabel(f"{label}, ms")
    ax.set_xlim(*ends)
    return ends
