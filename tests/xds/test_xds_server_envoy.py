"""The server and real Envoys: what they accept, reject and keep, and that no request fails while things change."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoydriver
import pytest
from envoydriver import Envoy, answers, backend, free_ports, get, load
from serverdriver import Serving, assignment, cluster, listener, serving, snapshot, table, until

from meshdns.istio import reader
from meshdns.istio.registry import Registry
from meshdns.xds import authority, identity
from meshdns.xds.announcements import Sinks
from meshdns.xds.api import Json
from meshdns.xds.authority import Certificates
from meshdns.xds.encoding import CDS, EDS, LDS, RDS, SDS, Group
from meshdns.xds.server import Node, Server
from meshdns.xds.state import Compiled, State

pytestmark = pytest.mark.testbed
BOTH = pytest.mark.parametrize("delta", [True, False], ids=["delta", "SotW"])
NODE = "shop/web-1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return envoydriver.binary(tmp_path_factory.mktemp("envoy"))


@dataclass
class Bench:
    """One Envoy with a listener, and the server that tells it what to do."""

    served: Serving
    envoy: Envoy
    port: int

    def tell(self, state: Mapping[str, Group]) -> None:
        self.served.server.publish(NODE, state)

    def types(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.served.server.to_json()["nodes"][NODE]["types"]
        return shown

    async def accepted(self, state: Mapping[str, Group]) -> None:
        def done() -> bool:
            return all(self.types()[name]["accepted"] == state[url].version and not self.types()[name]["waiting"]
                       for name, url in (("CDS", CDS), ("LDS", LDS)))  # fmt: skip

        await until(done, f"accepted: {self.types()}")


def state(port: int, ends: Mapping[str, list[int]], *more: Json) -> dict[str, Group]:
    """One listener whose table leads to these clusters; `more` are further listeners."""
    return snapshot(
        {name: cluster(name) for name in ends},
        {name: assignment(name, *ports) for name, ports in ends.items()},
        {"web": listener("web", port, "web"), **{one["name"]: one for one in more}},
        {"web": table("web", *ends)},
    )


@contextlib.asynccontextmanager
async def bench(
    program: Path, folder: Path, delta: bool, first: Callable[[int], dict[str, Group]]
) -> AsyncIterator[Bench]:
    (port,) = free_ports(1)
    async with serving(first(port)) as served:
        with envoydriver.envoy(program, folder, NODE, served.port, delta=delta) as envoy:
            yield Bench(served, envoy, port)


@BOTH
def test_endpoints_come_and_go_under_load_and_only_they_are_sent(program: Path, tmp_path: Path, delta: bool) -> None:
    async def scenario() -> None:
        async with (
            backend("one") as one,
            backend("two") as two,
            bench(program, tmp_path, delta, lambda port: state(port, {"a": [one], "b": [one]})) as bed,
        ):
            await answers(bed.port, "one")
            await bed.accepted(state(bed.port, {"a": [one], "b": [one]}))
            before = {url: pushes.count for url, pushes in bed.served.server.pushes.items()}
            async with load(bed.port) as offered:
                await until(lambda: offered.seen("one") > 20, "load")
                bed.tell(state(bed.port, {"a": [one, two], "b": [one]}))
                await until(lambda: offered.seen("two") > 20, "the new endpoint is used")
                bed.tell(state(bed.port, {"a": [two], "b": [one]}))
                await answers(bed.port, "two")
                await asyncio.sleep(0.1)  # what was on its way
                seen = offered.seen("one")
                await until(lambda: offered.seen("two") > 100, "load")
                assert offered.seen("one") == seen
            assert offered.failed == {}
            after = {url: pushes.count for url, pushes in bed.served.server.pushes.items()}
            assert {url: after[url] - before[url] for url in after} == {CDS: 0, EDS: 2, LDS: 0, RDS: 0}
            pushes = bed.served.server.to_json()["pushes"]["EDS"]
            assert (pushes["changes"], pushes["change_bytes"] < 1000) == (2, True)
            assert bed.types()["EDS"]["rejections"] == 0

    asyncio.run(scenario())


@BOTH
def test_clusters_are_replaced_under_load_without_a_failed_request(program: Path, tmp_path: Path, delta: bool) -> None:
    async def scenario() -> None:
        async with (
            backend("one") as one,
            bench(program, tmp_path, delta, lambda port: state(port, {"c0": [one]})) as bed,
        ):
            await answers(bed.port, "one")
            async with load(bed.port, rate_hz=300) as offered:
                for n in range(1, 16):
                    now = state(bed.port, {f"c{n}": [one]})
                    bed.tell(now)
                    await bed.accepted(now)
                    seen = offered.seen("one") + 5
                    await until(lambda seen=seen: offered.seen("one") > seen, "load")  # type: ignore[misc]
            assert offered.failed == {}
            assert offered.seen("one") > 75
            assert "c14::" not in await bed.envoy.page("/clusters")  # and the old ones are gone

    asyncio.run(scenario())


@BOTH
def test_an_updated_cluster_is_warm_again_at_once(program: Path, tmp_path: Path, delta: bool) -> None:
    async def scenario() -> None:
        async with (
            backend("one") as one,
            bench(program, tmp_path, delta, lambda port: state(port, {"a": [one]})) as bed,
        ):
            await answers(bed.port, "one")
            now = state(bed.port, {"a": [one]})
            now[CDS] = snapshot({"a": cluster("a", timeout_s=7)})[CDS]
            bed.tell(now)
            await bed.accepted(now)

            async def warm() -> bool:
                return await bed.envoy.counter("cluster_manager.warming_clusters") == 0

            async with asyncio.timeout(5):  # Envoy would wait 15 s for endpoints that do not come
                while not await warm():
                    await asyncio.sleep(0.02)
            assert "7s" in await bed.envoy.page("/config_dump?resource=dynamic_active_clusters")

    asyncio.run(scenario())


@BOTH
def test_a_rejected_listener_is_shown_in_envoys_words_and_the_others_serve(
    program: Path, tmp_path: Path, delta: bool
) -> None:
    async def scenario() -> None:
        async with (
            backend("one") as one,
            bench(program, tmp_path, delta, lambda port: state(port, {"a": [one]})) as bed,
        ):
            await answers(bed.port, "one")
            good = state(bed.port, {"a": [one]})
            await bed.accepted(good)
            (other,) = free_ports(1)
            bad = {**listener("bad", other, "web"), "traffic_direction": "OUTBOUND"}
            bad["filter_chains"] = [{"filters": [{"name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "cluster": "a",
            }}]}]  # fmt: skip
            bed.tell(state(bed.port, {"a": [one]}, bad))
            await until(lambda: "rejected" in bed.types()["LDS"], "rejected")
            rejected = bed.types()["LDS"]["rejected"]
            assert "StatPrefix" in rejected["reason"]
            assert bed.types()["LDS"]["accepted"] == good[LDS].version != rejected["version"]
            assert await get(bed.port) == ("200", "one")
            right = state(bed.port, {"a": [one]}, listener("bad", other, "web"))
            bed.tell(right)
            await bed.accepted(right)
            await answers(other, "one")
            assert "rejected" not in bed.types()["LDS"]

    asyncio.run(scenario())


@BOTH
def test_without_a_control_plane_everything_stays_and_a_new_one_is_taken_up(
    program: Path, tmp_path: Path, delta: bool
) -> None:
    async def scenario() -> None:
        async with (
            backend("one") as one,
            backend("two") as two,
            bench(program, tmp_path, delta, lambda port: state(port, {"a": [one], "b": [one]})) as bed,
        ):
            await answers(bed.port, "one")
            await bed.accepted(state(bed.port, {"a": [one], "b": [one]}))
            async with load(bed.port) as offered:
                await bed.served.server.stop()
                await asyncio.sleep(1.5)
                changed = state(bed.port, {"a": [two], "b": [one]})
                again = Server(lambda node: again.publish(node.id, changed))
                await again.start(f"127.0.0.1:{bed.served.port}")
                await until(lambda: offered.seen("two") > 20, "the change that was made meanwhile")
                await again.stop()
            assert offered.failed == {}
            assert offered.seen("one") > 50
            if delta:  # it says what it has, and is sent the difference
                assert {url: pushes.resources for url, pushes in again.pushes.items()} == {CDS: 0, EDS: 1, LDS: 0}

    asyncio.run(scenario())


# ---- certificates

WORLD = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.1.1, ports: [{name: http, port: 80}]}
"""
LIFE_S, ROTATE_AT = 4.0, 0.25  # a new certificate each second, valid for four


def _one_request_per_connection(name: str) -> Json:
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        **cluster(name),
        "transport_socket": identity.client("server", [_account("server")], identity.HTTP1),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def test_certificates_rotate_under_load_without_a_failed_request(program: Path, tmp_path: Path) -> None:
    front, back = free_ports(2)

    async def scenario() -> None:
        async with backend("one") as one:
            required = identity.server(http=True)
            given = {
                "client": {
                    CDS: {"mtls": _one_request_per_connection("mtls")},
                    EDS: {"mtls": assignment("mtls", back)},
                    LDS: {"front": listener("front", front, "front")},
                    RDS: {"front": table("front", "mtls")},
                },
                "server": {
                    CDS: {"app": cluster("app")},
                    EDS: {"app": assignment("app", one)},
                    LDS: {"back": listener("back", back, "back", transport_socket=required)},
                    RDS: {"back": table("back", "app")},
                },
            }
            certificates = Certificates(authority.make(time.time()), LIFE_S, ROTATE_AT)
            plane = State(lambda _: lambda node: Compiled(given[node.id]), _identity, certificates, Sinks())
            port = await plane.server.start("127.0.0.1:0")
            running = asyncio.create_task(plane.run())
            plane.loaded(reader.parse({"mesh.yaml": WORLD}))
            try:
                with (
                    envoydriver.envoy(program, tmp_path, "server", port) as server,
                    envoydriver.envoy(program, tmp_path, "client", port) as client,
                ):
                    await answers(front, "one")
                    serials: dict[Envoy, set[str]] = {client: set(), server: set()}
                    async with load(front, rate_hz=100) as offered:
                        end_s = time.monotonic() + 2.5 * LIFE_S  # longer than any certificate of the start
                        while time.monotonic() < end_s:
                            for sidecar, seen in serials.items():
                                seen.add(await serial(sidecar))
                            await asyncio.sleep(0.2)
                    assert offered.failed == {}
                    assert offered.seen("one") > 500
                    assert min(len(seen) for seen in serials.values()) >= 5  # what the data plane itself shows
                    assert not serials[client] & serials[server]
                    shown = plane.to_json()
                    assert min(one["rotations"] for one in shown["certificates"].values()) >= 5
                    assert all(node["types"]["SDS"]["rejections"] == 0 for node in shown["nodes"].values())
                    handshakes = await client.counter("cluster.mtls.ssl.handshake")
                    assert handshakes >= sum(offered.answers.values())  # each request met the certificate of its time
                    assert await server.counter("http.back.downstream_rq_2xx") >= sum(offered.answers.values())
                    names = {SDS: ("default", "ROOTCA")}
                    assert set(plane.server._sidecars["client"].subscriptions[SDS].names) == set(names[SDS])
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running

    asyncio.run(scenario())


async def serial(one: Envoy) -> str:
    """The number of the certificate that a sidecar shows."""
    (held,) = json.loads(await one.page("/certs"))["certificates"]
    return str(held["cert_chain"][0]["serial_number"])


def _account(name: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{name}"


def _identity(_: Registry, node: Node) -> str:
    return _account(node.id)
