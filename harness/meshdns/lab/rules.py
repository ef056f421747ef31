"""What one pod's namespace gets: interception, and beside it what a node would do.

Interception comes from `meshdns.interception`, with the options that Istio gives a sidecar. Beside it stand ClusterIP
translation as kube-proxy's iptables mode does it, routes for the virtual ranges, and counting rules, named by their
comment, which have no verdict.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from meshdns.core.world import Nets, Pod, World
from meshdns.interception import iptables, nftables, routing
from meshdns.interception.conventions import ISTIO
from meshdns.interception.ebpf.settings import from_options
from meshdns.interception.options import Options
from meshdns.interception.ruleset import build


def options(pod: Pod) -> Options:
    """What Istio asks of a sidecar's interception; port 53 too where the pod has a DNS proxy."""
    return Options.of(
        **ISTIO.injected(),
        redirect_dns=pod.dns_proxy,
        capture_all_dns=pod.dns_proxy,
        inbound_interception_mode="TPROXY" if pod.mechanism == "tproxy" else "REDIRECT",
    )


def files(world: World, nets: Nets, pod: Pod) -> dict[str, str]:
    """File of the pod's state folder -> content; `apply` is the script that loads the others."""
    # A replica's static sidecar calls nobody; one that is governed knows the whole mesh, and resolves names of it.
    calls = pod.governed or bool(pod.arm)
    found = {"node": _node(world, nets, pod), "routes": _routes(world, nets, pod)} if calls else {}
    if pod.sidecar:
        found |= _interception(pod)
    commands = [line for name, line in _LOADED_BY.items() if name in found]
    if pod.mechanism == "ebpf":  # a loader that is refused says so itself; the rest of the testbed comes up
        commands.append("python3 -m interception.ebpf --wait 10 || true")
    return {**found, "apply": "".join(f"{line}\n" for line in commands)}


_LOADED_BY = {  # in this order
    "routes": "ip -batch /rules/routes",
    "node": "iptables-restore --noflush /rules/node",
    "policy-routes": "ip -batch /rules/policy-routes",
    "iptables": "iptables-restore --noflush /rules/iptables",
    "nftables": "nft -f /rules/nftables",
}


def _interception(pod: Pod) -> dict[str, str]:
    wanted = options(pod)
    if pod.mechanism == "ebpf":
        from_options(wanted)  # what the programs cannot honour is refused here, not in the loader's container
        return {"options.json": json.dumps(dataclasses.asdict(wanted), indent=1) + "\n"}
    # First in OUTPUT: the container engine's own name server rule (127.0.0.11) must not come before ours.
    if pod.mechanism == "nftables":
        return {"nftables": nftables.render(build(wanted, "ipv4"), first=True, named=True)}
    rules = build(wanted, "ipv4", outbound_tproxy=pod.mechanism == "tproxy")
    found = {"iptables": iptables.render(rules, first=True, named=True)}
    if lines := routing.render(rules)["ipv4"]:
        found["policy-routes"] = lines
    return found


def _count(name: str) -> str:
    return f'-m comment --comment "meshdns:{name}"'


def _cluster_ips(world: World, nets: Nets) -> Iterator[str]:
    """kube-proxy's iptables mode: a chain per service, endpoints drawn with equal probability."""
    yield "-A OUTPUT -j KUBE-SERVICES"
    for address, pod in world.cluster_dns.items():
        for protocol in ("udp", "tcp"):
            match, target = f"-d {address}/32 -p {protocol} --dport 53", f"{world.address(nets, pod)}:53"
            yield f"-A KUBE-SERVICES {match} {_count(f'clusterip_dns_{protocol}')} -j DNAT --to-destination {target}"
    for service in (each for each in world.services if each.cluster_ip):
        for port, target_port in zip(service.ports, service.target_ports, strict=True):
            match = f"-d {service.cluster_ip}/32 -p tcp --dport {port}"
            for left, host in zip(range(len(service.hosts), 0, -1), service.hosts, strict=True):
                chance = f"-m statistic --mode random --probability {1 / left:.8f}" if left > 1 else ""
                target = f"{nets.pod(host)}:{target_port}"
                yield f"-A KUBE-SERVICES {match} {chance} {_count('clusterip_tcp')} -j DNAT --to-destination {target}"


def _dns_counts(pod: Pod) -> Iterator[str]:
    # Programs change the address before there is a packet; rules see the port that the application asked for.
    asked = ISTIO.dns_port if pod.mechanism == "ebpf" else 53
    for protocol in ("udp", "tcp"):
        syn, suffix = ("", "") if protocol == "udp" else (" --syn", "_tcp")
        client, proxy = f"! --uid-owner {ISTIO.uid}", f"--uid-owner {ISTIO.uid}"
        yield f"-A OUTPUT -p {protocol} --dport {asked}{syn} -m owner {client} {_count(f'dns_client{suffix}')}"
        yield f"-A OUTPUT -p {protocol} --dport 53{syn} -m owner {proxy} {_count(f'dns_proxy{suffix}')}"


def _escapes(world: World) -> Iterator[str]:
    """A packet that still has a virtual address when it leaves was not translated: counted, and it goes nowhere."""
    escapes = {
        "escaped_clusterip": world.cluster_ips,
        "escaped_vip": world.virtual_ips,
        "escaped_unroutable": world.unroutable,
    }
    for name, cidr in escapes.items():
        yield f"-A POSTROUTING -d {cidr} ! -o lo {_count(name)} -j DROP"


def _node(world: World, nets: Nets, pod: Pod) -> str:
    """`iptables-restore --noflush` input."""
    tables = {"raw": _dns_counts(pod), "mangle": _escapes(world), "nat": _cluster_ips(world, nets)}
    chains = {"nat": [":KUBE-SERVICES - [0:0]"]}
    lines = [line for name, rules in tables.items() for line in (f"*{name}", *chains.get(name, ()), *rules, "COMMIT")]
    return "\n".join(lines) + "\n"


def _routes(world: World, nets: Nets, pod: Pod) -> str:
    """`ip -batch` input: the virtual ranges leave by the pod's ordinary interface, as a default route would have it.

    Not by `lo`: Istio's rule that leaves loopback traffic alone would then let every virtual address bypass the proxy.
    Not a blackhole: connect() would fail before any rule is asked.
    """
    ranges = (world.cluster_ips, world.virtual_ips, world.unroutable)
    return "".join(f"route replace {cidr} dev eth0 src {nets.pod(pod.host)}\n" for cidr in ranges)
