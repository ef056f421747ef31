"""The two verbs, and the testbed's own mesh: its YAML says what the testbed is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_registry import build, entry, peer, piece, service
from test_registry import rule as destination_rule

import generators
from generators import document
from meshdns.core import errors
from meshdns.core.world import Nets
from meshdns.istio import explain, reader, records, verbs
from meshdns.istio.registry import Registry
from meshdns.istio.resources import Resources
from meshdns.lab.compose import containers
from shipped import WORLD

COMPOSE = Path(__file__).parents[2] / "compose"


@pytest.fixture(scope="module")
def mesh() -> Registry:
    return verbs.build(reader.read([COMPOSE / "worlds"]))


def test_the_yaml_and_the_testbed_are_one_mesh(mesh: Registry) -> None:
    nets = Nets()
    for given_ in WORLD.told:
        [found] = mesh.of(given_.host)
        assert found.kubernetes != given_.external
        ports = [(one.number, one.target or one.number) for one in found.ports if one.transport == "TCP"]
        assert ports == [*zip(given_.ports, given_.target_ports, strict=True)]
        if given_.cluster_ip:
            assert found.addresses == (given_.cluster_ip,)
        if given_.virtual_ip:
            assert found.virtual_ip == given_.virtual_ip
        if given_.hosts and not given_.resolved:
            assert [one.address for one in found.endpoints if one.ready] == [nets.pod(host) for host in given_.hosts]
            assert any(one.sidecar for one in found.endpoints) == given_.meshed
    assert not mesh.of(WORLD.external_name)


def test_the_records_of_the_zone_file_are_the_models(mesh: Registry) -> None:
    text = containers.files(WORLD.of(()), Nets(), containers.new_secrets(), ())["dns-coredns/cluster.zone"]
    written = {
        (f"{name}.cluster.local.", data)
        for name, data in re.findall(r"^((?!answer-)[\w-]+\.[\w-]+\.svc)\s+IN A\s+(\S+)", text, re.M)
    }
    of_services = {(one.name, one.data) for one in records.build(mesh) if one.rtype == "A" and one.name.count(".") == 5}
    names = {name for name, _ in written}
    assert written == {(name, data) for name, data in of_services if name in names}


def caller(mode: str) -> explain.Caller:
    return verbs.caller(Resources(), None, "shop", mode)


def told(mesh: Registry, target: str, mode: str) -> str:
    return "\n".join(explain.explain(mesh, *verbs.target(target), caller(mode)).lines)


@pytest.mark.parametrize(
    ("target", "mode", "said"),
    [
        ("web:80", "none", ["web.shop.svc.cluster.local. is answered by the cluster DNS: A 10.96.1.10",
                             "translated to one of 198.18.0.21:8080, 198.18.0.22:8080"]),
        ("web.shop:80", "1", ["web.shop.shop.svc.cluster.local. does not exist", "listener 0.0.0.0_80 takes it",
                                  "host web.shop.svc.cluster.local:80", "198.18.0.21:8080 (web-1, mutual"]),
        ("web:443", "1", ["listener 10.96.1.10_443 takes it", "outbound|443||web.shop.svc.cluster.local"]),
        ("legacy:80", "2-envoy", ["the sidecar's DNS proxy: A 10.96.1.20", "198.18.0.31:8080 (legacy-1, plain"]),
        ("legacy.shop:80", "2", ["legacy.shop.shop.svc.cluster.local. is answered by the sidecar's DNS "
                                           "proxy: CNAME legacy.shop., A 10.96.1.20"]),
        ("legacy.shop.:80", "2", ["legacy.shop. is answered by the sidecar's DNS proxy: A 10.96.1.20"]),
        ("legacy:80", "2", ["legacy.shop.svc.cluster.local. is answered by the sidecar's DNS proxy: A"]),
        ("api.example.com:80", "1", ["forwarded to the world's DNS", "virtual host api.example.com:80",
                                         "the sidecar resolves the name itself"]),
        ("api.example.com", "2", ["api.example.com.shop.svc.cluster.local. is answered by the sidecar's DNS "
                                            "proxy: CNAME api.example.com., A 240.240.0.31", "port 80"]),
        ("api.example.com.", "2-envoy", ["api.example.com. is answered by the sidecar's DNS proxy: A 240.240.0.31"]),
        ("absent.shop.svc.cluster.local.:80", "1", ["the lookup fails", "no address to connect to"]),
        ("web-headless:8443", "1", ["listener 198.18.0.21_8443 takes it", "very address that the client resolved"]),
        ("1.2.3.4:99", "2-envoy", ["nothing is looked up", "virtualOutbound itself takes", "PassthroughCluster"]),
        ("10.96.1.10:99", "none", ["has no port 99", "the connection is lost"]),
        # a Service in the namespace is called as the namespace is
        ("web.shop", "2", ["port 80\n", "port 443\n  listener 10.96.1.10_443 takes it"]),
        ("198-18-0-71.shop-headless", "1", ["virtual host shop-headless.shop.svc.cluster.local:8080"]),
        # addresses that no virtual host has
        ("198.18.0.31:8080", "1", ["table 8080 has no virtual host for 198.18.0.31, so it goes to Passthrough"]),
        ("240.240.0.31:80", "1", ["no virtual host for 240.240.0.31, so it goes to PassthroughCluster"]),
        ("240.240.0.31:80", "2", ["virtual host api.example.com:80 (Host: 240.240.0.31)"]),
        ("240.240.0.33:6000", "2", ["listener 240.240.0.33_6000 takes it"]),
        ("web.example.com:80", "2", ["A 240.240.0.10", "virtual host web.example.com:80"]),
        # what the sidecar's listeners do not see
        ("127.0.0.1:80", "1", ["stays inside the pod, where nothing is captured", "straight to 127.0.0.1:80"]),
        ("127.0.0.1:80", "none", ["straight to 127.0.0.1:80"]),
        ("[2001:db8::1]:80", "1", ["IPv6 is not captured", "straight to [2001:db8::1]:80"]),
        ("kube-dns.kube-system", "1", ["listener 10.96.0.10_53 takes it"]),
        ("kube-dns.kube-system", "2", ["port 53\n  whatever has this port is captured as DNS"]),
        ("1.2.3.4:15001", "1", ["port 15001 is the sidecar's own", "BlackHoleCluster"]),
    ],
)  # fmt: skip
def test_the_testbeds_own_names_are_explained(mesh: Registry, target: str, mode: str, said: list[str]) -> None:
    text = told(mesh, target, mode)
    for part in said:
        assert part in text


def test_udp_is_not_the_sidecars() -> None:
    log = document("Service", "v1", "shop", "log", spec={
        "clusterIP": "10.96.7.7", "ports": [{"name": "syslog", "port": 514, "protocol": "UDP"}]})  # fmt: skip
    assert "UDP is not captured" in told(build(log), "log", "1")
    assert "UDP is not captured" not in told(build(log), "log", "none")


def test_a_sidecar_resource_may_select_the_callers_pod() -> None:
    strict = {"workloadSelector": {"labels": {"app": "client"}}, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    scope = document("Sidecar", "networking.istio.io/v1", "shop", "s", spec=strict)
    mine, other = (document("Pod", "v1", "shop", name, labels={"app": name}) for name in ("client", "other"))
    given = reader.parse({"x.yaml": generators.text([scope, mine, other])})
    for pod, policy in (("shop/client", "REGISTRY_ONLY"), ("other", "ALLOW_ANY")):
        asking = verbs.caller(given, pod, None, None)
        assert policy in "\n".join(explain.explain(build(scope), "1.2.3.4", 99, asking).lines)


CAPTURED = {"proxy.istio.io/config": 'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "true"\n'}


CAPTURED = {"proxy.istio.io/config": 'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "true"\n'}


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({}, "TCP goes through the sidecar, DNS does not"),
        (CAPTURED, "with the agent's short names"),
        ({"sidecar.istio.io/inject": "false"}, "no sidecar"),
    ],
)
def test_a_caller_in_any_namespace_asks_as_its_annotations_say(notes: dict[str, str], said: str) -> None:
    """The search list is that of its namespace, whatever the testbed's is."""
    pod = document("Pod", "v1", "books", "page", annotations=notes)
    reviews = document("Service", "v1", "books", "reviews", spec={
        "clusterIP": "10.96.9.9", "ports": [{"name": "http", "port": 9080}]})  # fmt: skip
    given = reader.parse({"x.yaml": generators.text([pod, reviews])})
    model = verbs.build(given)
    asking = [verbs.caller(given, pod, None, None) for pod in ("page", None)]
    page, anybody = (explain.explain(model, "reviews", 9080, each).lines for each in asking)
    assert said in page[0]
    answered = "reviews.books.svc.cluster.local. is answered by the cluster DNS: A 10.96.9.9"
    assert anybody[1] == answered
    assert page[1] == answered.replace("cluster DNS", "sidecar's DNS proxy" if notes is CAPTURED else "cluster DNS")
    with pytest.raises(errors.InputError, match="there is no Pod nobody; name one of the YAML"):
        verbs.caller(given, "nobody", None, None)


@pytest.mark.parametrize(
    ("mode", "rule", "plain", "meshed"),
    [
        ("PERMISSIVE", "", "", "mutual TLS, its sidecar is PERMISSIVE)"),
        ("STRICT", "", "is STRICT: plain text is refused", "mutual TLS, its sidecar is STRICT)"),
        ("DISABLE", "", "", "plain text, its sidecar is DISABLE)"),
        ("STRICT", "DISABLE", "is STRICT: plain text is refused", "is STRICT, so the connection is refused)"),
        ("DISABLE", "ISTIO_MUTUAL", "", "is DISABLE, so the connection is refused)"),
    ],
)
def test_who_is_let_in_follows_from_what_both_sides_say(mode: str, rule: str, plain: str, meshed: str) -> None:
    pod = document("Pod", "v1", "shop", "p", labels={"security.istio.io/tlsMode": "istio"}, status={"podIP": "1.2.3.4"})
    more = [destination_rule("shop", "r", "web", trafficPolicy={"tls": {"mode": rule}})] if rule else []
    model = build(service(), piece({"addresses": ["1.2.3.4"]}), pod, peer("shop", "default", mode), *more)
    assert ("refused" in told(model, "web:80", "none")) == bool(plain)
    assert plain in told(model, "web:80", "none")
    assert meshed in told(model, "web:80", "1")


def test_a_wildcard_covers_names_at_any_depth_but_not_its_own() -> None:
    wild = entry("w", "*.example.net", resolution="NONE", addresses=["10.1.0.1"])
    model = build(wild)
    assert "a.b.example.net. is answered by the sidecar's DNS proxy: A 10.1.0.1" in told(
        model, "a.b.example.net.:5432", "2-envoy"
    )
    assert "forwarded to the world's DNS" in told(model, "example.net.:5432", "2-envoy")
    # The agent names the wildcard itself as the alias, a name that no stub resolver can take for the one it asked.
    assert "CNAME *.example.net., A 10.1.0.1" in told(model, "a.example.net:5432", "2")


def test_the_loser_of_a_port_is_told_where_its_bytes_go() -> None:
    model = build(entry("a", "db.example.com"), entry("b", "cache.example.com"))
    text = told(model, "db.example.com:5432", "1")
    assert "conflict on 0.0.0.0_5432: db.example.com loses to cache.example.com" in text
    assert "the bytes meant for db.example.com go to cache.example.com" in text
    assert re.findall(r"cluster (\S+):", text) == ["outbound|5432||cache.example.com"]
    right = told(model, "db.example.com:5432", "2")
    assert re.findall(r"cluster (\S+):", right) == ["outbound|5432||db.example.com"]
    assert "conflict" not in right


@pytest.mark.parametrize(
    ("target", "mode", "said"),
    [
        ("we b:80", "1", "'we b' is neither a host name nor an IP address"),
        ("web:0", "1", "web:0: '0' is not a port"),
        ("web:99999", "1", "is not a port"),
        ("web:http", "1", "is not a port"),
        ("2001:db8::1", "1", "name one: [2001:db8::1]:80"),
        ("nobody.example.com", "1", "so its ports are not known; name one: nobody.example.com:80"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(mesh: Registry, target: str, mode: str, said: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        told(mesh, target, mode)
    assert said in str(caught.value)


def test_a_target_is_a_host_and_perhaps_a_port() -> None:
    assert verbs.target("web.shop") == ("web.shop", None)
    assert verbs.target("web.shop:80") == ("web.shop", 80)
    assert verbs.target("fd00::1") == ("fd00::1", None)
    assert verbs.target("[fd00::1]") == ("fd00::1", None)
    assert verbs.target("[fd00::1]:80") == ("fd00::1", 80)


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs_ = parser.add_subparsers(dest="verb")
    verbs.validate_arguments(verbs_.add_parser("validate"))
    verbs.explain_arguments(verbs_.add_parser("explain"))
    return parser.parse_args(arguments)


def test_validate_counts_what_it_read_and_notes_lost_listeners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(generators.text([entry("a", "db.example.com"), entry("b", "cache.example.com")]))
    assert verbs.validate(options(["validate", str(file)])) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("valid: 2 ServiceEntry\n")
    assert "note: in mode 1, db.example.com loses listener 0.0.0.0_5432 to cache.example.com" in printed
    assert "in mode 2" not in printed


def test_what_an_envoy_filter_patches_is_said_not_to_be_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = {"configPatches": [{"applyTo": "LISTENER", "patch": {"operation": "REMOVE"}}]}
    filter_ = document("EnvoyFilter", "networking.istio.io/v1alpha3", "shop", "less", spec=patch)
    account = document("ServiceAccount", "v1", "shop", "client")
    (tmp_path / "mine.yaml").write_text(generators.text([filter_, account, service()]))
    said = "note: what EnvoyFilter shop/less patches is not seen here\n"
    for verb, arguments in ((verbs.validate, [str(tmp_path)]), (verbs.explain_verb, ["web", "--mesh", str(tmp_path)])):
        assert verb(options([verb.__name__.removesuffix("_verb"), *arguments])) == 0
        assert said in capsys.readouterr().out


def test_a_virtual_ip_that_istio_has_given_is_kept_and_is_nobody_elses() -> None:
    given = [entry("a", "a.example.com"), entry("b", "b.example.com"), entry("c", "c.example.com")]
    given[1]["status"] = {
        "addresses": [{"host": "b.example.com", "value": each} for each in ("240.240.0.1", "2001:2::1")]
    }
    read = reader.parse({"x.yaml": generators.text(given)})
    virtual = {one.host: one.virtual_ip for one in verbs.build(read).services}
    assert virtual["b.example.com"] == "240.240.0.1"
    assert len({*virtual.values()}) == 3


def test_explain_takes_a_folder_and_the_virtual_ips_that_were_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = entry("a", "db.example.com")
    arguments = ["explain", "db.example.com:5432", "--mode", "2", "--namespace", "shop", "--mesh", str(tmp_path)]
    for status, address in ([], "240.240.0.1"), ([{"host": "db.example.com", "value": "240.240.9.9"}], "240.240.9.9"):
        known["status"] = {"addresses": status}
        (tmp_path / "mine.yaml").write_text(generators.text([known]))
        assert verbs.explain_verb(options(arguments)) == 0
        said = capsys.readouterr().out
        assert f"listener {address}_5432" in said
        assert ("a new control plane would give" in said) == (not status)


@settings(max_examples=30, deadline=None)
@given(generators.meshes(), st.sampled_from(list(verbs.MODES)), st.sampled_from((None, 80, 443, 9999)))
def test_every_host_can_be_explained_in_every_mode(
    mesh: list[generators.Document], mode: str, port: int | None
) -> None:
    model = build(*mesh)
    for one in model.services:
        host = one.host.replace("*", "x")
        _, *ways = "\n".join(explain.explain(model, host, port, caller(mode)).lines).split("\n\n")
        assert ways
        assert all("\n  " in way for way in ways)
