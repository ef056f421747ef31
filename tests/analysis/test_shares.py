"""Shares of requests: their intervals, over blocks and of requests, and how they read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from meshdns.analysis import shares, text


def test_a_share_has_students_interval_over_blocks_cut_at_its_bounds() -> None:
    found = shares.interval([90, 95, 100], [100, 100, 100])
    assert found.estimate == pytest.approx(0.95)
    assert found.low == pytest.approx(0.95 - 4.302653 * 0.05 / np.sqrt(3), abs=1e-6)
    assert found.high == 1.0
    assert str(found) == "95 % [83, 100]"


def test_blocks_that_are_alike_have_the_interval_of_their_requests() -> None:
    found = shares.interval([100, 100], [100, 100])
    assert (found.estimate, found.n) == (1.0, 2)
    assert found.low == pytest.approx(200 / (200 + 1.959964**2), abs=1e-6)
    assert found.high == 1.0
    assert shares.interval([0, 0], [50, 50]).low == 0.0
    assert shares.wilson(10, 100, 1).low == pytest.approx(0.05523, abs=1e-5)  # as tables of Wilson's have it
    assert shares.wilson(10, 100, 1).high == pytest.approx(0.17437, abs=1e-5)


def test_one_block_has_no_interval_and_none_no_share() -> None:
    assert str(shares.interval([9], [10])) == "90.0 % [?, ?]"
    assert str(shares.interval([], [])) == text.ABSENT
    assert str(shares.interval([0, 0], [0, 0])) == text.ABSENT
    assert shares.interval([5, 0], [10, 0]).n == 1


def counts(*hits: int, n: int = 100) -> pd.DataFrame:
    return pd.DataFrame({"hits": hits, "n": [n] * len(hits)}, index=range(len(hits)))


def test_differences_of_shares_are_paired_in_blocks() -> None:
    found = shares.difference(counts(50, 60, 70), counts(60, 71, 79))
    assert found is not None
    assert (found.estimate, found.n) == (pytest.approx(0.10), 3)
    assert found.high - found.low < 0.06  # the blocks themselves differ by 0.2
    assert shares.reading(found) == "more"
    assert shares.reading(shares.difference(counts(60, 71, 79), counts(50, 60, 70))) == "fewer"
    assert shares.difference(counts(50, 60), counts(50).rename(index={0: 9})) is None
    assert shares.reading(None) == "not measured"
    assert shares.reading(shares.difference(counts(5), counts(9))) == "one block: no interval"


def test_differences_that_are_alike_in_all_blocks_are_bounded_by_their_requests() -> None:
    found = shares.difference(counts(100, 100), counts(100, 100))
    assert found is not None
    assert found.low < 0 < found.high
    assert shares.reading(found) == "not resolved (-1.9 to +1.9 points)"
    total = shares.difference(counts(0, 0), counts(100, 100))
    assert total is not None
    assert (total.estimate, round(total.high, 6)) == (1.0, 1.0)
    assert 0.95 < total.low < 1
