"""What a kubelet would write of a Pod, and which ServiceEntries wait for an address."""

from __future__ import annotations

import pytest

from meshdns.core import errors
from meshdns.lab import kubernetes, objects
from shipped import WORLD

PODS = {each.name: each for each in objects.told(WORLD) if each.kind == "Pod"}


def test_a_pod_is_running_at_the_address_that_the_place_gave_it() -> None:
    status = kubernetes._status(PODS["web-1"], WORLD)
    assert status is not None
    assert (status["phase"], status["podIP"], status["podIPs"]) == ("Running", "198.18.0.21", [{"ip": "198.18.0.21"}])
    assert {each["status"] for each in status["conditions"]} == {"True"}


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({}, True),
        ({"resolution": "NONE"}, False),
        ({"addresses": ["192.0.2.80"]}, False),
        ({"hosts": ["*.example.com"]}, False),
    ],
)
def test_who_gets_a_virtual_ip(change: dict[str, object], waits: bool) -> None:
    spec = {"hosts": ["a.example.com"], "resolution": "DNS"} | change
    assert kubernetes._gets_address({"metadata": {}, "spec": spec}) is waits
    opted_out = {"labels": {"networking.istio.io/enable-autoallocate-ip": "False"}}
    assert not kubernetes._gets_address({"metadata": opted_out, "spec": spec})


def test_who_never_comes_up_is_named_and_who_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "TIMEOUT_S", 0.2)
    with pytest.raises(errors.TestbedError, match="istiod: did not come up within"):
        kubernetes.awaited("istiod", lambda: False, lambda: None)

    def ended() -> None:
        raise errors.TestbedError("the container ended with code 1", place="plane-istiod")

    with pytest.raises(errors.TestbedError, match="plane-istiod: the container ended"):
        kubernetes.awaited("istiod", lambda: False, ended)
