"""The names of the world: as an application spells them, and as the conformance suite asks for them."""

from __future__ import annotations

from meshdns.core.world import Nets, Service, World
from meshdns.dnsproxy import conformance
from meshdns.lab import ports


def conformance_world(world: World, nets: Nets) -> conformance.World:
    """What of this world the conformance suite can ask for."""
    headless = (each for each in world.told if not (each.external or each.cluster_ip))
    return conformance.World(
        namespace=world.namespace,
        domain=world.domain,
        search=world.search,
        service=_host(nets, world.looked_up, "Kubernetes", world),
        headless=next((_host(nets, each, "Kubernetes", world) for each in headless), None),
        external=next((_host(nets, each, "External", world) for each in world.told if each.virtual_ip), None),
        other_service=None,
        foreign_service=None,
        pod=None,
        dual=None,
        six=None,
        wildcard=None,
        deep_wildcard=None,
        large=None,
        upstream=f"{world.address(nets, world.dns_pod().pod)}:{ports.PORT_DNS_DIRECT}",
        upstream_name=world.external_name,
        absent_name="absent.example.com",
    )


def _host(nets: Nets, service: Service, registry: str, world: World) -> conformance.Host:
    addresses = (service.cluster_ip or service.virtual_ip,) if service.watched else map(nets.pod, service.hosts)
    if service.external:
        return conformance.Host(service.host, (service.virtual_ip,), registry)
    return conformance.Host(service.host, tuple(addresses), registry, world.namespace, service.name)


def application_name(world: World, name_kind: str, service: Service) -> str:
    """The name as an application would spell it.

    `fqdn` carries the final dot, so that no search list applies; `external` and `absent` do not, as nobody writes one.
    """
    return {
        "fqdn": f"{service.host}.",
        "short": service.name,
        "external": world.external_name,
        "absent": world.absent_name,
    }[name_kind]
