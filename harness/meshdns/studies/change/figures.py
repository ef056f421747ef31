"""Following change: its own figures."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from meshdns.analysis import drawing, looks
from meshdns.core import units
from meshdns.studies.change import answer, tables
from meshdns.studies.change.spells import Spell

LINEAR_S = 0.01  # a shorter time is not told by requests to one replica, which come so far apart


def follow(table: pd.DataFrame) -> list[Axes]:
    """Rows by change and how endpoints are known, arms side by side: until traffic had followed, and error-seconds."""
    if table.empty:
        return [drawing.unmeasured([tables.CHANGE])]
    labels, headings, places = _placed(table, "change")
    with drawing.grid(1, 2, 1.4 + 0.27 * len(labels), sharey=True, width_ratios=[3, 2]) as axes:
        first, second = axes[0]
        seen = looks.of(table)
        for y, row in zip(places, table.to_dict("records"), strict=True):
            _spell(second, y, row["errors"], seen[row["arm"]], row["rest_s"])
        second.set_xlim(0, None)
        second.set_xlabel("error-seconds")
        second.tick_params(axis="y", length=0)
        _followed(first, table, places)
        _named(first, labels, headings)
        return [first, second]


def gathered(table: pd.DataFrame) -> Axes:
    """Rows by istiod's debounce and how endpoints are known: until traffic had followed."""
    if table.empty:
        return drawing.unmeasured([tables.GATHERED])
    labels, headings, places = _placed(table, "debounce")
    with drawing.axes(1.4 + 0.27 * len(labels)) as ax:
        _followed(ax, table, places)
        _named(ax, labels, headings)
        return ax


def _placed(table: pd.DataFrame, by: str) -> tuple[list[str], list[int], list[float]]:
    """The labels of all lines, which are headings (one before each level of `by`), and where each row stands."""
    labels: list[str] = []
    headings: list[int] = []
    seen, places = looks.of(table), pd.Series(np.nan, index=table.index)
    for (level, backend, way), part in table.groupby([by, "backend", "endpoints"], sort=False):
        heading = str(answer.WORDS.value(by, level))
        if heading not in labels:
            headings.append(len(labels))
            labels.append(heading)
        arms = seen.held(part["arm"])
        lanes = part["arm"].map(arms.index) - (len(arms) - 1) / 2
        places[part.index] = len(labels) + 0.3 * lanes
        labels.append(f"{backend} ({way})")
    return labels, headings, places.to_list()


def _followed(ax: Axes, table: pd.DataFrame, places: list[float]) -> None:
    """Until traffic had followed, with the legend of the figure; from `LINEAR_S` on by powers of ten."""
    seen = looks.of(table)
    arms = seen.held(table["arm"])
    for y, row in zip(places, table.to_dict("records"), strict=True):
        _spell(ax, y, row["followed"], seen[row["arm"]], row["rest_s"])
    ax.set_xscale("symlog", linthresh=LINEAR_S)
    ax.set_xlim(0, 1.1 * float(table["rest_s"].max()))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("followed after, s")
    late = any(each.late for each in table["followed"])
    never = Line2D(
        [], [], color="#444444", marker="o", markerfacecolor="white", linewidth=0, label="not before its load ended"
    )
    handles = [*drawing.arm_handles(seen, arms), *[never] * late]
    # The last is the longest: beside four arms it has a column of its own.
    columns = min(4 if len(handles) <= 4 else 3, drawing.columns(arms))
    ax.figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def _named(ax: Axes, labels: list[str], headings: list[int]) -> None:
    drawing.rows(ax, labels)
    for heading in headings:
        ax.get_yticklabels()[heading].set_fontweight("bold")
    ax.tick_params(axis="y", length=0)


def _spell(ax: Axes, y: float, spell: Spell, style: looks.Look, rest_s: float) -> None:
    """Its median, interval and blocks in s; hollow at the end of the load (`rest_s`) if it did not end."""
    if not spell.n:
        return
    known = spell.values[np.isfinite(spell.values)] / units.NS_PER_S
    if spell.n < drawing.VISIBLE_BLOCKS:
        ax.scatter(known, np.full(len(known), y), s=9, color=style.colour, alpha=0.45, linewidths=0, zorder=2)
    if spell.interval is not None and np.isfinite(spell.interval.half_width):
        bounds = np.array([max(spell.interval.low, 0), spell.interval.high]) / units.NS_PER_S
        ax.plot(bounds, [y, y], color=style.colour, linewidth=2.4, zorder=3)
    ax.plot(
        [rest_s if spell.late else spell.p50 / units.NS_PER_S], [y], style.marker, color=style.colour, markersize=6.5,
        markerfacecolor="white" if spell.late else style.colour, clip_on=False, zorder=4,
    )  # fmt: skip


# Who served, from below to above; told apart in grey by lightness and hatch.
_SERVED = {
    "others": ("#f2f2f2", "", "replicas that stay"),
    "removed": ("#9c9c9c", "", "removed"),
    "added": ("#d9d9d9", "////", "added"),
    "failed": ("#111111", "", "failed"),
}


def timeline(table: pd.DataFrame) -> list[Axes]:
    """A panel per way to know endpoints and arm: who served the requests around the change, as shares over time."""
    if table.empty:
        return [drawing.unmeasured([tables.CHANGE])]
    parts = [part for _, part in table.groupby(["backend", "arm"], sort=False)]
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    with drawing.grid(rows, columns, 1.1 + 1.45 * rows, sharex=True, sharey=True) as axes:
        for ax, part in itertools.zip_longest(axes.flat, parts):
            if part is None:
                ax.set_axis_off()
            else:
                _shares(ax, part)
                ax.set_title(f"{part['endpoints'].iloc[0]}\n{part['arm'].iloc[0]}", fontsize=10)
        ends_ns = table["from_ns"].min(), table["from_ns"].max() + tables.BIN_NS
        axes[0][0].set_xlim(*(each / units.NS_PER_S for each in ends_ns))
        for column in axes.T:
            lowest = [ax for ax in column if ax.axison][-1]
            lowest.set_xlabel("s since the change")
            lowest.xaxis.set_tick_params(labelbottom=True)
        for ax in axes[:, 0]:
            ax.set_ylabel("share")
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="#444444", label=label)
            for colour, hatch, label in _SERVED.values()
        ]
        axes[0][0].figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1)
        return list(axes.flat)


def _shares(ax: Axes, part: pd.DataFrame) -> None:
    begin = part["from_ns"].to_numpy(dtype=float) / units.NS_PER_S
    edges = np.append(begin, begin[-1] + tables.BIN_NS / units.NS_PER_S)
    below = np.zeros(len(edges))
    for name, (colour, hatch, _) in _SERVED.items():
        share = part[name].to_numpy(dtype=float)
        above = below + np.append(share, share[-1])
        ax.fill_between(
            edges, below, above, step="post", facecolor=colour, hatch=hatch, edgecolor="#444444", linewidth=0
        )
        below = above
    ax.axvline(0, color="#D55E00", linewidth=1.2)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1])
    ax.grid(visible=False)
