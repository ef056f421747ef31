"""The matrix of outcomes, from cells whose truth is known."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

import traces
from meshdns import store
from meshdns.analysis import absent, cells, text
from meshdns.core import errors
from meshdns.core.world import Answer
from meshdns.studies.path import answer, tables
from shipped import WORLD
from traces import Cell


def outcome(runs: store.Runs, given: str, intercepted: bool = True, sidecar: str = "up", arm: str = "answers") -> str:
    found = cells.rows(tables.matrix(runs), answer=given, arm=arm, intercepted=intercepted, sidecar=sidecar)
    assert len(found) == 1
    return f"{found[0]['outcome']} {answer.end(found[0])}".strip()


@pytest.fixture(scope="module")
def usual() -> store.Runs:
    return traces.answered(*traces.USUAL)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("pod",), "proxied"),
        (("clusterip",), "proxied"),
        (("virtual",), "lost behind the sidecar"),
        (("loopback",), "refused in the pod"),
        (("clusterip", True, "down"), "refused at the sidecar's port"),
        (("clusterip", False, "down"), "direct"),
        (("unroutable", False), "lost leaving the pod"),
        (("loopback-sidecar",), "looped by the guard, 1 connection each"),
        (("loopback-sidecar", True, "up", "unguarded"), "looped by the circuit breaker, 1000 connections each"),
    ],
)
def test_every_outcome_has_its_word_and_where_it_ended(usual: store.Runs, cell: tuple[str], expected: str) -> None:
    assert outcome(usual, *cell) == expected


def test_a_loop_that_outlives_the_clients_patience_is_ended_by_it() -> None:
    endless = {"pod/envoy/passthrough_cx": 4000}
    assert outcome(traces.answered(Cell("own-sidecar", endless, traces.SILENT)), "own-sidecar") == (
        "looped by the client's time-out, 1000 connections each"
    )
    assert outcome(traces.answered(Cell("own-sidecar", endless, traces.RESET)), "own-sidecar") == (
        "looped by the sidecar, 1000 connections each"
    )


def test_served_requests_of_one_cell_may_take_two_ways() -> None:
    half = {"pod/rule/redirect_tcp": 2, "pod/envoy/cluster_rq": 2}
    assert outcome(traces.answered(Cell("clusterip", half)), "clusterip") == "4 proxied, 4 direct"


def test_mixed_outcomes_are_counts() -> None:
    mixed = Cell("pod", {}, ("ok", "ok", "connect_error", "timeout"), intercepted=False)
    found = cells.rows(tables.matrix(traces.answered(mixed)), answer="pod")[0]
    assert found["outcome"] == "4 direct, 2 refused, 2 lost"
    assert found["requests"] == sum(found[name] for name in tables.OUTCOMES) == 8


def test_every_request_has_exactly_one_outcome(usual: store.Runs) -> None:
    matrix = tables.matrix(usual)
    assert (matrix[list(tables.OUTCOMES)].sum(axis=1) == matrix["requests"]).all()
    assert len(matrix) == len(traces.USUAL)


def test_an_error_page_is_no_success() -> None:
    runs = traces.answered(Cell("clusterip", traces.PROXIED))
    runs.samples["status"] = 503
    assert outcome(runs, "clusterip") == "refused behind the sidecar"


def test_invalid_cells_count_for_nothing() -> None:
    good, bad = Cell("pod", traces.PASSED), Cell("clusterip", valid=False)
    assert tables.matrix(traces.answered(good, bad))["answer"].tolist() == ["pod"]
    assert tables.checks(traces.answered(good, bad))["invalid cells"].tolist() == [2]
    with pytest.raises(errors.ReportError, match="4 of 6 cells are invalid"):
        tables.checks(traces.answered(good, bad, Cell("own", valid=False)))


def test_each_modes_sidecar_has_rows_of_its_own(usual: store.Runs) -> None:
    table = tables.matrix(usual)
    assert set(table["mode"]) == {tables.mode(WORLD.arms[arm]) for arm in WORLD.answering} == {"mode1", "mode2"}
    of = {
        mode: cells.rows(table, mode=mode, answer="virtual", intercepted=True, sidecar="up")
        for mode in ("mode1", "mode2")
    }
    assert [each["outcome"] for each in (*of["mode1"], *of["mode2"])] == ["lost", "proxied"]


def test_every_answer_of_the_testbed_has_a_meaning() -> None:
    assert set(answer.WORDS.values["answer"]) == set(WORLD.answers)


def test_an_answer_that_nobody_knows_is_shown_and_counted_by_where_its_address_is(usual: store.Runs) -> None:
    world = dataclasses.replace(
        WORLD, answers={**WORLD.answers, "new": Answer("127.0.0.9", 80), "far": Answer("9.9.9.9", 80)}
    )
    cells = (Cell("new", {}, traces.TOLD), Cell("far", traces.PASSED), Cell("gone", traces.PASSED), *traces.USUAL)
    table = tables.matrix(dataclasses.replace(traces.answered(*cells), world=world))
    assert table["answer"].tolist()[-3:] == ["new", "far", "gone"]
    assert table["home"].tolist()[-3:] == [True, False, False]
    said = answer.outcomes(table)
    assert "56 of 56 connections to addresses outside the pod" in said
    assert "the asking pod's own address and new" in said


def test_the_answer_follows_the_data(usual: store.Runs) -> None:
    said = answer.outcomes(tables.matrix(usual))
    assert "40 of 40 connections to addresses outside the pod" in said
    assert "0 of 32 connections to the pod itself; without it 0 of 48 connections" in said
    assert "So interception decides" in said
    assert (
        "A loop was ended by the circuit breaker, 1000 connections each: the sidecar's port at 127.0.0.1, no guard and"
        in said
    )
    assert "With mode 2's, which knows virtual IPs: proxied: a ClusterIP, a virtual IP and a ServiceEntry's" in said
    other = answer.outcomes(tables.matrix(traces.changed(Cell("loopback", traces.PROXIED))))
    assert "8 of 32 connections to the pod itself" in other
    assert "So interception decides" not in other


def test_runs_that_tried_one_sidecar_say_so() -> None:
    assert "Mode 2's sidecar, which knows virtual IPs, was not tried." in answer.outcomes(
        tables.matrix(traces.answered(Cell("pod", traces.PASSED)))
    )


def test_runs_without_the_matrix_say_how_to_measure_it() -> None:
    runs = store.Runs(
        pd.DataFrame({name: [] for name in ("run", "block", "cell", "experiment", "outcome", "status")}),
        traces.answered(Cell("pod")).cells.iloc[:0],
        [],
        [],
        WORLD,
    )
    matrix = tables.matrix(runs)
    assert matrix.empty
    assert "meshdns report --plan interception" in answer.outcomes(matrix)
    assert isinstance(text.shown(matrix, answer.WORDS, answer.MATRIX), absent.Absent)
    assert tables.checks(runs)["cells"].tolist() == [0]
