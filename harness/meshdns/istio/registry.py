"""The one model: hosts with ports, addresses and endpoints, in the order in which Istio takes them, and what applies.

A host may have several services (two ServiceEntries, or a ServiceEntry beside a Kubernetes Service), as in Istio.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meshdns.core.schema import Labels
from meshdns.istio import resources
from meshdns.istio.resources import (
    ROOT_NAMESPACE,
    TLS_MODE,
    DestinationRule,
    MtlsMode,
    PeerAuthentication,
    Resources,
    Sidecar,
    Subset,
    TrafficPolicy,
    VirtualService,
    Workload,
    selects,
)


class Discovery(enum.StrEnum):
    """How a sidecar finds the endpoints, in the words of the proxy's cluster types."""

    EDS = "EDS"  # the control plane tells them
    ORIGINAL_DST = "ORIGINAL_DST"  # wherever the client was going
    STRICT_DNS = "STRICT_DNS"  # the sidecar resolves a name, every address is an endpoint
    LOGICAL_DNS = "LOGICAL_DNS"  # the same, the first address for new connections


_DISCOVERY = {"NONE": Discovery.ORIGINAL_DST, "STATIC": Discovery.EDS, "DNS": Discovery.STRICT_DNS,
              "DNS_ROUND_ROBIN": Discovery.LOGICAL_DNS}  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """A place that serves."""

    address: str  # an IP address; for DNS resolution also a name
    ports: tuple[tuple[str, int], ...]  # name of the service's port, number here
    ready: bool = True
    hostname: str = ""
    namespace: str = ""
    workload: str = ""  # name of the pod
    labels: Labels = ()
    sidecar: bool = False  # whether it can speak mutual TLS

    def port(self, name: str) -> int:
        """The number of a named port; 0 where this endpoint does not have it."""
        return dict(self.ports).get(name, 0)


@dataclass(frozen=True)
class Service:
    """One host of one resource."""

    host: str
    namespace: str
    name: str  # of a Kubernetes Service; a ServiceEntry goes by its host
    kubernetes: bool
    resource: str  # kind namespace/name, for people
    created_s: int
    ports: tuple[resources.ServicePort, ...]
    discovery: Discovery
    addresses: tuple[str, ...]  # ClusterIPs or the user's own addresses and CIDR blocks
    virtual_ip: str = ""  # allocated, known to sidecars with a DNS proxy only
    external: bool = False  # outside the mesh
    publish_not_ready: bool = False
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def headless(self) -> bool:
        """A Kubernetes Service without a cluster IP: DNS names its pods."""
        return self.kubernetes and not self.addresses

    def port(self, number: int) -> resources.ServicePort | None:
        """The port of that number; TCP before UDP."""
        found = [one for one in self.ports if one.number == number]
        return min(found, key=lambda one: one.transport) if found else None


@dataclass(frozen=True)
class Registry:
    """Everything known, read-only; equal for the same resources in whatever order they came."""

    services: tuple[Service, ...] = ()
    routes: tuple[VirtualService, ...] = ()
    rules: tuple[DestinationRule, ...] = ()
    peers: tuple[PeerAuthentication, ...] = ()
    sidecars: tuple[Sidecar, ...] = ()
    _hosts: Mapping[str, tuple[Service, ...]] = field(default_factory=dict, compare=False, repr=False)
    _rules: Mapping[str, tuple[DestinationRule, ...]] = field(default_factory=dict, compare=False, repr=False)
    _routes: Mapping[str, VirtualService] = field(default_factory=dict, compare=False, repr=False)

    def of(self, host: str) -> tuple[Service, ...]:
        """The services of a host, Kubernetes' own first; none if the host is not known by that very name."""
        return self._hosts.get(host, ())

    def route(self, host: str) -> VirtualService | None:
        """The VirtualService that a sidecar uses for a host: by name, else the longest wildcard above it."""
        return next((self._routes[name] for name in names(host) if name in self._routes), None)

    def rule(self, host: str, client_namespace: str) -> DestinationRule | None:
        """The DestinationRule for a host: the client's namespace, then the service's, then the root namespace.

        Within the first of these that has one, the most exact host; several resources for one host are merged: the
        oldest policy, every subset.
        """
        known = [name for name in names(host) if name in self._rules]
        if not known:
            return None
        owners = [service.namespace for service in self.of(host)]
        for namespace in dict.fromkeys((client_namespace, *owners, ROOT_NAMESPACE)):
            for name in known:
                found = [one for one in self._rules.get(name, ()) if one.meta.namespace == namespace]
                if found:
                    return replace(found[0], subsets=tuple(subset for one in found for subset in one.subsets))
        return None

    def policy(self, host: str, port: int, subset: str, client_namespace: str) -> TrafficPolicy:
        """What applies to a port of a host, and of a subset of it where one is named."""
        rule = self.rule(host, client_namespace)
        if rule is None:
            return TrafficPolicy()
        merged = _merge(TrafficPolicy(), rule.policy, port)
        one = next((one for one in rule.subsets if one.name == subset), None)
        return _merge(merged, one.policy, port) if one else merged

    def subsets(self, host: str, client_namespace: str) -> tuple[Subset, ...]:
        """The subsets of a host."""
        rule = self.rule(host, client_namespace)
        return rule.subsets if rule else ()

    def mtls(self, namespace: str, labels: Labels, port: int) -> MtlsMode:
        """What a workload's sidecar accepts on a port: workload before namespace before mesh, oldest first."""
        if not self.peers:
            return MtlsMode.PERMISSIVE
        mesh = self._peer(ROOT_NAMESPACE, None)
        narrow = self._peer(namespace, None) if namespace != ROOT_NAMESPACE else None
        own = self._peer(namespace, labels)
        mode = MtlsMode.PERMISSIVE  # Istio's default
        for policy in (mesh, narrow, own):
            mode = policy.mode if policy and policy.mode is not MtlsMode.UNSET else mode
        of_port = dict(own.ports).get(port, MtlsMode.UNSET) if own else MtlsMode.UNSET
        return mode if of_port is MtlsMode.UNSET else of_port

    def _peer(self, namespace: str, labels: Labels | None) -> PeerAuthentication | None:
        """The oldest policy of a namespace as a whole (labels None), or of workloads with these labels."""
        if labels is None:
            return next((one for one in self.peers if one.meta.namespace == namespace and not one.selector), None)
        near = (namespace, ROOT_NAMESPACE)  # a selector in the root namespace reaches into every namespace
        found = (one for one in self.peers if one.selector and one.meta.namespace in near)
        return next((one for one in found if selects(one.selector, labels)), None)

    def outbound_policy(self, namespace: str, labels: Labels) -> str:
        """ALLOW_ANY or REGISTRY_ONLY: the workload's Sidecar, else its namespace's, else the mesh's."""
        own = [one for one in self.sidecars if one.meta.namespace == namespace]
        mesh = [one for one in self.sidecars if one.meta.namespace == ROOT_NAMESPACE and not one.selector]
        chosen = [one for one in own if one.selector and selects(one.selector, labels)]
        wide = [one for one in own if not one.selector]
        return next((one.policy for one in (*chosen, *wide, *mesh)), "ALLOW_ANY")


def build(given: Resources, virtual_ips: Mapping[str, str]) -> Registry:
    """The model of the resources; `virtual_ips` by `key` of entry and host (module vips)."""
    endpoints = _slice_endpoints(given)
    found = [_kubernetes(service, endpoints) for service in given.services]
    found += [_entry(entry, host, virtual_ips) for entry in given.entries for host in entry.hosts]
    found.sort(key=lambda one: (one.created_s, f"{one.name}.{one.namespace}", one.resource))
    hosts: dict[str, list[Service]] = defaultdict(list)
    for service in sorted(found, key=lambda one: not one.kubernetes):
        hosts[service.host].append(service)
    rules: dict[str, list[DestinationRule]] = defaultdict(list)
    for rule in given.rules:
        rules[rule.host].append(rule)
    return Registry(
        services=tuple(found),
        routes=given.virtual_services,
        rules=given.rules,
        peers=given.peers,
        sidecars=given.sidecars,
        _hosts={host: tuple(those) for host, those in hosts.items()},
        _rules={host: tuple(those) for host, those in rules.items()},
        _routes={host: one for one in reversed(given.virtual_services) for host in one.hosts},
    )


def key(entry: resources.ServiceEntry, host: str) -> str:
    """The name under which a virtual IP is kept."""
    return f"{entry.meta.namespace}/{entry.meta.name}/{host}"


def names(host: str) -> list[str]:
    """A host and the wildcards above it, the most exact first."""
    labels = host.removeprefix("*.").split(".")
    return [host, *(f"*.{'.'.join(labels[n:])}" for n in range(1, len(labels)))]


def _merge(base: TrafficPolicy, over: TrafficPolicy, port: int) -> TrafficPolicy:
    """Sections given override whole sections; settings of the port replace all four, defaults where left out."""
    for number, of_port in over.ports:
        if number == port:
            return replace(of_port, ports=())
    return TrafficPolicy(
        balancer=over.balancer or base.balancer,
        limits=over.limits or base.limits,
        outlier=over.outlier or base.outlier,
        tls=over.tls or base.tls,
    )


def _kubernetes(service: resources.Service, endpoints: Mapping[tuple[str, str], list[Endpoint]]) -> Service:
    mine = endpoints.get((service.meta.namespace, service.meta.name), [])
    return Service(
        host=service.host,
        namespace=service.meta.namespace,
        name=service.meta.name,
        kubernetes=True,
        resource=str(service.meta),
        created_s=service.meta.created_s,
        ports=service.ports,
        discovery=Discovery.EDS if service.cluster_ips else Discovery.ORIGINAL_DST,
        addresses=service.cluster_ips,
        publish_not_ready=service.publish_not_ready,
        endpoints=_each_once(mine),
    )


def _each_once(found: list[Endpoint]) -> tuple[Endpoint, ...]:
    """An endpoint may stand in two slices while it moves from one to the other: it is ready if either says so."""
    ranked = sorted(found, key=lambda one: (one.ready, one.hostname))
    once = {(one.address, one.ports): one for one in ranked}
    return tuple(sorted(once.values(), key=lambda one: (_numeric(one.address), one.ports)))


def _slice_endpoints(given: Resources) -> dict[tuple[str, str], list[Endpoint]]:
    """Endpoints by namespace and name of their Service."""
    by_name = {(pod.meta.namespace, pod.meta.name): pod for pod in given.pods}
    by_address = {pod.address: pod for pod in given.pods if pod.address}
    found: dict[tuple[str, str], list[Endpoint]] = defaultdict(list)
    for piece in given.slices:
        for one in piece.endpoints:
            for address in one.addresses:
                pod = by_name.get((piece.meta.namespace, one.pod)) or by_address.get(address)
                found[piece.meta.namespace, piece.service].append(
                    Endpoint(
                        address=address,
                        ports=piece.ports,
                        ready=one.ready,
                        hostname=one.hostname,
                        namespace=piece.meta.namespace,
                        workload=pod.meta.name if pod else one.pod,
                        labels=pod.meta.labels if pod else (),
                        sidecar=bool(pod) and (TLS_MODE, "istio") in (pod.meta.labels if pod else ()),
                    )
                )
    return found


def _entry(entry: resources.ServiceEntry, host: str, virtual_ips: Mapping[str, str]) -> Service:
    discovery = _DISCOVERY[entry.resolution]
    workloads = entry.endpoints
    if not workloads and discovery in (Discovery.STRICT_DNS, Discovery.LOGICAL_DNS):
        workloads = (Workload(host),)  # the host itself is looked up
    return Service(
        host=host,
        namespace=entry.meta.namespace,
        name=host,
        kubernetes=False,
        resource=str(entry.meta),
        created_s=entry.meta.created_s,
        ports=entry.ports,
        discovery=discovery,
        addresses=entry.addresses,
        virtual_ip=virtual_ips.get(key(entry, host), "") if entry.wants_virtual_ip else "",
        external=entry.location == "MESH_EXTERNAL",
        endpoints=tuple(_workload_endpoint(one, entry) for one in workloads),
    )


def _workload_endpoint(one: Workload, entry: resources.ServiceEntry) -> Endpoint:
    own = dict(one.ports)
    numbers = tuple((port.name, own.get(port.name) or int(port.target) or port.number) for port in entry.ports)
    # Istio's rule: a workload that names its service account speaks mutual TLS, unless its label says otherwise.
    sidecar = dict(one.labels).get(TLS_MODE, "istio" if one.service_account else "disabled") == "istio"
    return Endpoint(one.address, numbers, namespace=entry.meta.namespace, labels=one.labels, sidecar=sidecar)


def _numeric(address: str) -> tuple[int, ...]:
    """198.18.0.9 before 198.18.0.10; IPv6 in the order of its text."""
    return tuple(map(int, address.split("."))) if ":" not in address else (256, *address.encode())
