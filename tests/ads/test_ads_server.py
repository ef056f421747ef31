"""A sidecar gets what was recorded for it, once for each question, on each connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from meshdns.ads import answers, server
from meshdns.ads.types import CDS, EDS, LDS, URL

NODE = "sidecar~198.18.0.44~{}.shop~shop.svc.cluster.local"
GIVEN = {
    CDS: [{"name": "a"}, {"name": "b"}],
    EDS: [{"clusterName": "a"}, {"clusterName": "b"}],
}


@pytest.fixture(scope="module")
def told() -> dict[str, answers.Told]:
    answers.know(url.removeprefix(URL) for url in GIVEN)
    return {"one": answers.told(GIVEN), "two": answers.told({CDS: [{"name": "c"}]})}


def asked(url: str, *names: str, pod: str = "", nonce: str = "", error: str = "") -> Any:
    request = discovery_pb2.DiscoveryRequest(type_url=url, resource_names=names, response_nonce=nonce)
    if pod:
        request.node.id = NODE.format(pod)
    if error:
        request.error_detail.message = error
    return request


def named(response: Any) -> list[str]:
    return [answers.name_of(answers.unpacked(each)) for each in response.resources]


def test_resources_are_those_asked_for_by_name_or_all(told: dict[str, answers.Told]) -> None:
    stream = server.Stream(told)
    assert named(stream.answer(asked(CDS, pod="one"))) == ["a", "b"]
    assert named(stream.answer(asked(EDS, "b", "nobody"))) == ["b"]


def test_an_acknowledgement_is_not_answered_and_another_question_is(told: dict[str, answers.Told]) -> None:
    stream = server.Stream(told)
    first = stream.answer(asked(EDS, "a", pod="one"))
    assert first is not None
    assert stream.answer(asked(EDS, "a", nonce=first.nonce)) is None
    more = stream.answer(asked(EDS, "a", "b", nonce=first.nonce))
    assert more is not None
    assert (named(more), more.nonce != first.nonce) == (["a", "b"], True)


def test_a_rejection_is_said_and_nothing_is_sent_again(
    told: dict[str, answers.Told], capsys: pytest.CaptureFixture[str]
) -> None:
    stream = server.Stream(told)
    first = stream.answer(asked(CDS, pod="one"))
    assert first is not None
    assert stream.answer(asked(CDS, nonce=first.nonce, error="no such filter")) is None
    assert capsys.readouterr().err == f"one rejects {CDS}: no such filter\n"


def test_nothing_is_known_of_other_pods_and_other_types(told: dict[str, answers.Told]) -> None:
    assert server.Stream(told).answer(asked(CDS, pod="three")) is None
    assert server.Stream(told).answer(asked(LDS, pod="one")) is None
    assert named(server.Stream(told).answer(asked(CDS, pod="two"))) == ["c"]


@pytest.mark.parametrize(("node", "pod"), [(NODE.format("web-1"), "web-1"), (NODE.format("a.b"), "a.b"), ("x", "x")])
def test_a_node_says_which_pod_it_is_in(node: str, pod: str) -> None:
    assert server.pod_of(node) == pod


@pytest.fixture
def stub(told: dict[str, answers.Told]) -> Iterator[Any]:
    served = grpc.server(server.futures.ThreadPoolExecutor(4))
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(server.Plane(told), served)
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    served.stop(None)


def test_who_comes_again_is_told_again_whatever_it_holds_already(stub: Any) -> None:
    for _ in range(2):
        questions = [asked(CDS, pod="one"), asked(CDS, nonce="1"), asked(EDS, "a")]
        found = [*stub.StreamAggregatedResources(iter(questions), timeout=20)]
        assert [(each.type_url, named(each)) for each in found] == [(CDS, ["a", "b"]), (EDS, ["a"])]
