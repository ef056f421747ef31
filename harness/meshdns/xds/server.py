"""Aggregated discovery over gRPC: one stream per sidecar, each at its own pace.

A stream has a task of its own that writes what its session gives it, and a session that always works on the latest
snapshot: a sidecar that does not read holds up nobody, and gets one state when it reads again, not every state.
The port is plain text, for a network that belongs to the mesh alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

from meshdns.core import errors
from meshdns.xds.encoding import SHORT, Group
from meshdns.xds.session import DeltaSession, Push, Session, Subscription, WorldSession

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
GLANCE_S = 0.5  # how often a stream that waits for another type looks whether it has waited long enough
REMEMBERED = 1000  # sidecars that have left and are still shown
RECENT = 1000  # pushes whose times are kept
# A peer that vanished without a word is noticed after 40 s; sidecars may ping as often as they like.
_OPTIONS = (("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000), ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000))  # fmt: skip


@dataclass(frozen=True)
class Node:
    """Who a sidecar says it is."""

    id: str
    cluster: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass
class Pushes:
    """What was sent of one type, answers to questions and changes together."""

    count: int = 0
    bytes: int = 0
    resources: int = 0
    removed: int = 0
    changes: int = 0  # pushed without being asked for
    change_bytes: int = 0
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # from the change to the write

    def add(self, push: Push, size: int, since_s: float | None) -> None:
        """One response was written."""
        self.count += 1
        self.bytes += size
        self.resources += push.resources
        self.removed += push.removed
        if not push.first:
            self.changes += 1
            self.change_bytes += size
            if since_s is not None:
                self.recent_ms.append((time.monotonic() - since_s) * 1000)

    def to_json(self) -> dict[str, Any]:
        """For people."""
        times = sorted(self.recent_ms)
        middle = {"ms_p50": round(times[len(times) // 2], 1), "ms_max": round(times[-1], 1)} if times else {}
        return {"count": self.count, "bytes": self.bytes, "resources": self.resources, "removed": self.removed,
                "changes": self.changes, "change_bytes": self.change_bytes, **middle}  # fmt: skip


class Stream:
    """One connection of a sidecar."""

    def __init__(self, node: Node, session: Session) -> None:
        self.node, self.session = node, session
        self.since_s: float | None = None  # when what is now being sent had changed
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """There may be something to send."""
        self._stirred.set()

    async def stirred(self) -> None:
        """Wait until there may be."""
        try:
            async with asyncio.timeout(GLANCE_S if self.session.held() else None):
                await self._stirred.wait()
        except TimeoutError:
            return
        self._stirred.clear()


@dataclass
class Sidecar:
    """A node, connected or not."""

    node: Node
    streams: list[Stream] = field(default_factory=list)
    snapshot: Mapping[str, Group] | None = None
    subscriptions: Mapping[str, Subscription] = field(default_factory=dict)  # of the latest stream
    protocol: str = ""
    changed_s: float = 0.0  # Unix time of coming or going

    def to_json(self) -> dict[str, Any]:
        """For people."""
        return {
            "connected": bool(self.streams),
            "since": round(self.changed_s, 3),
            "protocol": self.protocol,
            "types": {SHORT.get(url, url): _shown(one) for url, one in self.subscriptions.items()},
        }


def _shown(one: Subscription) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "offered": one.group.version,
        "sent": one.sent,
        "accepted": one.accepted,
        "resources": len(one.known),
        "waiting": one.waiting,
        "settled": not (one.behind or one.gone),
        "rejections": one.rejections,
    }
    if one.rejected:
        shown["rejected"] = {"version": one.rejected.version, "reason": one.rejected.reason,
                             "at": round(one.rejected.at_s, 3)}  # fmt: skip
    return shown


class Server:
    """Takes snapshots, serves them; `joined` is called when a sidecar has none yet."""

    def __init__(self, joined: Callable[[Node], None]) -> None:
        self._joined = joined
        self._sidecars: dict[str, Sidecar] = {}
        self._server: grpc.aio.Server | None = None
        self.pushes: dict[str, Pushes] = {}

    async def start(self, address: str) -> int:
        """Listening; the port. EnvironmentProblem if the address cannot be had."""
        self._server = grpc.aio.server(options=_OPTIONS)
        world = grpc.stream_stream_rpc_method_handler(
            self._world,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
        )
        delta = grpc.stream_stream_rpc_method_handler(
            self._delta,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        methods = {"StreamAggregatedResources": world, "DeltaAggregatedResources": delta}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            await self.stop()
            raise errors.EnvironmentProblem(
                "cannot listen there for sidecars", place=address, step="give another address or a free port"
            ) from error
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Streams end at once; sidecars keep what they have."""
        if self._server:
            await self._server.stop(grace=None)
            self._server = None

    def nodes(self) -> list[Node]:
        """The sidecars that are connected."""
        return [one.node for one in self._sidecars.values() if one.streams]

    def publish(self, node_id: str, snapshot: Mapping[str, Group], since_s: float | None = None) -> None:
        """The state for one sidecar; `since_s` is when (monotonic) what led to it had happened."""
        one = self._sidecars.get(node_id)
        if one is None:
            return
        one.snapshot = snapshot
        for stream in one.streams:
            stream.since_s = since_s
            stream.session.update(snapshot)
            stream.stir()

    def behind(self, types: Collection[str]) -> bool:
        """Whether a sidecar has yet to accept or reject what it is offered of these types, where it asks for them."""
        return any(
            subscription.behind
            for one in self._sidecars.values()
            if one.snapshot is not None
            for stream in one.streams
            for url, subscription in stream.session.subscriptions.items()
            if url in types
        )

    def to_json(self) -> dict[str, Any]:
        """Sidecars and pushes, for people."""
        return {
            "nodes": {name: one.to_json() for name, one in sorted(self._sidecars.items())},
            "pushes": {SHORT.get(url, url): one.to_json() for url, one in self.pushes.items()},
        }

    async def _world(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._serve(WorldSession(time.monotonic()), context)

    async def _delta(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._serve(DeltaSession(time.monotonic()), context)

    async def _serve(self, session: WorldSession | DeltaSession, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        request = await context.read()
        if request is grpc.aio.EOF:
            return
        if not request.node.id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first request names no node; set node.id")
        told = request.node
        node = Node(told.id, told.cluster, json_format.MessageToDict(told.metadata))
        stream = Stream(node, session)
        self._join(stream, session)
        session.received(request)
        reading = asyncio.create_task(self._read(stream, session, context))
        reading.add_done_callback(lambda _: stream.stir())
        try:
            while not reading.done():
                await self._write(stream, context)
                await stream.stirred()
        finally:
            reading.cancel()
            self._leave(stream)

    async def _read(
        self, stream: Stream, session: WorldSession | DeltaSession, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            session.received(request)
            one = session.subscriptions[request.type_url]
            if one.rejected and request.HasField("error_detail"):
                _say(f"{stream.node.id} rejects {SHORT.get(one.type_url, one.type_url)}: {one.rejected.reason}")
            stream.stir()

    async def _write(self, stream: Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while push := stream.session.next(time.monotonic()):
            since_s, size = stream.since_s, push.message.ByteSize()
            await context.write(push.message)
            self.pushes.setdefault(push.type_url, Pushes()).add(push, size, since_s)

    def _join(self, stream: Stream, session: Session) -> None:
        one = self._sidecars.setdefault(stream.node.id, Sidecar(stream.node))
        if one.node != stream.node:
            one.node, one.snapshot = stream.node, None
        one.streams.append(stream)
        one.subscriptions, one.protocol, one.changed_s = session.subscriptions, session.protocol, time.time()
        if one.snapshot is not None and len(one.streams) > 1:
            session.update(one.snapshot)
        else:  # while it was away its state was not kept up
            self._joined(stream.node)

    def _leave(self, stream: Stream) -> None:
        one = self._sidecars[stream.node.id]
        one.streams.remove(stream)
        one.changed_s = time.time()
        if not one.streams:
            one.snapshot = None
        away = [name for name, other in self._sidecars.items() if not other.streams]
        for name in away[: max(0, len(away) - REMEMBERED)]:
            del self._sidecars[name]


def _say(line: str) -> None:
    print(f"control-plane: {line}", file=sys.stderr, flush=True)
