"""Clients of the control plane: a model of what Envoy does with responses, and streams over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from meshdns.xds import server
from meshdns.xds.encoding import CDS, EDS, LDS, RDS, Encoder, Group
from meshdns.xds.session import DeltaSession, WorldSession

PATIENCE_S = 20.0  # for what must happen, on a busy machine
ADS = {"ads": {}, "resource_api_version": "V3"}
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ENCODER = Encoder()


def cluster(name: str, *, eds: bool = True, timeout_s: int = 1) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": "EDS", "eds_cluster_config": {"eds_config": ADS}} if eds else {"type": "STATIC"}
    return {"name": name, "connect_timeout": f"{timeout_s}s", **kind}


def assignment(name: str, *ports: int, host: str = "127.0.0.1") -> dict[str, Any]:
    ends = [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]}


def listener(name: str, port: int, table: str, **more: Any) -> dict[str, Any]:
    """HTTP on loopback, routed by a table of that name."""
    manager = {
        "@type": _HCM,
        "stat_prefix": name,
        "rds": {"config_source": ADS, "route_config_name": table},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}], **more}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def table(name: str, *clusters: str) -> dict[str, Any]:
    """Every path goes to the first; `/<cluster>` to each."""
    routes = [{"match": {"prefix": f"/{one}"}, "route": {"cluster": one}} for one in clusters]
    routes += [{"match": {"prefix": "/"}, "route": {"cluster": one}} for one in clusters[:1]]
    return {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}


def snapshot(
    clusters: Mapping[str, Any] | None = None,
    endpoints: Mapping[str, Any] | None = None,
    listeners: Mapping[str, Any] | None = None,
    tables: Mapping[str, Any] | None = None,
    **more: Mapping[str, Any],
) -> dict[str, Group]:
    given = {CDS: clusters, EDS: endpoints, LDS: listeners, RDS: tables}
    return ENCODER.snapshot({url: dict(those or {}) for url, those in given.items()} | more)


@dataclass
class ModelEnvoy:
    """Applies responses as Envoy does: asks for what clusters and listeners refer to, and drops what nobody refers to.

    `dangling` collects every moment at which a listener or a route in use pointed to nothing.
    """

    session: WorldSession | DeltaSession
    held: dict[str, dict[str, Any]] = field(default_factory=lambda: {CDS: {}, EDS: {}, LDS: {}, RDS: {}})
    names: dict[str, set[str]] = field(default_factory=lambda: {EDS: set(), RDS: set()})
    nonces: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    dangling: list[str] = field(default_factory=list)
    rejects: set[str] = field(default_factory=set)  # types that are answered with a rejection
    refuses: set[str] = field(default_factory=set)  # clusters that are not taken, while those beside them are
    waiting: list[Callable[[], None]] = field(default_factory=list)  # answers not given yet

    @property
    def delta(self) -> bool:
        return isinstance(self.session, DeltaSession)

    def ask(self, type_url: str, names: set[str] | None = None, gone: set[str] | None = None, **more: Any) -> None:
        """A request of its own."""
        if isinstance(self.session, DeltaSession):
            self.session.received(
                discovery_pb2.DeltaDiscoveryRequest(
                    type_url=type_url,
                    resource_names_subscribe=sorted(names or ()),
                    resource_names_unsubscribe=sorted(gone or ()),
                    **more,
                )
            )
        else:
            self.session.received(
                discovery_pb2.DiscoveryRequest(
                    type_url=type_url,
                    resource_names=sorted(self.names.get(type_url, names or set())),
                    response_nonce=self.nonces.get(type_url, ""),
                    version_info=self.versions.get(type_url, ""),
                    **more,
                )
            )

    def start(self) -> None:
        self.ask(CDS)
        self.ask(LDS)

    def settle(self, now_s: float = 0.0) -> list[Any]:
        """Read and answer until nothing more comes; the responses."""
        seen = []
        while True:
            while push := self.session.next(now_s):
                seen.append(push)
                self.apply(push.message)
            if not self.waiting:
                return seen
            self.answer()

    def answer(self) -> None:
        answers, self.waiting = self.waiting, []
        for one in answers:
            one()

    def apply(self, message: Any) -> None:
        type_url = message.type_url
        self.nonces[type_url] = message.nonce
        bad = {name for name in _names(type_url, message) if name in self.refuses}
        whole = type_url in self.rejects
        if not whole:
            self._take(type_url, message)
            self._check(type_url)
        rejected = whole or bool(bad)
        reason = f"Error adding/updating cluster(s) {', '.join(sorted(bad))}: no" if bad else "no such thing"
        more = {"error_detail": {"message": reason}} if rejected else {}
        if not self.delta and not rejected:
            self.versions[type_url] = message.version_info
        nonce = message.nonce
        if self.delta:
            self.waiting.append(lambda: self.ask(type_url, response_nonce=nonce, **more))
        else:
            self.waiting.append(lambda: self.ask(type_url, **more))
        if not whole and type_url in (CDS, LDS):
            self._refer(type_url)

    def _take(self, type_url: str, message: Any) -> None:
        mine = self.held.setdefault(type_url, {})
        if self.delta:
            for one in message.resources:
                if self._takes(type_url, one.name):
                    mine[one.name] = _read(type_url, one.resource.value)
            for name in message.removed_resources:
                mine.pop(name, None)
        else:
            found = {}
            for one in message.resources:
                body = _read(type_url, one.value)
                name = body.cluster_name if type_url == EDS else body.name
                if self._takes(type_url, name):
                    found[name] = body
                elif name in mine and type_url == CDS:
                    found[name] = mine[name]  # the older form stays
            if type_url in (CDS, LDS):
                mine.clear()
            mine.update(found)

    def _takes(self, type_url: str, name: str) -> bool:
        if type_url == CDS:
            return name not in self.refuses
        return type_url not in self.names or name in self.names[type_url]

    def _refer(self, type_url: str) -> None:
        """Ask for what is new, and give up what nobody refers to."""
        other = EDS if type_url == CDS else RDS
        wanted = self._endpoints() if type_url == CDS else self._tables()
        fresh, gone = wanted - self.names[other], self.names[other] - wanted
        self.names[other] = wanted
        for name in gone:
            self.held[other].pop(name, None)
        if fresh or gone:
            self.waiting.append(lambda: self.ask(other, fresh, gone))

    def _endpoints(self) -> set[str]:
        return {name for name, one in self.held[CDS].items() if one.type == cluster_pb2.Cluster.EDS}

    def _tables(self) -> set[str]:
        return {_table(one) for one in self.held[LDS].values()}

    def _check(self, type_url: str) -> None:
        for name in self._tables() & self.held[RDS].keys():
            for one in _clusters(self.held[RDS][name]):
                if one not in self.held[CDS]:
                    self.dangling.append(f"after {type_url}: table {name} goes to cluster {one}, which is not there")
                elif one in self._endpoints() and one not in self.held[EDS]:
                    self.dangling.append(f"after {type_url}: cluster {one} of table {name} has no endpoints yet")


def _names(type_url: str, message: Any) -> list[str]:
    """The clusters in a response."""
    if type_url != CDS:
        return []
    return [_read(CDS, one.resource.value if hasattr(one, "resource") else one.value).name for one in message.resources]


def _read(type_url: str, value: bytes) -> Any:
    return {
        CDS: cluster_pb2.Cluster,
        LDS: listener_pb2.Listener,
        RDS: route_pb2.RouteConfiguration,
        EDS: _endpoint_type(),
    }[type_url].FromString(value)


def _endpoint_type() -> Any:
    from envoy.config.endpoint.v3 import endpoint_pb2

    return endpoint_pb2.ClusterLoadAssignment


def _table(one: Any) -> str:
    from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

    manager = http_connection_manager_pb2.HttpConnectionManager()
    one.filter_chains[0].filters[0].typed_config.Unpack(manager)
    return str(manager.rds.route_config_name)


def _clusters(found: Any) -> set[str]:
    return {route.route.cluster for host in found.virtual_hosts for route in host.routes}


@dataclass
class Peer:
    """One stream over gRPC, driven by the test."""

    call: Any
    node: str
    delta: bool
    first: bool = True

    async def ask(self, type_url: str, *names: str, **more: Any) -> None:
        more = {"node": {"id": self.node} if self.first else {}, **more}
        self.first = False
        if self.delta:
            request: Any = discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, resource_names_subscribe=names, **more
            )
        else:
            request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, **more)
        await self.call.write(request)

    async def read(self) -> Any:
        return await asyncio.wait_for(self.call.read(), PATIENCE_S)

    async def accept(self, message: Any, *names: str) -> None:
        more = {} if self.delta else {"version_info": message.version_info}
        await self.ask(message.type_url, *names, response_nonce=message.nonce, **more)

    async def reject(self, message: Any, reason: str) -> None:
        await self.ask(message.type_url, response_nonce=message.nonce, error_detail={"message": reason})

    async def silent(self, for_s: float = 0.2) -> bool:
        """Nothing comes for a while."""
        reading = asyncio.ensure_future(self.call.read())
        done, _ = await asyncio.wait([reading], timeout=for_s)
        if not done:
            self.call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await reading
        return not done


@dataclass
class Serving:
    """A server on loopback."""

    server: server.Server
    port: int
    joined: list[server.Node]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def peer(self, node: str = "shop/web-1", *, delta: bool = True) -> Peer:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as another sidecar would have
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
        self.channels.append(channel)
        method = "DeltaAggregatedResources" if delta else "StreamAggregatedResources"
        request, response = (
            (discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse)
            if delta
            else (discovery_pb2.DiscoveryRequest, discovery_pb2.DiscoveryResponse)
        )
        call = channel.stream_stream(
            f"/{server.SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()
        return Peer(call, node, delta)


@contextlib.asynccontextmanager
async def serving(first: dict[str, Group] | None = None) -> AsyncIterator[Serving]:
    """A server that gives every sidecar the same state when it comes."""
    joined: list[server.Node] = []

    def join(node: server.Node) -> None:
        joined.append(node)
        if first is not None:
            made.publish(node.id, first)

    made = server.Server(join)
    found = Serving(made, await made.start("127.0.0.1:0"), joined)
    try:
        yield found
    finally:
        for channel in found.channels:
            await channel.close()
        await made.stop()


async def until(true: Callable[[], bool], what: str) -> None:
    """Waits for it; fails after a patience no idle machine needs."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"not so after {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.005)
