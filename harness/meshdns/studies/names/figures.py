"""What a name resolves to: its own figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from meshdns.analysis import drawing, looks, stats, text
from meshdns.core import units
from meshdns.studies.names import tables


def names(table: pd.DataFrame, lookup: str) -> Axes:
    """One row per name, record type and ndots; arms side by side in the row."""
    part = table if table.empty else table[table["lookup"] == lookup]
    if part.empty:
        return drawing.unmeasured([tables.NAMES])
    levels = part[["name_kind", "qtype", "ndots"]].drop_duplicates().to_records(index=False).tolist()
    seen = looks.of(table)
    arms = seen.held(part["arm"])
    several = part["ndots"].nunique() > 1
    step = min(0.26, 0.84 / len(arms))  # rows of different names must not meet
    with drawing.axes(1.8 + (0.1 + 0.08 * len(arms)) * len(levels)) as ax:
        for row in part.to_dict("records"):
            y = levels.index((row["name_kind"], row["qtype"], row["ndots"]))
            offset = step * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            drawing.mark(ax, y + offset, row["p50"], seen[row["arm"]], row["values"], spread=0.38 * step)
        drawing.rows(ax, [f"{name} {qtype}" + (f", ndots {ndots}" if several else "") for name, qtype, ndots in levels])
        drawing.from_zero(ax, part, f"{lookup}: p50")
        drawing.legend(ax, drawing.arm_handles(seen, arms), min(drawing.columns(arms, drawing.AXES_LETTERS), 4))
        return ax


def delays(table: pd.DataFrame, crossing: stats.Interval | None = None) -> Axes:
    """Mode 2 minus plain against the delay of the cluster DNS; below zero mode 2 is ahead, at `crossing` neither."""
    table = table[table["blocks"] > 0]
    if table.empty:
        return drawing.unmeasured([tables.DELAY])
    with drawing.axes(3.4) as ax:
        added = table["delay_ms"].to_numpy(dtype=float)
        each = [row.absolute for row in table["mode2_minus_plain"]]
        style = looks.KNOWN[tables.MODE2]
        scale = units.NS_PER_MS
        for x, values in zip(added, table["values"], strict=True):
            ax.scatter(np.full(len(values), x), values / scale, s=9, color=style.colour, alpha=0.45, linewidths=0)
        bounds = np.array([[e.estimate - e.low, e.high - e.estimate] for e in each]).reshape(-1, 2).T / scale
        ax.errorbar(
            added,
            [e.estimate / scale for e in each],
            yerr=np.where(np.isfinite(bounds), bounds, 0),
            color=style.colour,
            marker=style.marker,
            capsize=4,
        )
        ax.axhline(0, color="#222222", linewidth=1)
        if crossing is not None:
            ax.axvspan(max(crossing.low, 0), crossing.high, color="#dddddd", zorder=0)
            ax.annotate("break-even", (crossing.estimate, 0), xytext=(6, 10), textcoords="offset points", fontsize=10)
        # Milliseconds of delay dwarf what is decided without any, so that one is written out.
        for x, first, reading in zip(added[:1], each[:1], table["reading"][:1], strict=True):
            told = units.interval(first, signed=True) if reading in text.CLEAR else reading
            ax.set_title(f"at {x:g} ms: {told}")
        ax.grid(visible=True, axis="y")
        ax.set_xlabel("delay added to each answer of the cluster DNS, ms")
        ax.set_ylabel("mode 2 minus plain, ms")
        ax.annotate("mode 2 ahead below 0", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, -13),
                    textcoords="offset points", ha="right", fontsize=10, color="#444444")  # fmt: skip
        return ax
