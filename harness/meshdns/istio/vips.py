"""Virtual IPs for ServiceEntries without an address: given once, kept as long as the entry is there.

The rules for who gets one are those of Istio's IP auto-allocation. Unlike an allocation by hash of all hosts, an entry
that comes or goes moves no other. A freed address is given out again last, when no client remembers it any more.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshdns.core import errors
from meshdns.istio import registry
from meshdns.istio.resources import Resources

RANGE = "240.240.0.0/16"  # class E, which no network routes; Istio's range
VERSION = 1


@dataclass(frozen=True)
class Allocation:
    """Virtual IPs by `registry.key`, and where the search goes on."""

    addresses: Mapping[str, str] = field(default_factory=dict)
    last: str = ""  # given out most recently


def assign(previous: Allocation, wanted: Sequence[str], reserved: Iterable[str] = (), cidr: str = RANGE) -> Allocation:
    """An address for each key, in order; those that had one keep it unless a user's own address now claims it.

    `reserved` holds addresses and CIDR blocks of users. InputError when the range is used up.
    """
    net = ipaddress.IPv4Network(cidr)
    taken = _Taken(reserved, net)
    kept = {key: previous.addresses[key] for key in wanted if key in previous.addresses}
    kept = {key: address for key, address in kept.items() if _usable(int(ipaddress.IPv4Address(address)), net, taken)}
    used = {int(ipaddress.IPv4Address(address)) for address in kept.values()}
    first = int(net.network_address)
    last = int(ipaddress.IPv4Address(previous.last)) if previous.last else first
    given = previous.last
    found: dict[str, str] = {}
    for key in dict.fromkeys(wanted):
        if key not in kept:
            last = _next(last, used, net, taken)
            if last < 0:
                raise errors.InputError(f"no virtual IP is left in {cidr} for {key}: {len(used)} are given",
                                        step="remove entries, or give some their own addresses")  # fmt: skip
            used.add(last)
            given = str(ipaddress.IPv4Address(last))
        found[key] = kept.get(key) or given
    return Allocation(found, given)


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


def _next(last: int, used: set[int], net: ipaddress.IPv4Network, taken: _Taken) -> int:
    """The next free address after `last`, around the range once; -1 if there is none."""
    first, size = int(net.network_address), net.num_addresses
    for step in range(1, size + 1):
        address = first + (last - first + step) % size
        if address not in used and _usable(address, net, taken):
            return address
    return -1


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


def load(path: Path) -> Allocation:
    """The stored allocation, or the one that a control plane's status page shows; none where there is no file.

    DataError if the file is neither.
    """
    try:
        return _decoded(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Allocation()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        fact = f"not a table of virtual IPs ({reason})"
        step = "restore it, or remove it: every entry then gets a new address"
        raise errors.DataError(fact, place=str(path), step=step) from error
    except OSError as error:
        raise errors.StorageError(f"cannot be read: {error.strerror}", place=str(path)) from error


def _decoded(data: dict[str, object]) -> Allocation:
    if "virtual_ips" in data:  # the page says what is given, not where the search goes on
        data = {"version": VERSION, "addresses": data["virtual_ips"], "last": ""}
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}, not {VERSION}")
    table, last = data["addresses"], data["last"]
    if not isinstance(table, dict) or not isinstance(last, str):
        raise TypeError("a field has another type")
    addresses = {str(key): str(ipaddress.IPv4Address(value)) for key, value in table.items()}
    if len(set(addresses.values())) != len(addresses):
        raise ValueError("an address is given twice")
    return Allocation(addresses, str(ipaddress.IPv4Address(last)) if last else "")


def save(path: Path, allocation: Allocation) -> None:
    """Store the allocation whole or not at all; StorageError if the disk refuses."""
    document = {"version": VERSION, "last": allocation.last, "addresses": dict(sorted(allocation.addresses.items()))}
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            temporary = file.name
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise errors.StorageError(f"cannot be written: {error.strerror}", place=str(path),
                                  step="the virtual IPs stay as they were") from error  # fmt: skip
