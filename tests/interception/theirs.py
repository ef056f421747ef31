"""Other meshes' own rules, from the public fixtures of their generators, beside ours for the same options.

A file of fixtures/ holds facts: `source` is where those below it stand, `options` are the fixture's in our words, then
follow the rules as iptables spells them, with their table. `differs` names what in them we have no rules for; `path`
the only way of packets that the fixture has rules for.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from meshdns.interception import ruleset, verdict
from meshdns.interception.options import Family, Options, Port, from_json
from meshdns.interception.ruleset import RETURN, Act, Field, Match, Rule, RuleSet, Step, Verdict
from meshdns.interception.verdict import Outcome, Packet

FOLDER = Path(__file__).with_name("fixtures")
MESHES = ("linkerd", "kuma", "consul")
PACKETS = 1000  # per fixture
ELSEWHERE = -1  # in the place of a port: to another machine's address
COMMITS = re.compile(r"\b[0-9a-f]{40}\b")


@dataclass
class Fixture:
    """Options and the rules that another generator makes of them."""

    mesh: str
    source: str
    name: str
    family: Family = "ipv4"
    values: dict[str, Any] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    path: str = ""
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.mesh} {self.name}"

    def restore(self) -> str:
        """The rules as iptables-restore reads them."""
        text = ""
        for table in dict.fromkeys(line.split()[0] for line in self.lines):
            rules = [line.removeprefix(f"{table} ") for line in self.lines if line.startswith(f"{table} ")]
            chains = {rule.split()[1] for rule in rules} - set(ruleset.BASE_CHAINS)
            text += "\n".join([f"*{table}", *(f"-N {chain}" for chain in sorted(chains)), *rules, "COMMIT", ""])
        return text

    def options(self) -> Options:
        return from_json(self.values, self.name, self.mesh)

    @cached_property
    def ours(self) -> RuleSet:
        return ruleset.build(self.options(), self.family)

    @cached_property
    def theirs(self) -> RuleSet:
        return RuleSet((self.family,), tuple(_step(line, self.family) for line in self.lines))


def fixtures(mesh: str) -> list[Fixture]:
    """All of a mesh."""
    found: list[Fixture] = []
    source = ""
    for line in (FOLDER / f"{mesh}.rules").read_text().splitlines():
        word, _, rest = line.partition(" ")
        match word:
            case "" | "#":
                continue
            case "source":
                source = rest
            case "fixture":
                found.append(Fixture(mesh, source, rest))
            case "family":
                found[-1].family = "ipv6" if rest == "ipv6" else "ipv4"
            case "options":
                found[-1].values = json.loads(rest)
            case "differs":
                found[-1].differs = tuple(rest.split())
            case "path":
                found[-1].path = rest
            case _:
                found[-1].lines.append(line)
    return found


ALL = [one for mesh in MESHES for one in fixtures(mesh)]

_FIELDS = {
    "-p": Field.PROTOCOL, "-i": Field.IN_INTERFACE, "-o": Field.OUT_INTERFACE, "-s": Field.SOURCE,
    "-d": Field.DESTINATION, "--dport": Field.DESTINATION_PORT, "--dports": Field.DESTINATION_PORT,
    "--destination-port": Field.DESTINATION_PORT, "--sport": Field.SOURCE_PORT, "--uid-owner": Field.UID,
    "--gid-owner": Field.GID,
}  # fmt: skip


def _step(line: str, family: Family) -> Step:
    table, action, chain, *words = shlex.split(line)
    position = int(words.pop(0)) if action == "-I" and words[0].isdigit() else 1 if action == "-I" else None
    matches, target, argument, negated = list[Match](), "", "", False
    pairs = iter(words)
    for word in pairs:
        if word == "!":
            negated = True
            continue
        value = next(pairs)
        if word == "-j":
            target = value
        elif word in ("--to-port", "--to-ports", "--to-destination", "--zone"):
            argument = value
        elif word in _FIELDS and (word, value) != ("-p", "all"):
            matches.append(Match(_FIELDS[word], tuple(_values(_FIELDS[word], value)), negated))
            negated = False
        elif word not in ("-m", "--match", "-p"):
            raise ValueError(f"{word} in {line}: not understood")
    return Step(table, chain, Rule(tuple(matches), _verdict(target, argument)), position, (family,))


def _values(of: Field, text: str) -> Iterator[Port | str | ruleset.Network]:
    if of in (Field.SOURCE, Field.DESTINATION):
        yield ipaddress.ip_network(text, strict=False)
    elif of in (Field.PROTOCOL, Field.IN_INTERFACE, Field.OUT_INTERFACE):
        yield text
    else:
        for item in text.split(","):
            low, *high = re.split("[:-]", item)
            yield range(int(low), int(high[0]) + 1) if high else int(low)


def _verdict(target: str, argument: str) -> Verdict:
    match target:
        case "RETURN":
            return RETURN
        case "DROP":
            return Verdict(Act.DROP)
        case "REDIRECT":
            return Verdict(Act.REDIRECT, port=int(argument))
        case "CT":
            return Verdict(Act.ZONE, zone=int(argument))
        case "DNAT":
            address, _, port = argument.rpartition(":")
            return Verdict(Act.REDIRECT, port=int(port) if address in ("127.0.0.1", "[::1]") else ELSEWHERE)
    return Verdict(Act.JUMP, target)


@dataclass(frozen=True)
class Pools:
    """What the rules of a fixture may look at: values on both sides of each of their conditions."""

    ports: tuple[int, ...]
    owners: tuple[int, ...]
    addresses: tuple[str, ...]
    own: tuple[str, ...]  # by lo
    interfaces: tuple[str, ...]

    def packet(self, pick: Callable[[tuple[Any, ...]], Any]) -> Packet:
        """One, each of its properties picked."""
        way = pick(("in", "out", "out", "lo"))
        protocol, ports = pick(("tcp", "tcp", "udp")), (pick(self.ports), pick(self.ports))
        if way == "in":
            return Packet("in", protocol, pick(self.addresses), pick(self.addresses), *ports, pick(self.interfaces))
        owner = pick(self.owners), pick(self.owners)
        if way == "lo":
            return Packet("out", protocol, pick(self.own), pick(self.own), *ports, "lo", *owner)
        return Packet("out", protocol, pick(self.addresses), pick(self.addresses), *ports, "eth0", *owner)


def pools(fixture: Fixture) -> Pools:
    """From both rule sets."""
    found: dict[Field, set[Any]] = {one: set() for one in Field}
    for step in (*fixture.theirs.steps, *fixture.ours.steps):
        for match in step.rule.matches:
            for value in match.values:
                if isinstance(value, range):
                    found[match.field] |= {value.start - 1, value.start, value.stop - 1, value.stop}
                elif isinstance(value, int):
                    found[match.field] |= {value, value + 1}
                else:
                    found[match.field].add(value)
        if step.rule.verdict.act is Act.REDIRECT:
            found[Field.DESTINATION_PORT].add(step.rule.verdict.port)
    ports = {port for port in found[Field.DESTINATION_PORT] | found[Field.SOURCE_PORT] if 0 < port < 65536}
    networks = found[Field.SOURCE] | found[Field.DESTINATION]
    inside = {str(address) for net in networks for address in (net[0], net[min(9, net.num_addresses - 1)], net[-1])}
    if fixture.family == "ipv4":
        usual, own = {"198.18.7.9", "10.9.9.9", "240.240.0.10", "8.8.8.8"}, {"127.0.0.1", "127.0.0.6", "198.18.7.2"}
    else:
        usual, own = {"fd12::9", "2001:db8::8", "fe80::2"}, {"::1", "::6", "fd00:7::2"}
    interfaces = {name.replace("+", "7") for name in found[Field.IN_INTERFACE] if name != "lo"}
    return Pools(
        tuple(sorted(ports | {53, 80, 8080, 40000})),
        tuple(sorted(found[Field.UID] | found[Field.GID] | {0, 1000, 65534})),
        tuple(sorted(inside | usual)),
        tuple(sorted(own | {one for one in inside if ipaddress.ip_address(one).is_loopback})),
        ("eth0", *sorted(interfaces)),
    )


def said(outcome: Outcome) -> tuple[str, int, int]:
    """What is compared: what becomes of a packet, at which port, in which conntrack zone."""
    return outcome.what, outcome.port, outcome.zone


def _hit(outcome: Outcome, rules: RuleSet, asked: Callable[[Step], bool]) -> bool:
    return any(asked(rules.ordered[table][chain][index]) for table, chain, index in outcome.hits)


def _asks(step: Step, *fields: Field) -> bool:
    return set(fields) <= {match.field for match in step.rule.matches}


# What in their rules we have none for, and by which packets it shows: theirs meets such a rule, or lacks one.
DIFFERENCES: dict[str, Callable[[RuleSet, Outcome, Outcome], bool]] = {
    "ports-of-users": lambda rules, theirs, _: _hit(
        theirs, rules, lambda step: step.chain == "OUTPUT" and _asks(step, Field.UID, Field.DESTINATION_PORT)
        and step.rule.verdict.act is Act.RETURN and not any(m.values == (53,) for m in step.rule.matches),
    ),
    "vnet": lambda rules, theirs, _: _hit(theirs, rules, lambda step: _asks(step, Field.IN_INTERFACE)),
    "no-zones": lambda _, theirs, ours: said(theirs)[:2] == said(ours)[:2] and not theirs.zone,
    "dns-elsewhere": lambda rules, theirs, _: theirs.port == ELSEWHERE,
}  # fmt: skip


def agrees(fixture: Fixture, packet: Packet) -> bool:
    """The same becomes of the packet. Raises AssertionError where it does not, and the fixture does not say why."""
    theirs, ours = fixture.theirs, fixture.ours
    there, here = verdict.judge(theirs, packet), verdict.judge(ours, packet)
    if said(there) == said(here):
        return True
    reasons = [name for name in fixture.differs if DIFFERENCES[name](theirs, there, here)]
    assert reasons, f"{fixture}: {packet}: theirs {there}, ours {here}"
    return False


@dataclass(frozen=True)
class Tally:
    """Of one mesh."""

    fixtures: int
    whole: int  # fixtures that agree in every verdict
    verdicts: int
    agreeing: int


def tally(mesh: str) -> Tally:
    """As the documentation has it: the same packets each time."""
    counts = []
    for one in fixtures(mesh):
        rng, pool = Random(str(one)), pools(one)
        packets = [
            packet for packet in (pool.packet(rng.choice) for _ in range(PACKETS)) if one.path in ("", packet.path)
        ]
        counts.append((len(packets), sum(agrees(one, packet) for packet in packets)))
    whole = sum(total == same for total, same in counts)
    return Tally(len(counts), whole, sum(total for total, _ in counts), sum(same for _, same in counts))
