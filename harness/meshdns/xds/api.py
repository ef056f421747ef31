"""Words of Envoy's v3 API that every resource is made of: type URLs, extensions, addresses, times, config sources.

A resource is protobuf JSON as a dict. Parts that many resources have in common are the same object in all of them, so
nobody may change one after it is made.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy."
LISTENER = f"{_TYPE}config.listener.v3.Listener"
ROUTE = f"{_TYPE}config.route.v3.RouteConfiguration"
CLUSTER = f"{_TYPE}config.cluster.v3.Cluster"
ENDPOINT = f"{_TYPE}config.endpoint.v3.ClusterLoadAssignment"
SECRET = f"{_TYPE}extensions.transport_sockets.tls.v3.Secret"

# Names that counters, traces and people know; a sidecar has each of them once.
PASSTHROUGH, BLACKHOLE = "passthrough", "blackhole"
INBOUND, INBOUND_PASSTHROUGH = "inbound", "inbound_passthrough"
VIRTUAL_OUTBOUND, VIRTUAL_INBOUND = "virtual_outbound", "virtual_inbound"

UNLIMITED = 2**32 - 1
CONNECT_TIMEOUT = "10s"  # Istio's default
HTTP_PORT_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
PLAIN_HTTP = ["http/1.0", "http/1.1", "h2c"]  # what the HTTP inspector calls what it finds
# Everything comes over the one stream to the control plane; 0 s: wait for it however long it takes, as Istio does.
ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}


def typed(kind: str, **fields: Any) -> Json:
    """An Any of a message under `envoy.`."""
    return {"@type": f"{_TYPE}{kind}", **fields}


def extension(name: str, kind: str, **fields: Any) -> Json:
    """A named extension with its configuration."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def address(host: str, port: int, protocol: str = "TCP") -> Json:
    """A socket address; TCP is the default and is not written."""
    found = {"address": host, "port_value": port} | ({"protocol": protocol} if protocol != "TCP" else {})
    return {"socket_address": found}


def duration(ms: int) -> str:
    """Milliseconds as a protobuf duration."""
    whole, part = divmod(ms, 1000)
    return f"{whole}.{part:03d}s" if part else f"{whole}s"


def percent(value: float) -> Json:
    """A share in per cent, exact to a ten-thousandth of a per cent, the finest that Envoy draws."""
    return {"numerator": round(value * 10_000), "denominator": "MILLION"}


def endpoints(cluster: str, hosts: list[tuple[str, int]]) -> Json:
    """Fixed members of a cluster."""
    members = [{"endpoint": {"address": address(*host)}} for host in hosts]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": members}]}


def static(name: str, host: str, port: int, **more: Any) -> Json:
    """A cluster of one fixed address."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": endpoints(name, [(host, port)]),
        **more,
    }


def resolver(kind: str, server: str) -> Json:
    """How Envoy asks for names: `c-ares` and `hickory` ask `server`, `getaddrinfo` what resolv.conf names.

    No search domains: the names in a mesh's configuration are whole. Reference: Envoy's `network.dns_resolver`.
    """
    if kind == "getaddrinfo":
        return extension(
            "envoy.network.dns_resolver.getaddrinfo",
            "extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig",
        )
    servers = [address(server, 53, "UDP")]
    if kind == "hickory":
        return extension(
            "envoy.network.dns_resolver.hickory",
            "extensions.network.dns_resolver.hickory.v3.HickoryDnsResolverConfig",
            resolvers=servers,
        )
    return extension(
        "envoy.network.dns_resolver.cares",
        "extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        resolvers=servers,
        dns_resolver_options={"no_default_search_domain": True},
        udp_max_queries=100,  # Istio's: then a new socket, so that one name server is not stuck to for ever
    )
