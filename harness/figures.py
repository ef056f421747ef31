"""Draws what tables computed: one figure, one table.

Colour and marker belong to the arm, everywhere the same, and differ in grey too. A dot is a block, the line through the
larger mark its 95 % interval. Axes of durations start at zero; what lies beyond an axis is counted in its label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness import stats, units

STYLE = Path(__file__).with_name("meshdns.mplstyle")
WIDTH = 6.4  # inches; see meshdns.mplstyle
VISIBLE_BLOCKS = 30  # up to so many blocks each is drawn; more would be a smear


@dataclass(frozen=True)
class Look:
    """How an arm looks."""

    colour: str
    marker: str


# Okabe and Ito's colours, in an order of falling lightness in grey within what is compared.
LOOKS = {
    "ip": Look("#999999", "v"),
    "plain": Look("#222222", "o"),
    "plain-aa": Look("#666666", "s"),
    "mode1": Look("#D55E00", "^"),
    "mode2-envoy": Look("#0072B2", "D"),
    # Lighter or darker than theirs where two would be one grey.
    "mode2-agent": Look("#009E73", "P"),
    "nftables": Look("#F0A800", ">"),
    "tproxy": Look("#742C5B", "X"),
    "ebpf": Look("#3FA0DA", "*"),
}
OTHER = Look("#444444", "o")
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


def look(arm: str) -> Look:
    """The arm's look."""
    return LOOKS.get(arm, OTHER)


def _us(values: Any) -> Any:
    return np.asarray(values, dtype=float) / units.NS_PER_US


def _mark(ax: Axes, y: float, each: stats.Interval, arm: str, blocks: Any, *, spread: float = 0.26) -> None:
    """One estimate with its interval, and the blocks behind it."""
    style = look(arm)
    if len(blocks) < VISIBLE_BLOCKS:
        jitter = y + spread * np.linspace(-1, 1, len(blocks)) if len(blocks) > 1 else np.full(len(blocks), y)
        ax.scatter(_us(blocks), jitter, s=9, color=style.colour, alpha=0.45, linewidths=0, zorder=2)
    low, high = (each.low, each.high) if np.isfinite(each.half_width) else (each.estimate, each.estimate)
    ax.plot(_us([low, high]), [y, y], color=style.colour, linewidth=2.4, zorder=3)
    hollow = "white" if arm == "plain-aa" else style.colour
    ax.plot(
        _us([each.estimate]), [y], style.marker, color=style.colour, markerfacecolor=hollow, markersize=7.5, zorder=4
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
    with _axes(_tall(len(table))) as ax:
        for y, row in enumerate(table.to_dict("records")):
            _mark(ax, y, row["p50"], row["arm"], row["values"])
        _rows(ax, list(table[rows]))
        _from_zero(ax, table, "p50", label)
        return ax


def names(table: pd.DataFrame, lookup: str) -> Axes:
    """One row per name, record type and ndots; arms side by side in the row."""
    part = table[table["lookup"] == lookup]
    levels = part[["name_kind", "qtype", "ndots"]].drop_duplicates().to_records(index=False).tolist()
    arms = [arm for arm in LOOKS if arm in set(part["arm"])]
    several = part["ndots"].nunique() > 1
    with _axes(1.5 + 0.42 * len(levels)) as ax:
        for row in part.to_dict("records"):
            y = levels.index((row["name_kind"], row["qtype"], row["ndots"]))
            offset = 0.26 * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _mark(ax, y + offset, row["p50"], row["arm"], row["values"], spread=0.1)
        _rows(ax, [f"{name} {qtype}" + (f", ndots {ndots}" if several else "") for name, qtype, ndots in levels])
        _from_zero(ax, part, "p50", f"{lookup}: p50")
        ax.legend(
            handles=_arm_handles(arms), loc="lower left", bbox_to_anchor=(0, 1), ncols=len(arms), handletextpad=0.3
        )
        return ax


def _arm_handles(arms: Sequence[str]) -> list[Line2D]:
    return [
        Line2D([], [], color=look(arm).colour, marker=look(arm).marker, markersize=7, linewidth=2, label=arm)
        for arm in arms
    ]


def delays(table: pd.DataFrame, found: stats.BreakEven | None = None) -> Axes:
    """Mode 2 minus plain against the delay of the cluster DNS; below zero mode 2 is ahead."""
    table = table[table["blocks"] > 0]
    with _axes(3.4) as ax:
        added = table["delay, ms"].to_numpy(dtype=float)
        each = [row.absolute for row in table["mode 2 minus plain"]]
        style = look("mode2-agent")
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
        if found is not None and found.delay is not None and found.measured:
            ax.axvspan(max(found.delay.low, 0), found.delay.high, color="#dddddd", zorder=0)
            ax.annotate(
                "break-even", (found.delay.estimate, 0), xytext=(6, 10), textcoords="offset points", fontsize=10
            )
        # Milliseconds of delay dwarf what is decided without any, so that one is written out.
        for x, first in zip(added[:1], each[:1], strict=True):
            ax.set_title(f"at {x:g} ms: {units.interval(first, signed=True)}")
        ax.grid(visible=True, axis="y")
        ax.set_xlabel("delay added to each answer of the cluster DNS, ms")
        ax.set_ylabel("mode 2 minus plain, ms")
        ax.annotate("mode 2 ahead below 0", (1, 0), xycoords=("axes fraction", "data"), xytext=(-2, -13),
                    textcoords="offset points", ha="right", fontsize=10, color="#444444")  # fmt: skip
        return ax


def stacked(table: pd.DataFrame, parts: Sequence[str], label: str, total: str = "total") -> Axes:
    """One bar per step, its parts end to end; the line at its end is the interval of the total."""
    shown = [part for part in parts if max(each.estimate for each in table[part]) > 0]
    with _axes(1.7 + 0.36 * len(table)) as ax:
        left = np.zeros(len(table))
        for part, (colour, hatch) in zip(shown, _SHADES, strict=False):
            width = np.maximum(_us([each.estimate for each in table[part]]), 0)
            ax.barh(
                range(len(table)), width, left=left, height=0.66, color=colour, hatch=hatch, edgecolor="#444444",
                linewidth=0.6, label=part,
            )  # fmt: skip
            left += width
        for y, (whole, arm) in enumerate(zip(table[total], table["arm"], strict=True)):
            _mark(ax, y, whole, str(arm), np.empty(0))
        _rows(ax, list(table["step"]))
        ax.set_xlim(0, None)
        ax.set_xlabel(label)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, columnspacing=1, handletextpad=0.4)
        return ax


def differences(table: pd.DataFrame, floor: stats.NoiseFloor | None, label: str = "difference of p50, µs") -> Axes:
    """One row per change: the paired difference with its interval; the band is what equal arms differ by."""
    with _axes(_tall(len(table))) as ax:
        if floor is not None:
            ax.axvspan(-_us(floor.absolute), _us(floor.absolute), color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for y, row in enumerate(table.to_dict("records")):
            _mark(ax, y, row["p50"].absolute, row["arm"], row["values"])
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
    arms = [arm for arm in LOOKS if arm in set(table["arm"])]
    with _axes(1.3 + (0.16 + 0.19 * len(arms)) * max(len(measures), 1)) as ax:
        if not measures:
            ax.set_axis_off()
            ax.set_title("not measured in this run")
            return ax
        floors = table.groupby("measure", sort=False)["noise floor, µs"].first().fillna(0)
        ax.barh(range(len(measures)), 2 * floors, left=-floors, height=0.94, color="#dddddd", zorder=0)
        ax.axvline(0, color="#222222", linewidth=1)
        for row in table.to_dict("records"):
            y = measures.index(row["measure"]) + 0.8 / len(arms) * (arms.index(row["arm"]) - (len(arms) - 1) / 2)
            _mark(ax, y, row[column].absolute, row["arm"], row["values"], spread=0.07)
        _rows(ax, measures)
        ax.set_xlabel(f"{label}, µs (grey: noise floor)" + _around_zero(ax, table, column, floors))
        shown = table.drop_duplicates("arm").set_index("arm")["mechanism"]
        handles = _arm_handles(arms)
        for handle, arm in zip(handles, arms, strict=True):
            handle.set_label(str(shown[arm]))
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(arms), handletextpad=0.3)
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
        ax.axhline(0, color="#222222", linewidth=1)
        ax.plot(table["added, µs"], table["residual, µs"], color=OTHER.colour, marker=OTHER.marker)
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
        for (name, each), line, shade in zip(
            shown.items(), ("-", "--", ":"), ("#222222", "#777777", "#222222"), strict=False
        ):
            sns.ecdfplot(x=each, ax=ax, label=name, linestyle=line, color=shade)
        ax.axvline(10, color="#bbbbbb", linewidth=1)
        ax.axvline(20, color="#bbbbbb", linewidth=1)
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
