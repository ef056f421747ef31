"""The server over gRPC: streams side by side, each at its own pace, and what the status says of them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from serverdriver import PATIENCE_S, assignment, cluster, serving, snapshot, until

from meshdns.core import errors
from meshdns.xds import server
from meshdns.xds.encoding import CDS, EDS, Group

BOTH = pytest.mark.parametrize("delta", [True, False], ids=["delta", "SotW"])


def state(*names: str, port: int = 1000, timeout_s: int = 1) -> dict[str, Group]:
    clusters = {name: cluster(name, timeout_s=timeout_s) for name in names}
    return snapshot(clusters, {name: assignment(name, port) for name in names})


@BOTH
def test_a_sidecar_is_answered_told_of_changes_and_shown(delta: bool) -> None:
    async def scenario() -> dict[str, Any]:
        async with serving(state("a", "b")) as served:
            peer = served.peer(delta=delta)
            await peer.ask(CDS)
            first = await peer.read()
            await peer.accept(first)
            await peer.ask(EDS, "a", "b")
            await peer.accept(await peer.read(), *([] if delta else ["a", "b"]))
            one = served.server._sidecars["shop/web-1"].subscriptions
            await until(lambda: not one[EDS].waiting, "endpoints accepted")
            served.server.publish("shop/web-1", {**state("a", "b"), EDS: state("a", "b", port=2)[EDS]})
            change = await peer.read()
            assert len(change.resources) == 2
            assert change.type_url == EDS
            await peer.reject(change, "no thanks")
            await until(lambda: one[EDS].rejected is not None, "rejection taken in")
            return served.server.to_json()

    shown = asyncio.run(scenario())
    node = shown["nodes"]["shop/web-1"]
    assert (node["connected"], node["protocol"]) == (True, "delta" if delta else "SotW")
    types = node["types"]
    assert types["CDS"]["accepted"] == types["CDS"]["sent"] == types["CDS"]["offered"]
    assert types["EDS"]["rejected"]["reason"] == "no thanks"
    assert types["EDS"]["accepted"] != types["EDS"]["sent"]
    assert shown["pushes"]["EDS"]["count"] == 2
    assert shown["pushes"]["EDS"]["changes"] == 1
    assert 0 < shown["pushes"]["EDS"]["change_bytes"] < shown["pushes"]["EDS"]["bytes"]


@BOTH
def test_a_sidecar_that_does_not_read_holds_up_no_other_and_then_gets_the_latest(delta: bool) -> None:
    many = [f"cluster-with-a-name-of-some-length-{n}" for n in range(2000)]  # more than the windows of a connection

    async def scenario() -> None:
        async with serving(state(*many)) as served:
            deaf, good = served.peer("shop/deaf", delta=delta), served.peer("shop/good", delta=delta)
            await deaf.ask(CDS)
            await until(lambda: "shop/deaf" in served.server._sidecars, "the deaf one came")
            await good.ask(CDS)
            for timeout_s in range(2, 8):
                message = await good.read()
                assert len(message.resources) == len(many)
                await good.accept(message)
                subscriptions = served.server._sidecars["shop/good"].subscriptions
                await until(lambda: not subscriptions[CDS].waiting, "accepted")  # noqa: B023  awaited here
                for node in ("shop/deaf", "shop/good"):
                    served.server.publish(node, state(*many, timeout_s=timeout_s))
            await deaf.accept(await deaf.read())
            assert _timeout_s(await deaf.read(), delta) == 7  # not each of the states in between
            assert await deaf.silent()

    asyncio.run(scenario())


def _timeout_s(message: Any, delta: bool) -> int:
    from envoy.config.cluster.v3 import cluster_pb2

    one = message.resources[0]
    return int(cluster_pb2.Cluster.FromString((one.resource if delta else one).value).connect_timeout.seconds)


@BOTH
def test_a_sidecar_that_went_and_came_back_is_known_and_sent_nothing_it_has(delta: bool) -> None:
    async def scenario() -> None:
        async with serving(state("a")) as served:
            peer = served.peer(delta=delta)
            await peer.ask(CDS)
            message = await peer.read()
            await peer.accept(message)
            peer.call.cancel()
            await until(lambda: not served.server.nodes(), "gone")
            assert served.server.to_json()["nodes"]["shop/web-1"]["connected"] is False
            again = served.peer(delta=delta)
            if delta:
                await again.ask(CDS, initial_resource_versions={one.name: one.version for one in message.resources})
                assert len((await again.read()).resources) == 0
            else:
                await again.ask(CDS, version_info=message.version_info)
                assert await again.silent()
            assert [node.id for node in served.joined] == ["shop/web-1"] * 2

    asyncio.run(scenario())


def test_many_sidecars_are_served_from_one_copy() -> None:
    async def scenario() -> None:
        common = state("a", "b", "c")
        async with serving(common) as served:
            peers = [served.peer(f"shop/pod-{n}") for n in range(50)]
            for peer in peers:
                await peer.ask(CDS)
            messages = await asyncio.gather(*(peer.read() for peer in peers))
            assert all(len(message.resources) == 3 for message in messages)
            assert len(served.server.nodes()) == 50
            equal = state("a", "b", "c")
            assert equal[CDS] is common[CDS]  # equal content is one object, wherever it comes from

    asyncio.run(scenario())


def test_metadata_reach_the_compiler_and_a_stream_without_a_node_is_refused() -> None:
    async def scenario() -> None:
        async with serving(state("a")) as served:
            peer = served.peer("")
            await peer.ask(CDS)
            with pytest.raises(grpc.aio.AioRpcError, match=r"set node\.id"):
                await asyncio.wait_for(_drained(peer), PATIENCE_S)
            good = served.peer()
            good.first = False
            await good.ask(CDS, node={"id": "x/y", "cluster": "c", "metadata": {"labels": {"app": "web"}}})
            await good.read()
            assert served.joined == [server.Node("x/y", "c", {"labels": {"app": "web"}})]

    asyncio.run(scenario())


async def _drained(peer: Any) -> None:
    async for _ in peer.call:
        pass


def test_a_taken_port_is_named() -> None:
    async def scenario() -> None:
        async with serving() as served:
            with pytest.raises(errors.EnvironmentProblem, match=rf"127\.0\.0\.1:{served.port}: cannot listen"):
                await server.Server(lambda _: None).start(f"127.0.0.1:{served.port}")

    asyncio.run(scenario())
