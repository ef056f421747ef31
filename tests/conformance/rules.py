"""The rules of Istio's agent, as iptables and as its own nftables, against ours: by what the kernel does to packets."""

from __future__ import annotations

import collections
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.conformance.section import Section
from tests.interception import asking

from meshdns.interception import ruleset
from meshdns.interception.options import Options, from_json
from meshdns.interception.ruleset import FAMILIES
from meshdns.interception.verdict import Packet

FORMS = ("iptables", "nftables")
SETS = 60  # of options, each in both forms with 60 packets: two minutes
# Ours -> the agent's, and what it takes from the environment of its container.
FLAGS = {
    "proxy_port": "-p", "inbound_capture_port": "-z", "inbound_tunnel_port": "-e", "proxy_uid": "-u", "proxy_gid": "-g",
    "inbound_interception_mode": "-m", "inbound_tproxy_mark": "-t", "inbound_tproxy_route_table": "-r",
    "inbound_ports_include": "-b", "inbound_ports_exclude": "-d", "outbound_ports_include": "-q",
    "outbound_ports_exclude": "-o", "outbound_ip_ranges_include": "-i", "outbound_ip_ranges_exclude": "-x",
    "reroute_virtual_interfaces": "-k", "exclude_interfaces": "-c",
}  # fmt: skip
SWITCHES = {
    "redirect_dns": "--redirect-dns", "capture_all_dns": "--capture-all-dns", "drop_invalid": "--drop-invalid",
    "enable_ipv6": "--dual-stack",
}  # fmt: skip
ENVIRONMENT = {
    "owner_groups_include": "ISTIO_OUTBOUND_OWNER_GROUPS",
    "owner_groups_exclude": "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    "host_ipv4_loopback_cidr": "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
}

Place = tuple[str, int, int, int]  # left or arrived, destination port, mark, conntrack zone
Key = tuple[int, int]  # protocol and source port, which tell packets apart


@dataclass(frozen=True)
class Difference:
    """One in what the rules mean."""

    id: str
    agent: str
    here: str
    holds: Callable[[Options, str, Packet | None], bool]  # of a packet in this form; None: of the rules as a whole


DIFFERENCES = (
    Difference(
        "nftables-ipv6",
        "native nftables capture IPv6 although it is off",
        "what is off has no rules, in either form",
        lambda options, form, packet: (
            packet is not None and form == "nftables" and not options.enable_ipv6 and ":" in packet.source
        ),
    ),
    Difference(
        "nftables-interface",
        "native nftables refuse a prefix of interfaces (`eth+`)",
        "it is written as nft has it (`eth*`)",
        lambda options, form, packet: packet is None and form == "nftables" and "+" in options.exclude_interfaces,
    ),
)


@dataclass
class Found:
    """What came of it."""

    packets: int = 0
    explained: collections.Counter[str] = field(default_factory=collections.Counter)  # by difference
    wrong: list[str] = field(default_factory=list)


def compare(agent: Path, seed: int, form: str, found: Found) -> None:
    """One set of options in one form."""
    rng = Random(seed)
    options = from_json(asking.option_values(rng), "options")
    rules = ruleset.build(options, *FAMILIES)
    sent = [asking.routed(rules, packet) for packet in asking.packets(rng)]
    expected = asking.predicted(form, options, False, sent)
    there = len(expected["arrived"]) + len(expected["left"])
    answer, said = _under_the_agents(agent, options, form, sent, there)
    found.packets += len(sent)
    where = f"{form}, options {seed}"
    refused = _stated(options, form, None)
    if bool(refused) != (answer is None):
        found.wrong.append(f"{where}: the agent {'takes' if refused else 'refuses'} {options} {said}")
    found.explained.update(refused)
    if answer is None:
        return
    theirs, ours = _by_packet(answer), _by_packet(expected)
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) == ours.get(key):
            continue
        packets = [one for one in sent if (asking.PROTOCOLS[one.protocol], one.source_port) == key]
        why = {name for one in packets for name in _stated(options, form, one)}
        found.explained.update(why)
        if not why:
            found.wrong.append(f"{where}: {packets} agent {theirs.get(key)}, here {ours.get(key)}")


def _stated(options: Options, form: str, packet: Packet | None) -> list[str]:
    return [one.id for one in DIFFERENCES if one.holds(options, form, packet)]


def _by_packet(seen: dict[str, Any]) -> dict[Key, list[Place]]:
    places: dict[Key, list[Place]] = {}
    for end in ("left", "arrived"):
        for protocol, source_port, *rest in seen[end]:
            places.setdefault((protocol, source_port), []).append((end, *rest))
    return {key: sorted(each) for key, each in places.items()}


def command(agent: Path, options: Options, form: str) -> list[str]:
    """What makes the agent's rules, with its environment."""
    environment = [f"{name}={getattr(options, ours)}" for ours, name in ENVIRONMENT.items()]
    flags = [word for ours, flag in FLAGS.items() for word in (flag, str(getattr(options, ours)))]
    switches = [flag for ours, flag in SWITCHES.items() if getattr(options, ours)]
    native = ["--native-nftables"] * (form == "nftables")
    return ["env", *environment, str(agent), "istio-iptables", *flags, *switches, *native]


def _under_the_agents(
    agent: Path, options: Options, form: str, sent: list[Packet], patient_for: int
) -> tuple[dict[str, Any] | None, str]:
    """What the kernel did under its rules; None, and what it said, where it made none."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as resolv:
        resolv.writelines(f"nameserver {one}\n" for one in (*options.dns_servers_v4, *options.dns_servers_v6))
        resolv.flush()
        load = [(["mount", "--bind", resolv.name, "/etc/resolv.conf"], ""), (command(agent, options, form), "")]
        if not options.enable_ipv6:  # else the agent gives the pod this address
            load.append(asking.PASSED_THROUGH)
        done = asking.probe_of(form, load, sent, patient_for)
    return (None, done.stderr[-600:]) if done.returncode else (json.loads(done.stdout), "")


def run(agent: Path, seeds: range = range(SETS)) -> Found:
    """Every set of options in both forms."""
    found = Found()
    for seed in seeds:
        for form in FORMS:
            compare(agent, seed, form, found)
    return found


def unseen(found: Found) -> Iterator[str]:
    """Listed differences that no packet has shown."""
    return (one.id for one in DIFFERENCES if not found.explained[one.id])


def section(agent: Path) -> Section:
    """For the page."""
    found = run(agent)
    intro = (
        f"The rules that the agent makes and those of `meshdns rules` for {SETS} random sets of options, as iptables"
        f" and as nftables, by what the kernel does to {found.packets:,} packets: where each arrives or leaves, by"
        " which port, mark and connection tracking zone. Where they differ, one of the differences below must say so."
    )
    wrong = [*found.wrong, *(f"{name}: the difference was not seen" for name in unseen(found))]
    rows = [[f"`{d.id}`", d.agent, d.here] for d in DIFFERENCES]
    return Section("Interception", intro, wrong, ["difference", "the agent", "these rules"], rows)
