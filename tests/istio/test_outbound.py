"""Listeners, routes and clusters of a sidecar: who takes a connection in each mode, and who is left out."""

from __future__ import annotations

import argparse
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_registry import build, entry, piece

import generators
from generators import document
from meshdns.core import errors
from meshdns.istio import explain, outbound, verbs
from meshdns.istio.outbound import BLACKHOLE, PASSTHROUGH, WILDCARD, Client, Outbound
from meshdns.istio.registry import Registry, Service

MODE1, MODE2 = Client("shop"), Client("shop", dns_proxy=True)
WEB = "web.shop.svc.cluster.local"


def names(out: Outbound) -> list[str]:
    return [one.name for one in out.listeners]


def ports(*ports: tuple[str, int]) -> list[generators.Document]:
    return [{"name": name, "port": number} for name, number in ports]


def kubernetes(name: str, ip: str, *carried: tuple[str, int], created: str = "") -> generators.Document:
    return document(
        "Service", "v1", "shop", name, creationTimestamp=created, spec={"clusterIP": ip, "ports": ports(*carried)}
    )


def test_two_tcp_services_on_one_port_collide_without_virtual_ips_and_only_then() -> None:
    db, cache = entry("db", "db.example.com"), entry("cache", "cache.example.com")
    db["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    cache["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    model = build(cache, db)
    first = outbound.build(model, MODE1)
    assert names(first) == ["0.0.0.0_5432"]
    assert first.listeners[0].chains[0].clusters == (("outbound|5432||db.example.com", 100),)
    [conflict] = first.conflicts
    assert (conflict.winner, conflict.loser) == ("db.example.com", "cache.example.com")
    second = outbound.build(model, MODE2)
    assert names(second) == ["240.240.0.1_5432", "240.240.0.2_5432"]
    assert not second.conflicts


def test_one_entry_per_port_of_one_host_has_a_virtual_ip_each_and_listens_on_one_port_each() -> None:
    """The host answers both addresses, and half of the combinations of address and port have no listener."""
    one = entry("a", "x.example.com", ports=[{"number": 5432, "name": "p", "protocol": "TCP"}])
    two = entry("b", "x.example.com", ports=[{"number": 6379, "name": "r", "protocol": "TCP"}])
    out = outbound.build(build(one, two), MODE2)
    assert names(out) == ["240.240.0.1_5432", "240.240.0.2_6379"]
    assert out.listener("240.240.0.1", 6379) is None


def test_http_shares_a_port_and_is_told_apart_by_host() -> None:
    plain = [kubernetes("a", "10.96.1.1", ("http", 80)), kubernetes("b", "10.96.1.2", ("http-x", 80))]
    for client in (MODE1, MODE2):
        out = outbound.build(build(*plain), client)
        assert names(out) == ["0.0.0.0_80"]
        [chain] = out.listeners[0].chains
        assert (chain.http, chain.route) == (True, "80")
        assert out.listeners[0].default is None
        [table] = out.tables
        assert [one.host for one in table.hosts] == ["a.shop.svc.cluster.local", "b.shop.svc.cluster.local"]
        assert table.hosts[0].domains == (
            "a.shop.svc.cluster.local", "a.shop.svc.cluster.local:80", "a.shop", "a.shop:80",
            "a.shop.svc", "a.shop.svc:80", "a", "a:80", "10.96.1.1", "10.96.1.1:80",
        )  # fmt: skip
    other = outbound.build(build(*plain), Client("bank"))
    assert "a" not in other.tables[0].hosts[0].domains


def test_a_name_that_two_services_could_mean_belongs_to_the_older() -> None:
    """The proxy refuses a table that has a domain twice, and with it every route of the port."""
    http = [{"number": 80, "name": "h", "protocol": "HTTP"}]
    model = build(kubernetes("web", "10.96.1.1", ("http", 80), created="2026-01-01T00:00:00Z"),
                  entry("w", "web.shop", ports=http))  # fmt: skip
    older, younger = outbound.build(model, MODE1).tables[0].hosts
    assert (older.host, younger.host) == ("web.shop", WEB)
    assert "web.shop" in older.domains
    assert "web.shop" not in younger.domains
    assert {"web", WEB} <= set(younger.domains)


def test_of_two_services_of_one_host_kubernetes_says_how_endpoints_are_found() -> None:
    same = [{"number": 80, "name": "h", "protocol": "HTTP"}, {"number": 81, "name": "i", "protocol": "HTTP"}]
    young = kubernetes("web", "10.96.1.1", ("http", 80), created="2026-01-01T00:00:00Z")
    clusters = outbound.build(build(young, entry("w", WEB, ports=same)), MODE1).clusters
    assert {one.name: one.discovery for one in clusters} == {
        f"outbound|80||{WEB}": "EDS", f"outbound|81||{WEB}": "STRICT_DNS",
    }  # fmt: skip


def test_tls_without_an_address_is_told_apart_by_its_server_name() -> None:
    tls = [{"number": 443, "name": "tls", "protocol": "TLS"}]
    model = build(entry("a", "a.example.com", ports=tls), entry("b", "b.example.com", ports=tls))
    first = outbound.build(model, MODE1)
    assert names(first) == ["0.0.0.0_443"]
    assert [one.server_names for one in first.listeners[0].chains] == [("a.example.com",), ("b.example.com",)]
    assert not first.conflicts
    assert [one.chains[0].server_names for one in outbound.build(model, MODE2).listeners] == [(), ()]


def test_bytes_and_http_share_a_wildcard_port_by_their_first_bytes() -> None:
    http = entry("h", "h.example.com", ports=[{"number": 80, "name": "h", "protocol": "HTTP"}])
    tcp = entry("t", "t.example.com", ports=[{"number": 80, "name": "t", "protocol": "TCP"}])
    for documents in ((http, tcp), (tcp, http)):
        out = outbound.build(build(*documents), MODE1)
        [listener] = out.listeners
        assert {chain.host: chain.http for chain in listener.chains} == {"h.example.com": True, "t.example.com": False}
        assert listener.default is not None
        assert not out.conflicts


def test_a_protocol_whose_server_speaks_first_shares_its_port_with_no_other() -> None:
    sql = entry("a", "sql.example.com", ports=[{"number": 3306, "name": "m", "protocol": "MySQL"}])
    http = entry("b", "web.example.com", ports=[{"number": 3306, "name": "h", "protocol": "HTTP"}])
    http["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    out = outbound.build(build(sql, http), MODE1)
    assert [chain.host for chain in out.listeners[0].chains] == ["sql.example.com"]
    assert [one.loser for one in out.conflicts] == ["web.example.com"]


def test_an_undeclared_port_of_a_cluster_ip_has_a_listener_for_both_kinds_of_bytes() -> None:
    out = outbound.build(build(kubernetes("a", "10.96.1.1", ("odd", 5000))), MODE1)
    [listener] = out.listeners
    assert listener.name == "10.96.1.1_5000"
    assert [(chain.http, chain.route) for chain in listener.chains] == [
        (False, ""),
        (True, "a.shop.svc.cluster.local:5000"),
    ]
    assert out.tables[0].hosts[0].domains == ("*",)


def test_a_headless_service_listens_at_every_ready_pod() -> None:
    web = kubernetes("web", "None", ("http", 80), ("tcp", 81))
    pods = piece({"addresses": ["198.18.0.21"]}, {"addresses": ["198.18.0.22"], "conditions": {"ready": False}},
                 {"addresses": ["198.18.0.23"]})  # fmt: skip
    out = outbound.build(build(web, pods), MODE1)
    assert names(out) == ["0.0.0.0_80", "198.18.0.21_81", "198.18.0.23_81"]
    assert {one.discovery for one in out.clusters} == {"ORIGINAL_DST"}
    assert {"web", "*.web", f"*.{WEB}:80"} <= set(out.tables[0].hosts[0].domains)


def test_blocks_of_addresses_share_a_listener_and_the_longest_wins() -> None:
    def block(name: str, address: str) -> generators.Document:
        return entry(name, f"{name}.example.com", resolution="NONE", addresses=[address])

    model = build(block("a", "10.1.0.0/16"), block("b", "10.2.0.0/16"), entry("c", "c.example.com"))
    out = outbound.build(model, MODE1)
    [listener] = out.listeners
    assert [chain.prefixes for chain in listener.chains] == [("10.1.0.0/16",), ("10.2.0.0/16",), ()]
    taken = {address: explain.choose(listener, address, "tcp", "") for address in ("10.1.9.9", "10.2.9.9", "9.9.9.9")}
    assert {address: chain.host for address, chain in taken.items() if chain} == {
        "10.1.9.9": "a.example.com", "10.2.9.9": "b.example.com", "9.9.9.9": "c.example.com",
    }  # fmt: skip


def routed(spec: generators.Document) -> Registry:
    web = kubernetes("web", "10.96.1.1", ("http", 80), ("tcp", 81))
    pods = [{"addresses": [f"198.18.0.2{n}"], "targetRef": {"kind": "Pod", "name": f"p{n}"}} for n in (1, 2, 3)]
    labels = [document("Pod", "v1", "shop", f"p{n}", labels={"version": "v1" if n < 3 else "v2"}) for n in (1, 2, 3)]
    rule = document("DestinationRule", "networking.istio.io/v1", "shop", "web",
                    spec={"host": "web", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]})  # fmt: skip
    virtual = document("VirtualService", "networking.istio.io/v1", "shop", "web", spec={"hosts": ["web"], **spec})
    both = piece(*pods)
    both["ports"] = ports(("http", 8080), ("tcp", 8081))
    return build(web, both, *labels, rule, virtual)


def test_subsets_are_clusters_of_the_endpoints_with_their_labels() -> None:
    to = [
        {"destination": {"host": "web", "subset": "v1"}, "weight": 90},
        {"destination": {"host": "web"}, "weight": 10},
    ]
    out = outbound.build(routed({"http": [{"route": to}]}), MODE1)
    clusters = {one.name: [end.address for end, port in one.endpoints if port == 8080] for one in out.clusters}
    assert clusters[f"outbound|80|v1|{WEB}"] == ["198.18.0.21", "198.18.0.22"]
    assert len(clusters[f"outbound|80||{WEB}"]) == 3
    [route] = out.tables[0].hosts[0].routes
    assert route.clusters == ((f"outbound|80|v1|{WEB}", 90), (f"outbound|80||{WEB}", 10))


def test_routes_end_with_the_first_that_takes_everything_and_ports_that_do_not_match_are_left_out() -> None:
    def to(subset: str) -> generators.Document:
        return {"route": [{"destination": {"host": "web", **({"subset": subset} if subset else {})}}]}

    http = [{"match": [{"uri": {"prefix": "/a"}}, {"headers": {"X-User": {"exact": "me"}}}], **to("v1")},
            {"match": [{"uri": {"prefix": "/b"}, "port": 8888}], **to("v1")}, to(""), to("v1")]  # fmt: skip
    out = outbound.build(routed({"http": http}), MODE1)
    routes = out.tables[0].hosts[0].routes
    assert [bool(one.match.uri or one.match.headers) for one in routes] == [True, True, False]
    assert routes[1].match.headers[0][0] == "x-user"


def test_a_tcp_route_takes_bytes_of_its_port_only() -> None:
    spec = {"tcp": [{"match": [{"port": 81}], "route": [{"destination": {"host": "web", "subset": "v1"}}]}]}
    out = outbound.build(routed(spec), MODE1)
    taken = out.listener("10.96.1.1", 81)
    assert taken is not None
    assert taken.chains[0].clusters == ((f"outbound|81|v1|{WEB}", 100),)


def test_what_no_listener_takes_goes_where_the_policy_says() -> None:
    strict = document("Sidecar", "networking.istio.io/v1", "shop", "default",
                      spec={"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})  # fmt: skip
    assert outbound.build(build(), MODE1).fallback == PASSTHROUGH
    assert outbound.build(build(strict), MODE1).fallback == BLACKHOLE


@settings(max_examples=40, deadline=None)
@given(generators.meshes(), st.booleans(), st.randoms(use_true_random=False))
def test_any_set_is_a_configuration_that_hangs_together(
    mesh: list[generators.Document], dns_proxy: bool, chance: random.Random
) -> None:
    client = Client("shop", dns_proxy=dns_proxy)
    out = outbound.build(build(*mesh), client)
    shuffled = list(mesh)
    chance.shuffle(shuffled)
    assert outbound.build(build(*shuffled), client) == out

    known = {one.name for one in out.clusters}
    assert len(known) == len(out.clusters)
    assert all(a.name != b.name for a, b in pairwise(sorted(out.listeners, key=lambda one: one.name)))
    tables = {one.name for one in out.tables}
    for listener in out.listeners:
        assert len({chain.match for chain in listener.chains}) == len(listener.chains) > 0
        for chain in listener.chains:
            assert bool(chain.route) != bool(chain.clusters)
            assert not chain.route or chain.route in tables
            assert {cluster for cluster, _ in chain.clusters} <= known
    for table in out.tables:
        domains = [domain for host in table.hosts for domain in host.domains]
        assert len(domains) == len(set(domains)) > 0
        for host in table.hosts:
            for route in host.routes:
                assert sum(weight for _, weight in route.clusters) == 100
                assert {cluster for cluster, _ in route.clusters} <= known


@settings(max_examples=40, deadline=None)
@given(generators.meshes())
def test_every_tcp_port_has_its_way_or_is_listed_as_lost(mesh: list[generators.Document]) -> None:
    model = build(*mesh)
    for client in (MODE1, MODE2):
        out = outbound.build(model, client)
        lost = {(one.listener, one.loser) for one in out.conflicts}
        for one in model.services:
            for port in one.ports:
                for address, _ in outbound.binds(one, port, client):
                    listener = out.listener(address, port.number)
                    assert listener is not None
                    hosts = {chain.host for chain in listener.chains if not chain.route}
                    routed_ = {h.host for table in out.tables for h in table.hosts if table.name == str(port.number)}
                    family = port.protocol.family
                    here = routed_ if family == "http" else hosts
                    assert one.host in here or (listener.name, one.host) in lost
    if not any(one.addresses or one.kubernetes for one in model.services):
        shared = [one for one in outbound.build(model, MODE2).conflicts if not one.listener.startswith(WILDCARD)]
        assert not shared  # a virtual IP is nobody else's


@settings(max_examples=60, deadline=None)
@given(generators.meshes())
def test_every_virtual_service_that_is_accepted_takes_effect(mesh: list[generators.Document]) -> None:
    model = build(*mesh)
    for client in (MODE1, MODE2):
        out = outbound.build(model, client)
        lost = {one.loser for one in out.conflicts} | {one.host for one in model.services if not _has_listener(one)}
        routes = {
            route.given.name for table in out.tables for host in table.hosts for route in host.routes if route.given
        }
        chains = {(chain.host, chain.clusters) for listener in out.listeners for chain in listener.chains}
        for virtual in model.routes:
            hosts = {one if model.of(one) else "*.example.net" for one in virtual.hosts}
            if hosts & lost:
                continue
            assert not virtual.http or f"{virtual.meta.name}-0" in routes
            for tcp in virtual.tcp:
                shares = tuple((outbound.name(to.host, to.port, to.subset), to.weight) for to in tcp.destinations)
                assert {(host, shares) for host in hosts} & chains


def _has_listener(one: Service) -> bool:
    return all(outbound.binds(one, port, MODE1) for port in one.ports)


def virtual(host: str, **spec: object) -> generators.Document:
    return document("VirtualService", "networking.istio.io/v1", "shop", "v", spec={"hosts": [host], **spec})


def to(host: str, **more: object) -> generators.Document:
    return {"route": [{"destination": {"host": host, **more}}]}


def wild(number: int = 80, protocol: str = "HTTP", **spec: object) -> generators.Document:
    ports = [{"number": number, "name": "p", "protocol": protocol}]
    return entry("wild", "*.example.net", **{"resolution": "NONE", "ports": ports, **spec})


def test_a_host_that_only_a_wildcard_covers_has_routes_of_its_own_before_the_wildcards() -> None:
    routes = virtual("a.example.net", http=[{"name": "mine", **to("*.example.net"), "timeout": "2s"}])
    model = build(wild(), routes)
    [table] = outbound.build(model, MODE1).tables
    found = {host.domains: host.routes for host in table.hosts}
    [mine] = found["a.example.net", "a.example.net:80"]
    assert mine.given is not None
    assert (mine.given.name, mine.given.timeout_ms, mine.clusters) == (
        "mine",
        2000,
        (("outbound|80||*.example.net", 100),),
    )
    [rest] = found["*.example.net", "*.example.net:80"]
    assert rest.given is None
    said = "\n".join(explain.explain(model, "a.example.net", 80, explain.Caller("x", "shop")).lines)
    assert "virtual host a.example.net:80" in said
    assert "VirtualService shop/v routes it" in said


def test_such_a_host_is_routed_on_the_ports_of_the_hosts_beside_it() -> None:
    """Istio's way: port 80 only where the VirtualService has no other host with HTTP."""
    other = virtual("a.example.net", http=[to("web", port={"number": 81})])
    other["spec"]["hosts"].append("web")
    web = kubernetes("web", "10.96.1.10", ("http", 81))
    ports_ = [{"number": number, "name": f"p{number}", "protocol": "HTTP"} for number in (80, 81)]
    tables = outbound.build(build(wild(ports=ports_), web, other), MODE1).tables
    assert [(one.name, "a.example.net" in [host.host for host in one.hosts]) for one in tables] == [
        ("80", False),
        ("81", True),
    ]


def test_a_port_for_which_no_route_is_goes_to_the_service_as_if_there_were_none() -> None:
    only = {"match": [{"port": 80}], **to("web", port={"number": 80})}
    web = kubernetes("web", "10.96.1.10", ("http", 80), ("http-b", 8080))
    out = outbound.build(build(web, virtual("web", http=[{"name": "only", **only}])), MODE1)
    routes = {table.name: table.hosts[0].routes for table in out.tables}
    assert [one.given and one.given.name for one in routes["80"]] == ["only"]
    assert [one.clusters for one in routes["8080"]] == [((f"outbound|8080||{WEB}", 100),)]


WEB_AND_DB = (
    kubernetes("web", "10.96.1.10", ("http", 80), ("http-b", 81)),
    kubernetes("db", "10.96.1.11", ("tcp", 90)),
    kubernetes("two", "10.96.1.12", ("http", 80), ("http-b", 8080)),
)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([wild(8080), virtual("a.example.net", http=[to("*.example.net")])],
         "such a host is routed on port 80, and *.example.net has no HTTP there; give a.example.net a ServiceEntry"),
        ([wild(80, "", addresses=["172.16.0.1"]), virtual("a.example.net", http=[to("*.example.net")])],
         "and *.example.net has no HTTP there"),
        ([wild(80, "TCP"), virtual("a.example.net", tcp=[to("*.example.net")])],
         "TCP routes of a.example.net would take every connection to *.example.net"),
        ([wild(), virtual("*.deep.example.net", http=[to("*.example.net")])],
         "no known host is under *.deep.example.net, and *.example.net is not routed by parts; write *.example.net"),
        ([wild(), virtual("*.example.net", http=[to("a.example.net")])],
         "the host a.example.net is not known; write *.example.net, or give a.example.net a ServiceEntry of its own"),
        ([wild(), document("DestinationRule", "networking.istio.io/v1", "shop", "r",
                           spec={"host": "a.example.net", "subsets": [{"name": "v1"}]})],
         "the host a.example.net is not known, only *.example.net, to which it does not apply; write *.example.net"),
        ([virtual("db", http=[to("db")])], "spec.http: HTTP routes take no effect: no host of it carries that"),
        ([virtual("web", tcp=[to("web")])], "spec.tcp: TCP routes take no effect: no host of it carries that"),
        ([virtual("web", http=[{"match": [{"port": 82}], **to("web")}])], "spec.http: HTTP routes take no effect"),
        ([virtual("web", http=[to("two")])],
         "destination.port: two.shop.svc.cluster.local has no port 81, which is the one called, and none is given; "
         "give one of 80, 8080"),
    ],
)  # fmt: skip
def test_what_would_be_routed_nowhere_or_not_at_all_is_refused(documents: list[generators.Document], said: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        build(*WEB_AND_DB, *documents)
    assert said in str(caught.value)


def test_a_subset_that_only_some_namespaces_see_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = document("DestinationRule", "networking.istio.io/v1", "bank", "r",
                    spec={"host": WEB, "subsets": [{"name": "v1"}]})  # fmt: skip
    given_ = [*WEB_AND_DB, rule, virtual("web", http=[to("web", subset="v1", port={"number": 80})])]
    file = tmp_path / "mesh.yaml"

    def notes() -> list[str]:
        file.write_text(generators.text(given_))
        assert verbs.validate(argparse.Namespace(files=[file])) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]

    [note] = notes()
    assert f"sidecars in any other namespace have no cluster outbound|80|v1|{WEB}" in note
    rule["metadata"]["namespace"] = "shop"  # the host's own
    assert notes() == []
