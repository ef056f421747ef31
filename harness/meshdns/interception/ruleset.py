"""The rules, in neutral terms: tables hold chains, chains hold rules, a rule is conditions and a verdict.

Built once from the options, in the order of Istio's sidecar interception (tools/istio-iptables, capture/run.go), for
one family or both; another mesh's rules are the same blocks in the order and under the names of its conventions. The
renderers spell it, `verdict` evaluates it; neither adds or leaves out a rule. Where Istio's rules have a fault the same
fault is here, and `faults` names it.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property

from .conventions import ALL, ISTIO, Conventions
from .options import Family, Network, Options, Port, split
from .refusal import Refusal

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
TABLES = ("mangle", "nat", "raw")  # by name, as Istio's text has them
BASE_CHAINS = ("PREROUTING", "OUTPUT")
# Of every mesh: a pod is in one. Who loads another's rules beside these must say so.
OUR_CHAINS = frozenset(chain for mesh in ALL.values() for chain in mesh.chains.names())
LOOPBACK_V6 = "::1/128"  # not an option in Istio


class Field(Enum):
    """What of a packet a condition looks at."""

    IN_INTERFACE = "in interface"
    OUT_INTERFACE = "out interface"
    PROTOCOL = "protocol"
    SOURCE = "source"
    DESTINATION = "destination"
    SOURCE_PORT = "source port"
    DESTINATION_PORT = "destination port"
    UID = "uid"
    GID = "gid"
    MARK = "mark"
    CONNECTION_MARK = "connection mark"
    STATE = "state"
    DIRECTION = "direction"


Value = Port | str | Network


@dataclass(frozen=True)
class Match:
    """One condition: the field has one of the values, or, negated, none of them."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False


class Act(Enum):
    """What a rule does with a packet."""

    RETURN = auto()  # back to the calling chain; from a base chain: accepted by this table
    ACCEPT = auto()  # by this table
    DROP = auto()
    JUMP = auto()  # the rules of another chain of the table, then the next one here
    REDIRECT = auto()  # to a port of this machine (SO_ORIGINAL_DST tells where it wanted to go)
    TPROXY = (
        auto()
    )  # to the transparent socket on a port, destination unchanged, marked so that routing delivers it here
    # These go on with the next rule.
    SET_MARK = auto()  # the packet carries a mark
    SET_CONNECTION_MARK = auto()
    SAVE_MARK = auto()  # the connection carries the packet's mark
    RESTORE_MARK = auto()  # the packet carries the connection's mark
    ZONE = auto()  # the packet is looked up in a conntrack zone, unless one was chosen before


@dataclass(frozen=True)
class Verdict:
    """An act, and what it needs."""

    act: Act
    chain: str = ""
    port: int = 0
    mark: int = 0
    address: str = ""  # of TPROXY's socket; empty: any
    zone: int = 0


RETURN, ACCEPT = Verdict(Act.RETURN), Verdict(Act.ACCEPT)


@dataclass(frozen=True)
class Rule:
    """Conditions that must all hold, and what is done then."""

    matches: tuple[Match, ...]
    verdict: Verdict
    name: str = ""  # its counter is read by this name


@dataclass(frozen=True)
class Step:
    """A rule where Istio puts it: at the end of a chain, or inserted at a position (1 is the first)."""

    table: str
    chain: str
    rule: Rule
    position: int | None = None
    families: tuple[Family, ...] = FAMILIES


@dataclass(frozen=True)
class RuleSet:
    """Steps in Istio's order, of one family or both."""

    families: tuple[Family, ...]
    steps: tuple[Step, ...]
    mark_routes: tuple[tuple[int, int], ...] = ()  # mark, routing table that delivers all to this machine
    apart: bool = False  # of one family, where the options are for both: loading them must not unload the other's
    mesh: Conventions = ISTIO  # after which nft's tables are named

    @cached_property
    def ordered(self) -> dict[str, dict[str, tuple[Step, ...]]]:
        """Table -> chain -> steps in the kernel's order; chains in order of their first rule."""
        found: dict[str, dict[str, list[Step]]] = {}
        for step in self.steps:
            chain = found.setdefault(step.table, {}).setdefault(step.chain, [])
            chain.insert(_index(chain, step), step)
        return {table: {c: tuple(found[table][c]) for c in found[table]} for table in TABLES if table in found}

    def of(self, *families: Family) -> RuleSet:
        """Its rules of these families alone."""
        wanted = tuple(family for family in self.families if family in families)
        steps = (replace(s, families=tuple(f for f in wanted if f in s.families)) for s in self.steps)
        return replace(self, families=wanted, steps=tuple(step for step in steps if step.families))

    def routes_home(self, mark: int, family: Family) -> bool:
        """A packet with this mark is delivered to this machine, wherever it is addressed."""
        return family in self.families and mark in (marked for marked, _ in self.mark_routes)


def _index(chain: list[Step], step: Step) -> int:
    """Where a step goes; with both families in one chain, a position counts the rules that a family sees."""
    if step.position is None:
        return len(chain)
    seen = {f: [i + 1 for i, other in enumerate(chain) if f in other.families] for f in step.families}
    return max(indices[step.position - 2] if step.position > 1 else 0 for indices in seen.values())


def build(options: Options, *families: Family, outbound_tproxy: bool = False) -> RuleSet:
    """The rule set of one family, or of several together.

    For IPv6 it is empty unless `enable_ipv6`. `outbound_tproxy`: outbound TCP keeps its destination address too, which
    Istio does not offer; raises Refusal where its mark is taken, and for other meshes.
    """
    mesh = options.mesh
    if outbound_tproxy and not mesh.output_mark:
        raise Refusal(f"outbound TPROXY has no chains and no mark under {mesh.title}'s conventions: leave it out")
    if outbound_tproxy and int(options.inbound_tproxy_mark) == mesh.output_mark:
        raise Refusal(f'inbound_tproxy_mark is "{mesh.output_mark}", which marks outbound TPROXY: choose another mark')
    wanted = tuple(family for family in FAMILIES if family in families and (family == "ipv4" or options.enable_ipv6))
    builder = _Builder(options)
    builder.capture()
    if outbound_tproxy:
        builder.outbound_tproxy()
    table = int(options.inbound_tproxy_route_table)
    marks = [int(options.inbound_tproxy_mark)] if options.tproxy and options.inbound_ports_include else []
    marks += [mesh.output_mark] if outbound_tproxy else []
    routes = tuple((mark, table) for mark in marks) if wanted else ()
    apart = options.enable_ipv6 and len(wanted) == 1
    return RuleSet(FAMILIES, tuple(builder.steps), routes, apart=apart, mesh=mesh).of(*wanted)


TCP, UDP = Match(Field.PROTOCOL, ("tcp",)), Match(Field.PROTOCOL, ("udp",))
BY_LO, FROM_LO = Match(Field.OUT_INTERFACE, ("lo",)), Match(Field.IN_INTERFACE, ("lo",))


def _to_port(*ports: Port, negated: bool = False) -> Match:
    return Match(Field.DESTINATION_PORT, ports, negated)


def _from_port(port: int) -> Match:
    return Match(Field.SOURCE_PORT, (port,))


def _to(network: Network | str, negated: bool = False) -> Match:
    return Match(Field.DESTINATION, (ipaddress.ip_network(network),), negated)


def _from(network: Network | str) -> Match:
    return Match(Field.SOURCE, (ipaddress.ip_network(network),))


def _owner(field: Field, owner: int | str, negated: bool = False) -> Match:
    return Match(field, (owner,), negated)


def _mark(mark: int, negated: bool = False) -> Match:
    return Match(Field.MARK, (mark,), negated)


def _jump(chain: str) -> Verdict:
    return Verdict(Act.JUMP, chain)


def _redirect(port: int) -> Verdict:
    return Verdict(Act.REDIRECT, port=port)


def _state(*states: str, negated: bool = False) -> Match:
    return Match(Field.STATE, states, negated)


class _Builder:
    """Collects steps; one method per block of Istio's run.go, called in the mesh's order."""

    def __init__(self, options: Options) -> None:
        self.options, self.mesh, self.chains = options, options.mesh, options.mesh.chains
        self.steps: list[Step] = []
        loopback: dict[Family, str] = {"ipv4": options.host_ipv4_loopback_cidr, "ipv6": LOOPBACK_V6}
        self.loopback = {f: ipaddress.ip_network(text, strict=False) for f, text in loopback.items()}
        passthrough: dict[Family, str] = {"ipv4": self.mesh.passthrough_v4, "ipv6": self.mesh.passthrough_v6}
        self.passthrough = {family: address for family, address in passthrough.items() if address}
        order = self.mesh.outbound
        # Where DNS is asked about behind the proxy's users, what they are told must leave it to the rules for DNS.
        self.dns_later = options.captures_dns and order.index("dns") > order.index("owners")

    def add(self, table: str, chain: str, matches: Iterable[Match], verdict: Verdict, *,
            name: str = "", position: int | None = None, only: Family | None = None) -> None:  # fmt: skip
        families = FAMILIES if only is None else (only,)
        self.steps.append(Step(table, chain, Rule(tuple(matches), verdict, name), position, families))

    def capture(self) -> None:
        """All of the mesh's rules."""
        self._excluded_interfaces()
        self._virtual_interfaces_return()
        self._invalid()
        if self.options.inbound_tunnel_port:
            self.add("nat", self.chains.inbound, [TCP, _to_port(self.options.inbound_tunnel_port)], RETURN)
        if self.chains.redirect:
            self.add("nat", self.chains.redirect, [TCP], _redirect(self.options.proxy_port), name="redirect_tcp")
        if self.chains.in_redirect:
            self.add("nat", self.chains.in_redirect, [TCP], _redirect(self.options.inbound_capture_port))
        self._inbound()
        self.add("nat", "OUTPUT", [], _jump(self.chains.output))
        for block in self.mesh.outbound:
            getattr(self, f"_{block}")()
        if self.options.tproxy:
            self._inbound_marks()

    def _out(self, matches: list[Match], *, only: Family | None = None) -> None:
        """Outbound packets that the proxy gets."""
        if self.chains.redirect:
            self.add("nat", self.chains.output, matches, _jump(self.chains.redirect), only=only)
        else:
            to_proxy = _redirect(self.options.proxy_port)
            matches = [TCP, *(match for match in matches if match != TCP)]
            self.add("nat", self.chains.output, matches, to_proxy, name="redirect_tcp", only=only)

    def _excluded_interfaces(self) -> None:
        for table in ("nat", "mangle") if self.options.tproxy else ("nat",):
            for name in split(self.options.exclude_interfaces):
                self.add(table, "PREROUTING", [Match(Field.IN_INTERFACE, (name,))], RETURN)
                self.add(table, "OUTPUT", [Match(Field.OUT_INTERFACE, (name,))], RETURN)

    def _virtual_interfaces_return(self) -> None:
        """Redirects are inserted before these later, so that what is not redirected is not taken for inbound."""
        for name in split(self.options.reroute_virtual_interfaces):
            self.add("nat", "PREROUTING", [Match(Field.IN_INTERFACE, (name,))], RETURN, position=1)

    def _invalid(self) -> None:
        if self.options.drop_invalid:
            self.add("mangle", "PREROUTING", [_state("INVALID")], _jump(self.chains.drop))
            self.add("mangle", self.chains.drop, [], Verdict(Act.DROP))

    def _inbound(self) -> None:
        options, capture = self.options, self._capture_inbound
        if options.inbound_ports_include == "":
            return
        if options.tproxy:
            mark = int(options.inbound_tproxy_mark)
            self.add("mangle", self.chains.divert, [], Verdict(Act.SET_MARK, mark=mark))
            self.add("mangle", self.chains.divert, [], ACCEPT)
            for family, network in self.loopback.items():
                to_proxy = Verdict(Act.TPROXY, port=options.inbound_capture_port, mark=mark)
                self.add("mangle", self.chains.tproxy, [_to(network, negated=True), TCP], to_proxy, only=family)
        table = "mangle" if options.tproxy else "nat"
        self.add(table, "PREROUTING", [TCP], _jump(self.chains.inbound))
        for family in FAMILIES:
            for network in options.ranges("inbound_ip_ranges_exclude", family):
                self.add(table, self.chains.inbound, [_from(network)], RETURN, only=family)
        if options.inbound_ports_include == "*" or self.mesh.lists_subtract:
            for port in options.ports("inbound_ports_exclude"):
                self.add(table, self.chains.inbound, [TCP, _to_port(port)], RETURN)
        if options.inbound_ports_include == "*":
            capture([TCP])
        for port in options.ports("inbound_ports_include"):
            capture([TCP, _to_port(port)])

    def _capture_inbound(self, matches: list[Match]) -> None:
        chain, in_redirect = self.chains.inbound, self.chains.in_redirect
        if self.options.tproxy:
            established = [*matches, _state("RELATED", "ESTABLISHED")]
            self.add("mangle", chain, established, _jump(self.chains.divert))
            self.add("mangle", chain, matches, _jump(self.chains.tproxy), name="inbound_tcp")
        else:
            to_proxy = _jump(in_redirect) if in_redirect else _redirect(self.options.inbound_capture_port)
            self.add("nat", chain, matches, to_proxy, name="inbound_tcp")

    def _excluded_ports(self) -> None:
        for port in self.options.ports("outbound_ports_exclude"):
            for protocol in (TCP, UDP):
                self.add("nat", self.chains.output, [protocol, _to_port(port)], RETURN)

    def _passthrough(self) -> None:
        for family, source in self.passthrough.items():
            self.add("nat", self.chains.output, [BY_LO, _from(source)], RETURN, only=family)

    def _owners(self) -> None:
        """Whoever must never be captured: the proxy."""
        for uid in self.options.uids:
            self._owner_block(Field.UID, uid, dns_aware=self.dns_later)
        for gid in self.options.gids:
            self._owner_block(Field.GID, gid, dns_aware=False)

    def _owner_block(self, field: Field, owner: int, *, dns_aware: bool) -> None:
        """The proxy to its own pod goes in by the inbound side; others on lo pass; the proxy's own packets pass."""
        ports = [53] * dns_aware + [self.options.inbound_tunnel_port] * bool(self.options.inbound_tunnel_port)
        spared = [_to_port(*ports, negated=True)] if ports else []
        if self.mesh.self_calls:
            for family, network in self.loopback.items():
                matches = [BY_LO, _to(network, negated=True), TCP, *spared, _owner(field, owner)]
                self.add("nat", self.chains.output, matches, _jump(self.chains.in_redirect), only=family)
        if self.mesh.self_calls and not self.options.loopback_families:
            others = _owner(field, owner, negated=True)
            # With DNS captured, TCP to port 53 of a local server must reach the DNS rules below.
            dns = [TCP, _to_port(53, negated=True)] if self.dns_later else []
            self.add("nat", self.chains.output, [BY_LO, *dns, others], RETURN)
        self.add("nat", self.chains.output, [_owner(field, owner)], RETURN)

    def _own_pod(self) -> None:
        self.add("nat", self.chains.output, [BY_LO], RETURN)

    def _owner_groups(self) -> None:
        if self.options.owner_groups_include == "*":
            for group in split(self.options.owner_groups_exclude):
                self.add("nat", self.chains.output, [_owner(Field.GID, group)], RETURN)
        else:
            none_of = [_owner(Field.GID, g, negated=True) for g in split(self.options.owner_groups_include)]
            self.add("nat", self.chains.output, none_of, RETURN)

    def _servers(self) -> dict[Family, list[str]]:
        """Per family the servers captured, as networks; none where every server is."""
        return {
            "ipv4": [f"{server}/32" for server in self.options.dns_servers_v4],
            "ipv6": [f"{server}/128" for server in self.options.dns_servers_v6],
        }

    def _dns(self) -> None:
        if not self.options.captures_dns:
            return
        everyone, servers = self.options.capture_all_dns, self._servers()
        chain = self.chains.output_dns or self.chains.output
        redirected = [p for p in (TCP, UDP) if p.values[0] in self.mesh.dns_protocols]
        if self.mesh.proxy_zone:
            self.add("raw", "OUTPUT", [], _jump(chain))
        named = tuple(family for family in FAMILIES if servers[family])
        if chain != self.chains.output and (everyone or named):
            only = None if everyone or len(named) == len(FAMILIES) else named[0]
            self.add("nat", self.chains.output, [], _jump(chain), only=only)
        if self.mesh.dns_spares_proxy:
            for protocol, uid in itertools.product(redirected, self.options.uids):
                self.add("nat", chain, [protocol, _to_port(53), _owner(Field.UID, uid)], RETURN)
        for protocol in redirected:
            to_proxy, name = _redirect(self.options.dns_port), f"redirect_dns_{protocol.values[0]}"
            if everyone:
                self.add("nat", chain, [protocol, _to_port(53)], to_proxy, name=name)
                continue
            for family in FAMILIES:
                for server in servers[family]:
                    self.add("nat", chain, [protocol, _to_port(53), _to(server)], to_proxy, name=name, only=family)
        for protocol in (p for p in (TCP, UDP) if p not in redirected):
            others = [_owner(Field.UID, uid, negated=True) for uid in self.options.uids]
            self.add("nat", chain, [protocol, _to_port(53), *others], RETURN)
        if self.mesh.proxy_zone:
            self._dns_zones(chain)

    def _dns_zones(self, chain: str) -> None:
        """The first zone rule that matches decides: the kernel keeps the zone once chosen."""
        raw, everyone, servers = "raw", self.options.capture_all_dns, self._servers()
        zones = (self.mesh.proxy_zone, self.mesh.application_zone)
        of_proxy, of_application = (Verdict(Act.ZONE, zone=zone) for zone in zones)
        owners = [(Field.UID, uid) for uid in self.options.uids] + [(Field.GID, gid) for gid in self.options.gids]
        for field, owner in owners:
            asking, answering = [UDP, _to_port(53)], [UDP, _from_port(self.options.dns_port)]
            self.add(raw, chain, [*asking, _owner(field, owner)], of_proxy)
            self.add(raw, chain, [*answering, _owner(field, owner)], of_application)
        inbound = self.chains.inbound
        if everyone:
            self.add(raw, "PREROUTING", [], _jump(inbound))
            self.add(raw, chain, [UDP, _to_port(53)], of_application)
            self.add(raw, inbound, [UDP, _from_port(53)], of_proxy)
            return
        for family in FAMILIES:
            if servers[family]:
                self.add(raw, "PREROUTING", [], _jump(inbound), only=family)
            for server in servers[family]:
                to_server, from_server = [UDP, _to_port(53), _to(server)], [UDP, _from_port(53), _from(server)]
                self.add(raw, chain, to_server, of_application, only=family)
                self.add(raw, inbound, from_server, of_proxy, only=family)

    def _loopback(self) -> None:
        for family, network in self.loopback.items():
            self.add("nat", self.chains.output, [_to(network)], RETURN, only=family)

    def _excluded_ranges(self) -> None:
        for family in FAMILIES:
            for network in self.options.ranges("outbound_ip_ranges_exclude", family):
                self.add("nat", self.chains.output, [_to(network)], RETURN, only=family)

    def _included(self) -> None:
        options = self.options
        interfaces = [Match(Field.IN_INTERFACE, (name,)) for name in split(options.reroute_virtual_interfaces)]
        for port in options.ports("outbound_ports_include"):
            self._out([TCP, _to_port(port)])
        if options.outbound_ip_ranges_include == "*":
            self._out([])
            for interface in interfaces:
                self.add("nat", "PREROUTING", [interface], _jump(self.chains.redirect), position=1)
        for family in FAMILIES:
            for network in options.ranges("outbound_ip_ranges_include", family):
                for interface in interfaces:
                    matches = [interface, _to(network)]
                    self.add("nat", "PREROUTING", matches, _jump(self.chains.redirect), position=1, only=family)
                self._out([_to(network)], only=family)

    def _inbound_marks(self) -> None:
        """TPROXY: marks of the proxy's transparent connections follow the connection; loops are cut."""
        mark = int(self.options.inbound_tproxy_mark)
        self.add("mangle", "PREROUTING", [TCP, _mark(mark)], Verdict(Act.SAVE_MARK))
        self.add("mangle", "OUTPUT", [TCP, BY_LO, _mark(mark)], RETURN)
        owners = [(Field.UID, uid) for uid in self.options.uids] + [(Field.GID, gid) for gid in self.options.gids]
        for field, owner in owners:
            for family, network in self.loopback.items():
                matches = [_to(network, negated=True), TCP, BY_LO, _owner(field, owner)]
                self.add("mangle", "OUTPUT", matches, Verdict(Act.SET_MARK, mark=self.mesh.self_mark), only=family)
        connection = Match(Field.CONNECTION_MARK, (mark,))
        self.add("mangle", "OUTPUT", [TCP, connection], Verdict(Act.RESTORE_MARK))
        self.add("mangle", self.chains.inbound, [TCP, _mark(mark)], RETURN, position=1)
        for family, source in self.passthrough.items():
            self.add("mangle", self.chains.inbound, [TCP, _from(source), FROM_LO], RETURN, position=2, only=family)
        others = [TCP, FROM_LO, _mark(self.mesh.self_mark, negated=True)]
        self.add("mangle", self.chains.inbound, others, RETURN, position=3)

    def outbound_tproxy(self) -> None:
        """What the nat rules would redirect to the proxy's port is marked, comes back in by lo and meets TPROXY there.

        Decided for a connection's first packet, by the same conditions; the connection's mark keeps the decision, so
        that connections older than the rules go on untouched. DNS and calls to the own pod stay with the nat rules.
        """
        mark = self.mesh.output_mark
        decided = Match(Field.CONNECTION_MARK, (mark,))
        decisions = [step for step in self.steps if (step.table, step.chain) == ("nat", self.chains.output)]
        dns = [step for step in self.steps if (step.table, step.chain) == ("nat", self.chains.output_dns)]
        self.add("mangle", "OUTPUT", [TCP], _jump(self.chains.output_tproxy))
        self.add("mangle", self.chains.output_tproxy, [Match(Field.DIRECTION, ("REPLY",))], RETURN)
        self.add("mangle", self.chains.output_tproxy, [decided], Verdict(Act.RESTORE_MARK))
        self.add("mangle", self.chains.output_tproxy, [decided], ACCEPT)
        self.add("mangle", self.chains.output_tproxy, [_state("NEW", negated=True)], RETURN)
        for interface in split(self.options.exclude_interfaces):
            self.add("mangle", self.chains.output_tproxy, [Match(Field.OUT_INTERFACE, (interface,))], RETURN)
        for step in decisions:
            if step.rule.verdict == _jump(self.chains.output_dns):
                for one in (one for one in dns if TCP in one.rule.matches and set(step.families) & set(one.families)):
                    self._copied(one, RETURN)
            elif UDP not in step.rule.matches:
                redirected = step.rule.verdict == _jump(self.chains.redirect)
                self._copied(step, _jump(self.chains.output_mark) if redirected else RETURN)
        keep = Verdict(Act.SET_CONNECTION_MARK, mark=mark)
        self.add("mangle", self.chains.output_mark, [], keep, name="redirect_tcp")
        self.add("mangle", self.chains.output_mark, [], Verdict(Act.SET_MARK, mark=mark))
        self.add("mangle", self.chains.output_mark, [], ACCEPT)
        self.add("nat", self.chains.output, [TCP, _mark(mark)], RETURN, position=1)
        self.add("mangle", "PREROUTING", [FROM_LO, TCP, _mark(mark)], _jump(self.chains.in_output_tproxy))
        established = [_state("RELATED", "ESTABLISHED")]
        self.add("mangle", self.chains.in_output_tproxy, established, ACCEPT)
        addresses: dict[Family, str] = {"ipv4": "127.0.0.1", "ipv6": "::1"}
        for family, address in addresses.items():
            to_proxy = Verdict(Act.TPROXY, port=self.options.proxy_port, mark=mark, address=address)
            self.add("mangle", self.chains.in_output_tproxy, [TCP], to_proxy, only=family)

    def _copied(self, step: Step, verdict: Verdict) -> None:
        only = step.families[0] if len(step.families) == 1 else None
        self.add("mangle", self.chains.output_tproxy, step.rule.matches, verdict, only=only)
