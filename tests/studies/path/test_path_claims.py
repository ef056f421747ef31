"""Each verdict is shown data that supports it and data that says the opposite."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import measured
import traces
from measured import World
from meshdns import store
from meshdns.studies import verdict
from meshdns.studies.cost import tables as cost
from meshdns.studies.names import tables as names
from meshdns.studies.path import claims, tables
from traces import Cell

SEEN, UNSEEN = cost.Resolutions(9, 20, "in 40 s"), cost.Resolutions(0, 0, "in 40 s")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def matrix(*cells: Cell) -> pd.DataFrame:
    """The usual matrix, but for these cells."""
    return tables.matrix(traces.changed(*cells))


NOTHING = tables.matrix(traces.answered(Cell("pod", valid=False)))
NO_REQUESTS = pd.DataFrame(columns=["arm", "backend"])


def test_interception_is_refuted_by_connections_that_were_not_redirected(usual: store.Runs, tmp_path: Path) -> None:
    path = cost.path(usual)
    assert claims.interception(path, NOTHING).verdict == verdict.UNDECIDED
    lost = cost.path(measured.runs(tmp_path, World(lost_redirects=1)))
    assert claims.interception(lost, NOTHING).verdict == verdict.REFUTED
    assert claims.interception(lost, matrix()).verdict == verdict.REFUTED
    assert claims.mode1_path(lost, SEEN).verdict == verdict.REFUTED
    assert claims.mode2_path(lost, NOTHING).verdict == verdict.REFUTED
    without = path[~path["arm"].isin(["mode1"])]
    assert claims.interception(without, NOTHING).verdict == verdict.UNMEASURED
    only = path[path["arm"] == "mode1"]
    assert claims.interception(only, NOTHING).verdict == verdict.UNMEASURED


def test_interception_depends_on_the_address_where_answers_of_the_pod_itself_escape_it(usual: store.Runs) -> None:
    for path in (cost.path(usual), NO_REQUESTS):
        found = claims.interception(path, matrix())
        assert found.verdict == verdict.DEPENDS
        assert "40 of 40 connections to answers outside the pod, 0 of 32 connections to the pod itself" in found.numbers
        some = claims.interception(path, matrix(Cell("unroutable", {}, traces.SILENT)))
        assert some.verdict == verdict.REFUTED
        home = [Cell(answer, traces.PROXIED) for answer in ("loopback", "own", "loopback-sidecar", "own-sidecar")]
        assert claims.interception(path, matrix(*home)).verdict == verdict.SUPPORTED


def test_a_real_address_bypasses_the_proxy_unless_something_intercepts() -> None:
    found = claims.bypass(matrix())
    assert found.verdict == verdict.SUPPORTED
    assert found.numbers == "without interception a pod's address 8 direct; with it a pod's address 8 proxied"
    through = {"pod/envoy/cluster_rq": 4}
    assert claims.bypass(matrix(Cell("pod", through, intercepted=False))).verdict == verdict.REFUTED
    assert claims.bypass(matrix(Cell("pod", {}, traces.TOLD, intercepted=False))).verdict == verdict.UNDECIDED
    assert claims.bypass(NOTHING).verdict == verdict.UNMEASURED


def test_a_loop_is_one_that_goes_round() -> None:
    found = claims.loop(matrix())
    assert found.verdict == verdict.SUPPORTED
    assert "with the guard the first connection is the last" in found.because
    assert "no guard: looped, ended by the circuit breaker, 1000 connections each" in found.numbers
    ended = [Cell(answer, {}, traces.TOLD, arm="unguarded") for answer in ("loopback-sidecar", "own-sidecar")]
    assert claims.loop(matrix(*ended)).verdict == verdict.REFUTED
    guarded = tables.matrix(traces.answered(*(each for each in traces.USUAL if each.arm == "answers")))
    assert claims.loop(guarded).verdict == verdict.UNDECIDED
    assert claims.loop(NOTHING).verdict == verdict.UNMEASURED


@pytest.mark.parametrize(
    ("captured", "open_", "expected"),
    [
        (Cell("clusterip", traces.REDIRECTED, traces.TOLD, sidecar="down"), None, verdict.DEPENDS),
        (Cell("clusterip", {}, sidecar="down"), None, verdict.SUPPORTED),
        (None, Cell("clusterip", {}, traces.TOLD, intercepted=False, sidecar="down"), verdict.REFUTED),
        (Cell("clusterip", {}, ("ok", "timeout", "ok", "timeout"), sidecar="down"), None, verdict.UNDECIDED),
    ],
)
def test_traffic_goes_direct_without_a_sidecar_only_where_nothing_captures_it(
    captured: Cell | None, open_: Cell | None, expected: str
) -> None:
    found = claims.without_sidecar(matrix(*(each for each in (captured, open_) if each)))
    assert found.verdict == expected
    assert "strict mode is not measured" in found.because
    assert claims.without_sidecar(NOTHING).verdict == verdict.UNMEASURED


SEARCHED = ("web.shop.svc.cluster.local.shop.svc.cluster.local.",)


def saved(**changed: tuple[int, int]) -> str:
    """The verdict on runs whose counts in mode 1 and mode 2 are changed so."""
    counts = tables.counts(traces.traced(traces.mode1(*SEARCHED), traces.mode2(*SEARCHED)))
    for name, pair in changed.items():
        counts[name] = list(pair)
    return claims.hops_saved(counts).verdict


def test_hops_are_decided_by_counts_of_traced_requests() -> None:
    counts = tables.counts(traces.traced(traces.mode1(*SEARCHED), traces.mode2(*SEARCHED)))
    assert claims.hops_saved(counts).verdict == verdict.REFUTED
    counts["exchanges_found"] = [2, 1]
    found = claims.hops_saved(counts)
    assert found.verdict == verdict.DEPENDS
    assert "DNS exchanges for a name that is found 1 fewer, connections of the request as many" in found.because
    assert "exchanges for each name that is not 1 more" in found.because
    assert "mode1 2 DNS exchanges (2 leaving a pod), 3 connections (1 leaving)" in found.numbers
    assert "5 hops in all, 3 of them between pods" in found.numbers
    assert saved(exchanges_found=(2, 1), connections=(3, 2), exchanges_each=(3, 2)) == verdict.SUPPORTED
    assert saved(exchanges_found=(1, 2), connections=(3, 4)) == verdict.REFUTED
    assert saved(connections=(4, 3)) == verdict.DEPENDS
    assert saved(outcome=("ok", "timeout")) == verdict.UNMEASURED
    assert claims.hops_saved(counts[counts["arm"] == "mode1"]).verdict == verdict.UNMEASURED
    other = traces.traced(traces.mode1(), traces.mode2(*SEARCHED), earlier=(traces.mode1(), traces.mode2()))
    assert claims.hops_saved(tables.counts(other)).verdict == verdict.REFUTED
    runs = tables.counts(other)
    runs.loc[0, "connections"] = 9
    assert claims.hops_saved(runs).verdict == verdict.UNDECIDED


def of_mode2(answer: str, counters: dict[str, int], outcomes: tuple[str, ...] = ("ok",) * 4) -> Cell:
    return Cell(answer, counters, outcomes, arm=tables.KNOWING)


def test_which_addresses_may_be_answered_depends_on_what_the_sidecar_knows(usual: store.Runs) -> None:
    path = cost.path(usual)
    found = claims.virtual_answers(path, matrix())
    assert found.verdict == verdict.DEPENDS
    assert "0 of 8 connections to 127.0.0.1 redirected" in found.numbers
    assert "a virtual IP 8 proxied, a ServiceEntry's address 8 proxied" in found.numbers
    assert found.because.endswith("lead to the service by the sidecar, 127.0.0.1 does not")
    assert claims.virtual_answers(NO_REQUESTS, matrix()).verdict == verdict.DEPENDS
    led = matrix(of_mode2("loopback", traces.PROXIED))
    assert claims.virtual_answers(path, led).verdict == verdict.SUPPORTED
    lost = [of_mode2(answer, traces.PASSED, traces.SILENT) for answer in ("virtual", "service-entry")]
    assert claims.virtual_answers(path, matrix(*lost)).verdict == verdict.REFUTED
    assert claims.virtual_answers(path.assign(**{"answered_virtual_ip": 0}), matrix()).verdict == verdict.REFUTED
    some = matrix(of_mode2("virtual", {"pod/envoy/cluster_rq": 2}, ("ok", "ok", "timeout", "timeout")))
    assert claims.virtual_answers(path, some).verdict == verdict.UNDECIDED
    assert claims.virtual_answers(path, NOTHING).verdict == verdict.UNMEASURED


def test_answers_that_were_tried_with_mode_1_alone_decide_nothing_of_mode_2(usual: store.Runs) -> None:
    table = matrix()
    found = claims.virtual_answers(cost.path(usual), table[table["arm"] != tables.KNOWING])
    assert found.verdict == verdict.UNDECIDED
    assert found.because == "not tried with mode 2's sidecar: a virtual IP and a ServiceEntry's address"


def test_mode1_path_needs_a_second_resolution_that_was_seen(usual: store.Runs) -> None:
    path = cost.path(usual)
    assert claims.mode1_path(path, SEEN).verdict == verdict.DEPENDS
    assert claims.mode1_path(path, UNSEEN).verdict == verdict.UNDECIDED
    assert claims.mode1_path(path[path["backend"] != "resolved"], SEEN).verdict == verdict.UNDECIDED
    other = path.assign(**{"answered_cluster_ip": 0})
    assert claims.mode1_path(other, SEEN).verdict == verdict.REFUTED
    assert claims.mode1_path(path[path["arm"] != "mode1"], SEEN).verdict == verdict.UNMEASURED


def test_mode2_path_is_refuted_by_what_leaves_the_pod(usual: store.Runs) -> None:
    path = cost.path(usual)
    assert claims.mode2_path(path, NOTHING).verdict == verdict.SUPPORTED
    for names_ in (("answered_virtual_ip", "answered_cluster_ip"), ("at_dns_proxy",)):
        assert claims.mode2_path(path.assign(**dict.fromkeys(names_, 1)), NOTHING).verdict == verdict.REFUTED
    assert claims.mode2_path(path.assign(forwarded=5), NOTHING).verdict == verdict.REFUTED
    assert claims.mode2_path(path[path["arm"] == "plain"], NOTHING).verdict == verdict.UNMEASURED


@pytest.mark.parametrize("arm", names.PROXIED)
def test_mode2_path_holds_for_each_dns_proxy(usual: store.Runs, arm: str) -> None:
    path = cost.path(usual)
    assert f"{arm}: answered with a virtual address" in claims.mode2_path(path, NOTHING).numbers
    assert claims.mode2_path(path[path["arm"] == arm], NOTHING).verdict == verdict.SUPPORTED
    broken = path.assign(forwarded=path["forwarded"].where(path["arm"] != arm, 5))
    found = claims.mode2_path(broken, NOTHING)
    assert (found.verdict, found.because) == (verdict.REFUTED, f"not every call was kept inside the pod in {arm}")


def test_mode2_path_needs_a_sidecar_that_serves_virtual_ips(usual: store.Runs) -> None:
    path = cost.path(usual)
    found = claims.mode2_path(path, matrix())
    assert (found.verdict, found.notebook) == (verdict.SUPPORTED, verdict.WAY)
    assert "a virtual IP, captured, sidecar up: a virtual IP 8 proxied" in found.numbers
    lost = claims.mode2_path(path, matrix(of_mode2("virtual", traces.PASSED, traces.SILENT)))
    assert (lost.verdict, lost.because) == (
        verdict.REFUTED, "not every call was served by the sidecar at a virtual IP")  # fmt: skip
