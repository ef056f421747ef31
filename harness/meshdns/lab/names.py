"""The names of the world: as an application spells them, and as the conformance suite asks for them."""

from __future__ import annotations

from meshdns.core.world import Nets, Service, World
from meshdns.dnsproxy import conformance
from meshdns.lab import ports


def conformance_world(world: World, nets: Nets) -> conformance.World:
    """The names that the conformance suite asks for; mode 2's DNS proxies know them beside the services."""
    return conformance.World(
        namespace=world.namespace,
        domain=world.domain,
        search=world.search,
        external=conformance.Host("paid.example.com", ("240.240.0.200",)),
        upstream=f"{world.address(nets, world.dns_pod().pod)}:{ports.PORT_DNS_DIRECT}",
        upstream_name=world.external_name,
        absent_name="absent.example.com",
    )


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
