"""A sidecar's bootstrap, after what Istio generates, with static resources.

Listeners: virtual outbound (15001) with one non-bound listener per service address, virtual inbound (15006), statistics
(15090), and where Envoy answers DNS itself the DNS listener (15053 UDP: `envoy.filters.udp.dns_filter`; TCP: passed to
the cluster DNS, as Envoy has no DNS filter for TCP). Reference: Envoy v3 API.
"""

from __future__ import annotations

from typing import Any

from meshdns.core.world import Nets, Pod, Service, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import names

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy."
DNS_ANSWER_TTL_S = 30  # Istio's agent answers with 30 s; it is also the least that dns_filter accepts
MAX_CONNECTIONS = 50_000  # far above any plan; without a limit Envoy warns
CONNECT_TIMEOUT = "10s"  # Istio's default


def _address(host: str, port: int, protocol: str = "TCP") -> Json:
    return {"socket_address": {"address": host, "port_value": port, "protocol": protocol}}


def _tcp_proxy(cluster: str) -> Json:
    config = {"@type": f"{_TYPE}extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": cluster}
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": {**config, "cluster": cluster}}


def _http(prefix: str, cluster: str, path: str = "/") -> Json:
    router = {"@type": f"{_TYPE}extensions.filters.http.router.v3.Router"}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": prefix,
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": prefix,
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": path}, "route": {"cluster": cluster, "timeout": "0s"}}],
                    }
                ]
            },
        },
    }


def _listener(name: str, host: str, port: int, chains: list[Json], **more: Any) -> Json:
    return {"name": name, "address": _address(host, port), "filter_chains": chains, **more}


def _chain(name: str, filters: Json, destination_port: int = 0) -> Json:
    """A filter chain; by its name traces tell which one took a connection."""
    match = {"filter_chain_match": {"destination_port": destination_port}} if destination_port else {}
    return {"name": name, **match, "filters": [filters]}


def _capturing(name: str, port: int, chains: list[Json], pod: Pod, **more: Any) -> Json:
    """A listener for captured connections; one that was not captured (it names the port itself) goes nowhere."""
    chains = [_chain("to-itself", _tcp_proxy("blackhole"), port), *chains] if pod.guarded else chains
    more |= (
        {"transparent": True} if mechanisms.ALL[pod.mechanism].transparent else {}
    )  # with their addresses as they were
    return _listener(name, "0.0.0.0", port, chains, **more)  # noqa: S104  REDIRECT may target any address


def _service_listeners(service: Service, addresses: list[str]) -> list[Json]:
    http, tls = f"{service.name}-http", f"{service.name}-tls"
    ports = ((80, _chain(http, _http(f"out_{service.name}", http))), (443, _chain(tls, _tcp_proxy(tls))))
    return [
        _listener(f"{address}_{port}", address, port, [chain], bind_to_port=False)
        for address in addresses
        for port, chain in ports
    ]


def _resolver(server: str) -> Json:
    """c-ares asking the cluster DNS, without search domains."""
    return {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": f"{_TYPE}extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [_address(server, 53, "UDP")],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }


def _endpoints(cluster: str, hosts: list[str], port: int) -> Json:
    members = [{"endpoint": {"address": _address(host, port)}} for host in hosts]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": members}]}


def _service_cluster(world: World, nets: Nets, service: Service, suffix: str, port: int, *, dns: str) -> Json:
    """STRICT_DNS on the headless twin (Istio's settings for DNS clusters), or endpoints given statically."""
    name = f"{service.name}-{suffix}"
    base = {"name": name, "connect_timeout": CONNECT_TIMEOUT, "lb_policy": "LEAST_REQUEST"}
    if not service.headless:
        hosts = [nets.pod(host) for host in service.hosts]
        return {**base, "type": "STATIC", "load_assignment": _endpoints(name, hosts, port)}
    strict_dns = {
        "@type": f"{_TYPE}extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_ONLY",
        "respect_dns_ttl": True,
        "dns_refresh_rate": "60s",
        "typed_dns_resolver_config": _resolver(dns),
    }
    return {
        **base,
        "cluster_type": {"name": "envoy.cluster.dns", "typed_config": strict_dns},
        "load_assignment": _endpoints(name, [f"{service.headless}.{world.search[0]}"], port),
    }


def _original_dst(name: str, source: str = "") -> Json:
    cluster: Json = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": CONNECT_TIMEOUT,
    }
    if source:
        cluster["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    return cluster


def _static(name: str, hosts: list[str], port: int) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": _endpoints(name, hosts, port),
    }


def _dns_table(world: World, nets: Nets) -> dict[str, list[str]]:
    """Names that Envoy answers itself."""
    services = {service.host: [service.virtual_ip] for service in world.static}
    return services | {host.name: list(host.ips) for host in names.conformance_world(world, nets).hosts()}


def _dns_listeners(world: World, nets: Nets, pod: Pod) -> list[Json]:
    domains = [
        {
            "name": name,
            "endpoint": {"address_list": {"address": addresses}},
            "answer_ttl": f"{DNS_ANSWER_TTL_S}s",
        }
        for name, addresses in _dns_table(world, nets).items()
    ]
    dns_filter = {
        "@type": f"{_TYPE}extensions.filters.udp.dns_filter.v3.DnsFilterConfig",
        "stat_prefix": "mesh",
        "server_config": {"inline_dns_table": {"external_retry_count": 3, "virtual_domains": domains}},
        "client_config": {
            "resolver_timeout": "5s",
            "max_pending_lookups": 256,
            "typed_dns_resolver_config": _resolver(world.dns_address(pod)),
        },
    }
    udp = {
        "name": "dns_udp",
        "address": _address("127.0.0.1", ISTIO.dns_port, "UDP"),
        "udp_listener_config": {"downstream_socket_config": {"max_rx_datagram_size": 9000}},
        "listener_filters": [{"name": "envoy.filters.udp.dns_filter", "typed_config": dns_filter}],
    }
    return [udp, _listener("dns_tcp", "127.0.0.1", ISTIO.dns_port, [_chain("dns", _tcp_proxy("cluster_dns"))])]


def _overload() -> Json:
    limit = {
        "@type": f"{_TYPE}extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": MAX_CONNECTIONS,
    }
    return {
        "resource_monitors": [
            {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": limit}
        ]
    }


def bootstrap(world: World, nets: Nets, pod: Pod) -> Json:
    """The whole bootstrap of a pod's sidecar; a client's knows the services."""
    original_dst_filter = {
        "name": "envoy.filters.listener.original_dst",
        "typed_config": {"@type": f"{_TYPE}extensions.filters.listener.original_dst.v3.OriginalDst"},
    }
    listeners = [
        _capturing(
            "virtual_outbound",
            ISTIO.outbound_port,
            [_chain("passthrough", _tcp_proxy("passthrough"))],
            pod,
            use_original_dst=True,
        ),
        _capturing(
            "virtual_inbound",
            ISTIO.inbound_port,
            [
                _chain("inbound-http", _http("inbound", "inbound"), 8080),
                _chain("inbound-passthrough", _tcp_proxy("inbound_passthrough")),
            ],
            pod,
            listener_filters=[original_dst_filter],
        ),
        _listener("stats", "0.0.0.0", ISTIO.stats_port, [_chain("stats", _http("stats", "admin", "/stats"))]),  # noqa: S104
    ]
    clusters = [
        _original_dst("passthrough"),
        _original_dst("inbound", ISTIO.passthrough_v4),
        _original_dst("inbound_passthrough", ISTIO.passthrough_v4),
        _static("admin", ["127.0.0.1"], ISTIO.admin_port),
        {"name": "blackhole", "type": "STATIC", "connect_timeout": CONNECT_TIMEOUT},
    ]
    for service in world.static if pod.arm else ():
        virtual = pod.virtual_ips or pod.dns_proxy
        addresses = [service.cluster_ip, *([service.virtual_ip] if virtual else [])]
        addresses += [world.entry_address] if pod.answers and not service.meshed else []
        listeners += _service_listeners(service, addresses)
        clusters += [
            _service_cluster(world, nets, service, suffix, port, dns=world.dns_address(pod))
            for suffix, port in zip(("http", "tls"), service.target_ports, strict=False)
        ]
    if pod.dns == "envoy":
        listeners += _dns_listeners(world, nets, pod)
        clusters.append(_static("cluster_dns", [world.dns_address(pod)], 53))
    return {
        "node": {"id": pod.pod, "cluster": "meshdns"},
        "admin": {"address": _address("127.0.0.1", ISTIO.admin_port)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "overload_manager": _overload(),
    }
