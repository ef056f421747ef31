"""Incoming connections (LDS), after Istio's virtualInbound: per port, the chains of its mutual-TLS mode.

STRICT has chains for encrypted connections of sidecars only, so a plain one finds none and is closed. PERMISSIVE tells
them apart by the first bytes: a sidecar's TLS by its words in ALPN, any other TLS is the application's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshdns.interception.conventions import ISTIO
from meshdns.istio.inbound import Inbound
from meshdns.istio.resources import MtlsMode, Protocol
from meshdns.xds import api, filters, identity, listeners, routes
from meshdns.xds.api import Json
from meshdns.xds.node import Node

_TLS, _RAW = {"transport_protocol": "tls"}, {"transport_protocol": "raw_buffer"}


@dataclass(frozen=True)
class _Port:
    """How connections to a port are taken; number 0 stands for every port that is not known."""

    number: int
    family: str  # http, auto, or bytes
    mode: MtlsMode

    @property
    def encrypted(self) -> bool:
        """Whether TLS is looked for; not where a server speaks first and mutual TLS is off."""
        return self.mode is not MtlsMode.DISABLE

    @property
    def sniffed(self) -> bool:
        """Whether plain HTTP is looked for."""
        return self.family == "auto" and self.mode is not MtlsMode.STRICT


def virtual_inbound(node: Node, given: Inbound) -> Json:
    """Takes every captured incoming connection, passes it to the application, or finds no chain and closes it."""
    ports = _ports(node, given)
    chains = [chain for port in ports for chain in _chains(port)]
    inspectors = [filters.ORIGINAL_DST]
    inspectors += _inspector(filters.TLS_INSPECTOR, ports, [port for port in ports if port.encrypted])
    inspectors += _inspector(filters.HTTP_INSPECTOR, ports, [port for port in ports if port.sniffed])
    inspection = filters.INSPECTION if len(inspectors) > 1 else {}
    return listeners.capturing(
        api.VIRTUAL_INBOUND, ISTIO.inbound_port, chains, node, listener_filters=inspectors, **inspection
    )


def _ports(node: Node, given: Inbound) -> list[_Port]:
    """Ports of services, the node's own, and the rest; the guard has its own port."""
    found = {number: (protocol, given.mode) for number, protocol in node.ports}
    found |= {port.number: (port.protocol, port.mode) for port in given.ports}
    known = [
        _Port(number, _family(protocol), mode)
        for number, (protocol, mode) in sorted(found.items())
        if number != ISTIO.inbound_port or not node.guarded
    ]
    return [*known, _Port(0, "bytes", given.mode)]


def _family(protocol: Protocol) -> str:
    return protocol.family if protocol.family in ("http", "auto") else "bytes"


def _inspector(inspector: Json, ports: list[_Port], wanted: list[_Port]) -> list[Json]:
    """The inspector, for the ports that want it only: reading first bytes takes time, and for ever where none come."""
    numbers = {port.number for port in wanted}
    if not numbers:
        return []
    if 0 not in numbers:
        return [{**inspector, "filter_disabled": {"not_match": _any_of(sorted(numbers))}}]
    others = [port.number for port in ports if port.number not in numbers]
    return [{**inspector, "filter_disabled": _any_of(others)}] if others else [inspector]


def _any_of(ports: list[int]) -> Json:
    rules = [{"destination_port_range": {"start": port, "end": port + 1}} for port in ports]
    return {"or_match": {"rules": rules}} if len(rules) > 1 else rules[0]


# ---- chains


def _chains(port: _Port) -> Iterator[Json]:
    """Istio's matches for the port's protocol and mode (its `filterchain_options.go`)."""
    http, strict = port.family == "http", port.mode is MtlsMode.STRICT
    if port.encrypted:
        if port.family == "auto":
            yield _chain(port, {**_TLS, "application_protocols": identity.HTTP_INSIDE}, http=True, mutual=True)
        # STRICT takes any TLS and then wants a certificate of the mesh.
        words = {} if strict else {"application_protocols": identity.ANY_INSIDE if http else _inside(port)}
        yield _chain(port, {**_TLS, **words}, http=http, mutual=True)
    if strict:
        return
    # Where TLS is not looked for, no chain names a transport: Envoy would not go back from one that does.
    plain = _RAW if port.encrypted else {}
    if port.family == "auto":
        yield _chain(port, {**plain, "application_protocols": api.PLAIN_HTTP}, http=True)
    yield _chain(port, plain, http=http)
    if port.encrypted and not http:
        yield _chain(port, _TLS, http=False)  # the application's own TLS


def _inside(port: _Port) -> list[str]:
    return identity.BYTES if port.family == "auto" else identity.ANY_INSIDE


def _chain(port: _Port, match: Json, *, http: bool, mutual: bool = False) -> Json:
    match = ({"destination_port": port.number} if port.number else {}) | match
    found: Json = {"filters": [_application(port, http=http, mutual=mutual)]}
    if match:
        found["filter_chain_match"] = match
    if mutual:
        found["transport_socket"] = _MUTUAL[http]
    return found


_MUTUAL = {http: identity.server(http=http) for http in (True, False)}


def _application(port: _Port, *, http: bool, mutual: bool) -> Json:
    """To the application, at the address that the client called."""
    if not http:
        cluster = api.INBOUND if port.number else api.INBOUND_PASSTHROUGH
        return filters.tcp_proxy(cluster, ((cluster, 100),))
    caller = {
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
    }
    return filters.http(api.INBOUND, route_config=_TO_APPLICATION, **(caller if mutual else {}))


_TO_APPLICATION = {
    "name": api.INBOUND,
    "virtual_hosts": [
        {
            "name": api.INBOUND,
            "domains": ["*"],
            "routes": [
                {
                    "match": {"prefix": "/"},
                    "route": {"cluster": api.INBOUND, "timeout": "0s", "retry_policy": routes.RESET_ONLY},
                }
            ],
        }
    ],
    "validate_clusters": False,  # the cluster comes by another stream of the same answer
}
