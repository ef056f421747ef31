"""Istio's own agent against this project's DNS proxy and rules: the stated differences are all, and show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance import dnsproxies, proxies, rules

from meshdns.dnsproxy import differences

# The first one builds the image, if need be.
pytestmark = [pytest.mark.testbed, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def found(agent: Path) -> Iterator[dict[str, Any]]:
    yield dnsproxies.run(agent)


def test_every_disagreement_is_stated(found: dict[str, Any]) -> None:
    assert found["asked"] >= 40_000
    assert not found["unexplained"]
    assert found["again"] < found["asked"] / 20  # a machine that is busier shows nothing


def test_no_difference_is_stated_where_both_answer_alike(found: dict[str, Any]) -> None:
    assert not found["overstated"]


def test_every_difference_shows(found: dict[str, Any]) -> None:
    assert dnsproxies.unseen(found) == []


def test_fifty_neighbours_of_each_are_told_apart(found: dict[str, Any]) -> None:
    assert not found["mistaken"]
    assert {d.id: found["near"].get(d.id, 0) >= 50 for d in differences.DIFFERENCES} == {
        d.id: True for d in differences.DIFFERENCES
    }


def test_the_agent_ends_but_where_a_query_waits_for_ever(found: dict[str, Any]) -> None:
    assert found["killed"] == [str(proxies.Setup((), parallel=True))]


def test_the_cases_state_what_the_agent_does(found: dict[str, Any]) -> None:
    assert found["cases"] == 46
    assert not found["refuted"]


@pytest.mark.parametrize("forgotten", ["edns-version", "query-cut"])
def test_a_difference_that_is_not_stated_is_found(agent: Path, forgotten: str) -> None:
    found = dnsproxies.run(agent, "--part", "messages", "--forget", forgotten)
    assert found["unexplained"]


SOME = range(10, 22)  # sets of options, among them those that show each difference


def test_the_agents_rules_do_what_ours_do_to_every_packet(agent: Path) -> None:
    found = rules.run(agent, SOME)
    assert found.packets >= 1_000
    assert not found.wrong
    assert list(rules.unseen(found)) == []


@pytest.mark.parametrize("forgotten", ["-o", "--redirect-dns"])
def test_an_option_that_the_agent_is_not_told_is_found(
    agent: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FLAGS", "SWITCHES"):
        told = {ours: flag for ours, flag in getattr(rules, name).items() if flag != forgotten}
        monkeypatch.setattr(rules, name, told)
    assert rules.run(agent, SOME).wrong
