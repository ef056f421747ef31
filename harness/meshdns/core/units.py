"""Numbers with their units: conversion and printing, here and nowhere else.

Times are nanoseconds inside and get a unit only when printed. Three significant digits, because a third repeat of a run
rarely agrees in the fourth. Intervals print as many digits as their half-width justifies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

Unit = Literal["ns", "µs", "ms", "s"]
NS_PER_UNIT: dict[Unit, int] = {"ns": 1, "µs": NS_PER_US, "ms": NS_PER_MS, "s": NS_PER_S}

SIGNIFICANT_DIGITS = 3  # see the module docstring
UNKNOWN = "?"  # printed for what one block cannot tell, so that it is never taken for a zero


@dataclass(frozen=True)
class Spread:
    """What an interval must show to be printed; a bound that is not known is infinite."""

    estimate: float
    low: float
    high: float


def unit_for(values_ns: Iterable[float]) -> Unit:
    """The one unit for a row of durations: the largest in which the largest value is at least 1."""
    largest = max((abs(value) for value in values_ns if math.isfinite(value)), default=0.0)
    fitting: list[Unit] = [unit for unit, ns in NS_PER_UNIT.items() if _rounded(largest / ns) >= 1]
    return fitting[-1] if fitting else "ns"


def number(value: float) -> str:
    """Three significant digits, never an exponent, `?` for what is not finite."""
    if not math.isfinite(value):
        return UNKNOWN
    return _fixed(value, _decimals(value))


def duration(ns: float, unit: Unit | None = None) -> str:
    """`412 µs`, in the given unit or the one that suits the value."""
    unit = unit or unit_for([ns])
    return f"{number(ns / NS_PER_UNIT[unit])} {unit}"


def rate(hz: float) -> str:
    """`1310 /s`: requests or queries per second."""
    return f"{number(hz)} /s"


def percent(fraction: float, *, signed: bool = False) -> str:
    """`3.10 %`, or `+3.10 %` for a difference."""
    return f"{_signed(fraction * 100) if signed else number(fraction * 100)} %"


def interval(spread: Spread, unit: Unit | None = None, *, signed: bool = False) -> str:
    """`412 ± 9 µs` for a duration in nanoseconds, `+12 ± 9 µs` for a difference."""
    half_width = (spread.high - spread.low) / 2
    known = math.isfinite(half_width)
    unit = unit or unit_for([spread.estimate, half_width])
    estimate, half_width = spread.estimate / NS_PER_UNIT[unit], half_width / NS_PER_UNIT[unit]
    if not known:
        return f"{_signed(estimate) if signed else number(estimate)} ± {UNKNOWN} {unit}"
    decimals = _shared_decimals(estimate, half_width)
    return f"{_fixed(estimate, decimals, '+' if signed else '')} ± {_fixed(half_width, decimals)} {unit}"


def percent_interval(spread: Spread) -> str:
    """`+3.1 % [2.0, 4.2]` for a relative difference given as a fraction."""
    estimate, low, high = (100 * value for value in (spread.estimate, spread.low, spread.high))
    if not math.isfinite(high - low):
        return f"{_signed(estimate)} % [{UNKNOWN}, {UNKNOWN}]"
    decimals = _shared_decimals(estimate, (high - low) / 2)
    return f"{_fixed(estimate, decimals, '+')} % [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def span(spread: Spread) -> str:
    """`-240 to +20 µs`: the bounds of a difference given in nanoseconds."""
    unit = unit_for([spread.low, spread.high])
    return f"{_bounds(spread, NS_PER_UNIT[unit])} {unit}"


def percent_span(spread: Spread) -> str:
    """`-1.2 to +3.4 %`: the bounds of a difference given as a fraction."""
    return f"{_bounds(spread, 0.01)} %"


def _bounds(spread: Spread, unit: float) -> str:
    low, high = spread.low / unit, spread.high / unit
    if not math.isfinite(high - low):
        return f"{UNKNOWN} to {UNKNOWN}"
    decimals = _shared_decimals((low + high) / 2, (high - low) / 2)
    return f"{_fixed(low, decimals, '+')} to {_fixed(high, decimals, '+')}"


def _signed(value: float) -> str:
    return _fixed(value, _decimals(value), "+") if math.isfinite(value) else UNKNOWN


def _fixed(value: float, decimals: int, sign: Literal["", "+"] = "") -> str:
    """The value rounded, before the decimal point too (12345 to 12300 with -2 decimals); zero has no sign."""
    rounded = round(value, decimals) + 0.0  # + 0.0 turns a negative zero into zero
    return f"{rounded:{sign if rounded else ''}.{max(decimals, 0)}f}"


def _rounded(value: float) -> float:
    return round(value, _decimals(value))


def _decimals(value: float, digits: int = SIGNIFICANT_DIGITS) -> int:
    """How many decimals show so many significant digits, negative for large values; zero needs none."""
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])  # after rounding: 999.6 counts as 1000
    return digits - 1 - exponent


def _shared_decimals(estimate: float, half_width: float) -> int:
    """Those that the half-width justifies, up to three significant digits of the estimate, but never hiding the former.

    One digit of the half-width, two where it begins with 1 or 2 (there one digit alone would be off by up to a third).
    """
    if half_width == 0:
        return _decimals(estimate)
    one_digit = _decimals(half_width, 1)
    leads_small = round(half_width, one_digit + 1) * 10.0**one_digit < 3
    justified = one_digit + 1 if leads_small else one_digit
    return max(min(justified, _decimals(estimate)), one_digit) if estimate else justified
