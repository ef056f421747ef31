"""Istio's own control plane in containers: what it says is what was recorded, and what it refuses leaves nothing.

A small mesh is tried with it, and with what it was recorded to say.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_paths import request, trial, wrong

from meshdns import cli
from meshdns.core import errors
from meshdns.core.world import LIVE, Pod, World
from meshdns.lab import kubernetes, live, locks, parts, ports, recording, world
from meshdns.lab.compose import engine, testbed
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.parts.istio_proxy import handed
from meshdns.measure import session
from meshdns.measure.session import Session
from shipped import WORLD

OWN = {
    "MESHDNS_PROJECT": "meshdns-test-live", "MESHDNS_PODS": "198.18.77", "MESHDNS_WORLD": "198.19.77",
    "MESHDNS_PLANE": "198.19.177",
}  # fmt: skip
# The API server's own schema takes the first; Istio does not.
REFUSED = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wrong, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  http:
  - route:
    - {destination: {host: web.shop.svc.cluster.local}, weight: 50}
    - {destination: {host: legacy.shop.svc.cluster.local}, weight: -50}
"""
# Only mutual TLS comes in, and each request has a connection of its own, so that what is encrypted can be counted.
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web.shop.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
"""
IDLE = {"client-ip", "client-plain-aa", "client-mode2-envoy", "client-mode2-agent", "web-2", "web-3", "legacy-1",
        "legacy-2", "legacy-3"}  # fmt: skip
BRIEF = {"client-mode1", "web-1"}  # pods whose certificates are renewed every ten seconds
IMPOSSIBLE = """
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec:
  clusterIP: 10.97.0.1
  ports: [{name: http, port: 80}]
"""


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A name and networks of its own; nobody measures meanwhile."""
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    locks.machine().ask()
    with locks.testbed("tests", OWN["MESHDNS_PROJECT"]).hold("tests of the live plane"):
        yield


def bed(of: World = WORLD, *, alone: bool = True, groups: Collection[str] = (LIVE,)) -> Testbed:
    engine.ensure(lambda _: None)
    needed = {at.part.image for at in live.parts_of(of, cli._nets())} if alone else testbed.images_of(of, groups)
    images, project = engine.images(lambda _: None, needed), cli._project()
    return Testbed(images, cli._nets(), project, testbed.state_of(project), frozenset(groups), of)


def small(folder: Path) -> World:
    """The shipped world with one server behind each name, mutual TLS alone, and certificates that live briefly."""
    documents = [each for path in sorted(world.SHIPPED.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
    for each in documents:
        name = each["metadata"]["name"]
        if each["kind"] == "EndpointSlice":
            del each["endpoints"][1:]
        elif each["kind"] == "Pod":
            notes = each["metadata"].setdefault("annotations", {})
            notes |= {"meshdns/group": "idle"} if name in IDLE else {}
            notes |= {"proxy.istio.io/config": "proxyMetadata: {SECRET_TTL: 20s}"} if name in BRIEF else {}
    (folder / "world.yaml").write_text(yaml.safe_dump_all(documents))
    (folder / "strict.yaml").write_text(STRICT)
    return world.read([folder])


def test_the_recording_is_what_istio_says_and_one_byte_more_is_seen(tmp_path: Path) -> None:
    with bed().plane_alone(lambda _: None) as plane:
        made = plane.record()
    kept = tmp_path / "kept"
    shutil.copytree(recording.FOLDER, kept)
    assert recording.write(made, kept) == []
    altered = kept / "Listener.json"
    altered.write_text(altered.read_text().replace("10.96.1.20", "10.96.1.21", 1))
    assert recording.write(made, kept) == ["Listener.json"]
    assert bed().containers() == []


def test_sidecars_get_configuration_and_certificates_from_istio() -> None:
    there = bed(alone=False)
    sidecars = [pod for pod in WORLD.up([LIVE]) if pod in WORLD.injected]
    there.up(lambda _: None)
    try:
        plane = f"{there.nets.plane}.{WORLD.named('plane').host}:{ports.PORT_PLANE}"
        with urllib.request.urlopen(f"http://{plane}/metrics", timeout=5) as page:
            counted = page.read().decode()
        assert f"citadel_server_success_cert_issuance_count {len(sidecars)}\n" in counted
        names = {name["uri"] for one in certificates(there, sidecars[0]) for name in one["subject_alt_names"]}
        assert names == {f"spiffe://cluster.local/ns/shop/sa/{sidecars[0].account}"}
        token = there.read(handed(parts.sidecar(sidecars[0]), "tokens/istio-token"))
        assert granted_s(token) == kubernetes.TOKEN_LIFE_S
        assert "recorded" not in {part.service for part in there.parts()}
        assert there.is_up()
        changes_reach_sidecars(there, live.Plane(there, there.state))
    finally:
        there.down()
    assert there.containers() == []


ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {0}, namespace: shop}}
spec:
  hosts: [{0}.example.org]
  resolution: STATIC
  endpoints: [{{address: 192.0.2.1}}]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
"""


def test_an_address_is_given_again_once_istiod_was_away(tmp_path: Path) -> None:
    """Not before: so who still has the name's answer then reaches another service."""
    there = bed()
    with there.plane_alone(lambda _: None) as plane:
        entries = plane._api._api.resources.get(api_version="networking.istio.io/v1", kind="ServiceEntry")

        def allocated(name: str) -> str:
            plane.put(ENTRY.format(name), "entry.yaml")
            found: list[str] = []

            def has_address() -> bool:
                told = entries.get(name=name, namespace="shop").to_dict().get("status") or {}
                found[:] = [each["value"] for each in told.get("addresses", ()) if "." in each["value"]]
                return bool(found)

            assert settled(has_address)
            plane.remove(ENTRY.format(name), "entry.yaml")
            return found[0]

        first, second = allocated("first"), allocated("second")
        assert first != second
        there.kill(plane.service)
        there.start(plane.service)
        assert settled(plane.is_ready)
        assert allocated("third") == first


def granted_s(token: str) -> int:
    """For how long an account's token is good."""
    claims = json.loads(base64.urlsafe_b64decode(f"{token.split('.')[1]}=="))
    return int(claims["exp"] - claims["iat"])


def certificates(there: Testbed, pod: Pod) -> list[dict[str, Any]]:
    """What the sidecar of a pod shows of itself."""
    said = there.exec(parts.sidecar(pod), ["pilot-agent", "request", "GET", "certs"], timeout_s=9)
    return [one for each in json.loads(said)["certificates"] for one in each["cert_chain"]]


def changes_reach_sidecars(there: Testbed, plane: live.Plane) -> None:
    """An endpoint goes and comes back; what Istio refuses changes nothing."""
    text = (world.SHIPPED / "servers.yaml").read_text()
    whole = next(each for each in text.split("---\n") if "kind: EndpointSlice" in each and "  name: web\n" in each)
    fewer, _, _ = whole.rpartition("- addresses:")
    assert members(there) == {"198.18.77.21", "198.18.77.22", "198.18.77.23"}
    plane.put(fewer, "fewer.yaml")
    assert settled(lambda: members(there) == {"198.18.77.21", "198.18.77.22"})
    with pytest.raises(errors.InputError, match=r"mine.yaml: VirtualService shop/wrong: .* weight -50 < 0"):
        plane.put(REFUSED, "mine.yaml")
    plane.remove(REFUSED, "mine.yaml")  # it is not there
    there.kill("plane-istiod")
    there.start("plane-istiod")  # it has its authority's key, and addresses that it gave, from the API server
    assert settled(plane.is_ready)
    plane.put(whole, "whole.yaml")
    assert settled(lambda: len(members(there)) == 3)


def members(there: Testbed) -> set[str]:
    """Where the sidecar of mode 1 sends requests for web to."""
    said = there.exec(parts.sidecar(WORLD.arms["mode1"]), ["pilot-agent", "request", "GET", "clusters"], timeout_s=9)
    return set(re.findall(r"^outbound\|80\|\|web\.shop[^:]*::([\d.]+):8080::health_flags::healthy", said, re.MULTILINE))


def settled(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (REFUSED, r"mine.yaml: VirtualService shop/wrong: admission webhook .* weight -50 < 0"),
        (IMPOSSIBLE, r"mine.yaml: Service shop/elsewhere: .* failed to allocate IP 10.97.0.1"),
    ],
)
def test_what_is_refused_is_said_with_its_file_and_nothing_is_left(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    there = bed(world.read([world.SHIPPED, tmp_path / "mine.yaml"]))
    with pytest.raises(errors.InputError, match=said), there.plane_alone(lambda _: None):
        pass
    assert there.containers() == []
    assert not there.state.exists()


def test_a_small_mesh_live_and_as_it_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, kept = small(tmp_path), tmp_path / "recorded"
    with bed(mesh).plane_alone(lambda _: None) as plane:
        recording.write(plane.record(), kept)
    monkeypatch.setenv("MESHDNS_RECORDED", str(kept))
    assert recording.serves(mesh.of(()))
    for groups in ((), (LIVE, "autopath")):
        there = bed(mesh, alone=False, groups=groups)
        there.up(lambda _: None)
        try:
            assert ("recorded" in {part.service for part in there.parts()}) == (LIVE not in groups)
            with session.opened(there) as asking:
                mutual_tls_is_counted_at_the_server(asking)
                if LIVE in groups:
                    a_search_list_is_walked_by_the_cluster_dns(asking)
                    certificates_are_renewed(there, asking)
        finally:
            there.down()


def mutual_tls_is_counted_at_the_server(asking: Session) -> None:
    """Each request of a client with a sidecar; who has none is refused."""
    encrypted = asking.trial(0, request("mode1", "meshed"), seed=1)
    assert wrong(encrypted) == []
    assert encrypted.record.counters["servers/mtls_cx"] == 23
    assert "servers/no_chain" not in encrypted.record.counters
    refused = asking.trial(0, request("plain", "meshed"), seed=1)
    assert set(refused.table["outcome"].to_pylist()) == {"reset"}
    assert refused.record.counters["servers/no_chain"] == 23
    assert "servers/mtls_cx" not in refused.record.counters


def a_search_list_is_walked_by_the_cluster_dns(asking: Session) -> None:
    """It is asked once, where the client would walk through four names."""
    for arm, queries in (("plain", 4), ("plain-autopath", 1)):
        measured = asking.trial(0, trial(arm, name_kind="external"), seed=1)
        assert wrong(measured) == []
        assert measured.record.counters["dnsdist/from_pod"] == 23 * queries
    for factors in ({"name_kind": "absent"}, {"name_kind": "short", "lookup": "getaddrinfo", "qtype": "A+AAAA"}):
        assert wrong(asking.trial(0, trial("plain-autopath", **factors), seed=1)) == []


def certificates_are_renewed(there: Testbed, asking: Session) -> None:
    """Twice, while each request has a connection of its own; none fails."""
    seen: dict[str, set[str]] = {pod: set() for pod in BRIEF}
    deadline = time.monotonic() + 60
    while any(len(serials) < 3 for serials in seen.values()):
        assert time.monotonic() < deadline, seen
        for pod, serials in seen.items():
            serials |= {each["serial_number"] for each in certificates(there, WORLD.named(pod))}
        measured = asking.trial(0, dataclasses.replace(request("mode1", "meshed"), count=300), seed=1)
        assert wrong(measured) == []
        assert measured.record.counters["servers/mtls_cx"] == 303
