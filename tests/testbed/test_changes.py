"""Istio's own control plane while a run uses it: policies in force, replicas that come and go, its debounce."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from meshdns import cli
from meshdns.core.world import LIVE
from meshdns.lab import controlplane, locks
from meshdns.lab.compose import engine, testbed
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.controlplane import EFFECTS, ControlPlane
from meshdns.measure.cell import Cell
from meshdns.measure.plan import Trial
from meshdns.measure.session import Measured, Session, opened
from shipped import WORLD

OWN = {
    "MESHDNS_PROJECT": "meshdns-test-changes", "MESHDNS_PODS": "198.18.74", "MESHDNS_WORLD": "198.19.74",
    "MESHDNS_PLANE": "198.19.174",
}  # fmt: skip
GROUPS = frozenset({LIVE, "shop"})
FAILING, SPARE = "shop-1", "shop-4"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in OWN.items():
            environment.setenv(name, value)
        locks.machine().ask()
        engine.ensure(lambda _: None)
        images = engine.images(lambda _: None, testbed.images_of(WORLD, GROUPS))
        project = cli._project()
        bed = Testbed(images, cli._nets(), project, testbed.state_of(project), GROUPS, WORLD)
        with locks.testbed("tests", project).hold("tests of changes"):
            bed.down()
            bed.up(lambda _: None)
            try:
                with opened(bed) as found:
                    yield found
            finally:
                bed.down()
                assert bed.containers() == []


@pytest.fixture
def control(session: Session) -> ControlPlane:
    assert session.conditions.controlplane
    return session.conditions.controlplane


def measured(session: Session, arm: str, **levels: Any) -> Measured:
    """Requests at a rate, on connections of their own."""
    usual: dict[str, Any] = {"kind": "request", "connection": "new", "backend": "shop", "body_bytes": 1024}
    cell = Cell("changes", arm, **{**usual, "concurrency": 500, "rate_hz": 100.0, **levels})
    return session.trial(0, Trial(cell, 300, 0, 3000, capture=False), 1)


def served(found: Measured, *, since_ns: int = 0) -> set[str]:
    """Who answered requests that started since then."""
    started = found.table.column("start_ns").to_numpy() >= since_ns
    return set(np.array(found.table.column("replica").to_pylist())[started]) - {""}


def test_mutual_tls_is_counted_where_it_is_asked_for(session: Session) -> None:
    strict = {"policy": "strict", "arrival": "closed", "rate_hz": 0.0}
    inside, outside = measured(session, "mode1", **strict), measured(session, "plain", **strict)
    assert set(inside.table.column("outcome").to_pylist()) == {"ok"}
    assert inside.record.counters["servers/mtls_cx"] == 300
    assert set(outside.table.column("outcome").to_pylist()) == {"reset"}
    plain = measured(session, "mode1", **{**strict, "policy": "disable"})
    assert "servers/mtls_cx" not in plain.record.counters


def test_retries_are_counted(session: Session) -> None:
    found = measured(session, "mode1", policy="retries", fault="fail30", arrival="closed", rate_hz=0.0)
    assert set(found.table.column("outcome").to_pylist()) == {"ok"}
    counted = found.record.counters
    assert counted["pod/envoy/tries"] == 300 + counted["pod/envoy/retries"] > 300


@pytest.mark.parametrize(("arm", "backend"), [("mode1", "shop"), ("mode2-agent", "shop-headless")])
@pytest.mark.parametrize("kind", ["up", "down", "replace"])
def test_traffic_follows_a_change_and_it_is_taken_back(session: Session, arm: str, backend: str, kind: str) -> None:
    found = measured(session, arm, backend=backend, change=kind)
    change, (added, removed) = found.record.agent["change"], EFFECTS[kind]
    late = served(found, since_ns=change["at_ns"] + 1_500_000_000)
    assert set(added) <= late
    assert not set(removed) & late
    assert served(measured(session, arm, backend=backend)) == {"shop-1", "shop-2", "shop-3"}


def test_istiod_that_gathers_longer_tells_later(session: Session, control: ControlPlane) -> None:
    first_s = {}
    for level in ("1s", "1ms"):
        found = measured(session, "mode2-agent", change="up", debounce=level)
        spare = np.array(found.table.column("replica").to_pylist()) == SPARE
        at_ns = found.record.agent["change"]["at_ns"]
        first_s[level] = (found.table.column("start_ns").to_numpy()[spare].min() - at_ns) / 1e9
    assert first_s["1ms"] < first_s["1s"]
    assert first_s["1s"] > 1
    control.gather("100ms")


def test_nobody_notices_that_istiod_is_away(session: Session, control: ControlPlane) -> None:
    found = measured(session, "mode1", change="istiod", rate_hz=30.0)
    assert set(found.table.column("outcome").to_pylist()) == {"ok"}
    assert control.plane.service in control.ended.ever
    assert not control.ended.now
    sidecars = [pod for pod in control.place.world.up(control.place.groups) if pod.sidecar]
    assert not list(controlplane.unsettled(control.plane.sidecars(), sidecars))


def test_a_policy_that_denies_comes_while_requests_are_made(session: Session) -> None:
    found = measured(session, "mode1", policy="pooled", change="deny", connection="keepalive", concurrency=2)
    status = np.array(found.table.column("status").to_pylist())
    started = found.table.column("start_ns").to_numpy()
    change = found.record.agent["change"]
    assert set(status[started < change["at_ns"]]) == {200}
    assert status[started.argmax()] == 403
    # Connections of the policy alone: those that were kept before the next one refuse once more.
    assert found.record.agent["change"]["pooled"] > 0
    assert set(measured(session, "mode1").table.column("status").to_pylist()) == {200}
