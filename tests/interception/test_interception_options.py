"""Interception options: what is refused, in which words, and what Istio only warns about."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns.interception import command, conventions, options
from meshdns.interception.options import Options
from meshdns.interception.refusal import Refusal

# The keys and defaults that configuration files may rely on.
DEFAULTS = {
    "conventions": "istio", "dns_port": 15053, "inbound_ip_ranges_exclude": "",
    "proxy_port": 15001, "inbound_capture_port": 15006, "inbound_tunnel_port": 15008, "proxy_uid": "1337",
    "proxy_gid": "1337", "inbound_interception_mode": "REDIRECT", "inbound_tproxy_mark": "1337",
    "inbound_tproxy_route_table": "133", "inbound_ports_include": "", "inbound_ports_exclude": "",
    "outbound_ports_include": "", "outbound_ports_exclude": "", "outbound_ip_ranges_include": "",
    "outbound_ip_ranges_exclude": "", "reroute_virtual_interfaces": "", "exclude_interfaces": "",
    "owner_groups_include": "*", "owner_groups_exclude": "", "host_ipv4_loopback_cidr": "127.0.0.1/32",
    "redirect_dns": False, "capture_all_dns": False, "dns_servers_v4": [], "dns_servers_v6": [],
    "drop_invalid": False, "enable_ipv6": False,
}  # fmt: skip


def refused(document: object) -> str:
    with pytest.raises(Refusal) as caught:
        options.from_json(document, "my.json")
    message = str(caught.value)
    assert message.startswith("my.json: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def test_the_defaults_are_istios_and_can_be_written_out() -> None:
    assert options.from_json({}, "x") == Options() == options.from_json(DEFAULTS, "x")
    assert json.loads(json.dumps(dataclasses.asdict(Options()))) == DEFAULTS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"proxyport": 1}, 'unknown key "proxyport"'),
        ({"proxy_port": 0}, "proxy_port is 0, allowed: a port number from 1 to 65535"),
        ({"proxy_port": 65536}, "proxy_port is 65536"),
        ({"proxy_port": "15001"}, 'proxy_port is "15001", allowed: a port number'),
        ({"proxy_port": True}, "proxy_port is true"),
        ({"proxy_port": 15001.0}, "proxy_port is 15001.0"),
        ({"proxy_port": 15006}, "inbound_capture_port is 15006, and so is proxy_port"),
        ({"inbound_tunnel_port": 15001}, "inbound_tunnel_port is 15001, and so is proxy_port"),
        ({"redirect_dns": True, "proxy_port": 15053}, "proxy_port is 15053, where redirected DNS goes"),
        ({"proxy_uid": "istio-proxy"}, 'proxy_uid is "istio-proxy", allowed: whole numbers'),
        ({"proxy_uid": ""}, 'proxy_uid is ""'),
        ({"proxy_uid": 1337}, "proxy_uid is 1337"),
        ({"proxy_uid": "3,,4"}, 'proxy_uid is "3,,4"'),
        ({"proxy_uid": "-1"}, 'proxy_uid is "-1"'),
        ({"proxy_uid": "4294967295"}, "proxy_uid"),
        ({"proxy_uid": "٣"}, "proxy_uid"),
        ({"proxy_gid": "all"}, "proxy_gid"),
        ({"proxy_uid": "010"}, 'proxy_uid is "010"'),
        ({"owner_groups_include": "010"}, 'owner_groups_include is "010"'),
        ({"inbound_tproxy_mark": "01337"}, "inbound_tproxy_mark"),
        ({"inbound_ports_exclude": ","}, "inbound_ports_exclude"),
        ({"inbound_interception_mode": "tproxy"}, 'allowed: "REDIRECT" or "TPROXY"'),
        ({"inbound_interception_mode": ["TPROXY"]}, 'inbound_interception_mode is ["TPROXY"]'),
        ({"inbound_tproxy_mark": "0"}, "inbound_tproxy_mark"),
        ({"inbound_tproxy_mark": 1337}, "inbound_tproxy_mark is 1337"),
        ({"inbound_interception_mode": "TPROXY", "inbound_tproxy_mark": "1338"}, "proxy's calls to its own pod"),
        ({"inbound_tproxy_route_table": "254"}, "inbound_tproxy_route_table"),
        ({"inbound_ports_include": "80,http"}, "inbound_ports_include"),
        ({"inbound_ports_include": "80:90"}, "inbound_ports_include"),
        ({"inbound_ports_exclude": "*"}, "inbound_ports_exclude"),
        ({"outbound_ports_include": "*"}, "outbound_ports_include"),
        ({"outbound_ports_exclude": "0"}, "outbound_ports_exclude"),
        ({"outbound_ip_ranges_exclude": "*"}, 'outbound_ip_ranges_exclude is "*"'),
        ({"outbound_ip_ranges_include": "*,10.0.0.0/8"}, "outbound_ip_ranges_include"),
        ({"outbound_ip_ranges_include": "10.0.0.1"}, "outbound_ip_ranges_include"),
        ({"outbound_ip_ranges_include": "10.0.0.0/33"}, "outbound_ip_ranges_include"),
        ({"outbound_ip_ranges_include": "fe80::%eth0/64"}, "outbound_ip_ranges_include"),
        ({"outbound_ip_ranges_include": "10.0.0.0/255.0.0.0"}, "outbound_ip_ranges_include"),
        ({"exclude_interfaces": "a-name-longer-than-15"}, "exclude_interfaces"),
        ({"exclude_interfaces": 'x"; flush ruleset'}, "exclude_interfaces"),
        ({"reroute_virtual_interfaces": "eth0 -j DROP"}, "reroute_virtual_interfaces"),
        ({"owner_groups_include": ",".join(map(str, range(65)))}, "owner_groups_include has 65 groups, allowed: 64"),
        ({"owner_groups_exclude": "a b"}, "owner_groups_exclude"),
        ({"host_ipv4_loopback_cidr": "10.0.0.0/8"}, "host_ipv4_loopback_cidr"),
        ({"host_ipv4_loopback_cidr": "::1/128"}, "host_ipv4_loopback_cidr"),
        ({"host_ipv4_loopback_cidr": "126.0.0.0/7"}, "host_ipv4_loopback_cidr"),
        ({"redirect_dns": "yes"}, 'redirect_dns is "yes", allowed: true or false'),
        ({"enable_ipv6": 1}, "enable_ipv6 is 1"),
        ({"dns_servers_v4": "10.0.0.1"}, "dns_servers_v4"),
        ({"dns_servers_v4": ["::1"]}, 'dns_servers_v4 is ["::1"], allowed: a list of IPv4 addresses'),
        ({"dns_servers_v4": [1]}, "dns_servers_v4"),
        ({"dns_servers_v6": ["10.0.0.1"]}, "dns_servers_v6"),
        ({"drop_invalid": None}, "drop_invalid is null"),
        ({"conventions": "osm"}, 'conventions is "osm", allowed: istio, linkerd, kuma, consul'),
        ({"conventions": {}}, "conventions is {}"),
        ({"dns_port": 53}, "dns_port is 53, allowed: 15053 (under Istio's conventions: "),
        ({"inbound_ip_ranges_exclude": "10.0.0.0/8"}, 'inbound_ip_ranges_exclude is "10.0.0.0/8", allowed: ""'),
        ({"conventions": "linkerd", "redirect_dns": True}, "redirect_dns is true, allowed: false (under Linkerd's"),
        ({"conventions": "linkerd", "inbound_ports_exclude": "8000-6000"}, "inbound_ports_exclude"),
        ({"conventions": "linkerd", "inbound_ports_include": "80-90,*"}, "inbound_ports_include"),
        ({"conventions": "kuma", "inbound_interception_mode": "TPROXY"}, 'allowed: "REDIRECT" (under Kuma\'s'),
        ({"conventions": "kuma", "proxy_uid": ""}, "proxy_uid"),
        ({"conventions": "consul", "redirect_dns": True, "dns_servers_v4": ["10.0.0.1"]}, '["127.0.0.1"]'),
        ([], "not a JSON object"),
        (None, "not a JSON object"),
    ],
)
def test_what_cannot_be_is_refused(values: object, said: str) -> None:
    assert said in refused(values)


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refused({"proxy_port": -1, "proxy_uid": "x", "redirect_dns": 0, "colour": "red"})
    for key in ("proxy_port", "proxy_uid", "redirect_dns", 'unknown key "colour"'):
        assert key in message


@given(
    st.sampled_from(sorted(DEFAULTS)),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=4),
)
def test_any_value_is_taken_or_refused_in_one_line(key: str, value: Any) -> None:
    try:
        options.from_json({key: value}, "x")
    except Refusal as refusal:
        assert key in str(refusal)
        assert str(refusal).isprintable()


def test_mixed_lists_are_split_by_family() -> None:
    mixed = Options(outbound_ip_ranges_include="10.1.2.3/8,fd00::/16")
    assert [str(n) for n in mixed.ranges("outbound_ip_ranges_include", "ipv4")] == ["10.0.0.0/8"]
    assert [str(n) for n in mixed.ranges("outbound_ip_ranges_include", "ipv6")] == ["fd00::/16"]
    assert not mixed.loopback_families
    assert Options(outbound_ip_ranges_include="::1/128").loopback_families
    assert not Options(outbound_ip_ranges_include="0.0.0.0/0").loopback_families


@pytest.mark.parametrize("ranges", ["127.0.0.1/1", "::1/64", "10.0.0.0/8,::1/0"])
def test_a_range_written_with_a_loopback_address_counts_as_loopback(ranges: str) -> None:
    assert Options(outbound_ip_ranges_include=ranges).loopback_families


def test_a_list_may_be_closed_by_a_comma() -> None:
    assert Options(inbound_ports_exclude="6000,7000,").ports("inbound_ports_exclude") == (6000, 7000)
    assert Options(proxy_uid="3,4,").uids == (3, 4)


def test_no_group_means_the_users_numbers() -> None:
    assert Options(proxy_uid="3,4", proxy_gid="").gids == (3, 4)


def test_a_document_lies_over_the_defaults_of_its_mesh() -> None:
    assert options.from_json({"proxy_uid": "7"}, "x", "linkerd") == Options.of("linkerd", proxy_uid="7")
    assert options.from_json({"conventions": "linkerd"}, "x") == Options.of("linkerd")
    assert (Options.of("linkerd").proxy_port, Options.of("linkerd").uids) == (4140, (2102,))
    assert Options.of("linkerd", inbound_ports_exclude="80,6000-8000").ports("inbound_ports_exclude") == (
        80, range(6000, 8001),
    )  # fmt: skip
    with pytest.raises(Refusal, match='x: conventions is "kuma", asked for are linkerd: leave one out'):
        options.from_json({"conventions": "kuma"}, "x", "linkerd")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"capture_all_dns": True}, "no effect while redirect_dns is false"),
        ({"inbound_interception_mode": "TPROXY"}, "nothing inbound is captured"),
        ({"owner_groups_include": "1", "owner_groups_exclude": "2"}, "owner_groups_exclude has no effect"),
        ({"owner_groups_include": ""}, "nothing outbound is captured"),
        ({"outbound_ip_ranges_include": "fd00::/16"}, "IPv6 ranges have no effect"),
    ],
)
def test_what_istio_accepts_without_effect_is_said(values: dict[str, Any], said: str) -> None:
    (warning,) = options.from_json(values, "x").warnings
    assert said in warning


def test_useful_options_warn_of_nothing() -> None:
    assert [Options.of(mesh).warnings for mesh in conventions.ALL] == [()] * len(conventions.ALL)
    assert Options(redirect_dns=True, capture_all_dns=True, inbound_ports_include="*").warnings == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"proxy_port": 1, "proxy_port": 2}', "key proxy_port stands twice"),
        (b"[" * 100_000, r"not JSON \(nested too deeply\)"),
        (b"[]", "not a JSON object"),
    ],
)
def test_files_that_are_not_options(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "options.json"
    file.write_bytes(content)
    with pytest.raises(Refusal, match=said):
        command.read(str(file))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="No such file"):
        command.read(str(tmp_path / "none.json"))
