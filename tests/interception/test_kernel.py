"""Rules in a real namespace: loaded once however often, exchanged under traffic, removed without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import asking
import probe
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshdns.interception import iptables, loaded, nftables, routing, ruleset, verdict
from meshdns.interception.conventions import ALL
from meshdns.interception.kernel import Loader
from meshdns.interception.options import Options, from_json
from meshdns.interception.refusal import Refusal, Unavailable
from meshdns.interception.ruleset import FAMILIES, Act, Rule, RuleSet, Step, Verdict
from meshdns.interception.verdict import Packet

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
VIP = "240.240.0.10"
INJECTED: dict[str, Any] = {"inbound_ports_include": "*", "outbound_ip_ranges_include": "*"}
RICH: dict[str, Any] = {
    **INJECTED, "redirect_dns": True, "capture_all_dns": True, "enable_ipv6": True, "drop_invalid": True,
    "exclude_interfaces": "net1", "reroute_virtual_interfaces": "eth1", "owner_groups_exclude": "202,203",
    "inbound_interception_mode": "TPROXY", "outbound_ip_ranges_exclude": "10.0.0.0/8,fd00::/16",
}  # fmt: skip
MECHANISMS = ("iptables", "nftables")

# What a container engine and other people have in a namespace.
ENGINE = """*nat
:DOCKER_OUTPUT - [0:0]
-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT
-A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:4444
COMMIT
*filter
-A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT
COMMIT
"""
STRANGER = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT -p tcp -j ACCEPT\nCOMMIT\n"


@pytest.fixture
def namespace() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace of its own."""
    asking.needs_kernel()
    with fresh_namespace():
        yield


class fresh_namespace:  # noqa: N801  a context manager
    """The same for a block."""

    def __enter__(self) -> None:
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        probe.new_namespace()
        probe.call("ip", "link", "set", "lo", "up")

    def __exit__(self, *_: object) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.setns(self.home, probe.CLONE_NEWNET) == 0
        os.close(self.home)


def state() -> str:
    """All that could have been changed, without counters and routes that the kernel makes of addresses in its time."""
    commands = (
        "iptables-save", "ip6tables-save", "nft -s list ruleset", "ip rule", "ip -6 rule", "ip route show table all",
        "ip -6 route show table all", "ip address show dev lo",
    )  # fmt: skip
    texts = (probe.call(*command.split()) for command in commands)
    every = (line for text in texts for line in text.splitlines())
    lines = [line for line in every if not line.startswith("#") and "proto kernel" not in line]
    return re.sub(r"\[\d+:\d+\]|valid_lft.*", "", "\n".join(lines))


def build(values: dict[str, Any], **more: bool) -> RuleSet:
    return ruleset.build(Options(**values), *FAMILIES, **more)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("engine", [False, True])
def test_loaded_once_and_removed_without_a_trace(mechanism: str, engine: bool) -> None:
    if engine:
        probe.call("iptables-restore", "--noflush", given=ENGINE)
        probe.call("nft", "add table inet somebody; add chain inet somebody istio-output")
    before = state()
    for loader in (Loader(mechanism), Loader(mechanism, first=True, named=True)):
        rules = build(RICH, outbound_tproxy=True)
        assert loader.apply(rules).startswith("rules loaded")
        loaded = state()
        assert loaded != before
        assert "nothing changed" in loader.apply(rules)
        assert state() == loaded
        assert loader.remove(rules).startswith("rules removed")
        assert state() == before
        assert loader.remove(rules) == "nothing to remove"


# Rules of others that are those of RICH, or like them.
ALIKE = """*nat
-A PREROUTING -i net1 -j RETURN
-A PREROUTING -i eth1 -j RETURN
-A OUTPUT -o net1 -j RETURN
-A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT
COMMIT
*mangle
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark
-A OUTPUT -p tcp -m connmark --mark 0x5 -j CONNMARK --restore-mark
-A OUTPUT -p tcp -m tcp --dport 9 -j ACCEPT
COMMIT
"""


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("first", [False, True])
def test_rules_of_others_that_are_the_same_stay_where_they_are(first: bool) -> None:
    for tool in asking.TOOLS.values():
        probe.call(f"{tool}-restore", given=ALIKE)
    before = state()
    loader, rules = Loader("iptables", first=first), build(RICH)
    loader.apply(rules)
    assert "nothing changed" in loader.apply(rules)
    loader.remove(rules)
    assert state() == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("inbound", ["", "*"])
def test_marks_of_others_stay_when_rules_are_exchanged(inbound: str) -> None:
    others = "*mangle\n-A OUTPUT -p tcp -m connmark --mark 0x5 -j CONNMARK --restore-mark\nCOMMIT\n"
    probe.call("iptables-restore", given=others)
    loader, plain = Loader("iptables"), build(INJECTED)
    loader.apply(plain)
    wanted = loaded.saved(probe.call("iptables-save"))
    loader.remove(plain)
    loader.apply(build({"inbound_interception_mode": "TPROXY", "inbound_ports_include": inbound}))
    loader.apply(plain, replace=True)
    assert loaded.saved(probe.call("iptables-save")) == wanted


# Rules that people have in the kernel's chains, by table and chain. What a kernel lacks is left out.
FOREIGN = {
    "mangle PREROUTING": [
        "-i eth0 -j CONNMARK --set-xmark 0x80/0x80", "-m mark --mark 0x40/0x40 -j ACCEPT",
        "-p tcp --dport 9 -j TPROXY --on-port 9 --tproxy-mark 0x1/0x3",
        "-p udp -j TPROXY --on-port 9 --on-ip 127.0.0.1 --tproxy-mark 0x5", "-m rpfilter --invert -j DROP",
        "-m socket --transparent --nowildcard -j MARK --set-mark 1", "-m mac --mac-source 00:11:22:33:44:55",
        "! -i eth+ ! -p tcp ! -s 192.0.2.1 -j ACCEPT",
    ],
    "mangle OUTPUT": [
        "", "-g FOREIGN", "-j MARK --and-mark 0xf", "-j MARK --or-mark 3", "-j MARK --xor-mark 3",
        "-j MARK --set-mark 0x3/0xf", "-m connmark --mark 1/3 -j CONNMARK --restore-mark --nfmask 255 --ctmask 255",
        "-m owner --gid-owner 5-10 -j ACCEPT", "-m owner --socket-exists -j ACCEPT", "-f -j ACCEPT",
        "-s 10.0.0.0/255.0.255.0 -j ACCEPT", "-m comment --comment -j -j ACCEPT", "-m comment --comment '' -j ACCEPT",
        "-m comment --comment '!' -j ACCEPT", "-m comment --comment '\"it'\"'\"'s\\\" -j ISTIO_OUTPUT' -j ACCEPT",
        "-m comment --comment 'of two\nlines'", "-m comment --comment 'a\u2028line\x0cmore' -j ACCEPT",
        "-m comment --comment 'no UTF-8: \udce9' -j ACCEPT", "-m length --length 0:100 -j ACCEPT",
        "-m statistic --mode random --probability 0.5 -j MARK --set-mark 3", "-m quota --quota 500 -j ACCEPT",
        "-m hashlimit --hashlimit-above 5/sec --hashlimit-name x -j DROP", "-m u32 --u32 0>>22&0x3C@4>>8=1:5 -j DROP",
        "-m string --string '-j ISTIO_OUTPUT' --algo bm -j DROP", "-m string --hex-string '|ff00|' --algo bm -j DROP",
        "-m bpf --bytecode '4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0' -j DROP", "-j TEE --gateway 127.0.0.1",
        "-j NFLOG --nflog-prefix 'a b: -m'", "-j LOG --log-prefix '-j ISTIO_OUTPUT '", "-j CLASSIFY --set-class 1:1",
        "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", "-m policy --dir out --pol ipsec -j ACCEPT",
        "-m conntrack ! --ctstate NEW,ESTABLISHED --ctorigdst 10.0.0.0/8 -j ACCEPT", "-m state --state NEW -j ACCEPT",
        "-m recent --name foo --rcheck --seconds 30 -j ACCEPT", "-m ttl --ttl-gt 5 -j TTL --ttl-set 5",
        "-p tcp -m multiport --ports 1,2,3:5 -j ACCEPT", "-m addrtype --dst-type LOCAL -j DSCP --set-dscp 16",
        # Nearly ours.
        "-p tcp -m connmark --mark 1337/7 -j CONNMARK --restore-mark", "-p tcp -o lo -m mark --mark 1337/7 -j RETURN",
        "-p tcp -m mark --mark 1337 -j CONNMARK --restore-mark -m socket", "-o net1 -m socket -j RETURN",
        "-p tcp -o lo -m connmark --mark 1337 --sport 9 -j RETURN", "-o net1 -m comment --comment '!' -j RETURN",
    ],
    "raw OUTPUT": ["-p udp -j NOTRACK", "-p udp -j CT --notrack", "-p tcp --dport 21 -j CT --helper ftp"],
    "nat OUTPUT": [
        "-m mark --mark 1/1 -j ACCEPT", "-p icmp --icmp-type echo-request -j ACCEPT",
        "-p tcp -d 192.0.2.1 -j DNAT --to-destination 10.0.0.1-10.0.0.5:80-90 --random --persistent",
        "-p tcp -j REDIRECT --to-ports 80-90 --random", "-m iprange --src-range 192.0.2.1-192.0.2.5 -j ACCEPT",
        "-o net1 -m statistic --mode nth --every 3 --packet 0 -j RETURN",
    ],
    "nat POSTROUTING": ["-j MASQUERADE --random-fully"],
}  # fmt: skip


def load_foreign() -> int:
    """The rules, and a route for a mark of theirs, are there; how many."""
    probe.call("iptables", "-t", "mangle", "-N", "FOREIGN")
    probe.call("ip", "rule", "add", "fwmark", "5", "lookup", "77", "priority", "500")
    probe.call("ip", "route", "add", "local", "default", "dev", "lo", "table", "77")
    count = 0
    for place, rules in FOREIGN.items():
        table, chain = place.split()
        for rule in rules:
            with contextlib.suppress(RuntimeError):
                probe.call("iptables", "-t", table, "-A", chain, *shlex.split(rule))
                count += 1
    return count


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("ours_first", [False, True])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_whatever_rules_others_have_ours_are_known_and_theirs_stay(mechanism: str, ours_first: bool) -> None:
    loader, rules, others = Loader(mechanism), build(RICH), build(INJECTED)
    with fresh_namespace():
        assert load_foreign() > 50
        theirs = sorted(state().splitlines())  # which table came first is of no account
    if ours_first:
        loader.apply(rules)
    load_foreign()
    loader.apply(rules)
    assert "nothing changed" in loader.apply(rules)
    loader.apply(others, replace=True)
    assert "nothing changed" in loader.apply(others)
    loader.apply(rules, replace=True)
    loader.remove(rules)
    assert sorted(state().splitlines()) == theirs


@given(st.text() | st.lists(st.sampled_from([*" '\"\\!", *(w for r in FOREIGN.values() for w in " ".join(r).split())])))
def test_no_text_is_too_strange_to_be_another_rule(given_: str | list[str]) -> None:
    text = given_ if isinstance(given_, str) else " ".join(given_)
    assume("ISTIO" not in text)
    table = loaded.saved(f"*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT {text}\nCOMMIT\n")["nat"]
    rules = ruleset.build(Options(**INJECTED), "ipv4")
    assert loaded.missing({"nat": table}, rules, named=False) == set(rules.ordered)
    assert loaded.left_over({"nat": table}, rules, named=False) == {}
    loaded.nft_canonical(text)


HOOK = "type nat hook output priority dstnat - 1"  # as nft prints -101


@pytest.mark.parametrize(
    "line",
    [
        "type filter hook ingress device \"eth0\" priority 0; policy accept;", f"{HOOK}; policy drop;",
        "type nat hook postrouting priority srcnat; policy accept;", "ip saddr { 10.0.0.0/8, 192.0.2.1 } accept",
        "ip daddr != @names accept", "ip saddr 10.0.0.1-10.0.0.5 accept", "ip daddr & 255.0.255.0 == 10.0.0.0 accept",
        "ip6 saddr . tcp dport vmap @verdicts", "meta skgid { 5, 7 } accept", "meta skgid 5-10 accept",
        "ct state vmap { established : accept, invalid : drop }", "meta mark and 0x80 == 0x80 accept",
        "meta skgid \"no such group\" accept", "ct mark set ct mark and 0xffffff7f", 'comment "{ a, b } 0x5"',
    ],
)  # fmt: skip
def test_what_others_put_into_tables_of_our_names_is_not_ours(line: str) -> None:
    wanted = loaded.nft_wanted(ruleset.build(Options(**INJECTED), "ipv4"), "nat", first=True, named=False)

    def printed(*more: str) -> str:
        chains = ("\n\t\t".join([f"\tchain {name} {{", *lines, *more]) + "\n\t}\n" for name, lines in wanted)
        return f"table inet istio-proxy-nat {{\n{''.join(chains)}}}\n".replace(
            "nat output -101", f"{HOOK}; policy accept;"
        )

    assert loaded.nft_saved(printed()) == wanted
    assert loaded.nft_saved(printed(line)) != wanted


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("printed", [False, True])
def test_families_loaded_one_by_one_do_not_unload_each_other(mechanism: str, printed: bool) -> None:
    loader, before = Loader(mechanism), state()
    alone = {family: ruleset.build(Options(**RICH), family) for family in FAMILIES}
    for family, rules in alone.items():
        tool = ("nft", "-f", "-") if mechanism == "nftables" else (f"{asking.TOOLS[family]}-restore", "--noflush")
        if printed:
            text = nftables.render(rules) if mechanism == "nftables" else iptables.render(rules)
            probe.call("ip", routing.OPTION[family], "-batch", "-", given=routing.render(rules)[family])
            probe.call(*tool, given=text)
        else:
            loader.apply(rules)
    assert all("nothing changed" in loader.apply(rules) for rules in alone.values())
    if mechanism == "nftables":
        with pytest.raises(Refusal, match="inet istio-proxy-nat-ipv4"):
            loader.apply(build(RICH))
    for rules in alone.values():
        assert loader.remove(rules).startswith("rules removed")
    assert state() == before


@pytest.mark.parametrize(
    ("mesh", "seed"), [(mesh, seed) for mesh in ALL for seed in range(6 if mesh == "istio" else 2)]
)
def test_any_rules_are_known_again(mesh: str, seed: int) -> None:
    """What the tools print is recognised as what was loaded: by hand from the printed text, or by us."""
    asking.needs_kernel()
    options = from_json(asking.option_values(Random(seed), ALL[mesh]), "options")
    rules = ruleset.build(options, *FAMILIES)
    for mechanism in MECHANISMS:
        with fresh_namespace():
            before = state()
            for family, text in routing.render(rules).items():
                probe.call("ip", routing.OPTION[family], "-batch", "-", given=text)
            if mechanism == "nftables":
                probe.call("nft", "-f", "-", given=nftables.render(rules))
            for family in rules.families if mechanism == "iptables" else ():
                text = iptables.render(ruleset.build(options, family))
                probe.call(f"{asking.TOOLS[family]}-restore", "--noflush", given=text)
            assert "nothing changed" in Loader(mechanism).apply(rules)
            Loader(mechanism).remove(rules)
            assert state() == before


def lists(items: st.SearchStrategy[str], at_most: int = 4) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=at_most).map(",".join)


PORTS = st.integers(1, 65535)
IDS = st.integers(0, 2**32 - 2).map(str)
INTERFACE = st.from_regex(r"[A-Za-z0-9_.@:-]{1,14}[A-Za-z0-9_.@:+-]", fullmatch=True)
RANGE = st.ip_addresses().flatmap(lambda a: st.integers(0, a.max_prefixlen).map(lambda n: f"{a}/{n}"))
ANY_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("proxy_port", "inbound_capture_port", "inbound_tunnel_port"), PORTS),
        "proxy_uid": st.lists(IDS, min_size=1, max_size=4).map(",".join),
        "proxy_gid": lists(IDS),
        "inbound_interception_mode": st.sampled_from(["REDIRECT", "TPROXY"]),
        "inbound_tproxy_mark": st.integers(1, 2**32 - 1).map(str),
        "inbound_tproxy_route_table": st.integers(1, 2**32 - 1).map(str),
        "inbound_ports_include": st.just("*") | lists(PORTS.map(str), 20),
        "inbound_ports_exclude": lists(PORTS.map(str), 20),
        "outbound_ports_include": lists(PORTS.map(str), 20),
        "outbound_ports_exclude": lists(PORTS.map(str), 20),
        "outbound_ip_ranges_include": st.just("*") | lists(RANGE),
        "outbound_ip_ranges_exclude": lists(RANGE),
        "reroute_virtual_interfaces": lists(INTERFACE),
        "exclude_interfaces": lists(INTERFACE),
        "owner_groups_include": st.just("*") | lists(IDS, 64),
        "owner_groups_exclude": lists(IDS),
        "host_ipv4_loopback_cidr": st.integers(8, 32).map(lambda n: f"127.0.0.1/{n}"),
        **{key: st.booleans() for key in ("redirect_dns", "capture_all_dns", "drop_invalid", "enable_ipv6")},
        "dns_servers_v4": st.lists(st.ip_addresses(v=4).map(str), max_size=3),
        "dns_servers_v6": st.lists(st.ip_addresses(v=6).map(str), max_size=3),
    },
)  # fmt: skip


@pytest.mark.usefixtures("namespace")
def test_the_tools_take_whatever_is_printed() -> None:
    @settings(max_examples=60, deadline=None)
    @given(ANY_OPTIONS, st.booleans(), st.booleans())
    def taken(values: dict[str, Any], named: bool, outbound_tproxy: bool) -> None:
        try:
            options = from_json(values, "options")
            rules = ruleset.build(options, *FAMILIES, outbound_tproxy=outbound_tproxy)
        except Refusal:
            assume(False)
        probe.call("nft", "-c", "-f", "-", given=nftables.render(rules, named=named))
        for family in rules.families:
            one = ruleset.build(options, family, outbound_tproxy=outbound_tproxy)
            text = iptables.render(one, first=named, named=named)
            probe.call(f"{asking.TOOLS[family]}-restore", "--noflush", "--test", given=text)
            probe.call("nft", "-c", "-f", "-", given=nftables.render(one, first=named))

    taken()


@pytest.mark.usefixtures("namespace")
def test_the_printed_removal_removes_what_was_printed() -> None:
    rules = ruleset.build(Options(**{**RICH, "enable_ipv6": False}), "ipv4")
    probe.call("iptables-restore", "--noflush", given=ENGINE)
    before = probe.call("iptables-save", "-t", "nat")
    probe.call("iptables-restore", "--noflush", given=iptables.render(rules))
    probe.call("iptables-restore", "--noflush", given=iptables.render_removal(rules))
    assert [x for x in probe.call("iptables-save", "-t", "nat").splitlines() if x[0] == "-"] == [
        x for x in before.splitlines() if x[0] == "-"
    ]
    empty = state()
    for text in (nftables.render(rules), nftables.render(rules), nftables.render_removal(rules)):
        probe.call("nft", "-f", "-", given=text)
    assert state() == empty


@pytest.mark.usefixtures("namespace")
def test_loading_the_printed_text_twice_doubles_nothing() -> None:
    text = iptables.render(build(INJECTED))
    probe.call("iptables-restore", "--noflush", given=text)
    once = state()
    with pytest.raises(RuntimeError):
        probe.call("iptables-restore", "--noflush", given=text)
    assert state() == once


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_rules_of_others_with_our_names_are_left_alone(mechanism: str) -> None:
    if mechanism == "iptables":
        probe.call("iptables-restore", "--noflush", given=STRANGER)
    else:
        probe.call("nft", "add table inet istio-proxy-nat; add chain inet istio-proxy-nat istio-output")
    before = state()
    rules = build(INJECTED)
    with pytest.raises(Refusal, match=r"(ISTIO_OUTPUT|inet istio-proxy-nat)\); give --replace") as one:
        Loader(mechanism).apply(rules)
    assert one.value.exit_code == 2
    with pytest.raises(Refusal, match="the rules loaded are not these"):
        Loader(mechanism).remove(rules)
    assert state() == before
    assert Loader(mechanism).apply(rules, replace=True).startswith("rules loaded")
    assert "nothing changed" in Loader(mechanism).apply(rules)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_other_options_are_exchanged_only_when_asked_and_completely(mechanism: str) -> None:
    loader = Loader(mechanism)
    old, new = build({**RICH, "enable_ipv6": False}), build(INJECTED)
    with fresh_namespace():
        loader.apply(new)
        wanted = state()
    loader.apply(old)
    with pytest.raises(Refusal, match="--replace"):
        loader.apply(new)
    loader.apply(new, replace=True)
    assert state() == wanted


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_another_meshs_rules_are_exchanged_only_when_asked_and_completely(mechanism: str) -> None:
    """A pod is in one mesh; rules of two would both redirect."""
    loader, before = Loader(mechanism), state()
    for mesh in (*ALL, "istio"):
        dns = {} if "redirect_dns" in ALL[mesh].lacks else {"redirect_dns": True}
        rules = ruleset.build(Options.of(mesh, **ALL[mesh].injected(), **dns), *FAMILIES)
        with fresh_namespace():
            loader.apply(rules)
            wanted = sorted(state().splitlines())
        if mesh != "istio":
            with pytest.raises(Refusal, match=r"other rules have our names .*; give --replace"):
                loader.apply(rules)
        loader.apply(rules, replace=True)
        assert "nothing changed" in loader.apply(rules)
        assert sorted(state().splitlines()) == wanted  # base chains may stand in another order
    loader.remove(rules)
    assert state() == before


# Loads the first tables of what it is given, or the first ones of IPv6 after all of IPv4; then its caller is killed.
KILLS = """#!/bin/sh
awk '{{ print }} /^COMMIT/ && ++n == {tables} {{ exit }}' | {tool} "$@" && kill -9 $PPID
"""


def killed_after(tables: int, tool: str, folder: Path, *arguments: str) -> None:
    """The command dies when the tool has loaded so many tables."""
    real = shutil.which(tool)
    wrapper = folder / tool
    wrapper.write_text(KILLS.format(tables=tables, tool=real))
    wrapper.chmod(0o755)
    done = command("iptables", *arguments, path=f"{folder}:{os.environ['PATH']}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    wrapper.unlink()


def command(mechanism: str, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "interception", "--mechanism", mechanism, "--apply", *arguments]
    folder = Path(ruleset.__file__).parents[1]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("tool", ["iptables-restore", "ip6tables-restore"])
@pytest.mark.parametrize("tables", [1, 2])
def test_what_a_killed_loader_left_is_completed_or_removed(tool: str, tables: int, tmp_path: Path) -> None:
    values = {**INJECTED, "redirect_dns": True, "capture_all_dns": True, "enable_ipv6": True, "drop_invalid": True}
    options = tmp_path / "options.json"
    options.write_text(json.dumps(values))
    config = ("--config", str(options))
    # Not ours, though one of the rules to come is the same.
    probe.call("iptables-restore", "--noflush", given="*nat\n-A PREROUTING -i net1 -j RETURN\nCOMMIT\n")
    before = state()
    assert command("iptables", *config).returncode == 0
    whole = state()
    save = tool.replace("restore", "save")

    assert command("iptables", *config, "--remove").returncode == 0
    assert state() == before
    killed_after(tables, tool, tmp_path, *config)
    assert "CT --zone" in probe.call(save)
    assert "REDIRECT" not in probe.call(save)  # nothing is redirected before its zones are there
    assert command("iptables", *config).stderr.splitlines()[-1] == "meshdns: rules loaded: iptables, ipv4, ipv6"
    assert state() == whole
    killed_after(tables, tool, tmp_path, *config, "--remove")
    assert "CT --zone" in probe.call(save) or tables == 2
    assert "REDIRECT" not in probe.call(save)
    assert command("iptables", *config, "--remove").returncode == 0
    assert state() == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_loaders_at_the_same_time_do_not_undo_each_other(mechanism: str, tmp_path: Path) -> None:
    options = tmp_path / "options.json"
    options.write_text(json.dumps({**INJECTED, "inbound_interception_mode": "TPROXY"}))
    argv = [sys.executable, "-m", "interception", "--mechanism", mechanism, "--apply", "--config", str(options)]
    folder = Path(ruleset.__file__).parents[1]
    with contextlib.ExitStack() as open_ones:
        start = [subprocess.Popen(argv, cwd=folder, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        said = sorted(open_ones.enter_context(one).communicate()[1].splitlines()[-1] for one in start)
    already, now = "the rules are loaded already: nothing changed", f"rules loaded: {mechanism}, ipv4"
    assert said == [f"meshdns: {words}" for words in sorted([already, already, already, now])]
    assert "nothing changed" in command(mechanism, "--config", str(options)).stderr


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_refused_leaves_the_state_as_it_was(mechanism: str) -> None:
    loader = Loader(mechanism)
    probe.call("iptables-restore", "--noflush", given=ENGINE)
    loader.apply(build(INJECTED))
    before = state()
    rich = build({**RICH, "enable_ipv6": False})
    # nat is the second table: what mangle has been given by then must go again.
    broken = Step("nat", "ISTIO_REDIRECT", Rule((), Verdict(Act.REDIRECT, port=70000)), families=rich.families)
    with pytest.raises(Unavailable, match="nothing was changed") as one:
        loader.apply(RuleSet(rich.families, (*rich.steps, broken), rich.mark_routes), replace=True)
    assert one.value.exit_code == 3
    assert state() == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_routes_that_are_refused_leave_nothing_behind(mechanism: str) -> None:
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    before = state()
    with pytest.raises(Unavailable, match=r"nothing was changed.*IPv6 on lo"):
        Loader(mechanism).apply(build(RICH))
    assert state() == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_unknown_group_is_named(mechanism: str) -> None:
    before = state()
    with pytest.raises(Refusal, match="no-such-group"):
        Loader(mechanism).apply(build({"owner_groups_exclude": "no-such-group"}))
    assert state() == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_missing_tool_is_named(mechanism: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=f"no such program; install the package {mechanism}"):
        Loader(mechanism).apply(build(INJECTED))


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_command_without_permission(mechanism: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv: apt-get install util-linux")
    folder = Path(ruleset.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.argv[1:] = ['--mechanism', {mechanism!r}, '--apply']"
    started = f"{code}; from interception.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", started],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "this needs NET_ADMIN" in done.stderr


@pytest.mark.usefixtures("namespace")
def test_the_command_loads_and_removes(tmp_path: Path) -> None:
    folder = Path(ruleset.__file__).parents[1]
    before = state()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "interception", "--mechanism", "nftables", "--apply", *arguments]
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)

    assert run().stderr == "meshdns: rules loaded: nftables, ipv4\n"
    assert "istio-proxy-nat" in state()
    other = tmp_path / "options.json"
    other.write_text('{"inbound_ports_include": "*"}')
    assert run("--config", str(other)).returncode == 2
    assert run("--config", str(other), "--replace").returncode == 0
    assert run("--config", str(other), "--remove").returncode == 0
    assert state() == before


class Proxy(threading.Thread):
    """Listens as a sidecar does, echoes, and says of each connection where it wanted to go."""

    def __init__(self, port: int, transparent: bool = False, original: bool = True) -> None:
        super().__init__(daemon=True)
        self.original = original
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if transparent:
            self.listener.setsockopt(socket.IPPROTO_IP, probe.IP_TRANSPARENT, 1)
        self.listener.bind(("0.0.0.0", port))
        self.listener.listen(64)
        self.start()

    def run(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(one,), daemon=True).start()

    def _echo(self, one: socket.socket) -> None:
        with one:
            address, port = one.getsockname()
            if self.original:
                port, packed = struct.unpack("!2xH4s8x", one.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
                address = socket.inet_ntoa(packed)
            one.sendall(f"{address}:{port}\n".encode())
            while data := one.recv(65536):
                one.sendall(data)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def greeting(one: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        got = one.recv(1)
        assert got, "closed before a word"
        line += got
    return line.decode().strip()


def wanted(address: str, port: int) -> str:
    """Where the one who answers says that we wanted to go."""
    with socket.create_connection((address, port), timeout=5) as one:
        return greeting(one)


def virtual_route() -> None:
    """An interface by which the virtual address would leave; nobody is there."""
    probe.call("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for name in ("eth0", "far0"):  # its routes would come when they please
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    lines = (
        "link set eth0 up\nlink set far0 up\naddress add 198.18.7.2/24 dev eth0\nroute add 240.240.0.0/16 dev eth0\n"
    )
    probe.call("ip", "-batch", "-", given=lines)


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_connection_is_lost_while_rules_are_exchanged(mechanism: str) -> None:
    virtual_route()
    loader = Loader(mechanism)
    rule_sets = [build({**INJECTED, "outbound_ports_exclude": port}) for port in ("7777", "7778,7779")]
    loader.apply(rule_sets[0])
    stop = threading.Event()
    answers: list[str] = []
    problems: list[BaseException] = []

    def transfer() -> None:
        try:
            with socket.create_connection((VIP, 80), timeout=5) as one:
                assert greeting(one) == f"{VIP}:80"
                number = 0
                while not stop.wait(0.001):  # the loader needs a processor too
                    block = number.to_bytes(4, "big") * 4096
                    one.sendall(block)
                    back = b""
                    while len(back) < len(block):
                        back += one.recv(len(block) - len(back))
                    assert back == block
                    number += 1
        except BaseException as problem:  # noqa: BLE001  told in the main thread
            problems.append(problem)

    def connect() -> None:
        try:
            while not stop.wait(0.001):
                answers.append(wanted(VIP, 80))
        except BaseException as problem:  # noqa: BLE001
            problems.append(problem)

    with Proxy(15001):
        threads = [threading.Thread(target=work) for work in (transfer, connect)]
        for thread in threads:
            thread.start()
        for count in range(50):
            loader.apply(rule_sets[(count + 1) % 2], replace=True)
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert len(answers) > 50
    assert set(answers) == {f"{VIP}:80"}


def answers(rules: RuleSet, mechanism: str, owner: int) -> list[bytes]:
    """What comes to the DNS proxy when `owner` asks from the port that an application has just asked from."""
    Loader(mechanism).apply(rules)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as proxy:
        proxy.bind(("127.0.0.1", 15053))
        proxy.settimeout(0.2)
        for uid, question in ((1000, b"application"), (owner, b"again")):
            packet = {"protocol": "udp", "destination": "240.240.0.53", "uid": uid, "gid": uid}
            with probe.open_socket(packet) as asking_one:
                asking_one.bind(("198.18.7.2", 5555))
                asking_one.sendto(question, ("240.240.0.53", 53))
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(proxy.recv(100))
    return found


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_zones_keep_the_proxys_queries_from_coming_back_to_it(mechanism: str) -> None:
    virtual_route()
    rules = build({**INJECTED, "redirect_dns": True, "capture_all_dns": True})
    assert answers(rules, mechanism, 1000) == [b"application", b"again"]
    with fresh_namespace():
        virtual_route()
        assert answers(rules, mechanism, 1337) == [b"application"]
    with fresh_namespace():  # without the zones they do come back: what this shows is the zones' doing
        virtual_route()
        without = RuleSet(rules.families, tuple(step for step in rules.steps if step.table != "raw"))
        assert answers(without, mechanism, 1337) == [b"application", b"again"]


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("drop", [False, True])
def test_segments_of_no_connection_are_dropped_when_asked(mechanism: str, drop: bool) -> None:
    Loader(mechanism).apply(build({**INJECTED, "drop_invalid": drop}))
    Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").write_text("0")  # a segment out of nowhere is invalid
    acknowledgement = struct.pack("!HHIIBBHHH", 40000, 8080, 1, 1, 5 << 4, 0x10, 1024, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as out:
        out.sendto(acknowledgement, ("127.0.0.1", 0))
    named = probe.nftables_counters() if mechanism == "nftables" else probe.iptables_counters("iptables")
    assert named.get("mangle ISTIO_DROP") == ([1] if drop else None)


CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as one:
    one.sendall(b"x" * 100000)
    one.shutdown(socket.SHUT_WR)
    data = b""
    while got := one.recv(65536):
        data += got
greeting, echo = data.split(b"\\n", 1)
print(greeting.decode(), len(echo))
"""


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_inbound_connections_reach_the_proxy(mechanism: str, mode: str) -> None:
    neighbour = probe.connect_namespaces()
    rules = build({**INJECTED, "inbound_ports_exclude": "9000", "inbound_interception_mode": mode})
    Loader(mechanism).apply(rules)
    tproxy = mode == "TPROXY"

    def from_outside(port: int) -> str:
        argv = ["nsenter", "-t", str(neighbour.pid), "-n", sys.executable, "-c", CLIENT, "198.18.7.2", str(port)]
        return probe.call(*argv).strip()

    # Under TPROXY the accepted socket's own address is the one asked for, and no translation is needed to tell it.
    with Proxy(15006, transparent=tproxy, original=not tproxy), Proxy(9000, original=False):
        assert from_outside(8080) == "198.18.7.2:8080 100000"
        assert from_outside(9000) == "198.18.7.2:9000 100000"


def counted(name: str) -> int:
    """Packets of the rules with a name, by whichever tool they were loaded."""
    saved, listed = probe.call("iptables-save", "-c"), probe.call("nft", "list", "ruleset", "inet")
    in_saved = re.findall(rf"^\[(\d+):.*meshdns:{name}\b", saved, re.MULTILINE)
    in_listed = re.findall(rf"counter packets (\d+).*meshdns:{name}\b", listed)
    return sum(map(int, in_saved + in_listed))


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("inbound", ["REDIRECT", "TPROXY"])
def test_outbound_tproxy_keeps_the_address_and_older_connections(mechanism: str, inbound: str) -> None:
    virtual_route()
    probe.call("ip", "address", "add", "240.240.0.99/32", "dev", "lo")
    loader = Loader(mechanism, named=True)
    rules = build({**INJECTED, "inbound_interception_mode": inbound}, outbound_tproxy=True)
    before = state()
    with Proxy(7000, original=False), Proxy(15001, transparent=True, original=False):
        with socket.create_connection(("240.240.0.99", 7000), timeout=5) as older:
            assert greeting(older) == "240.240.0.99:7000"
            loader.apply(rules)
            assert [wanted(VIP, 80) for _ in range(3)] == [f"{VIP}:80"] * 3
            assert counted("redirect_tcp") == 3  # connections, not packets
            older.sendall(b"still here\n")
            assert greeting(older) == "still here"
        loader.remove(rules)
    assert state() == before


def moved() -> set[tuple[str, str, int]]:
    """Rules whose counters are not zero, as (table, chain, index)."""
    listed = {**probe.iptables_counters("iptables"), **probe.nftables_counters()}
    return {(*place.split(), index) for place, counts in listed.items() for index, n in enumerate(counts) if n}  # type: ignore[misc]


def whole_connection(rules: RuleSet, first: Packet, answering: str) -> set[tuple[str, str, int]]:
    """Rules that the evaluator matches with the packets of a connection, both ways."""
    begun = verdict.judge(rules, first)
    mark = begun.connection_mark
    later = replace(first, state="ESTABLISHED", connection_mark=mark)
    name = "eth0" if first.path == "in" else "lo"
    back = Packet("out", "tcp", answering, first.source, begun.destination_port, first.source_port, name,
                  state="ESTABLISHED", direction="REPLY", connection_mark=mark)  # fmt: skip
    # The kernel answers the first segment itself; what follows is the proxy's, here root.
    packets = [first, later, back, replace(back, uid=0, gid=0)]
    return {hit for packet in packets for hit in verdict.judge(rules, packet).hits}


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "values",
    [
        INJECTED,
        {**INJECTED, "inbound_interception_mode": "TPROXY"},
        {**INJECTED, "inbound_ports_include": "8080", "inbound_interception_mode": "TPROXY", "drop_invalid": True},
        {**INJECTED, "redirect_dns": True, "capture_all_dns": True, "drop_invalid": True},
    ],
)
def test_packets_of_a_connection_both_ways_meet_the_rules_the_evaluator_says(
    mechanism: str, values: dict[str, Any]
) -> None:
    neighbour = probe.connect_namespaces()
    rules = build(values)
    tproxy = values.get("inbound_interception_mode") == "TPROXY"
    Loader(mechanism).apply(rules)
    argv = ["nsenter", "-t", str(neighbour.pid), "-n", sys.executable, "-c", CLIENT, "198.18.7.2", "8080"]
    with Proxy(15006, transparent=tproxy, original=not tproxy):
        assert probe.call(*argv).strip() == "198.18.7.2:8080 100000"
    inbound = whole_connection(rules, Packet("in", "tcp", "198.18.7.1", "198.18.7.2", 40000, 8080), "198.18.7.2")
    assert moved() == inbound
    with Proxy(15001):
        assert wanted(VIP, 80) == f"{VIP}:80"
    sent = Packet("out", "tcp", "198.18.7.2", VIP, 40000, 80, uid=0, gid=0)
    assert moved() == inbound | whole_connection(rules, sent, "127.0.0.1")
