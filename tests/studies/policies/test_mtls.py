"""Who is served under each policy of the servers, in worlds that keep it and that do not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import measured
import policies_world
from meshdns import store
from meshdns.analysis import cells
from meshdns.studies import verdict
from meshdns.studies.policies import answer, claims, mtls, tables
from policies_world import MODES, World


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return policies_world.runs(tmp_path_factory.mktemp("usual"), blocks=3)


def cell(table: pd.DataFrame, policy: str, arm: str) -> str:
    found = cells.rows(table, policy=policy, arm=arm)
    assert len(found) == 1
    return ", ".join(answer.fate(found[0]))


def test_strict_refuses_plain_text_and_permissive_takes_it(usual: store.Runs) -> None:
    table = mtls.table(usual)
    assert cell(table, "strict", "plain") == "refused, by the server's sidecar"
    assert cell(table, "permissive", "plain") == "served, no TLS handshake"
    assert cell(table, "disable", "mode1") == "served, no TLS handshake"
    for arm in MODES:
        assert cell(table, "strict", arm) == cell(table, "permissive", arm) == "served, mutual TLS"
    refused = cells.rows(table, policy="strict", arm="plain")[0]
    assert (refused["requests"], refused["served"], refused["failed_as"]) == (60, 0, {"reset": 60})
    assert refused["closed_without_chain"] == 75  # the warm-up too
    assert refused["at_application"] == 0


def test_connections_that_stood_already_are_not_called_plain(tmp_path: Path) -> None:
    table = mtls.table(policies_world.runs(tmp_path, World(reused=True), blocks=2))
    assert cell(table, "strict", "mode1") == "served, no TLS handshake"


def test_outcomes_that_differ_are_counted(usual: store.Runs) -> None:
    whole = usual.samples
    first = (whole["experiment"] == "mtls") & (whole["policy"] == "strict") & (whole["arm"] == "plain")
    first &= whole["seq"] < 2
    changed = whole.assign(outcome=whole["outcome"].astype(str).where(~first, "ok"))
    table = mtls.table(store.Runs(changed, usual.cells, usual.headers, usual.notes, usual.world))
    assert cell(table, "strict", "plain") == "6 of 60 served, no TLS handshake, by the server's sidecar"
    silent = whole.assign(outcome=whole["outcome"].astype(str).where(whole["outcome"] != "reset", "timeout"))
    table = mtls.table(store.Runs(silent, usual.cells, usual.headers, usual.notes, usual.world))
    assert cells.rows(table, policy="strict", arm="plain")[0]["outcome"] == "lost"


def test_the_grid_has_a_row_per_client_and_a_column_per_policy(usual: store.Runs) -> None:
    grid = answer.grid(mtls.table(usual))
    assert list(grid.columns) == list(tables.WANTED)
    assert list(grid.index) == [
        "no sidecar",
        "sidecar, mode 1",
        "sidecar, mode 2 by the agent's proxy",
    ]
    assert grid.loc["no sidecar", "strict"] == "refused\nby the server's sidecar"


def test_the_answer_follows_the_data(usual: store.Runs, tmp_path: Path) -> None:
    said = answer.mtls_answer(mtls.table(usual))
    assert "strict: plain refused by the server's sidecar; mode1 and mode2-agent served (mut" in said
    open_ = answer.mtls_answer(mtls.table(policies_world.runs(tmp_path, World(guarded=False), blocks=2)))
    assert "mutual TLS strict: plain served (no TLS handshake)" in open_


def test_the_claim_holds_where_strict_is_strict(usual: store.Runs) -> None:
    found = claims.strict_mtls(mtls.table(usual))
    assert found.verdict == verdict.SUPPORTED
    assert "0 of 60 served in plain (75 connections closed, 0 mutual TLS)" in found.numbers


def test_the_claim_is_refuted_by_strict_servers_that_serve_and_permissive_ones_that_do_not(
    usual: store.Runs, tmp_path: Path
) -> None:
    open_ = mtls.table(policies_world.runs(tmp_path, World(guarded=False), blocks=2))
    assert claims.strict_mtls(open_).verdict == verdict.REFUTED
    table = mtls.table(usual)
    direct = (table["policy"] == "permissive") & (table["arm"] == "plain")
    closed = table.assign(outcome=table["outcome"].where(~direct, "refused"), served=table["served"].where(~direct, 0))
    assert claims.strict_mtls(closed).verdict == verdict.REFUTED


def test_the_claim_is_undecided_where_clients_with_a_sidecar_fail_or_nobody_saw_who_refused(usual: store.Runs) -> None:
    table = mtls.table(usual)
    meshed = (table["policy"] == "strict") & (table["arm"] == "mode2-agent")
    some = table.assign(outcome=table["outcome"].where(~meshed, mtls.SOME))
    assert claims.strict_mtls(some).verdict == verdict.UNDECIDED
    unseen = table.assign(closed_without_chain=0)
    assert claims.strict_mtls(unseen).verdict == verdict.UNDECIDED
    lacking = table[table["policy"] != "permissive"]
    assert claims.strict_mtls(lacking).verdict == verdict.UNMEASURED


def test_runs_without_it_have_nothing_to_say(tmp_path: Path) -> None:
    table = mtls.table(measured.runs(tmp_path, blocks=2))
    assert table.empty
    assert answer.mtls_answer(table) == ""
    assert answer.grid(table).empty
    assert claims.strict_mtls(table).verdict == verdict.UNMEASURED
