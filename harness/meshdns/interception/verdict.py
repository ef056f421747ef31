"""What the rules do to a packet, by walking the kernel's hooks in its order.

Per hook: raw, then connection tracking, then mangle, then nat, which is asked for the first packet of a connection
only. A packet that leaves by lo comes in again by lo with its connection known: there raw cannot choose a zone any
more, and nat is not asked again.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .loaded import group_id
from .options import Family, Network
from .ruleset import Act, Field, Match, RuleSet, Verdict

_LOOPBACK = {4: "127.0.0.1", 6: "::1"}  # where REDIRECT in OUTPUT sends
_HOOK_ORDER = ("raw", "mangle", "nat")

Spot = tuple[str, str, int]  # table, chain, index of a rule there


@dataclass(frozen=True)
class Packet:
    """A packet as it meets the first hook: leaving ("out") or arriving ("in")."""

    path: Literal["out", "in"]
    protocol: str  # "tcp", "udp", or any other name
    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    interface: str = "eth0"  # by which it leaves or arrives
    uid: int | None = None  # of the socket; None: none, as for what the kernel itself sends
    gid: int | None = None
    mark: int = 0
    state: str = "NEW"  # as conntrack has it
    connection_mark: int = 0
    direction: str = "ORIGINAL"


@dataclass(frozen=True)
class Outcome:
    """What became of a packet, and which rules it matched."""

    what: Literal["accepted", "redirected", "tproxied", "dropped"]
    port: int  # of the proxy that gets it; 0 if none does
    zone: int  # conntrack zone; 0 is the ordinary one
    mark: int
    connection_mark: int
    destination: str  # as it arrives or leaves
    destination_port: int
    arrives: bool  # at this machine, as against: leaves it (or is dropped)
    hits: Mapping[Spot, int] = field(default_factory=dict)  # how often each rule's counter moved

    def __str__(self) -> str:
        words = self.what if not self.port else f"{self.what} to {self.port}"
        words += f", zone {self.zone}" if self.zone else ""
        return words + (f", mark {self.mark}" if self.mark else "")


def judge(rules: RuleSet, packet: Packet) -> Outcome:
    """The outcome for a packet; in a rule set of both families the packet meets the rules of its own."""
    walk = _Walk(rules, packet)
    if packet.path == "in":
        walk.hook("PREROUTING")
        return walk.outcome()
    walk.hook("OUTPUT")
    # What is redirected goes to a loopback address; what is marked for a local route goes where that leads.
    if not walk.dropped and (packet.interface == "lo" or walk.port or rules.routes_home(walk.mark, walk.family)):
        walk.packet = replace(walk.packet, path="in", interface="lo")
        walk.hook("PREROUTING")
    return walk.outcome()


class _Walk:
    """One packet on its way."""

    def __init__(self, rules: RuleSet, packet: Packet) -> None:
        self.rules = rules
        self.packet = packet
        self.family: Family = "ipv6" if ":" in packet.source else "ipv4"
        self.known = False  # conntrack has seen it: zones are chosen, nat is done
        self.zone = 0
        self.mark = packet.mark
        self.connection_mark = packet.connection_mark
        self.port = 0
        self.tproxied = self.dropped = False
        self.hits: Counter[Spot] = Counter()

    def hook(self, chain: str) -> None:
        """All tables of one hook."""
        asked = [t for t in _HOOK_ORDER if t != "nat" or (self.packet.state == "NEW" and not self.known)]
        for table in asked:
            if not self.dropped:
                self._chain(table, chain)
        self.known = True

    def outcome(self) -> Outcome:
        """Where it got to."""
        what: Literal["accepted", "redirected", "tproxied", "dropped"] = "accepted"
        if self.dropped:
            what = "dropped"
        elif self.port:
            what = "tproxied" if self.tproxied else "redirected"
        return Outcome(
            what, 0 if self.dropped else self.port, self.zone, self.mark, self.connection_mark,
            self.packet.destination, self.packet.destination_port,
            not self.dropped and self.packet.path == "in", dict(self.hits),
        )  # fmt: skip

    def _chain(self, table: str, chain: str) -> bool:
        """Walk a chain; whether the table has decided (as against: go on behind the jump)."""
        for index, step in enumerate(self.rules.ordered.get(table, {}).get(chain, ())):
            rule = step.rule
            if self.family not in step.families or not all(self._holds(one) != one.negated for one in rule.matches):
                continue
            self.hits[table, chain, index] += 1
            if rule.verdict.act is Act.RETURN:
                return False
            if rule.verdict.act is Act.JUMP:
                if self._chain(table, rule.verdict.chain):
                    return True
            elif self._act(rule.verdict):
                return True
        return False

    def _act(self, verdict: Verdict) -> bool:
        """Do what a rule says; whether that decides the table."""
        match verdict.act:
            case Act.REDIRECT:
                self.port = self.port or verdict.port
                address = self.packet.destination
                if self.packet.path == "out":
                    address = _LOOPBACK[ipaddress.ip_address(address).version]
                self.packet = replace(self.packet, destination=address, destination_port=verdict.port)
            case Act.TPROXY:
                self.port, self.tproxied, self.mark = verdict.port, True, verdict.mark
            case Act.DROP:
                self.dropped = True
            case Act.SET_MARK:
                self.mark = verdict.mark
            case Act.SET_CONNECTION_MARK:
                self.connection_mark = verdict.mark
            case Act.SAVE_MARK:
                self.connection_mark = self.mark
            case Act.RESTORE_MARK:
                self.mark = self.connection_mark
            case Act.ZONE if not self.known:
                self.zone = self.zone or verdict.zone
        return verdict.act in (Act.ACCEPT, Act.DROP, Act.REDIRECT, Act.TPROXY)

    def _holds(self, match: Match) -> bool:
        packet = self.packet
        if match.field in (Field.IN_INTERFACE, Field.OUT_INTERFACE):
            right_way = (match.field is Field.IN_INTERFACE) == (packet.path == "in")
            return right_way and any(_is_interface(packet.interface, str(value)) for value in match.values)
        if match.field in (Field.SOURCE, Field.DESTINATION):
            address = packet.source if match.field is Field.SOURCE else packet.destination
            networks = (value for value in match.values if isinstance(value, Network))
            return any(ipaddress.ip_address(address) in network for network in networks)
        if match.field is Field.GID:
            return packet.gid in [group_id(str(value)) for value in match.values]
        found = _VALUES[match.field](self)
        return any(found in value if isinstance(value, range) else found == value for value in match.values)


_VALUES: Mapping[Field, Callable[[_Walk], int | str | None]] = {
    Field.PROTOCOL: lambda walk: walk.packet.protocol,
    Field.SOURCE_PORT: lambda walk: walk.packet.source_port,
    Field.DESTINATION_PORT: lambda walk: walk.packet.destination_port,
    Field.UID: lambda walk: walk.packet.uid,
    Field.MARK: lambda walk: walk.mark,
    Field.CONNECTION_MARK: lambda walk: walk.connection_mark,
    Field.STATE: lambda walk: walk.packet.state,
    Field.DIRECTION: lambda walk: walk.packet.direction,
}


def _is_interface(name: str, wanted: str) -> bool:
    """Equal, or for "eth+" beginning so."""
    return name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted
