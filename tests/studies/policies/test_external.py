"""External names and services that share a port, in worlds where a sidecar tells them apart and where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import measured
import policies_world
from meshdns import store
from meshdns.analysis import text
from meshdns.studies import verdict
from meshdns.studies.policies import answer, claims, external
from policies_world import ARMS, World


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    """Where mode 1 sends all connections of the shared port to redis."""
    first = {"mode1": "redis"}
    return policies_world.runs(tmp_path_factory.mktemp("usual"), World(first=first), blocks=3)


def row(table: pd.DataFrame, backend: str, arm: str) -> dict[Any, Any]:
    found = table[(table["backend"] == backend) & (table["arm"] == arm)]
    assert len(found) == 1
    return found.to_dict("records")[0]


def test_connections_that_reach_another_server_are_counted(usual: store.Runs) -> None:
    table = external.table(usual)
    lost = row(table, "postgres", "mode1")
    assert (lost["right"], lost["wrong"], lost["none"]) == (0, 90, 0)
    assert lost["answered_by"] == {"redis": 90}
    assert lost["right_share"].estimate == 0
    assert 0.02 < lost["right_share"].high < 0.06
    kept = row(table, "redis", "mode1")
    assert (kept["right"], kept["connections"]) == (90, 90)
    for arm in ("plain", "mode2-agent"):
        assert row(table, "postgres", arm)["right"] == row(table, "redis", arm)["right"] == 90


def test_addresses_are_told_as_real_or_virtual(usual: store.Runs) -> None:
    table = external.table(usual)
    real, virtual = (external.REAL,), (external.VIRTUAL,)
    kinds = {arm: row(table, "api", arm)["answered"] for arm in ARMS}
    assert kinds == {"plain": real, "mode1": real, "mode2-agent": virtual}
    assert row(table, "redis", "mode2-agent")["addresses"] == ("240.240.0.33",)


def test_the_sidecars_counts_hold_the_warm_up_and_are_absent_without_one(usual: store.Runs) -> None:
    table = external.table(usual)
    assert row(table, "api", "mode1")["in_sidecar"] == row(table, "api", "mode1")["requests_made"] == 105
    shown = text.shown(table, answer.WORDS, answer.EXTERNAL)
    assert isinstance(shown, pd.DataFrame)
    shown = shown.set_index(["backend", "arm"])
    assert shown.loc[("api", "plain"), "in the sidecar"] == "–"
    assert shown.loc[("redis", "mode2-agent"), "in the sidecar"] == "105"
    assert str(shown.loc[("postgres", "mode1"), "right share"]).startswith("0.0 % [")
    assert shown.loc[("postgres", "mode1"), "answered by"] == "90 redis"


def test_the_answer_follows_the_data(usual: store.Runs, tmp_path: Path) -> None:
    said = answer.external_answer(external.table(usual))
    assert said.startswith("api.example.com is answered with a real address in plain and mode1 and with a virtual ")
    assert "address in mode2-agent; of" in said
    assert "in mode1 postgres 0.0 % [0.0, 4.1] (90 of 90 went to another server)" in said
    apart = answer.external_answer(external.table(policies_world.runs(tmp_path, World(first={}), blocks=2)))
    assert "another server" not in apart


def test_the_claim_depends_where_services_on_one_port_are_mixed_up(usual: store.Runs) -> None:
    found = claims.external_name(external.table(usual))
    assert found.verdict == verdict.DEPENDS
    assert found.because.endswith("not all are told apart: postgres in mode1")
    assert "postgres in mode1 0 of 90" in found.numbers


def test_the_claim_is_supported_where_they_are_not(usual: store.Runs, tmp_path: Path) -> None:
    apart = external.table(policies_world.runs(tmp_path, World(first={}), blocks=2))
    assert claims.external_name(apart).verdict == verdict.SUPPORTED
    named = external.table(usual)
    found = claims.external_name(named[named["backend"] == "api"])
    assert found.verdict == verdict.SUPPORTED
    assert "TCP services are not measured" in found.because


def test_the_claim_is_refuted_where_sidecars_pass_the_name_on_or_do_not_serve_it(tmp_path: Path) -> None:
    around = external.table(policies_world.runs(tmp_path / "around", World(around=True), blocks=2))
    assert row(around, "api", "mode1")["passed_through"] == 70
    assert claims.external_name(around).verdict == verdict.REFUTED
    failing = external.table(policies_world.runs(tmp_path / "failing", World(api=0.5), blocks=2))
    assert claims.external_name(failing).verdict == verdict.REFUTED


def test_the_claim_depends_on_the_mode_where_one_fails(usual: store.Runs) -> None:
    table = external.table(usual)
    one = table.assign(in_sidecar=table["in_sidecar"].where(table["arm"] != "mode1", 0))
    found = claims.external_name(one)
    assert (found.verdict, found.because.endswith("in mode1")) == (verdict.DEPENDS, True)


def test_runs_without_it_have_nothing_to_say(tmp_path: Path) -> None:
    table = external.table(measured.runs(tmp_path, blocks=2))
    assert table.empty
    assert answer.external_answer(table) == ""
    assert claims.external_name(table).verdict == verdict.UNMEASURED
