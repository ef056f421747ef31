"""Random options, random packets, and what becomes of them: in the evaluator and in the kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meshdns.interception import iptables, nftables, routing, ruleset, verdict
from meshdns.interception.conventions import ISTIO, Conventions
from meshdns.interception.options import Family, Options
from meshdns.interception.ruleset import FAMILIES, RuleSet
from meshdns.interception.verdict import Packet

Loading = list[tuple[list[str], str]]  # commands and their input
PASSED_THROUGH = (["ip", "address", "add", "::6/128", "dev", "lo"], "")  # so that packets can come from there
PROBE = Path(__file__).with_name("probe.py")
TOOLS: dict[Family, str] = {"ipv4": "iptables", "ipv6": "ip6tables"}
PROTOCOLS = {"tcp": 6, "udp": 17}
FIRST_PORT = 20000  # source ports from here on are one packet's own; no rule asks for them

_NETWORKS = (
    "10.0.0.0/8", "240.240.0.0/16", "198.18.7.2/32", "127.0.0.0/8", "203.0.113.9/24", "0.0.0.0/0",
    "fd00:240::/32", "fd00:7::/64", "::1/128", "::/0",
)  # fmt: skip


def _some(rng: Random, items: Sequence[str], at_most: int) -> str:
    return ",".join(rng.sample(items, rng.randint(0, at_most)))


def option_values(rng: Random, mesh: Conventions = ISTIO) -> dict[str, Any]:
    """Options of a mesh as a JSON document has them."""
    pick, owners, ports = rng.choice, [str(mesh.uid)] * 2 + ["3,4", "0"], ["53", "80", "443", "8080", "15020", "15090"]
    if mesh.port_ranges:
        ports += ["70-90", "15000-15030"]
    values = {
        "conventions": mesh.name,
        "proxy_uid": pick(owners),
        "proxy_gid": pick(owners),
        "inbound_interception_mode": pick(["REDIRECT", "REDIRECT", "TPROXY"]),
        "inbound_ports_include": pick(["", "*", "*", "*", "80,443"]),
        "inbound_ports_exclude": _some(rng, ports, 2),
        "outbound_ports_include": _some(rng, ports, 2),
        "outbound_ports_exclude": _some(rng, ports, 2),
        "outbound_ip_ranges_include": pick(["*", "*", _some(rng, _NETWORKS, 3)]),
        "outbound_ip_ranges_exclude": _some(rng, _NETWORKS, 2),
        "reroute_virtual_interfaces": pick(["", "", "", "eth1", "eth1,eth0"]),
        "exclude_interfaces": pick(["", "", "", "eth1", "eth0,eth1", "eth+", "lo"]),
        "owner_groups_include": pick(["*", "*", "*", "", "1000", "1000,202"]),
        "owner_groups_exclude": pick(["", "", "202", "1000,202"]),
        "host_ipv4_loopback_cidr": pick(["127.0.0.1/32", "127.0.0.0/8"]),
        "redirect_dns": pick([True, True, False]),
        "capture_all_dns": pick([True, False]),
        "dns_servers_v4": pick([[], ["10.0.0.10"], ["127.0.0.53", "198.18.7.53"]]),
        "dns_servers_v6": pick([[], ["fd00:240::10"]]),
        "drop_invalid": pick([True, False]),
        "enable_ipv6": pick([True, True, False]),
        "inbound_ip_ranges_exclude": _some(rng, ["198.18.8.0/24", "fd00:7::/64", "10.0.0.0/8"], 2),
    }
    return {key: value for key, value in values.items() if key not in mesh.lacks}


_TO_LO = {4: ("127.0.0.1", "127.0.0.53", "198.18.7.2", "198.18.8.2"), 6: ("::1", "fd00:7::2", "fd00:8::2")}
_FROM_LO = {4: ("127.0.0.1", "127.0.0.6", "198.18.7.2"), 6: ("::1", "::6", "fd00:7::2")}
BY = {
    4: {"10.0.0.10": "eth0", "10.1.2.3": "eth0", "240.240.0.10": "eth0", "198.18.7.53": "eth0", "203.0.113.9": "eth1"},
    6: {"fd00:240::10": "eth0", "fd00:7::53": "eth0", "fd00:203::9": "eth1"},
}
OWN = {("eth0", 4): "198.18.7.2", ("eth1", 4): "198.18.8.2", ("eth0", 6): "fd00:7::2", ("eth1", 6): "fd00:8::2"}
_PEER = {("eth0", 4): "198.18.7.1", ("eth1", 4): "198.18.8.1", ("eth0", 6): "fd00:7::1", ("eth1", 6): "fd00:8::1"}
_PORTS = (53, 53, 80, 443, 8080, 15001, 15006, 15008, 15020, 15053, 15090)
_PACKETS = 60


def packets(rng: Random, owners: Sequence[int] = (1337, 1337)) -> list[Packet]:
    """Packets that differ in their source ports, so that each can be told from the others; some TCP ones are invalid.

    Two have a source port that rules ask for, one from here and one from outside: more could be one connection.
    """
    found = [replace(_packet(rng, owners), source_port=FIRST_PORT + number) for number in range(_PACKETS)]
    for index, packet in enumerate(found):
        if packet.protocol == "tcp" and rng.random() < 1 / 4:
            # Only root may send such a segment.
            found[index] = replace(packet, state="INVALID", uid=None if packet.uid is None else 0)
    for path, port in (("out", rng.choice([53, 15053])), ("in", 53)):
        index = next(i for i, packet in enumerate(found) if packet.path == path and packet.protocol == "udp")
        # No other packet goes to 4444, so that the two stay apart when both come from port 53.
        there = {"destination_port": 4444} if path == "in" else {}
        found[index] = replace(found[index], source_port=port, **there)
    return found


def _packet(rng: Random, owners: Sequence[int]) -> Packet:
    version, protocol, port = rng.choice([4, 6]), rng.choice(["tcp", "udp"]), rng.choice(_PORTS)
    path = rng.choice(["lo", "out", "in"])
    if path == "in":
        name = rng.choice(["eth0", "eth1"])
        return Packet("in", protocol, _PEER[name, version], OWN[name, version], 0, port, name)
    owner = rng.choice([0, 1000, *owners, 3, 4]), rng.choice([0, 1000, owners[0], 202, 3])
    mark = rng.choice([0, 0, 0, 1337, 1338])
    if path == "lo":
        source, destination = rng.choice(_FROM_LO[version]), rng.choice(_TO_LO[version])
        return Packet("out", protocol, source, destination, 0, port, "lo", *owner, mark)
    destination, name = rng.choice(sorted(BY[version].items()))
    return Packet("out", protocol, OWN[name, version], destination, 0, port, name, *owner, mark)


def family_of(packet: Packet) -> Family:
    """By its source address."""
    return "ipv6" if ":" in packet.source else "ipv4"


def routed(rules: RuleSet, packet: Packet) -> Packet:
    """The packet as routing sends it: a mark with a route of its own leads to lo."""
    by_mark = packet.path == "out" and rules.routes_home(packet.mark, family_of(packet))
    return replace(packet, interface="lo") if by_mark else packet


def needs_kernel() -> None:
    """Skips where rules cannot be loaded."""
    if os.geteuid():
        pytest.skip("needs root: network namespaces")
    for tool in ("iptables-restore", "ip6tables-restore", "nft", "ip", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install iptables nftables iproute2 util-linux")


def probe_of(form: str, load: Loading, sent: list[Packet], patient_for: int) -> subprocess.CompletedProcess[str]:
    """The probe, ended: under rules that `load` makes; so many packets are waited for."""
    request = {
        "mechanism": form,
        "patient_for": patient_for,
        "load": load,
        "out": [asdict(packet) for packet in sent if packet.path == "out"],
        "in": [asdict(packet) for packet in sent if packet.path == "in"],
    }
    return subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(PROBE)],
        input=json.dumps(request), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def in_namespace(form: str, load: Loading, sent: list[Packet], patient_for: int) -> dict[str, Any]:
    """What the kernel did."""
    done = probe_of(form, load, sent, patient_for)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def loading(mechanism: str, options: Options, outbound_tproxy: bool) -> Loading:
    """Commands and their input that load the rules of every family enabled."""
    both = ruleset.build(options, *FAMILIES, outbound_tproxy=outbound_tproxy)
    steps = [(["ip", routing.OPTION[family], "-batch", "-"], text) for family, text in routing.render(both).items()]
    if "ipv6" not in both.families or not both.mesh.passthrough_v6:
        steps.append(PASSED_THROUGH)
    if mechanism == "nftables":
        return [*steps, (["nft", "-f", "-"], nftables.render(both))]
    for family, tool in TOOLS.items():
        if family in both.families:
            one = ruleset.build(options, family, outbound_tproxy=outbound_tproxy)
            steps.append(([f"{tool}-restore", "--noflush"], iptables.render(one)))
    return steps


def predicted(mechanism: str, options: Options, outbound_tproxy: bool, sent: list[Packet]) -> dict[str, Any]:
    """What the evaluator says the kernel will do, in the probe's form."""
    left, arrived, hits = [], [], Counter[tuple[str, int]]()
    both = ruleset.build(options, *FAMILIES, outbound_tproxy=outbound_tproxy)
    rule_sets = {f: ruleset.build(options, f, outbound_tproxy=outbound_tproxy) for f in FAMILIES}
    for packet in sent:
        family = family_of(packet)
        outcome = verdict.judge(both if mechanism == "nftables" else rule_sets[family], packet)
        seen = [PROTOCOLS[packet.protocol], packet.source_port, outcome.destination_port, outcome.mark, outcome.zone]
        if outcome.what != "dropped":
            (arrived if outcome.arrives else left).append(seen)
        tool = f"{TOOLS[family]} " if mechanism == "iptables" else ""
        for (table, chain, index), count in outcome.hits.items():
            hits[f"{tool}{table} {chain}", index] += count
    return {"left": sorted(left), "arrived": sorted(arrived), "hits": dict(hits)}


def observed(
    mechanism: str, options: Options, outbound_tproxy: bool, sent: list[Packet], patient_for: int
) -> dict[str, Any]:
    """The same, as the kernel did it; so many packets are waited for."""
    answer = in_namespace(mechanism, loading(mechanism, options, outbound_tproxy), sent, patient_for)
    counters = answer.pop("counters")
    hits = {(place, i): n for place, counts in counters.items() for i, n in enumerate(counts) if n}
    return {**answer, "hits": hits}
