"""Names, rules, proxy configuration: pure functions, checked against the documents they follow."""

from __future__ import annotations

import json
import re

import dns.message
import pytest
import yaml

from meshdns.core import resolver
from meshdns.core.world import LIVE, Nets
from meshdns.lab import parts, ports, rules
from meshdns.lab.compose import containers
from shipped import WORLD

NETS = Nets()
GROUPS: tuple[frozenset[str], ...] = (frozenset(), WORLD.groups - WORLD.live_groups, WORLD.groups | {LIVE})


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
    assert resolver.candidates(name, ndots, WORLD.search) == expected


def test_questions_are_recursive_queries_without_edns() -> None:
    [[a, aaaa]] = resolver.wire("web.shop.svc.cluster.local.", "A+AAAA", 5, WORLD.search)
    first, second = (dns.message.from_wire(bytes.fromhex(text)) for text in (a, aaaa))
    assert first.id == 0
    assert first.edns == -1
    assert str(first.question[0]) == "web.shop.svc.cluster.local. IN A"
    assert str(second.question[0]) == "web.shop.svc.cluster.local. IN AAAA"


def test_resolv_conf_holds_the_search_list_the_agent_uses() -> None:
    text = containers.files(WORLD.of(()), NETS, containers.new_secrets(), ())["resolv.conf"]
    assert f"search {' '.join(WORLD.search)}\n" in text
    assert f"nameserver {WORLD.dns_cluster_ip}\n" in text


def pod_rules(arm: str) -> list[str]:
    files = rules.files(WORLD, NETS, WORLD.arms[arm])
    return [line for name in ("node", "istio-iptables", "nftables") for line in files.get(name, "").splitlines()]


def test_the_plain_pod_has_no_interception_and_mode_2_is_mode_1_with_dns() -> None:
    assert rules.files(WORLD, NETS, WORLD.arms["plain"]).keys() == {"node", "routes", "apply"}
    assert pod_rules("plain") == pod_rules("plain-aa")
    [mode1], [mode2] = ([line for line in pod_rules(arm) if "pilot-agent" in line] for arm in ("mode1", "mode2-agent"))
    assert mode2 == f"{mode1} --redirect-dns"
    assert pod_rules("mode2-envoy")[-1] == mode2


def test_a_servers_own_counters_are_not_captured() -> None:
    for server in WORLD.meshed:
        assert str(ports.PORT_PAGES) in rules.options(WORLD, server).inbound_ports_exclude.split(","), server.pod


def test_our_nftables_stand_before_the_engines_name_server_rule() -> None:
    assert any("hook output priority -101" in line for line in pod_rules("nftables"))


@pytest.mark.parametrize("mechanism", ["iptables", "nftables", "tproxy", "ebpf"])
def test_every_mechanism_has_a_client_and_a_server_and_its_own_way_of_loading(mechanism: str) -> None:
    clients = [client for client in WORLD.clients if client.mechanism == mechanism and client.dns == "agent"]
    assert len(clients) == 1
    applied = rules.files(WORLD, NETS, clients[0])["apply"]
    loaded = {
        "iptables": "sh -e /rules/istio-iptables",
        "nftables": "nft -f",
        "tproxy": "policy-routes",
        "ebpf": "ebpf --wait",
    }
    assert loaded[mechanism] in applied
    servers = [server.mechanism for server in WORLD.meshed if server.group not in WORLD.live_groups]
    assert servers.count(mechanism) == (3 if mechanism == "iptables" else 1)


def test_endpoints_are_drawn_with_equal_probability() -> None:
    """1/3, then 1/2 of the rest, then all of the rest: as kube-proxy writes it."""
    lines = [
        line
        for line in pod_rules("plain")
        if f"-d {WORLD.backends['meshed'].cluster_ip}/32" in line and "--dport 80 " in line
    ]
    assert ["0.33333333" in lines[0], "0.50000000" in lines[1], "probability" in lines[2]] == [True, True, False]


@pytest.mark.parametrize("groups", GROUPS)
def test_every_file_is_rendered_without_a_placeholder_left(groups: frozenset[str]) -> None:
    there, keys = WORLD.of(groups), containers.new_secrets(live=LIVE in groups)
    files = containers.files(there, NETS, keys, groups)
    for path, text in files.items():
        assert path == "compose.yaml" or "$" not in re.sub(r"\$(TTL|ORIGIN)\b", "", text), path
        if path.endswith(".json"):
            json.loads(text)
    moved = containers.files(there, Nets("198.18.7", "198.19.7"), keys, groups)
    assert not any("198.18.0." in text or "198.19.0." in text for path, text in moved.items() if path != "world.json")


def test_a_pod_mounts_only_what_is_rendered_and_owns_a_namespace_that_others_join() -> None:
    for groups in GROUPS:
        files = containers.files(WORLD.of(groups), NETS, containers.new_secrets(live=LIVE in groups), groups)
        services, folders = yaml.safe_load(files["compose.yaml"])["services"], {path.split("/")[0] for path in files}
        folders |= {
            f"{parts.sidecar(pod)}-live" for pod in WORLD.injected if LIVE in groups
        }  # a live plane hands it out
        for name, service in services.items():
            for volume in service.get("volumes", []):
                if str(volume).startswith("${MESHDNS_STATE}/"):
                    assert volume.split("/")[1].split(":")[0] in folders, (name, volume)
            mode = service.get("network_mode", "none")
            assert mode == "none" or mode.removeprefix("service:") in services, name
            assert set(service.get("depends_on", ())) <= set(services), name
    assert {"client-ebpf", "web-tproxy"} <= set(services)


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
    assert said in Nets(pods, world).problem()
    assert bool(Nets(pods, world).problem()) == bool(said)
