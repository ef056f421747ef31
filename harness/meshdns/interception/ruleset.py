"""The rules, in neutral terms: tables hold chains, chains hold rules, a rule is conditions and a verdict.

Built once from the options, in the order of Istio's sidecar interception (tools/istio-iptables, capture/run.go), for
one family or both. The renderers spell it, `verdict` evaluates it; neither adds or leaves out a rule. Where Istio's
rules have a fault the same fault is here, and `faults` names it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from .options import DNS_PORT, SELF_MARK, Family, Network, Options, split
from .refusal import Refusal

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
TABLES = ("mangle", "nat", "raw")  # by name, as Istio's text has them
BASE_CHAINS = ("PREROUTING", "OUTPUT")
OUR_CHAINS = (
    "ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT", "ISTIO_OUTPUT_DNS", "ISTIO_DIVERT",
    "ISTIO_TPROXY", "ISTIO_DROP", "ISTIO_OUTPUT_TPROXY", "ISTIO_OUTPUT_MARK", "ISTIO_IN_OUTPUT_TPROXY",
)  # fmt: skip

# Where the proxy's inbound side connects to the application from; never captured again.
PASSTHROUGH: dict[Family, str] = {"ipv4": "127.0.0.6/32", "ipv6": "::6/128"}
LOOPBACK_V6 = "::1/128"  # not an option in Istio
PROXY_ZONE, APPLICATION_ZONE = 1, 2  # conntrack zones of UDP DNS: proxy <-> resolver, application <-> proxy
OUTPUT_MARK = 1339  # outbound TPROXY, beyond Istio's options: packets on their way back in by lo


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


Value = int | str | Network


@dataclass(frozen=True)
class Match:
    """One condition: the field has one of the values, or, negated, none of them."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Return:
    """Back to the calling chain; from a base chain: accepted by this table."""


@dataclass(frozen=True)
class Accept:
    """Accepted by this table."""


@dataclass(frozen=True)
class Drop:
    """Gone."""


@dataclass(frozen=True)
class Jump:
    """The rules of another chain of the table, then the next one here."""

    chain: str


@dataclass(frozen=True)
class Redirect:
    """To a port of this machine (SO_ORIGINAL_DST tells where it wanted to go)."""

    port: int


@dataclass(frozen=True)
class Tproxy:
    """To the transparent socket on a port, destination unchanged, marked so that routing delivers it here."""

    port: int
    mark: int
    address: str = ""  # of the socket; empty: any


@dataclass(frozen=True)
class SetMark:
    """The packet carries a mark; goes on with the next rule."""

    mark: int


@dataclass(frozen=True)
class SetConnectionMark:
    """The connection carries a mark; goes on with the next rule."""

    mark: int


@dataclass(frozen=True)
class SaveMark:
    """The connection carries the packet's mark; goes on with the next rule."""


@dataclass(frozen=True)
class RestoreMark:
    """The packet carries the connection's mark; goes on with the next rule."""


@dataclass(frozen=True)
class Zone:
    """The packet is looked up in a conntrack zone, unless one was chosen before; goes on with the next rule."""

    zone: int


Verdict = (
    Return | Accept | Drop | Jump | Redirect | Tproxy | SetMark | SetConnectionMark | SaveMark | RestoreMark | Zone
)


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

    @cached_property
    def ordered(self) -> dict[str, dict[str, tuple[Step, ...]]]:
        """Table -> chain -> steps in the kernel's order; chains in order of their first rule."""
        found: dict[str, dict[str, list[Step]]] = {}
        for step in self.steps:
            chain = found.setdefault(step.table, {}).setdefault(step.chain, [])
            chain.insert(_index(chain, step), step)
        return {table: {c: tuple(found[table][c]) for c in found[table]} for table in TABLES if table in found}

    def routes_home(self, mark: int, family: Family) -> bool:
        """A packet with this mark is delivered to this machine, wherever it is addressed."""
        return family in self.families and mark in (marked for marked, _ in self.mark_routes)

    @cached_property
    def tables(self) -> dict[str, dict[str, tuple[Rule, ...]]]:
        """Table -> chain -> rules in the kernel's order."""
        return {
            table: {chain: tuple(step.rule for step in steps) for chain, steps in chains.items()}
            for table, chains in self.ordered.items()
        }


def _index(chain: list[Step], step: Step) -> int:
    """Where a step goes; with both families in one chain, a position counts the rules that a family sees."""
    if step.position is None:
        return len(chain)
    seen = {f: [i + 1 for i, other in enumerate(chain) if f in other.families] for f in step.families}
    return max(indices[step.position - 2] if step.position > 1 else 0 for indices in seen.values())


def build(options: Options, *families: Family, outbound_tproxy: bool = False) -> RuleSet:
    """The rule set of one family, or of several together.

    For IPv6 it is empty unless `enable_ipv6`. `outbound_tproxy`: outbound TCP keeps its destination address too, which
    Istio does not offer; raises Refusal where its mark is taken.
    """
    if outbound_tproxy and int(options.inbound_tproxy_mark) == OUTPUT_MARK:
        raise Refusal(f'inbound_tproxy_mark is "{OUTPUT_MARK}", which marks outbound TPROXY: choose another mark')
    wanted = tuple(family for family in FAMILIES if family in families and (family == "ipv4" or options.enable_ipv6))
    builder = _Builder(options)
    builder.istio()
    if outbound_tproxy:
        builder.outbound_tproxy()
    steps = tuple(
        Step(step.table, step.chain, step.rule, step.position, tuple(f for f in wanted if f in step.families))
        for step in builder.steps
        if set(wanted) & set(step.families)
    )
    table = int(options.inbound_tproxy_route_table)
    marks = [int(options.inbound_tproxy_mark)] if options.tproxy and options.inbound_ports_include else []
    marks += [OUTPUT_MARK] if outbound_tproxy else []
    routes = tuple((mark, table) for mark in marks) if wanted else ()
    return RuleSet(wanted, steps, routes, apart=options.enable_ipv6 and len(wanted) == 1)


TCP, UDP = Match(Field.PROTOCOL, ("tcp",)), Match(Field.PROTOCOL, ("udp",))
BY_LO, FROM_LO = Match(Field.OUT_INTERFACE, ("lo",)), Match(Field.IN_INTERFACE, ("lo",))


def _to_port(*ports: int, negated: bool = False) -> Match:
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


def _state(*states: str, negated: bool = False) -> Match:
    return Match(Field.STATE, states, negated)


class _Builder:
    """Collects steps; one method per block of Istio's run.go, called in its order."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.steps: list[Step] = []
        loopback: dict[Family, str] = {"ipv4": options.host_ipv4_loopback_cidr, "ipv6": LOOPBACK_V6}
        self.loopback = {f: ipaddress.ip_network(text, strict=False) for f, text in loopback.items()}

    def add(self, table: str, chain: str, matches: Iterable[Match], verdict: Verdict, *,
            name: str = "", position: int | None = None, only: Family | None = None) -> None:  # fmt: skip
        families = FAMILIES if only is None else (only,)
        self.steps.append(Step(table, chain, Rule(tuple(matches), verdict, name), position, families))

    def istio(self) -> None:
        """All of Istio's rules."""
        self._excluded_interfaces()
        self._virtual_interfaces_return()
        self._invalid()
        self.add("nat", "ISTIO_INBOUND", [TCP, _to_port(self.options.inbound_tunnel_port)], Return())
        self.add("nat", "ISTIO_REDIRECT", [TCP], Redirect(self.options.proxy_port), name="redirect_tcp")
        self.add("nat", "ISTIO_IN_REDIRECT", [TCP], Redirect(self.options.inbound_capture_port))
        self._inbound()
        self.add("nat", "OUTPUT", [], Jump("ISTIO_OUTPUT"))
        self._outbound_exceptions()
        if self.options.captures_dns:
            self._dns()
        self._outbound_ranges_excluded()
        self._outbound_included()
        if self.options.tproxy:
            self._inbound_marks()

    def _excluded_interfaces(self) -> None:
        for table in ("nat", "mangle") if self.options.tproxy else ("nat",):
            for name in split(self.options.exclude_interfaces):
                self.add(table, "PREROUTING", [Match(Field.IN_INTERFACE, (name,))], Return())
                self.add(table, "OUTPUT", [Match(Field.OUT_INTERFACE, (name,))], Return())

    def _virtual_interfaces_return(self) -> None:
        """Redirects are inserted before these later, so that what is not redirected is not taken for inbound."""
        for name in split(self.options.reroute_virtual_interfaces):
            self.add("nat", "PREROUTING", [Match(Field.IN_INTERFACE, (name,))], Return(), position=1)

    def _invalid(self) -> None:
        if self.options.drop_invalid:
            self.add("mangle", "PREROUTING", [_state("INVALID")], Jump("ISTIO_DROP"))
            self.add("mangle", "ISTIO_DROP", [], Drop())

    def _inbound(self) -> None:
        options, capture = self.options, self._capture_inbound
        if options.inbound_ports_include == "":
            return
        if options.tproxy:
            mark = int(options.inbound_tproxy_mark)
            self.add("mangle", "ISTIO_DIVERT", [], SetMark(mark))
            self.add("mangle", "ISTIO_DIVERT", [], Accept())
            for family, network in self.loopback.items():
                to_proxy = Tproxy(options.inbound_capture_port, mark)
                self.add("mangle", "ISTIO_TPROXY", [_to(network, negated=True), TCP], to_proxy, only=family)
        table = "mangle" if options.tproxy else "nat"
        self.add(table, "PREROUTING", [TCP], Jump("ISTIO_INBOUND"))
        if options.inbound_ports_include == "*":
            for port in options.ports("inbound_ports_exclude"):
                self.add(table, "ISTIO_INBOUND", [TCP, _to_port(port)], Return())
            capture([TCP])
        for port in options.ports("inbound_ports_include"):
            capture([TCP, _to_port(port)])

    def _capture_inbound(self, matches: list[Match]) -> None:
        if self.options.tproxy:
            established = [*matches, _state("RELATED", "ESTABLISHED")]
            self.add("mangle", "ISTIO_INBOUND", established, Jump("ISTIO_DIVERT"))
            self.add("mangle", "ISTIO_INBOUND", matches, Jump("ISTIO_TPROXY"), name="inbound_tcp")
        else:
            self.add("nat", "ISTIO_INBOUND", matches, Jump("ISTIO_IN_REDIRECT"), name="inbound_tcp")

    def _outbound_exceptions(self) -> None:
        """Excluded ports, then whoever must never be captured: the proxy first of all."""
        options = self.options
        for port in options.ports("outbound_ports_exclude"):
            for protocol in (TCP, UDP):
                self.add("nat", "ISTIO_OUTPUT", [protocol, _to_port(port)], Return())
        for family, source in PASSTHROUGH.items():
            self.add("nat", "ISTIO_OUTPUT", [BY_LO, _from(source)], Return(), only=family)
        for uid in options.uids:
            self._owner_block(Field.UID, uid, dns_aware=options.captures_dns)
        for gid in options.gids:
            self._owner_block(Field.GID, gid, dns_aware=False)
        self._owner_groups()

    def _owner_block(self, field: Field, owner: int, *, dns_aware: bool) -> None:
        """The proxy to its own pod goes in by the inbound side; others on lo pass; the proxy's own packets pass."""
        tunnel = self.options.inbound_tunnel_port
        ports = _to_port(53, tunnel, negated=True) if dns_aware else _to_port(tunnel, negated=True)
        for family, network in self.loopback.items():
            matches = [BY_LO, _to(network, negated=True), TCP, ports, _owner(field, owner)]
            self.add("nat", "ISTIO_OUTPUT", matches, Jump("ISTIO_IN_REDIRECT"), only=family)
        if not self.options.loopback_included:
            others = _owner(field, owner, negated=True)
            # With DNS captured, TCP to port 53 of a local server must reach the DNS rules below.
            dns = [TCP, _to_port(53, negated=True)] if self.options.captures_dns else []
            self.add("nat", "ISTIO_OUTPUT", [BY_LO, *dns, others], Return())
        self.add("nat", "ISTIO_OUTPUT", [_owner(field, owner)], Return())

    def _owner_groups(self) -> None:
        if self.options.owner_groups_include == "*":
            for group in split(self.options.owner_groups_exclude):
                self.add("nat", "ISTIO_OUTPUT", [_owner(Field.GID, group)], Return())
        else:
            none_of = [_owner(Field.GID, g, negated=True) for g in split(self.options.owner_groups_include)]
            self.add("nat", "ISTIO_OUTPUT", none_of, Return())

    def _servers(self) -> dict[Family, list[str]]:
        """Per family the servers captured, as networks; none where every server is."""
        return {
            "ipv4": [f"{server}/32" for server in self.options.dns_servers_v4],
            "ipv6": [f"{server}/128" for server in self.options.dns_servers_v6],
        }

    def _dns(self) -> None:
        everyone, servers = self.options.capture_all_dns, self._servers()
        self.add("raw", "OUTPUT", [], Jump("ISTIO_OUTPUT_DNS"))
        named = tuple(family for family in FAMILIES if servers[family])
        if everyone or len(named) == len(FAMILIES):
            self.add("nat", "ISTIO_OUTPUT", [], Jump("ISTIO_OUTPUT_DNS"))
        elif named:
            self.add("nat", "ISTIO_OUTPUT", [], Jump("ISTIO_OUTPUT_DNS"), only=named[0])
        for protocol, name in ((TCP, "redirect_dns_tcp"), (UDP, "redirect_dns_udp")):
            to_proxy = Redirect(DNS_PORT)
            if everyone:
                self.add("nat", "ISTIO_OUTPUT_DNS", [protocol, _to_port(53)], to_proxy, name=name)
                continue
            for family in FAMILIES:
                for server in servers[family]:
                    matches = [protocol, _to_port(53), _to(server)]
                    self.add("nat", "ISTIO_OUTPUT_DNS", matches, to_proxy, name=name, only=family)
        self._dns_zones()

    def _dns_zones(self) -> None:
        """The first zone rule that matches decides: the kernel keeps the zone once chosen."""
        raw, everyone, servers = "raw", self.options.capture_all_dns, self._servers()
        owners = [(Field.UID, uid) for uid in self.options.uids] + [(Field.GID, gid) for gid in self.options.gids]
        for field, owner in owners:
            asking, answering = [UDP, _to_port(53)], [UDP, _from_port(DNS_PORT)]
            self.add(raw, "ISTIO_OUTPUT_DNS", [*asking, _owner(field, owner)], Zone(PROXY_ZONE))
            self.add(raw, "ISTIO_OUTPUT_DNS", [*answering, _owner(field, owner)], Zone(APPLICATION_ZONE))
        if everyone:
            self.add(raw, "PREROUTING", [], Jump("ISTIO_INBOUND"))
            self.add(raw, "ISTIO_OUTPUT_DNS", [UDP, _to_port(53)], Zone(APPLICATION_ZONE))
            self.add(raw, "ISTIO_INBOUND", [UDP, _from_port(53)], Zone(PROXY_ZONE))
            return
        for family in FAMILIES:
            if servers[family]:
                self.add(raw, "PREROUTING", [], Jump("ISTIO_INBOUND"), only=family)
            for server in servers[family]:
                to_server, from_server = [UDP, _to_port(53), _to(server)], [UDP, _from_port(53), _from(server)]
                self.add(raw, "ISTIO_OUTPUT_DNS", to_server, Zone(APPLICATION_ZONE), only=family)
                self.add(raw, "ISTIO_INBOUND", from_server, Zone(PROXY_ZONE), only=family)

    def _outbound_ranges_excluded(self) -> None:
        for family, network in self.loopback.items():
            self.add("nat", "ISTIO_OUTPUT", [_to(network)], Return(), only=family)
        for family in FAMILIES:
            for network in self.options.ranges("outbound_ip_ranges_exclude", family):
                self.add("nat", "ISTIO_OUTPUT", [_to(network)], Return(), only=family)

    def _outbound_included(self) -> None:
        options, redirect = self.options, Jump("ISTIO_REDIRECT")
        interfaces = [Match(Field.IN_INTERFACE, (name,)) for name in split(options.reroute_virtual_interfaces)]
        for port in options.ports("outbound_ports_include"):
            self.add("nat", "ISTIO_OUTPUT", [TCP, _to_port(port)], redirect)
        if options.outbound_ip_ranges_include == "*":
            self.add("nat", "ISTIO_OUTPUT", [], redirect)
            for interface in interfaces:
                self.add("nat", "PREROUTING", [interface], redirect, position=1)
        for family in FAMILIES:
            for network in options.ranges("outbound_ip_ranges_include", family):
                for interface in interfaces:
                    self.add("nat", "PREROUTING", [interface, _to(network)], redirect, position=1, only=family)
                self.add("nat", "ISTIO_OUTPUT", [_to(network)], redirect, only=family)

    def _inbound_marks(self) -> None:
        """TPROXY: marks of the proxy's transparent connections follow the connection; loops are cut."""
        mark = int(self.options.inbound_tproxy_mark)
        self.add("mangle", "PREROUTING", [TCP, _mark(mark)], SaveMark())
        self.add("mangle", "OUTPUT", [TCP, BY_LO, _mark(mark)], Return())
        owners = [(Field.UID, uid) for uid in self.options.uids] + [(Field.GID, gid) for gid in self.options.gids]
        for field, owner in owners:
            for family, network in self.loopback.items():
                matches = [_to(network, negated=True), TCP, BY_LO, _owner(field, owner)]
                self.add("mangle", "OUTPUT", matches, SetMark(SELF_MARK), only=family)
        connection = Match(Field.CONNECTION_MARK, (mark,))
        self.add("mangle", "OUTPUT", [TCP, connection], RestoreMark())
        self.add("mangle", "ISTIO_INBOUND", [TCP, _mark(mark)], Return(), position=1)
        for family, source in PASSTHROUGH.items():
            self.add("mangle", "ISTIO_INBOUND", [TCP, _from(source), FROM_LO], Return(), position=2, only=family)
        self.add("mangle", "ISTIO_INBOUND", [TCP, FROM_LO, _mark(SELF_MARK, negated=True)], Return(), position=3)

    def outbound_tproxy(self) -> None:
        """What the nat rules would redirect to the proxy's port is marked, comes back in by lo and meets TPROXY there.

        Decided for a connection's first packet, by the same conditions; the connection's mark keeps the decision, so
        that connections older than the rules go on untouched. DNS and calls to the own pod stay with the nat rules.
        """
        mark = OUTPUT_MARK
        decided = Match(Field.CONNECTION_MARK, (mark,))
        decisions = [step for step in self.steps if (step.table, step.chain) == ("nat", "ISTIO_OUTPUT")]
        dns = [step for step in self.steps if (step.table, step.chain) == ("nat", "ISTIO_OUTPUT_DNS")]
        self.add("mangle", "OUTPUT", [TCP], Jump("ISTIO_OUTPUT_TPROXY"))
        self.add("mangle", "ISTIO_OUTPUT_TPROXY", [Match(Field.DIRECTION, ("REPLY",))], Return())
        self.add("mangle", "ISTIO_OUTPUT_TPROXY", [decided], RestoreMark())
        self.add("mangle", "ISTIO_OUTPUT_TPROXY", [decided], Accept())
        self.add("mangle", "ISTIO_OUTPUT_TPROXY", [_state("NEW", negated=True)], Return())
        for interface in split(self.options.exclude_interfaces):
            self.add("mangle", "ISTIO_OUTPUT_TPROXY", [Match(Field.OUT_INTERFACE, (interface,))], Return())
        for step in decisions:
            if step.rule.verdict == Jump("ISTIO_OUTPUT_DNS"):
                for one in (one for one in dns if TCP in one.rule.matches and set(step.families) & set(one.families)):
                    self._copied(one, Return())
            elif UDP not in step.rule.matches:
                redirected = step.rule.verdict == Jump("ISTIO_REDIRECT")
                self._copied(step, Jump("ISTIO_OUTPUT_MARK") if redirected else Return())
        self.add("mangle", "ISTIO_OUTPUT_MARK", [], SetConnectionMark(mark), name="redirect_tcp")
        self.add("mangle", "ISTIO_OUTPUT_MARK", [], SetMark(mark))
        self.add("mangle", "ISTIO_OUTPUT_MARK", [], Accept())
        self.add("nat", "ISTIO_OUTPUT", [TCP, _mark(mark)], Return(), position=1)
        self.add("mangle", "PREROUTING", [FROM_LO, TCP, _mark(mark)], Jump("ISTIO_IN_OUTPUT_TPROXY"))
        established = [_state("RELATED", "ESTABLISHED")]
        self.add("mangle", "ISTIO_IN_OUTPUT_TPROXY", established, Accept())
        addresses: dict[Family, str] = {"ipv4": "127.0.0.1", "ipv6": "::1"}
        for family, address in addresses.items():
            to_proxy = Tproxy(self.options.proxy_port, mark, address)
            self.add("mangle", "ISTIO_IN_OUTPUT_TPROXY", [TCP], to_proxy, only=family)

    def _copied(self, step: Step, verdict: Verdict) -> None:
        only = step.families[0] if len(step.families) == 1 else None
        self.add("mangle", "ISTIO_OUTPUT_TPROXY", step.rule.matches, verdict, only=only)
