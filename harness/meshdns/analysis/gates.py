"""What a self-test found, held against what it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshdns.analysis import stats

GREEN, AMBER, RED, UNMEASURED = "green", "amber", "red", "not measured"
UNKNOWN = "unknown"  # measured, and cannot be told: too widely, or beside what is not its like
MISSED = "missed"  # a bar that more or quieter measuring would meet: what was found holds, but is less sure than asked
STATED = "stated"  # no gate: worth knowing, and can neither pass nor fail


@dataclass(frozen=True)
class Check:
    """What was checked, the verdict, and the numbers that it came from."""

    item: str
    verdict: str = UNMEASURED
    values: Mapping[str, Any] = field(default_factory=dict)


def judge(passed: bool, otherwise: str = RED) -> str:
    """Green, or what it is otherwise."""
    return GREEN if passed else otherwise


def within(found: stats.Interval, low: float, high: float, otherwise: str = RED) -> str:
    """Green where the whole interval lies within the limits, unknown where it reaches out of them, else not passed.

    An interval wider than its limits can never pass: what nothing could have failed is no check.
    """
    if not found.n or not low <= found.estimate <= high:
        return otherwise if found.n else UNMEASURED
    return GREEN if low <= found.low and found.high <= high else UNKNOWN


def fact(facts: Mapping[str, Any], name: str) -> float:
    """That fact, if it is a number; else NaN."""
    found = facts.get(name)
    return float(found) if isinstance(found, int | float) else math.nan
