"""Virtual IPs for ServiceEntries without an address: those that Istio has given, and new ones for the others.

The rules for who gets one are those of Istio's IP auto-allocation.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from meshdns.core import errors
from meshdns.istio import registry
from meshdns.istio.resources import Resources

RANGE = "240.240.0.0/16"  # class E, which no network routes; Istio's range


def assign(
    before: Mapping[str, str], wanted: Sequence[str], reserved: Iterable[str] = (), cidr: str = RANGE
) -> dict[str, str]:
    """An address for each key, in order; those that have one keep it unless a user's own address claims it.

    `reserved` holds addresses and CIDR blocks of users. InputError when the range is used up.
    """
    net = ipaddress.IPv4Network(cidr)
    taken = _Taken(reserved, net)
    known = {key: int(ipaddress.IPv4Address(before[key])) for key in wanted if key in before}
    kept = {key: address for key, address in known.items() if _usable(address, net, taken)}
    used = {*kept.values()}
    free = (at for at in range(int(net[0]), int(net[-1]) + 1) if _usable(at, net, taken) and at not in used)
    found: dict[str, str] = {}
    for key in dict.fromkeys(wanted):
        address = kept[key] if key in kept else next(free, 0)
        if not address:
            raise errors.InputError(f"no virtual IP is left in {cidr} for {key}: {len(found)} are given",
                                    step="remove entries, or give some their own addresses")  # fmt: skip
        found[key] = str(ipaddress.IPv4Address(address))
    return found


class _Taken:
    """Single addresses in a set, blocks in a list: the many are looked up at once."""

    def __init__(self, reserved: Iterable[str], net: ipaddress.IPv4Network) -> None:
        self.single: set[int] = set()
        self.blocks: list[tuple[int, int]] = []
        for one in map(ipaddress.ip_network, reserved):
            if isinstance(one, ipaddress.IPv4Network) and one.overlaps(net):
                low, high = int(one.network_address), int(one.broadcast_address)
                if low == high:
                    self.single.add(low)
                else:
                    self.blocks.append((low, high))

    def __contains__(self, address: int) -> bool:
        return address in self.single or any(low <= address <= high for low, high in self.blocks)


def _usable(address: int, net: ipaddress.IPv4Network, taken: _Taken) -> bool:
    """x.y.z.0 and x.y.z.255 are left out: some programs take them for a network and a broadcast address."""
    first = int(net.network_address)
    return first <= address < first + net.num_addresses and address % 256 not in (0, 255) and address not in taken


def wanted(given: Resources) -> list[str]:
    """The keys that get a virtual IP, oldest entry first."""
    return [
        registry.key(entry, host)
        for entry in given.entries
        if entry.wants_virtual_ip
        for host in entry.hosts
        if not host.startswith("*")
    ]


def allocated(given: Resources) -> dict[str, str]:
    """By key, those that Istio has given already; it gives IPv6 addresses too, which are not served here."""
    every = ((registry.key(entry, host), address) for entry in given.entries for host, address in entry.allocated)
    return {key: address for key, address in every if _is_v4(address)}


def reserved(given: Resources) -> list[str]:
    """Addresses that are somebody's own."""
    return [
        *(address for service in given.services for address in service.cluster_ips),
        *(address for entry in given.entries for address in entry.addresses),
        *(one.address for entry in given.entries for one in entry.endpoints if _is_v4(one.address)),
    ]


def _is_v4(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text).version == 4
    return False
