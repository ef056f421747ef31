"""What is read, what is refused, and that every fault is named with its place."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import generators
from meshdns.core import errors
from meshdns.core.schema import Fault
from meshdns.istio import documents, reader
from meshdns.istio.resources import Protocol, Resolution, Resources

MESH = Path(__file__).parents[2] / "compose" / "worlds"

SERVICE = """apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.1.10
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
SLICE = """apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [198.18.0.21]}]
"""
ENTRY = """apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.example.com]
  resolution: DNS
  ports: [{number: 5432, name: tcp, protocol: TCP}]
"""
RULE = """apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets: [{name: v1, labels: {version: v1}}]
"""
VIRTUAL = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /a}}]
    route:
    - {destination: {host: web, subset: v1}, weight: 90}
    - {destination: {host: web}, weight: 10}
    retries: {attempts: 3, perTryTimeout: 500ms}
    timeout: 1m30s
    fault: {delay: {percentage: {value: 12.5}, fixedDelay: 2s}, abort: {percentage: {value: 30}, httpStatus: 503}}
"""
PEER = """apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  mtls: {mode: STRICT}
  portLevelMtls: {8080: {mode: DISABLE}}
"""
SIDECAR = """apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
PORTS = "[{name: http, port: 80, targetPort: 8080}]"
ALL = [SERVICE, SLICE, ENTRY, RULE, VIRTUAL, PEER, SIDECAR]
BLOCK = (
    ENTRY.replace("name: api", "name: two")
    .replace("api.e", "two.e")
    .replace("resolution: DNS", "resolution: NONE\n  addresses: [10.96.0.0/16]")
)
ADDRESSED = (
    ENTRY.replace("name: api", "name: one")
    .replace("api.e", "one.e")
    .replace("resolution: DNS", "resolution: NONE\n  addresses: [10.0.0.9]")
)
EVERYTHING = "---\n".join(ALL)


def parse(text: str) -> Resources:
    return reader.parse({"mesh.yaml": text})


def refused(text: str) -> str:
    with pytest.raises(errors.InputError) as caught:
        parse(text)
    return str(caught.value)


def test_a_sound_set_is_read_with_its_values() -> None:
    found = parse(EVERYTHING)
    assert found.services[0].ports[0].protocol is Protocol.HTTP
    assert found.entries[0].resolution is Resolution.DNS
    assert found.entries[0].location == "MESH_EXTERNAL"
    route = found.virtual_services[0].http[0]
    assert [(to.host, to.subset, to.weight) for to in route.destinations] == [
        ("web.shop.svc.cluster.local", "v1", 90), ("web.shop.svc.cluster.local", "", 10),
    ]  # fmt: skip
    assert route.timeout_ms == 90_000
    assert route.retries is not None
    assert route.delay is not None
    assert (route.delay.percent, route.delay.delay_ms) == (12.5, 2000)
    assert found.peers[0].ports == ((8080, "DISABLE"),)
    assert found.sidecars[0].policy == "REGISTRY_ONLY"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # the form
        ("kind: Sidecar", "kind: Gateway", "kind: the kind Gateway is not supported; supported: Service,"),
        ("kind: Sidecar", "kind: [1]", "1 entry (a list) is not text"),
        ("apiVersion: security.istio.io/v1", "apiVersion: security.istio.io/v9", "supported: security.istio.io/v1,"),
        ("name: default, ", "", "the field name is missing"),
        ("name: default,", "name: De_fault,", "'De_fault' is not a name"),
        ("{name: web, namespace: shop}\nspec:\n  clusterIP", "{name: web, annotations: {networking.istio.io/exportTo: "
         "x}}\nspec:\n  clusterIP", "Istio's annotations are not supported; remove it"),
        ("  clusterIP: 10", "  externalName: x\n  clusterIP: 10", "spec.externalName: this field is not supported; s"),
        ("clusterIP: 10.96.1.10", "clusterIP: 10.96.1.300", "'10.96.1.300' (text) is not an IP address"),
        ("  clusterIP: 10.96.1.10\n", "", "spec: clusterIP is missing; give an address"),
        ("clusterIP: 10", "type: NodePort\n  clusterIP: 10", "supported: ClusterIP"),
        ("clusterIP: 10", "clusterIP: 9.9.9.9\n  clusterIP: 10", "the key clusterIP stands here twice, first in line"),
        ("metadata: {name: default, namespace: shop}", "metadata: &x {name: default, namespace: *x}", "too deeply"),
        ("metadata: {name: default, namespace: shop}", "metadata: &x {name: default, namespace: [*x, *x]}",
         "aliases repeat more than 10000 values"),
        ("metadata: {name: default, namespace: shop}", "metadata: {<<: {name: default}}", "merge key << is"),
        ("mode: REGISTRY_ONLY", "mode: !mine x", "the YAML tag !mine is not supported"),
        # ports
        ("port: 80,", "port: 70000,", "spec.ports[0].port: 70000 (a number) is not in range; give 1 to 65535"),
        ("port: 80,", "port: true,", "true (a truth value) is not a whole number"),
        ("port: 80,", "port: '80',", "'80' (text) is not a whole number"),
        (PORTS, "[{name: http, port: 80}, {port: 81}]", "the port has no name"),
        (PORTS, "[{name: http, port: 80}, {name: http, port: 81}]", "name http is"),
        (PORTS, "[{name: http, port: 80}, {name: b, port: 80}]", "port 80/TCP is"),
        (PORTS, "[]", "spec.ports: the list is empty"),
        # ServiceEntry
        ("resolution: DNS", "resolution: DYNAMIC", "supported: NONE, STATIC, DNS, DNS_ROUND_ROBIN"),
        ("resolution: DNS", "resolution: STATIC", "resolution STATIC has no endpoints"),
        ("resolution: DNS", "resolution: STATIC\n  endpoints: [{address: x.example.com}]", "needs an IP address, not"),
        ("resolution: DNS", "resolution: NONE\n  endpoints: [{address: 1.2.3.4}]", "so no endpoint may be given"),
        ("resolution: DNS", "resolution: DNS_ROUND_ROBIN\n  endpoints: [{address: 1.2.3.4}, {address: 1.2.3.5}]",
         "takes one endpoint at most"),
        ("resolution: DNS", "resolution: DNS\n  addresses: [10.0.0.0/8]", "a CIDR block does not go with resolution D"),
        ("resolution: DNS", "resolution: DNS\n  addresses: [x, y]", "has 2 faults"),
        ("resolution: DNS", "resolution: DNS\n  addresses: [10.0.0.1/33]", "'10.0.0.1/33' is not a CIDR block"),
        ("resolution: DNS", "resolution: DNS\n  endpoints: [{address: 1.2.3.4, ports: {x: 1}}]", "the port name x is"),
        ("[api.example.com]", "['*.example.com']", "resolution DNS cannot look up the wildcard *.example.com"),
        ("[api.example.com]", "['*']", "is not a host name"),
        ("[api.example.com]", "['a*.example.com']", "is not a host name"),
        ("[api.example.com]", "[1.2.3.4]", "is not a host name"),
        ("[api.example.com]", "[a.example.com, b.example.com]", "several hosts share port 5432"),
        ("protocol: TCP", "protocol: QUIC", "the protocol QUIC is not supported; supported: HTTP"),
        # VirtualService
        ("weight: 10}", "weight: 20}", "route[0]: the weights of the 2 destinations add up to 110; make them 100"),
        ("hosts: [web]", "hosts: [wep]", "the host wep.shop.svc.cluster.local is not known; known: api.example.com,"),
        ("hosts: [web]", "hosts: [web.shop]", "the host web.shop is not known; write web.shop.svc.cluster.local"),
        ("{destination: {host: web}, ", "{destination: {host: wep}, ", "route[1].destination.host: the host wep.shop"),
        ("{destination: {host: web}, ", "{destination: {host: '*.web'}, ", "the host *.web is not known; known: api"),
        ("subset: v1}", "subset: v2}", "has no subset v2; known: v1"),
        ("{destination: {host: web}, ", "{destination: {host: web, port: {number: 81}}, ", "no port 81; use 80"),
        ("timeout: 1m30s", "timeout: 90", "90 (a number) is not text; put it in quotes"),
        ("timeout: 1m30s", "timeout: 1m 30s", "'1m 30s' (text) is not a duration"),
        ("timeout: 1m30s", "timeout: 1500us", "1500us is not a whole number of milliseconds above zero"),
        ("value: 30", "value: 130", "130 (a number) is not in range; give 0 to 100"),
        ("{prefix: /a}", "{prefix: /a, exact: /b}", "2 comparisons are given; give one of exact, prefix, regex"),
        ("{prefix: /a}", "{regex: '('}", "'(' is not a regular expression"),
        ("{prefix: /a}", "{regex: 'a(?=b)'}", "match[0].uri.regex: 'a(?=b)' uses the group (?=, which the proxy's RE2"),
        ("{prefix: /a}", '{exact: "/a\\n"}', "has a control character"),
        ("{uri: {prefix: /a}}", "{headers: {'': {exact: x}}}", "'' is not a header name"),
        ("{uri: {prefix: /a}}", "{headers: {'a b': {exact: x}}}", "headers.a b: 'a b' is not a header name"),
        ("{uri: {prefix: /a}}", "{headers: {'a:b': {exact: x}}}", "'a:b' is not a header name"),
        ("{uri: {prefix: /a}}", '{headers: {"a\\r\\n": {exact: x}}}', "is not a header name"),
        ("timeout: 1m30s", "timeout: 876001h", "876001h is longer than 100 years; give 876000h at most"),
        ("perTryTimeout: 500ms", "perTryTimeout: 0s", "0s is not a whole number of milliseconds above zero"),
        ("perTryTimeout: 500ms", "perTryTimeout: 500ms, retryOn: '5xx, any'", "'any' is not a condition for a retry"),
        ("perTryTimeout: 500ms", "perTryTimeout: 500ms, retryOn: '5xx,99'", "'99' is not a condition for a retry; s"),
        ("{uri: {prefix: /a}}", "{method: {exact: GET}}", "match[0].method: this field is not supported; supported: "),
        # policies
        ("host: web\n", "host: wep\n", "spec.host: the host wep.shop.svc.cluster.local is not known"),
        ("simple: RANDOM", "simple: FASTEST", "supported: UNSPECIFIED, LEAST_REQUEST"),
        ("{loadBalancer: {simple: RANDOM}}", "{}", "spec.trafficPolicy: the policy is empty"),
        ("{loadBalancer: {simple: RANDOM}}", "{tls: {mode: MUTUAL}}",
         "a certificate of your own in the sidecar's container; supported: DISABLE, SIMPLE, ISTIO_MUTUAL, which is"),
        ("{loadBalancer: {simple: RANDOM}}", "{portLevelSettings: [{port: {number: 81}, tls: {mode: SIMPLE}}]}",
         "web.shop.svc.cluster.local has no port 81; use 80"),
        ("{loadBalancer: {simple: RANDOM}}", "{loadBalancer: {consistentHash: {useSourceIp: false}}}",
         "nothing is hashed then"),
        ("{loadBalancer: {simple: RANDOM}}", "{loadBalancer: {consistentHash: {useSourceIp: true, maglev: "
         "{tableSize: 65536}}}}", "the table size 65536 is not a prime number"),
        *(("{loadBalancer: {simple: RANDOM}}", f"{{loadBalancer: {{consistentHash: {{{key}}}}}}}", said)
          for key, said in (
              ("httpHeaderName: ''", "consistentHash.httpHeaderName: '' is nothing that a request can have here"),
              ("httpHeaderName: 'a b'", "httpHeaderName: 'a b' is nothing that"),
              ("httpHeaderName: 'a:b'", "httpHeaderName: 'a:b' is nothing that"),
              ("httpQueryParameterName: ''", "httpQueryParameterName: '' is nothing that"),
              ('httpQueryParameterName: "a\\nb"', "httpQueryParameterName: 'a\\nb' is nothing that"),
              ("httpCookie: {name: ''}", "httpCookie.name: '' is nothing that"),
              ("httpCookie: {name: ':a'}", "httpCookie.name: ':a' is nothing that"),
              ("httpCookie: {name: a, path: '/;x'}", "httpCookie.path: '/;x' is nothing that"),
              ("httpCookie: {name: a, ttl: 876001h}", "httpCookie.ttl: 876001h is longer than 100 years"),
          )),
        ("{loadBalancer: {simple: RANDOM}}", f"{{tls: {{mode: SIMPLE, sni: {'a' * 256}}}}}",
         "spec.trafficPolicy.tls.sni: 'aaaaaaaaaaaaaaaaaaaa… (256 characters)' is not a server name"),
        ("{loadBalancer: {simple: RANDOM}}", '{tls: {mode: SIMPLE, sni: "a\\0"}}', "is not a server name; use"),
        ("{loadBalancer: {simple: RANDOM}}", "{outlierDetection: {consecutiveLocalOriginFailures: 3}}",
         "set splitExternalLocalOriginErrors to true"),
        ("  selector: {matchLabels: {app: web}}\n", "", "a mode per port needs a selector"),
        ("mode: STRICT", "mode: strict", "supported: UNSET, DISABLE, PERMISSIVE, STRICT"),
        ("{8080: {mode: DISABLE}}", "{0: {mode: DISABLE}}", "0 is not a port"),
        # EndpointSlice
        ("service-name: web}", "service-name: wep}", "the Service shop/wep is not there"),
        ("ports: [{name: http, port: 8080}]", "ports: [{name: https, port: 8080}]", "'https' is not one of Service"),
        ("[198.18.0.21]", "['2001:db8::1']", "2001:db8::1 is not an IPv4 address"),
        ("[198.18.0.21]", "[]", "endpoints[0].addresses: the list is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_reason(old: str, new: str, said: str) -> None:
    assert EVERYTHING.count(old) == 1, old
    message = refused(EVERYTHING.replace(old, new))
    assert said in message
    assert message.startswith(("mesh.yaml: document ", "the mesh configuration has"))
    assert "line " in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (SERVICE, "Service shop/web is there twice, first at mesh.yaml: document 1, line 1"),
        (SERVICE.replace("name: web", "name: shop"), "10.96.1.10 is the address of Service shop/web; give each"),
        (BLOCK.replace("5432", "80"), "10.96.0.0/16 overlaps 10.96.1.10, the address of Service shop/web on port 80"),
        (f"{ADDRESSED}---\n{ADDRESSED.replace('one', 'two')}",
         "spec.addresses: 10.0.0.9 is the address of ServiceEntry shop/one on port 5432; give each"),
        (f"{ADDRESSED}---\n{ADDRESSED.replace('one', 'two').replace('10.0.0.9', '10.0.0.0/28')}",
         "10.0.0.0/28 overlaps 10.0.0.9, the address of ServiceEntry shop/one on port 5432"),
        (f"{ENTRY}", "ServiceEntry shop/api is there twice"),
        (VIRTUAL.replace("name: web,", "name: again,"), "is already routed by VirtualService shop/again"),
        (RULE.replace("name: web,", "name: again,"), "DestinationRule shop/again also gives web.shop.svc.cluster"),
        (SIDECAR.replace("name: default", "name: again"), "Sidecar shop/again already applies to the whole namespace"),
        (PEER.replace("name: web,", "name: again,"), "PeerAuthentication shop/again already applies to the same workl"),
    ],
)  # fmt: skip
def test_what_contradicts_another_resource_is_refused(more: str, said: str) -> None:
    assert said in refused(f"{EVERYTHING}---\n{more}")


@pytest.mark.parametrize("account", ["Web", "a b", "a/b", "é"])
def test_a_service_account_must_be_a_name(account: str) -> None:
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {serviceAccountName: %s}\nstatus: {podIP: 198.18.0.1}\n"
    )
    assert "spec.serviceAccountName" in refused(pod % json.dumps(account, ensure_ascii=False))
    end = f"resolution: STATIC\n  endpoints: [{{address: 1.2.3.4, serviceAccount: {json.dumps(account)}}}]"
    assert "endpoints[0].serviceAccount" in refused(ENTRY.replace("resolution: DNS", end))


def test_a_cookie_may_live_as_long_as_the_session() -> None:
    hashed = "{loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}}}}"
    [rule] = parse(EVERYTHING.replace("{loadBalancer: {simple: RANDOM}}", hashed)).rules
    assert rule.policy.balancer == "consistent hash"


def test_a_timeout_of_zero_is_none() -> None:
    assert parse(EVERYTHING.replace("timeout: 1m30s", "timeout: 0s")).virtual_services[0].http[0].timeout_ms == 0


def test_a_fault_without_a_share_is_for_no_request() -> None:
    for share in ("", "percentage: {}, "):
        said = VIRTUAL.replace("percentage: {value: 12.5}, ", share).replace("percentage: {value: 30}, ", share)
        route = parse(EVERYTHING.replace(VIRTUAL, said)).virtual_services[0].http[0]
        assert route.delay
        assert route.abort
        assert (route.delay.percent, route.abort.percent) == (0, 0)


def test_addresses_that_share_no_port_do_not_overlap() -> None:
    assert len(parse(f"{EVERYTHING}---\n{BLOCK}").entries) == 2


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        EVERYTHING.replace("port: 80,", "port: 0,")
        .replace("mode: STRICT", "mode: x")
        .replace("kind: Sidecar", "kind: X")
    )
    lines = refused(text).splitlines()
    assert lines[0] == "the mesh configuration has 3 faults, so none of it is used:"
    assert [line.split("line ")[1].split(":")[0] for line in lines[1:]] == ["6", "50", "54"]


def test_a_place_is_file_document_line_and_path() -> None:
    said = refused(f"---\n{SERVICE}---\n{SLICE.replace('port: 8080', 'port: x')}")
    assert said == ("mesh.yaml: document 2, line 13: ports[0].port: 'x' (text) is not a whole number; give 1 to 65535")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1,\n", "mesh.yaml: document 1, line 2: not YAML"),
        (f"{SERVICE}---\n{{", "mesh.yaml: document 2, line"),
        ("a: é\nb: \x07", "mesh.yaml: line 2: not YAML: the character U+0007 may not stand here"),
        ("[" * 500, "not YAML"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("just text", "'just text' (text) is not a mapping"),
        ("{}", "the field kind is missing"),
        ("? [a]\n: 1", "a key must be text"),
    ],
)
def test_what_is_no_configuration_is_refused(text: str, said: str) -> None:
    assert said in refused(text)


def block(depth: int, *kinds: str) -> str:
    """Collections inside each other in block style, a line each, of these kinds in turn."""
    return "".join(f"{' ' * n}{kinds[n % len(kinds)]}\n" for n in range(depth)) + f"{' ' * depth}x\n"


NESTED: list[Callable[[int], str]] = [
    lambda depth: "[" * depth + "x" + "]" * depth,
    lambda depth: "{a: " * depth + "x" + "}" * depth,
    lambda depth: "[{a: " * (depth // 2) + "[" * (depth % 2) + "x" + "]" * (depth % 2) + "}]" * (depth // 2),
    lambda depth: "- " * depth + "x",
    lambda depth: block(depth, "a:"),
    lambda depth: block(depth, "-", "a:"),
    lambda depth: block(depth // 2, "a:") + "  " * depth + "- " * (depth - depth // 2 - 1) + "[x]",
]


@pytest.mark.parametrize("nested", NESTED)
def test_however_deep_a_text_nests_the_process_goes_on(nested: Callable[[int], str]) -> None:
    def found(depth: int) -> tuple[list[int], list[str]]:
        faults: list[Fault] = []
        read = documents.parse(f"--- 1\n---\n{nested(depth)}\n---\n3\n", "deep.yaml", faults)
        return [one.number for one in read], [f"{fault.place.document} {fault.fact}" for fault in faults]

    most = documents.MAX_DEPTH
    assert found(most) == ([1, 2, 3], [])
    assert found(10 * most) == ([1, 2, 3], [f"2 {documents.TOO_DEEP}"])
    assert found(3000) == ([1], [f"2 {documents.TOO_DEEP}"])  # nor is what follows looked for


@pytest.mark.parametrize("text", ["[" * 30_000, "{a: " * 30_000, "? " * 30_000, "a:\n- " + "[" * 30_000])
def test_what_nests_without_an_end_is_refused_in_a_line(text: str) -> None:
    assert re.fullmatch(r"mesh\.yaml: document 1, line [12]: nested too deeply to be a configuration", refused(text))


def test_aliases_of_aliases_nest_too() -> None:
    chain = "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 20_000))
    assert documents.TOO_DEEP in refused(f"- &a0 [x]\n{chain}")


def test_lists_and_empty_documents_are_read() -> None:
    items = [yaml.safe_load(one) for one in ALL]
    listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items[2:]}
    text = f"---\n# nothing\n---\n{yaml.safe_dump_all([*items[:2], listed])}---\n"
    assert parse(text) == parse(EVERYTHING)
    broken = text.replace("REGISTRY_ONLY", "NO")
    assert "items[4].spec.outboundTrafficPolicy.mode" in refused(broken)
    lost = refused(text.replace("subset: v1", "subset: v9"))
    assert "items[2].spec.http[0].route[0].destination.subset: web.shop.svc.cluster.local has no subset v9" in lost
    nobody = text.replace("host: web\n    subsets", "host: nobody\n    subsets")
    assert "items[1].spec.host: the host nobody.shop" in refused(nobody)


def test_what_an_api_server_adds_is_no_fault() -> None:
    stored = yaml.safe_load(SERVICE)
    stored["metadata"] |= {"uid": "x", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
                           "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}}  # fmt: skip
    stored["spec"] |= {"clusterIPs": ["10.96.1.10"], "type": "ClusterIP", "sessionAffinity": "None",
                       "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"]}  # fmt: skip
    found = parse(json.dumps({**stored, "status": {"loadBalancer": {}}}))
    assert found.services[0].cluster_ips == ("10.96.1.10",)
    assert found.services[0].meta.created_s == 1_767_225_600


def test_a_block_may_be_written_by_any_address_in_it() -> None:
    """As in the reference page of ServiceEntry."""
    entry = ENTRY.replace("resolution: DNS", "addresses: [192.192.192.192/24]\n  resolution: NONE")
    assert parse(entry).entries[0].addresses == ("192.192.192.0/24",)


def test_an_alias_is_its_value() -> None:
    text = SERVICE.replace("name: web", "name: &n web").replace("spec:", "spec:\n  selector: &l {app: *n}")
    assert parse(text + "---\n" + text.replace("web", "two").replace("10.96.1.10", "None")).services[0].selector == (
        ("app", "two"),
    )


def test_a_pod_may_say_that_it_was_injected() -> None:
    notes = {"sidecar.istio.io/status": "{}", "istio.io/rev": "default", "prometheus.io/port": "15020"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "annotations": notes}}
    assert parse(json.dumps(pod)).pods[0].meta.name == "a"
    notes["traffic.sidecar.istio.io/excludeOutboundPorts"] = "80"
    assert "excludeOutboundPorts: Istio's annotations are not supported" in refused(json.dumps(pod))


@pytest.mark.parametrize(
    ("name", "app", "number", "carries"),
    [
        ("http", "", 80, Protocol.HTTP), ("http-web", "", 80, Protocol.HTTP), ("httpx", "", 80, Protocol.AUTO),
        ("grpc-web-x", "", 80, Protocol.GRPC_WEB), ("tcp-db", "", 80, Protocol.TCP), ("db", "", 3306, Protocol.TCP),
        ("db", "", 5432, Protocol.AUTO), ("db", "https", 5432, Protocol.HTTPS), ("http", "tcp", 80, Protocol.TCP),
        ("x", "kubernetes.io/h2c", 80, Protocol.HTTP2), ("x", "kubernetes.io/wss", 80, Protocol.HTTPS),
        ("x", "example.com/own", 80, Protocol.AUTO),
    ],
)  # fmt: skip
def test_a_port_carries_what_its_name_or_app_protocol_says(name: str, app: str, number: int, carries: Protocol) -> None:
    port = {"name": name, "port": number} | ({"appProtocol": app} if app else {})
    document = {**yaml.safe_load(SERVICE), "spec": {"clusterIP": "None", "ports": [port]}}
    assert parse(yaml.safe_dump(document)).services[0].ports[0].protocol is carries


def test_scalars_are_typed_as_kubernetes_does_it() -> None:
    faults: list[Any] = []
    text = "[yes, on, 1:30, 0x1F, '1', 1.5, .inf, 2026-01-01, null, ~, true, 012]"
    [document] = documents.parse(text, "x", faults)
    assert not faults
    assert document.root == ["yes", "on", "1:30", 31, "1", 1.5, ".inf", "2026-01-01", None, None, True, "012"]


def test_folders_are_read_whole_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text(SERVICE)
    (tmp_path / "deep" / "b.yml").write_text(SLICE)
    (tmp_path / "readme.txt").write_text("{")
    found = reader.read([tmp_path, tmp_path / "a.yaml"])
    assert (len(found.services), len(found.slices)) == (1, 1)
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(errors.InputError) as caught:
        reader.read([tmp_path / "no.yaml", tmp_path, empty])
    assert all(said in str(caught.value) for said in ("no.yaml: cannot be read: No such", "not UTF-8", "no YAML file"))


@settings(max_examples=20, deadline=None)
@given(generators.meshes(), st.randoms(use_true_random=False))
def test_the_order_of_documents_changes_nothing(mesh: list[generators.Document], chance: random.Random) -> None:
    first = parse(generators.text(mesh))
    shuffled = list(mesh)
    chance.shuffle(shuffled)
    assert parse(generators.text(shuffled)) == first


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["*", "1.2.3.4", "5s"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_a_configuration_or_an_input_error(data: st.DataObject) -> None:
    mesh = [yaml.safe_load(one) for one in ALL]
    at = data.draw(st.sampled_from(mesh))
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            break
        at = at[key]
    at[key] = data.draw(_VALUES)
    try:
        parse(yaml.safe_dump_all(mesh, allow_unicode=True))
    except errors.InputError as error:
        assert "mesh.yaml" in str(error)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@, \n\t0", max_size=40))
def test_any_text_is_a_configuration_or_an_input_error(text: str) -> None:
    try:
        parse(text)
    except errors.InputError as error:
        assert "mesh.yaml" in str(error)
