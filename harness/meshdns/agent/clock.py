"""Judges the clock before it is trusted: its step, the cost of reading it, and the time that others take away."""

from __future__ import annotations

import itertools
import time
from array import array
from typing import Any

READS = 100_000  # enough for a stable 99th percentile, and done in a hundredth of a second
SPIN_NS = 1_000_000_000  # one second, so that the gaps read as a share of time
GAP_NS = 50_000  # two reads are 0.1 us apart; this is time that somebody else took


def judge() -> dict[str, Any]:
    """The facts of the clock; takes a little over a second."""
    now = time.monotonic_ns
    reads = array("q", bytes(8 * (READS + 1)))
    for k in range(READS + 1):
        reads[k] = now()
    costs = sorted(b - a for a, b in itertools.pairwise(reads))
    gaps = gap_ns = longest = 0
    last = now()
    end = last + SPIN_NS
    while last < end:
        t = now()
        if t - last > GAP_NS:
            gaps += 1
            gap_ns += t - last
            longest = max(longest, t - last)
        last = t
    return {
        "resolution_ns": time.get_clock_info("monotonic").resolution * 1e9,
        "cost_p50_ns": costs[READS // 2],
        "cost_p99_ns": costs[READS * 99 // 100],
        "gaps_over_50us": gaps,
        "gap_share": gap_ns / SPIN_NS,
        "longest_gap_ns": longest,
        "backwards": sum(cost < 0 for cost in costs),
    }
