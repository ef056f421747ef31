"""Which way one name and port take from a caller, and why.

DNS first (which search expansion is answered, by whom, with what), then the listener that takes the connection, then
route and cluster. What the model cannot know, the addresses that the world's DNS gives, is said to be so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from meshdns.core import errors, resolver
from meshdns.core.schema import Labels, is_address, is_host
from meshdns.interception.conventions import ISTIO
from meshdns.istio import nametable, outbound, records
from meshdns.istio.outbound import Chain, Client, Listener, Outbound, RouteTable, VirtualHost, Weighted
from meshdns.istio.registry import Discovery, Endpoint, Registry, Service, names
from meshdns.istio.resources import DOMAIN, HttpMatch, HttpRoute, StringMatch, TrafficPolicy

NDOTS = 5  # Kubernetes' resolv.conf
DNS_PORT = 53
_OWN_PORTS = (ISTIO.outbound_port, ISTIO.inbound_port)
Table = dict[str, nametable.Name]


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    namespace: str = "default"
    labels: Labels = ()  # a Sidecar resource may select it by them
    sidecar: bool = True
    dns: str = "cluster"  # who answers: the cluster DNS, Istio's `agent`, or `envoy` with its filter

    @property
    def dns_proxy(self) -> bool:
        """Port 53 goes to a DNS proxy inside the pod."""
        return self.dns != "cluster"

    @property
    def search(self) -> tuple[str, ...]:
        """The search list of its resolv.conf."""
        return f"{self.namespace}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN


@dataclass(frozen=True)
class Lookup:
    """How a name is resolved."""

    asked: str  # the candidate that was answered, with its final dot; empty: there was no query, or none was answered
    addresses: tuple[str, ...]
    unknown: bool = False  # answered by the world's DNS, with addresses that the model does not know
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All that can be said of a name from one caller."""

    addresses: tuple[str, ...]  # that the name is resolved to, as far as they are known
    lines: tuple[str, ...]  # one fact each


def explain(registry: Registry, host: str, port: int | None, caller: Caller) -> Explanation:
    """The way of `host` (a name as an application writes it, or an address) and of one port, or of all its ports."""
    plain = host.removesuffix(".").lower()
    if not is_address(plain) and not is_host(plain):
        raise errors.InputError(f"{host!r} is neither a host name nor an IP address", step="try web.shop or 10.96.1.10")
    lookup = _lookup(registry, host.lower(), caller)
    known = _meant(registry, lookup, plain, caller.search[0])
    numbers = [port] if port else sorted({one.number for service in known for one in service.ports})
    if not numbers:
        fact = f"{host} is no known service, so its ports are not known"
        raise errors.InputError(fact, step=f"name one: {_at(host, 80)}")
    client = Client(caller.namespace, caller.labels, dns_proxy=caller.dns_proxy)
    out = outbound.build(registry, client) if caller.sidecar else None
    call = _Call(registry, caller, out, lookup, known, plain)
    lines = [f"from {caller.name}: {_caller_in_words(caller)}", *lookup.lines]
    for number in numbers:
        lines += ["", f"port {number}", *(f"  {line}" for line in _way(call, number))]
    return Explanation(lookup.addresses, tuple(lines))


@dataclass(frozen=True)
class _Call:
    """What is the same for every port of a question."""

    registry: Registry
    caller: Caller
    out: Outbound | None  # None: there is no sidecar
    lookup: Lookup
    known: list[Service]  # services that are meant by the name
    host: str


def _caller_in_words(caller: Caller) -> str:
    if not caller.sidecar:
        return "no sidecar"
    if not caller.dns_proxy:
        return "TCP goes through the sidecar, DNS does not"
    kind = "with the agent's short names" if caller.dns == "agent" else "Envoy's DNS filter, whole names only"
    return f"TCP and DNS go through the sidecar ({kind})"


# ---- the name


def _lookup(registry: Registry, host: str, caller: Caller) -> Lookup:
    if is_address(host):
        return Lookup("", (host,), lines=(f"{host} is an address, so nothing is looked up",))
    zone = _zone(registry)
    table = nametable.build(registry) if caller.dns_proxy else {}
    told: list[str] = []
    for candidate in resolver.candidates(host, NDOTS, caller.search):
        name = candidate.removesuffix(".")
        if found := _proxied(table, name, caller):
            alias, addresses = found
            via = f"CNAME {alias}., " if alias else ""
            said = f"{candidate} is answered by the sidecar's DNS proxy: {via}{_list(addresses)}"
            return Lookup(candidate, addresses, lines=(*told, said))
        if addresses := zone.get(candidate, ()):
            said = f"{candidate} is answered by the cluster DNS: {_list(addresses)}"
            return Lookup(candidate, addresses, lines=(*told, said))
        if not name.endswith(f".{DOMAIN}"):
            said = f"{candidate} is forwarded to the world's DNS, whose answer the model does not know"
            return Lookup(candidate, (), unknown=True, lines=(*told, said))
        told.append(f"{candidate} does not exist (NXDOMAIN from the cluster DNS)")
    return Lookup("", (), lines=(*told, "no name is left to try: the lookup fails"))


def _zone(registry: Registry) -> dict[str, tuple[str, ...]]:
    """Addresses by name of the cluster DNS."""
    found: dict[str, tuple[str, ...]] = {}
    for record in records.build(registry):
        if record.rtype in ("A", "AAAA"):
            found[record.name] = (*found.get(record.name, ()), record.data)
    return found


def _proxied(table: Table, name: str, caller: Caller) -> tuple[str, tuple[str, ...]] | None:
    """The addresses that the DNS proxy answers, and the alias (CNAME) through which it does; empty: none.

    Istio's agent knows shorter forms of Kubernetes' names, and every name of its own under the first search domain, as
    an alias: an application's first query is then the last.
    """
    known = {host: one.ips for host, one in table.items()}
    own = f".{caller.search[0]}"
    short = name.removesuffix(own)
    if caller.dns == "agent":
        forms = _alternates(table, caller.namespace)
        known |= {form: table[host].ips for form, host in forms.items() if form not in table}
    for alias in ("", short) if caller.dns == "agent" and short != name else ("",):
        for one in names(alias or name):
            if one in known:
                return (one if alias else ""), known[one]
    return None


def _alternates(table: Table, namespace: str) -> dict[str, str]:
    """Shorter forms that the agent answers for Kubernetes' hosts."""
    found: dict[str, str] = {}
    for host, name in table.items():
        if name.shortname:
            forms = [f"{name.shortname}.{name.namespace}", f"{name.shortname}.{name.namespace}.svc"]
            forms += [name.shortname] if name.namespace == namespace else []
            found |= dict.fromkeys(forms, host)
    return found


def _at(host: str, port: int) -> str:
    return f"{outbound.bracketed(host)}:{port}"


def _list(addresses: tuple[str, ...]) -> str:
    return ", ".join(f"{'AAAA' if ':' in one else 'A'} {one}" for one in addresses)


# ---- the service that is meant


def _meant(registry: Registry, lookup: Lookup, host: str, own: str) -> list[Service]:
    """Services that the name, or else the address, belongs to."""
    for name in (lookup.asked.removesuffix("."), host, host.removesuffix(f".{own}")):
        for one in names(name):
            if found := registry.of(one):
                return list(found)
    wanted = set(lookup.addresses)
    called = [one for one in registry.services if wanted & set(_addresses(one))]
    owner = lookup.asked.removesuffix(".").partition(".")[2]  # pod.service.namespace.svc.domain
    return [one for one in called if one.headless and one.host == owner] or called


def _addresses(service: Service) -> Iterator[str]:
    yield from service.addresses
    if service.virtual_ip:
        yield service.virtual_ip
    if service.headless:
        yield from (one.address for one in service.endpoints)


# ---- the connection


def _way(call: _Call, port: int) -> list[str]:
    """One port's connection, once the name is resolved."""
    out = call.out
    address = call.lookup.addresses[0] if call.lookup.addresses else ""
    if not address and not call.lookup.unknown:
        return ["there is no address to connect to"]
    served = next((one for one in call.known if one.port(port)), None)
    said = list(_beside(call, address, served, port))
    if out is None or said:
        return said
    listener = out.listener(address, port)
    if listener is None:
        return list(_unlistened(out, address, port))
    chain = choose(listener, address, _family(served, port), served.host if served else call.host)
    taken = [f"listener {listener.name} takes it: {_why(listener, address)}", *_conflicts(out, listener)]
    if chain is None:
        return [*taken, f"no chain of it fits, so it goes to {out.fallback}: {_fallback(out)}"]
    if served and chain.host != served.host and not chain.route:
        taken.append(f"the bytes meant for {served.host} go to {chain.host}: {_lost(out, listener, served)}")
    return [*taken, *_through(call, out, chain)]


def _beside(call: _Call, address: str, served: Service | None, port: int) -> Iterator[str]:
    """The way of what no listener of the sidecar's sees; empty: one does."""
    found = served.port(port) if served else None
    if call.caller.dns_proxy and port == DNS_PORT:
        yield "whatever has this port is captured as DNS: the sidecar's DNS proxy takes it, at any address"
        return
    if call.out and found and found.transport == "UDP":
        yield "UDP is not captured, so the sidecar does not see it"
    elif call.out and ":" in address:
        yield "IPv6 is not captured, so the sidecar does not see it"
    elif call.out and address and ipaddress.ip_address(address).is_loopback:
        yield f"{address} stays inside the pod, where nothing is captured, so the sidecar does not see it"
    elif call.out:
        return
    yield from _direct(call.registry, call.known, address, port)


def _conflicts(out: Outbound, listener: Listener) -> Iterator[str]:
    for one in out.conflicts:
        if one.listener == listener.name:
            yield f"conflict on {one.listener}: {one.loser} loses to {one.winner}, as {one.why}"


def _family(served: Service | None, port: int) -> str:
    """What the client sends, as far as the model knows: an unknown or undeclared port is taken for HTTP."""
    found = served.port(port) if served else None
    family = found.protocol.family if found else "http"
    return "http" if family == "auto" else family


def _direct(registry: Registry, known: list[Service], address: str, port: int) -> Iterator[str]:
    """Without a sidecar: the node's rules translate a ClusterIP, anything else is reached as it is."""
    if not address:
        yield "it connects straight to the address that the world's DNS gave"
        return
    service = next((one for one in known if address in one.addresses and one.kubernetes), None)
    found = service.port(port) if service else None
    if service is None:
        yield f"it connects straight to {_at(address, port)}"
    elif found is None:
        yield f"{service.resource} has no port {port}: nothing translates {_at(address, port)}, the connection is lost"
    else:
        ready = [(one, one.port(found.name)) for one in service.endpoints if one.ready]
        ends = ", ".join(_at(one.address, number) for one, number in ready)
        if ends:
            yield f"the ClusterIP {_at(address, port)} is translated to one of {ends} (kube-proxy's rules)"
            for one, number in ready if found.transport == "TCP" else ():
                accepted = registry.mtls(one.namespace, one.labels, number)
                if not outbound.admitted("none", one, accepted):
                    yield f"the sidecar of {one.workload or one.address} is {accepted}: plain text is refused"
        else:
            yield f"{service.resource} has no ready endpoint: the connection is refused (kube-proxy's rules)"


def _unlistened(out: Outbound, address: str, port: int) -> Iterator[str]:
    if port in _OWN_PORTS:
        yield f"port {port} is the sidecar's own, for what was captured: it goes to {outbound.BLACKHOLE}, it is closed"
        return
    at = _at(address, port) if address else f"any address on port {port}"
    yield f"no listener is for {at}, so virtualOutbound itself takes it"
    yield f"cluster {out.fallback}: {_fallback(out)}"


def _fallback(out: Outbound) -> str:
    if out.fallback == outbound.PASSTHROUGH:
        return "unknown destinations are allowed (ALLOW_ANY), it goes where the client was going"
    return "unknown destinations are not allowed (REGISTRY_ONLY), it is closed"


def _why(listener: Listener, address: str) -> str:
    if listener.address != outbound.WILDCARD:
        return "it is for exactly this address and port"
    return f"no listener is for {address or 'the address'} alone, and this one is for the port on any address"


def choose(listener: Listener, address: str, family: str, server_name: str) -> Chain | None:
    """The chain that takes a connection, by the proxy's order: destination, TLS name, first bytes; None: no chain."""
    fitting = [chain for chain in listener.chains if chain.prefixes and address and _within(address, chain.prefixes)]
    longest = max((_length(chain) for chain in fitting), default=0)
    near = [chain for chain in fitting if _length(chain) == longest] or [c for c in listener.chains if not c.prefixes]
    if family == "tls":
        named = [chain for chain in near if server_name in chain.server_names]
        if named:
            return named[0]
    open_ = [chain for chain in near if not chain.server_names]
    if family == "http":
        sniffed = [chain for chain in open_ if chain.http]
        if sniffed:
            return sniffed[0]
    return next((chain for chain in open_ if not chain.http), listener.default)


def _within(address: str, prefixes: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in ipaddress.ip_network(one) for one in prefixes)


def _length(chain: Chain) -> int:
    return max(ipaddress.ip_network(one).prefixlen for one in chain.prefixes)


def _lost(out: Outbound, listener: Listener, served: Service) -> str:
    reasons = [one.why for one in out.conflicts if one.listener == listener.name and one.loser == served.host]
    return reasons[0] if reasons else "its own listener has another address"


# ---- route and cluster


def _through(call: _Call, out: Outbound, chain: Chain) -> list[str]:
    registry = call.registry
    if not chain.route:
        virtual = registry.route(chain.host)
        how = f"the TCP route of {virtual.meta}" if virtual and virtual.tcp else f"all bytes go to {chain.host}"
        return [how, *_clusters(registry, out, chain.clusters)]
    table = next(one for one in out.tables if one.name == chain.route)
    vhost = _virtual_host(table, outbound.bracketed(call.host))
    if vhost is None:
        missing = f"route table {table.name} has no virtual host for {call.host}"
        return [f"{missing}, so it goes to {out.fallback}: {_fallback(out)}"]
    told = [f"route table {table.name}, virtual host {vhost.name} (Host: {call.host})"]
    virtual = registry.route(vhost.host)
    if virtual and virtual.http:
        told.append(f"{virtual.meta} routes it, the first match wins:")
    told += [f"  {_match(one.match)} → {_shares(one.clusters)}{_extras(one.given)}" for one in vhost.routes]
    every = tuple(dict.fromkeys((name, 100) for one in vhost.routes for name, _ in one.clusters))
    return [*told, *_clusters(registry, out, every)]


def _virtual_host(table: RouteTable, name: str) -> VirtualHost | None:
    """The one of the most exact domain, as the proxy chooses."""
    domains = {domain: host for host in table.hosts for domain in host.domains}
    return next((domains[one] for one in (*names(name), "*") if one in domains), None)


def _match(match: HttpMatch) -> str:
    parts = [_comparison("path", match.uri)] if match.uri else []
    parts += [_comparison(f"header {name}", one) for name, one in match.headers]
    return " and ".join(parts) or "everything"


def _comparison(what: str, one: StringMatch) -> str:
    words = {"exact": "is", "prefix": "begins with", "regex": "matches", "present": "is there"}
    return f"{what} {words[one.kind]} {one.value}".rstrip()


def _shares(clusters: Weighted) -> str:
    if len(clusters) == 1:
        return clusters[0][0]
    return ", ".join(f"{weight} % {name}" for name, weight in clusters)


def _extras(route: HttpRoute | None) -> str:
    if route is None:
        return ""
    found = [f"timeout {route.timeout_ms} ms"] if route.timeout_ms else []
    found += [f"{route.retries} retries"] if route.retries is not None else []
    found += [f"{route.delay.percent:g} % wait {route.delay.delay_ms} ms"] if route.delay else []
    found += [f"{route.abort.percent:g} % answered {route.abort.status}"] if route.abort else []
    return f" ({', '.join(found)})" if found else ""


def _clusters(registry: Registry, out: Outbound, wanted: Weighted) -> Iterator[str]:
    known = {one.name: one for one in out.clusters}
    for name, _ in wanted:
        one = known.get(name)
        if one is None:
            yield f"cluster {name}: there is none, so the request fails"
            continue
        yield f"cluster {name}: {_discovery(one)}{_policy(one.policy)}"
        for endpoint, port in one.endpoints:
            yield f"  {_at(endpoint.address, port)}{_endpoint(registry, endpoint, one, port)}"


def _discovery(one: outbound.Cluster) -> str:
    if one.discovery is Discovery.ORIGINAL_DST:
        port = f", on port {one.port_override}" if one.port_override else ""
        return f"goes to the very address that the client resolved{port}"
    if one.discovery is Discovery.EDS:
        return "endpoints told by the control plane" + ("" if one.endpoints else ", of which there is none: 503")
    every = "every address is an endpoint" if one.discovery is Discovery.STRICT_DNS else "its first address is used"
    return f"the sidecar resolves the name itself, {every}"


def _policy(policy: TrafficPolicy) -> str:
    parts = [policy.balancer] if policy.balancer else []
    parts += ["connection limits"] if policy.limits else []
    parts += ["outlier detection"] if policy.outlier else []
    parts += [f"TLS {policy.tls}"] if policy.tls else []
    return f" ({', '.join(parts)})" if parts else ""


def _endpoint(registry: Registry, one: Endpoint, cluster: outbound.Cluster, port: int) -> str:
    """Who it is, how the hop is encrypted, and whether it is let in."""
    accepted = registry.mtls(one.namespace, one.labels, port)
    how = outbound.encryption(cluster.policy, one, accepted, external=cluster.external)
    words = {"mutual": "mutual TLS", "simple": "TLS without a client certificate", "none": "plain text"}
    parts = [one.workload] if one.workload else []
    parts.append(words[how])
    parts += [f"its sidecar is {accepted}"] if one.sidecar else []
    parts += [] if outbound.admitted(how, one, accepted) else ["so the connection is refused"]
    return f" ({', '.join(parts)})"
