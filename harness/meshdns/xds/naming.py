"""Envoy's own DNS listener: the name table inside `envoy.filters.udp.dns_filter`, all else asked of the cluster DNS.

Over UDP only, as the filter knows no other; TCP is passed to the cluster DNS as it is. The filter keeps its table in
the listener itself, so any change of a name sends the whole table again.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshdns.interception.conventions import ISTIO
from meshdns.istio.nametable import Name
from meshdns.xds import api, filters
from meshdns.xds.api import Json
from meshdns.xds.node import Choices

ANSWER_TTL_S = 30  # Istio's agent answers with 30 s; it is also the least that the filter accepts
TIMEOUT_MS = 5000  # of a forwarded query, as the agent's
MAX_PENDING = 256  # forwarded queries at a time, per worker
CLUSTER_DNS = "cluster_dns"


def listeners(table: Mapping[str, Name], choices: Choices) -> dict[str, Json]:
    """Both listeners."""
    dns_filter = api.extension(
        "envoy.filters.udp.dns_filter",
        "extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        stat_prefix="mesh",
        server_config={"inline_dns_table": {"external_retry_count": 3, "virtual_domains": _domains(table)}},
        client_config={
            "resolver_timeout": api.duration(TIMEOUT_MS),
            "max_pending_lookups": MAX_PENDING,
            "typed_dns_resolver_config": api.resolver(choices.resolver, choices.dns_server),
        },
    )
    udp = {
        "name": "dns_udp",
        "address": api.address("127.0.0.1", ISTIO.dns_port, "UDP"),
        "udp_listener_config": {"downstream_socket_config": {"max_rx_datagram_size": 9000}},
        "listener_filters": [dns_filter],
    }
    tcp = {
        "name": "dns_tcp",
        "address": api.address("127.0.0.1", ISTIO.dns_port),
        "filter_chains": [{"filters": [filters.tcp_proxy(CLUSTER_DNS, ((CLUSTER_DNS, 100),))]}],
    }
    return {"dns_tcp": tcp, "dns_udp": udp}


def cluster(choices: Choices) -> Json:
    """Where queries over TCP go."""
    return api.static(CLUSTER_DNS, choices.dns_server, 53)


def _domains(table: Mapping[str, Name]) -> list[Json]:
    return [
        {
            "name": host,
            "endpoint": {"address_list": {"address": list(name.ips)}},
            "answer_ttl": f"{ANSWER_TTL_S}s",
        }
        for host, name in table.items()
    ]
