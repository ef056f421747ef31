"""Figures that any study may draw from a table of its own: one figure, one table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
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


def latencies(table: pd.DataFrame, label: str = "p50 from the due time") -> Axes:
    """One row per arm: p50 with its interval, and every block."""
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    seen = looks.of(table)
    with drawing.axes(drawing.tall(len(table))) as ax:
        for y, row in enumerate(table.to_dict("records")):
            drawing.mark(ax, y, row["p50"], seen[row["arm"]], row["values"])
        drawing.rows(ax, list(table["arm"]))
        drawing.from_zero(ax, table, label)
        return ax


def stacked(table: pd.DataFrame, parts: Sequence[str], label: str, total: str = "total", words: Words = NONE) -> Axes:
    """One bar per step, its parts end to end; the line at its end is the interval of the total."""
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    seen = looks.of(table)
    with drawing.axes(1.7 + 0.36 * len(table)) as ax:
        shown = [part for part in parts if max(each.estimate for each in table[part]) > 0]
        left = np.zeros(len(table))
        for part, (colour, hatch) in zip(shown, itertools.cycle(_SHADES), strict=False):
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
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    seen = looks.of(table)
    with drawing.axes(drawing.tall(len(table))) as ax:
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
