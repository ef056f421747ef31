"""What passing the sidecar buys: its own figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from meshdns.analysis import absent, drawing, looks, shares
from meshdns.core import units
from meshdns.studies.policies import answer, deny

PERCENT = 0.01  # what an axis of shares counts in
_LEVELS_APART = 30  # values further apart than this need a logarithmic axis
_ASIDE = 0.02  # of the axis: how far arms with as many connections stand apart


def compared(table: pd.DataFrame, column: str, label: str, by: Sequence[str] = ("fault", "policy")) -> Axes:
    """A row per level of `by`, arms side by side: intervals, and in grey what there is without a mesh, where the table
    has that.

    Shares have an axis up to 100 %; durations are in ms, on a logarithmic axis where they are far apart.
    """
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    table = table.assign(row=pd.Series([*zip(*(table[name] for name in by), strict=True)], table.index, object))
    rows, arms = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["arm"]))
    seen, band, values = looks.of(table), f"{column}_without_mesh", f"{column}_values"
    lanes = max(len(arms), drawing.LANES)
    with drawing.axes(1.3 + 0.14 * lanes * len(rows)) as ax:
        unit = PERCENT if isinstance(table[column].iloc[0], shares.Share) else units.NS_PER_MS
        ends = _axis(ax, table, column, unit=unit, label=label)
        for y, each in enumerate(table.drop_duplicates("row")[band] if band in table else ()):
            if drawing.known(each):
                low, high = np.clip([each.low / unit, each.high / unit], *ends)
                ax.barh([y], [high - low], left=[low], height=0.94, color="#d4d4d4", edgecolor="#d4d4d4", zorder=0)
        for row in table.to_dict("records"):
            if drawing.known(row[column]):
                offset = 0.81 / lanes * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
                place = rows.index(row["row"]) + offset
                drawing.mark(ax, place, row[column], seen[row["arm"]], row[values], spread=0.08, unit=unit)
        drawing.rows(ax, [", ".join(map(str, map(answer.WORDS.value, by, row))) for row in rows])
        groups = [row[0] for row in rows]
        for y in [n for n in range(1, len(rows)) if groups[n] != groups[n - 1] and len(set(groups)) < len(groups)]:
            ax.axhline(y - 0.5, color="#bbbbbb", linewidth=0.8)
        # Of the figure: four arms are wider than the axes.
        handles, columns = drawing.arm_handles(seen, arms), drawing.columns(arms)
        ax.figure.legend(handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.3)
        return ax


def late(table: pd.DataFrame) -> Axes:
    """Requests that were served after a policy that denies was accepted, against connections, arms side by side.

    The line is one for each connection.
    """
    if table.empty:
        return drawing.unmeasured(absent.known(table))
    seen = looks.of(table)
    arms = seen.held(table["arm"])
    with drawing.axes(2.9) as ax:
        far = 1.1 * max(1.0, *(float(each.estimate) for each in table["pooled"]))
        ax.axline((0, 0), slope=deny.EACH, color="#888888", linestyle="--", linewidth=1.2, label="one per connection")
        for row in table.to_dict("records"):
            x = float(row["pooled"].estimate) + _ASIDE * far * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _late(ax, x, row, seen[row["arm"]])
        ax.set_xlim(0, far)
        ax.set_ylim(0, 1.1 * max(far, *(float(each.estimate) for each in table["late"])))
        ax.set_xlabel("connections kept between sidecars")
        ax.set_ylabel("requests served late")
        handles = [*drawing.arm_handles(seen, arms), *ax.get_legend_handles_labels()[0]]
        ax.figure.legend(
            handles=handles, loc="outside upper left", ncols=drawing.columns([*arms, "one per connection"])
        )
        return ax


def _late(ax: Axes, x: float, row: dict[Any, Any], style: looks.Look) -> None:
    """The mean over blocks with its interval, and the blocks where there are few."""
    each, blocks = row["late"], row["late_values"]
    if len(blocks) < drawing.VISIBLE_BLOCKS:
        ax.scatter(np.full(len(blocks), x), blocks, s=9, color=style.colour, alpha=0.45, linewidths=0, zorder=2)
    if np.isfinite(each.half_width):
        ax.plot([x, x], [each.low, each.high], color=style.colour, linewidth=2.4, zorder=3)
    ax.plot([x], [each.estimate], style.marker, color=style.colour, markersize=7.5, zorder=4)


def _axis(ax: Axes, table: pd.DataFrame, column: str, *, unit: float, label: str) -> tuple[float, float]:
    """The axis that holds every mark and every drawn block, labelled; its ends.

    An interval of few blocks may reach to zero and below, which no duration does and no logarithm shows: there it runs
    out of the axis.
    """
    marks = [[each.estimate] for each in table[column] if drawing.known(each)]
    bounds = [[each.low, each.high] for each in table[column] if drawing.known(each)]
    drawn = [each for each in table[f"{column}_values"] if len(each) < drawing.VISIBLE_BLOCKS]
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
