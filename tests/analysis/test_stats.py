import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from meshdns.analysis import stats
from meshdns.core import errors, units

values = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=30)


def close(a: float, b: float, scale: float = 1.0) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-7 * scale)


def test_interval_agrees_with_scipy() -> None:
    data = [3.0, 5.0, 4.0, 8.0]
    found = stats.interval(data)
    low, high = scipy_stats.t.interval(0.95, 3, np.mean(data), scipy_stats.sem(data))
    assert (found.estimate, found.n) == (5.0, 4)
    assert close(found.low, low)
    assert close(found.high, high)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    held = [stats.interval(rng.normal(10, 3, 8)).holds(10) for _ in range(2_000)]
    assert 0.935 < np.mean(held) < 0.965  # three standard errors around 0.95


@given(values, st.floats(-1e5, 1e5), st.floats(0.1, 100))
def test_interval_moves_and_stretches_with_its_values(data: list[float], shift: float, scale: float) -> None:
    before, after = stats.interval(data), stats.interval([scale * x + shift for x in data])
    size = 1e6 * scale
    assert close(after.estimate, scale * before.estimate + shift, size)
    assert close(after.half_width, scale * before.half_width, size)


def test_one_block_knows_its_value_but_not_its_error() -> None:
    assert stats.interval([3.0]).estimate == 3.0
    assert math.isinf(stats.interval([3.0]).half_width)
    assert math.isnan(stats.interval([]).estimate)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=2, max_size=20), st.floats(0.01, 100))
def test_a_paired_difference_ignores_what_blocks_share(pairs: list[tuple[float, float]], scale: float) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    block = np.linspace(1, 2, len(a))
    before = stats.paired(a, b)
    assert close(stats.paired(b, a).absolute.estimate, -before.absolute.estimate, 1e6)
    shifted, stretched = (
        stats.paired(a + 1e3 * block, b + 1e3 * block),
        stats.paired(a * block * scale, b * block * scale),
    )
    assert close(shifted.absolute.half_width, before.absolute.half_width, 1e6)
    assert close(stretched.relative.estimate, before.relative.estimate, 1e6)
    assert close(stretched.relative.half_width, before.relative.half_width, 1e6)


def test_the_relative_difference_is_the_mean_of_the_blocks_ratios() -> None:
    difference = stats.paired([100.0, 200.0], [110.0, 240.0])
    assert close(difference.relative.estimate, 0.15)
    assert close(difference.absolute.estimate, 25.0)
    assert math.isnan(stats.paired([0.0, 1.0], [1.0, 1.0]).relative.estimate)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])])
def test_blocks_that_do_not_pair_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(errors.DataError):
        stats.paired(a, b)


def test_noise_floor_is_the_farther_end_and_hides_what_is_below() -> None:
    floor = stats.noise_floor([10.0, 10.0, 10.0], [10.1, 10.2, 10.3])
    assert floor.absolute == floor.difference.absolute.high > 0.2
    assert floor.hides(stats.paired([10.0, 10.0], [10.3, 10.3]))
    assert not floor.hides(stats.paired([10.0, 10.0], [9.0, 9.0]))


def test_a_noise_floor_hides_the_same_share_of_something_slower() -> None:
    floor = stats.noise_floor([10.0, 10.0, 10.0], [10.1, 10.2, 10.3])  # up to 4.5 %
    assert floor.hides(stats.paired([100.0, 100.0], [103.0, 103.0]))
    assert not floor.hides(stats.paired([100.0, 100.0], [106.0, 106.0]))
    wide = stats.noise_floor([10.0, 10.0], [8.0, 12.0])  # more than 100 %: of what is faster that is not all
    assert wide.relative > 1
    assert wide.hides(stats.paired([100.0, 100.0], [45.0, 45.0]))
    assert not wide.hides(stats.paired([5_000.0, 5_000.0], [40.0, 40.0]))
    shareless = stats.noise_floor([0.0, 0.0, 0.0], [0.1, 0.2, 0.3])  # of nothing there is no share
    assert not shareless.hides(stats.paired([10.0, 10.0], [11.0, 11.0]))


def test_an_interval_knows_the_spread_that_it_was_made_of() -> None:
    values = [3.0, 5.0, 4.0, 8.0]
    assert stats.interval(values).sd == pytest.approx(np.std(values, ddof=1))
    assert math.isinf(stats.interval([3.0]).sd)


def test_an_effect_of_the_detectable_size_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    for n in (6, 20):
        effect = stats.minimum_detectable(2.0, n)
        found = [not stats.interval(rng.normal(effect, 2.0, n)).holds(0) for _ in range(2_000)]
        assert 0.77 < np.mean(found) < 0.83
    assert math.isinf(stats.minimum_detectable(2.0, 1))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200), st.data())
def test_grouped_quantiles_are_those_of_each_group(data: list[int], draw: st.DataObject) -> None:
    group = draw.draw(st.lists(st.integers(0, 4), min_size=len(data), max_size=len(data)))
    found = stats.quantiles_by_group(data, group, (0.5, 0.99))
    for index in range(max(group) + 1):
        members = [value for value, at in zip(data, group, strict=True) if at == index]
        expected = np.quantile(members, (0.5, 0.99)) if members else (np.nan, np.nan)
        assert np.array_equal(found[index], expected, equal_nan=True)


def test_a_line_is_found_again() -> None:
    x = np.array([0.0, 50, 100, 500, 1000])
    line = stats.slope_intercept(x, [1.0 * x + 20, 1.0 * x + 22, 1.0 * x + 21])
    assert close(line.slope.estimate, 1.0)
    assert line.intercept.holds(21)
    assert line.residual < 1e-9
    bent = stats.slope_intercept([0.0, 1, 2], [[0.0, 3, 0]])
    assert close(bent.residual, 2.0)
    with pytest.raises(errors.DataError, match="two different x"):
        stats.slope_intercept([1.0, 1.0], [[1.0, 2.0]])


DELAYS = np.array([0.0, 1, 2, 5, 10])


def crossing(slope: float, at_zero: float, seed: int, blocks: int = 10) -> stats.BreakEven:
    rng = np.random.default_rng(seed)
    return stats.break_even(DELAYS, at_zero + slope * DELAYS + rng.normal(0, 0.3, (blocks, len(DELAYS))))


def test_break_even_covers_the_true_root() -> None:
    found = [crossing(-1.0, 3.0, seed) for seed in range(400)]
    assert all(each.measured for each in found)
    held = np.mean([each.delay is not None and each.delay.holds(3.0) for each in found])
    assert 0.92 < held < 0.98


@pytest.mark.parametrize(
    ("slope", "at_zero", "crosses"),
    [(1.0, 3.0, False), (0.0, 3.0, False), (-1.0, -3.0, False), (0.0, -3.0, False), (1.0, -3.0, True)],
)
def test_there_is_a_break_even_only_where_the_line_crosses_zero(slope: float, at_zero: float, crosses: bool) -> None:
    assert (crossing(slope, at_zero, seed=1).delay is not None) == crosses


@pytest.mark.parametrize("sign", [1, -1])
def test_two_blocks_with_unlike_slopes_do_not_tell_what_delays_do(sign: int) -> None:
    far_ahead = [50 - 900 * DELAYS, 50.2 - 1_100 * DELAYS]  # dearer without delay alone
    assert stats.break_even(DELAYS, sign * np.array(far_ahead)).delay is None


def test_break_even_beyond_the_delays_is_called_extrapolated() -> None:
    assert not crossing(-1.0, 30.0, seed=1).measured
    assert crossing(-1.0, 3.0, seed=1, blocks=1).delay is None


def test_littles_residual_is_the_share_that_is_missing() -> None:
    assert stats.littles_residual([0.9, 2.2], [1, 2]) == pytest.approx([-0.1, 0.1])
    assert np.isnan(stats.littles_residual([1.0], [0]))


def test_time_in_flight_of_a_steady_and_of_a_growing_load() -> None:
    start = 10**18 + np.arange(1_000) * 1_000  # a clock value at which floats no longer tell nanoseconds apart
    seen, arrived = stats.steady(start, start + 5_000)
    assert arrived / seen == pytest.approx(1, abs=0.01)
    seen, arrived = stats.steady(start, start + 5_000 + np.arange(1_000) * 500)  # the server is too slow
    assert arrived / seen > 1.1


def spread(estimate: float, half_width: float) -> stats.Interval:
    return stats.Interval(estimate, estimate - half_width, estimate + half_width, 9)


def test_numbers_print_with_three_digits_and_one_unit_a_row() -> None:
    assert units.duration(412_345) == "412 µs"
    assert units.duration(999_600) == "1.00 ms"
    assert units.duration(math.nan) == "? ns"
    assert (units.rate(1310.4), units.percent(0.0312, signed=True), units.percent(0)) == ("1310 /s", "+3.12 %", "0 %")


def test_intervals_print_the_digits_they_justify() -> None:
    assert units.interval(spread(412_345, 9_123)) == "412 ± 9 µs"
    assert units.interval(spread(412_345, 91)) == "412.35 ± 0.09 µs"
    assert units.interval(spread(50, 120_000), "µs", signed=True) == "0 ± 120 µs"
    assert units.interval(spread(412_345, math.inf)) == "412 ± ? µs"
    assert units.percent_interval(spread(0.031, 0.011)) == "+3.1 % [2.0, 4.2]"
    assert units.percent_interval(spread(-0.2, 0.05)) == "-20 % [-25, -15]"


@given(st.floats(1e-3, 1e12))
def test_a_printed_duration_is_within_half_a_percent(ns: float) -> None:
    text, unit = units.duration(ns).split(" ")
    assert float(text) * {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit] == pytest.approx(ns, rel=0.00501)
