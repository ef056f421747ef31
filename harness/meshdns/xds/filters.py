"""What a listener's chains are made of: TCP proxy, HTTP connection manager, and the inspectors that see first bytes."""

from __future__ import annotations

from typing import Any

from meshdns.istio.outbound import Weighted
from meshdns.xds.api import ADS, Json, extension, typed

FAULT = "envoy.filters.http.fault"
_CHAINED = "extensions.filters.network"
ROUTER = extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
# Idle until a route says otherwise; always there, so that a fault changes routes only and drains no connection.
FAULTS = extension(FAULT, "extensions.filters.http.fault.v3.HTTPFault")
ORIGINAL_DST = extension(
    "envoy.filters.listener.original_dst", "extensions.filters.listener.original_dst.v3.OriginalDst"
)
TLS_INSPECTOR = extension(
    "envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector"
)
HTTP_INSPECTOR = extension(
    "envoy.filters.listener.http_inspector", "extensions.filters.listener.http_inspector.v3.HttpInspector"
)
# Istio's protocolDetectionTimeout is 0 s: wait for the first bytes for ever. A server that speaks first needs a port
# whose protocol says so.
INSPECTION = {"listener_filters_timeout": "0s", "continue_on_listener_filters_timeout": True}


def tcp_proxy(prefix: str, clusters: Weighted, **more: Any) -> Json:
    """Passes bytes to clusters by their shares."""
    return extension(
        "envoy.filters.network.tcp_proxy",
        f"{_CHAINED}.tcp_proxy.v3.TcpProxy",
        stat_prefix=prefix,
        **destination(clusters),
        **more,
    )


def destination(clusters: Weighted) -> Json:
    """One cluster, or several with weights; those without a share are left out, as Envoy takes no weight of 0."""
    shares = [{"name": name, "weight": weight} for name, weight in clusters if weight]
    return {"weighted_clusters": {"clusters": shares}} if len(shares) > 1 else {"cluster": shares[0]["name"]}


def http(prefix: str, **more: Any) -> Json:
    """An HTTP connection manager with Istio's settings: no idle limit of a stream, normalised paths, WebSocket."""
    return extension(
        "envoy.filters.network.http_connection_manager",
        f"{_CHAINED}.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=prefix,
        stream_idle_timeout="0s",
        normalize_path=True,
        upgrade_configs=[{"upgrade_type": "websocket"}],
        **{"http_filters": [ROUTER], **more},
    )


def routed(prefix: str, table: str) -> Json:
    """A connection manager that asks the control plane for its routes."""
    return http(prefix, http_filters=[FAULTS, ROUTER], rds={"config_source": ADS, "route_config_name": table})


def protocols(words: list[str]) -> Json:
    """Makes TLS to the cluster offer these protocols instead of the cluster's own (ALPN)."""
    return {
        "name": "envoy.filters.network.set_filter_state",
        "typed_config": typed(
            f"{_CHAINED}.set_filter_state.v3.Config",
            on_new_connection=[
                {
                    "object_key": "envoy.network.application_protocols",
                    "format_string": {"text_format_source": {"inline_string": ",".join(words)}},
                    "shared_with_upstream": "ONCE",
                }
            ],
        ),
    }
