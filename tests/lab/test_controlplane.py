"""Istio's own control plane as a run uses it, on the place in memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from meshdns.ads.types import EDS, LDS, NDS
from meshdns.core import errors
from meshdns.core.world import LIVE
from meshdns.lab import controlplane, observers
from meshdns.lab.controlplane import ControlPlane, unsettled
from meshdns.lab.parts import istiod
from recording import Recording, at_once
from shipped import WORLD

__all__ = ["at_once"]  # around every test
MODE1, MODE2 = WORLD.arms["mode1"], WORLD.arms["mode2-agent"]


def known(sent: str = "1", acked: str = "1", at: str = "2026-01-01T00:00:10+00:00", **more: str) -> dict[str, Any]:
    return {"sent": sent, "acked": acked, "sentTime": at, **more}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({LDS: known()}, []),
        (None, ["client-mode1 is not connected"]),
        ({LDS: known(sent="2")}, ["client-mode1 has not accepted Listener yet"]),
        ({LDS: known(sent="2", lastError="no such filter")}, ["client-mode1 rejects Listener: no such filter"]),
        ({}, ["client-mode1 was not sent Listener"]),
        ({LDS: known(at="2025-12-31T23:59:59Z")}, ["client-mode1 was not sent Listener"]),
    ],
)
def test_who_has_not_accepted_what_it_was_sent_is_named(told: dict[str, Any] | None, said: list[str]) -> None:
    since_s = 1_767_225_600.0  # 2026 begins
    everybody = {} if told is None else {"client-mode1": told}
    assert list(unsettled(everybody, [MODE1], since_s, [LDS])) == said


def test_a_name_table_is_awaited_of_who_is_sent_one() -> None:
    told = {pod.pod: {EDS: known()} for pod in (MODE1, MODE2)}
    assert list(unsettled(told, [MODE1, MODE2], 0.0, [EDS, NDS])) == []  # nothing is awaited since the beginning
    assert list(unsettled(told, [MODE1, MODE2], 1.0, [NDS])) == ["client-mode2-agent was not sent NameTable"]


@pytest.fixture
def place() -> Recording:
    found = Recording(frozenset({LIVE, "shop", "dead", "outside"}))
    found.up(lambda _: None)
    return found


@pytest.fixture
def plane(place: Recording) -> ControlPlane:
    return ControlPlane(place, place.plane(), place.talk("observer", observers.PROGRAM))


def test_one_policy_takes_anothers_place(place: Recording, plane: ControlPlane) -> None:
    for policy, there in (("strict", ["strict.yaml"]), ("retries", ["retries.yaml"]), ("none", [])):
        plane.enforce(policy)
        assert list(place.plane().there) == there
        service = place.plane().service
        assert (place.files[f"{service}/in-force"] == istiod.in_force(service)[f"{service}/in-force"]) == (not there)
        asked = len(place.asked)
        plane.enforce(policy)
        assert len(place.asked) == asked  # it is in force already


@pytest.mark.parametrize("kind", controlplane.EFFECTS)
def test_a_change_is_taken_back_whole(kind: str, place: Recording, plane: ControlPlane) -> None:
    before = {part.service: part.state for part in place.parts()}
    usual = place.plane().replicas(WORLD.backends["shop"])
    mark, unmarked = f"{plane.plane.service}/in-force", istiod.in_force(plane.plane.service)
    at_ns = time.monotonic_ns()
    happened = plane.change(kind)
    assert place.files[mark] != unmarked[mark]  # what a killed run leaves so is not as it was started
    during = place.plane().replicas(WORLD.backends["shop"])
    added, removed = controlplane.EFFECTS[kind]
    assert at_ns <= happened["at_ns"] <= happened["done_ns"]
    assert set(during) == {*usual, *added} - {*removed}
    ended = {service for service, part in place.states.items() if part.state != "running"} - {
        service for service, state in before.items() if state != "running"
    }
    assert ended <= plane.ended.now  # else a run would take them for lost
    plane.restore(kind)
    assert {part.service: part.state for part in place.parts()} == before
    assert place.plane().replicas(WORLD.backends["shop"]) == usual
    assert not place.plane().there
    assert not plane.ended.now
    assert place.files[mark] == unmarked[mark]


def test_a_setting_of_istiod_is_read_by_one_that_starts_anew(place: Recording, plane: ControlPlane) -> None:
    plane.gather("1ms")
    service = place.plane().service
    assert place.files[f"{service}/settings"] == istiod.settings(service, "1ms")[f"{service}/settings"]
    moved = [asked[:2] for asked in place.asked if asked[0] in ("put", "kill", "start")][-3:]
    assert moved == [("put", f"{service}/settings"), ("kill", service), ("start", service)]


def test_a_sidecar_that_never_accepts_is_told(
    place: Recording, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlplane, "SETTLE_TIMEOUT_S", 0)
    place.plane().tell = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(errors.TestbedError, match=r"^plane-istiod: client-.* was not sent Listener"):
        plane.enforce("strict")


def test_an_istiod_that_no_longer_answers_is_told(
    place: Recording, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlplane, "SETTLE_TIMEOUT_S", 0)

    def gone() -> dict[str, dict[str, Any]]:
        raise errors.TestbedError("does not say who is connected", place="plane-istiod")

    place.plane().sidecars = gone  # type: ignore[method-assign]
    with pytest.raises(errors.TestbedError, match=r"^plane-istiod: istiod does not answer"):
        plane.enforce("strict")


def test_the_status_says_that_all_have_accepted_or_who_has_not(place: Recording) -> None:
    [line] = controlplane.summary(place)
    assert line.endswith("sidecars have accepted all that they were sent")
    place.kill("client-mode1-istio-proxy")
    assert list(controlplane.summary(place)) == ["istiod: client-mode1 is not connected"]
