"""Probes against real servers: what counts as ready, when that changes, and who is asked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serverdriver import PATIENCE_S, until

from meshdns.core import errors
from meshdns.istio import reader
from meshdns.xds import probes
from meshdns.xds.probes import Probe, Probes, State

FAST = {"period_s": 0.02, "timeout_s": 0.3}


@dataclass
class Pod:
    """Answers HTTP with a status of the test's choice; `None`: takes the connection and says nothing."""

    port: int = 0
    status: str | None = "200 OK"
    heads: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def pod(status: str | None = "200 OK") -> AsyncIterator[Pod]:
    made = Pod(status=status)

    async def answer(read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            made.heads.append((await read.readuntil(b"\r\n\r\n")).decode())
            if made.status is None:
                await read.read()
            else:
                write.write(f"HTTP/1.1 {made.status}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
                await write.drain()
        write.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("200 OK", ""),
        ("302 Found", ""),
        ("399 Odd", ""),
        ("400 Bad Request", "HTTP status 400"),
        ("503 Service Unavailable", "HTTP status 503"),
        ("1xx", "the answer is not HTTP"),
        ("²00", "the answer is not HTTP"),
        ("200 " + 70_000 * "x", "the answer is not HTTP"),  # more than is read for one line
        (None, "no answer within 0.3 s"),
    ],
)
def test_http_readiness_is_a_status_from_200_to_399(status: str | None, reason: str) -> None:
    async def scenario() -> str:
        async with pod(status) as server:
            found = await probes.ask("127.0.0.1", Probe("http", server.port, "/ready", **FAST))
            assert server.heads[0].startswith("GET /ready HTTP/1.1\r\n")
            return found

    assert asyncio.run(scenario()) == reason


def test_tcp_readiness_is_a_port_that_accepts() -> None:
    async def scenario() -> None:
        async with pod(None) as server:
            assert await probes.ask("127.0.0.1", Probe("tcp", server.port, **FAST)) == ""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
            refused = await probes.ask("127.0.0.1", Probe("tcp", taken.getsockname()[1], **FAST))
        assert "refused" in refused.lower()

    asyncio.run(scenario())


def test_readiness_goes_after_failures_in_a_row_and_comes_back_at_once() -> None:
    async def scenario() -> None:
        changes: list[dict[str, bool]] = []
        asking = Probes(lambda: changes.append(asking.ready()))
        async with pod("503 Down") as server:
            probe = Probe("http", server.port, failures=3, **FAST)
            asking.plan({"127.0.0.1": probe})
            await asking.settled()
            assert asking.ready() == {"127.0.0.1": False}  # never ready before its first success
            assert changes == []
            server.status = "200 OK"
            await until(lambda: changes == [{"127.0.0.1": True}], "ready")
            server.status = "503 Down"
            await until(lambda: len(changes) == 2, "not ready")
            shown = asking.to_json()["127.0.0.1"]
            assert (shown["ready"], shown["reason"]) == (False, "HTTP status 503")
            asking.plan({})
            asked = len(server.heads)
            await asyncio.sleep(5 * FAST["period_s"])
            assert len(server.heads) <= asked + 1  # one may have been on its way
        asking.stop()

    asyncio.run(scenario())


def test_a_probe_that_breaks_is_a_reason_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(address: str, probe: Probe) -> str:
        raise KeyError(address)

    async def scenario() -> None:
        asking = Probes(lambda: None)
        with monkeypatch.context() as patched:
            patched.setattr(probes, "ask", broken)
            asking.plan({"127.0.0.1": Probe("tcp", 1, **FAST)})
            await asyncio.wait_for(asking.settled(), PATIENCE_S)
            assert "KeyError: '127.0.0.1'" in asking.to_json()["127.0.0.1"]["reason"]
        asked = asking.to_json()["127.0.0.1"]["asked"]
        await until(lambda: asking.to_json()["127.0.0.1"]["asked"] > asked + 1, "asked again")
        asking.stop()

    asyncio.run(scenario())


def test_another_probe_of_the_same_pod_keeps_what_is_known() -> None:
    async def scenario() -> None:
        asking = Probes(lambda: None)
        async with pod() as server:
            asking.plan({"127.0.0.1": Probe("http", server.port, **FAST)})
            await until(lambda: asking.ready()["127.0.0.1"], "ready")
            asking.plan({"127.0.0.1": Probe("tcp", server.port, **FAST)})
            assert asking.ready() == {"127.0.0.1": True}
        asking.stop()

    asyncio.run(scenario())


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 4))
def test_readiness_is_what_the_threshold_says(results: list[bool], failures: int) -> None:
    state = State(Probe("tcp", 1, failures=failures))
    for n, good in enumerate(results, 1):
        before = state.ready
        assert state.result("" if good else "down") == (state.ready != before)
        last = results[max(0, n - failures) : n]
        if good:
            assert state.ready
        elif len(last) == failures and not any(last):
            assert not state.ready
        else:
            assert state.ready == before


MESH = """\
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 5353}]
endpoints: [{addresses: [198.18.0.9]}, {addresses: [198.18.0.10]}]
---
apiVersion: v1
kind: Pod
metadata: {name: dns-1, namespace: shop}
status: {podIP: 198.18.0.10}
"""


def test_pods_are_probed_on_their_tcp_port_and_other_endpoints_are_not() -> None:
    given = reader.parse({"mesh.yaml": MESH})
    assert probes.wanted(given, Probe("tcp")) == {"198.18.0.10": Probe("tcp", 5353)}
    assert probes.wanted(given, Probe("http", 15020, "/status")) == {"198.18.0.10": Probe("http", 15020, "/status")}
    assert probes.wanted(given, None) == {}


@pytest.mark.parametrize(
    ("text", "probe"),
    [("none", None), ("tcp", Probe("tcp")), ("tcp:80", Probe("tcp", 80)), ("http", Probe("http")),
     ("http/ready", Probe("http", 0, "/ready")), ("http:15020/status", Probe("http", 15020, "/status"))],
)  # fmt: skip
def test_probes_as_text(text: str, probe: Probe | None) -> None:
    assert probes.parse(text) == probe


@pytest.mark.parametrize("text", ["", "udp", "tcp:70000", "tcp:80/x", "http:/x", "http:15020 /x", "tcp:"])
def test_what_is_not_a_probe_is_refused(text: str) -> None:
    with pytest.raises(errors.InputError, match="this is not a probe"):
        probes.parse(text)
