"""What a cluster's name server answers of its Services, as Kubernetes' DNS specification has it (1.1.0), in zone files.

They are read from the manifests, as the API server would tell them: CoreDNS' plugin `file` takes them in the place of
its plugin `kubernetes`. Neither has a record NS, which that plugin would add to each answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshdns.core.world import Manifest, Nets, World

REVERSE = "in-addr.arpa"
Document = Mapping[str, Any]


def cluster(world: World, nets: Nets, ttl_s: int) -> str:
    """The zone of the cluster's domain, with the names that are answered in unusual ways."""
    records = ['dns-version IN TXT "1.1.0"', f"ns.dns IN A {world.dns_cluster_ip}"]
    for service, slices in _services(world):
        records += _of_service(service, slices, nets)
    # Plugin `kubernetes` makes these of any address (`pods insecure`); here they are those that somebody has.
    records += [
        f"{nets.pod(pod.host).replace('.', '-')}.{world.namespace}.pod IN A {nets.pod(pod.host)}"
        for pod in world.pods
        if pod.network == "pods"
    ]
    records += [
        f"{world.answer_name(kind, client).removesuffix(f'.{world.domain}')} IN A {answer.of(nets, client)}"
        for client in map(world.arms.__getitem__, world.answering)
        for kind, answer in world.answers.items()
    ]
    return _zone(records, ttl_s, origin=f"{world.domain}.", server=f"ns.dns.{world.domain}.")


def reverse(world: World, nets: Nets, ttl_s: int) -> str:
    """Whose each address is: a Service's, or that of an endpoint, once for each Service that has it."""
    records = []
    for service, slices in _services(world):
        whole = f"{_name(service)}.{world.domain}."
        if address := _cluster_ip(service):
            records.append(f"{_backwards(address)} IN PTR {whole}")
        records += [f"{_backwards(at)} IN PTR {name}.{whole}" for name, at in _endpoints(slices, nets)]
    return _zone(records, ttl_s, origin=f"{REVERSE}.", server=f"ns.dns.{world.domain}.")


def _zone(records: list[str], ttl_s: int, *, origin: str, server: str) -> str:
    """Its SOA is that of plugin `kubernetes`, but for the serial, which is the time there."""
    soa = f"@ IN SOA {server} hostmaster.{origin} 1 7200 1800 86400 {ttl_s}"
    return "\n".join([f"$ORIGIN {origin}", f"$TTL {ttl_s}", soa, *dict.fromkeys(records)]) + "\n"


def _services(world: World) -> Iterator[tuple[Manifest, list[Document]]]:
    """Those of the world, each with its EndpointSlices."""
    slices = [each for each in world.manifests if each.kind == "EndpointSlice"]
    for one in (each for each in world.manifests if each.kind == "Service"):
        named = (one.namespace, one.name)
        yield one, [each.document for each in slices if (each.namespace, each.service) == named]


def _of_service(service: Manifest, slices: list[Document], nets: Nets) -> Iterator[str]:
    """Address records and SRV records; those of endpoints are there whether it has a ClusterIP or not."""
    name, address, endpoints = _name(service), _cluster_ip(service), _endpoints(slices, nets)
    yield from (f"{name} IN A {each}" for each in ([address] if address else [at for _, at in endpoints]))
    yield from (f"{own}.{name} IN A {at}" for own, at in endpoints)
    targets = [name] if address else [f"{own}.{name}" for own, _ in endpoints]
    ports = (
        service.document["spec"].get("ports", ()) if address else [port for each in slices for port in each["ports"]]
    )
    for port in (each for each in ports if each.get("name")):
        at = f"_{port['name']}._{port.get('protocol', 'TCP').lower()}.{name}"
        yield from (f"{at} IN SRV 0 {100 // len(targets)} {port['port']} {target}" for target in targets)


def _endpoints(slices: list[Document], nets: Nets) -> list[tuple[str, str]]:
    """Ready addresses, each after its name below the Service's: its hostname, or the address with dashes."""
    usual = f"{Nets().pods}."
    found = []
    for endpoint in (one for each in slices for one in each.get("endpoints") or ()):
        if (endpoint.get("conditions") or {}).get("ready", True):
            for address in endpoint["addresses"]:
                here = address.replace(usual, f"{nets.pods}.") if address.startswith(usual) else address
                found.append((endpoint.get("hostname") or here.replace(".", "-"), here))
    return found


def _name(service: Manifest) -> str:
    """Relative to the domain."""
    return f"{service.name}.{service.namespace}.svc"


def _cluster_ip(service: Manifest) -> str:
    address = service.document["spec"].get("clusterIP") or ""
    return "" if address == "None" else str(address)


def _backwards(address: str) -> str:
    return ".".join(reversed(address.split(".")))
