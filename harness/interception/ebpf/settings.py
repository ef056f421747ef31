"""What the eBPF programs are told before they are loaded, and the names of what they count."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
_PORTS_BYTES = 1 << 13  # a bit per port
_LAYOUT = f"=QII{4 * MAX_LOCAL}s4sHHHBB{_PORTS_BYTES}s{_PORTS_BYTES}s4x"  # `struct settings` in mesh.bpf.c
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


@dataclass(frozen=True)
class Settings:
    """Interception of one pod. Ports and the order of decisions are those of Istio's sidecar rules."""

    netns: int  # cookie of the pod's network namespace
    local: tuple[str, ...]  # the pod's own IPv4 addresses, without loopback
    proxy_uid: int = 1337
    proxy_gid: int = 1337
    outbound_port: int = 15001
    inbound_port: int = 15006
    dns_port: int = 15053
    capture_dns: bool = False  # port 53, UDP and TCP, to any address
    fail_closed: bool = False  # inbound connections are dropped, not let through, while no proxy listens
    outbound_excluded: tuple[int, ...] = ()
    inbound_excluded: tuple[int, ...] = (15008, 15020, 15021, 15090)  # HBONE, agent, readiness, statistics

    def packed(self) -> bytes:
        """`struct settings` of mesh.bpf.c. Raises ValueError for more addresses than it has room for."""
        if len(self.local) > MAX_LOCAL:
            raise ValueError(f"the pod has {len(self.local)} addresses, at most {MAX_LOCAL} are supported")
        addresses = [ipaddress.IPv4Address(address).packed for address in self.local]
        return struct.pack(
            _LAYOUT,
            self.netns,
            self.proxy_uid,
            self.proxy_gid,
            b"".join(addresses),
            # With several addresses the routing table chooses one; then loopback is the honest source.
            addresses[0] if len(addresses) == 1 else b"",
            self.outbound_port,
            self.inbound_port,
            self.dns_port,
            self.capture_dns,
            self.fail_closed,
            port_bits(self.outbound_excluded),
            port_bits(self.inbound_excluded),
        )


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


def ports(text: str) -> tuple[int, ...]:
    """Comma separated ports; none in an empty text. Raises ValueError."""
    return tuple(port(one) for one in text.split(",")) if text else ()


def local_addresses(fib_trie: str) -> tuple[str, ...]:
    """The namespace's own IPv4 addresses outside 127.0.0.0/8, from the text of /proc/net/fib_trie."""
    found = dict.fromkeys(_LOCAL.findall(fib_trie))  # the tables `main` and `local` both list them
    return tuple(address for address in found if not ipaddress.IPv4Address(address).is_loopback)


def totals(values: Sequence[bytes]) -> dict[str, int]:
    """Counters by name from a per-CPU array's values, each one native 64-bit number per possible CPU."""
    sums = [sum(number for (number,) in struct.iter_unpack("=Q", value)) for value in values]
    return dict(zip(COUNTERS, sums, strict=True))
