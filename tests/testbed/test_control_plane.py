"""What the control plane pushes to sidecars, names and records from one folder of YAML, told by real requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from meshdns.lab import controlplane
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.place import Place
from meshdns.measure.cell import Cell
from meshdns.measure.plan import Trial
from meshdns.measure.session import Session
from shipped import WORLD

MODES = ("mode1-xds", "mode2-xds", "mode2-envoy-xds")
MODE2 = MODES[1:]


def trial(arm: str, backend: str = "shop", count: int = 20, **factors: object) -> Trial:
    base = {"arrival": "closed", "wait": "block", "kind": "request", "connection": "new", "body_bytes": 1024}
    return Trial(Cell("test", arm, backend=backend, **{**base, **factors}), count, 0, 3000, False)  # type: ignore[arg-type]


def seen(session: Session, asked: Trial, column: str) -> set[str]:
    return set(session.trial(0, asked, seed=1).table.column(column).to_pylist())


@pytest.fixture
def pushing(session: Session) -> controlplane.ControlPlane:
    found = session.conditions.controlplane
    assert found is not None
    found.enforce("none")
    return found


@contextlib.contextmanager
def written(bed: Place, text: str) -> Iterator[None]:
    """One more file among those that the control plane reads."""
    bed.put("mesh/more.yaml", text)
    try:
        yield
    finally:
        bed.put("mesh/more.yaml", None)


def until(holds: object, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False


def test_sidecars_names_and_records_agree(pushing: controlplane.ControlPlane) -> None:
    told = pushing.pushed()
    assert list(controlplane.unsettled(told["status"], WORLD)) == []
    assert told["names"]["shop.shop.svc.cluster.local"] == [WORLD.backends["shop"].cluster_ip]
    assert told["records"]["shop.shop.svc.cluster.local"] == [WORLD.backends["shop"].cluster_ip]
    assert sorted(told["records"]["shop-headless.shop.svc.cluster.local"]) == sorted(
        pushing.place.address(pod) for pod in WORLD.backends["shop"].replicas
    )
    virtual = [told["names"][f"{name}.example.com"] for name in ("api", "postgres", "redis")]
    assert all(address.startswith("240.240.") for [address] in virtual)
    assert len({address for [address] in virtual}) == 3


@pytest.mark.parametrize("arm", ["plain", *MODES])
@pytest.mark.parametrize("backend", ["shop", "shop-headless"])
def test_every_arm_reaches_the_replicas_and_no_unready_one(session: Session, arm: str, backend: str) -> None:
    measured = session.trial(0, trial(arm, backend, 30), seed=1)
    assert set(measured.table.column("outcome").to_pylist()) == {"ok"}
    # Envoy's filter answers in one order, and an application takes the first: it does not divide what is headless.
    alone = (arm, backend) == ("mode2-envoy-xds", "shop-headless")
    replicas, reached = {"shop-1", "shop-2", "shop-3"}, set(measured.table.column("replica").to_pylist())
    assert reached <= replicas
    assert len(reached) == (1 if alone else len(replicas))
    assert measured.record.counters["servers/nginx_rq"] == 30


@pytest.mark.parametrize("arm", MODES)
def test_a_name_of_the_world_is_led_to_what_the_headless_name_resolves_to(session: Session, arm: str) -> None:
    assert seen(session, trial(arm, "shop-dns"), "outcome") == {"ok"}


@pytest.mark.parametrize(("policy", "plain"), [("strict", "reset"), ("permissive", "ok"), ("disable", "ok")])
def test_strict_lets_in_who_has_a_sidecar(session: Session, policy: str, plain: str) -> None:
    refused = session.trial(0, trial("plain", policy=policy), seed=1)
    assert set(refused.table.column("outcome").to_pylist()) == {plain}
    assert refused.record.counters.get("servers/no_chain", 0) == (20 if plain == "reset" else 0)
    for arm in MODES:
        measured = session.trial(0, trial(arm, policy=policy), seed=1)
        assert set(measured.table.column("outcome").to_pylist()) == {"ok"}
        encrypted = measured.record.counters.get("servers/mtls_cx", 0)
        assert (encrypted > 0) == (policy != "disable")


def test_two_tcp_services_on_one_port_are_told_apart_by_virtual_addresses_only(session: Session) -> None:
    for backend in ("postgres", "redis"):
        assert seen(session, trial("plain", backend), "replica") == {backend}
        for arm in MODE2:
            assert seen(session, trial(arm, backend), "replica") == {backend}
        assert seen(session, trial("mode1-xds", backend), "replica") == {"postgres"}  # the first that was made


@pytest.mark.parametrize("arm", ["plain", *MODES])
def test_an_external_name_is_served_in_every_arm(session: Session, arm: str) -> None:
    measured = session.trial(0, trial(arm, "api"), seed=1)
    assert set(measured.table.column("replica").to_pylist()) == {"api"}
    virtual = {address.startswith("240.240.") for address in measured.table.column("address").to_pylist()}
    assert virtual == {arm in MODE2}


@pytest.mark.parametrize("arm", MODE2)
def test_the_dns_proxy_of_a_managed_pod_gets_every_query_and_answers_it(session: Session, arm: str) -> None:
    for backend in ("shop-headless", "api"):
        measured = session.trial(0, trial(arm, backend, 30), seed=1)
        queries = sum(measured.table.column("queries").to_pylist())
        assert measured.record.counters["pod/dnsproxy/queries"] == queries >= 30
        assert "pod/dnsproxy/forwarded" not in measured.record.counters


def test_a_name_told_to_the_agents_proxy_and_to_envoys_filter_is_answered_alike(
    pushing: controlplane.ControlPlane, session: Session
) -> None:
    told = pushing.pushed()["names"]
    for backend in ("shop", "shop-headless", "api", "postgres"):
        host = WORLD.backends[backend].host
        for arm in MODE2:
            assert seen(session, trial(arm, backend, 60), "address") <= set(told[host]), (arm, host)


_OVER_TCP = """
import sys, dns.message, dns.query
answer = dns.query.tcp(dns.message.make_query(sys.argv[1], "A", use_edns=False), sys.argv[2], timeout=3)
print(*(record.address for rrset in answer.answer for record in rrset))
"""


@pytest.mark.parametrize("arm", MODE2)
def test_dns_over_tcp_is_answered_in_a_managed_pod(bed: Testbed, arm: str) -> None:
    asked = ["python3", "-c", _OVER_TCP, WORLD.backends["api"].host, WORLD.dns_cluster_ip]
    [address] = bed.exec(WORLD.arms[arm].pod, asked, timeout_s=15, image="dnsproxy").split()
    # Envoy has no DNS filter for TCP: what it passes on gets the real address.
    assert address.startswith("240.240." if WORLD.arms[arm].dns == "agent" else bed.nets.world)


def test_certificates_are_replaced_within_an_hour(pushing: controlplane.ControlPlane) -> None:
    held = pushing.status()["certificates"]
    assert held.keys() >= {f"{WORLD.namespace}/{WORLD.arms[arm].pod}" for arm in MODES}
    assert all(0 < one["ends"] - time.time() <= 3600 for one in held.values())


@pytest.mark.parametrize("arm", MODES)
def test_policies_change_what_becomes_of_faults(session: Session, arm: str) -> None:
    without = session.trial(0, trial(arm, count=100, fault="fail30"), seed=1)
    helped = session.trial(0, trial(arm, count=100, fault="fail30", policy="retries"), seed=1)
    assert without.table.column("outcome").to_pylist().count("http_error") > 0
    assert helped.table.column("outcome").to_pylist().count("http_error") == 0
    assert helped.record.counters["pod/envoy/retries"] > 0
    tries = 100 + helped.record.counters["pod/envoy/retries"]
    assert helped.record.counters["pod/envoy/tries"] == helped.record.counters["servers/nginx_rq"] == tries
    slow = trial(arm, count=30, fault="slow", policy="timeouts")
    assert seen(session, slow, "replica") <= {"shop-2", "shop-3"}
    split = session.trial(0, trial(arm, count=300, policy="split"), seed=1).table.column("replica").to_pylist()
    assert 5 <= split.count("shop-3") <= 70  # 30 expected; either bound is five standard deviations away


@pytest.mark.parametrize("arm", MODE2)
@pytest.mark.parametrize("change", ["up", "crash"])
def test_readiness_decides_who_is_asked(session: Session, change: str, arm: str) -> None:
    load = trial(arm, count=2400, arrival="constant", rate_hz=200.0, concurrency=100, change=change)
    measured = session.trial(0, load, seed=1)
    done_ns = measured.record.agent["change"]["done_ns"]  # a busy machine may take long to kill two containers
    late = measured.table.filter(measured.table.column("due_ns").to_numpy() > done_ns + 1_500_000_000)
    assert late.num_rows > 200
    asked = set(late.column("replica").to_pylist())
    assert ("shop-4" in asked) == (change == "up")
    assert ("shop-1" in asked) == (change != "crash")
    assert set(late.column("outcome").to_pylist()) == {"ok"}
    assert seen(session, trial(arm, count=60), "replica") == {"shop-1", "shop-2", "shop-3"}  # as before


def test_what_cannot_be_used_changes_nothing_and_is_said(pushing: controlplane.ControlPlane, session: Session) -> None:
    number = pushing.status()["configuration"]["number"]
    with written(pushing.place, "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: nonsense}\n"):
        assert until(lambda: "more.yaml" in pushing.status()["configuration"]["error"])
        shown = "\n".join(controlplane.summary(pushing.status(), WORLD))
        assert "clusterIP" in shown
        assert "what was in force stays" in shown
        assert pushing.status()["configuration"]["number"] == number
        assert seen(session, trial("mode2-xds"), "outcome") == {"ok"}
    assert until(lambda: not pushing.status()["configuration"]["error"])


def test_new_certificates_break_nothing(pushing: controlplane.ControlPlane, session: Session) -> None:
    before = pushing.status()["certificates"]["shop/shop-1"]["rotations"]
    how: dict[str, object] = {"arrival": "constant", "rate_hz": 200.0, "concurrency": 100, "policy": "reconnect"}
    measured = session.trial(0, trial("mode1-xds", count=600, change="rotate", **how), seed=1)
    assert set(measured.table.column("outcome").to_pylist()) == {"ok"}
    assert measured.record.agent["change"]["mutual_tls"] > 0  # the new ones were tried
    assert pushing.status()["certificates"]["shop/shop-1"]["rotations"] == before + 1


def test_without_the_control_plane_the_data_plane_keeps_what_it_has(
    pushing: controlplane.ControlPlane, session: Session
) -> None:
    pushing.place.kill("control-plane")
    try:
        for arm in MODES:
            assert seen(session, trial(arm), "outcome") == {"ok"}
    finally:
        pushing.place.start("control-plane")
    assert until(lambda: _settled(pushing), 30)


def _settled(pushing: controlplane.ControlPlane) -> bool:
    with contextlib.suppress(Exception):
        return not any(controlplane.unsettled(pushing.status(), WORLD))
    return False


def test_what_a_killed_run_left_in_force_is_not_taken_for_the_testbed(bed: Testbed) -> None:
    assert bed.is_up()
    with written(bed, "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}]}\n"):
        assert not bed.is_up()
    assert bed.is_up()
