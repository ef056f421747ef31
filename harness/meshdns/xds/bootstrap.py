"""What a sidecar starts with: who it is, where the control plane is, and its own statistics page."""

from __future__ import annotations

import ipaddress

from meshdns.core import errors
from meshdns.interception.conventions import ISTIO
from meshdns.xds import api, filters
from meshdns.xds.api import Json
from meshdns.xds.node import Node

CONTROL_PLANE = "control_plane"
ADMIN = "admin"
# A control plane that is gone without a word is noticed after this time without an answer.
_PING_S, _PONG_S = 10, 5
_MAX_CONNECTIONS = 50_000  # far above any plan; without a limit Envoy warns
_REGEX_SIZE = 32_768  # Istio's limit of a compiled expression; Envoy's own is 100, which real paths exceed


def bootstrap(node: Node, control_plane: str) -> Json:
    """The bootstrap of a sidecar; `control_plane` is `address:port`. Raises InputError."""
    ads = {
        "api_type": "DELTA_GRPC",  # a change sends what changed, not the set
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": CONTROL_PLANE}}],
    }
    return {
        "node": {"id": node.id, "cluster": "meshdns", "metadata": node.metadata()},
        "admin": {"address": api.address("127.0.0.1", ISTIO.admin_port)},
        "dynamic_resources": {"ads_config": ads, "lds_config": api.ADS, "cds_config": api.ADS},
        "static_resources": {
            "listeners": [_statistics()],
            "clusters": [api.static(ADMIN, "127.0.0.1", ISTIO.admin_port), _control_plane(control_plane)],
        },
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {"re2.max_program_size.error_level": _REGEX_SIZE}},
                {"name": "admin", "admin_layer": {}},
            ]
        },
        # Names of statistics are not taken apart into tags, which nobody here asks for: the default patterns would be
        # tried on each name of each cluster. Istio's bootstrap leaves them out too, and has fewer of its own.
        "stats_config": {"use_all_default_tags": False},
        # A cluster that nobody calls has no statistics of traffic.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        "overload_manager": _overload(),
    }


def _statistics() -> Json:
    """Envoy's statistics for the testbed, and nothing else of its administration."""
    route = {"match": {"prefix": "/stats"}, "route": {"cluster": ADMIN, "timeout": "0s"}}
    hosts = [{"name": "stats", "domains": ["*"], "routes": [route]}]
    return {
        "name": "stats",
        "address": api.address("0.0.0.0", ISTIO.stats_port),  # noqa: S104  read from outside the pod
        "filter_chains": [{"filters": [filters.http("stats", route_config={"virtual_hosts": hosts})]}],
    }


def _overload() -> Json:
    limit = api.typed(
        "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=_MAX_CONNECTIONS,
    )
    monitor = {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": limit}
    return {"resource_monitors": [monitor]}


def _control_plane(where: str) -> Json:
    host, _, port = where.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise errors.InputError(
            f"{where!r} is not an IP address and a port", place="control plane", step="write it as 198.18.0.5:15010"
        ) from None
    http2 = {"connection_keepalive": {"interval": f"{_PING_S}s", "timeout": f"{_PONG_S}s"}}
    version = {"explicit_http_config": {"http2_protocol_options": http2}}
    options = api.typed("extensions.upstreams.http.v3.HttpProtocolOptions", **version)
    return api.static(
        CONTROL_PLANE, host.strip("[]"), number, typed_extension_protocol_options={api.HTTP_PORT_OPTIONS: options}
    )
