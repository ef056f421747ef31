"""eBPF without a kernel: what the programs are told, what is read back, and how a refusal reads."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.interception.ebpf import __main__ as command
from harness.interception.ebpf import cgroups, libbpf, loader, settings

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


@given(
    st.builds(
        settings.Settings,
        netns=st.integers(0, 2**64 - 1),
        local=st.lists(st.ip_addresses(v=4).map(str), max_size=8).map(tuple),
        proxy_uid=st.integers(0, 2**32 - 1),
        proxy_gid=st.integers(0, 2**32 - 1),
        outbound_port=PORTS,
        inbound_port=PORTS,
        dns_port=PORTS,
        capture_dns=st.booleans(),
        fail_closed=st.booleans(),
        outbound_excluded=st.lists(PORTS, max_size=5).map(tuple),
        inbound_excluded=st.lists(PORTS, max_size=5).map(tuple),
    )
)
def test_the_programs_read_what_was_set(what: settings.Settings) -> None:
    packed = what.packed()
    assert len(packed) == layout()["end"][0]
    for name in (
        "netns",
        "proxy_uid",
        "proxy_gid",
        "outbound_port",
        "inbound_port",
        "dns_port",
        "capture_dns",
        "fail_closed",
    ):
        assert numbers(packed, name) == [getattr(what, name)]
    for name in ("outbound_excluded", "inbound_excluded"):
        bits = numbers(packed, name)
        assert {port for port in range(65536) if bits[port >> 3] >> (port & 7) & 1} == set(getattr(what, name))
    offset = layout()["local"][0]
    held = [".".join(map(str, packed[offset + 4 * k : offset + 4 * k + 4])) for k in range(len(what.local))]
    assert tuple(held) == what.local  # network order
    source = packed[layout()["source"][0] :][:4]
    assert source == (packed[offset : offset + 4] if len(what.local) == 1 else bytes(4))


def test_more_addresses_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="9 addresses, at most 8"):
        settings.Settings(netns=1, local=tuple(f"198.18.0.{k}" for k in range(9))).packed()


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


@pytest.mark.parametrize(
    "argument", ["--dns-port=0", "--page=65536", "--exclude-inbound=80,x", "--exclude-outbound=80,"]
)
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


def test_the_cgroup_above_the_process_is_found(tmp_path: Path) -> None:
    for folder, pids in ((".", [1]), ("docker", []), ("docker/a", [os.getpid() * 10]), ("docker/b", [0, os.getpid()])):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    (tmp_path / "cgroup.controllers").touch()
    assert cgroups.pod_parent(tmp_path) == tmp_path / "docker"
    (tmp_path / "docker/b/cgroup.procs").write_text("")
    with pytest.raises(libbpf.Refused, match="own cgroup is not in"):
        cgroups.pod_parent(tmp_path)


def test_waiting_for_a_loader_that_never_comes_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--wait=0.05", "--page=9"]) == 1
    assert "no eBPF loader answers on 127.0.0.1:9 after 0.05 s" in capsys.readouterr().err
