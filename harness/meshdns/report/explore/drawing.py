"""Numbers of a selection as one picture: a row per phase, distributions left, blocks with intervals right."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from meshdns.analysis import looks, stats
from meshdns.core import units

WIDTH_IN, DPI = 10.5, 110  # fills a JupyterLab cell on a laptop
PANEL_IN, LINE_IN, EDGE_IN = 2.6, 0.24, 0.9  # height of the least panel, of a line in it, and of what is around it
LINES = ("-", "--", ":", "-.")  # tell apart series of one arm, whose colour is the same
WIDE = 4  # a linear axis over more than this ratio hides the small values
NOT_MEASURED = "nothing measured here"


def draw(curves: pd.DataFrame, per_block: pd.DataFrame, numbers: pd.DataFrame) -> bytes:
    """The picture as PNG; takes what `numbers.ecdf`, `points` and `table` give."""
    phases = list(dict.fromkeys(per_block["phase"]))
    series = list(dict.fromkeys(per_block["series"]))
    percentiles = list(dict.fromkeys(per_block["percentile"]))
    panel_in = max(PANEL_IN, LINE_IN * len(series) * len(percentiles) + EDGE_IN)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure((WIDTH_IN, panel_in * max(len(phases), 1)), DPI, layout="constrained")
        if not phases:
            figure.text(0.5, 0.5, NOT_MEASURED, ha="center")
        for number, phase in enumerate(phases):
            left, right = (figure.add_subplot(len(phases), 2, 2 * number + side) for side in (1, 2))
            _curves(left, curves[curves["phase"] == phase], series, percentiles)
            _blocks(right, per_block[per_block["phase"] == phase], numbers[numbers["phase"] == phase])
            left.set_title(phase, loc="left", fontweight="bold")
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _curves(ax: Axes, curves: pd.DataFrame, series: Sequence[str], percentiles: Sequence[float]) -> None:
    """Share of requests up to a latency; the chosen percentiles are lines across."""
    seen = looks.of(curves)
    for name, curve in curves.groupby("series", sort=False):
        arm = str(curve["arm"].iloc[0])
        same = [each for each in series if each.split(",")[0] == arm]
        colour, line = seen[arm].colour, LINES[same.index(str(name)) % len(LINES)]
        ax.step(curve["latency_ns"], curve["share"], where="post", color=colour, linestyle=line, label=str(name))
    for percentile in percentiles:
        ax.axhline(percentile / 100, color="0.75", linewidth=0.8, zorder=0)
        ax.annotate(f"p{percentile:g}", (1, percentile / 100), xycoords="axes fraction", color="0.4", va="center")
    ax.set(ylim=(0, 1.02), ylabel="share of requests", xlabel="latency of a request")
    _latency_axis(ax, curves["latency_ns"])
    if len(curves):
        ax.legend(frameon=False, fontsize=8, loc="best")


def _blocks(ax: Axes, per_block: pd.DataFrame, numbers: pd.DataFrame) -> None:
    """A row per series and percentile: the blocks as points, their mean with its interval."""
    labels, seen = [], looks.of(per_block)
    for at, row in enumerate(numbers.itertuples(index=False)):
        mine = (per_block["series"] == row.series) & (per_block["percentile"] == row.percentile)
        look = seen[str(row.arm)]
        values = per_block.loc[mine, "value_ns"].dropna()
        ax.plot(values, [at] * len(values), "|", color=look.colour, alpha=0.45, markersize=7)
        labels.append(f"{row.series}  p{row.percentile:g}")
        if isinstance(row.interval, stats.Interval) and row.interval.n > 1:
            low = max(row.interval.low, 0.0)  # a latency is not negative, whatever Student says of few blocks
            ends = [low, row.interval.high]
            ax.plot(ends, [at, at], color=look.colour, linewidth=2.5, solid_capstyle="butt", alpha=0.9)
            ax.plot([row.interval.estimate], [at], look.marker, color=look.colour, markersize=5)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlabel("value of a block (ticks), mean and 95 % interval")
    _latency_axis(ax, per_block["value_ns"])


def _latency_axis(ax: Axes, values: pd.Series) -> None:
    """Logarithmic where values are positive and far apart; labels with their unit."""
    positive = values.dropna()
    if len(positive) and float(positive.min()) > 0 and float(positive.max()) > WIDE * float(positive.min()):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: units.duration(ns) if ns else "0"))
    ax.tick_params(axis="x", labelsize=8)
