"""What a sidecar does with incoming connections: one entry per port that some service has at this workload.

Which connections a port accepts follows from its mutual-TLS mode: STRICT takes encrypted ones from other sidecars only,
DISABLE plain ones only, PERMISSIVE both and the application's own TLS as bytes. Ports of no service are passed through
under the workload's mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshdns.istio.registry import Endpoint, Registry, Service
from meshdns.istio.resources import MtlsMode, Pod, Protocol


@dataclass(frozen=True)
class InboundPort:
    """A port of the workload."""

    number: int
    protocol: Protocol
    mode: MtlsMode
    hosts: tuple[str, ...]  # services that lead here, the oldest first; its protocol is the port's


@dataclass(frozen=True)
class Inbound:
    """Everything for one workload."""

    workload: str  # namespace/name
    ports: tuple[InboundPort, ...]
    mode: MtlsMode  # for ports of no service


def build(registry: Registry, pod: Pod) -> Inbound:
    """The inbound configuration of a workload's sidecar."""
    namespace, labels = pod.meta.namespace, pod.meta.labels
    found: dict[int, tuple[Protocol, list[str]]] = {}
    for service in registry.services:
        for endpoint in service.endpoints:
            if _is(endpoint, service, pod):
                for port in service.ports:
                    number = endpoint.port(port.name)
                    if number and port.protocol.family != "udp":
                        hosts = found.setdefault(number, (port.protocol, []))[1]
                        hosts += [service.host] if service.host not in hosts else []
    ports = tuple(
        InboundPort(number, protocol, registry.mtls(namespace, labels, number), tuple(hosts))
        for number, (protocol, hosts) in sorted(found.items())
    )
    return Inbound(f"{namespace}/{pod.meta.name}", ports, registry.mtls(namespace, labels, 0))


def _is(endpoint: Endpoint, service: Service, pod: Pod) -> bool:
    if pod.address and endpoint.address == pod.address:
        return True
    return (service.namespace, endpoint.workload) == (pod.meta.namespace, pod.meta.name)
