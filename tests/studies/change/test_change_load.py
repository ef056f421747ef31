"""What becomes of single loads, by hand and with Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns.analysis import stats
from meshdns.studies.change import load as loads
from meshdns.studies.change.load import Change, Load
from meshdns.studies.change.spells import Spell

RATE_HZ = 100.0
STEP_NS = 10_000_000  # between requests at that rate
S = 10**9


def load(who: Sequence[str], ports: Sequence[int] | None = None, begin_ns: int = 7 * S) -> Load:
    """Requests one after another: the replica that serves each, or the outcome of one that fails."""
    n, served = len(who), np.array([each.startswith("shop") for each in who])
    due_ns = begin_ns + STEP_NS * np.arange(n)
    outcome = np.where(served, "ok", np.array(who, object))
    return Load(
        due_ns, due_ns + 2_000, due_ns + 1_002_000, outcome, np.where(served, 200, 503),
        np.where(served, np.array(who, object), ""), np.array(ports if ports is not None else range(1, n + 1)),
    )  # fmt: skip


def change(after: int, added: Sequence[str] = (), removed: Sequence[str] = (), begin_ns: int = 7 * S) -> Change:
    """A change just before request number `after` starts."""
    return Change(begin_ns + STEP_NS * after, begin_ns + STEP_NS * after + 1, tuple(added), tuple(removed))


REPLACED = {"added": ["shop-4"], "removed": ["shop-1"]}
# Ten seconds: four until the change, then one in three fails for 0.3 s, then the new replica serves.
TURNS = ["shop-1", "shop-2", "shop-3"]
FOLLOWED = [*TURNS * 10, *["reset", "shop-2", "shop-3"] * 10, *["shop-4", "shop-2", "shop-3"] * 20]


def test_a_replacement_is_timed_where_it_was_put() -> None:
    one, done = load(FOLLOWED), change(30, **REPLACED)
    assert loads.until_added(one, done) == 30 * STEP_NS + 2_000
    assert loads.until_left(one, done) == 0  # the last that it served started before
    assert loads.until_followed(one, done) == 30 * STEP_NS + 2_000
    assert loads.error_ns(one, done, RATE_HZ) == 10 * STEP_NS
    assert loads.failing_ns(one, done, RATE_HZ) == 28 * STEP_NS  # from the first of the ten to the last
    assert loads.kinds(one, done) == {"ok": 80, "reset": 10}


def test_what_never_happens_is_infinite_and_what_does_not_concern_is_no_number() -> None:
    stale = load(TURNS * 60)
    assert loads.until_added(stale, change(90, **REPLACED)) == np.inf
    assert loads.until_left(stale, change(90, **REPLACED)) == np.inf
    assert loads.until_followed(stale, change(90, removed=["shop-1"])) == np.inf
    elsewhere = load(["shop-2", "shop-3"] * 60)
    assert np.isnan(loads.until_left(elsewhere, change(60, removed=["shop-1"])))
    assert np.isnan(loads.until_followed(elsewhere, change(60, removed=["shop-1"])))
    assert np.isnan(loads.until_added(elsewhere, change(60, removed=["shop-1"])))
    assert loads.until_followed(elsewhere, change(60, added=["shop-4"])) == np.inf


def test_failures_until_the_end_are_never_followed() -> None:
    failing = load([*TURNS * 30, *["http_error", "shop-2", "shop-3"] * 60])
    assert loads.until_followed(failing, change(90, removed=["shop-1"])) == np.inf
    assert loads.until_left(failing, change(90, removed=["shop-1"])) == 0
    assert loads.kinds(failing, change(90, removed=["shop-1"]))["HTTP 503"] == 60


def test_connections_stay_or_move() -> None:
    ports = [1, 2, 3] * 60
    stayed = loads.stay(load(TURNS * 60, ports), change(90, removed=["shop-1"]))
    assert stayed == {"connections": 1, "stayed": 1, "requests_on_them": 30}
    moved = loads.stay(load([*TURNS * 30, *["shop-2", "shop-2", "shop-3"] * 30], ports), change(90, removed=["shop-1"]))
    assert moved == {"connections": 1, "stayed": 0, "requests_on_them": 0}
    new = loads.stay(load(TURNS * 60), change(90, removed=["shop-1"]))
    assert (new["connections"], new["stayed"]) == (30, 0)  # none of them is used twice


def test_a_request_under_way_that_fails_counts_although_it_started_before() -> None:
    one = load([*["shop-1"] * 10, "timeout", *["shop-2"] * 50])
    late = replace(one, end_ns=one.end_ns + np.where(one.outcome == "timeout", S // 4, 0))
    done = change(20, removed=["shop-1"])
    assert loads.error_ns(one, done, RATE_HZ) == 0
    assert loads.error_ns(late, done, RATE_HZ) == STEP_NS


requests = st.lists(
    st.sampled_from(["shop-1", "shop-2", "shop-4", "timeout", "reset", "http_error"]), min_size=2, max_size=80
)


@st.composite
def cases(draw: Any) -> tuple[Load, Change]:
    """A load, and a change somewhere in it."""
    who = draw(requests)
    ports = draw(st.lists(st.integers(1, 4), min_size=len(who), max_size=len(who)))
    added = draw(st.sampled_from([(), ("shop-4",)]))
    removed = draw(st.sampled_from([(), ("shop-1",)]))
    return load(who, ports), change(draw(st.integers(1, len(who) - 1)), added, removed)


@given(cases())
def test_what_starts_after_a_change_was_followed_is_served_as_it_should_be(case: tuple[Load, Change]) -> None:
    one, done = case
    followed_ns = loads.until_followed(one, done)
    if np.isfinite(followed_ns):
        after = one.start_ns > done.at_ns + followed_ns
        assert one.ok[after].all()
        assert not one.served_by(done.removed)[after].any()
        assert not done.added or one.served_by(done.added)[one.start_ns <= done.at_ns + followed_ns].any()
    parts = [loads.until_added(one, done), loads.until_left(one, done)]
    if not np.isnan(followed_ns):
        assert all(np.isnan(each) or each <= followed_ns for each in parts if np.isfinite(each))


@given(cases())
def test_a_span_holds_its_failures(case: tuple[Load, Change]) -> None:
    one, done = case
    failed_ns, span_ns = loads.error_ns(one, done, RATE_HZ), loads.failing_ns(one, done, RATE_HZ)
    assert failed_ns <= span_ns <= len(one.ok) * STEP_NS
    assert (failed_ns == 0) == (span_ns == 0)
    counted = loads.kinds(one, done)
    assert sum(number for name, number in counted.items() if name != "ok") * STEP_NS == failed_ns


@given(cases(), st.integers(-(10**9), 10**15))
def test_the_clock_may_start_anywhere(case: tuple[Load, Change], shift_ns: int) -> None:
    one, done = case
    instants = {name: getattr(one, name) + shift_ns for name in ("due_ns", "start_ns", "end_ns")}
    moved = replace(one, **instants), replace(done, at_ns=done.at_ns + shift_ns, done_ns=done.done_ns + shift_ns)
    for measure in (loads.until_added, loads.until_left, loads.until_followed):
        assert measure(one, done) == pytest.approx(measure(*moved), nan_ok=True)
    assert loads.stay(one, done) == loads.stay(*moved)


@given(cases())
def test_no_more_connections_stay_than_there_were(case: tuple[Load, Change]) -> None:
    one, done = case
    found = loads.stay(one, done)
    assert 0 <= found["stayed"] <= found["connections"] <= len(set(one.local_port))
    assert found["requests_on_them"] <= one.served_by(done.removed)[one.start_ns >= done.at_ns].sum()
    assert (found["stayed"] == 0) == (found["requests_on_them"] == 0)


@given(st.lists(st.one_of(st.floats(0, 1e10), st.just(np.inf)), min_size=1, max_size=20))
def test_a_median_knows_what_never_ended_and_a_mean_does_not(values: list[float]) -> None:
    spell = Spell(np.array(values))
    if spell.never:
        assert spell.interval is None
        assert np.isinf(spell.p50) or spell.never * 2 < spell.n
    else:
        assert spell.interval == stats.interval(values)
    assert min(values) <= spell.p50 <= max(values)
