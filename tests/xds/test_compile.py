"""From the mesh's YAML to Envoy's words: what each resource of a mesh becomes."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import generators
from generators import Document, document
from meshdns.core import errors
from meshdns.istio import outbound, reader, registry, vips
from meshdns.istio.outbound import Client
from meshdns.istio.registry import Registry
from meshdns.istio.resources import Protocol
from meshdns.xds import api, listeners
from meshdns.xds.api import Json
from meshdns.xds.bootstrap import bootstrap
from meshdns.xds.compile import Compiler, Snapshot, snapshot
from meshdns.xds.node import Choices, Node, Resolver, parse


def build(*documents: Document) -> Registry:
    given_ = reader.parse({"mesh.yaml": generators.text(documents)})
    addresses = vips.assign(vips.Allocation(), vips.wanted(given_), vips.reserved(given_)).addresses
    return registry.build(given_, addresses)


def nodes() -> st.SearchStrategy[Node]:
    """Sidecars of every kind; some are pods that the generated meshes may hold."""
    choices = st.builds(
        Choices,
        resolver=st.sampled_from(("c-ares", "getaddrinfo", "hickory")),
        headless=st.sampled_from(("original-dst", "eds")),
    )
    return st.builds(
        Node,
        pod=st.sampled_from(("web-0", "api-1", "client")),
        namespace=st.sampled_from(generators.NAMESPACES),
        address=st.sampled_from(("198.18.0.1", "198.18.1.2", "198.18.9.9")),
        labels=st.sampled_from(((), (("version", "v1"),))),
        dns=st.sampled_from(("cluster", "envoy", "agent")),
        guarded=st.booleans(),
        transparent=st.booleans(),
        ports=st.sampled_from(((), ((8080, Protocol.HTTP), (9000, Protocol.AUTO)))),
        choices=choices,
    )


def standing(node: Node, snapshot: Snapshot, secrets: list[Json]) -> Json:
    """The snapshot as a bootstrap without a control plane: tables inside listeners, endpoints inside clusters.

    Secrets too: Envoy 1.40 crashes in validation when a cluster's secret comes by ADS.
    """
    found = copy.deepcopy({"bootstrap": bootstrap(node, "198.18.0.5:15010"), "snapshot": snapshot})
    config, parts = found["bootstrap"], found["snapshot"]
    for cluster in parts[api.CLUSTER].values():
        if cluster.pop("eds_cluster_config", None):
            cluster |= {"type": "STATIC", "load_assignment": parts[api.ENDPOINT].pop(cluster["name"])}
    assert not parts[api.ENDPOINT]
    for listener in parts[api.LISTENER].values():
        for chain in (*listener.get("filter_chains", ()), listener.get("default_filter_chain", {"filters": ()})):
            for one in chain["filters"]:
                if rds := one["typed_config"].pop("rds", None):
                    one["typed_config"]["route_config"] = parts[api.ROUTE][rds["route_config_name"]]
    config["static_resources"]["listeners"] += parts[api.LISTENER].values()
    config["static_resources"]["clusters"] += parts[api.CLUSTER].values()
    config["static_resources"]["secrets"] = secrets
    del config["dynamic_resources"]
    _without_sds(config)
    return config


def _without_sds(part: object) -> None:
    for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if isinstance(child, dict):
            child.pop("sds_config", None)
        _without_sds(child)


# ---- a small mesh


NETWORKING = "networking.istio.io/v1"
WEB, WEB_80 = "web.shop.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local"
PORTS = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 5432}, {"name": "odd", "port": 5000}]
CLIENT = Node("client", "shop", "198.18.0.41")
MESHED = {"version": "v1", "security.istio.io/tlsMode": "istio"}


def service(name: str = "web", ip: str = "10.96.1.10") -> Document:
    return document("Service", "v1", "shop", name, spec={"clusterIP": ip, "ports": PORTS})


def piece(*addresses: str, name: str = "web", ready: bool = True) -> Document:
    ports = [{"name": port["name"], "port": port.get("targetPort", port["port"])} for port in PORTS]
    ends = [
        {"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": f"p{n}"}}
        for n, address in enumerate(addresses)
    ]
    labels = {"kubernetes.io/service-name": name}
    return document("EndpointSlice", "discovery.k8s.io/v1", "shop", name, labels=labels, addressType="IPv4",
                    endpoints=ends, ports=ports)  # fmt: skip


def pods(**labels: Document) -> list[Document]:
    return [
        document("Pod", "v1", "shop", name, labels=own, spec={"serviceAccountName": f"sa-{name}"})
        for name, own in labels.items()
    ]


def rule(**spec: object) -> Document:
    return document("DestinationRule", NETWORKING, "shop", "web", spec={"host": "web", **spec})


def policy(**sections: object) -> Document:
    return rule(trafficPolicy=sections)


def virtual(**spec: object) -> Document:
    return document("VirtualService", NETWORKING, "shop", "web", spec={"hosts": ["web"], **spec})


def entry(name: str, host: str, protocol: str = "TCP", port: int = 5432, **spec: object) -> Document:
    spec = {
        "hosts": [host],
        "resolution": "DNS",
        "ports": [{"number": port, "name": "p", "protocol": protocol}],
        **spec,
    }
    return document("ServiceEntry", NETWORKING, "shop", name, spec=spec)


def made(kind: str, name: str, *documents: Document, node: Node = CLIENT) -> Json:
    return snapshot(build(*documents), node)[kind][name]


def chains(*documents: Document, mode: str, port: int, node: Node) -> list[tuple[Json, bool, str]]:
    """What of the inbound chains is for a port: match, whether it ends mutual TLS, its filter."""
    peer = document("PeerAuthentication", "security.istio.io/v1", "shop", "all", spec={"mtls": {"mode": mode}})
    listener = made(api.LISTENER, "virtual_inbound", peer, *documents, node=node)
    found = []
    for chain in listener["filter_chains"]:
        match = chain.get("filter_chain_match", {})
        if match.get("destination_port", 0) == port:
            rest = {key: value for key, value in match.items() if key != "destination_port"}
            found.append((rest, "transport_socket" in chain, chain["filters"][-1]["name"].rpartition(".")[2]))
    return found


# ---- clusters


def test_a_service_is_an_eds_cluster_with_istios_defaults() -> None:
    assert made(api.CLUSTER, WEB_80, service(), piece("198.18.0.21")) == {
        "name": WEB_80,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": api.ADS},
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "10s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 4294967295,
                    "max_pending_requests": 4294967295,
                    "max_requests": 4294967295,
                    "max_retries": 4294967295,
                    "track_remaining": True,
                }
            ]
        },
    }
    assert made(api.ENDPOINT, WEB_80, service(), piece("198.18.0.21")) == {
        "cluster_name": WEB_80,
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "198.18.0.21", "port_value": 8080}}}}
                ]
            }
        ],
    }


def test_readiness_changes_one_assignment_and_nothing_else() -> None:
    before, after = (
        snapshot(build(service(), service("api", "10.96.1.11"), piece("198.18.0.21", ready=ready), *pods(p0=MESHED)),
                 CLIENT) for ready in (True, False)
    )  # fmt: skip
    assert before[api.ENDPOINT].pop(WEB_80) != after[api.ENDPOINT].pop(WEB_80) == {
        "cluster_name": WEB_80, "endpoints": [],
    }  # fmt: skip
    for name in [name for name in before[api.ENDPOINT] if WEB in name]:
        del before[api.ENDPOINT][name], after[api.ENDPOINT][name]
    assert before == after


def test_connection_pools_are_circuit_breakers_timeouts_and_protocol_options() -> None:
    tcp = {"maxConnections": 7, "connectTimeout": "250ms", "idleTimeout": "1m", "maxConnectionDuration": "2h"}
    http = {"http1MaxPendingRequests": 3, "http2MaxRequests": 4, "maxRequestsPerConnection": 1, "maxRetries": 0}
    documents = service(), policy(connectionPool={"tcp": tcp, "http": http})
    cluster = made(api.CLUSTER, WEB_80, *documents)
    assert cluster["connect_timeout"] == "0.250s"
    [limits] = cluster["circuit_breakers"]["thresholds"]
    assert (limits["max_connections"], limits["max_pending_requests"], limits["max_requests"]) == (7, 3, 4)
    assert limits["max_retries"] == 4294967295  # Istio takes 0 as not given
    [options] = cluster["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"] == {
        "idle_timeout": "60s", "max_connection_duration": "7200s", "max_requests_per_connection": 1,
    }  # fmt: skip
    assert options["explicit_http_config"] == {"http_protocol_options": {}}
    [chain] = made(api.LISTENER, "10.96.1.10_5432", *documents)["filter_chains"]
    proxy = chain["filters"][0]["typed_config"]
    assert (proxy["idle_timeout"], proxy["max_downstream_connection_duration"]) == ("60s", "7200s")


def test_outlier_detection_enforces_what_is_counted_and_never_panics() -> None:
    outlier = {"consecutive5xxErrors": 3, "consecutiveGatewayErrors": 0, "interval": "1s", "baseEjectionTime": "30s",
               "maxEjectionPercent": 50, "splitExternalLocalOriginErrors": True}  # fmt: skip
    cluster = made(api.CLUSTER, WEB_80, service(), policy(outlierDetection=outlier))
    assert cluster["outlier_detection"] == {
        "enforcing_success_rate": 0, "split_external_local_origin_errors": True,
        "enforcing_local_origin_success_rate": 0, "consecutive_5xx": 3, "enforcing_consecutive_5xx": 100,
        "consecutive_gateway_failure": 0, "enforcing_consecutive_gateway_failure": 0,
        "interval": "1s", "base_ejection_time": "30s", "max_ejection_percent": 50,
    }  # fmt: skip
    assert cluster["common_lb_config"] == {"healthy_panic_threshold": {"value": 0}}


@pytest.mark.parametrize(
    ("balancer", "cluster", "hashed"),
    [
        ({"simple": "ROUND_ROBIN"}, {"lb_policy": "ROUND_ROBIN"}, None),
        ({"simple": "RANDOM"}, {"lb_policy": "RANDOM"}, None),
        ({"simple": "PASSTHROUGH"}, {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}, None),
        (
            {"consistentHash": {"httpHeaderName": "x-user", "minimumRingSize": 64}},
            {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 64}},
            {"header": {"header_name": "x-user"}},
        ),
        (
            {"consistentHash": {"httpCookie": {"name": "c", "ttl": "10s", "path": "/a"}, "maglev": {"tableSize": 7}}},
            {"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 7}},
            {"cookie": {"name": "c", "ttl": "10s", "path": "/a"}},
        ),
        (
            {"consistentHash": {"useSourceIp": True}},
            {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 1024}},
            {"connection_properties": {"source_ip": True}},
        ),
    ],
)
def test_load_balancing(balancer: Document, cluster: Json, hashed: Json | None) -> None:
    documents = service(), piece("198.18.0.21"), policy(loadBalancer=balancer)
    found = made(api.CLUSTER, WEB_80, *documents)
    assert {key: found[key] for key in cluster} == cluster
    action = made(api.ROUTE, "80", *documents)["virtual_hosts"][0]["routes"][0]["route"]
    assert action.get("hash_policy") == ([hashed] if hashed else None)
    assert ("retry_host_predicate" in action["retry_policy"]) is (hashed is None)
    [chain] = made(api.LISTENER, "10.96.1.10_5432", *documents)["filter_chains"]
    by_source = chain["filters"][0]["typed_config"].get("hash_policy")
    assert by_source == ([{"source_ip": {}}] if "useSourceIp" in balancer.get("consistentHash", {}) else None)


def test_subsets_are_clusters_of_their_own_endpoints() -> None:
    documents = [service(), piece("198.18.0.21", "198.18.0.22"), *pods(p0={"version": "v1"}, p1={"version": "v2"}),
                 rule(subsets=[{"name": "v2", "labels": {"version": "v2"}}])]  # fmt: skip
    assignment = made(api.ENDPOINT, f"outbound|80|v2|{WEB}", *documents)
    assert [end["endpoint"]["address"]["socket_address"]["address"]
            for end in assignment["endpoints"][0]["lb_endpoints"]] == ["198.18.0.22"]  # fmt: skip
    assert made(api.CLUSTER, f"outbound|80|v2|{WEB}", *documents)["type"] == "EDS"


def test_weights_are_kept_and_their_sum_stays_in_32_bits() -> None:
    ends = [{"address": f"198.19.0.{n}", "weight": 2**32 - 1} for n in (1, 2)] + [{"address": "198.19.0.3"}]
    name = "outbound|5432||db.example.com"
    assignment = made(api.ENDPOINT, name, entry("db", "db.example.com", resolution="STATIC", endpoints=ends))
    weights = [end.get("load_balancing_weight", 1) for end in assignment["endpoints"][0]["lb_endpoints"]]
    assert weights[0] == weights[1] > 2**30
    assert sum(weights) < 2**32
    ends = [{"address": "198.19.0.1", "weight": 90}, {"address": "198.19.0.2", "weight": 10}]
    assignment = made(api.ENDPOINT, name, entry("db", "db.example.com", resolution="STATIC", endpoints=ends))
    assert [end["load_balancing_weight"] for end in assignment["endpoints"][0]["lb_endpoints"]] == [90, 10]


@pytest.mark.parametrize("resolver", ["c-ares", "getaddrinfo", "hickory"])
def test_names_are_resolved_by_the_sidecar_with_the_chosen_resolver(resolver: Resolver) -> None:
    node = dataclasses.replace(CLIENT, choices=Choices(resolver=resolver, dns_server="10.96.0.10"))
    for resolution, logical in (("DNS", None), ("DNS_ROUND_ROBIN", True)):
        cluster = made(api.CLUSTER, "outbound|5432||db.example.com",
                       entry("db", "db.example.com", resolution=resolution), node=node)  # fmt: skip
        dns = cluster["cluster_type"]["typed_config"]
        assert (dns["respect_dns_ttl"], dns["dns_refresh_rate"]) == (True, "60s")
        assert dns.get("all_addresses_in_single_endpoint") is logical
        assert resolver.replace("-", "") in dns["typed_dns_resolver_config"]["name"]
        [end] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        assert end["endpoint"]["address"]["socket_address"] == {"address": "db.example.com", "port_value": 5432}


def test_two_entries_of_one_host_are_one_logical_name() -> None:
    """Envoy refuses a logical DNS cluster of two names, and all other clusters of that answer with it."""
    both = [entry(name, "db.example.com", resolution="DNS_ROUND_ROBIN") for name in ("a", "b")]
    cluster = made(api.CLUSTER, "outbound|5432||db.example.com", *both)
    assert len(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 1


def test_a_headless_service_is_reached_where_the_client_goes_or_by_eds() -> None:
    web = service(ip="None"), piece("198.18.0.21")
    found = made(api.CLUSTER, WEB_80, *web)
    assert (found["type"], found["lb_policy"]) == ("ORIGINAL_DST", "CLUSTER_PROVIDED")
    assert found["original_dst_lb_config"] == {"upstream_port_override": 8080}
    told = dataclasses.replace(CLIENT, choices=Choices(headless="eds"))
    found = made(api.CLUSTER, WEB_80, *web, node=told)
    assert (found["type"], found["lb_policy"]) == ("EDS", "LEAST_REQUEST")
    [end] = made(api.ENDPOINT, WEB_80, *web, node=told)["endpoints"][0]["lb_endpoints"]
    assert end["endpoint"]["address"]["socket_address"] == {"address": "198.18.0.21", "port_value": 8080}


# ---- mutual TLS, the calling end


def test_endpoints_with_a_sidecar_are_called_by_mutual_tls_and_others_in_plain_text() -> None:
    documents = service(), piece("198.18.0.21", "198.18.0.22"), *pods(p0=MESHED, p1={"version": "v1"})
    cluster = made(api.CLUSTER, WEB_80, *documents)
    mutual, plain = cluster["transport_socket_matches"]
    assert (mutual["match"], plain["match"]) == ({"tlsMode": "istio"}, {})
    context = mutual["transport_socket"]["typed_config"]
    assert context["sni"] == f"outbound_.80_._.{WEB}"
    common = context["common_tls_context"]
    assert common["alpn_protocols"] == ["istio-http/1.1", "istio", "http/1.1"]
    assert common["tls_certificate_sds_secret_configs"] == [{"name": "default", "sds_config": api.ADS}]
    validation = common["combined_validation_context"]
    assert validation["validation_context_sds_secret_config"] == {"name": "ROOTCA", "sds_config": api.ADS}
    names = validation["default_validation_context"]["match_typed_subject_alt_names"]
    assert names == [{"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/shop/sa/sa-p0"}}]
    first, second = made(api.ENDPOINT, WEB_80, *documents)["endpoints"][0]["lb_endpoints"]
    assert first["metadata"] == {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}}
    assert "metadata" not in second


def test_endpoints_outside_the_mesh_are_called_in_plain_text_whatever_account_they_name() -> None:
    ends = [{"address": "198.18.0.31", "serviceAccount": "outside"}]

    def written(location: str, **policy: object) -> tuple[Json, Json]:
        spec = {"hosts": ["x.example.com"], "location": location, "resolution": "STATIC", "endpoints": ends,
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}  # fmt: skip
        found = [document("ServiceEntry", NETWORKING, "shop", "x", spec=spec)]
        rule = {"host": "x.example.com", "trafficPolicy": policy}
        found += [document("DestinationRule", NETWORKING, "shop", "x", spec=rule)] if policy else []
        all_ = snapshot(build(*found), CLIENT)
        name = "outbound|80||x.example.com"
        return all_[api.CLUSTER][name], all_[api.ENDPOINT].get(name, {})

    for location, mutual in (("MESH_INTERNAL", True), ("MESH_EXTERNAL", False)):
        cluster, assignment = written(location)
        [end] = assignment["endpoints"][0]["lb_endpoints"]
        assert ("transport_socket_matches" in cluster, "metadata" in end) == (mutual, mutual)
        cluster, _ = written(location, loadBalancer={"simple": "PASSTHROUGH"})
        assert ("transport_socket" in cluster) == mutual
        assert "transport_socket" in written(location, tls={"mode": "ISTIO_MUTUAL"})[0]  # asked for is done


def test_a_port_where_mutual_tls_is_off_is_called_in_plain_text() -> None:
    off = document("PeerAuthentication", "security.istio.io/v1", "shop", "off", spec={"mtls": {"mode": "DISABLE"}})
    [end] = made(api.ENDPOINT, WEB_80, service(), piece("198.18.0.21"), *pods(p0=MESHED), off)["endpoints"][0][
        "lb_endpoints"
    ]
    assert "metadata" not in end


def test_where_the_client_chooses_the_endpoint_mutual_tls_is_all_or_none() -> None:
    both = service(ip="None"), piece("198.18.0.21", "198.18.0.22")
    assert "transport_socket" in made(api.CLUSTER, WEB_80, *both, *pods(p0=MESHED, p1=MESHED))
    assert "transport_socket" not in made(api.CLUSTER, WEB_80, *both, *pods(p0=MESHED, p1={"version": "v1"}))


def test_a_destination_rule_decides_about_tls_where_it_says_anything() -> None:
    known = service(), piece("198.18.0.21"), *pods(p0=MESHED)

    def cluster(node: Node = CLIENT, **tls: str) -> Json:
        return made(api.CLUSTER, WEB_80, *known, policy(tls=tls), node=node)

    assert not {"transport_socket", "transport_socket_matches"} & set(cluster(mode="DISABLE"))
    mutual = cluster(mode="ISTIO_MUTUAL", sni="other")["transport_socket"]["typed_config"]
    assert (mutual["sni"], mutual["common_tls_context"]["alpn_protocols"][1]) == ("other", "istio")
    simple = cluster(mode="SIMPLE", sni="outside")["transport_socket"]["typed_config"]
    assert (simple["sni"], "validation_context" in simple["common_tls_context"]) == ("outside", False)
    verified = cluster(dataclasses.replace(CLIENT, choices=Choices(trusted_ca="/etc/ca.pem")), mode="SIMPLE")
    context = verified["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
    assert context == {"trusted_ca": {"filename": "/etc/ca.pem"}}
    [options] = verified["typed_extension_protocol_options"].values()
    assert options["upstream_http_protocol_options"] == {"auto_sni": True, "auto_san_validation": True}


def test_a_port_that_says_nothing_offers_by_what_the_sidecar_found() -> None:
    """HTTP by the cluster's own words, bytes by those of the chain: the receiving end chooses its chain by them."""
    known = service(), piece("198.18.0.21"), *pods(p0=MESHED)
    socket = made(api.CLUSTER, f"outbound|5000||{WEB}", *known)["transport_socket_matches"][0]["transport_socket"]
    assert socket["typed_config"]["common_tls_context"]["alpn_protocols"] == ["istio-http/1.1", "istio"]
    listener = made(api.LISTENER, "10.96.1.10_5000", *known)
    override = listener["default_filter_chain"]["filters"][0]["typed_config"]["on_new_connection"][0]
    assert override["format_string"]["text_format_source"]["inline_string"] == "istio-peer-exchange,istio"
    [bytes_] = made(api.LISTENER, "10.96.1.10_5432", *known)["filter_chains"]
    assert [one["name"] for one in bytes_["filters"]] == ["envoy.filters.network.tcp_proxy"]


# ---- routes


def routes(*http: Document) -> list[Json]:
    documents = service(), rule(subsets=[{"name": "v1", "labels": {"version": "v1"}}]), virtual(http=list(http))
    found: list[Json] = made(api.ROUTE, "80", *documents)["virtual_hosts"][0]["routes"]
    return found


TO_WEB: Document = {"route": [{"destination": {"host": "web", "port": {"number": 80}}}]}


def test_matches_by_path_and_header_in_the_order_given() -> None:
    match: list[Document] = [
        {"uri": {"exact": "/a"}}, {"uri": {"prefix": "/b"}}, {"uri": {"regex": "/c/.*"}},
        {"headers": {"X-User": {"exact": "me"}, "x-flag": {}, "x-any": {"prefix": ""}, "x-re": {"regex": "a+"}}},
    ]  # fmt: skip
    found = [one["match"] for one in routes({"match": match, **TO_WEB})]
    assert found == [
        {"path": "/a"},
        {"prefix": "/b"},
        {"safe_regex": {"regex": "/c/.*"}},
        {
            "prefix": "/",
            "headers": [
                {"name": "x-any", "present_match": True},
                {"name": "x-flag", "present_match": True},
                {"name": "x-re", "string_match": {"safe_regex": {"regex": "a+"}}},
                {"name": "x-user", "string_match": {"exact": "me"}},
            ],
        },
    ]


def test_shares_go_to_subsets_and_what_has_no_share_is_left_out() -> None:
    v1 = {"destination": {"host": "web", "port": {"number": 80}, "subset": "v1"}}
    [split] = routes({"route": [{**v1, "weight": 90}, {**TO_WEB["route"][0], "weight": 10}]})
    shares = [{"name": f"outbound|80|v1|{WEB}", "weight": 90}, {"name": WEB_80, "weight": 10}]
    assert split["route"]["weighted_clusters"] == {"clusters": shares}
    [all_] = routes({"route": [{**v1, "weight": 100}, {**TO_WEB["route"][0], "weight": 0}]})
    assert all_["route"]["cluster"] == f"outbound|80|v1|{WEB}"


def test_retries_and_timeouts() -> None:
    def action(**more: object) -> Json:
        found: Json = routes({**TO_WEB, **more})[0]["route"]
        return found

    usual = action()
    assert usual["timeout"] == "0s"
    assert usual["retry_policy"]["num_retries"] == 2
    assert usual["retry_policy"]["retry_on"].startswith("connect-failure,refused-stream,")
    assert "retry_policy" not in action(retries={"attempts": 0})
    own = action(timeout="2500ms", retries={"attempts": 3, "perTryTimeout": "500ms", "retryOn": "5xx, 429,503"})
    assert own["timeout"] == "2.500s"
    assert own["retry_policy"] | {"retry_host_predicate": []} == {
        "num_retries": 3, "retry_on": "5xx,retriable-status-codes", "retriable_status_codes": [429, 503],
        "per_try_timeout": "0.500s", "host_selection_retry_max_attempts": "5", "retry_host_predicate": [],
    }  # fmt: skip


def test_faults_are_shares_of_requests() -> None:
    fault = {"delay": {"percentage": {"value": 12.5}, "fixedDelay": "100ms"},
             "abort": {"percentage": {"value": 0.01}, "httpStatus": 503}}  # fmt: skip
    [route] = routes({**TO_WEB, "fault": fault})
    config = route["typed_per_filter_config"]["envoy.filters.http.fault"]
    assert config["delay"] == {
        "fixed_delay": "0.100s", "percentage": {"numerator": 125_000, "denominator": "MILLION"},
    }  # fmt: skip
    assert config["abort"] == {"http_status": 503, "percentage": {"numerator": 100, "denominator": "MILLION"}}
    manager = made(api.LISTENER, "0.0.0.0_80", service())["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["http_filters"][0]["name"] == "envoy.filters.http.fault"  # before any route asks for it


def test_a_shared_table_passes_unknown_names_on_or_answers_502() -> None:
    table = made(api.ROUTE, "80", service())
    assert [host["name"] for host in table["virtual_hosts"]] == [f"{WEB}:80", "allow_any"]
    assert table["virtual_hosts"][1]["routes"][0]["route"]["cluster"] == "passthrough"
    only = document("Sidecar", NETWORKING, "shop", "all", spec={"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    refused = made(api.ROUTE, "80", service(), only)["virtual_hosts"][1]
    assert refused["routes"] == [{"match": {"prefix": "/"}, "direct_response": {"status": 502}}]
    alone = made(api.ROUTE, f"{WEB}:5000", service())
    assert [host["domains"] for host in alone["virtual_hosts"]] == [["*"]]


# ---- outgoing connections


def last(listener: Json) -> str:
    """The cluster of the chain for what fits nowhere else."""
    chain = listener.get("default_filter_chain") or listener["filter_chains"][-1]
    found: str = chain["filters"][-1]["typed_config"]["cluster"]
    return found


def test_virtual_outbound_guards_itself_and_passes_on_or_refuses() -> None:
    listener = made(api.LISTENER, "virtual_outbound")
    guard, rest = listener["filter_chains"]
    assert guard["filter_chain_match"] == {"destination_port": 15001}
    assert guard["filters"][0]["typed_config"]["cluster"] == "blackhole"
    assert "filter_chain_match" not in rest
    assert (last(listener), listener["use_original_dst"]) == ("passthrough", True)
    only = document("Sidecar", NETWORKING, "shop", "all", spec={"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    assert last(made(api.LISTENER, "virtual_outbound", only)) == "blackhole"
    bare = Node("client", "shop", "198.18.0.41", guarded=False, transparent=True)
    open_ = made(api.LISTENER, "virtual_outbound", node=bare)
    assert (len(open_["filter_chains"]), open_["transparent"]) == (1, True)


def test_http_is_looked_for_and_other_bytes_on_its_port_are_unknown() -> None:
    listener = made(api.LISTENER, "0.0.0.0_80", service())
    [chain] = listener["filter_chains"]
    assert chain["filter_chain_match"] == {
        "transport_protocol": "raw_buffer", "application_protocols": ["http/1.0", "http/1.1", "h2c"],
    }  # fmt: skip
    assert (last(listener), listener["bind_to_port"]) == ("passthrough", False)
    assert [one["name"].rpartition(".")[2] for one in listener["listener_filters"]] == [
        "tls_inspector", "http_inspector",
    ]  # fmt: skip
    assert (listener["listener_filters_timeout"], listener["continue_on_listener_filters_timeout"]) == ("0s", True)


def test_bytes_are_passed_without_looking_at_them() -> None:
    listener = made(api.LISTENER, "10.96.1.10_5432", service())
    assert set(listener) == {"name", "address", "bind_to_port", "filter_chains"}
    assert last(listener) == f"outbound|5432||{WEB}"


def test_shares_of_connections() -> None:
    split = [{"destination": {"host": host, "port": {"number": 5432}}, "weight": share}
             for host, share in (("web", 70), ("api", 30))]  # fmt: skip
    documents = service(), service("api", "10.96.1.11"), virtual(tcp=[{"match": [{"port": 5432}], "route": split}])
    [chain] = made(api.LISTENER, "10.96.1.10_5432", *documents)["filter_chains"]
    assert chain["filters"][0]["typed_config"]["weighted_clusters"] == {
        "clusters": [
            {"name": f"outbound|5432||{WEB}", "weight": 70},
            {"name": "outbound|5432||api.shop.svc.cluster.local", "weight": 30},
        ]
    }


def test_two_tcp_services_on_one_port_have_a_listener_each_in_mode_2_only() -> None:
    mesh = build(entry("db", "db.example.com"), entry("cache", "cache.example.com"))
    names = {mode: {name for name in snapshot(mesh, dataclasses.replace(CLIENT, dns=mode))[api.LISTENER]
                    if name.endswith("_5432")} for mode in ("cluster", "agent")}  # fmt: skip
    assert names == {"cluster": {"0.0.0.0_5432"}, "agent": {"240.240.0.1_5432", "240.240.0.2_5432"}}
    winner = last(snapshot(mesh, CLIENT)[api.LISTENER]["0.0.0.0_5432"])
    [conflict] = Compiler(mesh).outbound(CLIENT).conflicts
    assert winner == f"outbound|5432||{conflict.winner}"


def test_tls_is_told_apart_by_server_name_and_blocks_by_destination() -> None:
    tls = made(api.LISTENER, "0.0.0.0_443", entry("a", "a.example.com", "TLS", 443))
    assert tls["filter_chains"][0]["filter_chain_match"] == {"server_names": ["a.example.com"]}
    assert last(tls) == "passthrough"
    block = entry("b", "b.example.com", resolution="NONE", addresses=["10.1.0.0/16"])
    found = made(api.LISTENER, "0.0.0.0_5432", block, entry("c", "c.example.com"))
    [chain] = found["filter_chains"]
    assert chain["filter_chain_match"] == {"prefix_ranges": [{"address_prefix": "10.1.0.0", "prefix_len": 16}]}
    assert last(found) == "outbound|5432||c.example.com"


def test_a_service_on_the_sidecars_own_port_gets_no_listener() -> None:
    """Envoy would refuse it as a second one for the same address, bound or not."""
    for port in (15001, 15006, 15090):
        for protocol in ("TCP", "HTTP"):
            mesh = build(entry("a", "a.example.com", protocol, port))
            assert not [name for name in snapshot(mesh, CLIENT)[api.LISTENER] if name.startswith("0.0.0.0")]
            [conflict] = Compiler(mesh).outbound(CLIENT).conflicts
            assert (conflict.listener, conflict.loser) == (f"0.0.0.0_{port}", "a.example.com")
            assert conflict.winner == "the sidecar"


@pytest.mark.parametrize("address", ["198.18.9.9", "198.18.0.7"])  # the second is a headless pod's, and an entry's own
def test_the_listener_that_envoys_dns_has_taken_is_told_as_lost(address: str) -> None:
    lost = entry("a", "a.example.com", "", 15053, resolution="NONE", addresses=["127.0.0.1"])
    taken = entry("b", "b.example.com", addresses=["198.18.0.7"], resolution="NONE")
    pieces = service("db", "None"), piece("198.18.0.7", name="db")
    mesh = build(lost, taken, *pieces)
    node = dataclasses.replace(CLIENT, dns="envoy", address=address)
    found = snapshot(mesh, node)
    assert "127.0.0.1_15053" not in found[api.LISTENER]
    assert "a.example.com:15053" not in found[api.ROUTE]
    told = [one for one in Compiler(mesh).outbound(node).conflicts if one.loser == "a.example.com"]
    assert [(one.listener, one.winner) for one in told] == [("127.0.0.1_15053", "the sidecar")]
    beside = dataclasses.replace(node, dns="agent")
    assert "127.0.0.1_15053" in snapshot(mesh, beside)[api.LISTENER]


def test_a_selector_of_a_sidecar_looks_at_the_pod_that_the_mesh_has() -> None:
    strict = {"workloadSelector": {"labels": {"app": "client"}}, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    scope = document("Sidecar", NETWORKING, "shop", "s", spec=strict)
    mesh = build(scope, *pods(p0={"app": "client"}))
    assert Compiler(mesh).outbound(SERVER).fallback == outbound.BLACKHOLE
    assert Compiler(mesh).outbound(dataclasses.replace(SERVER, pod="p1")).fallback == outbound.PASSTHROUGH
    named = dataclasses.replace(SERVER, pod="p1", labels=(("app", "client"),))
    assert Compiler(mesh).outbound(named).fallback == outbound.BLACKHOLE


def test_statistics_have_one_word_for_a_route_table() -> None:
    assert listeners.stat_prefix("80") == "out_80"
    assert listeners.stat_prefix(f"{WEB}:5000") == "out_web_shop_svc_cluster_local_5000"


# ---- incoming connections


SERVER = Node("p0", "shop", "198.18.0.21")
PUBLISHED = (service(), piece("198.18.0.21"), *pods(p0=MESHED))
TLS, RAW = {"transport_protocol": "tls"}, {"transport_protocol": "raw_buffer"}
PLAIN = {"application_protocols": ["http/1.0", "http/1.1", "h2c"]}
BYTES = {"application_protocols": ["istio-peer-exchange", "istio"]}
HTTP = {"application_protocols": ["istio-http/1.0", "istio-http/1.1", "istio-h2"]}
ANY = {"application_protocols": [*BYTES["application_protocols"], *HTTP["application_protocols"]]}
MANAGER, PROXY = "http_connection_manager", "tcp_proxy"


@pytest.mark.parametrize(
    ("mode", "port", "expected"),
    [
        ("STRICT", 8080, [(TLS, True, MANAGER)]),
        ("PERMISSIVE", 8080, [({**TLS, **ANY}, True, MANAGER), (RAW, False, MANAGER)]),
        ("DISABLE", 8080, [({}, False, MANAGER)]),
        ("STRICT", 5432, [(TLS, True, PROXY)]),
        ("PERMISSIVE", 5432, [({**TLS, **ANY}, True, PROXY), (RAW, False, PROXY), (TLS, False, PROXY)]),
        ("DISABLE", 5432, [({}, False, PROXY)]),
        ("STRICT", 5000, [({**TLS, **HTTP}, True, MANAGER), (TLS, True, PROXY)]),
        (
            "PERMISSIVE", 5000,
            [({**TLS, **HTTP}, True, MANAGER), ({**TLS, **BYTES}, True, PROXY), ({**RAW, **PLAIN}, False, MANAGER),
             (RAW, False, PROXY), (TLS, False, PROXY)],
        ),
        ("DISABLE", 5000, [(PLAIN, False, MANAGER), ({}, False, PROXY)]),
        ("STRICT", 0, [(TLS, True, PROXY)]),
        ("PERMISSIVE", 0, [({**TLS, **ANY}, True, PROXY), (RAW, False, PROXY), (TLS, False, PROXY)]),
        ("DISABLE", 0, [({}, False, PROXY)]),
    ],
)  # fmt: skip
def test_inbound_chains_of_each_mode(mode: str, port: int, expected: list[tuple[Json, bool, str]]) -> None:
    assert chains(*PUBLISHED, mode=mode, port=port, node=SERVER) == expected


def test_the_receiving_end_wants_a_certificate_of_this_mesh() -> None:
    listener = made(api.LISTENER, "virtual_inbound", *PUBLISHED, node=SERVER)
    sockets = [chain["transport_socket"] for chain in listener["filter_chains"] if "transport_socket" in chain]
    assert sockets
    for socket in sockets:
        context = socket["typed_config"]
        assert context["require_client_certificate"] is True
        validation = context["common_tls_context"]["combined_validation_context"]
        names = validation["default_validation_context"]["match_typed_subject_alt_names"]
        assert names == [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]
        assert validation["validation_context_sds_secret_config"]["name"] == "ROOTCA"


def test_first_bytes_are_read_on_ports_only_that_need_it() -> None:
    """A server that speaks first would wait for ever where they are."""
    off = document("PeerAuthentication", "security.istio.io/v1", "shop", "web",
                   spec={"selector": {"matchLabels": {"version": "v1"}}, "mtls": {"mode": "PERMISSIVE"},
                         "portLevelMtls": {"5432": {"mode": "DISABLE"}}})  # fmt: skip
    listener = made(api.LISTENER, "virtual_inbound", *PUBLISHED, off, node=SERVER)
    original, tls, http = listener["listener_filters"]
    assert "filter_disabled" not in original
    assert tls["filter_disabled"] == {"destination_port_range": {"start": 5432, "end": 5433}}
    assert http["filter_disabled"] == {"not_match": {"destination_port_range": {"start": 5000, "end": 5001}}}


def test_a_client_pod_takes_what_comes_as_bytes_and_its_own_ports_as_it_says() -> None:
    node = dataclasses.replace(CLIENT, ports=((8080, Protocol.HTTP),))
    assert [kind for _, _, kind in chains(mode="DISABLE", port=8080, node=node)] == [MANAGER]
    listener = made(api.LISTENER, "virtual_inbound", node=node)
    assert listener["filter_chains"][0]["filter_chain_match"] == {"destination_port": 15006}
    to = {chain["filters"][-1]["typed_config"].get("cluster") for chain in listener["filter_chains"]}
    assert to == {"blackhole", "inbound_passthrough", None}
    bind = made(api.CLUSTER, "inbound_passthrough")["upstream_bind_config"]["source_address"]
    assert bind == {"address": "127.0.0.6", "port_value": 0}


# ---- DNS inside Envoy, and what a sidecar starts with


def test_envoys_dns_listener_holds_the_name_table() -> None:
    node = dataclasses.replace(CLIENT, dns="envoy")
    found = snapshot(build(service(), entry("db", "db.example.com")), node)
    config = found[api.LISTENER]["dns_udp"]["listener_filters"][0]["typed_config"]
    assert config["stat_prefix"] == "mesh"
    domains = {one["name"]: one["endpoint"]["address_list"]["address"]
               for one in config["server_config"]["inline_dns_table"]["virtual_domains"]}  # fmt: skip
    assert domains == {WEB: ["10.96.1.10"], "db.example.com": ["240.240.0.1"]}
    assert last(found[api.LISTENER]["dns_tcp"]) == "cluster_dns"
    assert "cluster_dns" in found[api.CLUSTER]
    assert "dns_udp" not in snapshot(build(service()), CLIENT)[api.LISTENER]


def test_a_sidecar_starts_knowing_the_control_plane_only() -> None:
    config = bootstrap(CLIENT, "198.18.0.5:15010")
    assert config["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
    clusters = config["static_resources"]["clusters"]
    assert [one["name"] for one in clusters] == ["admin", "control_plane"]
    assert [one["name"] for one in config["static_resources"]["listeners"]] == ["stats"]
    assert config["admin"]["address"] == api.address("127.0.0.1", 15000)
    with pytest.raises(errors.InputError, match="is not an IP address and a port"):
        bootstrap(CLIENT, "control-plane")


@given(nodes())
def test_the_control_plane_reads_who_a_sidecar_is_from_its_bootstrap(node: Node) -> None:
    said = json.loads(json.dumps(bootstrap(node, "198.18.0.5:15010")["node"]))
    said["metadata"]["ports"] = [{**one, "number": float(one["number"])} for one in said["metadata"]["ports"]]
    assert parse(said["metadata"]) == node
    assert said["id"] == node.id


@pytest.mark.parametrize("change", [{"dns": "none"}, {"ports": [{}]}, {"labels": None}, {"more": 1}])
def test_metadata_of_something_else_are_refused(change: Json) -> None:
    with pytest.raises(errors.InputError, match="start the sidecar with the bootstrap of this version"):
        parse(CLIENT.metadata() | change)


# ---- for any mesh


@settings(max_examples=60, deadline=None)
@given(generators.meshes(), nodes(), st.randoms(use_true_random=False))
def test_the_order_of_resources_changes_nothing(mesh: list[Document], node: Node, chance: random.Random) -> None:
    shuffled = list(mesh)
    chance.shuffle(shuffled)
    assert json.dumps(snapshot(build(*mesh), node)) == json.dumps(snapshot(build(*shuffled), node))


@settings(max_examples=40, deadline=None)
@given(generators.meshes(), st.lists(nodes(), min_size=2, max_size=4))
def test_sidecars_share_what_is_equal_and_get_what_they_would_alone(mesh: list[Document], several: list[Node]) -> None:
    model = build(*mesh)
    compiler = Compiler(model)
    for node in several:
        found = compiler.snapshot(node)
        assert found == snapshot(model, node)
        labels = next((pod.meta.labels for pod in model.workloads if (pod.meta.namespace, pod.meta.name)
                       == (node.namespace, node.pod)), node.labels)  # fmt: skip
        client = Client(node.namespace, labels, node.dns_proxy, node.address)
        assert compiler.outbound(node) == outbound.build(model, client)
        again = compiler.snapshot(dataclasses.replace(node, pod="another"))
        for kind in (api.CLUSTER, api.ENDPOINT, api.ROUTE):
            assert all(again[kind][name] is one for name, one in found[kind].items() if name not in OWN)


OWN = {"cluster_dns"}


@settings(max_examples=60, deadline=None)
@given(generators.meshes(), nodes())
def test_every_name_that_a_resource_uses_is_a_resource(mesh: list[Document], node: Node) -> None:
    found = snapshot(build(*mesh), node)
    text = json.dumps([found[api.LISTENER], found[api.ROUTE]])
    used = set(re.findall(r'"cluster": "([^"]+)"', text)) | set(re.findall(r'"name": "(outbound\|[^"]+)"', text))
    assert used <= set(found[api.CLUSTER])
    assert set(re.findall(r'"route_config_name": "([^"]+)"', text)) == set(found[api.ROUTE])
    told = {name for name, one in found[api.CLUSTER].items() if one.get("type") == "EDS"}
    assert told == set(found[api.ENDPOINT])
    for kind in found.values():
        assert all(name == one.get("name", one.get("cluster_name")) for name, one in kind.items())
