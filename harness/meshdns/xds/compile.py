"""The mesh's model in, one sidecar's snapshot out: every resource that its Envoy asks for, by type and name.

Pure: the same registry and node give the same snapshot, in whatever order the mesh was read. Of all sidecars of a mesh,
what is equal is made once and is the same object, so that whoever sends it need not look into it twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Iterable

from meshdns.istio import inbound, nametable, outbound
from meshdns.istio.outbound import Client, Cluster, Listener, Outbound, RouteTable
from meshdns.istio.registry import Registry
from meshdns.istio.resources import Meta, Pod
from meshdns.xds import api, arrivals, clusters, collector, listeners, naming, routes
from meshdns.xds.api import Json
from meshdns.xds.node import Choices, Node

Snapshot = dict[str, dict[str, Json]]  # type URL -> name -> resource


def snapshot(registry: Registry, node: Node) -> Snapshot:
    """Everything for one sidecar. For several of one mesh, ask one Compiler."""
    return Compiler(registry).snapshot(node)


@dataclasses.dataclass(frozen=True)
class _View:
    """What sidecars of one namespace and mode see alike, translated as far as it does not depend on more."""

    out: Outbound
    clusters: dict[str, Cluster]


class Compiler:
    """Snapshots of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._views: dict[tuple[str, bool], _View] = {}  # by namespace and mode
        self._alike: dict[tuple[str, bool], _View] = {}  # by what decides on clusters, and mode
        self._own_clusters = clusters.own()
        self._clusters: dict[Hashable, tuple[dict[str, Json], dict[str, Json]]] = {}
        self._listeners: dict[Hashable, Json] = {}
        self._tables: dict[Hashable, Json] = {}
        self._naming: dict[Choices, dict[str, Json]] = {}
        self._headless = {end.address for one in registry.services if one.headless for end in one.endpoints}
        self._addressed = {address for one in registry.services for address in (*one.addresses, one.virtual_ip)}
        self._ruled = {rule.meta.namespace for rule in registry.rules}
        self._pods = {(pod.meta.namespace, pod.meta.name): pod for pod in registry.workloads}

    def snapshot(self, node: Node) -> Snapshot:
        """Everything for one sidecar."""
        with collector.still():
            return self._snapshot(node)

    def _snapshot(self, node: Node) -> Snapshot:
        out = self.outbound(node)
        fallback = _FALLBACKS[out.fallback]
        known = self._view(node).clusters
        found_clusters, assignments = self._found_clusters(node)
        found_clusters = found_clusters | self._own_clusters
        found_listeners = self._service_listeners(out.listeners, node, fallback, known)
        found_listeners[api.VIRTUAL_OUTBOUND] = listeners.virtual_outbound(node, fallback)
        found_listeners[api.VIRTUAL_INBOUND] = arrivals.virtual_inbound(node, self._inbound(node))
        if node.dns == "envoy":
            found_listeners |= self._dns(node.choices)
            found_clusters[naming.CLUSTER_DNS] = naming.cluster(node.choices)
        return {
            api.CLUSTER: found_clusters,
            api.ENDPOINT: assignments,
            api.LISTENER: found_listeners,
            api.ROUTE: self._route_tables(out.tables, node, fallback, known),
        }

    def outbound(self, node: Node) -> Outbound:
        """What the model says of the sidecar's outgoing connections, also who lost which listener."""
        client = Client(node.namespace, self._pod(node).meta.labels, node.dns_proxy, node.address)
        if node.address in self._headless & self._addressed:
            return _yielding(outbound.build(self._registry, client), node)
        found = self._view(node).out
        if node.address in self._headless:
            found = _without(found, node.address)
        policy = self._registry.outbound_policy(client.namespace, client.labels)
        fallback = outbound.PASSTHROUGH if policy == "ALLOW_ANY" else outbound.BLACKHOLE
        return _yielding(dataclasses.replace(found, client=client, fallback=fallback), node)

    def _view(self, node: Node) -> _View:
        key, alike = (node.namespace, node.dns_proxy), (self._scope(node), node.dns_proxy)
        if key not in self._views:
            if near := self._alike.get(alike):
                view = _View(outbound.elsewhere(self._registry, near.out, node.namespace), near.clusters)
            else:
                out = outbound.build(self._registry, Client(node.namespace, dns_proxy=node.dns_proxy))
                view = _View(out, {one.name: one for one in out.clusters})
            self._views[key] = self._alike[alike] = view
        return self._views[key]

    def _scope(self, node: Node) -> str:
        """Clusters and listeners differ between namespaces only where one has DestinationRules of its own."""
        return node.namespace if node.namespace in self._ruled else ""

    def _found_clusters(self, node: Node) -> tuple[dict[str, Json], dict[str, Json]]:
        key = self._scope(node), node.choices
        if key not in self._clusters:
            out = self._view(node).out
            self._clusters[key] = clusters.build(self._registry, out.clusters, node.namespace, node.choices)
        return self._clusters[key]

    def _service_listeners(
        self, found: Iterable[Listener], node: Node, fallback: str, known: dict[str, Cluster]
    ) -> dict[str, Json]:
        made: dict[str, Json] = {}
        for one in found:
            key = one, fallback, self._scope(node)
            if key not in self._listeners:
                self._listeners[key] = listeners.service(one, fallback, known)
            made[one.name] = self._listeners[key]
        return made

    def _route_tables(
        self, found: Iterable[RouteTable], node: Node, fallback: str, known: dict[str, Cluster]
    ) -> dict[str, Json]:
        made: dict[str, Json] = {}
        for one in found:
            key = one, fallback, self._scope(node)
            if key not in self._tables:
                self._tables[key] = routes.table(one, fallback, known)
            made[one.name] = self._tables[key]
        return made

    def _inbound(self, node: Node) -> inbound.Inbound:
        return inbound.build(self._registry, self._pod(node))

    def _pod(self, node: Node) -> Pod:
        """The sidecar's pod as the mesh has it, else as it says itself."""
        pod = self._pods.get((node.namespace, node.pod))
        return pod or Pod(Meta("Pod", node.namespace, node.pod, labels=node.labels), node.address)

    def _dns(self, choices: Choices) -> dict[str, Json]:
        if choices not in self._naming:
            self._naming[choices] = naming.listeners(nametable.build(self._registry), choices)
        return self._naming[choices]


_FALLBACKS = {outbound.PASSTHROUGH: api.PASSTHROUGH, outbound.BLACKHOLE: api.BLACKHOLE}


def _without(found: Outbound, address: str) -> Outbound:
    """Without the listeners at one address, which headless Services have there and the pod itself does not get."""
    return _less(found, {one.name for one in found.listeners if one.address == address})


def _yielding(found: Outbound, node: Node) -> Outbound:
    """Without the listeners where the sidecar has one of its own; who loses them is told."""
    occupied = listeners.occupied(node)
    lost = [one for one in found.listeners if (one.address, one.port) in occupied]
    if not lost:
        return found
    hosts = [(one.name, host) for one in lost for host in dict.fromkeys(chain.host for chain in one.chains)]
    told = [outbound.yielded(name, host) for name, host in hosts]
    kept = _less(found, {one.name for one in lost})
    return dataclasses.replace(kept, conflicts=(*kept.conflicts, *told))


def _less(found: Outbound, gone: Collection[str]) -> Outbound:
    """Without these listeners, and what belongs to them."""
    kept = tuple(one for one in found.listeners if one.name not in gone)
    named = {chain.route for one in kept for chain in one.chains}
    return dataclasses.replace(
        found,
        listeners=kept,
        tables=tuple(one for one in found.tables if one.name in named),
        conflicts=tuple(one for one in found.conflicts if one.listener not in gone),
    )
