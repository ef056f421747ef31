"""The one model: precedence as Istio has it, and the same model from any order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import generators
from generators import document
from meshdns.istio import reader, verbs
from meshdns.istio.registry import Discovery, Registry
from meshdns.istio.resources import MtlsMode

NETWORKING, SECURITY = "networking.istio.io/v1", "security.istio.io/v1"
WEB = "web.shop.svc.cluster.local"
HTTP = [{"name": "http", "port": 80}]


def build(*documents: generators.Document) -> Registry:
    return verbs.build(reader.parse({"mesh.yaml": generators.text(documents)}))


def service(name: str = "web", ip: str = "10.96.1.10", **rest: str) -> generators.Document:
    return document("Service", "v1", "shop", name, spec={"clusterIP": ip, "ports": HTTP}, **rest)


def piece(*endpoints: generators.Document, name: str = "web-x") -> generators.Document:
    return document(
        "EndpointSlice", "discovery.k8s.io/v1", "shop", name, labels={"kubernetes.io/service-name": "web"},
        addressType="IPv4", ports=[{"name": "http", "port": 8080}], endpoints=list(endpoints),
    )  # fmt: skip


def peer(namespace: str, name: str, mode: str, created: str = "", **spec: object) -> generators.Document:
    spec = {"mtls": {"mode": mode}, **spec}
    return document("PeerAuthentication", SECURITY, namespace, name, creationTimestamp=created, spec=spec)


def entry(name: str, host: str, **spec: object) -> generators.Document:
    spec = {"hosts": [host], "resolution": "DNS", "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}], **spec}
    return document("ServiceEntry", NETWORKING, "shop", name, spec=spec)


def test_slices_of_a_service_are_one_set_of_endpoints() -> None:
    first = {"addresses": ["198.18.0.9"], "conditions": {"ready": True, "terminating": True}, "zone": "a"}
    second = {"addresses": ["198.18.0.10"], "conditions": {"ready": False}, "targetRef": {"kind": "Pod", "name": "p"}}
    pod = document("Pod", "v1", "shop", "p", labels={"app": "web", "security.istio.io/tlsMode": "istio"})
    late = {**first, "conditions": {"ready": False}}  # the same endpoint, in a slice that is behind
    model = build(service(), piece(first), piece(second, late, name="web-y"), pod)
    one, two = model.of(WEB)[0].endpoints
    assert (one.address, one.ready) == ("198.18.0.9", True)
    assert (two.ready, two.sidecar, two.workload) == (False, True, "p")
    assert dict(two.labels)["app"] == "web"


def test_services_come_by_age_then_by_name_and_namespace() -> None:
    old, new = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00+02:00"
    model = build(
        service("c", "10.96.1.1", creationTimestamp=new), service("b", "10.96.1.2", creationTimestamp=old),
        service("d", "10.96.1.3", creationTimestamp=old), service("e", "10.96.1.4"), entry("x", "a.example.com"),
    )  # fmt: skip
    assert [one.name for one in model.services] == ["a.example.com", "e", "b", "d", "c"]


def test_a_workloads_mode_goes_before_the_namespaces_and_that_before_the_meshs() -> None:
    labels = (("app", "web"),)
    assert build().mtls("shop", labels, 80) is MtlsMode.PERMISSIVE
    mesh = [peer("istio-system", "default", "STRICT")]
    assert build(*mesh).mtls("shop", labels, 80) is MtlsMode.STRICT
    narrow = [*mesh, peer("shop", "default", "DISABLE")]
    assert build(*narrow).mtls("shop", labels, 80) is MtlsMode.DISABLE
    assert build(*narrow).mtls("bank", labels, 80) is MtlsMode.STRICT
    selector = {"selector": {"matchLabels": {"app": "web"}}}
    ports = {"portLevelMtls": {"80": {"mode": "PERMISSIVE"}, "81": {"mode": "UNSET"}}}
    own = build(*narrow, peer("shop", "web", "STRICT", **selector, **ports))
    assert own.mtls("shop", labels, 80) is MtlsMode.PERMISSIVE
    assert own.mtls("shop", labels, 81) is MtlsMode.STRICT
    assert own.mtls("shop", (("app", "other"),), 80) is MtlsMode.DISABLE
    inherits = build(*narrow, peer("shop", "web", "UNSET", **selector))
    assert inherits.mtls("shop", labels, 80) is MtlsMode.DISABLE


def test_the_oldest_of_two_selectors_that_fit_decides() -> None:
    young = peer("shop", "a", "STRICT", "2026-01-02T00:00:00Z", selector={"matchLabels": {"app": "web"}})
    old = peer("shop", "b", "DISABLE", "2026-01-01T00:00:00Z", selector={"matchLabels": {"tier": "x"}})
    assert build(young, old).mtls("shop", (("app", "web"), ("tier", "x")), 80) is MtlsMode.DISABLE


def test_what_a_sidecar_does_with_the_unknown_is_said_from_near_to_far() -> None:
    def sidecar(namespace: str, name: str, mode: str, **spec: object) -> generators.Document:
        return document("Sidecar", NETWORKING, namespace, name, spec={"outboundTrafficPolicy": {"mode": mode}, **spec})

    mesh = sidecar("istio-system", "default", "REGISTRY_ONLY")
    assert build().outbound_policy("shop", ()) == "ALLOW_ANY"
    assert build(mesh).outbound_policy("shop", ()) == "REGISTRY_ONLY"
    shop = sidecar("shop", "default", "ALLOW_ANY")
    assert build(mesh, shop).outbound_policy("shop", ()) == "ALLOW_ANY"
    own = sidecar("shop", "own", "REGISTRY_ONLY", workloadSelector={"labels": {"app": "web"}})
    assert build(mesh, shop, own).outbound_policy("shop", (("app", "web"),)) == "REGISTRY_ONLY"
    assert build(mesh, shop, own).outbound_policy("shop", (("app", "x"),)) == "ALLOW_ANY"


def rule(namespace: str, name: str, host: str, **spec: object) -> generators.Document:
    return document("DestinationRule", NETWORKING, namespace, name, spec={"host": host, **spec})


def test_a_subset_overrides_sections_and_a_port_replaces_all() -> None:
    policy = {
        "loadBalancer": {"simple": "RANDOM"}, "tls": {"mode": "SIMPLE"},
        "portLevelSettings": [{"port": {"number": 80}, "connectionPool": {"tcp": {"maxConnections": 3}}}],
    }  # fmt: skip
    subset = {"name": "v1", "labels": {"v": "1"}, "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}}
    two = document("Service", "v1", "shop", "web",
                   spec={"clusterIP": "10.96.1.1", "ports": [*HTTP, {"name": "b", "port": 81}]})  # fmt: skip
    model = build(two, rule("shop", "web", WEB, trafficPolicy=policy, subsets=[subset]))
    whole = model.policy(WEB, 81, "", "shop")
    assert (whole.balancer, whole.limits) == ("RANDOM", False)
    of_subset = model.policy(WEB, 81, "v1", "shop")
    assert (of_subset.balancer, of_subset.tls) == ("ROUND_ROBIN", whole.tls)
    of_port = model.policy(WEB, 80, "", "shop")
    assert (of_port.limits, of_port.balancer, of_port.tls) == (True, "", "")


def test_a_destination_rule_is_looked_for_at_the_client_then_at_the_service_then_at_the_root() -> None:
    def simple(word: str) -> dict[str, object]:
        return {"trafficPolicy": {"loadBalancer": {"simple": word}}}

    root = rule("istio-system", "a", "*.svc.cluster.local", **simple("RANDOM"))
    at_service = rule("shop", "a", WEB, **simple("ROUND_ROBIN"))
    at_client = rule("bank", "a", "*.shop.svc.cluster.local", **simple("PASSTHROUGH"))
    model = build(service(), root, at_service, at_client)
    seen = {client: model.policy(WEB, 80, "", client).balancer for client in ("shop", "bank", "other")}
    assert seen == {
        "shop": "ROUND_ROBIN", "bank": "PASSTHROUGH", "other": "ROUND_ROBIN",
    }  # fmt: skip
    assert build(service(), root).policy(WEB, 80, "", "shop").balancer == "RANDOM"


@pytest.mark.parametrize(
    ("resolution", "discovery"),
    [("NONE", Discovery.ORIGINAL_DST), ("STATIC", Discovery.EDS), ("DNS", Discovery.STRICT_DNS),
     ("DNS_ROUND_ROBIN", Discovery.LOGICAL_DNS)],
)  # fmt: skip
def test_a_resolution_is_a_way_of_discovery(resolution: str, discovery: Discovery) -> None:
    more = {"endpoints": [{"address": "198.19.0.1", "ports": {"tcp": 6000}}]} if resolution == "STATIC" else {}
    [found] = build(entry("x", "a.example.com", resolution=resolution, **more)).of("a.example.com")
    assert found.discovery is discovery
    assert bool(found.virtual_ip) is (resolution != "NONE")
    ends = [(one.address, one.port("tcp")) for one in found.endpoints]
    assert ends == {"NONE": [], "STATIC": [("198.19.0.1", 6000)]}.get(resolution, [("a.example.com", 5432)])


@settings(max_examples=30, deadline=None)
@given(generators.meshes(), st.randoms(use_true_random=False))
def test_the_same_set_in_any_order_gives_an_equal_model(mesh: list[generators.Document], chance: random.Random) -> None:
    first = build(*mesh)
    shuffled = list(mesh)
    chance.shuffle(shuffled)
    again = build(*shuffled)
    assert again == first
    hosts = {one.host for one in first.services}
    for host in hosts:
        assert again.of(host) == first.of(host)
        assert again.route(host) == first.route(host)
        assert again.rule(host, "shop") == first.rule(host, "shop")
