"""Requests that are served after a policy that denies, in worlds that are as late as expected and in others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import policies_world
from meshdns import store
from meshdns.analysis import absent, gates, stats, text
from meshdns.studies.change.load import Change, Load
from meshdns.studies.policies import answer, deny
from policies_world import MODES, World

OPEN = (2, 8, 32)
CHANGE = Change.of({"change": {"at_ns": 100, "done_ns": 200, "added": [], "removed": [], "pooled": 2}})


def row(table: pd.DataFrame, arm: str, connections: int) -> dict[Any, Any]:
    found = table[(table["arm"] == arm) & (table["connections"] == connections)]
    assert len(found) == 1
    return found.to_dict("records")[0]


def load(*requests: tuple[int, int, int]) -> Load:
    """Of requests, each with its start, its end and its status."""
    start_ns, end_ns, status = (np.array(each) for each in zip(*requests, strict=True))
    outcome = np.where(status == 200, "ok", np.where(status == 0, "timeout", "http_error"))
    return Load(start_ns, start_ns, end_ns, outcome, status, np.full(len(status), ""), np.ones(len(status)))


def test_late_is_what_starts_after_every_sidecar_has_accepted_the_policy_and_is_served() -> None:
    assert CHANGE is not None
    requests = (90, 95, 403), (100, 110, 200), (190, 205, 200), (206, 220, 403), (207, 221, 200), (222, 223, 200)
    assert deny.seen(load(*requests, (230, 240, 503), (231, 241, 0)), CHANGE) == {
        "pooled": 2, "late": 2, "since_refusal": 1, "accepted": 100.0, "first_refused": 120.0, "last_served": 123.0,
        "refused": 1,
    }  # fmt: skip


def test_what_nobody_refuses_has_no_first_refusal() -> None:
    assert CHANGE is not None
    found = deny.seen(load((90, 95, 200), (201, 210, 200), (211, 220, 503)), CHANGE)
    assert (found["late"], found["since_refusal"], found["refused"]) == (1, 0, 0)
    assert np.isnan([found["first_refused"], found["last_served"]]).all()


def test_one_request_a_connection_is_found_where_the_world_is_so(usual: store.Runs) -> None:
    table = deny.table(usual)
    assert [*zip(table["arm"], table["connections"], strict=True)] == [(arm, n) for arm in MODES for n in OPEN]
    for n in OPEN:
        found = row(table, "mode1", n)
        assert (found["late"].estimate, found["late_p50"], found["per_connection"].estimate) == (n, n, 1)
        assert (found["reading"], found["blocks"], found["blocks_refused"]) == (deny.ONE_EACH, 8, 8)
        assert found["refused"] > 0
        assert found["pooled"].estimate == n
        assert found["accepted"].estimate < found["first_refused"].estimate
    said = answer.deny_answer(table)
    assert "in mode1 2.00 ± 0.00 on 2, 8.00 ± 0.00 on 8 and 32.00 ± 0.00 on 32; in mode2-agent 2.00" in said
    assert "That is one for each connection (in mode1 2, 8 and 32; in mode2-agent 2, 8 and 32). The first" in said


@pytest.mark.parametrize(("late", "reading"), [(0.0, deny.FEWER), (0.5, deny.FEWER), (3.0, deny.MORE)])
def test_fewer_and_more_than_that_are_told(late: float, reading: str, tmp_path: Path) -> None:
    table = deny.table(policies_world.runs(tmp_path, World(late=late)))
    found = row(table, "mode2-agent", 32)
    assert found["reading"] == reading
    assert found["per_connection"].holds(late)
    said = answer.deny_answer(table)
    assert f"{answer._LATE[reading]} (in mode1 " in said
    assert "for each connection (in mode1" in said
    assert answer._LATE[deny.ONE_EACH] not in said.replace("than one for each connection", "")


def test_an_interval_that_holds_none_or_two_as_well_tells_nothing() -> None:
    bounds = {(-0.1, 1.9): gates.UNKNOWN, (0.4, 2.1): gates.UNKNOWN, (0.7, 1.1): deny.ONE_EACH, (0.2, 0.9): deny.FEWER}
    for (low, high), reading in bounds.items():
        assert deny.reading(stats.Interval((low + high) / 2, low, high, 3)) == reading
    assert deny.reading(stats.Interval(1.0, -np.inf, np.inf, 1)) == deny.ONE_BLOCK


def test_a_policy_that_is_never_in_force_is_late_to_the_end(tmp_path: Path) -> None:
    table = deny.table(policies_world.runs(tmp_path, World(denied=False), blocks=2))
    found = row(table, "mode1", 8)
    assert found["late"].estimate > 0.5 * 640
    assert (found["refused"], found["blocks_refused"], found["first_refused"].n) == (0, 0, 0)
    assert answer.deny_answer(table).endswith("Nobody was refused before the load ended.")
    shown = text.shown(table, answer.WORDS, answer.DENIED)
    assert isinstance(shown, pd.DataFrame)
    assert set(shown["first refused after"].map(str)) == {text.ABSENT}


def test_one_block_has_no_interval(tmp_path: Path) -> None:
    table = deny.table(policies_world.runs(tmp_path, blocks=1))
    assert str(row(table, "mode1", 2)["late"]) == "2.00 ± ?"
    assert "That is the count of one block, which has no interval (in mode1" in answer.deny_answer(table)


@pytest.mark.parametrize("world", [World(accepted=1.1), World(told=False)])
def test_a_load_that_nobody_watched_the_policy_with_tells_nothing(world: World, tmp_path: Path) -> None:
    table = deny.table(policies_world.runs(tmp_path, world, blocks=2))
    assert table.empty
    assert answer.deny_answer(table) == "No load went on after a policy that denies was accepted by every sidecar."


def test_runs_without_it_have_nothing_to_say(empty: store.Runs) -> None:
    table = deny.table(empty)
    assert answer.deny_answer(table) == ""
    assert text.shown(table, answer.WORDS, answer.DENIED) == absent.Absent(("deny",))
