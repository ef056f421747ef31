"""Pure functions on arrays: one quantile per run and block in, intervals over blocks out.

The block is the unit of replication: requests inside a cell are not independent, so an interval made from them would be
far too narrow. What cannot be known (one block, no value) is an infinite interval, not an exception and not a zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from meshdns.core import errors, units

Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # the usual level; stated beside every interval
POWER = 0.80  # the usual chance of seeing an effect that is there


@dataclass(frozen=True)
class Interval(units.Spread):
    """An estimate and the bounds that hold it at CONFIDENCE."""

    n: int  # blocks

    @property
    def half_width(self) -> float:
        """Half the distance of the bounds; infinite with less than two blocks."""
        return (self.high - self.low) / 2

    @property
    def sd(self) -> float:
        """The spread of the values it was made of; infinite with less than two blocks."""
        return self.half_width * math.sqrt(self.n) / _t(self.n) if self.n > 1 else math.inf

    def holds(self, value: float) -> bool:
        """Whether the value lies within the bounds."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Pooled:
    """A quantile over all blocks together, in the place of an interval that no block has the samples for."""

    value_ns: float  # NaN of too few in all


@dataclass(frozen=True)
class Difference:
    """b minus a, paired inside blocks."""

    absolute: Interval  # in the unit of the values
    relative: Interval  # fraction of a, from the ratio in each block; 0.031 is 3.1 % more

    @property
    def clear(self) -> bool:
        """Whether zero lies outside the interval; whether it is above the noise floor is another question."""
        return not self.absolute.holds(0.0)


@dataclass(frozen=True)
class NoiseFloor:
    """The largest difference that two arms which are the same could still have."""

    absolute: float
    relative: float
    difference: Difference  # the A/A comparison it comes from

    def hides(self, difference: Difference) -> bool:
        """Whether the difference is not larger than what equal arms show, as a duration or as a share.

        Noise grows with what is measured: microseconds found between two short requests are too few for long ones.
        """
        share = difference.relative.estimate
        hidden = -share <= self._less if share < 0 else share <= self.relative
        return self.hides_duration(difference) or (hidden and self.relative < math.inf)

    @property
    def _less(self) -> float:
        """The largest share by which either of two equal arms may be less than the other: never all of it.

        So that a floor of 100 % and more, which two short requests may well have, does not hide whatever is faster.
        """
        found = self.difference.relative
        return max(-found.low if found.low > -1 else 0.0, found.high / (1 + found.high) if found.high > 0 else 0.0)

    def hides_duration(self, difference: Difference) -> bool:
        """Whether it is not larger than that in the unit of the values."""
        return abs(difference.absolute.estimate) <= self.absolute


@dataclass(frozen=True)
class Line:
    """A straight line fitted in each block; intervals over blocks."""

    slope: Interval
    intercept: Interval
    residuals: tuple[float, ...]  # of each point, averaged over blocks, from the mean line

    @property
    def residual(self) -> float:
        """The largest distance from the line."""
        return max((abs(each) for each in self.residuals), default=math.nan)


@dataclass(frozen=True)
class BreakEven:
    """Where a difference that changes with the delay passes through zero."""

    delay: Interval | None  # None unless the slope is clear and the line crosses zero at a positive delay
    measured: bool  # whether the delay lies among those measured (False: extrapolated, or none)
    line: Line


def quantiles_by_group(values: ArrayLike, group: ArrayLike, probabilities: Sequence[float]) -> Floats:
    """One row per group 0..max, one column per probability; NaN for a group without values."""
    array, codes = np.asarray(values), np.asarray(group)
    if array.shape != codes.shape or array.ndim != 1:
        raise errors.DataError(f"{array.shape} values for {codes.shape} groups", place="quantiles_by_group")
    if codes.size and np.any(codes[1:] < codes[:-1]):  # rows as stored are in order already
        order = np.argsort(codes, kind="stable")
        array, codes = array[order], codes[order]
    edges = np.searchsorted(codes, np.arange(int(codes[-1]) + 2 if codes.size else 1))
    out = np.full((len(edges) - 1, len(probabilities)), np.nan)
    for row, (begin, end) in enumerate(itertools.pairwise(edges)):
        if end > begin:
            out[row] = np.quantile(array[begin:end], probabilities, method="linear")
    return out


def interval(values: ArrayLike) -> Interval:
    """Student's t interval of the mean of one value per block."""
    array = _finite(values, "interval")
    t = _t(array.size)
    if not array.size:
        return Interval(math.nan, -math.inf, math.inf, 0)
    mean = float(array.mean())
    half_width = t * float(array.std(ddof=1)) / math.sqrt(array.size) if array.size > 1 else math.inf
    return Interval(mean, mean - half_width, mean + half_width, int(array.size))


def paired(a: ArrayLike, b: ArrayLike) -> Difference:
    """B minus a, where a[i] and b[i] are of the same block."""
    first, second = _finite(a, "paired"), _finite(b, "paired")
    if first.shape != second.shape:
        raise errors.DataError(f"{first.size} and {second.size} blocks cannot be paired", place="paired")
    if np.all(first > 0):
        relative = interval(second / first - 1)
    else:  # a fraction of nothing has no meaning
        relative = Interval(math.nan, -math.inf, math.inf, int(first.size))
    return Difference(interval(second - first), relative)


def noise_floor(a: ArrayLike, twin: ArrayLike) -> NoiseFloor:
    """The bound on |difference| that the A/A pairs still allow: the farther end of their interval."""
    difference = paired(a, twin)
    farther = [max(abs(each.low), abs(each.high)) for each in (difference.absolute, difference.relative)]
    return NoiseFloor(absolute=farther[0], relative=farther[1], difference=difference)


def minimum_detectable(sd: float, n: int) -> float:
    """The smallest true difference that n blocks find with the usual power, sd being that of the paired differences."""
    if n < 2:
        return math.inf
    return float((_t(n) + scipy_stats.t.ppf(POWER, n - 1)) * sd / math.sqrt(n))


def slope_intercept(x: ArrayLike, y: ArrayLike) -> Line:
    """The line through y (blocks by points) against x (points), fitted in each block."""
    points, slopes, intercepts = _fits(x, y)
    mean_line = intercepts.mean() + slopes.mean() * points if len(slopes) else np.full(points.shape, np.nan)
    observed = np.atleast_2d(np.asarray(y, dtype=float)).mean(axis=0) if len(slopes) else mean_line
    residuals = tuple(float(each) for each in observed - mean_line)
    return Line(interval(slopes), interval(intercepts), residuals)


def break_even(delays: ArrayLike, differences: ArrayLike) -> BreakEven:
    """The delay at which differences (blocks by delays; candidate minus reference) pass through zero.

    A line is fitted in each block. The interval holds every delay at which the t interval over the blocks' lines
    includes zero (Fieller), because the mean of the blocks' own roots is dragged away by any block whose line is nearly
    level.
    """
    points, slopes, intercepts = _fits(delays, differences)
    line = slope_intercept(delays, differences)
    root = None if line.slope.holds(0.0) else _fieller(slopes, intercepts)
    if root is None or root.high <= 0:
        return BreakEven(None, False, line)
    return BreakEven(root, bool(points.min() <= root.estimate <= points.max()), line)


def littles_residual(in_flight: ArrayLike, expected: ArrayLike) -> Floats:
    """By how much the mean number of requests in flight (rate times mean time) misses what it must be, as a share."""
    found, must = np.asarray(in_flight, dtype=float), np.asarray(expected, dtype=float)
    out = np.full(np.broadcast(found, must).shape, np.nan)
    np.divide(found - must, must, out=out, where=must > 0)
    return out


def steady(start_ns: ArrayLike, end_ns: ArrayLike, edge: float = 0.1) -> tuple[float, float]:
    """Time spent in flight (ns) in the middle of an open loop: as seen there, and by those that arrived there.

    Over the whole run the two are equal by arithmetic. Without the first and last `edge` of its time they are equal
    only while as many requests end as begin: where work piles up, those that arrive stay longer than the middle shows.
    """
    start, end = _spans(start_ns, end_ns, "steady")
    if not start.size:
        return math.nan, math.nan
    begin, finish = start.max() * edge, start.max() * (1 - edge)  # they count from the first
    seen = np.clip(np.minimum(end, finish) - np.maximum(start, begin), 0, None).sum()
    arrived = (start >= begin) & (start < finish)
    return float(seen), float((end - start)[arrived].sum())


def _t(n: int) -> float:
    return float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) if n > 1 else math.inf


def _finite(values: ArrayLike, place: str) -> Floats:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not np.all(np.isfinite(array)):
        raise errors.DataError(
            f"needs one finite value per block; shape {array.shape}, {int((~np.isfinite(array)).sum())} not finite",
            place=place,
            step="leave out blocks without a value in either arm",
        )
    return array


def _spans(start_ns: ArrayLike, end_ns: ArrayLike, place: str) -> tuple[Floats, Floats]:
    """Both ends as floats counted from the first start, so that large clock values lose no nanosecond."""
    start, end = np.asarray(start_ns, dtype=np.int64), np.asarray(end_ns, dtype=np.int64)
    if start.shape != end.shape or start.ndim != 1:
        raise errors.DataError(f"{start.shape} starts and {end.shape} ends", place=place)
    origin = start.min() if start.size else 0
    return (start - origin).astype(float), (end - origin).astype(float)


def _fits(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats, Floats]:
    points, rows = np.asarray(x, dtype=float), np.atleast_2d(np.asarray(y, dtype=float))
    if points.ndim != 1 or rows.ndim != 2 or rows.shape[1] != points.size or not np.all(np.isfinite(rows)):
        raise errors.DataError(
            f"a line needs finite y (blocks by points) for x, got {rows.shape}, {points.shape}", place="line fit"
        )
    if np.unique(points).size < 2:
        raise errors.DataError("a line needs two different x", place="line fit", step="measure at least two levels")
    centred = points - points.mean()
    slopes = rows @ centred / (centred @ centred)
    return points, slopes, rows.mean(axis=1) - slopes * points.mean()


def _fieller(slopes: Floats, intercepts: Floats) -> Interval:
    """All x where mean(intercept + slope·x) is within t standard errors of zero; bounded, as the slope is clear."""
    n = len(slopes)
    scale = _t(n) ** 2 / n
    covariance = np.cov(slopes, intercepts)
    slope, intercept = float(slopes.mean()), float(intercepts.mean())
    a = slope**2 - scale * covariance[0, 0]
    b = slope * intercept - scale * covariance[0, 1]
    c = intercept**2 - scale * covariance[1, 1]
    width = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval(-intercept / slope, (-b - width) / a, (-b + width) / a, n)
