"""Notebook 05's tables and C14, on single loads and in worlds that follow a change fast, late, partly or never."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import changes_world
import measured
import policies_world
from changes_world import World
from meshdns import store
from meshdns.analysis import absent, figures, gates, stats, text
from meshdns.core import errors
from meshdns.lab import plane
from meshdns.measure import counters
from meshdns.measure.cell import Cell
from meshdns.measure.factors import change as changing
from meshdns.studies import changes, claims
from meshdns.studies.changes import Change, Load, Spell
from recording import Recording
from shipped import WORLD

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "05-following-change.ipynb"
RATE_HZ = 100.0
STEP_NS = 10_000_000  # between requests at that rate
S = 10**9


# --- one load ---


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
    return Change(begin_ns + STEP_NS * after, begin_ns + STEP_NS * after + 1, tuple(added), tuple(removed), 0.5 * S)


REPLACED = {"added": ["shop-4"], "removed": ["shop-1"]}
# Ten seconds: four until the change, then one in three fails for 0.3 s, then the new replica serves.
TURNS = ["shop-1", "shop-2", "shop-3"]
FOLLOWED = [*TURNS * 10, *["reset", "shop-2", "shop-3"] * 10, *["shop-4", "shop-2", "shop-3"] * 20]


def test_a_replacement_is_timed_where_it_was_put() -> None:
    one, done = load(FOLLOWED), change(30, **REPLACED)
    assert changes.until_added(one, done) == 30 * STEP_NS + 2_000
    assert changes.until_left(one, done) == 0  # the last that it served started before
    assert changes.until_followed(one, done) == 30 * STEP_NS + 2_000
    assert changes.error_ns(one, done, RATE_HZ) == 10 * STEP_NS
    assert changes.failing_ns(one, done, RATE_HZ) == 28 * STEP_NS  # from the first of the ten to the last
    assert changes.kinds(one, done) == {"ok": 80, "reset": 10}


def test_what_never_happens_is_infinite_and_what_does_not_concern_is_no_number() -> None:
    stale = load(TURNS * 60)
    assert changes.until_added(stale, change(90, **REPLACED)) == np.inf
    assert changes.until_left(stale, change(90, **REPLACED)) == np.inf
    assert changes.until_followed(stale, change(90, removed=["shop-1"])) == np.inf
    elsewhere = load(["shop-2", "shop-3"] * 60)
    assert np.isnan(changes.until_left(elsewhere, change(60, removed=["shop-1"])))
    assert np.isnan(changes.until_followed(elsewhere, change(60, removed=["shop-1"])))
    assert np.isnan(changes.until_added(elsewhere, change(60, removed=["shop-1"])))
    assert changes.until_followed(elsewhere, change(60, added=["shop-4"])) == np.inf


def test_failures_until_the_end_are_never_followed() -> None:
    failing = load([*TURNS * 30, *["http_error", "shop-2", "shop-3"] * 60])
    assert changes.until_followed(failing, change(90, removed=["shop-1"])) == np.inf
    assert changes.until_left(failing, change(90, removed=["shop-1"])) == 0
    assert changes.kinds(failing, change(90, removed=["shop-1"]))["HTTP 503"] == 60


def test_connections_stay_or_move() -> None:
    ports = [1, 2, 3] * 60
    stayed = changes.stay(load(TURNS * 60, ports), change(90, removed=["shop-1"]))
    assert stayed == changes.Stay(connections=1, stayed=1, requests=30)
    moved = changes.stay(
        load([*TURNS * 30, *["shop-2", "shop-2", "shop-3"] * 30], ports), change(90, removed=["shop-1"])
    )
    assert moved == changes.Stay(connections=1, stayed=0, requests=0)
    new = changes.stay(load(TURNS * 60), change(90, removed=["shop-1"]))
    assert (new.connections, new.stayed) == (30, 0)  # none of them is used twice


def test_a_request_under_way_that_fails_counts_although_it_started_before() -> None:
    one = load([*["shop-1"] * 10, "timeout", *["shop-2"] * 50])
    late = replace(one, end_ns=one.end_ns + np.where(one.outcome == "timeout", S // 4, 0))
    done = change(20, removed=["shop-1"])
    assert changes.error_ns(one, done, RATE_HZ) == 0
    assert changes.error_ns(late, done, RATE_HZ) == STEP_NS


loads = st.lists(
    st.sampled_from(["shop-1", "shop-2", "shop-4", "timeout", "reset", "http_error"]), min_size=2, max_size=80
)


@st.composite
def cases(draw: Any) -> tuple[Load, Change]:
    """A load, and a change somewhere in it."""
    who = draw(loads)
    ports = draw(st.lists(st.integers(1, 4), min_size=len(who), max_size=len(who)))
    added = draw(st.sampled_from([(), ("shop-4",)]))
    removed = draw(st.sampled_from([(), ("shop-1",)]))
    return load(who, ports), change(draw(st.integers(1, len(who) - 1)), added, removed)


@given(cases())
def test_what_starts_after_a_change_was_followed_is_served_as_it_should_be(case: tuple[Load, Change]) -> None:
    one, done = case
    followed_ns = changes.until_followed(one, done)
    if np.isfinite(followed_ns):
        after = one.start_ns > done.at_ns + followed_ns
        assert one.ok[after].all()
        assert not one.served_by(done.removed)[after].any()
        assert not done.added or one.served_by(done.added)[one.start_ns <= done.at_ns + followed_ns].any()
    parts = [changes.until_added(one, done), changes.until_left(one, done)]
    if not np.isnan(followed_ns):
        assert all(np.isnan(each) or each <= followed_ns for each in parts if np.isfinite(each))


@given(cases())
def test_a_span_holds_its_failures(case: tuple[Load, Change]) -> None:
    one, done = case
    failed_ns, span_ns = changes.error_ns(one, done, RATE_HZ), changes.failing_ns(one, done, RATE_HZ)
    assert failed_ns <= span_ns <= len(one.ok) * STEP_NS
    assert (failed_ns == 0) == (span_ns == 0)
    counted = changes.kinds(one, done)
    assert sum(number for name, number in counted.items() if name != "ok") * STEP_NS == failed_ns


@given(cases(), st.integers(-(10**9), 10**15))
def test_the_clock_may_start_anywhere(case: tuple[Load, Change], shift_ns: int) -> None:
    one, done = case
    instants = {name: getattr(one, name) + shift_ns for name in ("due_ns", "start_ns", "end_ns")}
    moved = replace(one, **instants), replace(done, at_ns=done.at_ns + shift_ns, done_ns=done.done_ns + shift_ns)
    for measure in (changes.until_added, changes.until_left, changes.until_followed):
        assert measure(one, done) == pytest.approx(measure(*moved), nan_ok=True)
    assert changes.stay(one, done) == changes.stay(*moved)


@given(cases())
def test_no_more_connections_stay_than_there_were(case: tuple[Load, Change]) -> None:
    one, done = case
    found = changes.stay(one, done)
    assert 0 <= found.stayed <= found.connections <= len(set(one.local_port))
    assert found.requests <= one.served_by(done.removed)[one.start_ns >= done.at_ns].sum()
    assert (found.stayed == 0) == (found.requests == 0)


@given(st.lists(st.one_of(st.floats(0, 1e10), st.just(np.inf)), min_size=1, max_size=20))
def test_a_median_knows_what_never_ended_and_a_mean_does_not(values: list[float]) -> None:
    spell = Spell(np.array(values))
    if spell.never:
        assert spell.interval is None
        assert np.isinf(spell.p50) or spell.never * 2 < spell.n
    else:
        assert spell.interval == stats.interval(values)
    assert min(values) <= spell.p50 <= max(values)


# --- runs ---


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return changes_world.runs(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("other"), blocks=2)  # the quick plan


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., store.Runs]:
    def made(blocks: int = 3, **how: Any) -> store.Runs:
        return changes_world.runs(tmp_path, World(**how), blocks)

    return made


def row(found: pd.DataFrame, *levels: str) -> dict[str, Any]:
    """The row of this change, backend, arm and connection."""
    names = ("change", "backend", "arm", "connection")
    only = changes.of(found, **dict(zip(names, levels, strict=False)))
    assert len(only) == 1
    return only[0]


def following(**how: float) -> dict[str, float]:
    return World().follows | how


@pytest.mark.parametrize(
    ("backend", "arm", "way"),
    [
        ("shop", "mode1-xds", "EDS"),
        ("shop-headless", "mode2-xds", "ORIGINAL_DST"),
        ("shop-headless", "mode2-envoy-xds", "ORIGINAL_DST"),
        ("shop-dns", "mode1-xds", "STRICT_DNS"),
        ("shop-headless", "plain", "client's DNS"),
    ],
)
def test_how_fast_is_followed_is_found_where_it_was_put(usual: store.Runs, backend: str, arm: str, way: str) -> None:
    table, truth_s = changes.followed(usual), World().follows[way]
    for name in changes.SAID:
        found = row(table, name, backend, arm, "new")
        assert found["endpoints"] == way
        assert found["followed"].p50 == pytest.approx(truth_s * S, rel=0.1)
        assert found["followed"].interval.estimate == pytest.approx(truth_s * S, rel=0.1)
        assert found["blocks"] == found["followed"].n == 4
    killed = row(table, "crash", backend, arm, "new")
    assert killed["errors"].p50 == pytest.approx(truth_s / 3 * S, rel=0.15)  # one replica in three
    assert killed["failing"].p50 == pytest.approx(truth_s * S, rel=0.15)
    assert not row(table, "unready", backend, arm, "new")["errors"].values.any()
    assert np.isnan(killed["added"].p50)
    assert np.isnan(row(table, "up", backend, arm, "new")["left"].p50)


def test_a_row_per_level_in_the_order_of_the_page(usual: store.Runs) -> None:
    table = changes.followed(usual)
    assert len(table) == 5 * 11 * 2
    assert list(dict.fromkeys(table["change"])) == list(changes.SAID)
    assert list(table["arm"][:4]) == ["plain", "plain", "mode1-xds", "mode1-xds"]
    assert list(table["connection"][:2]) == ["new", "keepalive"]
    shown = changes.table(table, "keepalive")
    assert len(shown) == 55
    assert shown.iloc[0]["followed after, p50"] == "never"
    assert shown.iloc[0]["mean"] == "never in 4 of 4 blocks"
    assert shown.iloc[0]["last on removed, p50"] == text.ABSENT


def test_nothing_reaches_the_new_replica(world: Callable[..., store.Runs]) -> None:
    runs = world(unreached=("EDS", "STRICT_DNS"))
    table = changes.followed(runs)
    for name in ("up", "replace"):
        found = row(table, name, "shop", "mode2-xds", "new")
        assert np.isinf(found["added"].p50)
        assert np.isinf(found["followed"].p50)
        assert found["followed"].interval is None
    assert np.isfinite(row(table, "unready", "shop", "mode2-xds", "new")["followed"].p50)
    missed = changes.bar(table).query("verdict == 'MISSED'")
    assert set(missed["a replica is"]) == {"added"}
    assert set(missed["beyond it, p50"]) == {"never"}
    said = changes.answer(table)
    assert (
        "With EDS new connections do not follow 6 of 15 changes within the 5.99 s of load left: added in mode1" in said
    )
    assert "the others take up to" in said
    assert "never in mode1-xds (new)" in changes.bar_answer(table)
    assert changes.bar_answer(table).endswith("the bar of 300 ms for the rest is missed in 6 of 6.")
    assert claims.learnt(table).verdict == claims.UNDECIDED


def test_the_answer_turns_with_the_data(usual: store.Runs, world: Callable[..., store.Runs]) -> None:
    said = changes.answer(changes.followed(usual))
    assert said.startswith("At p50, new connections have followed even the slowest change after 6")
    assert said.index("with EDS") < said.index("with ORIGINAL_DST") < said.index("with STRICT_DNS")
    assert "With ClusterIP new connections follow no change within the 5.99 s of load left." in said
    turned = changes.answer(changes.followed(world(follows=following(EDS=4.0, STRICT_DNS=0.7))))
    assert turned.index("with STRICT_DNS") < turned.index("with EDS")


def test_blocks_behind_a_median_that_never_followed_are_told(usual: store.Runs) -> None:
    table = changes.followed(usual)
    hit = (table["endpoints"] == "EDS") & (table["connection"] == "new") & (table["arm"] == "mode1-xds")
    assert changes.spread(Spell(np.array([0.5 * S]))) == "1 block"  # which has no interval
    one = Spell(np.array([0.5 * S, 0.5 * S, np.inf]))
    table["followed"] = [one if mine else each for mine, each in zip(hit, table["followed"], strict=True)]
    said = changes.answer(table)
    assert (
        "Behind these medians are blocks in which the load ended before: a replica added in mode1-xds with EDS" in said
    )
    assert "replaced in mode1-xds with EDS never in 1 of 3 blocks" in said
    assert "replaced in mode1-xds with EDS never in 1 of 3 blocks" in claims.learnt(table).numbers
    assert "Behind" not in changes.answer(changes.followed(usual))


def verdicts(table: pd.DataFrame) -> dict[str, set[str]]:
    """Of the bar, by what happened to a replica."""
    return {str(name): set(part["verdict"]) for name, part in changes.bar(table).groupby("a replica is")}


NOT_JUDGED = {"shut down": {text.ABSENT}, "replaced": {text.ABSENT}, "unready": {text.ABSENT}, "killed": {text.ABSENT}}


def test_the_bar_judges_the_first_request_on_a_replica_that_became_ready(
    usual: store.Runs, world: Callable[..., store.Runs], tmp_path: Path
) -> None:
    good = changes.followed(usual)
    assert len(changes.bar(good)) == 5 * 3 * 2
    assert verdicts(good) == {"added": {gates.UNKNOWN}, **NOT_JUDGED}
    assert changes.bar_answer(good).endswith("the bar of 300 ms for the rest is unknown in 6 of 6.")
    assert set(changes.bar(good)["probe period"]) == {"0.500 s"}
    slow = changes.followed(world(follows=following(EDS=0.9)))
    assert verdicts(slow) == {"added": {"MISSED"}, **NOT_JUDGED}
    assert changes.bar_answer(slow).endswith("the bar of 300 ms for the rest is missed in 6 of 6.")
    # The change falls anywhere between two probes: only less than the bar in all can be called met.
    fast = changes.followed(changes_world.runs(tmp_path / "fast", World(follows=following(EDS=0.2)), 3))
    assert verdicts(fast) == {"added": {"met"}, **NOT_JUDGED}


def test_failures_after_the_first_request_on_an_added_replica_are_no_matter_of_the_bar(tmp_path: Path) -> None:
    runs = changes_world.runs(tmp_path, blocks=3)
    table = changes.followed(runs)
    late = np.isin(runs.samples["replica"].astype(str), ["shop-2"]) & (runs.samples["seq"] % 50 == 0)
    failing = replace(
        runs, samples=runs.samples.assign(outcome=runs.samples["outcome"].astype(str).where(~late, "reset"))
    )
    assert row(changes.followed(failing), "up", "shop", "mode1-xds", "new")["followed"].p50 > 4 * S
    assert verdicts(changes.followed(failing))["added"] == verdicts(table)["added"] == {gates.UNKNOWN}


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    folder = tmp_path_factory.mktemp("minutes")
    return store.load(changes_world.build(folder, blocks=1, name="change"))


def test_a_minute_without_a_failure_meets_the_bar_and_handshakes_are_told(minutes: store.Runs) -> None:
    shown = changes.unnoticed_table(changes.unnoticed(minutes)).set_index(["change", "arm"])
    assert list(dict.fromkeys(shown.index.get_level_values("arm"))) == list(policies_world.MODES)
    assert set(shown["verdict"]) == {"met"}
    assert set(shown["watched"]) == {"61 s"}
    said = changes.unnoticed_answer(changes.unnoticed(minutes))
    assert "0 of 30750 requests in mode2-xds and 0 of 30750 requests in mode2-envoy-xds fail while every cert" in said
    encrypted = shown["new mutual TLS connections"].groupby("change").first()
    assert encrypted["a replica is added"] == text.ABSENT
    assert encrypted["every certificate is replaced"] == encrypted["another Service comes and goes"] == 3075


def test_what_was_not_watched_long_enough_or_not_tried_is_not_judged(minutes: store.Runs) -> None:
    table = changes.unnoticed(minutes)
    rotated = table[table["change"] == "rotate"]
    for how in ({"mutual TLS": 0.0}, {"mutual TLS": np.nan}, {"longest": 45.0}, {"rate_hz": 100.0}):
        assert set(changes.unnoticed_table(rotated.assign(**how))["verdict"]) == {text.ABSENT}
    assert set(changes.unnoticed_table(rotated.assign(failed=1))["verdict"]) == {"MISSED"}


def test_an_unrelated_service_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    path, there, place = f"mesh/{plane.UNRELATED}", list[bool](), Recording(frozenset({"xds"}))

    def status(_: plane.Plane) -> dict[str, Any]:
        return {"configuration": {"number": 7 + (path in place.files), "error": "", "fault": ""}}

    monkeypatch.setattr(plane.Plane, "status", status)
    monkeypatch.setattr(plane, "unsettled", lambda *_: iter(()))
    monkeypatch.setattr("time.sleep", lambda _: there.append(path in place.files))
    observer: Any = None
    plane.Plane(place, observer).change("unrelated")
    assert there == [True]
    assert path not in place.files
    plane.Plane(place, observer)._edit(
        "unrelated", changed=False
    )  # what `restore` does: there is nothing left to take away


def test_servers_are_counted_where_replicas_stay() -> None:
    counted = {
        change: set(counters.on_path(Cell("unnoticed", "mode2-xds", "shop", change=change), WORLD))
        & {f"shop-{n}" for n in (1, 2, 3, 4)}
        for change in changing.LEVELS
    }
    stays = {f"shop-{n}" for n in (1, 2, 3)}
    gone = {"up", "down", "replace", "unready", "crash"}
    assert counted == {change: set() if change in gone else stays for change in changing.LEVELS}


def test_failures_have_their_kind_and_retries_leave_none(usual: store.Runs, world: Callable[..., store.Runs]) -> None:
    refused = changes.outcomes(usual)
    assert (refused["connect_error"] > 0).all()
    assert (refused["ok"] + refused["connect_error"] == refused["requests"]).all()
    assert not set(refused["a replica is"]) & {"added", "unready"}
    runs = world(refused=("http_error", 503))
    assert {"HTTP 503", "ok"} < set(changes.outcomes(runs).columns)
    table = changes.followed(runs)
    said, worst = changes.errors_answer(table), table.loc[table["failed"].idxmax()]
    # Levels, since the most failed requests of all ways need not be most requests.
    assert said.startswith(
        f"The most failed requests of all: {worst['failed']} of the {worst['after']} that ended after"
    )
    assert 0 < worst["failed"] < worst["after"] / 2
    assert " error-seconds" in said


def test_no_failure_is_said_too(world: Callable[..., store.Runs]) -> None:
    runs = world(retried=True)
    table = changes.followed(runs)
    assert changes.errors_answer(table) == "No request failed because of a change, in 3 blocks."
    assert changes.outcomes(runs).empty


def test_kept_connections_stay_where_the_client_chose(usual: store.Runs) -> None:
    table = changes.kept(usual)
    assert set(table["connection"]) == {"keepalive"}
    assert "up" not in set(table["change"])  # nothing was removed
    sticky = row(table, "unready", "shop-headless", "mode1-xds")
    assert (sticky["on it"], sticky["stayed"], sticky["later"]) == (8, 8, 800)  # two of six in each of four blocks
    spread = row(table, "unready", "shop", "mode1-xds")
    assert (spread["on it"], spread["stayed"]) == (24, 0)
    assert set(table[table["change"] == "crash"]["stayed"]) == {0}
    said = changes.kept_answer(table)
    assert "24 of 24 with ORIGINAL_DST" in said
    assert "0 of 72 with EDS" in said


def test_a_name_that_is_gone_fails_by_resolver_or_never(usual: store.Runs, world: Callable[..., store.Runs]) -> None:
    table = changes.gone(usual)
    assert list(table["resolver"]) == ["c-ares", "getaddrinfo", "hickory"]
    assert table["failing"][0].p50 == pytest.approx(1.0 * S, rel=0.05)
    assert table["failing"][2].never == 4
    assert (table["before"] == table["before ok"]).all()
    assert list(table["since ok"]) == [0, 0, 0]
    shown = changes.gone_table(table)
    assert list(shown["first failure after, p50"])[2] == "never"
    assert shown["served after"][2] == "100 % of 2400"
    said = changes.gone_answer(table)
    assert "with c-ares the first request fails after 1.0" in said
    assert "with hickory no request fails in the 5.99 s left (4 blocks)" in said
    turned = changes.gone_answer(changes.gone(world(fails={"mode1-xds": np.inf, "mode1-hickory": 2.0})))
    assert "with c-ares no request fails" in turned
    assert "with hickory the first request fails after 2.0" in turned


def test_shares_over_time_add_up_and_turn_at_the_change(usual: store.Runs) -> None:
    table = changes.timeline(usual, "replace")
    assert table[list(changes.SHARES)].sum(axis=1).to_numpy() == pytest.approx(1)
    eds = table[(table["backend"] == "shop") & (table["arm"] == "mode1-xds")]
    assert list(eds["from_ns"]) == [200_000_000 * n for n in range(-10, 30)]
    before, between, after = (eds[eds["from_ns"].between(*ends)] for ends in ((-2 * S, -1), (0, S // 5), (S, 6 * S)))
    assert before["removed"].mean() == pytest.approx(1 / 3, abs=0.03)
    assert between["failed"].mean() == pytest.approx(1 / 3, abs=0.05)
    assert after["added"].mean() == pytest.approx(1 / 3, abs=0.03)
    assert not before["failed"].any()
    assert not after["failed"].any()
    with pytest.raises(errors.InputError, match="change is 'gone'; choose from up, down, replace, unready, crash"):
        changes.timeline(usual, "gone")
    with pytest.raises(errors.InputError, match="connection is 'both'; choose from new, keepalive"):
        changes.table(changes.followed(usual), "both")


def test_a_run_of_another_plan_says_so(other: store.Runs) -> None:
    table = changes.followed(other)
    assert table.empty
    assert "`meshdns report --plan change`" in changes.answer(table)
    rest = [changes.errors_answer(table), changes.bar_answer(table)]
    rest += [changes.kept_answer(changes.kept(other)), changes.gone_answer(changes.gone(other))]
    assert rest == [""] * 4
    assert changes.outcomes(other).empty
    assert changes.timeline(other, "replace").empty
    assert changes.checks(other).empty
    assert text.shown(changes.table(table), table) == absent.Absent(("change",))


def test_an_empty_table_says_whether_it_was_measured(usual: store.Runs, other: store.Runs) -> None:
    nothing = pd.DataFrame()
    missing = text.shown(nothing, changes.followed(other))
    assert isinstance(missing, absent.Absent)
    assert absent.sentence(missing.names) == (
        "Not measured in these runs: changes of endpoints under load (`meshdns report --plan change`)."
    )
    there = text.shown(nothing, changes.followed(usual))
    assert isinstance(there, pd.DataFrame)
    assert there.iloc[0, 0] == "nothing to list"


# --- checks ---


def test_checks_pass_what_can_carry_an_answer(usual: store.Runs) -> None:
    table = changes.checks(usual)
    assert list(table["experiment"]) == ["change", "gone"]
    assert list(table["cells"]) == [440, 12]
    assert set(table["making the change took, p50"]) == {"0.0300 s"}


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        ({"told": False}, "cells are invalid or tell of no change"),
        ({"invalid": 0.9}, "cells are invalid or tell of no change"),
        ({"broken_before": 40}, "requests failed before the change"),
        ({"early": True}, "served by a replica that was yet to be added"),
        ({"blocks": 1}, "1 block"),
    ],
)
def test_checks_refuse_what_cannot(world: Callable[..., store.Runs], how: dict[str, Any], fact: str) -> None:
    with pytest.raises(errors.ReportError, match=fact):
        changes.checks(world(**how))


def test_a_cell_that_tells_of_no_change_is_left_out(usual: store.Runs) -> None:
    agents = [{} if cell["arm"] == "plain" else cell["agent"] for cell in usual.cells.to_dict("records")]
    runs = replace(usual, cells=usual.cells.assign(agent=agents))
    assert set(changes.followed(runs)["arm"]) == set(policies_world.MODES)


@pytest.mark.parametrize("shift_s", [-60, 60])
def test_a_change_that_missed_its_load_is_none(usual: store.Runs, shift_s: int) -> None:
    agents = [
        {"change": each["change"] | {"at_ns": each["change"]["at_ns"] + shift_s * S}} for each in usual.cells["agent"]
    ]
    runs = replace(usual, cells=usual.cells.assign(agent=agents))
    assert changes.followed(runs).empty
    with pytest.raises(errors.ReportError, match="tell of no change"):
        changes.checks(runs)


# --- the claim ---


def with_(found: pd.DataFrame, seconds: float, **levels: str) -> pd.DataFrame:
    """The same rows, but for those at these levels, which were followed after so long."""
    hit = np.logical_and.reduce([found[name] == level for name, level in levels.items()])
    changed = [
        Spell(np.full(4, seconds * S)) if mine else spell for spell, mine in zip(found["followed"], hit, strict=True)
    ]
    return found.assign(followed=changed)


def test_the_claim_is_decided_by_what_follows(usual: store.Runs) -> None:
    table = changes.followed(usual)
    found = claims.learnt(table)
    assert (found.verdict, found.notebook) == (claims.DEPENDS, NOTEBOOK.stem)
    assert "kept ones stay" in found.because
    assert "Service (EDS): 30 of 30 changes followed, at p50 in 6" in found.numbers
    assert "headless, kept alive: 6 of 15 changes followed" in found.numbers
    every = with_(table, 1.0, endpoints="ORIGINAL_DST")
    assert claims.learnt(every).verdict == claims.SUPPORTED
    late = with_(table, np.inf, endpoints="ORIGINAL_DST", connection="new", change="up")
    assert claims.learnt(late).verdict == claims.DEPENDS
    assert "not even all new ones" in claims.learnt(late).because
    assert claims.learnt(with_(table, np.inf, endpoints="EDS", change="up")).verdict == claims.UNDECIDED
    nothing = with_(with_(table, np.inf, endpoints="EDS"), np.inf, endpoints="ORIGINAL_DST")
    assert claims.learnt(nothing).verdict == claims.REFUTED
    assert claims.learnt(table[table["endpoints"] != "EDS"]).verdict == claims.UNDECIDED
    assert claims.learnt(table[table["arm"] == "plain"]).verdict == claims.UNMEASURED


def test_the_claim_is_among_all(usual: store.Runs, other: store.Runs) -> None:
    for runs, verdict in ((usual, claims.DEPENDS), (other, claims.UNMEASURED)):
        assert {each.claim: each.verdict for each in claims.verdicts(runs)}["C14"] == verdict


# --- figures and notebook ---


@pytest.fixture
def _closed() -> Iterator[None]:
    mpl.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def marks(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_marker() not in ("None", "")]


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("connection", ["new", "keepalive"])
def test_the_figure_has_a_mark_per_row_and_hollow_ones_for_never(usual: store.Runs, connection: str) -> None:
    table = changes.followed(usual)
    mine = table[table["connection"] == connection]
    times, failures = figures.follow(table, connection)
    times.figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert len(marks(times)) == len(marks(failures)) == len(mine)
    hollow = [line for line in marks(times) if line.get_markerfacecolor() == "white"]
    assert len(hollow) == sum(np.isinf(each.p50) for each in mine["followed"])
    assert times.get_xlim()[0] == failures.get_xlim()[0] == 0
    assert times.figure.legends[0].get_window_extent().x1 <= times.figure.bbox.x1
    labels = [each.get_text() for each in times.get_yticklabels()]
    assert labels[:4] == ["replica added:", "Service (EDS)", "headless (ORIGINAL_DST)", "external (STRICT_DNS)"]


@pytest.mark.usefixtures("_closed")
def test_the_timeline_has_a_panel_per_arm_and_way(usual: store.Runs) -> None:
    axes = figures.timeline(changes.timeline(usual, "replace"))
    axes[0].figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert sum(ax.axison for ax in axes) == 11
    assert [ax.get_title(loc="left") for ax in axes[:2]] == ["ClusterIP\nplain", "EDS\nmode1-xds"]


@pytest.mark.usefixtures("_closed")
def test_figures_of_what_was_not_measured_say_so(other: store.Runs, world: Callable[..., store.Runs]) -> None:
    assert figures.follow(changes.followed(other))[0].get_title(loc="left") == "not measured in this run"
    assert figures.timeline(changes.timeline(other, "up"))[0].get_title(loc="left") == "not measured in this run"
    figures.follow(changes.followed(world(blocks=1)))[0].figure.savefig(BytesIO())  # type: ignore[union-attr]


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize(("name", "given"), [("", {"connection": "keepalive", "change": "crash"}), ("change", {})])
def test_the_notebook_runs(name: str, given: dict[str, str], tmp_path: Path) -> None:
    folder, space = changes_world.build(tmp_path, blocks=2, name=name), dict[str, Any]()
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), space)
        if cell.metadata["tags"][0] == "parameters":
            space |= {"runs": str(folder)} | given
    assert len(plt.get_fignums()) == 2
    assert all(space["said"])
