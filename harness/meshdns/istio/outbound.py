"""What a sidecar does with outgoing connections: listeners, routes and clusters, after Istio's outbound configuration.

Services are taken in order of age. A port that carries HTTP shares one listener 0.0.0.0:port with all others, and the
Host header decides. TLS without an address is told apart by SNI. Raw TCP is told apart by its address alone: without
one, two services on a port collide, the first keeps the listener and the other is listed under `conflicts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from meshdns.core.schema import Labels
from meshdns.interception.conventions import ISTIO
from meshdns.istio.registry import Discovery, Endpoint, Registry, Service
from meshdns.istio.resources import (
    DOMAIN,
    UNLISTED_PORT,
    Destination,
    HttpMatch,
    HttpRoute,
    MtlsMode,
    Protocol,
    ServicePort,
    TrafficPolicy,
    selects,
)

WILDCARD = "0.0.0.0"  # noqa: S104  not bound: the listener that takes a redirected connection to any address
# Addresses of the sidecar's own listeners: the proxy takes no second one for an address, even where it is not bound.
SIDECARS_OWN = {(WILDCARD, port) for port in (ISTIO.outbound_port, ISTIO.inbound_port, ISTIO.stats_port)}
PASSTHROUGH, BLACKHOLE = "PassthroughCluster", "BlackHoleCluster"
# Servers of these protocols speak first, so nothing else can share their port: looking at the first bytes would hang.
_ALONE = (Protocol.MONGO, Protocol.MYSQL)
Weighted = tuple[tuple[str, int], ...]  # cluster, per cent


@dataclass(frozen=True)
class Client:
    """The workload whose sidecar it is."""

    namespace: str
    labels: Labels = ()
    dns_proxy: bool = False  # mode 2: virtual IPs are known to this sidecar


@dataclass(frozen=True)
class Cluster:
    """A set of endpoints under one policy, named `outbound|port|subset|host`."""

    name: str
    discovery: Discovery
    policy: TrafficPolicy
    endpoints: tuple[tuple[Endpoint, int], ...] = ()  # with the port number there; none for ORIGINAL_DST
    external: bool = False
    port_override: int = 0  # ORIGINAL_DST: the port at the endpoint where it is not the called one; 0: the same


@dataclass(frozen=True)
class Chain:
    """One way through a listener, and when it is taken."""

    host: str  # of the service that brought it
    route: str = ""  # name of the route table; empty: the bytes are passed as they are
    clusters: Weighted = ()  # for bytes
    http: bool = False  # taken if the first bytes are HTTP
    server_names: tuple[str, ...] = ()  # taken if TLS names one of them (SNI)
    prefixes: tuple[str, ...] = ()  # taken for these destinations (CIDR)

    @property
    def match(self) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
        """Two chains of one listener must differ in this."""
        return self.http, self.server_names, self.prefixes


@dataclass(frozen=True)
class Listener:
    """Takes redirected connections to one address and port; bound to nothing itself."""

    address: str
    port: int
    chains: tuple[Chain, ...]

    @property
    def name(self) -> str:
        """`address_port`."""
        return f"{self.address}_{self.port}"

    @property
    def default(self) -> Chain | None:
        """The chain without conditions; None: what matches no chain goes the way of unknown destinations."""
        return next((chain for chain in self.chains if chain.match == (False, (), ())), None)


@dataclass(frozen=True)
class Route:
    """One match and where it leads."""

    match: HttpMatch
    clusters: Weighted
    given: HttpRoute | None = None  # of a VirtualService; None: there is none


@dataclass(frozen=True)
class VirtualHost:
    """Routes for the Host headers in `domains`; none matching is a 404."""

    name: str
    host: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class RouteTable:
    """Named by port, or `host:port` where a listener serves one service only."""

    name: str
    hosts: tuple[VirtualHost, ...]


@dataclass(frozen=True)
class Conflict:
    """A service that did not get its chain."""

    listener: str
    winner: str  # host
    loser: str
    why: str


@dataclass(frozen=True)
class Outbound:
    """Everything for one client; what no listener takes goes to `fallback`."""

    fallback: str  # PassthroughCluster or BlackHoleCluster
    listeners: tuple[Listener, ...]
    tables: tuple[RouteTable, ...]
    clusters: tuple[Cluster, ...]
    conflicts: tuple[Conflict, ...]

    def listener(self, address: str, port: int) -> Listener | None:
        """The listener that takes a connection: the exact address before 0.0.0.0; None: virtualOutbound itself."""
        found = {(one.address, one.port): one for one in self.listeners if one.port == port}
        return found.get((address, port)) or found.get((WILDCARD, port))


def build(registry: Registry, client: Client) -> Outbound:
    """The outbound configuration of one client's sidecar."""
    builder = _Builder(registry, client)
    for service in registry.services:
        for port in service.ports:
            if port.protocol.family != "udp":
                builder.add(service, port)
    listeners = [Listener(*key, tuple(one.chains)) for key, one in sorted(builder.entries.items())]
    return Outbound(
        fallback=PASSTHROUGH if registry.outbound_policy(client.namespace, client.labels) == "ALLOW_ANY" else BLACKHOLE,
        listeners=tuple(listeners),
        tables=_tables(registry, client, listeners),
        clusters=tuple(_clusters(registry, client)),
        conflicts=tuple(builder.conflicts),
    )


# ---- listeners


@dataclass
class _Entry:
    """A listener while it grows; `protocol` is AUTO as soon as HTTP and other bytes share it."""

    protocol: Protocol
    chains: list[Chain] = field(default_factory=list)


class _Builder:
    def __init__(self, registry: Registry, client: Client) -> None:
        self.registry, self.client = registry, client
        self.entries: dict[tuple[str, int], _Entry] = {}
        self.conflicts: list[Conflict] = []

    def add(self, service: Service, port: ServicePort) -> None:
        """The listeners of one port of one service."""
        for address, prefixes in binds(service, port, self.client):
            key = address, port.number
            if key in SIDECARS_OWN:
                self._conflict(f"{address}_{port.number}", "the sidecar", service.host, "it listens there itself")
                continue
            entry = self.entries.get(key)
            family = port.protocol.family
            if entry and family == "http" and entry.protocol.family in ("http", "auto"):
                continue  # the route table of the port holds this service too
            if entry and self._refused(entry, service, port, address):
                continue
            chains = list(self._chains(service, port, address, prefixes))
            if entry is None:
                shared = Protocol.AUTO if family == "http" else port.protocol
                self.entries[key] = _Entry(shared, chains)
            else:
                self._merge(entry, chains, f"{address}_{port.number}", service.host)
                if family != entry.protocol.family and {family, entry.protocol.family} & {"http", "auto"}:
                    entry.protocol = Protocol.AUTO

    def _refused(self, entry: _Entry, service: Service, port: ServicePort, address: str) -> bool:
        """Whether Istio leaves the listener as it is, although the service is not in it."""
        name, winner = f"{address}_{port.number}", entry.chains[0].host
        if port.protocol is not entry.protocol and (port.protocol in _ALONE or entry.protocol in _ALONE):
            self._conflict(name, winner, service.host, f"{entry.protocol} and {port.protocol} cannot share a port")
            return True
        if port.protocol.family == "auto" and entry.protocol.family == "auto":
            if not any(chain.host == service.host and not chain.http for chain in entry.chains):
                self._conflict(name, winner, service.host, "the listener is there already, only HTTP is told apart")
            return True
        return False

    def _merge(self, entry: _Entry, chains: list[Chain], name: str, host: str) -> None:
        matches = {chain.match: chain.host for chain in entry.chains}
        for chain in chains:
            winner = matches.get(chain.match)
            if winner is None:
                entry.chains.append(chain)
            elif winner != host:
                self._conflict(name, winner, host, "nothing in the bytes tells them apart: the first wins")

    def _conflict(self, listener: str, winner: str, loser: str, why: str) -> None:
        self.conflicts.append(Conflict(listener, winner, loser, why))

    def _chains(self, service: Service, port: ServicePort, address: str, prefixes: tuple[str, ...]) -> Iterator[Chain]:
        family = port.protocol.family
        if family != "http":
            unaddressed = address == WILDCARD
            names = (service.host,) if family == "tls" and unaddressed else ()
            clusters = self._bytes_to(service, port)
            yield Chain(service.host, clusters=clusters, server_names=names, prefixes=prefixes)
        if port.protocol.carries_http:
            table = str(port.number) if address == WILDCARD else f"{service.host}:{port.number}"
            yield Chain(service.host, route=table, http=True)

    def _bytes_to(self, service: Service, port: ServicePort) -> Weighted:
        """The TCP routes of a VirtualService, which do not apply to TLS ports; else the service itself."""
        virtual = self.registry.route(service.host) if port.protocol.family != "tls" else None
        for route in virtual.tcp if virtual else ():
            if not route.ports or port.number in route.ports:
                return _weighted(self.registry, route.destinations, port.number)
        return ((name(service.host, port.number), 100),)


def binds(service: Service, port: ServicePort, client: Client) -> list[tuple[str, tuple[str, ...]]]:
    """Addresses of the listeners of a port, each with the destinations (CIDR) for which it is meant; empty: all."""
    if port.protocol.family == "http":
        return [(WILDCARD, ())]
    if service.headless:
        pods = [one.address for one in service.endpoints if one.ready or service.publish_not_ready]
        return [(address, ()) for address in dict.fromkeys(pods)]
    if service.addresses:
        return [(WILDCARD, (one,)) if "/" in one else (one, ()) for one in service.addresses]
    return [(service.virtual_ip if client.dns_proxy and service.virtual_ip else WILDCARD, ())]


def dangling(out: Outbound) -> tuple[str, ...]:
    """Clusters to which something is routed and which this client does not have."""
    known = {one.name for one in out.clusters}
    shares = [route.clusters for table in out.tables for host in table.hosts for route in host.routes]
    shares += [chain.clusters for listener in out.listeners for chain in listener.chains]
    return tuple(sorted({cluster for those in shares for cluster, _ in those} - known))


# ---- clusters


def name(host: str, port: int, subset: str = "") -> str:
    """Istio's name of a cluster."""
    return f"outbound|{port}|{subset}|{host}"


def _clusters(registry: Registry, client: Client) -> Iterator[Cluster]:
    """One per host, port and subset; of several services of one host the first decides how endpoints are found."""
    for host in sorted({service.host for service in registry.services}):
        services = registry.of(host)
        numbers = {port.number for service in services for port in service.ports if port.protocol.family != "udp"}
        subsets = ("", *(subset.name for subset in registry.subsets(host, client.namespace)))
        for number in sorted(numbers):
            for subset in subsets:
                yield _cluster(registry, services, number, subset, client)


def _cluster(registry: Registry, services: tuple[Service, ...], number: int, subset: str, client: Client) -> Cluster:
    ports = ((one, one.port(number)) for one in services)
    carriers = [(one, port) for one, port in ports if port and port.protocol.family != "udp"]
    service, port = carriers[0]
    found = registry.subsets(service.host, client.namespace)
    labels = next((one.labels for one in found if one.name == subset), ())
    same = [(one, port) for one, port in carriers if one.discovery is service.discovery]
    target = port.target if isinstance(port.target, int) and port.target != number else 0
    original = service.discovery is Discovery.ORIGINAL_DST
    return Cluster(
        name=name(service.host, number, subset),
        discovery=service.discovery,
        policy=registry.policy(service.host, number, subset, client.namespace),
        endpoints=() if original else tuple(_members(same, labels)),
        external=service.external,
        port_override=target if original else 0,
    )


def _members(carriers: list[tuple[Service, ServicePort]], labels: Labels) -> Iterator[tuple[Endpoint, int]]:
    for service, port in carriers:
        for one in service.endpoints:
            at = one.port(port.name)
            if at and (one.ready or service.publish_not_ready) and selects(labels, one.labels):
                yield one, at


def encryption(policy: TrafficPolicy, endpoint: Endpoint, accepted: MtlsMode, *, external: bool) -> str:
    """How the hop to an endpoint is made: `mutual` TLS, `simple` TLS, or `none`.

    A DestinationRule decides if it says anything; else Istio's automatic mutual TLS: where the endpoint has a sidecar
    that accepts it, and its service is not outside the mesh (MESH_EXTERNAL).
    """
    if policy.tls:
        return {"ISTIO_MUTUAL": "mutual", "SIMPLE": "simple", "DISABLE": "none"}[policy.tls]
    return "mutual" if endpoint.sidecar and not external and accepted is not MtlsMode.DISABLE else "none"


def admitted(how: str, endpoint: Endpoint, accepted: MtlsMode) -> bool:
    """Whether the endpoint's sidecar lets such a hop in; an endpoint without one leaves it to the application."""
    if not endpoint.sidecar or accepted is MtlsMode.PERMISSIVE:
        return how != "mutual" or endpoint.sidecar
    return (how == "mutual") == (accepted is MtlsMode.STRICT)


# ---- routes


def _tables(registry: Registry, client: Client, listeners: Sequence[Listener]) -> tuple[RouteTable, ...]:
    """The tables that the listeners name."""
    by_port: dict[int, list[tuple[Service, ServicePort]]] = defaultdict(list)
    for service in registry.services:
        for port in service.ports:
            if port.protocol.carries_http:
                by_port[port.number].append((service, port))
    unlisted = _unlisted(registry)
    found: dict[str, RouteTable] = {}
    for listener in listeners:
        for chain in listener.chains:
            if chain.route and chain.route not in found:
                several = by_port[listener.port]
                if chain.route != str(listener.port):
                    routes = _routes(registry, chain.host, listener.port)
                    hosts = [VirtualHost(chain.route, chain.host, ("*",), routes)]
                else:
                    hosts = list(_virtual_hosts(registry, several, unlisted[listener.port], client))
                found[chain.route] = RouteTable(chain.route, tuple(hosts))
    return tuple(found[key] for key in sorted(found))


def _unlisted(registry: Registry) -> Mapping[int, list[str]]:
    """Hosts by port that a VirtualService routes and no service has, but for a wildcard above them."""
    found: dict[int, list[str]] = defaultdict(list)
    for virtual in registry.routes:
        hosts = [host for host in virtual.hosts if not host.startswith("*.") and not registry.of(host)]
        if hosts and virtual.http:
            ports = {
                port.number
                for service in registry.services
                if registry.route(service.host) is virtual
                for port in service.ports
                if port.protocol.carries_http
            }
            for number in ports or {UNLISTED_PORT}:
                found[number] += hosts
    return found


def _virtual_hosts(
    registry: Registry, several: list[tuple[Service, ServicePort]], unlisted: list[str], client: Client
) -> Iterator[VirtualHost]:
    """A domain belongs to one virtual host, the oldest; the proxy refuses a table that has it twice."""
    used: set[str] = set()
    hosts: dict[str, tuple[ServicePort, list[Service]]] = {}
    for service, port in several:
        hosts.setdefault(service.host, (port, []))[1].append(service)
    for host, (port, services) in hosts.items():
        wanted = [one for service in services for one in domains(service, port.number, client)]
        free = tuple(one for one in dict.fromkeys(wanted) if one not in used)
        used.update(free)
        if free:
            yield VirtualHost(f"{host}:{port.number}", host, free, _routes(registry, host, port.number))
    number = several[0][1].number
    for host in unlisted:
        free = tuple(one for one in (host, f"{host}:{number}") if one not in used)
        routes = _routed(registry, host, number)
        if free and routes:
            yield VirtualHost(f"{host}:{number}", host, free, routes)


def domains(service: Service, port: int, client: Client) -> Iterator[str]:
    """The Host headers that mean a service: its name, short forms, addresses; each also with the port."""
    forms = [service.host]
    suffix = f".svc.{DOMAIN}"
    if service.host.endswith(suffix):
        short = service.host.removesuffix(suffix)
        forms += [short, f"{short}.svc"]
        if short.endswith(f".{client.namespace}"):
            forms.append(short.removesuffix(f".{client.namespace}"))
    forms += [address for address in service.addresses if "/" not in address]
    forms += [service.virtual_ip] if client.dns_proxy and service.virtual_ip and not service.addresses else []
    # A headless Service is called by the names of its pods too.
    forms += [f"*.{form}" for form in forms] if service.headless else []
    for form in map(bracketed, forms):
        yield from (form, f"{form}:{port}")


def bracketed(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _routes(registry: Registry, host: str, port: int) -> tuple[Route, ...]:
    """Those of a VirtualService that are for the port; else the service itself."""
    return _routed(registry, host, port) or (Route(HttpMatch(), ((name(host, port), 100),)),)


def _routed(registry: Registry, host: str, port: int) -> tuple[Route, ...]:
    """The HTTP routes of a VirtualService, up to the first that takes everything."""
    virtual = registry.route(host)
    found: list[Route] = []
    for route in virtual.http if virtual else ():
        for match in route.matches or (HttpMatch(),):
            if match.port in (0, port):
                found.append(Route(match, _weighted(registry, route.destinations, port), route))
                if match.uri is None and not match.headers:
                    return tuple(found)
    return tuple(found)


def _weighted(registry: Registry, destinations: tuple[Destination, ...], port: int) -> Weighted:
    """Clusters with their share; a destination without a port means the called one, or the only one it has."""
    found = []
    for to in destinations:
        ports = [one for service in registry.of(to.host) for one in service.ports]
        numbers = {one.number for one in ports if one.protocol.family != "udp"}
        number = to.port or (min(numbers) if len(numbers) == 1 else port)
        found.append((name(to.host, number, to.subset), to.weight))
    return tuple(found)
