"""What the eBPF programs are told, made from the options of all mechanisms, and the names of what they count."""

from __future__ import annotations

import enum
import functools
import ipaddress
import operator
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..conventions import ALL, ISTIO
from ..options import Options, Port, shown
from ..refusal import Refusal

# In the order of `enum counter` in mesh.bpf.c. Those that the rules have too bear the names of the rules' comments.
COUNTERS = (
    "redirect_tcp",  # connections of the application sent to the proxy's outbound port
    "redirect_dns_tcp",  # its connections to port 53 sent to the DNS port
    "redirect_dns_udp",  # its UDP sockets connected to port 53, and datagrams of unconnected ones: flows, as nat counts
    "inbound_tcp",  # connections from outside that the proxy's inbound listener got
    "self_tcp",  # connections of the proxy to the pod's own address, which come in by the inbound listener
    "handed_over",  # redirected connections, TCP DNS too, that the proxy accepted and whose destination it can ask for
    "proxy_absent",  # inbound packets that found no proxy: dropped or let through, as `fail_closed` says
)
MAX_LOCAL = 8  # addresses of one pod; length of `local` in mesh.bpf.c
MAX_OWNERS = 8  # users, and groups, of the proxy; length of `proxy_uids`
MAX_RANGES = 4096  # different ranges in all options together; size of `ranges`
_NOBODY = 2**32 - 1  # the kernel gives this number to no user and no group
_PORTS_BYTES = 1 << 13  # a bit per port
_PORTS = f"{_PORTS_BYTES}s"
_LAYOUT = f"=Q{MAX_OWNERS}I{MAX_OWNERS}I{4 * MAX_LOCAL}s4sHHHHBB{_PORTS}{_PORTS}{_PORTS}2x"  # `struct settings`
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_EVERYWHERE = ipaddress.IPv4Network("0.0.0.0/0")


class Range(enum.IntFlag):
    """What the options say of a destination; `enum range` in mesh.bpf.c."""

    INCLUDED = 1
    EXCLUDED = 2
    DNS_SERVER = 4
    EXEMPT = 8  # the part of loopback that nobody's packets to are captured


@dataclass(frozen=True)
class Settings:
    """Interception of a pod. Ports and the order of decisions are those of Istio's sidecar rules."""

    proxy_uids: tuple[int, ...]
    proxy_gids: tuple[int, ...]
    outbound_port: int
    inbound_port: int
    tunnel_port: int
    dns_port: int
    capture_dns: bool  # port 53, UDP and TCP, of DNS_SERVER ranges
    outbound_excluded: frozenset[int]
    outbound_included: frozenset[int]  # captured although their address is not
    inbound_captured: frozenset[int]
    ranges: Mapping[ipaddress.IPv4Network, Range]  # per range its own flags and those of all ranges around it

    def packed(self, netns: int, local: Sequence[str], *, fail_closed: bool = False) -> bytes:
        """`struct settings` of mesh.bpf.c for the namespace with this cookie and these addresses, without loopback.

        `fail_closed`: inbound connections are dropped, not let through, while no proxy listens. Raises ValueError for
        more addresses than there is room for.
        """
        if len(local) > MAX_LOCAL:
            raise ValueError(f"the pod has {len(local)} addresses, at most {MAX_LOCAL} are supported")
        addresses = [ipaddress.IPv4Address(address).packed for address in local]
        return struct.pack(
            _LAYOUT,
            netns,
            *_filled(self.proxy_uids),
            *_filled(self.proxy_gids),
            b"".join(addresses),
            # With several addresses the routing table chooses one; then loopback is the honest source.
            addresses[0] if len(addresses) == 1 else b"",
            self.outbound_port,
            self.inbound_port,
            self.tunnel_port,
            self.dns_port,
            self.capture_dns,
            fail_closed,
            port_bits(self.outbound_excluded),
            port_bits(self.outbound_included),
            port_bits(self.inbound_captured),
        )

    def range_entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the map `ranges`."""
        for network, flags in self.ranges.items():
            yield struct.pack("=I4s", network.prefixlen, network.network_address.packed), struct.pack("=I", flags)

    def document(self) -> dict[str, object]:
        """The settings as a JSON document shows them."""
        ranges = {str(net): [flag.name for flag in Range if flag in had] for net, had in self.ranges.items()}
        shown = {key: _spans(value) if isinstance(value, frozenset) else value for key, value in vars(self).items()}
        return shown | {"ranges": ranges}


def from_options(options: Options) -> Settings:
    """What the programs are told for these options. Raises Refusal, naming every key that they cannot honour."""
    found = list(_impossible(options))
    ranges = _ranges(options)
    if len(ranges) > MAX_RANGES:
        found.append(f"the options name {len(ranges)} ranges and servers, allowed: {MAX_RANGES}")
    if found:
        raise Refusal(f"not possible by eBPF: {'; '.join(found)}; change that, or use iptables or nftables")
    return Settings(
        proxy_uids=options.uids,
        proxy_gids=options.gids,
        outbound_port=options.proxy_port,
        inbound_port=options.inbound_capture_port,
        tunnel_port=options.inbound_tunnel_port,
        dns_port=options.dns_port,
        capture_dns=options.captures_dns,
        outbound_excluded=_each(options.ports("outbound_ports_exclude")),
        outbound_included=_each(options.ports("outbound_ports_include")),
        inbound_captured=_inbound(options),
        ranges=ranges,
    )


# Per key the one value that the programs can honour, and why no other.
ONLY: Mapping[str, tuple[object, str]] = {
    "inbound_interception_mode": ("REDIRECT", "no mark is set; connections keep their address all the same"),
    "reroute_virtual_interfaces": ("", "what passes through the pod meets no socket"),
    "exclude_interfaces": ("", "a destination is decided on before it is routed"),
    "owner_groups_include": ("*", "only the proxy's own groups are asked for"),
    "owner_groups_exclude": ("", "only the proxy's own groups are asked for"),
    "inbound_ip_ranges_exclude": ("", "a connection's listener is chosen by its port"),
    "drop_invalid": (False, "connection tracking is not asked"),
    "enable_ipv6": (False, "IPv6 is let alone"),
}


def _impossible(options: Options) -> Iterator[str]:
    possible = [mesh.name for mesh in ALL.values() if mesh.self_calls]
    if options.conventions not in possible:
        reason = "the programs take the proxy's calls to its own pod for inbound ones, and let others' on loopback pass"
        yield f"conventions is {shown(options.conventions)}, allowed: {', '.join(possible)} ({reason})"
    if options.captures_dns and options.mesh.dns_protocols != ISTIO.dns_protocols:
        protocols = ", ".join(options.mesh.dns_protocols)
        yield f"redirect_dns is true, allowed under these conventions: false (they redirect {protocols} alone)"
    order = options.mesh.outbound
    if options.outbound_ip_ranges_exclude and order.index("excluded_ranges") < order.index("owners"):
        value = shown(options.outbound_ip_ranges_exclude)
        reason = "in these conventions' rules they go before the proxy's calls to its own pod, in the programs after"
        yield f'outbound_ip_ranges_exclude is {value}, allowed: "" ({reason})'
    for key, (only, reason) in ONLY.items():
        value = getattr(options, key)
        if value != only:
            yield f"{key} is {shown(value)}, allowed: {shown(only)} ({reason})"
    for key, owners in (("proxy_uid", options.uids), ("proxy_gid", options.gids)):
        if len(owners) > MAX_OWNERS:
            yield f"{key} has {len(owners)} numbers, allowed: {MAX_OWNERS}"
    if ipaddress.IPv4Address("127.0.0.1") not in _loopback(options):
        value = shown(options.host_ipv4_loopback_cidr)
        yield f"host_ipv4_loopback_cidr is {value}, allowed: what holds 127.0.0.1 (captured connections go there)"
    if options.loopback_families:
        value = shown(options.outbound_ip_ranges_include)
        yield f"outbound_ip_ranges_include is {value}, allowed: none that begins in loopback (it stays in the pod)"


def _inbound(options: Options) -> frozenset[int]:
    if options.inbound_ports_include == "*":
        ports = _each([range(1, 65536)]) - _each(options.ports("inbound_ports_exclude"))
    else:  # a list silences the excluded ones, as in Istio
        ports = _each(options.ports("inbound_ports_include"))
    return ports - {options.inbound_tunnel_port}


def _each(ports: Iterable[Port]) -> frozenset[int]:
    return frozenset(one for port in ports for one in (port if isinstance(port, range) else (port,)))


def _ranges(options: Options) -> dict[ipaddress.IPv4Network, Range]:
    """Of all ranges that hold a destination the programs see the longest only: each bears the flags of those around."""
    own: dict[ipaddress.IPv4Network, Range] = {}
    for flag, networks in (
        (Range.INCLUDED, _networks(options, "outbound_ip_ranges_include")),
        (Range.EXCLUDED, _networks(options, "outbound_ip_ranges_exclude")),
        (Range.DNS_SERVER, _servers(options)),
        (Range.EXEMPT, [_loopback(options)]),
    ):
        for network in networks:
            own[network] = own.get(network, Range(0)) | flag
    around = {network: [network.supernet(new_prefix=n) for n in range(network.prefixlen + 1)] for network in own}
    return {
        network: functools.reduce(operator.or_, (own[one] for one in around[network] if one in own))
        for network in sorted(own)
    }


def _loopback(options: Options) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(options.host_ipv4_loopback_cidr, strict=False)


def _networks(options: Options, key: str) -> list[ipaddress.IPv4Network]:
    if getattr(options, key) == "*":
        return [_EVERYWHERE]
    return [network for network in options.ranges(key, "ipv4") if isinstance(network, ipaddress.IPv4Network)]


def _servers(options: Options) -> list[ipaddress.IPv4Network]:
    if not options.captures_dns:
        return []
    return [_EVERYWHERE] if options.capture_all_dns else [ipaddress.IPv4Network(s) for s in options.dns_servers_v4]


def _filled(owners: tuple[int, ...]) -> tuple[int, ...]:
    """As many as there is room for; the first stands in for those that are missing, or nobody."""
    return owners + (owners[0] if owners else _NOBODY,) * (MAX_OWNERS - len(owners))


def _spans(ports: Iterable[int]) -> str:
    """Ports as "80,443,15009-65535"."""
    spans: list[tuple[int, int]] = []
    for port in sorted(ports):
        if spans and spans[-1][1] == port - 1:
            spans[-1] = spans[-1][0], port
        else:
            spans.append((port, port))
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in spans)


def port_bits(ports: Iterable[int]) -> bytes:
    """A bit per port, lowest first."""
    bits = bytearray(_PORTS_BYTES)
    for port in ports:
        bits[port >> 3] |= 1 << (port & 7)
    return bytes(bits)


def port(text: str) -> int:
    """A port number. Raises ValueError."""
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is no port")
    return number


def local_addresses(fib_trie: str) -> tuple[str, ...]:
    """The namespace's own IPv4 addresses outside 127.0.0.0/8, from the text of /proc/net/fib_trie."""
    found = dict.fromkeys(_LOCAL.findall(fib_trie))  # the tables `main` and `local` both list them
    return tuple(address for address in found if not ipaddress.IPv4Address(address).is_loopback)


def totals(values: Sequence[bytes]) -> dict[str, int]:
    """Counters by name from a per-CPU array's values, each one native 64-bit number per possible CPU."""
    sums = [sum(number for (number,) in struct.iter_unpack("=Q", value)) for value in values]
    return dict(zip(COUNTERS, sums, strict=True))
