"""Draws what tables computed: one figure, one table.

Colour and marker belong to the arm, everywhere the same, and differ in grey too. A dot is a block, the line through the
larger mark its 95 % interval. Axes of durations start at zero; what lies beyond an axis is counted in its label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from meshdns.analysis import absent, looks, stats, text
from meshdns.core import units
from meshdns.studies import changes, ruler

STYLE = Path(__file__).with_name("meshdns.mplstyle")
WIDTH = 6.4  # inches; see meshdns.mplstyle
VISIBLE_BLOCKS = 30  # up to so many blocks each is drawn; more would be a smear
FIGURE_LETTERS, AXES_LETTERS = 88, 68  # of a legend, as wide as the figure or as axes beside their labels
_LANES = 3  # arms that a row has room for, side by side; with more of them it is taller


# Phases and containers are told apart by lightness and hatch: colour is taken.
_SHADES = (
    ("#f2f2f2", ""),
    ("#cfcfcf", "///"),
    ("#9c9c9c", ""),
    ("#e6e6e6", "xxx"),
    ("#6b6b6b", ""),
    ("#b8b8b8", "..."),
)
_VERDICTS = {
    "supported": ("#222222", "o"),
    "depends": ("#222222", "D"),
    "refuted": ("#222222", "X"),
    "undecided": ("#777777", "s"),
    "not yet measured": ("#aaaaaa", "|"),
}


@contextmanager
def _axes(height: float) -> Iterator[Axes]:
    """Axes of that height in inches, in our style."""
    # Loads the backend now: a notebook's switches to interactive when it loads, and leaving the style would undo that.
    plt.draw_if_interactive()  # type: ignore[no-untyped-call]
    with plt.style.context(STYLE):
        yield plt.subplots(figsize=(WIDTH, height))[1]


def _tall(rows: int) -> float:
    """Inches for so many rows of marks."""
    return 1.1 + 0.34 * rows


def _us(values: Any) -> Any:
    return np.asarray(values, dtype=float) / units.NS_PER_US


def _mark(
    ax: Axes,
    y: float,
    each: stats.Interval,
    style: looks.Look,
    blocks: Any,
    *,
    spread: float = 0.26,
    unit: float = units.NS_PER_US,
) -> None:
    """One estimate with its interval, and the blocks behind it; `unit` is what the axis counts in."""
    if len(blocks) < VISIBLE_BLOCKS:
        jitter = y + spread * np.linspace(-1, 1, len(blocks)) if len(blocks) > 1 else np.full(len(blocks), y)
        ax.scatter(np.asarray(blocks) / unit, jitter, s=9, color=style.colour, alpha=0.45, linewidths=0, zorder=2)
    low, high = (each.low, each.high) if np.isfinite(each.half_width) else (each.estimate, each.estimate)
    ax.plot([low / unit, high / unit], [y, y], color=style.colour, linewidth=2.4, zorder=3)
    face = "white" if style.hollow else style.colour
    ax.plot(
        [each.estimate / unit], [y], style.marker, color=style.colour, markerfacecolor=face, markersize=7.5, zorder=4
    )


def _rows(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def _widest(frame: pd.DataFrame, name: str) -> float:
    """The far end of all intervals and of the blocks' bulk, µs; outlying blocks must not press the rest together."""
    ends = [each.high if np.isfinite(each.high) else each.estimate for each in frame[name]]
    bulk = [np.quantile(each, 0.9) for each in frame["values"] if len(each)]
    return float(np.nanmax([*ends, *bulk])) / units.NS_PER_US


def _from_zero(ax: Axes, frame: pd.DataFrame, name: str, label: str) -> None:
    """A zero-based axis; blocks beyond it are counted in its label."""
    right = 1.08 * _widest(frame, name)
    beyond = sum(int((_us(each) > right).sum()) for each in frame["values"] if len(each) < VISIBLE_BLOCKS)
    ax.set_xlim(0, right)
    ax.set_xlabel(f"{label}, µs" + (f" ({beyond} of the blocks beyond the axis)" if beyond else ""))


def latencies(table: pd.DataFrame, label: str = "p50 from the due time", rows: str = "arm") -> Axes:
    """One row per arm or step: p50 with its interval, and every block."""
    seen = looks.of(table)
    with _axes(_tall(len(table))) as ax:
        if table.empty:
            _unmeasured(ax, absent.known(table))
            return ax
        for y, row in enumerate(table.to_dict("records")):
            _mark(ax, y, row["p50"], seen[row["arm"]], row["values"])
        _rows(ax, list(table[rows]))
        _from_zero(ax, table, "p50", label)
        return ax


def names(table: pd.DataFrame, lookup: str) -> Axes:
    """One row per name, record type and ndots; arms side by side in the row."""
    part = table if table.empty else table[table["lookup"] == lookup]
    if part.empty:
        with _axes(_tall(0)) as ax:
            _unmeasured(ax, ["names"])
            return ax
    levels = part[["name_kind", "qtype", "ndots"]].drop_duplicates().to_records(index=False).tolist()
    seen = looks.of(table)
    arms = seen.held(part["arm"])
    several = part["ndots"].nunique() > 1
    step = min(0.26, 0.84 / max(len(arms), 1))  # rows of different names must not meet
    with _axes(1.8 + (0.1 + 0.08 * len(arms)) * len(levels)) as ax:
        for row in part.to_dict("records"):
            y = levels.index((row["name_kind"], row["qtype"], row["ndots"]))
            offset = step * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _mark(ax, y + offset, row["p50"], seen[row["arm"]], row["values"], spread=0.38 * step)
        _rows(ax, [f"{name} {qtype}" + (f", ndots {ndots}" if several else "") for name, qtype, ndots in levels])
        _from_zero(ax, part, "p50", f"{lookup}: p50")
        ax.legend(
            handles=_arm_handles(seen, arms),
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(_columns(arms, AXES_LETTERS), 4),
            handletextpad=0.3,
        )
        return ax


def _arm_handles(seen: looks.Looks, arms: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=seen[arm].colour, marker=seen[arm].marker, markersize=7, linewidth=2, label=arm)
        for arm in arms
    ]


def _columns(labels: Iterable[str], letters: int = FIGURE_LETTERS) -> int:
    """How many of these labels a legend holds side by side; a mark takes as much as six letters."""
    lengths = [len(label) for label in labels]
    return max(min(len(lengths), letters // (max(lengths, default=0) + 6)), 1)


def delays(table: pd.DataFrame, crossing: stats.Interval | None = None) -> Axes:
    """Mode 2 minus plain against the delay of the cluster DNS; below zero mode 2 is ahead, at `crossing` neither."""
    table = table[table["blocks"] > 0]
    with _axes(3.4) as ax:
        if table.empty:
            _unmeasured(ax, ["delay"])
            return ax
        added = table["delay, ms"].to_numpy(dtype=float)
        each = [row.absolute for row in table["mode 2 minus plain"]]
        style = looks.KNOWN["mode2-agent"]
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


def stacked(table: pd.DataFrame, parts: Sequence[str], label: str, total: str = "total") -> Axes:
    """One bar per step, its parts end to end; the line at its end is the interval of the total."""
    seen = looks.of(table)
    with _axes(1.7 + 0.36 * len(table)) as ax:
        if table.empty:
            _unmeasured(ax, absent.known(table))
            return ax
        shown = [part for part in parts if max(each.estimate for each in table[part]) > 0]
        left = np.zeros(len(table))
        for part, (colour, hatch) in zip(shown, _SHADES, strict=False):
            width = np.maximum(_us([each.estimate for each in table[part]]), 0)
            ax.barh(
                range(len(table)), width, left=left, height=0.66, color=colour, hatch=hatch, edgecolor="#444444",
                linewidth=0.6, label=part,
            )  # fmt: skip
            left += width
        for y, (whole, arm) in enumerate(zip(table[total], table["arm"], strict=True)):
            _mark(ax, y, whole, seen[str(arm)], np.empty(0))
        _rows(ax, list(table["step"]))
        ax.set_xlim(0, None)
        ax.set_xlabel(label)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4)
        return ax


def differences(table: pd.DataFrame, floor: stats.NoiseFloor | None, label: str = "difference of p50, µs") -> Axes:
    """One row per change: the paired difference with its interval; the band is what equal arms differ by."""
    seen = looks.of(table)
    with _axes(_tall(len(table))) as ax:
        if table.empty:
            _unmeasured(ax, absent.known(table))
            return ax
        if floor is not None:
            ax.axvspan(-_us(floor.absolute), _us(floor.absolute), color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for y, row in enumerate(table.to_dict("records")):
            _mark(ax, y, row["p50"].absolute, seen[row["arm"]], row["values"])
        _rows(ax, list(table["change"]))
        ends = [_us(v) for row in table["p50"] for v in (row.absolute.low, row.absolute.high) if np.isfinite(v)]
        if ends:
            span = max(ends) - min(*ends, 0)
            ax.set_xlim(min(*ends, 0) - 0.08 * span, max(*ends, 0) + 0.08 * span)
        ax.set_xlabel(f"{label} (grey: noise floor)" if floor is not None else label)
        return ax


def contrasts(table: pd.DataFrame, column: str, label: str) -> Axes:
    """A row per measure, mechanisms side by side: paired differences; grey is what equal arms differ by there."""
    measures = list(dict.fromkeys(table["measure"]))
    seen = looks.of(table)
    arms = seen.held(table["arm"])
    with _axes(1.3 + (0.16 + 0.19 * len(arms)) * max(len(measures), 1)) as ax:
        if not measures:
            _unmeasured(ax, absent.known(table))
            return ax
        floors = table.groupby("measure", sort=False)["noise floor, µs"].first().fillna(0)
        ax.barh(range(len(measures)), 2 * floors, left=-floors, height=0.94, color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for row in table.to_dict("records"):
            y = measures.index(row["measure"]) + 0.8 / len(arms) * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _mark(ax, y, row[column].absolute, seen[row["arm"]], row["values"], spread=0.07)
        _rows(ax, measures)
        ax.set_xlabel(f"{label}, µs (grey: noise floor)" + _around_zero(ax, table, column, floors))
        shown = table.drop_duplicates("arm").set_index("arm")["mechanism"]
        handles = _arm_handles(seen, arms)
        for handle, arm in zip(handles, arms, strict=True):
            handle.set_label(str(shown[arm]))
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=_columns(shown, AXES_LETTERS),
            handletextpad=0.3,
        )
        return ax


def _around_zero(ax: Axes, table: pd.DataFrame, column: str, floors: pd.Series[float]) -> str:
    """An axis that holds zero, the floors, the intervals and the bulk of drawn blocks; what to say of the rest."""
    drawn = [_us(each) for each in table["values"] if len(each) < VISIBLE_BLOCKS]
    ends = [_us([each.absolute.low, each.absolute.estimate, each.absolute.high]) for each in table[column]]
    bulk = [np.quantile(each, (0.1, 0.9)) for each in drawn]
    known = np.concatenate([[0.0, -floors.max(), floors.max()], *ends, *bulk])
    known = known[np.isfinite(known)]
    room = 0.05 * float(np.ptp(known)) or 1.0
    left, right = known.min() - room, known.max() + room
    ax.set_xlim(left, right)
    beyond = sum(int(((each < left) | (each > right)).sum()) for each in drawn)
    return f"\n{beyond} of the blocks beyond the axis" if beyond else ""


def residuals(table: pd.DataFrame) -> Axes:
    """Measured minus fitted line against the delay that was added: a straight ruler stays near zero."""
    with _axes(3.0) as ax:
        if table.empty:
            _unmeasured(ax, ["card-ladder"])
            return ax
        ax.axhline(0, color="#222222", linewidth=1)
        ax.plot(table["added, µs"], table["residual, µs"], color=looks.OTHER.colour, marker=looks.OTHER.marker)
        ax.grid(visible=True, axis="y")
        reach = max(6.0, 1.2 * float(table["residual, µs"].abs().max()))
        ax.set_ylim(-reach, reach)
        ax.set_xlabel("delay that the calibration target added, µs")
        ax.set_ylabel("measured minus line, µs")
        return ax


def biases(values: pd.DataFrame) -> Axes:
    """The share of requests whose stamps exceed the wire's by at most so much."""
    series = {
        "DNS phase, lookup": values[values["kind"] == "lookup"]["dns bias"],
        "DNS phase, request": values[values["kind"] == "request"]["dns bias"],
        "total, request": values[values["kind"] == "request"]["total bias"],
    }
    with _axes(3.2) as ax:
        shown = {name: _us(each.dropna()) for name, each in series.items() if each.notna().any()}
        if not shown:
            _unmeasured(ax, ["card-wire"])
            return ax
        for (name, each), line, shade in zip(
            shown.items(), ("-", "--", ":"), ("#222222", "#777777", "#222222"), strict=False
        ):
            sns.ecdfplot(x=each, ax=ax, label=name, linestyle=line, color=shade)
        for gate_ns in ruler.BIAS_NS.values():
            ax.axvline(_us(gate_ns), color="#bbbbbb", linewidth=1)
        right = max([25.0, *(1.2 * float(np.quantile(each, 0.98)) for each in shown.values())])
        ax.set_xlim(min([0.0, *(float(np.quantile(each, 0.01)) for each in shown.values())]), right)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
        ax.set_xlabel("agent's time minus time between packets, µs")
        ax.set_ylabel("share of requests")
        ax.legend(loc="lower right")
        return ax


def verdicts(table: pd.DataFrame) -> Axes:
    """One row per claim, one column per verdict."""
    columns = list(_VERDICTS)
    with _axes(1.2 + 0.26 * len(table)) as ax:
        for y, verdict in enumerate(table["verdict"]):
            colour, marker = _VERDICTS[str(verdict)]
            ax.plot([columns.index(str(verdict))], [y], marker, color=colour, markersize=9, markeredgewidth=1.8)
        _rows(ax, list(table["claim"]))
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_xticks(range(len(columns)), [name.replace("not yet ", "not yet\n") for name in columns])
        ax.xaxis.tick_top()
        ax.grid(visible=True, axis="both")
        ax.spines[["bottom", "left"]].set_visible(False)
        ax.tick_params(length=0)
        return ax


# --- change under load ---


@contextmanager
def _grid(rows: int, columns: int, height: float, **how: Any) -> Iterator[Any]:
    """Axes in rows and columns, the whole of that height in inches, in our style."""
    plt.draw_if_interactive()  # type: ignore[no-untyped-call]
    with plt.style.context(STYLE):
        yield plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **how)[1]


def _unmeasured(ax: Axes, names: Sequence[str]) -> None:
    """An empty figure that says so, and what was not measured beside it: a published page has only the latter."""
    ax.set_axis_off()
    ax.set_title("not measured in this run")
    absent.tell(names)


def follow(table: pd.DataFrame, connection: str = changes.NEW) -> list[Axes]:
    """Rows by change and what is called, arms side by side: until traffic had followed, and error-seconds."""
    table = table[table["connection"] == connection]
    labels, places = _grouped(table)
    seen = looks.of(table)
    arms = seen.held(table["arm"])
    lanes = max(len(arms), _LANES)
    with _grid(1, 2, 1.4 + 0.1 * lanes * max(len(labels), 1), sharey=True, width_ratios=[3, 2]) as axes:
        first, second = axes[0]
        if table.empty:
            _unmeasured(first, [changes.CHANGE])
            second.set_axis_off()
            return [first, second]
        for row in table.to_dict("records"):
            y = places[row["change"], row["backend"]] + 0.9 / lanes * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _spell(first, y, row["followed"], seen[row["arm"]], row["rest"])
            _spell(second, y, row["errors"], seen[row["arm"]], row["rest"])
        _rows(first, labels)
        for label, name in zip(first.get_yticklabels(), labels, strict=True):
            label.set_fontweight("bold" if name.endswith(":") else "normal")
        first.tick_params(axis="y", length=0)
        second.tick_params(axis="y", length=0)
        first.set_xlim(0, 1.02 * float(table["rest"].max()) / units.NS_PER_S)
        first.set_xlabel("followed after, s")
        second.set_xlim(0, None)
        second.set_xlabel("error-seconds")
        late = any(np.isinf(each.p50) for each in table["followed"])
        never = Line2D(
            [], [], color="#444444", marker="o", markerfacecolor="white", linewidth=0, label="not before its load ended"
        )
        handles = [*_arm_handles(seen, arms), *[never] * late]
        # The last is the longest: beside four arms it has a column of its own.
        first.figure.legend(
            handles=handles, loc="outside upper left", ncols=min(4 if len(handles) <= 4 else 3, _columns(arms))
        )
        return [first, second]


def _grouped(table: pd.DataFrame) -> tuple[list[str], dict[tuple[str, str], int]]:
    """The labels of all rows, a heading before those of each change, and the row of each change and backend."""
    labels: list[str] = []
    places: dict[tuple[str, str], int] = {}
    for change, part in table.groupby("change", sort=False):
        labels.append(f"replica {changes.SAID.get(str(change), change)}:")
        for backend in dict.fromkeys(part["backend"]):
            places[str(change), str(backend)] = len(labels)
            labels.append(f"{changes.CALLED.get(backend, backend)} ({changes.endpoints(str(backend), sidecar=True)})")
    return labels, places


def _spell(ax: Axes, y: float, spell: changes.Spell, style: looks.Look, rest: float) -> None:
    """Its median, interval and blocks in s; hollow at the end of the load (`rest`, ns) if it did not end."""
    if not spell.n:
        return
    known = spell.values[np.isfinite(spell.values)] / units.NS_PER_S
    if spell.n < VISIBLE_BLOCKS:
        ax.scatter(known, np.full(len(known), y), s=9, color=style.colour, alpha=0.45, linewidths=0, zorder=2)
    if spell.interval is not None and np.isfinite(spell.interval.half_width):
        bounds = np.array([max(spell.interval.low, 0), spell.interval.high]) / units.NS_PER_S
        ax.plot(bounds, [y, y], color=style.colour, linewidth=2.4, zorder=3)
    never = np.isinf(spell.p50)
    ax.plot(
        [(rest if never else spell.p50) / units.NS_PER_S], [y], style.marker, color=style.colour, markersize=6.5,
        markerfacecolor="white" if never else style.colour, clip_on=False, zorder=4,
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
    ways = sorted(set(table["backend"]), key=lambda way: (looks.place(changes.BACKENDS, way), way))
    levels = itertools.product(ways, looks.of(table).held(table["arm"]))
    parts = [part for way, arm in levels if len(part := table[(table["backend"] == way) & (table["arm"] == arm)])]
    columns = min(max(len(parts), 1), 3)
    rows = max(-(-len(parts) // columns), 1)
    with _grid(rows, columns, 1.1 + 1.45 * rows, sharex=True, sharey=True) as axes:
        if table.empty:
            _unmeasured(axes[0][0], [changes.CHANGE])
            return [axes[0][0]]
        for ax, part in itertools.zip_longest(axes.flat, parts):
            if part is None:
                ax.set_axis_off()
            else:
                _shares(ax, part)
                ax.set_title(f"{part['endpoints'].iloc[0]}\n{part['arm'].iloc[0]}", fontsize=10)
        ends_ns = table["from_ns"].min(), table["from_ns"].max() + changes.BIN_NS
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
    """Shares of one panel, stacked."""
    begin = part["from_ns"].to_numpy(dtype=float) / units.NS_PER_S
    edges = np.append(begin, begin[-1] + changes.BIN_NS / units.NS_PER_S)
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


# --- what passing a sidecar buys ---

PERCENT = 0.01  # what an axis of shares counts in
_LEVELS_APART = 30  # values further apart than this need a logarithmic axis


def compared(
    table: pd.DataFrame, column: str, label: str, *, unit: float = PERCENT, values: str = "values", band: str = ""
) -> Axes:
    """A row per `row` of the table, arms side by side: intervals, and in grey that of the column `band`.

    Shares have an axis up to 100 %; durations are in ms, on a logarithmic axis where they are far apart.
    """
    rows, arms = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["arm"]))
    seen = looks.of(table)
    lanes = max(len(arms), _LANES)
    with _axes(1.3 + 0.14 * lanes * max(len(rows), 1)) as ax:
        if table.empty:
            _unmeasured(ax, absent.known(table))
            return ax
        ends = _compared_axis(ax, table, column, values, unit=unit, label=label)
        for y, name in enumerate(rows):
            grey = [each for each in table.loc[table["row"] == name, band] if _known(each)] if band else []
            for each in grey[:1]:
                low, high = np.clip([each.low / unit, each.high / unit], *ends)
                ax.barh([y], [high - low], left=[low], height=0.94, color="#d4d4d4", edgecolor="#d4d4d4", zorder=0)
        for row in table.to_dict("records"):
            if _known(row[column]):
                offset = 0.81 / lanes * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
                _mark(
                    ax,
                    rows.index(row["row"]) + offset,
                    row[column],
                    seen[row["arm"]],
                    row[values],
                    spread=0.08,
                    unit=unit,
                )
        _rows(ax, rows)
        groups = [name.partition(",")[0] for name in rows]
        for y in [n for n in range(1, len(rows)) if groups[n] != groups[n - 1] and len(set(groups)) < len(groups)]:
            ax.axhline(y - 0.5, color="#bbbbbb", linewidth=0.8)
        # Of the figure: four arms are wider than the axes.
        ax.figure.legend(
            handles=_arm_handles(seen, arms), loc="outside upper left", ncols=_columns(arms), handletextpad=0.3
        )
        return ax


def _known(each: Any) -> bool:
    return isinstance(each, stats.Interval) and bool(np.isfinite(each.estimate))


def _compared_axis(
    ax: Axes, table: pd.DataFrame, column: str, values: str, *, unit: float, label: str
) -> tuple[float, float]:
    """The axis that holds every mark and every drawn block, labelled; its ends.

    An interval of few blocks may reach to zero and below, which no duration does and no logarithm shows: there it runs
    out of the axis.
    """
    marks = [[each.estimate] for each in table[column] if _known(each)]
    bounds = [[each.low, each.high] for each in table[column] if _known(each)]
    drawn = [each for each in table[values] if len(each) < VISIBLE_BLOCKS]
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
