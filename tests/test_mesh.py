"""Names, rules, proxy configuration: pure functions, checked against the documents they follow."""

from __future__ import annotations

import json
from pathlib import Path

import dns.message
import pytest

from harness import rendering
from harness.mesh import envoy, names, rules, topology

COMPOSE = Path(__file__).parents[1] / "compose"
NETS = topology.Nets()


@pytest.mark.parametrize(
    ("name", "ndots", "expected"),
    [
        ("web.shop.svc.cluster.local.", 5, ["web.shop.svc.cluster.local."]),
        ("web", 5, ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web."]),
        ("web", 1, ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local.", "web."]),
        ("web", 0, ["web.", "web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web.cluster.local."]),
        (
            "api.example.com", 5,
            ["api.example.com.shop.svc.cluster.local.", "api.example.com.svc.cluster.local.",
             "api.example.com.cluster.local.", "api.example.com."],
        ),
        (
            "api.example.com", 2,
            ["api.example.com.", "api.example.com.shop.svc.cluster.local.",
             "api.example.com.svc.cluster.local.", "api.example.com.cluster.local."],
        ),
    ],
)  # fmt: skip
def test_candidates_follow_resolv_conf(name: str, ndots: int, expected: list[str]) -> None:
    assert names.candidates(name, ndots) == expected


def test_questions_are_recursive_queries_without_edns() -> None:
    [[a, aaaa]] = names.wire("web.shop.svc.cluster.local.", "A+AAAA", 5)
    first, second = (dns.message.from_wire(bytes.fromhex(text)) for text in (a, aaaa))
    assert first.id == 0
    assert first.edns == -1
    assert str(first.question[0]) == "web.shop.svc.cluster.local. IN A"
    assert str(second.question[0]) == "web.shop.svc.cluster.local. IN AAAA"


def test_resolv_conf_holds_the_search_list_the_agent_uses() -> None:
    text = (COMPOSE / "dns" / "resolv.conf").read_text()
    assert f"search {' '.join(topology.SEARCH)}\n" in text
    assert f"nameserver {topology.DNS_CLUSTER_IP}\n" in text


def pod_rules(arm: str) -> list[str]:
    client = topology.ARMS[arm]
    pod = rules.PodRules(NETS, NETS.pod(client.host), client.sidecar, client.dns_proxy, cluster_ips=True)
    return rules.restore_input(pod).splitlines()


def test_the_plain_pod_has_no_interception_and_mode_1_leaves_dns_alone() -> None:
    assert not any("ISTIO" in line for line in pod_rules("plain"))
    assert pod_rules("plain") == pod_rules("plain-aa")
    assert not any("15053" in line for line in pod_rules("mode1"))


def test_mode_2_adds_dns_capture_and_conntrack_zones_to_mode_1() -> None:
    added = [line for line in pod_rules("mode2-envoy") if line not in pod_rules("mode1")]
    assert any("--dport 53" in line and "REDIRECT --to-ports 15053" in line for line in added)
    assert sum("CT --zone" in line for line in added) == 6


def test_loop_breakers_come_before_captures() -> None:
    """Istio's order: 127.0.0.6 first, the proxy's own traffic before DNS, DNS before the loopback exemption."""
    lines = [line for line in pod_rules("mode2-envoy") if line.startswith("-A ISTIO_OUTPUT ")]
    assert "-s 127.0.0.6/32 -j RETURN" in lines[0]
    position = {
        "owner": next(i for i, line in enumerate(lines) if line.endswith("--uid-owner 1337 -j RETURN")),
        "dns": next(i for i, line in enumerate(lines) if "15053" in line),
        "localhost": next(i for i, line in enumerate(lines) if "-d 127.0.0.1/32 -j RETURN" in line),
        "rest": next(i for i, line in enumerate(lines) if line.endswith("-j ISTIO_REDIRECT")),
    }
    assert sorted(position, key=position.__getitem__) == ["owner", "dns", "localhost", "rest"]


def test_endpoints_are_drawn_with_equal_probability() -> None:
    """1/3, then 1/2 of the rest, then all of the rest: as kube-proxy writes it."""
    lines = [
        line for line in pod_rules("plain") if f"-d {topology.WEB.cluster_ip}/32" in line and "--dport 80 " in line
    ]
    assert ["0.33333333" in lines[0], "0.50000000" in lines[1], "probability" in lines[2]] == [True, True, False]


def test_dns_listener_only_in_mode_2_and_both_loop_guards_everywhere() -> None:
    for dns_proxy in (False, True):
        config = envoy.bootstrap(NETS, "x", outbound=True, dns_proxy=dns_proxy)
        listeners = {one["name"]: one for one in config["static_resources"]["listeners"]}
        assert ("dns_udp" in listeners) == dns_proxy
        for name, port in (("virtual_outbound", 15001), ("virtual_inbound", 15006)):
            guard = listeners[name]["filter_chains"][0]
            assert guard["filter_chain_match"] == {"destination_port": port}
            assert guard["filters"][0]["typed_config"]["cluster"] == "blackhole"


def test_every_file_is_rendered_without_a_placeholder_left() -> None:
    files = rendering.files(COMPOSE, NETS, rendering.new_secrets())
    for path, text in files.items():
        assert "$pod_net" not in text, path
        assert "$world_net" not in text, path
        if path.endswith(".json"):
            json.loads(text)
    moved = rendering.files(COMPOSE, topology.Nets("198.18.7", "198.19.7"), rendering.new_secrets())
    assert not any("198.18.0." in text or "198.19.0." in text for text in moved.values())


@pytest.mark.parametrize(
    ("pods", "world", "said"),
    [
        ("10.0.0", "198.19.0", "outside 198.18.0.0/15"),
        ("198.18.0", "198.18.0", "are the same"),
        ("198.18.400", "198.19.0", "not a network"),
        ("198.18.7", "198.19.7", ""),
    ],
)
def test_networks_stay_in_the_benchmarking_range(pods: str, world: str, said: str) -> None:
    assert said in topology.Nets(pods, world).problem()
    assert bool(topology.Nets(pods, world).problem()) == bool(said)
