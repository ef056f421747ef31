"""What figures are drawn with: axes in our style, rows of marks with their intervals, legends.

Colour and marker belong to the arm, everywhere the same, and differ in grey too. A dot is a block, the line through the
larger mark its 95 % interval. Axes of durations start at zero; what lies beyond an axis is counted in its label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from meshdns.analysis import absent, looks, stats
from meshdns.core import units

STYLE = Path(__file__).with_name("meshdns.mplstyle")
WIDTH = 6.4  # inches; see meshdns.mplstyle
VISIBLE_BLOCKS = 30  # up to so many blocks each is drawn; more would be a smear
FIGURE_LETTERS, AXES_LETTERS = 88, 68  # of a legend, as wide as the figure or as axes beside their labels
LANES = 3  # arms that a row has room for, side by side; with more of them it is taller


@contextmanager
def axes(height: float) -> Iterator[Axes]:
    """Axes of that height in inches, in our style."""
    with grid(1, 1, height) as places:
        yield places[0, 0]


@contextmanager
def grid(rows: int, columns: int, height: float, **how: Any) -> Iterator[Any]:
    """Axes in rows and columns, the whole of that height in inches, in our style."""
    # Loads the backend now: a notebook's switches to interactive when it loads, and leaving the style would undo that.
    plt.draw_if_interactive()  # type: ignore[no-untyped-call]
    with plt.style.context(STYLE):
        yield plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **how)[1]


def tall(rows: int) -> float:
    """Inches for so many rows of marks."""
    return 1.1 + 0.34 * rows


def us(values: Any) -> Any:
    """Nanoseconds as µs."""
    return np.asarray(values, dtype=float) / units.NS_PER_US


def mark(
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


def rows(ax: Axes, labels: Sequence[str]) -> None:
    """A row per label, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def from_zero(ax: Axes, frame: pd.DataFrame, label: str) -> None:
    """A zero-based axis of p50; outlying blocks must not press the rest together, and are counted in its label."""
    ends = [each.high if np.isfinite(each.high) else each.estimate for each in frame["p50"]]
    bulk = [np.quantile(each, 0.9) for each in frame["values"] if len(each)]
    right = 1.08 * float(us(np.nanmax([*ends, *bulk])))
    beyond = sum(int((us(each) > right).sum()) for each in frame["values"] if len(each) < VISIBLE_BLOCKS)
    ax.set_xlim(0, right)
    ax.set_xlabel(f"{label}, µs" + (f" ({beyond} of the blocks beyond the axis)" if beyond else ""))


def unmeasured(names: Sequence[str]) -> Axes:
    """An empty figure that says so, and what was not measured beside it: a published page has only the latter."""
    absent.tell(names)
    with axes(tall(0)) as ax:
        ax.set_axis_off()
        ax.set_title("not measured in this run")
        return ax


def legend(ax: Axes, handles: Sequence[Artist], columns: int) -> None:
    """A legend over the axes, flush with them."""
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handletextpad=0.3)


def arm_handles(seen: looks.Looks, arms: Sequence[str]) -> list[Line2D]:
    """A legend of arms."""
    return [
        Line2D([], [], color=seen[arm].colour, marker=seen[arm].marker, markersize=7, linewidth=2, label=arm)
        for arm in arms
    ]


def columns(labels: Iterable[str], letters: int = FIGURE_LETTERS) -> int:
    """How many of these labels a legend holds side by side; a mark takes as much as six letters."""
    lengths = [len(label) for label in labels]
    return max(min(len(lengths), letters // (max(lengths, default=0) + 6)), 1)


def known(each: Any) -> bool:
    """Whether there is an estimate to draw."""
    return isinstance(each, stats.Interval) and bool(np.isfinite(each.estimate))
