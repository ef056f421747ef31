"""Clusters and their endpoints (CDS, EDS), after Istio's outbound clusters.

Names and policies are the model's. Endpoints are the control plane's to tell, the sidecar's to resolve, or wherever the
client goes; a change of readiness changes an assignment and never a cluster, so that it drains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from meshdns.core.schema import Labels
from meshdns.interception.conventions import ISTIO
from meshdns.istio import outbound
from meshdns.istio.outbound import Cluster
from meshdns.istio.registry import Discovery, Endpoint, Registry
from meshdns.istio.resources import Balancer, ClientTls, Outlier, Pool, Protocol, TrafficPolicy, selects
from meshdns.xds import api, identity
from meshdns.xds.api import Json
from meshdns.xds.node import Choices

Member = tuple[Endpoint, int]  # with the port number there
_LEAST_RING = 1024  # Envoy's default, said because Istio says it
_DNS_REFRESH = "60s"  # Istio's: only after failures and for a TTL of 0
_HTTP2 = (Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB)


def build(
    model: Registry, found: Iterable[Cluster], namespace: str, choices: Choices
) -> tuple[dict[str, Json], dict[str, Json]]:
    """Clusters and assignments by name, for a client in a namespace."""
    clusters: dict[str, Json] = {}
    assignments: dict[str, Json] = {}
    hosts: dict[str, _Host] = {}
    for one in found:
        host = hosts.get(one.host) or hosts.setdefault(one.host, _Host(model, one.host))
        way = discovery(model, one, choices)
        clusters[one.name] = _cluster(model, one, host, way, choices)
        if way is Discovery.EDS:
            assignments[one.name] = _assignment(one, members(model, one, namespace), model)
    return clusters, assignments


def own() -> dict[str, Json]:
    """The clusters that every sidecar has: unknown destinations, nowhere, and its own application."""
    found = [
        _original(api.PASSTHROUGH),
        {"name": api.BLACKHOLE, "type": "STATIC", "connect_timeout": api.CONNECT_TIMEOUT},
        # Whatever HTTP version comes in is spoken to the application too.
        _original(
            api.INBOUND, ISTIO.passthrough_v4, typed_extension_protocol_options=_http_options(_DOWNSTREAM, {}, {})
        ),
        _original(api.INBOUND_PASSTHROUGH, ISTIO.passthrough_v4),
    ]
    return {one["name"]: one for one in found}


def _original(name: str, source: str = "", **more: Json) -> Json:
    """Goes where the client was going; its own application is called from a source that is not captured again."""
    bind = {"upstream_bind_config": {"source_address": {"address": source, "port_value": 0}}} if source else {}
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": api.CONNECT_TIMEOUT,
        "circuit_breakers": _breakers(Pool()),
        **bind,
        **more,
    }


# ---- how endpoints are found


def discovery(model: Registry, one: Cluster, choices: Choices) -> Discovery:
    """How this sidecar finds the endpoints of a cluster."""
    if one.policy.balancer and one.policy.balancer.simple == "PASSTHROUGH":
        return Discovery.ORIGINAL_DST
    if one.discovery is Discovery.ORIGINAL_DST and choices.headless == "eds":
        owner = next(service for service in model.of(one.host) if service.port(one.port))
        return Discovery.EDS if owner.headless else one.discovery
    return one.discovery


def members(model: Registry, one: Cluster, namespace: str) -> tuple[Member, ...]:
    """The endpoints of a cluster; those of a headless Service are looked up, as the model leaves them to the client."""
    if one.discovery is not Discovery.ORIGINAL_DST:
        return one.endpoints
    known = model.subsets(one.host, namespace) if one.subset else ()
    labels: Labels = next((subset.labels for subset in known if subset.name == one.subset), ())
    return tuple(_headless(model, one, labels))


def _headless(model: Registry, one: Cluster, labels: Labels) -> Iterator[Member]:
    for service in model.of(one.host):
        port = service.port(one.port) if service.headless else None
        for end in service.endpoints if port else ():
            at = end.port(port.name) if port else 0
            if at and (end.ready or service.publish_not_ready) and selects(labels, end.labels):
                yield end, at


def _assignment(one: Cluster, found: tuple[Member, ...], model: Registry) -> Json:
    zones: dict[str, dict[tuple[str, int], Json]] = defaultdict(dict)
    share = _share(found)
    for end, port in found:
        zones[end.zone].setdefault((end.address, port), _member(end, port, model, one, share))
    localities = [
        {**({"locality": {"zone": zone}} if zone else {}), "lb_endpoints": list(zones[zone].values())}
        for zone in sorted(zones)
    ]
    return {"cluster_name": one.name, "endpoints": localities}


def _share(found: tuple[Member, ...]) -> int:
    """By what weights are divided, so that their sum stays in 32 bits."""
    return -(-sum(end.weight for end, _ in found) // (api.UNLIMITED - len(found)))


def _member(end: Endpoint, port: int, model: Registry, cluster: Cluster, share: int) -> Json:
    found: Json = {"endpoint": {"address": api.address(end.address, port)}}
    if not cluster.policy.tls and _accepts(model, end, port, external=cluster.external):
        found["metadata"] = identity.MEMBER
    if end.weight:
        found["load_balancing_weight"] = max(1, end.weight // share)
    return found


def _accepts(model: Registry, end: Endpoint, port: int, *, external: bool) -> bool:
    accepted = model.mtls(end.namespace, end.labels, port)
    return outbound.encryption(TrafficPolicy(), end, accepted, external=external) == "mutual"


# ---- one cluster


class _Host:
    """What all clusters of a host have in common."""

    def __init__(self, model: Registry, host: str) -> None:
        self.services = model.of(host)
        ends = [end for service in self.services for end in service.endpoints if end.sidecar]
        self.meshed = bool(ends)
        self.accounts = sorted({end.identity for end in ends if end.identity})

    def all_meshed(self, model: Registry, port: int, *, external: bool) -> bool:
        """Whether every endpoint takes mutual TLS: where the client chooses the endpoint, it is all or none."""
        named = [(service, service.port(port)) for service in self.services]
        ends = [(end, end.port(one.name)) for service, one in named if one for end in service.endpoints]
        return bool(ends) and all(_accepts(model, end, at, external=external) for end, at in ends)


def _cluster(model: Registry, one: Cluster, host: _Host, way: Discovery, choices: Choices) -> Json:
    policy, pool = one.policy, one.policy.pool or Pool()
    found: Json = {
        "name": one.name,
        **_found_by(model, one, way, choices),
        "connect_timeout": api.duration(pool.connect_timeout_ms) if pool.connect_timeout_ms else api.CONNECT_TIMEOUT,
        "circuit_breakers": _breakers(pool),
    }
    if found.get("lb_policy") != "CLUSTER_PROVIDED":
        found |= _balancing(policy.balancer or Balancer())
    if policy.outlier:
        found["outlier_detection"] = _outlier(policy.outlier)
        # Istio's: with a few endpoints, Envoy's 50 % would send traffic to ejected ones.
        found["common_lb_config"] = {"healthy_panic_threshold": {"value": policy.outlier.min_health_percent or 0}}
    found |= _transport(model, one, host, way, choices)
    return found | _protocol(one, pool, choices)


def _found_by(model: Registry, one: Cluster, way: Discovery, choices: Choices) -> Json:
    if way is Discovery.EDS:
        return {"type": "EDS", "eds_cluster_config": {"eds_config": api.ADS}}
    if way is Discovery.ORIGINAL_DST:
        port = {"original_dst_lb_config": {"upstream_port_override": one.port_override}} if one.port_override else {}
        return {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", **port}
    if not one.endpoints:  # a subset that no endpoint has: Envoy takes no DNS cluster without a name
        return {"type": "STATIC"}
    logical = way is Discovery.LOGICAL_DNS
    assignment = _assignment(one, one.endpoints[:1] if logical else one.endpoints, model)
    return {"cluster_type": _dns(choices, logical=logical), "load_assignment": assignment}


def _dns(choices: Choices, *, logical: bool) -> Json:
    """Istio's settings for DNS clusters."""
    return api.extension(
        "envoy.cluster.dns",
        "extensions.clusters.dns.v3.DnsCluster",
        dns_lookup_family="V4_ONLY",
        respect_dns_ttl=True,
        dns_refresh_rate=_DNS_REFRESH,
        dns_jitter="0.100s",
        typed_dns_resolver_config=api.resolver(choices.resolver, choices.dns_server),
        **({"all_addresses_in_single_endpoint": True} if logical else {}),
    )


# ---- policies


def _balancing(balancer: Balancer) -> Json:
    hashed = balancer.hash
    if hashed is None:
        return {"lb_policy": balancer.simple or "LEAST_REQUEST"}
    if hashed.maglev_size:
        return {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": hashed.maglev_size}}
    return {
        "lb_policy": "RING_HASH",
        "ring_hash_lb_config": {"minimum_ring_size": hashed.ring_size or _LEAST_RING},
    }


def _breakers(pool: Pool) -> Json:
    """Istio's: no limit but those given, where 0 is none given; what is left of each is counted."""
    limits = {
        "max_connections": pool.max_connections,
        "max_pending_requests": pool.max_pending_requests,
        "max_requests": pool.max_requests,
        "max_retries": pool.max_retries,
    }
    if not any(limits.values()):
        return _NO_LIMITS
    return {"thresholds": [{key: limit or api.UNLIMITED for key, limit in limits.items()} | {"track_remaining": True}]}


_NO_LIMITS = {
    "thresholds": [
        dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), api.UNLIMITED)
        | {"track_remaining": True}
    ]
}


def _outlier(outlier: Outlier) -> Json:
    """Istio's: by consecutive failures only, each kind enforced if its count is above 0."""
    found: Json = {"enforcing_success_rate": 0}
    counts = {"consecutive_5xx": outlier.consecutive_5xx, "consecutive_gateway_failure": outlier.consecutive_gateway}
    if outlier.split_local:
        found |= {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        counts["consecutive_local_origin_failure"] = outlier.consecutive_local or None
    for key, count in counts.items():
        if count is not None:
            found |= {key: count, f"enforcing_{key}": 100 if count else 0}
    for key, ms in (("interval", outlier.interval_ms), ("base_ejection_time", outlier.base_ejection_ms)):
        found |= {key: api.duration(ms)} if ms else {}
    return found | ({"max_ejection_percent": outlier.max_ejection_percent} if outlier.max_ejection_percent else {})


# ---- encryption and protocol


def _transport(model: Registry, one: Cluster, host: _Host, way: Discovery, choices: Choices) -> Json:
    """What a DestinationRule says, else mutual TLS to endpoints that have a sidecar."""
    tls = one.policy.tls
    if tls and tls.mode == "SIMPLE":
        offered = ["h2"] if one.protocol in _HTTP2 else []
        return {"transport_socket": identity.simple(tls.sni, choices.trusted_ca, offered)}
    if tls and tls.mode == "DISABLE":
        return {}
    name = (tls.sni if tls else "") or f"outbound_.{one.port}_.{one.subset}_.{one.host}"  # Istio's
    if tls or (way is Discovery.ORIGINAL_DST and host.all_meshed(model, one.port, external=one.external)):
        return {"transport_socket": identity.client(name, host.accounts, offered_protocols(one.protocol))}
    if way is Discovery.ORIGINAL_DST or one.external or not host.meshed:
        return {}
    socket = identity.client(name, host.accounts, offered_protocols(one.protocol))
    return {"transport_socket_matches": identity.matches(socket)}


def offered_protocols(protocol: Protocol) -> list[str]:
    """What mutual TLS to a port offers."""
    if protocol in _HTTP2:
        return identity.HTTP2
    return {"http": identity.HTTP1, "auto": identity.HTTP_ANY}.get(protocol.family, identity.BYTES)


_EXPLICIT_1: Json = {"explicit_http_config": {"http_protocol_options": {}}}
_EXPLICIT_2: Json = {"explicit_http_config": {"http2_protocol_options": {}}}
_DOWNSTREAM: Json = {"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}


def _http_options(version: Json, common: Json, upstream: Json) -> Json:
    options = api.typed("extensions.upstreams.http.v3.HttpProtocolOptions", **version)
    options |= {"common_http_protocol_options": common} if common else {}
    options |= {"upstream_http_protocol_options": upstream} if upstream else {}
    return {api.HTTP_PORT_OPTIONS: options}


def _protocol(one: Cluster, pool: Pool, choices: Choices) -> Json:
    """Nothing said means HTTP/1.1 without limits."""
    common: Json = {}
    for key, ms in (
        ("idle_timeout", pool.http_idle_timeout_ms or pool.tcp_idle_timeout_ms),
        ("max_connection_duration", pool.max_connection_duration_ms),
    ):
        common |= {key: api.duration(ms)} if ms else {}
    if pool.max_requests_per_connection:
        common["max_requests_per_connection"] = pool.max_requests_per_connection
    upstream = _server_names(one.policy.tls, choices)
    version = _EXPLICIT_2 if one.protocol in _HTTP2 else _DOWNSTREAM if one.protocol is Protocol.AUTO else _EXPLICIT_1
    if version is _EXPLICIT_1 and not common and not upstream:
        return {}
    return {"typed_extension_protocol_options": _http_options(version, common, upstream)}


def _server_names(tls: ClientTls | None, choices: Choices) -> Json:
    """TLS mode SIMPLE without a name takes the request's Host as server name, and a verified certificate is for it."""
    if not tls or tls.mode != "SIMPLE" or tls.sni:
        return {}
    return {"auto_sni": True} | ({"auto_san_validation": True} if choices.trusted_ca else {})
