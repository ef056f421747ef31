"""Following change in worlds that follow fast, late, partly or never: tables, sentences and checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import changes_world
from changes_world import World
from meshdns import store
from meshdns.analysis import absent, cells, gates, text
from meshdns.core import errors
from meshdns.lab.controlplane import EFFECTS
from meshdns.measure import counters
from meshdns.measure.cell import Cell
from meshdns.studies import verdict
from meshdns.studies.change import answer, claims, tables
from meshdns.studies.change.spells import Spell
from shipped import WORLD

S = 10**9


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., store.Runs]:
    def made(blocks: int = 3, **how: Any) -> store.Runs:
        return changes_world.runs(tmp_path, World(**how), blocks)

    return made


def row(found: pd.DataFrame, *levels: str) -> dict[str, Any]:
    """The row of this change, backend, arm and connection."""
    names = ("change", "backend", "arm", "connection")
    only = cells.rows(found, **dict(zip(names, levels, strict=False)))
    assert len(only) == 1
    return only[0]


def following(**how: float) -> dict[str, float]:
    return World().follows | how


@pytest.mark.parametrize(
    ("backend", "arm", "way"),
    [
        ("shop", "mode1", "EDS"),
        ("shop-headless", "mode2-agent", "name table"),
        ("shop-headless", "mode1", "cluster DNS, no cache"),
        ("shop-headless", "plain", "cluster DNS, no cache"),
        ("shop-headless", "plain-cache", "cluster DNS, cache 30 s"),
        ("shop-dns", "mode1", "STRICT_DNS"),
    ],
)
def test_how_fast_is_followed_is_found_where_it_was_put(usual: store.Runs, backend: str, arm: str, way: str) -> None:
    table, truth_s = tables.followed(usual), World().follows[way]
    for name in tables.CHANGES:
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
    table = tables.followed(usual)
    assert len(table) == 5 * (6 + 2 + 1) * 2
    assert list(dict.fromkeys(table["change"])) == list(tables.CHANGES)
    assert list(table["arm"][:4]) == ["plain", "plain", "mode1", "mode1"]
    assert list(table["backend"][:18:2]) == ["shop"] * 3 + ["shop-headless"] * 4 + ["shop-dns"] * 2
    assert list(table["connection"][:2]) == ["new", "keepalive"]
    shown = text.shown(tables.on(table, "keepalive"), answer.WORDS, answer.FOLLOWED)
    assert isinstance(shown, pd.DataFrame)
    assert len(shown) == 45
    assert shown.iloc[0]["change"] == "a replica is added"
    assert str(shown.iloc[0]["followed after, p50"]) == "never"
    assert str(shown.iloc[0]["mean"]) == "never in 4 of 4 blocks"
    assert str(shown.iloc[0]["last on removed, p50"]) == text.ABSENT


def test_nothing_reaches_the_new_replica(world: Callable[..., store.Runs]) -> None:
    runs = world(unreached=("EDS", "STRICT_DNS"))
    table = tables.followed(runs)
    for name in ("up", "replace"):
        found = row(table, name, "shop", "mode2-agent", "new")
        assert np.isinf(found["added"].p50)
        assert np.isinf(found["followed"].p50)
        assert found["followed"].interval is None
    assert np.isfinite(row(table, "unready", "shop", "mode2-agent", "new")["followed"].p50)
    said = answer.answer(table)
    assert "an endpoint is stale for longer than the 5.99 s of load left with EDS (a replica added in mode1: n" in said
    assert "Within the 5.99 s of load left 13 of 45 changes are not followed: added in plain with ClusterIP, " in said
    assert "added in mode1 with EDS, " in said
    assert claims.learnt(table).verdict == verdict.UNDECIDED


def test_the_answer_is_how_long_names_and_endpoints_are_stale_by_who_tells(
    usual: store.Runs, world: Callable[..., store.Runs]
) -> None:
    table = tables.followed(usual)
    names, endpoints, resolved, *_ = answer.answer(table).split("At p50 ")[1:]
    assert names.startswith("a headless name is stale for 7")
    each = [names.index(f" with {way} (a") for way in (changes_world.UNKEPT, "name table", "cluster DNS, cache 30 s")]
    assert each == sorted(each)
    cached = row(table, "up", "shop-headless", "plain-cache", "new")["followed"]
    assert f"4.0{str(cached)[3]} s with cluster DNS, cache 30 s (a replica added in plain-cache: mean 4" in names
    assert endpoints.startswith("an endpoint is stale for 6")
    assert "in mode1: " in endpoints
    assert "in mode2-agent: " in endpoints
    assert resolved.startswith("a name that the sidecar resolves is stale for ")
    turned = answer.answer(tables.followed(world(follows=following(**{"name table": 0.4}))))
    assert turned.index("with name table") < turned.index(f"with {changes_world.UNKEPT}")


def test_the_answer_goes_by_changes_that_are_told_at_once_where_there_are_such(usual: store.Runs) -> None:
    """A replica that is replaced ends before anybody is told: that takes the testbed a while."""
    table = tables.followed(usual)
    late = Spell(np.full(4, 5.0 * S))
    told = [late if name == "replace" else each for name, each in zip(table["change"], table["followed"], strict=True)]
    said, usually = (answer.answer(each).partition("Within")[0] for each in (table.assign(followed=told), table))
    assert said == usually
    alone = table.assign(followed=told)[~((table["arm"] == "plain-cache") & table["change"].isin(tables.TOLD))]
    assert "5.00 s with cluster DNS, cache 30 s (a replica replaced in plain-cache: mean 5.00 " in answer.answer(alone)


def test_blocks_behind_a_median_that_never_followed_are_told(usual: store.Runs) -> None:
    table = tables.followed(usual)
    hit = (table["endpoints"] == "EDS") & (table["connection"] == "new") & (table["arm"] == "mode1")
    assert answer.spread(Spell(np.array([0.5 * S]))) == "1 block"  # which has no interval
    one = Spell(np.array([0.5 * S, 0.5 * S, np.inf]))
    table["followed"] = [one if mine else each for mine, each in zip(hit, table["followed"], strict=True)]
    said = answer.answer(table)
    assert "Behind these medians are blocks in which the load ended before: a replica added in mode1 with EDS" in said
    assert "replaced in mode1 with EDS never in 1 of 3 blocks" in said
    assert "replaced in mode1 with EDS never in 1 of 3 blocks" in claims.learnt(table).numbers
    assert "Behind" not in answer.answer(tables.followed(usual))


def test_endpoints_and_names_follow_by_istiods_debounce(usual: store.Runs, other: store.Runs) -> None:
    table = tables.gathered(usual)
    assert list(table["debounce"]) == [each for each in tables.DEBOUNCES for _ in range(2)]
    assert list(table["endpoints"][:2]) == ["EDS", "name table"]
    truth = {each: World().follows | World().gathers.get(each, {}) for each in tables.DEBOUNCES}
    for each in cells.rows(table):
        assert each["blocks"] == 4
        assert each["followed"].p50 / S == pytest.approx(truth[each["debounce"]][each["endpoints"]], abs=0.06)
    said = answer.gathered_answer(table)
    assert said.startswith("A replica that is added is followed (p50) after 3")
    assert "ms with name table where istiod gathers all for 100 ms (its default); 2" in said
    assert said.endswith("with name table where istiod gathers all but endpoints for 100 ms.")
    shown = text.shown(table, answer.WORDS, answer.GATHERED)
    assert isinstance(shown, pd.DataFrame)
    assert len(shown) == 8
    older = replace(other, cells=other.cells.drop(columns="debounce"))
    assert answer.gathered_answer(tables.gathered(older)) == ""
    assert text.shown(tables.gathered(older)) == absent.Absent(("gathered",))


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    folder = tmp_path_factory.mktemp("minutes")
    return store.load(changes_world.build(folder, blocks=1, name="change"))


def test_a_minute_without_a_failure_meets_the_bar(minutes: store.Runs) -> None:
    table = tables.unnoticed(minutes)
    assert list(dict.fromkeys(table["arm"])) == list(changes_world.MODES)
    assert set(table["change"]) == {"unrelated", "istiod"}
    assert set(table["verdict"]) == {"met"}
    assert set(table["watched_s"]) == {62}
    said = answer.unnoticed_answer(table)
    assert "0 of 31000 requests in mode1 and 0 of 31000 requests in mode2-agent fail while istiod is away; " in said


def test_what_was_not_watched_long_enough_is_not_judged(minutes: store.Runs) -> None:
    away = cells.rows(tables.unnoticed(minutes), change="istiod")[0]
    for how in ({"longest_s": 45.0}, {"rate_hz": 100.0}):
        assert tables.quiet(away | how) is None
    assert tables.quiet(away | {"failed": 1}) == gates.MISSED


def test_servers_are_counted_where_replicas_stay() -> None:
    counted = {
        change: set(counters.on_path(Cell("unnoticed", "mode2-agent", "shop", change=change), WORLD))
        & {f"shop-{n}" for n in (1, 2, 3, 4)}
        for change in EFFECTS
    }
    stays = {f"shop-{n}" for n in (1, 2, 3)}
    gone = {"up", "down", "replace", "unready", "crash"}
    assert counted == {change: set() if change in gone else stays for change in EFFECTS}


def test_failures_have_their_kind_and_retries_leave_none(usual: store.Runs, world: Callable[..., store.Runs]) -> None:
    refused = tables.outcomes(usual)
    assert (refused["connect_error"] > 0).all()
    assert (refused["ok"] + refused["connect_error"] == refused["requests"]).all()
    assert not set(refused["change"]) & {"up", "unready"}
    runs = world(refused=("http_error", 503))
    assert {"HTTP 503", "ok"} < set(tables.outcomes(runs).columns)
    table = tables.followed(runs)
    said, worst = answer.errors_answer(table), table.loc[table["failed"].idxmax()]
    # Levels, since the most failed requests of all ways need not be most requests.
    assert said.startswith(
        f"The most failed requests of all: {worst['failed']} of the {worst['after']} that ended after"
    )
    assert 0 < worst["failed"] < worst["after"] / 2
    assert " error-seconds" in said


def test_no_failure_is_said_too(world: Callable[..., store.Runs]) -> None:
    runs = world(retried=True)
    table = tables.followed(runs)
    assert answer.errors_answer(table) == "No request failed because of a change, in 3 blocks."
    assert tables.outcomes(runs).empty


def test_kept_connections_stay_where_the_client_chose(usual: store.Runs) -> None:
    table = tables.kept(usual)
    assert set(table["connection"]) == {"keepalive"}
    assert "up" not in set(table["change"])  # nothing was removed
    sticky = row(table, "unready", "shop-headless", "mode1")
    # Two of six in each of four blocks.
    assert [sticky[name] for name in ("connections", "stayed", "requests_on_them")] == [8, 8, 800]
    spread = row(table, "unready", "shop", "mode1")
    assert (spread["connections"], spread["stayed"]) == (24, 0)
    assert set(table[table["change"] == "crash"]["stayed"]) == {0}
    said = answer.kept_answer(table)
    assert "16 of 16 with cluster DNS, no cache" in said
    assert "8 of 8 with name table" in said
    assert "0 of 48 with EDS" in said


def test_shares_over_time_add_up_and_turn_at_the_change(usual: store.Runs) -> None:
    table = tables.timeline(usual, "replace")
    assert table[list(tables.SHARES)].sum(axis=1).to_numpy() == pytest.approx(1)
    eds = table[(table["backend"] == "shop") & (table["arm"] == "mode1")]
    assert list(eds["from_ns"]) == [200_000_000 * n for n in range(-10, 30)]
    before, between, after = (eds[eds["from_ns"].between(*ends)] for ends in ((-2 * S, -1), (0, S // 5), (S, 6 * S)))
    assert before["removed"].mean() == pytest.approx(1 / 3, abs=0.03)
    assert between["failed"].mean() == pytest.approx(1 / 3, abs=0.05)
    assert after["added"].mean() == pytest.approx(1 / 3, abs=0.03)
    assert not before["failed"].any()
    assert not after["failed"].any()
    with pytest.raises(errors.InputError, match="change is 'gone'; choose from up, down, replace, unready, crash"):
        tables.timeline(usual, "gone")
    with pytest.raises(errors.InputError, match="connection is 'both'; choose from new, keepalive"):
        tables.on(tables.followed(usual), "both")


def test_a_run_of_another_plan_says_so(other: store.Runs) -> None:
    table = tables.followed(other)
    assert table.empty
    assert "`meshdns report --plan change`" in answer.answer(table)
    assert answer.whole(other)[1:] == [""] * 4
    assert tables.outcomes(other).empty
    assert tables.timeline(other, "replace").empty
    assert tables.checks(other).empty
    for shown in (tables.on(table), tables.kept(other), tables.outcomes(other)):
        assert text.shown(shown, answer.WORDS) == absent.Absent(("change",))


def test_an_empty_table_says_whether_it_was_measured(usual: store.Runs, other: store.Runs) -> None:
    missing = text.shown(tables.outcomes(other))
    assert isinstance(missing, absent.Absent)
    assert absent.sentence(missing.names) == (
        "Not measured in these runs: changes of endpoints under load (`meshdns report --plan change`)."
    )
    there = text.shown(tables.followed(usual).query("arm == 'mode2-envoy'"), answer.WORDS, answer.FOLLOWED)
    assert isinstance(there, pd.DataFrame)
    assert there.iloc[0, 0] == "nothing to list"


def test_levels_that_nobody_here_knows_are_shown_last_under_their_own_name(usual: store.Runs) -> None:
    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(
            change=frame["change"].astype(str).replace({"crash": "a-drain"}),
            backend=frame["backend"].astype(str).replace({"shop-headless": "a-shop"}),
            connection=frame["connection"].astype(str).replace({"keepalive": "a-pool"}),
        )

    runs = replace(usual, cells=renamed(usual.cells), samples=renamed(usual.samples))
    table = tables.followed(runs)
    assert len(table) == len(tables.followed(usual))
    assert [*dict.fromkeys(table["change"])] == [*tables.CHANGES[:-1], "a-drain"]
    assert [*dict.fromkeys(table["backend"])][-1] == "a-shop"
    assert set(table[table["backend"] == "a-shop"]["endpoints"]) == {"a-shop"}
    assert len(tables.on(table, "a-pool")) == len(table) / 2
    assert not tables.timeline(runs, "a-drain", "a-pool").empty
    assert "with a-shop" in answer.answer(table)
    shown = text.shown(table, answer.WORDS, answer.FOLLOWED)
    assert isinstance(shown, pd.DataFrame)
    assert "a-drain" in set(shown["change"])
    assert "a-drain" in set(tables.outcomes(runs)["change"])


# --- checks ---


def test_checks_pass_what_can_carry_an_answer(usual: store.Runs) -> None:
    table = tables.checks(usual)
    assert list(table["experiment"]) == ["change", "gathered"]
    assert list(table["cells"]) == [4 * 90, 4 * 8]
    assert {str(each) for each in table["made within"]} == {"0.0300 s"}


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
        tables.checks(world(**how))


def test_a_cell_that_tells_of_no_change_is_left_out(usual: store.Runs) -> None:
    agents = [{} if cell["arm"] == "plain" else cell["agent"] for cell in usual.cells.to_dict("records")]
    runs = replace(usual, cells=usual.cells.assign(agent=agents))
    assert set(tables.followed(runs)["arm"]) == {*changes_world.MODES, "plain-cache"}


@pytest.mark.parametrize("shift_s", [-60, 60])
def test_a_change_that_missed_its_load_is_none(usual: store.Runs, shift_s: int) -> None:
    agents = [
        {"change": each["change"] | {"at_ns": each["change"]["at_ns"] + shift_s * S}} for each in usual.cells["agent"]
    ]
    runs = replace(usual, cells=usual.cells.assign(agent=agents))
    assert tables.followed(runs).empty
    with pytest.raises(errors.ReportError, match="tell of no change"):
        tables.checks(runs)
