"""Shares of requests, and how they print.

The block is the unit here too: Student's t over one share per block, cut at 0 and 1. Where no block differs from
another (all requests of all blocks were served) their spread says nothing; then Wilson's interval of all requests takes
its place, and for differences Newcombe's of two of them.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from meshdns.analysis import cells, stats, text
from meshdns.core import units


class Share(stats.Interval):
    """A share of requests."""

    def __str__(self) -> str:
        """`97.3 % [96.1, 98.4]`."""
        return units.percent_interval(self).lstrip("+") if self.n and math.isfinite(self.estimate) else text.ABSENT


class Points(stats.Interval):
    """A difference of shares, in percentage points."""

    def __str__(self) -> str:
        """`+9.8 points [9.1, 10.5]`."""
        known = self.n and math.isfinite(self.estimate)
        return units.percent_interval(self).replace(" %", " points") if known else text.ABSENT

    @property
    def span(self) -> str:
        """`-1.1 to +1.1 points`: its bounds."""
        return units.percent_span(self).replace(" %", " points")


def wilson(hits: float, n: float, blocks: int) -> Share:
    """Wilson's interval of a share, as if requests were independent; `blocks` is only noted."""
    if not n:
        return Share(math.nan, -math.inf, math.inf, blocks)
    z = float(scipy_stats.norm.ppf((1 + stats.CONFIDENCE) / 2))
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = min(middle - half_width, share), max(middle + half_width, share)  # rounding must not leave it outside
    return Share(share, max(low, 0.0), min(high, 1.0), blocks)


def interval(hits: ArrayLike, n: ArrayLike) -> Share:
    """The share over blocks; blocks without requests are left out."""
    counted, asked = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    counted, asked = counted[asked > 0], asked[asked > 0]
    shares = counted / asked
    if _alike(shares):
        return wilson(float(counted.sum()), float(asked.sum()), len(shares))
    found = Share(*dataclasses.astuple(stats.interval(shares)))
    return found if found.n < 2 else dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def difference(a: pd.DataFrame, b: pd.DataFrame) -> Points | None:
    """Share of b minus share of a, paired inside blocks; both have `hits` and `n` and blocks as index.

    None if no block has both.
    """
    both = a[["hits", "n"]].add_suffix(" a").join(b[["hits", "n"]].add_suffix(" b"), how="inner")
    both = both[(both["n a"] > 0) & (both["n b"] > 0)]
    if both.empty:
        return None
    first, second = (both[f"hits {name}"] / both[f"n {name}"] for name in ("a", "b"))
    if not _alike((second - first).to_numpy(dtype=float)):
        return Points(*dataclasses.astuple(stats.paired(first, second).absolute))
    one, two = (wilson(both[f"hits {name}"].sum(), both[f"n {name}"].sum(), len(both)) for name in ("a", "b"))
    found = two.estimate - one.estimate
    low = found - math.hypot(one.high - one.estimate, two.estimate - two.low)
    high = found + math.hypot(one.estimate - one.low, two.high - two.estimate)
    return Points(found, low, high, len(both))


def _alike(values: cells.Values) -> bool:
    """Whether no block differs from another, and there are several."""
    return len(values) > 1 and bool(np.ptp(values) < 1e-12)


def reading(each: Points | None) -> str:
    """What may be said of a difference of shares."""
    if each is None:
        return "not measured"
    if each.n < 2:
        return "one block: no interval"
    if each.holds(0.0):
        return f"{text.UNRESOLVED} ({each.span})"
    return "fewer" if each.estimate < 0 else "more"
