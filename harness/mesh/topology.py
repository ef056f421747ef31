"""Pods, services and addresses of the testbed.

Pods live in 198.18.0.0/15 (RFC 2544's benchmarking range, never routed), ClusterIPs in Kubernetes' usual 10.96.0.0/16,
virtual IPs in 240.240.0.0/16, the range Istio allocates from.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

NAMESPACE = "shop"
DOMAIN = "cluster.local"
SEARCH = (f"{NAMESPACE}.svc.{DOMAIN}", f"svc.{DOMAIN}", DOMAIN)
CLUSTER_IPS = "10.96.0.0/16"
VIRTUAL_IPS = "240.240.0.0/16"
DNS_CLUSTER_IP = "10.96.0.10"
EXTERNAL_NAME = "api.example.com"
ABSENT_NAME = f"absent.{NAMESPACE}.svc.{DOMAIN}"

PROXY_UID = 1337  # Istio's sidecar user: the rules tell the proxy's own traffic by it
PORT_OUTBOUND, PORT_INBOUND, PORT_DNS = 15001, 15006, 15053
PORT_ADMIN, PORT_STATS, PORT_STATUS = 15000, 15090, 15020


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
    hosts: tuple[int, ...]  # endpoints, as host numbers on the pod network
    headless: str  # the headless twin that a sidecar re-resolves; empty: endpoints are given statically

    @property
    def fqdn(self) -> str:
        """The name without its final dot."""
        return f"{self.name}.{SEARCH[0]}"


WEB = Service("web", "meshed", "10.96.1.10", "240.240.0.10", (21, 22, 23), "web-headless")
WEB_STATIC = Service("web-static", "static", "10.96.1.11", "240.240.0.11", (21, 22, 23), "")
LEGACY = Service("legacy", "plain", "10.96.1.20", "240.240.0.20", (31, 32, 33), "legacy-headless")
SERVICES = (WEB, WEB_STATIC, LEGACY)
BACKENDS = {service.backend: service for service in SERVICES}


@dataclass(frozen=True)
class ClientPod:
    """A client pod: the application is the same everywhere, only the network around it differs."""

    arm: str
    host: int
    sidecar: bool  # outbound and inbound TCP go through Envoy
    dns_proxy: bool  # port 53 goes to Envoy's DNS listener

    @property
    def pod(self) -> str:
        """The pod's name, also that of its pause container's Compose service."""
        return f"client-{self.arm}"

    def intercepted(self) -> str:
        """What the rules take, in words."""
        taken = ["tcp out and in"] if self.sidecar else []
        taken += ["dns udp and tcp"] if self.dns_proxy else []
        return ", ".join(taken) or "nothing"


CLIENTS = (
    ClientPod("ip", 41, sidecar=False, dns_proxy=False),
    ClientPod("plain", 42, sidecar=False, dns_proxy=False),
    ClientPod("plain-aa", 43, sidecar=False, dns_proxy=False),
    ClientPod("mode1", 44, sidecar=True, dns_proxy=False),
    ClientPod("mode2-envoy", 45, sidecar=True, dns_proxy=True),
)
ARMS = {client.arm: client for client in CLIENTS}
DNS_HOST, OBSERVER_HOST, NULL_HOST = 10, 50, 60
MESHED_HOSTS, PLAIN_HOSTS = WEB.hosts, LEGACY.hosts
