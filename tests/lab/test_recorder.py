"""An istiod is asked as each pod's agent asks, and what it answers is kept whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from meshdns.ads import answers
from meshdns.core import errors
from meshdns.core.world import Nets
from meshdns.lab import recorder, recording
from meshdns.lab.recording import TYPES
from shipped import WORLD

TOLD = WORLD.of(())
KEPT = recording.read()


class Istiod(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Answers by what was recorded, in another order each time, as istiod's maps may give it."""

    def __init__(self, told: Mapping[str, answers.Told]) -> None:
        self.told, self.turn = told, itertools.count()

    def StreamAggregatedResources(self, requests: Iterator[Any], _: Any) -> Iterator[Any]:  # noqa: N802  gRPC's name
        for request in requests:
            pod = request.node.id.split("~")[2].rpartition(".")[0]
            known = self.told[pod][request.type_url]
            found = [known[name] for name in (request.resource_names or known)]
            there = found[:: -1 if next(self.turn) % 2 else 1]
            yield discovery_pb2.DiscoveryResponse(type_url=request.type_url, resources=there)


@pytest.fixture
def istiod(tmp_path: Path) -> Iterator[str]:
    """Where one listens that says what the kept recording says."""
    text = {pod.pod: KEPT.answers(pod.pod, Nets()) for pod in TOLD.injected}
    answers.know(name for each in text.values() for name in answers._TYPE.findall(str(each).replace("'", '"')))
    server = grpc.server(futures.ThreadPoolExecutor(2))
    told = {pod: answers.told(each) for pod, each in text.items()}
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Istiod(told), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_everything_is_asked_for_and_kept(istiod: str) -> None:
    made = recorder.record(TOLD, Nets(), istiod, "1.2")
    assert {url: made.shared[url] for url in TYPES} == {url: KEPT.shared[url] for url in TYPES}


def test_nobody_who_answers_is_named() -> None:
    with pytest.raises(errors.TestbedError, match=r"127\.0\.0\.1:1: does not answer for client-"):
        recorder.record(TOLD, Nets(), "127.0.0.1:1", "")


def test_the_kept_recording_is_of_this_world() -> None:
    assert KEPT.fits(TOLD), "make it anew with `meshdns record`"
    assert set(KEPT.nodes) == {pod.pod for pod in TOLD.injected}
    nodes = {pod.pod: recorder.node(TOLD, Nets(), pod) for pod in TOLD.injected}
    assert KEPT.nodes == recording.of(TOLD, "", nodes, {}, Nets()).nodes


def test_nothing_secret_and_nothing_too_long_is_kept() -> None:
    texts = KEPT.files().values()
    assert sum(map(len, texts)) < 3_000_000
    assert not [word for word in ("PRIVATE KEY", "BEGIN CERT", "Bearer ", "eyJ") for text in texts if word in text]


def test_endpoints_of_clusters_are_asked_for_by_their_own_names() -> None:
    clusters = [{"name": "a", "type": "EDS", "edsClusterConfig": {"serviceName": "b"}}, {"name": "c"}]
    assert list(recorder._endpoints(clusters)) == ["b"]
