"""The records of each supported kind, as their authors wrote them, with defaults filled in.

Field names and meanings: Kubernetes API reference (core/v1, discovery.k8s.io/v1) and the istio.io reference of
networking.istio.io and security.istio.io. Hosts are fully qualified, durations whole milliseconds, shares per cent.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import get_args

from meshdns.core.schema import Labels, Place

DOMAIN = "cluster.local"
ROOT_NAMESPACE = "istio-system"  # where Istio looks for what applies to the whole mesh
AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"
SERVICE_NAME = "kubernetes.io/service-name"
TLS_MODE = "security.istio.io/tlsMode"  # set to `istio` on every pod that has a sidecar


# Where Istio routes a host that no service has by name, unless its VirtualService has hosts with HTTP ports besides.
UNLISTED_PORT = 80


class Protocol(enum.StrEnum):
    """What a port carries, in Istio's words."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-Web"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"
    MONGO = "Mongo"
    MYSQL = "MySQL"
    REDIS = "Redis"
    UDP = "UDP"
    AUTO = "auto"  # not said: the sidecar looks at the first bytes

    @property
    def family(self) -> str:
        """`http`, `tls`, `tcp`, `auto` or `udp`: what decides which listener a port gets."""
        return _FAMILIES.get(self, "tcp")

    @property
    def carries_http(self) -> bool:
        """HTTP, or whatever comes: such a port has HTTP routes."""
        return self.family in ("http", "auto")

    @property
    def carries_bytes(self) -> bool:
        """Plain TCP, or whatever comes: such a port has TCP routes."""
        return self.family in ("tcp", "auto")


_FAMILIES = {
    Protocol.HTTP: "http", Protocol.HTTP2: "http", Protocol.GRPC: "http", Protocol.GRPC_WEB: "http",
    Protocol.HTTPS: "tls", Protocol.TLS: "tls", Protocol.AUTO: "auto", Protocol.UDP: "udp",
}  # fmt: skip


class Resolution(enum.StrEnum):
    """How a ServiceEntry finds its endpoints; Istio's default first."""

    NONE = "NONE"
    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"


class MtlsMode(enum.StrEnum):
    """What a workload's sidecar accepts; UNSET inherits from the wider policy."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True)
class Meta:
    """Who a resource is."""

    kind: str
    namespace: str
    name: str
    created_s: int = 0  # metadata.creationTimestamp in seconds since 1970; 0: not said, older than any
    labels: Labels = ()
    annotations: Labels = ()  # Istio's, of those that are read
    place: Place = field(default=Place(""), compare=False)
    path: str = field(default="", compare=False)  # within its document, as `items[2]` of a List

    @property
    def age(self) -> tuple[int, str]:
        """Istio's order: creation time, then `name.namespace`."""
        return self.created_s, f"{self.name}.{self.namespace}"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True)
class ServicePort:
    """A port of a Service or a ServiceEntry."""

    name: str
    number: int
    protocol: Protocol
    transport: str = "TCP"  # TCP or UDP
    target: int | str = 0  # port number or name at the endpoints; 0: the same number


@dataclass(frozen=True)
class Service:
    """A Kubernetes Service of type ClusterIP."""

    meta: Meta
    ports: tuple[ServicePort, ...]
    cluster_ips: tuple[str, ...]  # empty: headless
    selector: Labels = ()
    publish_not_ready: bool = False  # whether DNS names pods that are not ready

    @property
    def host(self) -> str:
        """The name without its final dot."""
        return f"{self.meta.name}.{self.meta.namespace}.svc.{DOMAIN}"


@dataclass(frozen=True)
class SliceEndpoint:
    """One endpoint of an EndpointSlice."""

    addresses: tuple[str, ...]
    ready: bool = True
    hostname: str = ""
    pod: str = ""  # targetRef.name


@dataclass(frozen=True)
class EndpointSlice:
    """Endpoints of one Service; a Service may have several slices."""

    meta: Meta
    service: str
    ports: tuple[tuple[str, int], ...]  # name of the Service's port, number at the endpoints
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True)
class Pod:
    """Who an endpoint is: selectors and subsets look at its labels. Nothing else of a Pod matters here."""

    meta: Meta
    address: str = ""  # status.podIP


@dataclass(frozen=True)
class Workload:
    """An endpoint written into a ServiceEntry (Istio's WorkloadEntry)."""

    address: str
    ports: tuple[tuple[str, int], ...] = ()
    labels: Labels = ()
    service_account: str = ""


@dataclass(frozen=True)
class ServiceEntry:
    """Names that Kubernetes does not know."""

    meta: Meta
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]  # addresses and CIDR blocks
    ports: tuple[ServicePort, ...]
    location: str = "MESH_EXTERNAL"
    resolution: Resolution = Resolution.NONE
    endpoints: tuple[Workload, ...] = ()
    allocated: tuple[tuple[str, str], ...] = ()  # virtual IPs that Istio has given its hosts, from its status

    @property
    def wants_virtual_ip(self) -> bool:
        """Whether a virtual IP may be allocated (Istio's IP auto-allocation); wildcard hosts get none in any case."""
        refused = (AUTO_ALLOCATE, "false") in self.meta.labels
        return not self.addresses and self.resolution is not Resolution.NONE and not refused


@dataclass(frozen=True)
class StringMatch:
    """How a path or a header value is compared."""

    kind: str  # exact, prefix, regex, or present (any value)
    value: str = ""


@dataclass(frozen=True)
class HttpMatch:
    """Conditions that must all hold."""

    uri: StringMatch | None = None
    headers: tuple[tuple[str, StringMatch], ...] = ()
    port: int = 0  # 0: any


@dataclass(frozen=True)
class Destination:
    """Where a share of the traffic goes."""

    host: str
    subset: str = ""
    port: int = 0  # 0: the port that was called
    weight: int = 100  # per cent
    place: Place = field(default=Place(""), compare=False)


@dataclass(frozen=True)
class Delay:
    """A share of requests that waits before it is forwarded."""

    percent: float
    delay_ms: int


@dataclass(frozen=True)
class Abort:
    """A share of requests that is answered with a status instead."""

    percent: float
    status: int


@dataclass(frozen=True)
class HttpRoute:
    """The first route of which one match holds takes the request; no match means always."""

    name: str
    matches: tuple[HttpMatch, ...]
    destinations: tuple[Destination, ...]
    timeout_ms: int | None = None  # none is Istio's default; 0 says so
    retries: int | None = None  # none is Istio's default; 0 switches it off
    delay: Delay | None = None
    abort: Abort | None = None


@dataclass(frozen=True)
class TcpRoute:
    """The first route of which one port matches takes the connection; no port means any."""

    ports: tuple[int, ...]
    destinations: tuple[Destination, ...]


@dataclass(frozen=True)
class VirtualService:
    """Routes for hosts; `*.` hosts cover every known host under them."""

    meta: Meta
    hosts: tuple[str, ...]
    http: tuple[HttpRoute, ...] = ()
    tcp: tuple[TcpRoute, ...] = ()


@dataclass(frozen=True)
class TrafficPolicy:
    """Each section is whole or absent, which is empty; `ports` replace all four for one port."""

    balancer: str = ""  # how an endpoint is chosen, as `explain` says it
    limits: bool = False  # of connections
    outlier: bool = False  # failing endpoints are left out for a while
    tls: str = ""  # how the sidecar speaks to the endpoints: DISABLE, SIMPLE or ISTIO_MUTUAL
    ports: tuple[tuple[int, TrafficPolicy], ...] = ()


@dataclass(frozen=True)
class Subset:
    """Endpoints of a host that have these labels."""

    name: str
    labels: Labels
    policy: TrafficPolicy = TrafficPolicy()


@dataclass(frozen=True)
class DestinationRule:
    """What applies to traffic for a host after it was routed."""

    meta: Meta
    host: str
    policy: TrafficPolicy = TrafficPolicy()
    subsets: tuple[Subset, ...] = ()


@dataclass(frozen=True)
class PeerAuthentication:
    """What sidecars accept: for the mesh (root namespace), a namespace, or workloads by label."""

    meta: Meta
    selector: Labels = ()
    mode: MtlsMode = MtlsMode.UNSET
    ports: tuple[tuple[int, MtlsMode], ...] = ()  # of the workload, not of the Service


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar does with destinations it does not know."""

    meta: Meta
    selector: Labels = ()
    policy: str = "ALLOW_ANY"  # or REGISTRY_ONLY


@dataclass(frozen=True)
class EnvoyFilter:
    """That something is patched; what, is not read."""

    meta: Meta


Resource = (  # in the order in which they stand below
    Service
    | EndpointSlice
    | Pod
    | ServiceEntry
    | VirtualService
    | DestinationRule
    | PeerAuthentication
    | Sidecar
    | EnvoyFilter
)


@dataclass(frozen=True)
class Resources:
    """Everything that was given, each kind in order of age, whatever order it was read in."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    pods: tuple[Pod, ...] = ()
    entries: tuple[ServiceEntry, ...] = ()
    virtual_services: tuple[VirtualService, ...] = ()
    rules: tuple[DestinationRule, ...] = ()
    peers: tuple[PeerAuthentication, ...] = ()
    sidecars: tuple[Sidecar, ...] = ()
    filters: tuple[EnvoyFilter, ...] = ()

    def __iter__(self) -> Iterator[Resource]:
        for one in fields(self):
            yield from getattr(self, one.name)


def collect(found: list[Resource]) -> Resources:
    """The set of these resources."""
    ordered = sorted(found, key=lambda one: one.meta.age)
    return Resources(*(tuple(one for one in ordered if type(one) is kind) for kind in get_args(Resource)))  # type: ignore[arg-type]


def fqdn(host: str, namespace: str) -> str:
    """Istio's rule: a host without a dot is a Service of the resource's own namespace; any other is whole already."""
    return host if "." in host or not host or host.startswith("*") else f"{host}.{namespace}.svc.{DOMAIN}"


def selects(selector: Labels, labels: Labels) -> bool:
    """Whether a workload with these labels is chosen; an empty selector chooses all."""
    return set(selector) <= set(labels)
