"""The eBPF programs in the kernel against the evaluator: the same options, the same verdict as the rules'."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import asking
import pytest

from meshdns.core import process
from meshdns.interception import ruleset, verdict
from meshdns.interception.conventions import ISTIO, KUMA, Conventions
from meshdns.interception.ebpf import settings
from meshdns.interception.options import Options, from_json
from meshdns.interception.refusal import Refusal
from meshdns.interception.verdict import Packet
from meshdns.lab.compose import engine

pytestmark = pytest.mark.testbed

PROBE = Path(__file__).with_name("ebpf_probe.py")
PROJECT = PROBE.parents[2]
OBJECT = Path("/usr/lib/meshdns/mesh.bpf.o")  # in the observer image
COUNTED = {15001: "redirect_tcp", 15006: "self_tcp"}
# What the programs cannot honour.
ONLY = {
    "inbound_interception_mode": "REDIRECT", "reroute_virtual_interfaces": "", "exclude_interfaces": "",
    "owner_groups_include": "*", "owner_groups_exclude": "", "drop_invalid": False, "enable_ipv6": False,
    "inbound_ip_ranges_exclude": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object file, out of the image that loads it in the testbed."""
    asking.needs_kernel()
    if find_library("bpf") is None:
        pytest.skip("needs libbpf: apt-get install libbpf1")
    engine.ensure(lambda line: None)
    image = engine.images(lambda line: None, ["observer"])["observer"]
    folder = tmp_path_factory.mktemp("programs")
    made = process.run("docker", "create", image, timeout_s=60).out.strip()
    copied = process.run("docker", "cp", f"{made}:{OBJECT}", str(folder), timeout_s=60)
    process.run("docker", "rm", made, timeout_s=60)
    assert copied.ok, copied.err
    return folder / OBJECT.name


@pytest.fixture
def cgroup() -> Iterator[tuple[Path, Path]]:
    """The cgroup 2 tree, and a cgroup in it for one test."""
    trees = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    tree = next((tree for tree in trees if (tree / "cgroup.controllers").exists()), None)
    if tree is None or not os.access(tree, os.W_OK):
        pytest.skip("needs a cgroup 2 tree that can be written")
    made = tree / f"meshdns-test-{os.getpid()}"
    made.mkdir()
    yield tree, made
    for folder in (made / "member", made):
        if folder.exists():
            folder.rmdir()


def seen(programs: Path, cgroup: tuple[Path, Path], values: dict[str, Any], sent: list[dict[str, Any]],
         ports: list[int]) -> dict[str, Any]:  # fmt: skip
    """What the programs did to the packets, and to connections from outside to the ports."""
    request = {"programs": str(programs), "tree": str(cgroup[0]), "cgroup": str(cgroup[1]), "options": values,
               "packets": sent, "ports": ports}  # fmt: skip
    done = subprocess.run(
        ["unshare", "--net", sys.executable, str(PROBE)],
        input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{PROBE.parent}"},
    )  # fmt: skip
    if "the kernel refuses bpf()" in done.stderr:
        pytest.skip("needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def expected(rules: ruleset.RuleSet, packet: Packet) -> list[str]:
    """The counter that the evaluator's verdict of the rules would move."""
    outcome = verdict.judge(rules, packet)
    if outcome.port == 15053:
        return [f"redirect_dns_{packet.protocol}"]
    return [COUNTED[outcome.port]] if outcome.port else []


def possible(rng: Random, mesh: Conventions) -> dict[str, Any]:
    """Options of a mesh that the programs can honour."""
    while True:
        values = asking.option_values(rng, mesh) | ONLY
        if rng.random() < 1 / 2:  # what the included ports and the exempt part of loopback do shows beside few ranges
            values["outbound_ip_ranges_include"] = rng.choice(["", "*"])
            values["outbound_ports_include"] = rng.choice(["53,443", "80,15020"])
        try:
            settings.from_options(from_json(values, "options"))
        except Refusal:
            continue
        return values


TO_LO, BY = ("127.0.0.1", "127.0.0.53", "127.0.0.54", "198.18.7.2", "198.18.8.2"), asking.BY[4]
GRID = [
    (protocol, destination, port, owner)
    for protocol in ("tcp", "udp")
    for destination in (*TO_LO, *BY)
    for port in (53, 80, 443, 8080, 15001, 15008, 15020, 15053)
    for owner in ((0, 0), (1000, 1337), (1337, 1000), (1337, 1337), (3, 202), (4, 1000), (1000, 3), (1000, 0))
]


def some_packets(rng: Random, mesh: Conventions) -> list[Packet]:
    """What leaves; the proxy's inbound port is not among the destinations: there it is reached without capture."""
    packets = []
    own_dns = [one for one in GRID if one[1] in TO_LO and one[2] == 53]  # where Istio's order matters most
    for protocol, destination, port, owner in [*own_dns, *rng.sample(GRID, 300)]:
        name = BY.get(destination, "lo")
        source = (
            asking.OWN[name, 4] if name != "lo" else rng.choice(("127.0.0.1", "127.0.0.1", "127.0.0.6", "198.18.7.2"))
        )
        ids = (mesh.uid if number == ISTIO.uid else number for number in owner)
        packets.append(Packet("out", protocol, source, destination, 40000, port, name, *ids))
    return packets


# By chance rare: TCP to port 53 of a local address that is no listed server goes on to the exempt part of loopback.
LISTED = {"redirect_dns": True, "dns_servers_v4": ["10.0.0.10"], "outbound_ip_ranges_include": "*"}


@pytest.mark.parametrize(
    ("mesh", "seed"),
    [(mesh, seed) for mesh, seeds in ((ISTIO, range(20)), (KUMA, range(1, 9))) for seed in seeds],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_programs_do_to_each_packet_what_the_rules_do(
    mesh: Conventions, seed: int, programs: Path, cgroup: tuple[Path, Path]
) -> None:
    rng = Random(seed)
    values = possible(rng, mesh) if seed else LISTED
    options: Options = from_json(values, "options")
    rules = ruleset.build(options, "ipv4")
    outgoing = some_packets(rng, mesh)
    sent = [{**asdict(packet), "connected": rng.random() < 1 / 2} for packet in outgoing]
    ports = [53, 80, 443, 8080, 15001, 15008, 15020, 15021, 15053, 15090, 65535]
    answer = seen(programs, cgroup, values, sent, ports)
    assert list(zip(outgoing, answer["moved"], strict=True)) == [(p, expected(rules, p)) for p in outgoing]
    outside = (Packet("in", "tcp", "198.18.7.1", "198.18.7.2", 40000, port) for port in ports)
    assert answer["reached"] == [verdict.judge(rules, packet).port == 15006 for packet in outside]
