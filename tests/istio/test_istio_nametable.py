"""What the two kinds of DNS answer: the mode-2 proxy's name table, and the cluster DNS's records."""

from __future__ import annotations

import dns.rdatatype
import dns.zone
from hypothesis import given, settings
from test_registry import HTTP, build, entry, piece, service

import generators
from generators import document
from meshdns.istio import nametable, records
from meshdns.istio.registry import Registry

WEB = "web.shop.svc.cluster.local"


def headless(**more: object) -> generators.Document:
    return document("Service", "v1", "shop", "web", spec={"clusterIP": "None", "ports": HTTP, **more})


PODS = piece(
    {"addresses": ["198.18.0.21"], "hostname": "web-0"},
    {"addresses": ["198.18.0.22"], "hostname": "web-1", "conditions": {"ready": False}},
    {"addresses": ["198.18.0.23"]},
)


def table(model: Registry) -> dict[str, tuple[str, ...]]:
    return {host: name.ips for host, name in nametable.build(model).items()}


def test_the_table_has_cluster_ips_own_addresses_and_virtual_ips() -> None:
    model = build(
        service(),
        entry("a", "a.example.com"),
        entry("b", "b.example.com", resolution="NONE", addresses=["10.1.0.1", "10.2.0.0/16"]),
        entry("c", "*.c.example.com", resolution="NONE", addresses=["10.1.0.2"]),
        entry("d", "d.example.com", resolution="NONE"),
        entry("e", "e.example.com", resolution="NONE", addresses=["10.3.0.0/16"]),
    )
    assert table(model) == {
        WEB: ("10.96.1.10",), "a.example.com": ("240.240.0.1",), "b.example.com": ("10.1.0.1",),
        "*.c.example.com": ("10.1.0.2",),
    }  # fmt: skip
    assert nametable.build(model)[WEB] == nametable.Name(("10.96.1.10",), "Kubernetes", "shop", "web")
    assert nametable.build(model)["a.example.com"].registry == "External"


def test_a_headless_service_is_its_ready_pods_and_their_own_names() -> None:
    found = table(build(headless(), PODS))
    assert found == {WEB: ("198.18.0.21", "198.18.0.23"), f"web-0.{WEB}": ("198.18.0.21",)}
    early = table(build(headless(publishNotReadyAddresses=True), PODS))
    assert early[WEB] == ("198.18.0.21", "198.18.0.22", "198.18.0.23")
    assert f"web-1.{WEB}" in early
    assert table(build(headless(), piece())) == {}


def test_kubernetes_beats_a_service_entry_and_two_entries_share_a_name() -> None:
    for time in ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"):  # older and younger than the entry
        own = entry("w", WEB)
        own["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
        assert table(build(service(creationTimestamp=time), own)) == {WEB: ("10.96.1.10",)}
    two = [
        entry("a", "x.example.com"),
        entry("b", "x.example.com", ports=[{"number": 6379, "name": "r", "protocol": "TCP"}]),
    ]
    assert table(build(*two)) == {"x.example.com": ("240.240.0.1", "240.240.0.2")}


def test_the_cluster_dns_holds_what_kubernetes_specifies() -> None:
    plain = {
        (one.name, one.rtype, one.data) for one in records.build(build(service(), PODS, entry("a", "a.example.com")))
    }
    assert plain == {
        (f"{WEB}.", "A", "10.96.1.10"), (f"_http._tcp.{WEB}.", "SRV", f"0 100 80 {WEB}."),
    }  # fmt: skip
    found = {(one.name, one.rtype, one.data) for one in records.build(build(headless(), PODS))}
    assert found == {
        (f"{WEB}.", "A", "198.18.0.21"), (f"{WEB}.", "A", "198.18.0.23"),
        (f"web-0.{WEB}.", "A", "198.18.0.21"), (f"198-18-0-23.{WEB}.", "A", "198.18.0.23"),
        (f"_http._tcp.{WEB}.", "SRV", f"0 100 8080 web-0.{WEB}."),
        (f"_http._tcp.{WEB}.", "SRV", f"0 100 8080 198-18-0-23.{WEB}."),
    }  # fmt: skip
    both = service()
    both["spec"] |= {"clusterIPs": ["10.96.1.10", "fd00::10"], "ipFamilyPolicy": "PreferDualStack"}
    assert (f"{WEB}.", "AAAA", "fd00::10") in {(r.name, r.rtype, r.data) for r in records.build(build(both))}


@settings(max_examples=25, deadline=None)
@given(generators.meshes())
def test_records_are_records_and_srv_targets_have_addresses(mesh: list[generators.Document]) -> None:
    found = records.build(build(*mesh))
    lines = [f"{one.name} 30 IN {one.rtype} {one.data}" for one in found]
    head = ["@ 30 IN SOA ns.dns hostmaster 1 7200 1800 86400 30", "@ 30 IN NS ns.dns", "ns.dns 30 IN A 10.96.0.10"]
    zone = dns.zone.from_text("\n".join([*head, *lines]), origin="cluster.local.", relativize=False)
    addressed = {str(name) for name, _, _ in zone.iterate_rdatas("A")}
    targets = {str(data.target) for _, _, data in zone.iterate_rdatas(dns.rdatatype.SRV)}
    assert targets <= addressed


@settings(max_examples=25, deadline=None)
@given(generators.meshes())
def test_every_name_has_an_address_and_both_kinds_of_dns_agree_on_services(mesh: list[generators.Document]) -> None:
    model = build(*mesh)
    found = table(model)
    assert all(found.values())
    cluster: dict[str, set[str]] = {}
    for record in records.build(model):
        if record.rtype == "A":
            cluster.setdefault(record.name.removesuffix("."), set()).add(record.data)
    for one in model.services:
        if one.kubernetes and one.host in cluster:
            assert set(found[one.host]) == cluster[one.host]
