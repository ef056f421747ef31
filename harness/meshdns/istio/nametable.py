"""What the mode-2 DNS proxy answers itself, after Istio's name table (BuildNameTable; the table's xDS type is NDS).

Kubernetes beats a ServiceEntry of the same host; ServiceEntries of one host share its name and all their addresses;
CIDR blocks are no addresses to answer; a headless Service is its ready pods, each also under a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshdns.istio.registry import Registry, Service
from meshdns.istio.resources import DOMAIN

KUBERNETES, EXTERNAL = "Kubernetes", "External"


@dataclass(frozen=True)
class Name:
    """The answer for one host; wildcard hosts stand in the table as `*.x`."""

    ips: tuple[str, ...]
    registry: str  # Kubernetes or External
    namespace: str = ""  # of a Kubernetes Service: from it and the short name the proxy derives shorter forms
    shortname: str = ""


def build(registry: Registry) -> dict[str, Name]:
    """The table by host, sorted."""
    found: dict[str, Name] = {}
    for service in registry.services:
        addresses = answer(service)
        if not addresses:
            continue
        found.update(_pods(service))
        old = found.get(service.host)
        if service.kubernetes and (old is None or old.registry == EXTERNAL):
            found[service.host] = Name(addresses, KUBERNETES, service.namespace, service.name)
        elif old is None:
            found[service.host] = Name(addresses, EXTERNAL)
        elif old.registry == EXTERNAL:
            found[service.host] = Name(tuple(dict.fromkeys((*old.ips, *addresses))), EXTERNAL)
    return dict(sorted(found.items()))


def answer(service: Service) -> tuple[str, ...]:
    """The addresses that a sidecar's DNS proxy gives for a service."""
    if service.headless:
        return tuple(one.address for one in service.endpoints if one.ready or service.publish_not_ready)
    own = tuple(address for address in service.addresses if "/" not in address)
    return own or ((service.virtual_ip,) if service.virtual_ip else ())


def _pods(service: Service) -> dict[str, Name]:
    """Per-pod names of a headless Service: `hostname.service.namespace.svc.domain`."""
    found: dict[str, list[str]] = {}
    for one in service.endpoints if service.headless else ():
        if one.hostname and (one.ready or service.publish_not_ready):
            found.setdefault(f"{one.hostname}.{service.name}", []).append(one.address)
    return {
        f"{short}.{service.namespace}.svc.{DOMAIN}": Name(tuple(ips), KUBERNETES, service.namespace, short)
        for short, ips in found.items()
    }
