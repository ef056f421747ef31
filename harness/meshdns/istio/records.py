"""The records that the cluster DNS holds (Kubernetes DNS-Based Service Discovery, schema 1.1.0).

Services only: a ServiceEntry's host is the world's. Reverse records are left out, as the testbed has no reverse zone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from meshdns.istio.registry import Endpoint, Registry, Service


@dataclass(frozen=True, order=True)
class Record:
    """One resource record; names end in a dot."""

    name: str
    rtype: str  # A, AAAA or SRV
    data: str


def build(registry: Registry) -> tuple[Record, ...]:
    """All records, sorted, each once."""
    return tuple(sorted({one for each in registry.services if each.kubernetes for one in _records(each)}))


def _records(service: Service) -> Iterator[Record]:
    name = f"{service.host}."
    if not service.headless:
        for address in service.addresses:
            yield _address(name, address)
        for port in service.ports:
            if port.name:
                yield _srv(f"_{port.name}._{port.transport.lower()}.{name}", port.number, name)
        return
    for one in service.endpoints:
        if not (one.ready or service.publish_not_ready):
            continue
        own = f"{hostname(one)}.{name}"
        yield _address(name, one.address)
        yield _address(own, one.address)
        for port in service.ports:
            if port.name and (number := one.port(port.name)):
                yield _srv(f"_{port.name}._{port.transport.lower()}.{name}", number, own)


def hostname(one: Endpoint) -> str:
    """The endpoint's own label: its hostname, else its address with dashes, as CoreDNS does it."""
    return one.hostname or one.address.replace(".", "-").replace(":", "-")


def _address(name: str, address: str) -> Record:
    return Record(name, "A" if ipaddress.ip_address(address).version == 4 else "AAAA", address)


def _srv(name: str, port: int, target: str) -> Record:
    return Record(name, "SRV", f"0 100 {port} {target}")  # priority 0, all weights alike
