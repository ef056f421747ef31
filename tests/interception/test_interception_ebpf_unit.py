"""eBPF without a kernel: what the programs are told, what is read back, and how a refusal reads."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from meshdns.core.world import Nets
from meshdns.interception.ebpf import __main__ as command
from meshdns.interception.ebpf import libbpf, loader, settings
from meshdns.interception.options import Options, from_json
from meshdns.interception.refusal import Refusal
from meshdns.lab import rules
from shipped import WORLD

SOURCE = (Path(loader.__file__).parent / "mesh.bpf.c").read_text()
SIZES = {"__u64": 8, "__u32": 4, "__u16": 2, "__u8": 1}
PORTS = st.integers(1, 65535)
FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
     +-- 198.18.0.0/24 2 0 2
        |-- 198.18.0.0
           /24 link UNICAST
        |-- 198.18.0.45
           /32 host LOCAL
        |-- 198.18.0.255
           /32 link BROADCAST
Local:
  +-- 198.18.0.0/24 2 0 2
        |-- 198.18.0.45
           /32 host LOCAL
"""


def layout() -> dict[str, tuple[int, int, int]]:
    """Offset, element size and length of each field of `struct settings`, as a C compiler lays it out."""
    body = re.search(r"struct settings \{(.*?)\n\};", SOURCE, re.DOTALL)
    assert body
    fields, offset = {}, 0
    for kind, names in re.findall(r"^\s+(__u\d+) ([^;]+);", body[1], re.MULTILINE):
        for name, length in re.findall(r"(\w+)(?:\[(\d+)\])?", names):
            size, count = SIZES[kind], int(length or 1)
            offset = -(-offset // size) * size
            fields[name] = (offset, size, count)
            offset += size * count
    fields["end"] = (-(-offset // 8) * 8, 0, 0)
    return fields


def numbers(packed: bytes, name: str) -> list[int]:
    offset, size, count = layout()[name]
    return list(struct.unpack_from(f"={count}{ {8: 'Q', 4: 'I', 2: 'H', 1: 'B'}[size] }", packed, offset))


OWNERS = st.lists(st.integers(0, 2**32 - 2), min_size=1, max_size=settings.MAX_OWNERS).map(tuple)


@given(
    st.builds(
        settings.Settings,
        proxy_uids=OWNERS,
        proxy_gids=OWNERS,
        outbound_port=PORTS,
        inbound_port=PORTS,
        tunnel_port=PORTS,
        dns_port=PORTS,
        capture_dns=st.booleans(),
        outbound_excluded=st.frozensets(PORTS, max_size=5),
        outbound_included=st.frozensets(PORTS, max_size=5),
        inbound_captured=st.frozensets(PORTS, max_size=5),
        ranges=st.just({}),
    ),
    st.integers(0, 2**64 - 1),
    st.lists(st.ip_addresses(v=4).map(str), max_size=8),
    st.booleans(),
)
@hypothesis_settings(deadline=None)  # no timing is asserted
def test_the_programs_read_what_was_set(what: settings.Settings, netns: int, local: list[str], closed: bool) -> None:
    packed = what.packed(netns, local, fail_closed=closed)
    assert len(packed) == layout()["end"][0]
    assert (numbers(packed, "netns"), numbers(packed, "fail_closed")) == ([netns], [closed])
    for name in ("outbound_port", "inbound_port", "tunnel_port", "dns_port", "capture_dns"):
        assert numbers(packed, name) == [getattr(what, name)]
    for name in ("proxy_uids", "proxy_gids"):
        owners = getattr(what, name)
        assert tuple(numbers(packed, name)) == owners + owners[:1] * (8 - len(owners))
    for name in ("outbound_excluded", "outbound_included", "inbound_captured"):
        bits = numbers(packed, name)
        assert {port for port in range(65536) if bits[port >> 3] >> (port & 7) & 1} == getattr(what, name)
    offset = layout()["local"][0]
    held = [".".join(map(str, packed[offset + 4 * k : offset + 4 * k + 4])) for k in range(len(local))]
    assert held == local  # network order
    source = packed[layout()["source"][0] :][:4]
    assert source == (packed[offset : offset + 4] if len(local) == 1 else bytes(4))


def test_more_addresses_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="9 addresses, at most 8"):
        settings.from_options(Options()).packed(1, [f"198.18.0.{k}" for k in range(9)])


def test_the_longest_range_says_all_that_the_options_say() -> None:
    options = Options(
        outbound_ip_ranges_include="10.0.0.0/8", outbound_ip_ranges_exclude="10.1.0.0/16,203.0.113.0/24,fd00::/8",
        redirect_dns=True, dns_servers_v4=("10.1.0.10",),
    )  # fmt: skip
    found = {str(network): int(flags) for network, flags in settings.from_options(options).ranges.items()}
    assert found == {"10.0.0.0/8": 1, "10.1.0.0/16": 3, "10.1.0.10/32": 7, "127.0.0.1/32": 8, "203.0.113.0/24": 2}
    (key, value), *_ = settings.from_options(Options(host_ipv4_loopback_cidr="127.0.0.0/8")).range_entries()
    assert key == struct.pack("=I", 8) + bytes([127, 0, 0, 0])
    assert value == struct.pack("=I", settings.Range.EXEMPT)
    in_c = re.search(r"enum range \{ (.*?) \}", SOURCE)
    assert in_c
    assert in_c[1] == ", ".join(f"{flag.name} = {flag.value}" for flag in settings.Range)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"inbound_ports_include": "*", "inbound_ports_exclude": "1,15020"}, "2-15007,15009-15019,15021-65535"),
        ({"inbound_ports_include": "443,80,15008", "inbound_ports_exclude": "80"}, "80,443"),
    ],
)
def test_inbound_ports_are_istios(values: dict[str, str], expected: str) -> None:
    assert settings.from_options(Options(**values)).document()["inbound_captured"] == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"inbound_interception_mode": "TPROXY"}, 'inbound_interception_mode is "TPROXY", allowed: "REDIRECT"'),
        ({"reroute_virtual_interfaces": "eth1"}, 'reroute_virtual_interfaces is "eth1", allowed: ""'),
        ({"exclude_interfaces": "net1"}, 'exclude_interfaces is "net1", allowed: ""'),
        ({"owner_groups_include": "202"}, 'owner_groups_include is "202", allowed: "*"'),
        ({"owner_groups_include": ""}, 'owner_groups_include is "", allowed: "*"'),
        ({"owner_groups_exclude": "202"}, 'owner_groups_exclude is "202", allowed: ""'),
        ({"drop_invalid": True}, "drop_invalid is true, allowed: false"),
        ({"enable_ipv6": True}, "enable_ipv6 is true, allowed: false"),
        ({"proxy_uid": "1,2,3,4,5,6,7,8,9"}, "proxy_uid has 9 numbers, allowed: 8"),
        ({"outbound_ip_ranges_include": "127.0.0.0/8"}, 'outbound_ip_ranges_include is "127.0.0.0/8"'),
        ({"host_ipv4_loopback_cidr": "127.0.0.53/32"}, 'host_ipv4_loopback_cidr is "127.0.0.53/32"'),
        ({"outbound_ip_ranges_exclude": ",".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(4096))}, "4097 ranges"),
    ],
)
def test_what_the_programs_cannot_honour_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal) as refused:
        settings.from_options(Options(**values))
    assert said in str(refused.value)
    assert str(refused.value).startswith("not possible by eBPF: ")
    assert str(refused.value).endswith("; change that, or use iptables or nftables")


@pytest.mark.parametrize(
    ("mesh", "values", "said"),
    [
        ("linkerd", {}, 'conventions is "linkerd", allowed: istio, kuma'),
        ("consul", {}, 'conventions is "consul"'),
        ("kuma", {"redirect_dns": True}, "redirect_dns is true, allowed under these conventions: false"),
        (
            "kuma",
            {"outbound_ip_ranges_exclude": "10.0.0.0/8"},
            'outbound_ip_ranges_exclude is "10.0.0.0/8", allowed: ""',
        ),
        ("kuma", {"inbound_ip_ranges_exclude": "10.0.0.0/8"}, 'inbound_ip_ranges_exclude is "10.0.0.0/8", allowed: ""'),
    ],
)
def test_meshes_whose_rules_the_programs_do_not_follow_are_refused(
    mesh: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refusal, match=re.escape(said)):
        settings.from_options(Options.of(mesh, **values))


def test_a_mesh_without_a_group_captures_every_group() -> None:
    told = settings.from_options(Options.of("kuma"))
    assert (told.document()["proxy_gids"], told.proxy_uids) == ((), (5678,))
    assert struct.unpack_from("=8I", told.packed(1, []), 8 + 32) == (2**32 - 1,) * 8


def test_the_testbeds_loaders_get_the_options_of_their_pods() -> None:
    pods = [pod for pod in (*WORLD.clients, *WORLD.meshed) if pod.mechanism == "ebpf"]
    assert len(pods) == 2
    for pod in pods:
        found = rules.files(WORLD, Nets("198.18.0", "198.19.0"), pod)["options.json"]
        assert from_json(json.loads(found), "options.json") == rules.options(WORLD, pod)


def test_every_option_is_honoured_or_refused() -> None:
    """A new key has to be thought of here too."""
    source = Path(settings.__file__).read_text()
    honoured = {
        "proxy_port", "inbound_capture_port", "inbound_tunnel_port", "host_ipv4_loopback_cidr", "inbound_ports_include",
        "inbound_ports_exclude", "outbound_ports_include", "outbound_ports_exclude", "outbound_ip_ranges_include",
        "outbound_ip_ranges_exclude", "capture_all_dns", "dns_servers_v4", "dns_port", "conventions",
    }  # fmt: skip
    assert all(key in source for key in honoured)
    read = {"proxy_uid", "proxy_gid", "redirect_dns"}  # through properties
    # Without effect here: those of TPROXY, and of the family that is off.
    idle = {"inbound_tproxy_mark", "inbound_tproxy_route_table", "dns_servers_v6"}
    keys = {field.name for field in dataclasses.fields(Options)}
    assert keys == honoured | read | idle | set(settings.ONLY)


def test_counters_have_the_order_of_the_programs() -> None:
    names = re.search(r"enum counter \{ (.*), COUNTERS \};", SOURCE)
    assert names
    assert tuple(name.lower() for name in names[1].split(", ")) == settings.COUNTERS
    assert layout()["local"][2] == settings.MAX_LOCAL


def test_counters_are_summed_over_cpus() -> None:
    values = [struct.pack("=3Q", k, 10 * k, 2**40) for k in range(len(settings.COUNTERS))]
    assert settings.totals(values) == {name: 11 * k + 2**40 for k, name in enumerate(settings.COUNTERS)}
    with pytest.raises(ValueError, match="zip"):
        settings.totals(values[1:])


def test_every_program_is_attached_or_run() -> None:
    programs = set(re.findall(r'^SEC\("(?:cgroup|sockops|sk_lookup|tc)\S*"\)\nint (\w+)\(', SOURCE, re.MULTILINE))
    assert programs == {*loader.CGROUP_PROGRAMS, "inbound", "adopt"}


def test_the_pods_own_addresses_are_found() -> None:
    assert settings.local_addresses(FIB_TRIE) == ("198.18.0.45",)
    assert settings.local_addresses("") == ()


@pytest.mark.parametrize("argument", ["--page=0", "--page=65536", "--wait=soon"])
def test_bad_arguments_are_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([argument])
    assert ended.value.code == 2
    assert argument.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (errno.EPERM, [], "the kernel refuses bpf(): the loader needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN"),
        (errno.ENOSYS, [], "the kernel has no bpf() system call; it needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"),
        (
            errno.EACCES,
            ["libbpf: prog 'getsockopt': BPF program load failed: Permission denied", "-- BEGIN PROG LOAD LOG --",
             "invalid bpf_context access off=24 size=8", "processed 5 insns (limit 1000000)", "-- END PROG LOAD LOG --",
             "libbpf: failed to load object 'mesh.bpf.o'"],
            "the kernel refuses getsockopt (Permission denied: invalid bpf_context access off=24 size=8); "
            "Linux 5.15 or newer takes it",
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_reason(code: int, said: list[str], expected: str) -> None:
    assert libbpf.load_refusal(code, said) == expected


def test_a_place_without_cgroup_2_ends_with_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([f"--cgroup2={tmp_path}", "--page=15098"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"interception by eBPF is not possible here: there is no cgroup 2 tree at {tmp_path}; "
        "mount the host's there (read-only is enough)\n"
    )


def test_options_that_cannot_be_honoured_end_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.json"
    file.write_text('{"drop_invalid": true}')
    assert command.main([f"--config={file}", "--page=15098"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("interception by eBPF: not possible by eBPF: drop_invalid is true")
    assert len(said.err.splitlines()) == 1


def test_the_cgroup_above_the_process_is_found(tmp_path: Path) -> None:
    for folder, pids in ((".", [1]), ("docker", []), ("docker/a", [os.getpid() * 10]), ("docker/b", [0, os.getpid()])):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    (tmp_path / "cgroup.controllers").touch()
    assert loader.pod_parent(tmp_path) == tmp_path / "docker"
    (tmp_path / "docker/b/cgroup.procs").write_text("")
    with pytest.raises(libbpf.Refused, match="own cgroup is not in"):
        loader.pod_parent(tmp_path)


def test_waiting_for_a_loader_that_never_comes_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--wait=0.05", "--page=9"]) == 1
    assert "no eBPF loader answers on 127.0.0.1:9 after 0.05 s" in capsys.readouterr().err
