"""Outgoing connections (LDS), after Istio: virtualOutbound, and behind it a listener per address and port of a service.

Only virtualOutbound is bound; it hands a connection on by its original destination. A listener whose chains do not fit
what comes, or that has none for it, passes it on like an unknown destination.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from meshdns.interception.conventions import ISTIO
from meshdns.istio import outbound
from meshdns.istio.outbound import Chain, Cluster, Listener
from meshdns.istio.resources import Pool, Protocol
from meshdns.xds import api, filters, identity
from meshdns.xds.api import Json
from meshdns.xds.node import Node

Clusters = Mapping[str, Cluster]
_ANY = outbound.WILDCARD


def occupied(node: Node) -> set[tuple[str, int]]:
    """Addresses of its own listeners that the model does not know of: what the sidecar has for DNS."""
    return {("127.0.0.1", ISTIO.dns_port)} if node.dns == "envoy" else set()


def virtual_outbound(node: Node, fallback: str) -> Json:
    """Takes every captured connection; what no other listener takes goes to `fallback`."""
    return capturing(
        api.VIRTUAL_OUTBOUND,
        ISTIO.outbound_port,
        [{"filters": [_bytes_to(fallback)]}],
        node,
        use_original_dst=True,
    )


def capturing(name: str, port: int, chains: list[Json], node: Node, **more: Any) -> Json:
    """A listener for captured connections; one that was not captured (it names the port itself) goes nowhere."""
    guard = {"filter_chain_match": {"destination_port": port}, "filters": [_bytes_to(api.BLACKHOLE)]}
    return {
        "name": name,
        "address": api.address(_ANY, port),  # REDIRECT may target any address
        "filter_chains": [guard, *chains] if node.guarded else chains,
        **({"transparent": True} if node.transparent else {}),
        **more,
    }


def _bytes_to(cluster: str) -> Json:
    return filters.tcp_proxy(cluster, ((cluster, 100),))


def service(listener: Listener, fallback: str, clusters: Clusters) -> Json:
    """The listener of one address and port of services."""
    default = listener.default
    conditional = [chain for chain in listener.chains if chain is not default]
    found: Json = {
        "name": listener.name,
        "address": api.address(listener.address, listener.port),
        "bind_to_port": False,
        "filter_chains": [_chain(chain, listener.port, clusters) for chain in conditional or listener.chains],
    }
    if not conditional:
        return found
    # The default chain takes what fits nowhere, also where a more specific destination has chains that do not fit.
    last = _chain(default, listener.port, clusters) if default else {"filters": [_bytes_to(fallback)]}
    found["default_filter_chain"] = last
    sniffed = any(chain.http for chain in conditional)
    if sniffed or any(chain.server_names for chain in conditional):
        inspectors = [filters.TLS_INSPECTOR, *([filters.HTTP_INSPECTOR] if sniffed else [])]
        found |= {"listener_filters": inspectors, **filters.INSPECTION}
    return found


def _chain(chain: Chain, port: int, clusters: Clusters) -> Json:
    found: Json = {"filters": _filters(chain, port, clusters)}
    if match := _match(chain):
        found["filter_chain_match"] = match
    return found


def _match(chain: Chain) -> Json:
    found: Json = {}
    if chain.prefixes:
        nets = [ipaddress.ip_network(one) for one in chain.prefixes]
        found["prefix_ranges"] = [
            {"address_prefix": str(net.network_address), "prefix_len": net.prefixlen} for net in nets
        ]
    if chain.server_names:
        found["server_names"] = list(chain.server_names)
    if chain.http:
        found |= {"transport_protocol": "raw_buffer", "application_protocols": api.PLAIN_HTTP}
    return found


def _filters(chain: Chain, port: int, clusters: Clusters) -> list[Json]:
    if chain.route:
        return [filters.routed(stat_prefix(chain.route), chain.route)]
    known = [one for name, share in chain.clusters if share and (one := clusters.get(name))]
    proxy = filters.tcp_proxy(outbound.name(chain.host, port), chain.clusters, **_limits(known))
    # A port that says nothing offers HTTP inside mutual TLS; here it was found to be something else.
    return [filters.protocols(identity.BYTES), proxy] if any(map(_offers_http, known)) else [proxy]


def _offers_http(one: Cluster) -> bool:
    return one.protocol is Protocol.AUTO and (one.policy.tls is None or one.policy.tls.mode == "ISTIO_MUTUAL")


def _limits(known: list[Cluster]) -> Json:
    """What the first cluster's DestinationRule says of connections as a whole, as in Istio."""
    policy = known[0].policy if known else None
    pool = policy.pool if policy and policy.pool else Pool()
    found: Json = {}
    for key, ms in (
        ("idle_timeout", pool.tcp_idle_timeout_ms),
        ("max_downstream_connection_duration", pool.max_connection_duration_ms),
    ):
        found |= {key: api.duration(ms)} if ms else {}
    hashed = policy.balancer.hash if policy and policy.balancer else None
    return found | ({"hash_policy": [{"source_ip": {}}]} if hashed and hashed.key == "source-ip" else {})


def stat_prefix(table: str) -> str:
    """`out_` and the table's name, without what statistics would take for separators."""
    return "out_" + re.sub(r"[^0-9A-Za-z-]", "_", table)
