"""Pods, services and addresses of the testbed.

Pods live in 198.18.0.0/15 (RFC 2544's benchmarking range, never routed), ClusterIPs in Kubernetes' usual 10.96.0.0/16,
virtual IPs in 240.240.0.0/16, the range Istio allocates from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

NAMESPACE = "shop"
DOMAIN = "cluster.local"
SEARCH = (f"{NAMESPACE}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN)
CLUSTER_IPS = "10.96.0.0/16"
VIRTUAL_IPS = "240.240.0.0/16"
UNROUTABLE = "192.0.2.0/24"  # TEST-NET-1 (RFC 5737): nobody is there
ENTRY_ADDRESS = "192.0.2.80"  # what a ServiceEntry calls `legacy` by: it exists in sidecars alone
DNS_CLUSTER_IP = "10.96.0.10"
EXTERNAL_NAME = "api.example.com"
ABSENT_NAME = f"absent.{NAMESPACE}.svc.{DOMAIN}"

PROXY_UID = 1337  # Istio's sidecar user: the rules tell the proxy's own traffic by it
PORT_OUTBOUND, PORT_INBOUND, PORT_DNS = 15001, 15006, 15053
PORT_ADMIN, PORT_STATS, PORT_STATUS = 15000, 15090, 15020
PORT_DNS_METRICS, PORT_LOADER = 15054, 15099  # the DNS proxy's own counters, those of the eBPF loader
PORT_DNS_DIRECT = 5353  # the cluster DNS again, where nobody captures


@dataclass(frozen=True)
class Nets:
    """The two networks, each named by the first three octets of its /24."""

    pods: str = "198.18.0"
    world: str = "198.19.0"

    def pod(self, host: int) -> str:
        """Address number `host` on the pod network."""
        return f"{self.pods}.{host}"

    def cidrs(self) -> tuple[str, str]:
        """Both networks as CIDR blocks."""
        return f"{self.pods}.0/24", f"{self.world}.0/24"

    def problem(self) -> str:
        """Why these networks cannot be used, or an empty string."""
        bench = ipaddress.ip_network("198.18.0.0/15")
        for cidr in self.cidrs():
            try:
                net = ipaddress.ip_network(cidr)
            except ValueError:
                return f"{cidr} is not a network"
            if not net.subnet_of(bench):  # type: ignore[arg-type]
                return f"{cidr} is outside 198.18.0.0/15, the range that never leaves a machine"
        return "" if self.pods != self.world else "the pod and the world network are the same"


@dataclass(frozen=True)
class Service:
    """A Kubernetes Service of namespace `shop`: port 80 goes to 8080 and 443 to 8443 of its endpoints."""

    name: str
    backend: str  # the plan's word for it
    cluster_ip: str
    virtual_ip: str  # what mode 2 answers
    replicas: Mapping[str, int]  # pods behind it, each with its host number on the pod network
    headless: str = ""  # the headless twin that a sidecar re-resolves; empty: endpoints are given statically
    meshed: bool = True  # its replicas have a sidecar
    governed: bool = False  # known to sidecars that the control plane configures
    host: str = ""  # its whole name, where that is not one of the namespace
    ports: tuple[int, int] = (80, 443)  # plain and TLS, as clients call it
    target_ports: tuple[int, int] = (8080, 8443)

    @property
    def fqdn(self) -> str:
        """The name without its final dot."""
        return self.host or f"{self.name}.{SEARCH[0]}"

    @property
    def external(self) -> bool:
        """Outside the mesh and its namespace."""
        return bool(self.host)

    @property
    def hosts(self) -> tuple[int, ...]:
        """Endpoints, as host numbers on the pod network."""
        return tuple(self.replicas.values())


Dns = Literal["cluster", "envoy", "agent"]
Mechanism = Literal["iptables", "nftables", "tproxy", "ebpf"]
Resolver = Literal["c-ares", "getaddrinfo", "hickory"]
# Every testbed has the core; the others come up for the plans that need them.
Group = Literal["core", "interception", "governed"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class ClientPod:
    """A client pod: the application is the same everywhere, only the network around it differs."""

    arm: str
    host: int
    sidecar: bool = False  # outbound and inbound TCP go through Envoy
    dns: Dns = "cluster"  # who answers port 53: the cluster DNS, Envoy's filter, or a proxy with the agent's semantics
    mechanism: Mechanism = "iptables"  # what captures
    guarded: bool = True  # the sidecar refuses connections to its own ports
    virtual_ips: bool = False  # the sidecar knows them although no proxy in the pod answers them
    group: Group = "core"
    resolver: Resolver = "c-ares"  # what its sidecar resolves names with

    @property
    def pod(self) -> str:
        """The pod's name, also that of its pause container's Compose service."""
        return f"client-{self.arm}"

    @property
    def governed(self) -> bool:
        """The control plane configures its sidecar and its DNS proxy."""
        return self.group == "governed"

    @property
    def dns_proxy(self) -> bool:
        """Port 53 goes to a DNS proxy inside the pod."""
        return self.dns != "cluster"

    def intercepted(self) -> str:
        """What is taken, by what, in words."""
        taken = ["tcp out and in"] if self.sidecar else []
        taken += ["dns udp and tcp"] if self.dns_proxy else []
        return f"{', '.join(taken)} ({self.mechanism})" if taken else "nothing"


MECHANISMS: tuple[Mechanism, ...] = get_args(Mechanism)
CLIENTS = (
    ClientPod("ip", 41),
    ClientPod("plain", 42),
    ClientPod("plain-aa", 43),
    ClientPod("mode1", 44, sidecar=True),
    ClientPod("mode2-envoy", 45, sidecar=True, dns="envoy"),
    ClientPod("mode2-agent", 46, sidecar=True, dns="agent"),
    # mode 2 again, captured in three other ways
    ClientPod("nftables", 47, sidecar=True, dns="agent", mechanism="nftables", group="interception"),
    ClientPod("tproxy", 48, sidecar=True, dns="agent", mechanism="tproxy", group="interception"),
    ClientPod("ebpf", 49, sidecar=True, dns="agent", mechanism="ebpf", group="interception"),
    # mode 1 again, to take its interception and its sidecar away, and to leave its loop guard out; mode 2's sidecar for
    # the same, where the cluster DNS gives all answers, so that nothing but the sidecar differs
    ClientPod("answers", 51, sidecar=True, group="interception"),
    ClientPod("unguarded", 52, sidecar=True, guarded=False, group="interception"),
    ClientPod("answers-mode2", 57, sidecar=True, virtual_ips=True, group="interception"),
    # both modes as the control plane configures them: mode 2 with either DNS proxy, mode 1 also with Envoy's other
    # resolvers
    ClientPod("mode1-xds", 53, sidecar=True, group="governed"),
    ClientPod("mode2-xds", 54, sidecar=True, dns="agent", group="governed"),
    ClientPod("mode2-envoy-xds", 58, sidecar=True, dns="envoy", group="governed"),
    ClientPod("mode1-getaddrinfo", 55, sidecar=True, group="governed", resolver="getaddrinfo"),
    ClientPod("mode1-hickory", 56, sidecar=True, group="governed", resolver="hickory"),
)
ARMS = {client.arm: client for client in CLIENTS}
ANSWERING = ("answers", "unguarded", "answers-mode2")  # arms that ask for names answered in unusual ways


@dataclass(frozen=True)
class ServerPod:
    """A replica with a sidecar: of `web`, or where the control plane governs, of `shop`."""

    pod: str
    host: int
    mechanism: Mechanism = "iptables"
    group: Group = "core"

    @property
    def governed(self) -> bool:
        """The control plane configures its sidecar."""
        return self.group == "governed"


MESHED = (
    ServerPod("web-1", 21),
    ServerPod("web-2", 22),
    ServerPod("web-3", 23),
    ServerPod("web-nftables", 24, "nftables", "interception"),
    ServerPod("web-tproxy", 25, "tproxy", "interception"),
    ServerPod("web-ebpf", 26, "ebpf", "interception"),
    ServerPod("shop-1", 71, group="governed"),
    ServerPod("shop-2", 72, group="governed"),
    ServerPod("shop-3", 73, group="governed"),
    ServerPod("shop-4", 74, group="governed"),
)
LEGACY_PODS = {"legacy-1": 31, "legacy-2": 32, "legacy-3": 33}
DNS_HOST, OBSERVER_HOST, NULL_HOST, PLANE_HOST = 10, 50, 60, 70
SPARE_POD = "shop-4"  # unready until it is wanted
DEAD_POD, DEAD_HOST = "shop-dead", 79  # a pod whose processes are gone
WORLD_HOSTS = {"world-web": 80, "world-postgres": 81, "world-redis": 82}
PORT_XDS, PORT_PLANE = 15010, 15014  # the control plane: for sidecars, for people
PROBE_PERIOD_S = 0.5  # of the control plane's readiness probes; a kubelet's default is 10 s
RECORD_TTL_S = 5  # of the records that the control plane keeps; CoreDNS' own default
PORT_EXTERNAL = 6000  # of both external TCP services

_REPLICAS = {server.pod: server.host for server in MESHED if server.group == "core"}
_SHOP = {server.pod: server.host for server in MESHED if server.governed and server.pod != SPARE_POD}
WEB = Service("web", "meshed", "10.96.1.10", "240.240.0.10", _REPLICAS, "web-headless")
WEB_STATIC = Service("web-static", "static", "10.96.1.11", "240.240.0.11", _REPLICAS)
LEGACY = Service("legacy", "plain", "10.96.1.20", "240.240.0.20", LEGACY_PODS, "legacy-headless", meshed=False)
SERVICES = (WEB, WEB_STATIC, LEGACY)
# What the control plane's sidecars know, of which it also makes the name table and the records (compose/mesh).
SHOP = Service("shop", "shop", "10.96.1.30", "", _SHOP, governed=True)
SHOP_DEAD = Service("shop-dead", "shop-dead", "10.96.1.31", "", {**_SHOP, DEAD_POD: DEAD_HOST}, governed=True)
GOVERNED = (
    SHOP,
    SHOP_DEAD,
    Service("shop-headless", "shop-headless", "", "", SHOP.replicas, governed=True, ports=(8080, 8443)),
    Service("shop-dns", "shop-dns", "", "", SHOP.replicas, governed=True, host="shop.example.com"),
    Service("shop-dns-30", "shop-dns-30", "", "", SHOP.replicas, governed=True, host="shop-30.example.com"),
    Service("api", "api", "", "", {}, meshed=False, governed=True, host=EXTERNAL_NAME),
    *(
        Service(name, name, "", "", {}, meshed=False, governed=True, host=f"{name}.example.com", ports=(6000, 6000))
        for name in ("postgres", "redis")
    ),
)
# One replica for each way to capture what comes in; called by its pod address, so it needs no Service.
INBOUND = tuple(
    Service(server.pod, f"in-{server.mechanism}", "", "", {server.pod: server.host})
    for server in {server.mechanism: server for server in reversed(MESHED) if not server.governed}.values()
)
BACKENDS = {service.backend: service for service in (*SERVICES, *INBOUND, *GOVERNED)}
RESOLVED = ("shop-dns", "shop-dns-30")  # backends whose replicas a governed sidecar finds by resolving a name
FOUND = ("shop", *RESOLVED)  # those whose replicas it knows itself
FAULTS = ("fail30", "slow", "dead", "overload")
POLICIES = ("retries", "timeouts", "outlier", "breaker", "split", "strict", "permissive", "disable", "reconnect")
CHANGES = ("up", "down", "replace", "unready", "crash", "gone", "rotate", "unrelated")


@dataclass(frozen=True)
class Answer:
    """An address that a name may be answered with, and the port an application would then use."""

    address: str  # {pods}: the pod network; {own}: the asking pod
    port: int

    def of(self, nets: Nets, client: ClientPod) -> str:
        """The address as this pod is told it."""
        return self.address.format(pods=nets.pods, own=nets.pod(client.host))


ANSWERS = {
    "pod": Answer("{pods}.31", 8080),
    "clusterip": Answer(LEGACY.cluster_ip, 80),
    "virtual": Answer(LEGACY.virtual_ip, 80),
    "service-entry": Answer(ENTRY_ADDRESS, 80),
    "loopback": Answer("127.0.0.1", 80),
    "own": Answer("{own}", 80),
    "unroutable": Answer("192.0.2.1", 80),
    # the sidecar itself, by its port for what is captured
    "loopback-sidecar": Answer("127.0.0.1", PORT_OUTBOUND),
    "own-sidecar": Answer("{own}", PORT_OUTBOUND),
}


def answer_name(answer: str, client: ClientPod) -> str:
    """The name that is answered so in this pod."""
    return f"answer-{answer}-{client.arm}.{SEARCH[0]}"
