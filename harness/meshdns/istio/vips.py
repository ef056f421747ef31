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
    blocks = [one for one in map(ipaddress.ip_network, reserved) if one.version == 4 and one.overlaps(net)]

    def usable(address: ipaddress.IPv4Address) -> bool:
        """x.y.z.0 and x.y.z.255 are left out: some programs take them for a network and a broadcast address."""
        return address in net and address.packed[3] not in (0, 255) and not any(address in block for block in blocks)

    kept = {key: before[key] for key in wanted if key in before and usable(ipaddress.IPv4Address(before[key]))}
    used = {*kept.values()}
    free = (str(address) for address in net if usable(address) and str(address) not in used)
    found: dict[str, str] = {}
    for key in dict.fromkeys(wanted):
        found[key] = kept[key] if key in kept else next(free, "")
        if not found[key]:
            raise errors.InputError(f"no virtual IP is left in {cidr} for {key}: {len(found) - 1} are given",
                                    step="remove entries, or give some their own addresses")  # fmt: skip
    return found


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
