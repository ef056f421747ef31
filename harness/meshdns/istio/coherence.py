"""What only shows across resources: names given twice, hosts and subsets that are missing, addresses claimed twice."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from meshdns.core.schema import Fault, Labels
from meshdns.istio.resources import (
    SERVICE_NAME,
    UNLISTED_PORT,
    Destination,
    DestinationRule,
    HttpRoute,
    Meta,
    PeerAuthentication,
    Resource,
    Resources,
    ServicePort,
    Sidecar,
    VirtualService,
)

_SHOWN = 5  # known hosts named in a message


def _add(faults: list[Fault], meta: Meta, path: str, fact: str, step: str) -> None:
    faults.append(Fault(meta.place, f"{meta.path}.{path}" if meta.path else path, fact, step))


def names(found: Sequence[Resource], faults: list[Fault]) -> None:
    """No two resources of one kind have the same name in the same namespace."""
    seen: dict[tuple[str, str, str], Meta] = {}
    for meta in (one.meta for one in found):
        first = seen.setdefault((meta.kind, meta.namespace, meta.name), meta)
        if meta.name and first is not meta:
            fact = f"{meta} is there twice, first at {first.place}"
            _add(faults, meta, "metadata.name", fact, "remove one of them or give it another name")


def check(everything: Resources, faults: list[Fault]) -> None:
    """Every reference across resources is met, and no address, route or default is claimed twice."""
    known = Known(everything)
    _slices(everything, faults)
    _pods(everything, faults)
    _addresses(everything, faults)
    _rules(everything, known, faults)
    for virtual in everything.virtual_services:
        _hosts(virtual, known, faults)
        _routes(virtual, known, faults)
    _once_routed(everything, faults)
    _defaults("Sidecar", everything.sidecars, faults)
    _defaults("PeerAuthentication", everything.peers, faults)


class Known:
    """Hosts with their ports, and the subsets that DestinationRules give them."""

    def __init__(self, everything: Resources) -> None:
        self._entries = everything.entries
        self.carried: dict[str, set[ServicePort]] = defaultdict(set)  # all but UDP, which no sidecar takes
        given = [(one.host, one.ports) for one in everything.services]
        given += [(host, one.ports) for one in everything.entries for host in one.hosts]
        for host, ports in given:
            self.carried[host] |= {port for port in ports if port.transport != "UDP"}
        self.ports: Mapping[str, set[int]] = {
            host: {port.number for port in ports} for host, ports in self.carried.items()
        }
        self.subsets: dict[str, set[str]] = defaultdict(set)
        for rule in everything.rules:
            for host in self.under(rule.host):
                self.subsets[host] |= {subset.name for subset in rule.subsets}

    def under(self, host: str) -> list[str]:
        """The known hosts that a host, perhaps a wildcard, covers."""
        if host in self.ports:
            return [host]
        return [one for one in self.ports if matches(host, one)]

    def above(self, host: str) -> list[str]:
        """The known wildcards that cover a host, the longest first."""
        return sorted((one for one in self.ports if matches(one, host)), key=len, reverse=True)

    def shared(self, host: str) -> set[int]:
        """Ports of a host on which HTTP is told apart by its Host header, not by an address."""
        return {
            port.number
            for entry in self._entries
            if host in entry.hosts
            for port in entry.ports
            if port.protocol.family == "http"
            or (port.protocol.carries_http and all("/" in one for one in entry.addresses))
        }

    def hint(self, host: str) -> str:
        """The next step for a host that is not known: a longer form that is, or some that are."""
        for one in self.ports:
            if one.startswith(f"{host}."):
                return f"write {one}"
        if above := self.above(host):
            return f"write {above[0]}, or give {host} a ServiceEntry of its own"
        some = sorted(self.ports)[:_SHOWN]
        more = f" and {len(self.ports) - _SHOWN} more" if len(self.ports) > _SHOWN else ""
        return f"known: {', '.join(some)}{more}" if some else "add its Service or ServiceEntry"


def matches(wildcard: str, host: str) -> bool:
    """Whether `*.x` covers a host below x, at any depth."""
    return wildcard.startswith("*.") and host.endswith(wildcard[1:]) and host != wildcard


# ---- Kubernetes


def _slices(everything: Resources, faults: list[Fault]) -> None:
    services = {(one.meta.namespace, one.meta.name): one for one in everything.services}
    for piece in everything.slices:
        service = services.get((piece.meta.namespace, piece.service))
        if service is None:
            fact = f"the Service {piece.meta.namespace}/{piece.service} is not there"
            _add(faults, piece.meta, "metadata.labels", fact, f"add it, or correct the label {SERVICE_NAME}")
            continue
        wanted = {port.name for port in service.ports}
        for name in (name for name, _ in piece.ports if name not in wanted):
            fact = f"the port name {name!r} is not one of {service.meta}'s"
            _add(faults, piece.meta, "ports", fact, f"use {', '.join(map(repr, sorted(wanted)))}")


def _pods(everything: Resources, faults: list[Fault]) -> None:
    seen: dict[str, Meta] = {}
    for pod in everything.pods:
        first = seen.setdefault(pod.address, pod.meta)
        if pod.address and first is not pod.meta:
            fact = f"{pod.address} is also the address of {first}"
            _add(faults, pod.meta, "status.podIP", fact, "give each Pod its own")


# ---- addresses


@dataclass(frozen=True)
class _Claim:
    """An address range that a host answers for on some ports."""

    text: str
    host: str
    ports: tuple[ServicePort, ...]
    meta: Meta

    @cached_property
    def ends(self) -> tuple[int, int, int]:
        """The address family, the first and the last address."""
        net = ipaddress.ip_network(self.text)
        return net.version, int(net.network_address), int(net.broadcast_address)


def _addresses(everything: Resources, faults: list[Fault]) -> None:
    """An address and port lead to one host; one ClusterIP belongs to one Service."""
    claims = [_Claim(ip, one.host, one.ports, one.meta) for one in everything.services for ip in one.cluster_ips]
    claims += [
        _Claim(block, " ".join(sorted(one.hosts)), one.ports, one.meta)
        for one in everything.entries
        for block in one.addresses
    ]
    open_: list[_Claim] = []  # those that reach over what comes next
    for claim in sorted(claims, key=lambda one: (*one.ends[:2], -one.ends[2], one.meta.age)):
        family, low, _ = claim.ends
        open_ = [one for one in open_ if one.ends[0] == family and one.ends[2] >= low]
        for other in open_:
            _overlap(other, claim, faults)
        open_.append(claim)


def _overlap(first: _Claim, second: _Claim, faults: list[Fault]) -> None:
    if first.host == second.host or first.meta == second.meta:
        return  # several entries may speak for one host
    services = first.meta.kind == second.meta.kind == "Service"
    theirs = {(port.number, port.transport) for port in second.ports}
    shared = sorted(port.number for port in first.ports if (port.number, port.transport) in theirs)
    if not services and not shared:
        return
    old, new = sorted((first, second), key=lambda one: (one.meta.created_s, one.meta.place))
    what = f"{new.text} is" if old.text == new.text else f"{new.text} overlaps {old.text},"
    port = "" if services else f" on port {shared[0]}"
    path = "spec.clusterIP" if new.meta.kind == "Service" else "spec.addresses"
    _add(faults, new.meta, path, f"{what} the address of {old.meta}{port}", "give each its own")


# ---- DestinationRule


def _rules(everything: Resources, known: Known, faults: list[Fault]) -> None:
    subsets: dict[tuple[str, str, str], DestinationRule] = {}
    for rule in everything.rules:
        covered = known.under(rule.host)
        if not covered:
            only = f", only {above[0]}, to which it does not apply" if (above := known.above(rule.host)) else ""
            _add(faults, rule.meta, "spec.host", f"the host {rule.host} is not known{only}", known.hint(rule.host))
            continue
        ports = set().union(*(known.ports[host] for host in covered))
        policies = [("trafficPolicy", rule.policy)]
        policies += [(f"subsets[{n}].trafficPolicy", one.policy) for n, one in enumerate(rule.subsets)]
        for path, policy in policies:
            for number in (number for number, _ in policy.ports if number not in ports):
                fact = f"{rule.host} has no port {number}"
                _add(faults, rule.meta, f"spec.{path}.portLevelSettings", fact, f"use {_list(ports)}")
        for n, subset in enumerate(rule.subsets):
            other = subsets.setdefault((rule.meta.namespace, rule.host, subset.name), rule)
            if other is not rule:
                fact = f"{other.meta} also gives {rule.host} the subset {subset.name}"
                _add(faults, rule.meta, f"spec.subsets[{n}].name", fact, "keep one")


def _list(ports: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ports)))


# ---- VirtualService


def _hosts(virtual: VirtualService, known: Known, faults: list[Fault]) -> None:
    """Each is known, or is one that Istio tells apart from the wildcard that covers it."""
    ports = _carrying(virtual, known, http=True)
    for n, host in enumerate(virtual.hosts):
        if known.under(host):
            continue
        wide = next(iter(known.above(host)), "")
        step = f"give {host} a ServiceEntry of its own"
        if not wide:
            fact, step = f"the host {host} is not known", known.hint(host)
        elif host.startswith("*."):
            fact, step = f"no known host is under {host}, and {wide} is not routed by parts", f"write {wide}"
        elif virtual.tcp:
            fact = f"TCP routes of {host} would take every connection to {wide}, as nothing tells the two apart"
        elif not any(ports & known.shared(one) for one in known.above(host)):
            fact = (f"{host} is known by {wide} only; such a host is routed on port {_list(ports)}, "
                    f"and {wide} has no HTTP there")  # fmt: skip
        else:
            continue
        _add(faults, virtual.meta, f"spec.hosts[{n}]", fact, step)


def _carrying(virtual: VirtualService, known: Known, *, http: bool) -> set[int]:
    """The ports on which HTTP routes, or TCP routes, of a VirtualService apply."""
    carried = {port for host in virtual.hosts for one in known.under(host) for port in known.carried[one]}
    if not http:
        return {port.number for port in carried if port.protocol.carries_bytes}
    found = {port.number for port in carried if port.protocol.carries_http}
    unlisted = any(not known.under(host) and known.above(host) for host in virtual.hosts)
    return found or ({UNLISTED_PORT} if unlisted else set())


def _routes(virtual: VirtualService, known: Known, faults: list[Fault]) -> None:
    http, tcp = _carrying(virtual, known, http=True), _carrying(virtual, known, http=False)
    found = [("http", n, one.destinations, _called(one) or http) for n, one in enumerate(virtual.http)]
    found += [("tcp", n, one.destinations, set(one.ports) or tcp) for n, one in enumerate(virtual.tcp)]
    taking = dict.fromkeys((kind for kind, *_ in found), False)
    for kind, n, destinations, ports in found:
        called = ports & (http if kind == "http" else tcp)
        taking[kind] = taking[kind] or bool(called)
        for m, to in enumerate(destinations):
            path = f"spec.{kind}[{n}].route[{m}].destination"
            for part, fact, step in _destination(to, called, known):
                _add(faults, replace(virtual.meta, place=to.place), f"{path}.{part}", fact, step)
    if any(known.under(host) or known.above(host) for host in virtual.hosts):
        for kind in (one for one, takes in taking.items() if not takes):
            fact = f"{kind.upper()} routes take no effect: no host of it carries that on a port that they are for"
            _add(faults, virtual.meta, f"spec.{kind}", fact, _STEPS[kind])


_STEPS = {
    "http": "declare the port as HTTP, or write tcp routes",
    "tcp": "declare the port as TCP, or write http routes; TLS is not routed here",
}


def _called(route: HttpRoute) -> set[int]:
    """The ports to which a route is limited; empty: it is not."""
    ports = {match.port for match in route.matches}
    return set() if 0 in ports else ports


def _destination(to: Destination, called: set[int], known: Known) -> Iterator[tuple[str, str, str]]:
    """What is wrong with it: the field, the fact, the next step."""
    if to.host not in known.ports:
        yield "host", f"the host {to.host} is not known", known.hint(to.host)
        return
    if to.subset and to.subset not in known.subsets[to.host]:
        given = ", ".join(sorted(known.subsets[to.host]))
        step = f"known: {given}" if given else "add a DestinationRule that defines it"
        yield "subset", f"{to.host} has no subset {to.subset}", step
    ports = known.ports[to.host]
    if to.port and to.port not in ports:
        yield "port", f"{to.host} has no port {to.port}", f"use {_list(ports)}"
    if not to.port and len(ports) != 1 and (missing := called - ports):
        fact = f"{to.host} has no port {_list(missing)}, which is the one called, and none is given"
        yield "port", fact, f"give one of {_list(ports)}"


def _once_routed(everything: Resources, faults: list[Fault]) -> None:
    """A sidecar takes one VirtualService per host; a second one would be dropped without a word."""
    seen: dict[str, Meta] = {}
    for virtual in everything.virtual_services:
        for n, host in enumerate(virtual.hosts):
            first = seen.setdefault(host, virtual.meta)
            if first != virtual.meta:
                fact = f"{host} is already routed by {first}, and a sidecar takes one VirtualService per host"
                _add(faults, virtual.meta, f"spec.hosts[{n}]", fact, "put the routes into one")


# ---- defaults of a namespace


def _defaults(kind: str, found: Sequence[Sidecar] | Sequence[PeerAuthentication], faults: list[Fault]) -> None:
    """Two of one scope contradict each other silently: Istio takes the older and says nothing."""
    seen: dict[tuple[str, Labels], Meta] = {}
    for one in found:
        first = seen.setdefault((one.meta.namespace, one.selector), one.meta)
        if first != one.meta:
            scope = "the same workloads" if one.selector else f"the whole namespace {one.meta.namespace}"
            _add(faults, one.meta, "spec", f"{first} already applies to {scope}", f"keep one {kind}")
