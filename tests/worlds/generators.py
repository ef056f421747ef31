"""Valid sets of resources for property tests, as Python documents; `text` makes YAML of them.

Every set passes `reader.parse`. Names, ports and addresses are few, so that listeners, hosts and policies meet often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

Document = dict[str, Any]
Hosts = dict[str, dict[int, set[str]]]  # what each port of a host carries: http, tls, tcp, or auto
NAMESPACES = ("shop", "bank")
NAMES = ("web", "api", "db", "queue", "cache")
HOSTS = ("a.example.com", "b.example.com", "c.example.org", "*.example.net", "deep.in.example.net")
# Port names by what they carry; a name without a known prefix is for the sidecar to find out.
CARRIED = ("http-a", "http2-b", "grpc-c", "https-d", "tls-e", "tcp-f", "mongo-g", "mysql-h", "redis-i", "odd-j")
PROTOCOLS = ("HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP", "MONGO", "MYSQL", "REDIS", "")
NUMBERS = (80, 443, 3306, 5432, 8080)
FAMILIES = {
    "http": "http", "http2": "http", "grpc": "http", "https": "tls", "tls": "tls", "tcp": "tcp", "mongo": "tcp",
    "mysql": "tcp", "redis": "tcp",
}  # fmt: skip
TIMES = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", None)
ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
WEIGHTS: tuple[Document, ...] = ({}, {"weight": 1}, {"weight": 2**32 - 1})
LABELS = ({"version": "v1"}, {"version": "v2"}, {"version": "v1", "security.istio.io/tlsMode": "istio"})


class _Plain(yaml.SafeDumper):
    """Writes a value out again instead of pointing back to it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(documents: Sequence[Document]) -> str:
    """The documents as one YAML stream."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False)


def document(kind: str, version: str, namespace: str, name: str, **rest: Any) -> Document:
    """A resource with its head."""
    metadata: Document = {"name": name, "namespace": namespace}
    for key in ("creationTimestamp", "labels", "annotations"):
        if rest.get(key):
            metadata[key] = rest[key]
        rest.pop(key, None)
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def family(word: str, number: int) -> str:
    """What a port carries by its name or protocol."""
    return FAMILIES.get(word.lower().partition("-")[0], "tcp" if number == 3306 else "auto")


@st.composite
def meshes(draw: st.DrawFn, max_services: int = 4, max_entries: int = 4) -> list[Document]:
    """A valid set of resources."""
    whos = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(NAMES))
    found: list[Document] = []
    hosts: Hosts = {}
    owners: dict[str, str] = {}  # the namespace of each host
    pods: list[Document] = []
    for n, who in enumerate(draw(st.lists(whos, unique=True, max_size=max_services))):
        found += draw(services(n, who, hosts, pods))
        owners[f"{who[1]}.{who[0]}.svc.cluster.local"] = who[0]
    for n in range(draw(st.integers(0, max_entries))):
        found.append(draw(entries(n, hosts)))
        owners.update(dict.fromkeys(found[-1]["spec"]["hosts"], found[-1]["metadata"]["namespace"]))
    subsets = {host: draw(st.booleans()) for host in sorted(hosts)}
    found += [draw(rules(n, host, owners[host], hosts)) for n, (host, has) in enumerate(subsets.items()) if has]
    routed = list(draw(st.permutations(sorted(hosts))))[: draw(st.integers(0, 4))]
    several = draw(st.booleans())  # the first two in one VirtualService
    groups = [routed[:2], *([one] for one in routed[2:])] if several else [[one] for one in routed]
    # A host that only a wildcard covers has HTTP routes on port 80.
    groups += (
        [["one.example.net"]] if "http" in hosts.get("*.example.net", {}).get(80, ()) and draw(st.booleans()) else []
    )
    found += [draw(virtual_services(n, group, hosts, subsets)) for n, group in enumerate(groups) if group]
    return [*found, *pods, *draw(peers()), *draw(sidecars())]


@st.composite
def services(draw: st.DrawFn, n: int, who: tuple[str, str], hosts: Hosts, pods: list[Document]) -> list[Document]:
    """A Service with its EndpointSlice and Pods."""
    namespace, name = who
    names = draw(st.lists(st.sampled_from(CARRIED), unique=True, min_size=1, max_size=3))
    numbers = draw(st.permutations(NUMBERS))[: len(names)]
    ports = [
        {"name": port, "port": number, "targetPort": number + 8000} for port, number in zip(names, numbers, strict=True)
    ]
    headless = draw(st.booleans())
    spec = {"clusterIP": "None" if headless else f"10.96.7.{n + 1}", "selector": {"app": name}, "ports": ports}
    endpoints = []
    for m in range(draw(st.integers(0, 3))):
        address, pod = f"198.18.{n}.{m + 1}", f"{name}-{m}"
        labels = draw(st.sampled_from(LABELS))
        endpoint: Document = {"addresses": [address], "conditions": {"ready": draw(st.booleans())}, "zone": "z1"}
        endpoint |= {"targetRef": {"kind": "Pod", "name": pod}} | ({"hostname": pod} if draw(st.booleans()) else {})
        endpoints.append(endpoint)
        pods.append(document("Pod", "v1", namespace, pod, labels=labels, status={"podIP": address}))
    carried = {number: {family(port, number)} for port, number in zip(names, numbers, strict=True)}
    hosts[f"{name}.{namespace}.svc.cluster.local"] = carried
    piece = document(
        "EndpointSlice", "discovery.k8s.io/v1", namespace, f"{name}-x", labels={"kubernetes.io/service-name": name},
        addressType="IPv4", endpoints=endpoints,
        ports=[{"name": port["name"], "port": port["targetPort"]} for port in ports],
    )  # fmt: skip
    time = draw(st.sampled_from(TIMES))
    return [document("Service", "v1", namespace, name, creationTimestamp=time, spec=spec), piece]


@st.composite
def entries(draw: st.DrawFn, n: int, hosts: Hosts) -> Document:
    """A ServiceEntry with a host, or two where they are told apart; several may share a host."""
    host = draw(st.sampled_from(HOSTS))
    resolution = draw(st.sampled_from(("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN")))
    numbers = draw(st.lists(st.sampled_from(NUMBERS), unique=True, min_size=1, max_size=2))
    ports = [
        {"number": number, "name": f"p{number}", "protocol": draw(st.sampled_from(PROTOCOLS))} for number in numbers
    ]
    carries = {port["number"]: family(port["protocol"], port["number"]) for port in ports}
    apart = resolution == "NONE" or set(carries.values()) <= {"http", "tls"}
    more = [one for one in HOSTS if one != host and not one.startswith("*")]
    both = [host, *([draw(st.sampled_from(more))] if apart and draw(st.booleans()) else [])]
    spec: Document = {"hosts": both, "ports": ports, "resolution": resolution}
    spec["location"] = draw(st.sampled_from(("MESH_EXTERNAL", "MESH_INTERNAL")))
    if draw(st.booleans()):
        spec["addresses"] = [f"172.16.{n}.1"]
    elif resolution in ("NONE", "STATIC") and draw(st.booleans()):
        spec["addresses"] = [f"172.16.{n}.0/24"]
    if resolution == "STATIC":
        spec["endpoints"] = [
            {"address": f"198.19.{n}.{m + 1}", "labels": dict(LABELS[m]), **draw(st.sampled_from(WEIGHTS))}
            for m in range(draw(st.integers(1, 2)))
        ]
    elif resolution != "NONE" and (host.startswith("*") or draw(st.booleans())):
        spec["endpoints"] = [{"address": "real.example.org", "ports": {f"p{numbers[0]}": 9000}}]
    for each in both:
        for number, carried in carries.items():
            hosts.setdefault(each, {}).setdefault(number, set()).add(carried)
    labels = {"networking.istio.io/enable-autoallocate-ip": "false"} if draw(st.integers(0, 3)) == 0 else None
    time, version = draw(st.sampled_from(TIMES)), draw(st.sampled_from(ISTIO))
    namespace = draw(st.sampled_from(NAMESPACES))
    return document("ServiceEntry", version, namespace, f"e{n}", labels=labels, creationTimestamp=time, spec=spec)


@st.composite
def policies(draw: st.DrawFn) -> Document:
    """A traffic policy with at least one section."""
    sections: Document = {
        "loadBalancer": draw(st.sampled_from((
            {"simple": "ROUND_ROBIN"}, {"simple": "RANDOM"}, {"simple": "LEAST_REQUEST"},
            {"consistentHash": {"httpHeaderName": "x-user"}}, {"consistentHash": {"useSourceIp": True}},
            {"consistentHash": {"httpCookie": {"name": "c", "ttl": "10s"}, "maglev": {"tableSize": 65537}}},
        ))),
        "connectionPool": {"tcp": {"maxConnections": 10, "connectTimeout": "250ms"}, "http": {"maxRetries": 2}},
        "outlierDetection": {"consecutive5xxErrors": 3, "interval": "1s", "maxEjectionPercent": 50},
        "tls": {"mode": draw(st.sampled_from(("DISABLE", "SIMPLE", "ISTIO_MUTUAL")))},
    }  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(sorted(sections)), unique=True, min_size=1))
    return {key: sections[key] for key in chosen}


@st.composite
def rules(draw: st.DrawFn, n: int, host: str, owner: str, hosts: Hosts) -> Document:
    """A DestinationRule with the subsets v1 and v2, where every client finds it."""
    namespace = draw(st.sampled_from((owner, "istio-system")))
    spec: Document = {"host": host, "subsets": [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]}
    if draw(st.booleans()):
        spec["trafficPolicy"] = draw(policies())
        number = draw(st.sampled_from(sorted(hosts[host])))
        ported = [{"port": {"number": number}, **draw(policies())}]
        spec["trafficPolicy"] |= {"portLevelSettings": ported} if draw(st.booleans()) else {}
    if draw(st.booleans()):
        spec["subsets"][1]["trafficPolicy"] = draw(policies())
    return document("DestinationRule", draw(st.sampled_from(ISTIO)), namespace, f"r{n}", spec=spec)


@st.composite
def destinations(draw: st.DrawFn, hosts: Hosts, subsets: dict[str, bool]) -> list[Document]:
    """One destination, or two that share 100 per cent."""
    found = []
    weight = draw(st.integers(0, 100))
    weights = (weight, 100 - weight) if draw(st.booleans()) else (None,)
    for share in weights:
        host = draw(st.sampled_from(sorted(hosts)))
        to: Document = {"host": host, "port": {"number": draw(st.sampled_from(sorted(hosts[host])))}}
        if subsets.get(host) and draw(st.booleans()):
            to["subset"] = draw(st.sampled_from(("v1", "v2")))
        found.append({"destination": to} | ({} if share is None else {"weight": share}))
    return found


@st.composite
def virtual_services(draw: st.DrawFn, n: int, group: list[str], hosts: Hosts, subsets: dict[str, bool]) -> Document:
    """A VirtualService with the routes that its hosts can have; names of HTTP routes begin with its own."""
    matches = st.lists(st.sampled_from((
        {"uri": {"prefix": "/a"}}, {"uri": {"exact": "/b"}}, {"uri": {"regex": "/c/[0-9]+"}},
        {"headers": {"X-User": {"exact": "me"}}}, {"headers": {"x-flag": {}}}, {"uri": {"prefix": "/d"}, "port": 80},
    )), max_size=2)  # fmt: skip
    carried = [(number, each) for host in group for number, those in hosts.get(host, {80: {"http"}}).items()
               for each in those]  # fmt: skip
    http = []
    for m in range(draw(st.integers(1, 3)) if any(each in ("http", "auto") for _, each in carried) else 0):
        route: Document = {"name": f"v{n}-{m}", "route": draw(destinations(hosts, subsets))}
        if draw(st.booleans()):
            route |= {"timeout": "2s", "retries": {"attempts": 3, "perTryTimeout": "500ms", "retryOn": "5xx"}}
        if draw(st.booleans()):
            route["fault"] = {"delay": {"percentage": {"value": 12.5}, "fixedDelay": "100ms"},
                              "abort": {"percentage": {"value": 30}, "httpStatus": 503}}  # fmt: skip
        if (match := draw(matches)) and m:  # the first is for every port
            route["match"] = match
        elif not m:
            route["match"] = [{"uri": {"prefix": f"/{n}"}}]
        http.append(route)
    spec: Document = {"hosts": group} | ({"http": http} if http else {})
    plain = sorted({number for number, each in carried if each in ("tcp", "auto")})
    if plain and (not http or draw(st.booleans())):
        spec["tcp"] = [{"match": [{"port": draw(st.sampled_from(plain))}], "route": draw(destinations(hosts, subsets))}]
    if not http and not plain:  # nothing but TLS, which is not routed: a resource that changes nothing
        return document("Sidecar", ISTIO[0], f"only-{n}", "none", spec={"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}})
    return document(
        "VirtualService", draw(st.sampled_from(ISTIO)), draw(st.sampled_from(NAMESPACES)), f"v{n}", spec=spec
    )


@st.composite
def peers(draw: st.DrawFn) -> list[Document]:
    """PeerAuthentications of every scope, at most one each."""
    modes = st.sampled_from(("UNSET", "DISABLE", "PERMISSIVE", "STRICT"))
    found = []
    for namespace in draw(st.lists(st.sampled_from((*NAMESPACES, "istio-system")), unique=True)):
        spec: Document = {"mtls": {"mode": draw(modes)}}
        found.append(document("PeerAuthentication", "security.istio.io/v1", namespace, "default", spec=spec))
    if draw(st.booleans()):
        spec = {"selector": {"matchLabels": {"version": "v1"}}, "mtls": {"mode": draw(modes)},
                "portLevelMtls": {"8080": {"mode": draw(modes)}}}  # fmt: skip
        found.append(document("PeerAuthentication", "security.istio.io/v1beta1", "shop", "chosen", spec=spec))
    return found


@st.composite
def sidecars(draw: st.DrawFn) -> list[Document]:
    """At most one default per namespace."""
    modes = st.sampled_from(("ALLOW_ANY", "REGISTRY_ONLY"))
    chosen = draw(st.lists(st.sampled_from((*NAMESPACES, "istio-system")), unique=True, max_size=2))
    return [
        document("Sidecar", ISTIO[0], namespace, "default", spec={"outboundTrafficPolicy": {"mode": draw(modes)}})
        for namespace in chosen
    ]
