"""Interception rules of one pod, as `iptables-restore --noflush` input.

Chains, their order and their verdicts are those of Istio's sidecar interception (istio-iptables) with DNS capture for
all servers where the pod has a DNS proxy. Beside them stand two things a node would do: ClusterIP translation as
kube-proxy's iptables mode does it, and counting rules, named by their comment, which have no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.mesh import topology
from harness.mesh.topology import PORT_DNS, PORT_INBOUND, PORT_OUTBOUND, PORT_STATS, PORT_STATUS, PROXY_UID

TUNNEL_PORT = 15008  # HBONE: never captured inbound
INBOUND_EXCLUDED = (PORT_STATUS, 15021, PORT_STATS)  # Istio's agent, readiness and statistics ports


@dataclass(frozen=True)
class PodRules:
    """What one pod's namespace gets."""

    nets: topology.Nets
    address: str
    sidecar: bool
    dns_proxy: bool
    cluster_ips: bool  # client pods only: servers call nobody


def _count(name: str) -> str:
    return f'-m comment --comment "meshdns:{name}"'


def _inbound() -> Iterator[str]:
    yield "-A PREROUTING -p tcp -j ISTIO_INBOUND"
    for port in (TUNNEL_PORT, *INBOUND_EXCLUDED):
        yield f"-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN"
    yield f"-A ISTIO_INBOUND -p tcp {_count('inbound_tcp')} -j ISTIO_IN_REDIRECT"
    yield f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {PORT_INBOUND}"


def _outbound(dns_proxy: bool) -> Iterator[str]:
    """Loop breakers first, then DNS, then everything; the order decides."""
    not_self = "53,15008" if dns_proxy else str(TUNNEL_PORT)
    ports = f"-m multiport ! --dports {not_self}" if dns_proxy else f"! --dport {not_self}"
    # First in OUTPUT: the container engine's own name server rule (127.0.0.11) must not come before ours.
    yield "-I OUTPUT 1 -j ISTIO_OUTPUT"
    yield "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN"
    for owner, who in (("uid", PROXY_UID), ("gid", PROXY_UID)):
        match = f"-m owner --{owner}-owner {who}"
        other = f"-m owner ! --{owner}-owner {who}"
        yield f"-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp {ports} {match} -j ISTIO_IN_REDIRECT"
        if dns_proxy:
            yield f"-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 {other} -j RETURN"
        else:
            yield f"-A ISTIO_OUTPUT -o lo {other} -j RETURN"
        yield f"-A ISTIO_OUTPUT {match} -j RETURN"
    if dns_proxy:
        yield f"-A ISTIO_OUTPUT -p tcp --dport 53 {_count('redirect_dns_tcp')} -j REDIRECT --to-ports {PORT_DNS}"
        yield f"-A ISTIO_OUTPUT -p udp --dport 53 {_count('redirect_dns_udp')} -j REDIRECT --to-ports {PORT_DNS}"
    yield "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN"
    yield "-A ISTIO_OUTPUT -j ISTIO_REDIRECT"
    yield f"-A ISTIO_REDIRECT -p tcp {_count('redirect_tcp')} -j REDIRECT --to-ports {PORT_OUTBOUND}"


def _cluster_ips(nets: topology.Nets) -> Iterator[str]:
    """kube-proxy's iptables mode: a chain per service, endpoints drawn with equal probability."""
    yield "-A OUTPUT -j KUBE-SERVICES"
    for protocol in ("udp", "tcp"):
        match = f"-d {topology.DNS_CLUSTER_IP}/32 -p {protocol} --dport 53"
        target = f"{nets.pod(topology.DNS_HOST)}:53"
        yield f"-A KUBE-SERVICES {match} {_count(f'clusterip_dns_{protocol}')} -j DNAT --to-destination {target}"
    for service in topology.SERVICES:
        for port, target_port in ((80, 8080), (443, 8443)):
            match = f"-d {service.cluster_ip}/32 -p tcp --dport {port}"
            for left, host in zip(range(len(service.hosts), 0, -1), service.hosts, strict=True):
                chance = f"-m statistic --mode random --probability {1 / left:.8f}" if left > 1 else ""
                target = f"{nets.pod(host)}:{target_port}"
                yield f"-A KUBE-SERVICES {match} {chance} {_count('clusterip_tcp')} -j DNAT --to-destination {target}"


def _zones() -> Iterator[str]:
    """The proxy's own queries live in conntrack zone 1, the application's in zone 2.

    Without them a proxy query that happens to use the source port of an application query follows that query's
    translation and comes back to the proxy itself.
    """
    for owner in ("uid", "gid"):
        yield f"-A OUTPUT -p udp --dport 53 -m owner --{owner}-owner {PROXY_UID} -j CT --zone 1"
        yield f"-A OUTPUT -p udp --sport {PORT_DNS} -m owner --{owner}-owner {PROXY_UID} -j CT --zone 2"
    yield "-A OUTPUT -p udp --dport 53 -j CT --zone 2"
    yield "-A PREROUTING -p udp --sport 53 -j CT --zone 1"


def _dns_counts() -> Iterator[str]:
    for protocol in ("udp", "tcp"):
        packets = f"-p {protocol} --dport 53" + (" --syn" if protocol == "tcp" else "")
        suffix = "" if protocol == "udp" else "_tcp"
        yield f"-A OUTPUT {packets} -m owner ! --uid-owner {PROXY_UID} {_count(f'dns_client{suffix}')}"
        yield f"-A OUTPUT {packets} -m owner --uid-owner {PROXY_UID} {_count(f'dns_proxy{suffix}')}"


def _escapes() -> Iterator[str]:
    """A packet that still has a virtual address when it leaves was not translated: counted, and it goes nowhere."""
    for name, cidr in (("escaped_clusterip", topology.CLUSTER_IPS), ("escaped_vip", topology.VIRTUAL_IPS)):
        yield f"-A POSTROUTING -d {cidr} {_count(name)} -j DROP"


def restore_input(pod: PodRules) -> str:
    """The rules as `iptables-restore --noflush` reads them; atomic per table."""
    nat: list[str] = []
    chains: list[str] = []
    if pod.sidecar:
        chains += ["ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT"]
        nat += [*_inbound(), *_outbound(pod.dns_proxy)]
    if pod.cluster_ips:
        chains += ["KUBE-SERVICES"]
        nat += _cluster_ips(pod.nets)
    raw = [*_dns_counts(), *(_zones() if pod.dns_proxy else ())] if pod.cluster_ips else []
    mangle = list(_escapes()) if pod.cluster_ips else []
    tables = {"raw": ([], raw), "mangle": ([], mangle), "nat": (chains, nat)}
    lines: list[str] = []
    for table, (names, rules) in tables.items():
        if rules:
            lines += [f"*{table}", *(f":{name} - [0:0]" for name in names), *rules, "COMMIT"]
    return "\n".join(lines) + "\n"


def route_commands(pod: PodRules) -> str:
    """`ip -batch` input: the virtual ranges leave by the pod's ordinary interface, as a default route would have it.

    Not by `lo`: Istio's rule that leaves loopback traffic alone would then let every virtual address bypass the proxy.
    Not a blackhole: connect() would fail before any rule is asked.
    """
    if not pod.cluster_ips:
        return ""
    return "".join(
        f"route replace {cidr} dev eth0 src {pod.address}\n" for cidr in (topology.CLUSTER_IPS, topology.VIRTUAL_IPS)
    )
