"""Rendered rules: the text Istio would load, both spellings from one description, and what they do, in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshdns.interception import faults, iptables, nftables, routing, ruleset, verdict
from meshdns.interception.conventions import ISTIO
from meshdns.interception.options import Options
from meshdns.interception.refusal import Refusal
from meshdns.interception.ruleset import FAMILIES, Act
from meshdns.interception.verdict import Packet

INJECTED: dict[str, Any] = {
    "inbound_ports_include": "*",
    "inbound_ports_exclude": "15020,15021,15090",
    "outbound_ip_ranges_include": "*",
}  # what Istio's injected init container asks for
DNS = {**INJECTED, "redirect_dns": True, "capture_all_dns": True}


def table_of(text: str, table: str) -> list[str]:
    """The lines between `*table` and COMMIT."""
    found = re.search(rf"^\*{table}\n(.*?)^COMMIT$", text, re.MULTILINE | re.DOTALL)
    return found[1].splitlines() if found else []


def rendered(values: dict[str, Any], table: str, family: str = "ipv4") -> list[str]:
    options = Options(**values)
    return table_of(iptables.render(ruleset.build(options, "ipv6" if family == "ipv6" else "ipv4")), table)


def test_injected_rules_without_dns_capture() -> None:
    assert rendered(INJECTED, "nat") == [
        "-N ISTIO_INBOUND",
        "-N ISTIO_REDIRECT",
        "-N ISTIO_IN_REDIRECT",
        "-N ISTIO_OUTPUT",
        "-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN",
        "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
        "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        "-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN",
        "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN",
        "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
        "-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
        "-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
        "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
    ]
    assert rendered(INJECTED, "mangle") == rendered(INJECTED, "raw") == []


def test_the_defaults_capture_nothing_inbound_or_outbound() -> None:
    nat = rendered({}, "nat")
    assert "-A PREROUTING -p tcp -j ISTIO_INBOUND" not in nat
    assert not [line for line in nat if line.endswith("-j ISTIO_REDIRECT")]


def test_dns_capture_of_every_server() -> None:
    nat = rendered(DNS, "nat")
    self_call = "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp"
    assert nat[nat.index("-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN") + 1 :] == [
        f"{self_call} -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
        "-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        f"{self_call} ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT",
        "-A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS",
        "-A ISTIO_OUTPUT_DNS -p tcp --dport 53 -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -j REDIRECT --to-ports 15053",
        "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
        "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
    ]
    assert rendered(DNS, "raw") == [
        "-N ISTIO_OUTPUT_DNS",
        "-N ISTIO_INBOUND",
        "-A OUTPUT -j ISTIO_OUTPUT_DNS",
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1",
        "-A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2",
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j CT --zone 1",
        "-A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2",
        "-A PREROUTING -j ISTIO_INBOUND",
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2",
        "-A ISTIO_INBOUND -p udp --sport 53 -j CT --zone 1",
    ]


def test_dns_capture_of_listed_servers_stays_in_their_family() -> None:
    values = {**INJECTED, "redirect_dns": True, "dns_servers_v4": ("127.0.0.53",), "enable_ipv6": True}
    nat = rendered(values, "nat")
    assert "-A ISTIO_OUTPUT_DNS -p tcp --dport 53 -d 127.0.0.53/32 -j REDIRECT --to-ports 15053" in nat
    assert "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 127.0.0.53/32 -j REDIRECT --to-ports 15053" in nat
    raw = rendered(values, "raw")
    assert raw[-2:] == [
        "-A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 127.0.0.53/32 -j CT --zone 2",
        "-A ISTIO_INBOUND -p udp --sport 53 -s 127.0.0.53/32 -j CT --zone 1",
    ]
    assert not [line for line in rendered(values, "nat", "ipv6") if "ISTIO_OUTPUT_DNS" in line]
    assert [line for line in rendered(values, "raw", "ipv6") if "--uid-owner" in line]  # fault tproxy-v6-raw


def test_tproxy() -> None:
    values = {**INJECTED, "inbound_interception_mode": "TPROXY", "inbound_ports_exclude": "15020"}
    assert rendered(values, "mangle") == [
        "-N ISTIO_DIVERT",
        "-N ISTIO_TPROXY",
        "-N ISTIO_INBOUND",
        "-A ISTIO_DIVERT -j MARK --set-mark 1337",
        "-A ISTIO_DIVERT -j ACCEPT",
        "-A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        "-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN",
        "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
        "-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY",
        "-A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
        "-A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN",
        "-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338",
        "-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338",
        "-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
        "-I ISTIO_INBOUND 1 -p tcp -m mark --mark 1337 -j RETURN",
        "-I ISTIO_INBOUND 2 -p tcp -s 127.0.0.6/32 -i lo -j RETURN",
        "-I ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN",
    ]
    assert "-A PREROUTING -p tcp -j ISTIO_INBOUND" not in rendered(values, "nat")  # inbound is mangle's alone
    assert routing.render(ruleset.build(Options(**values), "ipv4")) == {
        "ipv4": "rule add fwmark 1337 lookup 133\nroute add local default dev lo table 133\n"
    }


def test_ipv6_has_its_own_addresses_and_only_where_enabled() -> None:
    assert ruleset.build(Options(**INJECTED), "ipv6").steps == ()
    values = {**INJECTED, "enable_ipv6": True}
    nat = rendered(values, "nat", "ipv6")
    assert "-A ISTIO_OUTPUT -o lo -s ::6/128 -j RETURN" in nat
    assert "-A ISTIO_OUTPUT -d ::1/128 -j RETURN" in nat
    rules = ruleset.build(Options(**values), *FAMILIES)
    assert routing.render(rules) == {"ipv4": "", "ipv6": "address add ::6/128 dev lo\n"}


def test_included_ports_silence_excluded_ones() -> None:
    nat = rendered({"inbound_ports_include": "80,443", "inbound_ports_exclude": "443"}, "nat")
    assert [line for line in nat if line.startswith("-A ISTIO_INBOUND")] == [
        "-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT",
        "-A ISTIO_INBOUND -p tcp --dport 443 -j ISTIO_IN_REDIRECT",
    ]


def test_excluded_ports_first_excluded_ranges_before_what_is_included() -> None:
    values = {
        "outbound_ports_exclude": "15020", "outbound_ports_include": "3306", "proxy_uid": "1337", "proxy_gid": "1337",
        "outbound_ip_ranges_include": "10.0.0.0/8,fd00::/16", "outbound_ip_ranges_exclude": "10.1.0.0/16",
    }  # fmt: skip
    output = [line.removeprefix("-A ISTIO_OUTPUT ") for line in rendered(values, "nat") if " ISTIO_OUTPUT -" in line]
    assert output[:2] == ["-p tcp --dport 15020 -j RETURN", "-p udp --dport 15020 -j RETURN"]
    assert output[-4:] == [
        "-d 127.0.0.1/32 -j RETURN",
        "-d 10.1.0.0/16 -j RETURN",
        "-p tcp --dport 3306 -j ISTIO_REDIRECT",
        "-d 10.0.0.0/8 -j ISTIO_REDIRECT",
    ]


def test_an_included_loopback_range_lifts_the_exemption() -> None:
    assert not [x for x in rendered({"outbound_ip_ranges_include": "127.0.0.0/8"}, "nat") if "! --uid-owner" in x]


def test_a_block_per_owner() -> None:
    output = rendered({"proxy_uid": "3,4", "proxy_gid": "1,2"}, "nat")
    owners = [line.split("-m owner ")[1] for line in output if "-m owner" in line]
    assert owners == [
        f"{no}--{kind}-owner {n} -j {target}"
        for kind, numbers in (("uid", (3, 4)), ("gid", (1, 2)))
        for n in numbers
        for no, target in (("", "ISTIO_IN_REDIRECT"), ("! ", "RETURN"), ("", "RETURN"))
    ]


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"owner_groups_include": "java,202"}, ["-m owner ! --gid-owner java -m owner ! --gid-owner 202 -j RETURN"]),
        ({"owner_groups_exclude": "1,2"}, ["-m owner --gid-owner 1 -j RETURN", "-m owner --gid-owner 2 -j RETURN"]),
        ({"owner_groups_include": ""}, ["-j RETURN"]),
    ],
)
def test_owner_groups_stand_behind_the_proxys_own(values: dict[str, Any], lines: list[str]) -> None:
    output = [x.removeprefix("-A ISTIO_OUTPUT ") for x in rendered(values, "nat") if x.startswith("-A ISTIO_OUTPUT ")]
    last = output.index("-m owner --gid-owner 1337 -j RETURN")
    assert output[last + 1 : last + 1 + len(lines)] == lines


def test_invalid_packets_are_dropped_in_mangle() -> None:
    assert rendered({"drop_invalid": True}, "mangle") == [
        "-N ISTIO_DROP",
        "-A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP",
        "-A ISTIO_DROP -j DROP",
    ]


def test_interfaces() -> None:
    values = {
        "exclude_interfaces": "net1",
        "reroute_virtual_interfaces": "eth1,eth2",
        "outbound_ip_ranges_include": "10.0.0.0/8",
    }
    nat = rendered(values, "nat")
    assert nat[4:8] == [
        "-A PREROUTING -i net1 -j RETURN",
        "-A OUTPUT -o net1 -j RETURN",
        "-I PREROUTING 1 -i eth1 -j RETURN",
        "-I PREROUTING 1 -i eth2 -j RETURN",
    ]
    assert nat[-3:] == [
        "-I PREROUTING 1 -i eth1 -d 10.0.0.0/8 -j ISTIO_REDIRECT",
        "-I PREROUTING 1 -i eth2 -d 10.0.0.0/8 -j ISTIO_REDIRECT",
        "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT",
    ]
    marks = rendered({**values, "inbound_interception_mode": "TPROXY"}, "mangle")
    assert "-A PREROUTING -i net1 -j RETURN" in marks
    assert "-A OUTPUT -o net1 -j RETURN" in marks


USERS = {
    "proxy_uid": "3,4", "proxy_gid": "1,2", "redirect_dns": True, "dns_servers_v4": ("127.0.0.53",),
    "outbound_ports_exclude": "15020", "outbound_ip_ranges_include": "9.9.0.0/16",
    "outbound_ip_ranges_exclude": "1.1.0.0/16",
}  # fmt: skip
GOLDEN: dict[str, dict[str, Any]] = {
    "injected.nftables": INJECTED,
    "every-server.nftables": {**DNS, "enable_ipv6": True},
    "servers-and-users.iptables": USERS,
    "servers-and-users.nftables": USERS,
    "tproxy.nftables": {
        **INJECTED, "inbound_interception_mode": "TPROXY", "inbound_ports_exclude": "15020", "enable_ipv6": True,
    },
}  # fmt: skip


def chains(text: str) -> dict[str, list[str]]:
    """Rules by "table chain", in the order in which they are met, without counters; both mechanisms' text."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in text.splitlines():
        match line.split():
            case [name] if name.startswith("*"):
                table = name[1:]
            case ["-A", chain, *words]:
                found.setdefault(f"{table} {chain}", []).append(" ".join(words))
            case ["add", "rule", "inet", name, chain, *words]:
                rule = " ".join(word for word in words if word != "counter")
                found.setdefault(f"{name.removeprefix('istio-proxy-')} {chain}", []).append(rule)
            case ["add", "chain", "inet", name, chain, "{", *words, ";", "}"]:
                found.setdefault(f"{name.removeprefix('istio-proxy-')} {chain}", []).append(" ".join(words))
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_the_rules_are_those_written_down(name: str) -> None:
    """Files written by hand after Istio's listings, not printed by what they are compared with."""
    options = Options(**GOLDEN[name])
    wanted: dict[str, list[str]] = {}
    chain = ""
    for line in (Path(__file__).parent / "golden" / name).read_text().splitlines():
        if line.startswith("  "):
            wanted.setdefault(chain, []).append(line.strip())
        else:
            chain = line
    mechanism = name.rpartition(".")[2]
    rules = ruleset.build(options, *FAMILIES)
    found = chains(nftables.render(rules) if mechanism == "nftables" else iptables.render(rules))
    assert found == wanted


def test_nft_spells_what_istio_spells() -> None:
    values = {
        **INJECTED, "redirect_dns": True, "dns_servers_v4": ("127.0.0.53",), "inbound_interception_mode": "TPROXY",
        "enable_ipv6": True,
    }  # fmt: skip
    lines = nftables.render(ruleset.build(Options(**values), *FAMILIES)).splitlines()
    nat, mangle, raw = (f"inet istio-proxy-{table}" for table in ("nat", "mangle", "raw"))
    for line in (
        f"add chain {nat} output {{ type nat hook output priority -100 ; }}",
        f"add chain {mangle} output {{ type route hook output priority -150 ; }}",
        f"add chain {raw} output {{ type filter hook output priority -300 ; }}",
        f"add rule {nat} istio-redirect meta l4proto tcp counter redirect to :15001",
        f"add rule {nat} output counter jump istio-output",
        f"add rule {nat} istio-output oifname lo ip saddr 127.0.0.6/32 counter return",
        f"add rule {nat} istio-output oifname lo ip6 saddr ::6/128 counter return",
        f"add rule {nat} istio-output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 "
        "tcp dport != { 53, 15008 } skuid 1337 counter jump istio-in-redirect",
        f"add rule {nat} istio-output oifname lo meta l4proto tcp tcp dport != 53 skuid != 1337 counter return",
        f"add rule {nat} istio-output skuid 1337 counter return",
        f"add rule {nat} istio-output-dns ip daddr 127.0.0.53/32 udp dport 53 counter redirect to :15053",
        f"add rule {raw} istio-output-dns udp dport 53 skuid 1337 counter ct zone set 1",
        f"add rule {mangle} istio-tproxy meta l4proto tcp ip daddr != 127.0.0.1/32 tproxy ip to :15006 "
        "meta mark set 1337 counter accept",
        f"add rule {mangle} istio-inbound meta l4proto tcp mark 1337 counter return",
    ):
        assert line in lines
    assert all(" counter " in line for line in lines if line.startswith("add rule"))
    assert lines.index(f"delete table {nat}") < lines.index(f"add chain {nat} istio-inbound")


def test_rules_of_one_family_leave_the_other_alone() -> None:
    values = {**DNS, "enable_ipv6": True, "inbound_interception_mode": "TPROXY"}
    for family, other in (("ipv4", "ip6 "), ("ipv6", "ip ")):
        rules = ruleset.build(Options(**values), "ipv6" if family == "ipv6" else "ipv4")
        lines = [line for line in nftables.render(rules).splitlines() if line.startswith("add rule")]
        base = [line for line in lines if line.split()[4] in ("output", "prerouting")]
        assert base
        assert all(f"meta nfproto {family}" in line or "daddr" in line for line in base)
        assert not [line for line in lines if f" {other}" in line.replace("tproxy ip to", "")]


def test_ours_first_and_names_only_when_asked_for() -> None:
    rules = ruleset.build(Options(**DNS), "ipv4")
    plain, asked = iptables.render(rules), iptables.render(rules, first=True, named=True)
    assert "-A OUTPUT -j ISTIO_OUTPUT" in plain
    assert "-I OUTPUT 1 -j ISTIO_OUTPUT" in asked
    assert "comment" not in plain
    names = re.findall(r'--comment "meshdns:(\w+)"', asked)
    assert sorted(names) == ["inbound_tcp", "redirect_dns_tcp", "redirect_dns_udp", "redirect_tcp"]
    assert re.findall(r'comment "meshdns:(\w+)"', nftables.render(rules, named=True)) != []
    assert "priority -101" in nftables.render(rules, first=True)
    assert "priority -101" not in nftables.render(rules)


def test_a_group_may_be_named_as_a_keyword_of_nft() -> None:
    assert 'skgid "list" counter return' in nftables.render(ruleset.build(Options(owner_groups_exclude="list"), "ipv4"))


def test_ours_first_keep_their_order() -> None:
    rules = ruleset.build(Options(exclude_interfaces="net1,net2"), "ipv4")
    lines = [line for line in iptables.render(rules, first=True).splitlines() if " OUTPUT " in line]
    assert lines == [
        "-I OUTPUT 1 -o net1 -j RETURN", "-I OUTPUT 2 -o net2 -j RETURN", "-I OUTPUT 3 -j ISTIO_OUTPUT",
    ]  # fmt: skip


@pytest.mark.parametrize("tproxy", [False, True])
def test_both_renderers_spell_every_rule(tproxy: bool) -> None:
    values = {**DNS, "drop_invalid": True, "exclude_interfaces": "net1", "reroute_virtual_interfaces": "eth1"}
    rules = ruleset.build(Options(**values), "ipv4", outbound_tproxy=tproxy)
    count = sum(len(chain) for table in rules.ordered.values() for chain in table.values())
    assert len(re.findall("^-[AI] ", iptables.render(rules), re.MULTILINE)) == count
    assert len(re.findall("^add rule ", nftables.render(rules), re.MULTILINE)) == count
    targets = {
        step.rule.verdict.chain
        for t in rules.ordered.values()
        for c in t.values()
        for step in c
        if step.rule.verdict.act is Act.JUMP
    }
    assert targets <= set(ruleset.OUR_CHAINS)


def test_removal_undoes_every_rule_in_the_kernels_chains() -> None:
    rules = ruleset.build(Options(**DNS, exclude_interfaces="net1"), "ipv4")
    removal = table_of(iptables.render_removal(rules), "nat")
    added = [x for x in table_of(iptables.render(rules), "nat") if re.match("-A (PREROUTING|OUTPUT) ", x)]
    assert removal[: len(added)] == [line.replace("-A", "-D", 1) for line in added]
    for chain in iptables.own_chains(rules, "nat"):
        assert removal.index(f"-F {chain}") < removal.index(f"-X {chain}")


def test_outbound_tproxy_needs_a_mark_of_its_own() -> None:
    with pytest.raises(Refusal, match="marks outbound TPROXY"):
        ruleset.build(Options(inbound_tproxy_mark=str(ISTIO.output_mark)), "ipv4", outbound_tproxy=True)


POD, VIP, RESOLVER = "198.18.7.2", "240.240.0.10", "10.96.0.10"
APP, PROXY = (1000, 1000), (1337, 1337)


def leaving(
    protocol: str, destination: str, port: int, owner: tuple[int, int], interface: str = "eth0", **more: Any
) -> Packet:
    source = more.pop("source", POD)
    return Packet("out", protocol, source, destination, 40000, port, interface, *owner, **more)


def arriving(protocol: str, port: int, **more: Any) -> Packet:
    return Packet("in", protocol, "198.18.7.9", POD, more.pop("source_port", 40000), port, **more)


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (leaving("tcp", VIP, 80, APP), "redirected to 15001"),
        (leaving("udp", VIP, 80, APP), "accepted"),
        (leaving("tcp", VIP, 80, PROXY), "accepted"),
        (leaving("tcp", VIP, 80, (1000, 1337)), "accepted"),
        (leaving("tcp", RESOLVER, 53, APP), "redirected to 15053"),
        (leaving("udp", RESOLVER, 53, APP), "redirected to 15053, zone 2"),
        (leaving("udp", RESOLVER, 53, PROXY), "accepted, zone 1"),
        (leaving("tcp", RESOLVER, 53, PROXY), "accepted"),
        (leaving("tcp", "127.0.0.1", 53, APP, "lo"), "redirected to 15053"),
        (leaving("tcp", "127.0.0.1", 8080, APP, "lo"), "accepted"),
        (leaving("tcp", POD, 8080, APP, "lo"), "accepted"),
        (leaving("tcp", POD, 8080, PROXY, "lo"), "redirected to 15006"),
        (leaving("tcp", POD, 15008, PROXY, "lo"), "accepted"),
        (leaving("tcp", POD, 53, PROXY, "lo"), "accepted"),
        (leaving("tcp", POD, 53, (1000, 1337), "lo"), "redirected to 15006"),  # fault gid-self-call-dns
        (leaving("tcp", POD, 8080, PROXY, "lo", source="127.0.0.6"), "accepted"),
        (arriving("tcp", 8080), "redirected to 15006"),
        (arriving("tcp", 15021), "accepted"),
        (arriving("tcp", 15008), "accepted"),
        (arriving("udp", 8080), "accepted"),
        (arriving("udp", 40000, source_port=53), "accepted, zone 1"),
        (leaving("tcp", VIP, 80, APP, state="ESTABLISHED"), "accepted"),
    ],
)
def test_verdicts_with_dns_capture(packet: Packet, said: str) -> None:
    assert str(verdict.judge(ruleset.build(Options(**DNS), "ipv4"), packet)) == said


@pytest.mark.parametrize(
    ("values", "packet", "said"),
    [
        # The first uid's loopback exemption shadows the second's self-call: fault second-uid-self-call.
        ({"proxy_uid": "3,4"}, leaving("tcp", POD, 8080, (3, 9), "lo"), "redirected to 15006"),
        ({"proxy_uid": "3,4"}, leaving("tcp", POD, 8080, (4, 9), "lo"), "accepted"),
        # Without DNS capture nobody reaches the gid's self-call: fault gid-self-call-dead.
        ({}, leaving("tcp", POD, 8080, (1000, 1337), "lo"), "accepted"),
        # An excluded range does not exempt a resolver, an excluded port does: fault excluded-range-dns.
        (
            {**DNS, "outbound_ip_ranges_exclude": "10.96.0.0/16"},
            leaving("udp", RESOLVER, 53, APP),
            "redirected to 15053, zone 2",
        ),
        ({**DNS, "outbound_ports_exclude": "53"}, leaving("udp", RESOLVER, 53, APP), "accepted, zone 2"),
        ({**INJECTED, "redirect_dns": True}, leaving("tcp", RESOLVER, 53, APP), "redirected to 15001"),
        ({**INJECTED, "owner_groups_include": "202"}, leaving("tcp", VIP, 80, APP), "accepted"),
        ({**INJECTED, "owner_groups_include": "202"}, leaving("tcp", VIP, 80, (1000, 202)), "redirected to 15001"),
        ({**INJECTED, "exclude_interfaces": "eth+"}, leaving("tcp", VIP, 80, APP), "accepted"),
        ({**INJECTED, "reroute_virtual_interfaces": "eth0"}, arriving("tcp", 8080), "redirected to 15001"),
        ({**INJECTED, "drop_invalid": True}, arriving("tcp", 8080, state="INVALID"), "dropped"),
        ({**INJECTED, "inbound_interception_mode": "TPROXY"}, arriving("tcp", 8080), "tproxied to 15006, mark 1337"),
        (
            {**INJECTED, "inbound_interception_mode": "TPROXY"},
            arriving("tcp", 8080, state="ESTABLISHED"),
            "accepted, mark 1337",
        ),
        (
            {**INJECTED, "inbound_interception_mode": "TPROXY"},
            leaving("tcp", "198.18.7.9", 40000, APP, state="ESTABLISHED", connection_mark=1337),
            "accepted, mark 1337",
        ),
    ],
)
def test_verdicts_of_single_options(values: dict[str, Any], packet: Packet, said: str) -> None:
    assert str(verdict.judge(ruleset.build(Options(**values), "ipv4"), packet)) == said


def test_outbound_tproxy_decides_as_redirect_does_and_keeps_the_address() -> None:
    rules = ruleset.build(Options(**DNS), "ipv4", outbound_tproxy=True)
    outcome = verdict.judge(rules, leaving("tcp", VIP, 80, APP))
    assert (str(outcome), outcome.destination) == ("tproxied to 15001, mark 1339", VIP)
    assert str(verdict.judge(rules, leaving("tcp", VIP, 80, PROXY))) == "accepted"
    assert str(verdict.judge(rules, leaving("udp", RESOLVER, 53, APP))) == "redirected to 15053, zone 2"
    assert str(verdict.judge(rules, leaving("tcp", RESOLVER, 53, APP))) == "redirected to 15053"
    assert str(verdict.judge(rules, leaving("tcp", POD, 8080, PROXY, "lo"))) == "redirected to 15006"
    older = leaving("tcp", VIP, 80, APP, state="ESTABLISHED")
    assert str(verdict.judge(rules, older)) == "accepted"  # a connection from before the rules goes on


def run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """The package on its own, as in a bare container."""
    folder = Path(ruleset.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-S", "-m", "interception", *arguments],
        cwd=folder, input=given, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_command_prints_for_a_loader_and_warns_beside() -> None:
    done = run("--mechanism", "iptables", "--config", "-", given='{"redirect_dns": true}')
    assert done.returncode == 0
    assert done.stdout == iptables.render(ruleset.build(Options(), "ipv4"))
    warning = "meshdns: warning: Istio's fault, followed: dns-capture-off-silently: redirect_dns without"
    assert done.stderr.startswith(warning)
    assert done.stderr.count("\n") == 1
    assert run("--mechanism", "nftables").stdout == nftables.render(ruleset.build(Options(), "ipv4"))


@pytest.mark.parametrize("name", ["-", ""])
def test_command_without_input_refuses_in_one_line(name: str) -> None:
    """Standard input closed, or the name from an unset variable: not Istio's defaults, and no traceback."""
    argv = [sys.executable, "-S", "-m", "interception", "--mechanism", "iptables", "--config", name]
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *argv]
    folder = Path(ruleset.__file__).parents[1]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "give a file that can be read" in done.stderr


def test_command_lists_the_faults() -> None:
    done = run("--faults")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [fault.id for fault in faults.FAULTS]


TWO_FAMILIES = {**DNS, "enable_ipv6": True}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, []),
        (INJECTED, []),
        ({"proxy_uid": "3,4", "proxy_gid": ""}, ["second-uid-self-call"]),
        ({"proxy_uid": "3,4", "outbound_ip_ranges_include": "127.0.0.0/8"}, []),
        ({"proxy_uid": "0"}, ["gid-self-call-dead"]),
        (DNS, ["gid-self-call-dns"]),
        ({"inbound_ports_include": "80", "inbound_ports_exclude": "81"}, ["inbound-exclude-ignored"]),
        ({"redirect_dns": True}, ["dns-capture-off-silently"]),
        ({**DNS, "outbound_ip_ranges_exclude": "10.0.0.0/8"}, ["gid-self-call-dns", "excluded-range-dns"]),
        ({**DNS, "outbound_ip_ranges_exclude": "fd00::/8"}, ["gid-self-call-dns"]),
        (
            {
                **INJECTED,
                "redirect_dns": True,
                "dns_servers_v4": ("10.0.0.10",),
                "outbound_ip_ranges_exclude": "10.1.0.0/16",
            },
            ["gid-self-call-dns"],
        ),
        ({"enable_ipv6": True, "outbound_ip_ranges_exclude": "::/0"}, ["exclude-wildcard-v6"]),
        (
            {**TWO_FAMILIES, "capture_all_dns": False, "dns_servers_v4": ("10.0.0.10",)},
            ["gid-self-call-dns", "tproxy-v6-raw"],
        ),
        (TWO_FAMILIES, ["gid-self-call-dns"]),
        ({"enable_ipv6": True, "outbound_ip_ranges_include": "127.0.0.0/8"}, ["loopback-range-both-families"]),
        ({"outbound_ip_ranges_include": "127.0.0.0/8"}, []),
    ],
)
def test_faults_are_told_where_the_options_bring_them_about(values: dict[str, Any], found: list[str]) -> None:
    assert [fault.id for fault in faults.brought_about(Options(**values))] == found


def test_command_tells_faults_beside_the_rules() -> None:
    done = run("--mechanism", "nftables", "--config", "-", given='{"proxy_uid": "3,4", "proxy_gid": ""}')
    assert done.stdout == nftables.render(ruleset.build(Options(proxy_uid="3,4", proxy_gid=""), "ipv4"))
    assert done.stderr.startswith("meshdns: warning: Istio's fault, followed: second-uid-self-call: with several")


def test_command_prints_what_the_programs_are_told() -> None:
    given = json.dumps({**INJECTED, "proxy_uid": "3,4", "outbound_ip_ranges_exclude": "10.0.0.0/8"})
    done = run("--mechanism", "ebpf", "--config", "-", given=given)
    told = json.loads(done.stdout)
    assert (told["proxy_uids"], told["inbound_captured"]) == ([3, 4], "1-15007,15009-15019,15022-15089,15091-65535")
    assert told["ranges"]["10.0.0.0/8"] == ["INCLUDED", "EXCLUDED"]


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        ([], '{"enable_ipv6": true}', "enable_ipv6 is true, allowed: false"),
        (["--apply"], "{}", "--apply is for rules, not for eBPF"),
        (["--outbound-tproxy"], "{}", "--outbound-tproxy is for rules, not for eBPF"),
        (["--family", "ipv6"], "{}", "--family ipv6 is not possible by eBPF"),
    ],
)
def test_command_refuses_what_the_programs_cannot_do(arguments: list[str], given: str, said: str) -> None:
    done = run("--mechanism", "ebpf", "--config", "-", *arguments, given=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_refuses_in_one_line() -> None:
    done = run("--mechanism", "nftables", "--config", "-", given='{"proxy_port": 0}')
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "meshdns: standard input: proxy_port is 0, allowed: a port number from 1 to 65535\n"


def test_command_prints_both_families_for_nft_only() -> None:
    both = '{"enable_ipv6": true}'
    assert "ip6 " in run("--mechanism", "nftables", "--config", "-", given=both).stdout
    assert "::1" not in run("--mechanism", "iptables", "--config", "-", given=both).stdout
    assert "::1" in run("--mechanism", "iptables", "--config", "-", "--family", "ipv6", given=both).stdout
    left_alone = run("--mechanism", "iptables", "--family", "ipv6")
    assert "-A" not in left_alone.stdout
    assert "enable_ipv6 is false" in left_alone.stderr
