"""What one pod's namespace gets: interception, and beside it what a node would do.

Interception comes from `meshdns.interception`, with the options that Istio gives a sidecar. Beside it stand ClusterIP
translation as kube-proxy's iptables mode does it, routes for the virtual ranges, and counting rules, named by their
comment, which have no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshdns.core.world import Nets, Pod, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.interception.mechanisms import RULES
from meshdns.interception.options import Options


def options(world: World, pod: Pod) -> Options:
    """What Istio asks of a sidecar's interception; queries to its cluster DNS too where the pod has a DNS proxy."""
    asked = ISTIO.injected() | mechanisms.ALL[pod.mechanism].options()
    asked["inbound_ports_exclude"] = ",".join([asked["inbound_ports_exclude"], *map(str, pod.excluded)])
    servers = (world.dns_address(pod),) if pod.dns_proxy else ()
    return Options.of(**asked, redirect_dns=pod.dns_proxy, dns_servers_v4=servers)


def files(world: World, nets: Nets, pod: Pod) -> dict[str, str]:
    """File of the pod's state folder -> content; `apply` is the script that loads the others."""
    found = {"node": _node(world, nets, pod), "routes": _routes(world, nets, pod)}
    own: dict[str, str] = {}
    captures: list[str] = []
    if pod.sidecar:
        mechanism = mechanisms.ALL[pod.mechanism]
        own = mechanism.files(options(world, pod))
        captures = mechanism.load(own)
    # A node's translation comes after whatever is captured in a pod.
    commands = [f"ip -batch {RULES}/routes", *captures, f"iptables-restore --noflush {RULES}/node"]
    return {**found, **own, "apply": "".join(f"{line}\n" for line in commands)}


def counters(pod: Pod) -> list[tuple[tuple[str, ...], str]]:
    """What prints the counters of the pod's rules, and how they stand there, as its observer is asked."""
    return [(("iptables-save", "-c"), mechanisms.COUNTED), *mechanisms.ALL[pod.mechanism].counters]


def count(name: str) -> str:
    """What has a rule counted by this name."""
    return f'-m comment --comment "meshdns:{name}"'


def _cluster_ips(world: World, nets: Nets) -> Iterator[str]:
    """kube-proxy's iptables mode: a chain per service, endpoints drawn with equal probability."""
    yield "-A OUTPUT -j KUBE-SERVICES"
    for address, pod in world.cluster_dns.items():
        for protocol in ("udp", "tcp"):
            match, target = f"-d {address}/32 -p {protocol} --dport 53", f"{world.address(nets, pod)}:53"
            yield f"-A KUBE-SERVICES {match} {count(f'clusterip_dns_{protocol}')} -j DNAT --to-destination {target}"
    for service in (each for each in world.services if each.cluster_ip):
        for port, target_port in zip(service.ports, service.target_ports, strict=True):
            match = f"-d {service.cluster_ip}/32 -p tcp --dport {port}"
            for left, host in zip(range(len(service.hosts), 0, -1), service.hosts, strict=True):
                chance = f"-m statistic --mode random --probability {1 / left:.8f}" if left > 1 else ""
                target = f"{nets.pod(host)}:{target_port}"
                yield f"-A KUBE-SERVICES {match} {chance} {count('clusterip_tcp')} -j DNAT --to-destination {target}"


def _dns_counts(pod: Pod) -> Iterator[str]:
    # Programs change the address before there is a packet, so that rules see the proxy's port.
    asked = ISTIO.dns_port if mechanisms.ALL[pod.mechanism].programs else 53
    for protocol in ("udp", "tcp"):
        syn, suffix = ("", "") if protocol == "udp" else (" --syn", "_tcp")
        client, proxy = f"! --uid-owner {ISTIO.uid}", f"--uid-owner {ISTIO.uid}"
        yield f"-A OUTPUT -p {protocol} --dport {asked}{syn} -m owner {client} {count(f'dns_client{suffix}')}"
        yield f"-A OUTPUT -p {protocol} --dport 53{syn} -m owner {proxy} {count(f'dns_proxy{suffix}')}"


def _answers(world: World, nets: Nets, pod: Pod) -> Iterator[str]:
    """Answers of a cluster DNS are in the zone in which Istio has the proxy's queries.

    It tells them by the name server's ClusterIP, since a node translates outside a pod; here they come with the address
    of the one who answered.
    """
    if pod.dns_proxy and not mechanisms.ALL[pod.mechanism].programs:
        for dns in world.cluster_dns.values():
            yield f"-A PREROUTING -s {world.address(nets, dns)}/32 -p udp -j CT --zone {ISTIO.proxy_zone}"


def _untracked(world: World, pod: Pod) -> Iterator[str]:
    """NodeLocal DNSCache's own rules: nobody follows the flows of a name server on the node."""
    address = f"{world.dns_address(pod)}/32"
    for protocol in ("udp", "tcp") if world.asks_node(pod) else ():
        for match in (f"OUTPUT -d {address} -p {protocol} --dport", f"OUTPUT -s {address} -p {protocol} --sport",
                      f"PREROUTING -d {address} -p {protocol} --dport"):  # fmt: skip
            yield f"-A {match} 53 -j CT --notrack"


def _escapes(world: World) -> Iterator[str]:
    """A packet that still has a virtual address when it leaves was not translated: counted, and it goes nowhere."""
    escapes = {
        "escaped_clusterip": world.cluster_ips,
        "escaped_vip": world.virtual_ips,
        "escaped_unroutable": world.unroutable,
    }
    for name, cidr in escapes.items():
        yield f"-A POSTROUTING -d {cidr} ! -o lo {count(name)} -j DROP"


def _node(world: World, nets: Nets, pod: Pod) -> str:
    """`iptables-restore --noflush` input."""
    raw = [*_dns_counts(pod), *_answers(world, nets, pod), *_untracked(world, pod)]
    tables = {"raw": raw, "mangle": _escapes(world), "nat": _cluster_ips(world, nets)}
    chains = {"nat": [":KUBE-SERVICES - [0:0]"]}
    lines = [line for name, rules in tables.items() for line in (f"*{name}", *chains.get(name, ()), *rules, "COMMIT")]
    return "\n".join(lines) + "\n"


def _routes(world: World, nets: Nets, pod: Pod) -> str:
    """`ip -batch` input: the virtual ranges leave by the pod's ordinary interface, as a default route would have it.

    Not by `lo`: Istio's rule that leaves loopback traffic alone would then let every virtual address bypass the proxy.
    Not a blackhole: connect() would fail before any rule is asked.
    """
    ranges = (world.cluster_ips, world.virtual_ips, world.unroutable)
    lines = [f"route replace {cidr} dev eth0 src {nets.pod(pod.host)}" for cidr in ranges]
    # A node has a device for it.
    lines += [f"address replace {world.dns_address(pod)}/32 dev lo"] if world.asks_node(pod) else []
    return "".join(f"{line}\n" for line in lines)
