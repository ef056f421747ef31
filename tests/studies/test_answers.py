"""The matrix of outcomes, from cells whose truth is known."""

from __future__ import annotations

import pandas as pd
import pytest

import traces
from meshdns import store
from meshdns.core import errors
from meshdns.studies import answers
from shipped import WORLD
from traces import Cell


def outcome(runs: store.Runs, answer: str, intercepted: bool = True, sidecar: str = "up", arm: str = "answers") -> str:
    found = answers.rows(answers.matrix(runs), answer, arm=arm, intercepted=intercepted, sidecar=sidecar)
    assert len(found) == 1
    return f"{found[0]['outcome']} {found[0]['stopped']}".strip()


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
    found = answers.rows(answers.matrix(traces.answered(mixed)), "pod")[0]
    assert found["outcome"] == "4 direct, 2 refused, 2 lost"
    assert found["requests"] == sum(found[name] for name in answers.OUTCOMES) == 8


def test_every_request_has_exactly_one_outcome(usual: store.Runs) -> None:
    matrix = answers.matrix(usual)
    assert (matrix[list(answers.OUTCOMES)].sum(axis=1) == matrix["requests"]).all()
    assert len(matrix) == len(traces.USUAL)


def test_an_error_page_is_no_success() -> None:
    runs = traces.answered(Cell("clusterip", traces.PROXIED))
    runs.samples["status"] = 503
    assert outcome(runs, "clusterip") == "refused behind the sidecar"


def test_invalid_cells_count_for_nothing() -> None:
    good, bad = Cell("pod", traces.PASSED), Cell("clusterip", valid=False)
    assert answers.matrix(traces.answered(good, bad))["answer"].tolist() == ["pod"]
    assert answers.checks(traces.answered(good, bad))["invalid cells"].tolist() == [2]
    with pytest.raises(errors.ReportError, match="4 of 6 cells are invalid"):
        answers.checks(traces.answered(good, bad, Cell("own", valid=False)))


def test_the_grid_has_words_for_every_answer_and_a_dash_for_what_was_not_tried(usual: store.Runs) -> None:
    grid = answers.grid(answers.matrix(usual))
    assert list(grid.columns) == ["captured, sidecar up", "captured, sidecar down", "not captured, sidecar up",
                                  "not captured, sidecar down"]  # fmt: skip
    assert len(grid) == len(WORLD.answers) + 2
    assert grid.loc["a ClusterIP", "captured, sidecar down"] == "refused\nat the sidecar's port"
    assert grid.loc["the sidecar's port at 127.0.0.1, no guard", "captured, sidecar down"] == "–"


def test_each_modes_sidecar_has_a_grid_of_its_own(usual: store.Runs) -> None:
    first, second = (answers.grid(answers.matrix(usual), sidecar) for sidecar in answers.SIDECARS)
    assert first.loc["a virtual IP", "captured, sidecar up"] == "lost\nbehind the sidecar"
    assert second.loc["a virtual IP", "captured, sidecar up"] == "proxied"
    assert second.loc["a virtual IP", "captured, sidecar down"] == "refused\nat the sidecar's port"
    assert first.loc["a ServiceEntry's address", "captured, sidecar up"] == "proxied"
    assert {answers.mode(WORLD.arms[arm]) for arm in WORLD.answering} == set(answers.SIDECARS)


def test_every_answer_of_the_testbed_has_a_meaning_and_a_side() -> None:
    assert set(answers.MEANINGS) == set(WORLD.answers) == {*answers.AWAY, *answers.HOME}


def test_the_answer_follows_the_data(usual: store.Runs) -> None:
    said = answers.answer(answers.matrix(usual))
    assert "40 of 40 connections to addresses outside the pod" in said
    assert "0 of 32 connections to the pod itself; without it 0 of 48 connections" in said
    assert "So interception decides" in said
    assert (
        "A loop was ended by the circuit breaker, 1000 connections each: the sidecar's port at 127.0.0.1, no guard and"
        in said
    )
    assert "With mode 2's, which knows virtual IPs: proxied: a ClusterIP, a virtual IP and a ServiceEntry's" in said
    other = answers.answer(answers.matrix(traces.changed(Cell("loopback", traces.PROXIED))))
    assert "8 of 32 connections to the pod itself" in other
    assert "So interception decides" not in other


def test_runs_that_tried_one_sidecar_say_so() -> None:
    assert "Mode 2's sidecar, which knows virtual IPs, was not tried." in answers.answer(
        answers.matrix(traces.answered(Cell("pod", traces.PASSED)))
    )


def test_runs_without_the_matrix_say_how_to_measure_it() -> None:
    runs = store.Runs(
        pd.DataFrame({name: [] for name in ("run", "block", "cell", "experiment", "outcome", "status")}),
        traces.answered(Cell("pod")).cells.iloc[:0],
        [],
        [],
        WORLD,
    )
    matrix = answers.matrix(runs)
    assert matrix.empty
    assert "meshdns report --plan interception" in answers.answer(matrix)
    assert answers.grid(matrix).empty
    assert answers.shown(matrix).empty
    assert answers.checks(runs)["cells"].tolist() == [0]
