"""Each verdict is shown data that supports it and data that says the opposite."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import measured
import traces
from measured import World
from meshdns import store
from meshdns.analysis import stats
from meshdns.studies import answers, claims, hops, lookups, requests
from traces import Cell


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def difference(us: float, spread: float = 1.0) -> stats.Difference:
    pairs = [us - spread, us, us + spread, us]
    return stats.paired([500_000.0] * 4, [500_000.0 + 1_000 * each for each in pairs])


FLOOR = stats.noise_floor([500_000.0] * 4, [505_000.0, 495_000.0, 504_000.0, 496_000.0])
SEEN, UNSEEN = requests.Resolutions(9, 20, "in 40 s"), requests.Resolutions(0, 0, "in 40 s")


def matrix(*cells: Cell) -> pd.DataFrame:
    """The usual matrix, but for these cells."""
    return answers.matrix(traces.changed(*cells))


NOTHING = answers.matrix(traces.answered(Cell("pod", valid=False)))
NO_REQUESTS = pd.DataFrame(columns=["arm", "backend", "seconds"])


def test_interception_is_refuted_by_connections_that_were_not_redirected(usual: store.Runs, tmp_path: Path) -> None:
    path = requests.path(usual)
    assert claims.interception(path, NOTHING).verdict == claims.UNDECIDED
    lost = requests.path(measured.runs(tmp_path, World(lost_redirects=1)))
    assert claims.interception(lost, NOTHING).verdict == claims.REFUTED
    assert claims.interception(lost, matrix()).verdict == claims.REFUTED
    assert claims.mode1_path(lost, SEEN).verdict == claims.REFUTED
    assert claims.mode2_path(lost, NOTHING).verdict == claims.REFUTED
    without = path[~path["arm"].isin(["mode1"])]
    assert claims.interception(without, NOTHING).verdict == claims.UNMEASURED
    only = path[path["arm"] == "mode1"]
    assert claims.interception(only, NOTHING).verdict == claims.UNMEASURED


def test_interception_depends_on_the_address_where_answers_of_the_pod_itself_escape_it(usual: store.Runs) -> None:
    for path in (requests.path(usual), NO_REQUESTS):
        found = claims.interception(path, matrix())
        assert found.verdict == claims.DEPENDS
        assert "40 of 40 connections to answers outside the pod, 0 of 32 connections to the pod itself" in found.numbers
        some = claims.interception(path, matrix(Cell("unroutable", {}, traces.SILENT)))
        assert some.verdict == claims.REFUTED
        home = [Cell(answer, traces.PROXIED) for answer in answers.HOME]
        assert claims.interception(path, matrix(*home)).verdict == claims.SUPPORTED


def test_a_real_address_bypasses_the_proxy_unless_something_intercepts() -> None:
    found = claims.bypass(matrix())
    assert found.verdict == claims.SUPPORTED
    assert found.numbers == "without interception a pod's address 8 direct; with it a pod's address 8 proxied"
    through = {"pod/envoy/cluster_rq": 4}
    assert claims.bypass(matrix(Cell("pod", through, intercepted=False))).verdict == claims.REFUTED
    assert claims.bypass(matrix(Cell("pod", {}, traces.TOLD, intercepted=False))).verdict == claims.UNDECIDED
    assert claims.bypass(NOTHING).verdict == claims.UNMEASURED


def test_a_loop_is_one_that_goes_round() -> None:
    found = claims.loop(matrix())
    assert found.verdict == claims.SUPPORTED
    assert "with the guard the first connection is the last" in found.because
    assert "no guard: looped, ended by the circuit breaker, 1000 connections each" in found.numbers
    ended = [Cell(answer, {}, traces.TOLD, arm="unguarded") for answer in answers.TO_SIDECAR]
    assert claims.loop(matrix(*ended)).verdict == claims.REFUTED
    guarded = answers.matrix(traces.answered(*(each for each in traces.USUAL if each.arm == "answers")))
    assert claims.loop(guarded).verdict == claims.UNDECIDED
    assert claims.loop(NOTHING).verdict == claims.UNMEASURED


@pytest.mark.parametrize(
    ("captured", "open_", "verdict"),
    [
        (Cell("clusterip", traces.REDIRECTED, traces.TOLD, sidecar="down"), None, claims.DEPENDS),
        (Cell("clusterip", {}, sidecar="down"), None, claims.SUPPORTED),
        (None, Cell("clusterip", {}, traces.TOLD, intercepted=False, sidecar="down"), claims.REFUTED),
        (Cell("clusterip", {}, ("ok", "timeout", "ok", "timeout"), sidecar="down"), None, claims.UNDECIDED),
    ],
)
def test_traffic_goes_direct_without_a_sidecar_only_where_nothing_captures_it(
    captured: Cell | None, open_: Cell | None, verdict: str
) -> None:
    found = claims.without_sidecar(matrix(*(each for each in (captured, open_) if each)))
    assert found.verdict == verdict
    assert "strict mode is not measured" in found.because
    assert claims.without_sidecar(NOTHING).verdict == claims.UNMEASURED


SEARCHED = ("web.shop.svc.cluster.local.shop.svc.cluster.local.",)


def saved(**changed: tuple[int, int]) -> str:
    """The verdict on runs whose counts in mode 1 and mode 2 are changed so."""
    counts = hops.counts(traces.traced(traces.mode1(*SEARCHED), traces.mode2(*SEARCHED)))
    for name, pair in changed.items():
        counts[name.replace("_", " ")] = list(pair)
    return claims.hops_saved(counts).verdict


def test_hops_are_decided_by_counts_of_traced_requests() -> None:
    counts = hops.counts(traces.traced(traces.mode1(*SEARCHED), traces.mode2(*SEARCHED)))
    found = claims.hops_saved(counts)
    assert found.verdict == claims.DEPENDS
    assert "DNS exchanges for a name that is found 1 fewer, connections of the request as many" in found.because
    assert "exchanges for each name that is not 1 more" in found.because
    assert "mode1 4 DNS exchanges (2 leaving a pod), 3 connections (1 leaving)" in found.numbers
    assert "7 hops in all, 3 of them between pods" in found.numbers
    assert saved(connections=(3, 2), exchanges_each=(3, 2)) == claims.SUPPORTED
    assert saved(exchanges_of_the_name_found=(1, 1)) == claims.REFUTED
    assert saved(exchanges_of_the_name_found=(1, 2), connections=(3, 4)) == claims.REFUTED
    assert saved(connections=(4, 3)) == claims.DEPENDS
    assert saved(outcome=("ok", "timeout")) == claims.UNMEASURED
    assert claims.hops_saved(counts[counts["arm"] == "mode1"]).verdict == claims.UNMEASURED
    other = traces.traced(traces.mode1(), traces.mode2(*SEARCHED), earlier=(traces.mode1(), traces.mode2()))
    assert claims.hops_saved(hops.counts(other)).verdict == claims.DEPENDS
    runs = hops.counts(other)
    runs.loc[0, "connections"] = 9
    assert claims.hops_saved(runs).verdict == claims.UNDECIDED


def of_mode2(answer: str, counters: dict[str, int], outcomes: tuple[str, ...] = ("ok",) * 4) -> Cell:
    return Cell(answer, counters, outcomes, arm=answers.MODE2)


def test_which_addresses_may_be_answered_depends_on_what_the_sidecar_knows(usual: store.Runs) -> None:
    path = requests.path(usual)
    found = claims.virtual_answers(path, matrix())
    assert found.verdict == claims.DEPENDS
    assert "0 of 8 connections to 127.0.0.1 redirected" in found.numbers
    assert "a virtual IP 8 proxied, a ServiceEntry's address 8 proxied" in found.numbers
    assert found.because.endswith("lead to the service by the sidecar, 127.0.0.1 does not")
    assert claims.virtual_answers(NO_REQUESTS, matrix()).verdict == claims.DEPENDS
    led = matrix(of_mode2("loopback", traces.PROXIED))
    assert claims.virtual_answers(path, led).verdict == claims.SUPPORTED
    lost = [of_mode2(answer, traces.PASSED, traces.SILENT) for answer in ("virtual", "service-entry")]
    assert claims.virtual_answers(path, matrix(*lost)).verdict == claims.REFUTED
    assert claims.virtual_answers(path.assign(**{"answered virtual IP": 0}), matrix()).verdict == claims.REFUTED
    some = matrix(of_mode2("virtual", {"pod/envoy/cluster_rq": 2}, ("ok", "ok", "timeout", "timeout")))
    assert claims.virtual_answers(path, some).verdict == claims.UNDECIDED
    assert claims.virtual_answers(path, NOTHING).verdict == claims.UNMEASURED


def test_answers_that_were_tried_with_mode_1_alone_decide_nothing_of_mode_2(usual: store.Runs) -> None:
    table = matrix()
    found = claims.virtual_answers(requests.path(usual), table[table["arm"] != answers.MODE2])
    assert found.verdict == claims.UNDECIDED
    assert found.because == "not tried with mode 2's sidecar: a virtual IP and a ServiceEntry's address"


def test_mode1_path_needs_a_second_resolution_that_was_seen(usual: store.Runs) -> None:
    path = requests.path(usual)
    assert claims.mode1_path(path, SEEN).verdict == claims.DEPENDS
    assert claims.mode1_path(path, UNSEEN).verdict == claims.UNDECIDED
    assert claims.mode1_path(path[path["backend"] != "static"], SEEN).verdict == claims.SUPPORTED
    other = path.assign(**{"answered ClusterIP": 0})
    assert claims.mode1_path(other, SEEN).verdict == claims.REFUTED
    assert claims.mode1_path(path[path["arm"] != "mode1"], SEEN).verdict == claims.UNMEASURED


def test_mode2_path_is_refuted_by_what_leaves_the_pod(usual: store.Runs) -> None:
    path = requests.path(usual)
    assert claims.mode2_path(path, NOTHING).verdict == claims.SUPPORTED
    for name in ("answered virtual IP", "at DNS proxy"):
        assert claims.mode2_path(path.assign(**{name: 1}), NOTHING).verdict == claims.REFUTED
    assert claims.mode2_path(path.assign(forwarded=5), NOTHING).verdict == claims.REFUTED
    assert claims.mode2_path(path[path["arm"] == "plain"], NOTHING).verdict == claims.UNMEASURED


@pytest.mark.parametrize("arm", lookups.PROXIED)
def test_mode2_path_holds_for_each_dns_proxy(usual: store.Runs, arm: str) -> None:
    path = requests.path(usual)
    assert f"{arm}: answered with a virtual IP" in claims.mode2_path(path, NOTHING).numbers
    assert claims.mode2_path(path[path["arm"] == arm], NOTHING).verdict == claims.SUPPORTED
    broken = path.assign(forwarded=path["forwarded"].where(path["arm"] != arm, 5))
    found = claims.mode2_path(broken, NOTHING)
    assert (found.verdict, found.because) == (claims.REFUTED, f"not every call was kept inside the pod in {arm}")


def test_mode2_path_needs_a_sidecar_that_serves_virtual_ips(usual: store.Runs) -> None:
    path = requests.path(usual)
    found = claims.mode2_path(path, matrix())
    assert (found.verdict, found.notebook) == (claims.SUPPORTED, claims.WAY)
    assert "a virtual IP, captured, sidecar up: a virtual IP 8 proxied" in found.numbers
    lost = claims.mode2_path(path, matrix(of_mode2("virtual", traces.PASSED, traces.SILENT)))
    assert (lost.verdict, lost.because) == (
        claims.REFUTED, "not every call was served by the sidecar at a virtual IP")  # fmt: skip
