"""One question put to Istio's agent and to this proxy: what was sent, what the servers behind them said, what was seen.

`differences` says of a situation whether it is one in which the two answer differently; everything here is worked out
from what was sent, the name table and the servers' scripted replies. What is said of the agent is read in its source
(pkg/dns/client, and the DNS library miekg/dns), and held by a test that asks the agent itself.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from . import nametable, wire
from .upstream import Verdict, judge

NOTIFY = 4
TSIG = 250
REFUSED = 5


class Record(NamedTuple):
    """A record with its names written out, the owner's as it was spelled."""

    section: int
    owner: bytes
    kind: int
    qclass: int
    ttl: int
    data: bytes


@dataclass(frozen=True)
class Seen:
    """What a client saw, and what the servers were asked."""

    rcode: int = -1  # -1: no answer
    flags: int = 0
    question: bytes = b""
    records: tuple[Record, ...] = ()  # sorted: the order of addresses is random
    first: int = 0  # type of the first record
    packed: bool = False  # whether an owner's name is a pointer
    trailing: bool = False
    closed: bool = False  # the connection, without an answer
    late: bool = False  # only after a server was waited for
    forwarded: tuple[tuple[bool, bytes], ...] = ()  # by TCP or not, and the query without its id

    @property
    def addresses(self) -> frozenset[bytes]:
        """Of its A and AAAA records."""
        return frozenset(r.data for r in self.records if r.section == 0 and r.kind in (wire.A, wire.AAAA))

    @property
    def local(self) -> bool:
        """Whether it is an answer from the name table: both say so by this flag, which no server here sets."""
        return self.rcode == wire.NOERROR and bool(self.flags & wire.AA) and not self.forwarded


def see(reply: bytes | None, *, closed: bool, late: bool, forwarded: tuple[tuple[bool, bytes], ...]) -> Seen:
    """A reply read."""
    if reply is None:
        return Seen(closed=closed, late=late, forwarded=forwarded)
    flags = int.from_bytes(reply[2:4], "big")
    try:
        wire.check(reply)
    except (wire.MalformedError, struct.error):
        return Seen(flags & 15, flags, b"cannot be read: " + reply, late=late, forwarded=forwarded)
    _, at = wire.questions(reply)
    held = list(wire.records(reply, at))
    _, packed, trailing = written_out(reply)
    read = [Record(r.section, expanded(reply, r.name), r.kind, r.qclass, r.ttl, data(reply, r)) for r in held]
    if flags & wire.TC and flags & wire.AA:  # which addresses had room is chance
        read = [record._replace(data=b"") for record in read]
    return Seen(
        rcode=flags & 15,
        flags=flags & ~15,
        question=_questions(reply),
        records=tuple(sorted(read)),
        first=read[0].kind if read else 0,
        packed=packed,
        trailing=trailing,
        late=late,
        forwarded=forwarded,
    )


def _questions(message: bytes) -> bytes:
    at, said = wire.HEADER, b""
    for _ in range(int.from_bytes(message[4:6], "big")):
        end = wire.skip_name(message, at)
        said += expanded(message, at) + message[end : end + 4]
        at = end + 4
    return said


def expanded(message: bytes, at: int) -> bytes:
    """The name that begins there, written out; it was checked before."""
    name = b""
    while length := message[at]:
        if length >= 0xC0:
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
        else:
            name += message[at : at + length + 1]
            at += length + 1
    return name + b"\0"


def data(message: bytes, record: wire.Record) -> bytes:
    """A record's data with its names written out."""
    at, said = record.data, b""
    for part in wire.DATA.get(record.kind, ("*",)):
        if isinstance(part, int):
            said += message[at : at + part]
            at += part
        elif part == "n":
            said += expanded(message, at)
            at = wire.skip_name(message, at)
        elif part == "s":
            end = at + 1 + message[at]
            said += message[at:end]
            at = end
        else:
            said += message[at : record.end]
            at = record.end
    return said


def written_out(message: bytes) -> tuple[int, bool, bool]:
    """A readable message's length without pointers, whether an owner's name is one, and whether something follows."""
    _, at = wire.questions(message)
    held = list(wire.records(message, at))
    records = sum(len(expanded(message, record.name)) + 10 + len(data(message, record)) for record in held)
    packed = any(message[record.name] >= 0xC0 for record in held)
    return at + records, packed, (held[-1].end if held else at) < len(message)


class Claim(NamedTuple):
    """A host that has a name, and by which right."""

    host: str
    v4: frozenset[bytes]
    v6: frozenset[bytes]
    listed: bool  # among its alternative hosts
    repeated: frozenset[int]  # sizes of addresses of which one stands twice in the table


class Forms:
    """Under which names the agent knows the hosts of a table: generateAltHosts and buildDNSAnswers.

    `whole_labels`: as if it compared suffixes by labels and in any case, which is what this proxy does.
    """

    def __init__(self, table: Mapping[str, Any], scope: nametable.Scope, *, whole_labels: bool = False) -> None:
        self.claims: dict[str, list[Claim]] = defaultdict(list)
        self.aliases: dict[str, str] = {}  # the expansion by the first search domain -> the name
        self._whole_labels = whole_labels
        search = f"{scope.search[0].lower()}." if scope.search else ""
        for host, entry in table.items():
            aside = nametable.NameTable()
            each = [nametable.addresses(aside, host, [text]) for text in entry.get("ips") or ()]
            v4, v6 = [one.v4 for one in each if one.v4], [one.v6 for one in each if one.v6]
            if not (v4 or v6):
                continue
            repeated = frozenset(len(some[0]) for some in (v4, v6) if len(set(some)) < len(some))
            forms = self._forms(host, entry, scope)
            for form, listed in forms.items():
                name = form.lower()
                self.claims[name].append(Claim(host, frozenset(v4), frozenset(v6), listed, repeated))
                if search and not self._ends(name, search) and name + search not in forms:
                    self.aliases[name + search] = name

    def _forms(self, host: str, entry: Mapping[str, Any], scope: nametable.Scope) -> dict[str, bool]:
        if entry.get("registry") != nametable.KUBERNETES:
            return {host if host.endswith(".") else f"{host}.": False}
        if host.endswith("."):
            return {}
        forms = {f"{host}.": False}
        if not self._ends(f"{host}.", f"svc.{scope.domain}."):
            return forms
        short, namespace = entry.get("shortname", ""), entry.get("namespace", "")
        forms |= dict.fromkeys((f"{short}.{namespace}.", f"{short}.{namespace}.svc."), False)
        if namespace == scope.namespace:
            forms[f"{short}."] = False
        return {f"{other}.": True for other in entry.get("alt_hosts") or ()} | forms

    def _ends(self, name: str, suffix: str) -> bool:
        if self._whole_labels:
            return name.lower() == suffix or name.lower().endswith(f".{suffix}")
        return name.endswith(suffix)

    def lookup(self, name: str) -> tuple[str, bool] | None:
        """The name that answers for this one, and whether it is a wildcard."""
        if name in self.claims or name in self.aliases:
            return name, False
        labels = name.removesuffix(".").split(".")
        for at in range(1, len(labels)):
            wildcard = f"*.{'.'.join(labels[at:])}."
            if wildcard in self.claims or wildcard in self.aliases:
                return wildcard, True
        return None


@dataclass(frozen=True)
class Surroundings:
    """The table and all else that both were started with."""

    table: Mapping[str, Any]
    scope: nametable.Scope
    servers: int = 1
    parallel: bool = False
    under_way: int = 0  # questions to the servers at that moment
    told: bool = True  # whether there is a table yet
    port: int = 0  # that the agent listens on
    kept: dict[str, Any] = field(default_factory=dict, compare=False)

    def ours(self, *, dotted: bool = True) -> nametable.NameTable:
        """This proxy's own table; without Kubernetes hosts that end in a dot if so wished."""
        key = f"ours {dotted}"
        if key not in self.kept:
            table = {h: e for h, e in self.table.items() if dotted or not _is_dotted(h, e)}
            self.kept[key] = _result(nametable.read(json.dumps({"table": table}), self.scope))
        made: nametable.NameTable = self.kept[key]
        return made

    def forms(self, *, whole_labels: bool = False) -> Forms:
        """The agent's."""
        key = f"forms {whole_labels}"
        if key not in self.kept:
            self.kept[key] = Forms(self.table, self.scope, whole_labels=whole_labels)
        made: Forms = self.kept[key]
        return made

    @cached_property
    def dotted(self) -> bool:
        """Whether the table has Kubernetes hosts that end in a dot."""
        return any(_is_dotted(host, entry) for host, entry in self.table.items())


def _is_dotted(host: str, entry: Mapping[str, Any]) -> bool:
    return host.endswith(".") and entry.get("registry") == nametable.KUBERNETES


def _result(reading: Iterator[None]) -> nametable.NameTable:
    while True:
        try:
            next(reading)
        except StopIteration as done:
            table: nametable.NameTable = done.value
            return table


@dataclass(frozen=True)
class Situation:
    """What was sent to both, by which transport, and what the servers said to each time they were asked."""

    message: bytes
    tcp: bool
    around: Surroundings
    replies: tuple[tuple[bytes, ...], ...] = ()  # under the message's id; the last one counts for all further times

    @cached_property
    def query(self) -> wire.Query | None:
        """None where this proxy refuses to read it."""
        try:
            return wire.read_query(self.message)
        except wire.RefusedError:
            return None

    @property
    def opcode(self) -> int:
        """0 is a query."""
        return self.message[2] >> 3 & 15 if len(self.message) >= wire.HEADER else 0

    @property
    def bits(self) -> int:
        """Bytes 2 and 3 of the header."""
        return int.from_bytes(self.message[2:4], "big")

    @property
    def silent(self) -> bool:
        """Whether an answer must not be given: a response, or no header."""
        return len(self.message) < wire.HEADER or bool(self.message[2] & 0x80)

    @cached_property
    def counts(self) -> tuple[int, int, int, int]:
        """Of questions and records, as the header has them."""
        qd, an, ns, ar = struct.unpack_from(">HHHH", self.message.ljust(wire.HEADER, b"\0"), 4)
        return qd, an, ns, ar

    @cached_property
    def taken_by_agent(self) -> bool:
        """Whether the agent looks behind the header at all."""
        qd, an, ns, ar = self.counts
        return (
            not self.silent and self.opcode in (0, NOTIFY) and (qd, an <= 1, ns <= 1, ar <= 2) == (1, True, True, True)
        )

    @cached_property
    def name(self) -> str:
        """As the agent compares it."""
        return f"{wire.show_name(self.query.name)}." if self.query and len(self.query.name) > 1 else "."

    @property
    def qtype(self) -> int:
        """Of the question."""
        return self.query.qtype if self.query else 0

    @cached_property
    def asks_address(self) -> bool:
        """Whether it is a question that the name table can answer, but for its class."""
        return self.query is not None and self.qtype in (wire.A, wire.AAAA)

    @cached_property
    def found(self) -> nametable.Found | None:
        """What this proxy's table has for the question."""
        if not (self.query and self.asks_address and self.query.qclass == wire.IN and self.around.told):
            return None
        return self.around.ours().find(self.query.name)

    @cached_property
    def place(self) -> tuple[str, bool] | None:
        """The name in the agent's table that answers, and whether it is a wildcard."""
        return self.around.forms().lookup(self.name) if self.asks_address and self.around.told else None

    @cached_property
    def target(self) -> str:
        """The name whose addresses the agent gives; "" where it forwards."""
        return self.around.forms().aliases.get(self.place[0], self.place[0]) if self.place else ""

    @cached_property
    def claims(self) -> list[Claim]:
        """Who has that name."""
        return self.around.forms().claims.get(self.target, []) if self.target else []

    def family(self, claim: Claim) -> frozenset[bytes]:
        """Its addresses of the type asked for."""
        return claim.v6 if self.qtype == wire.AAAA else claim.v4

    @cached_property
    def own_addresses(self) -> frozenset[bytes]:
        """What this proxy answers with."""
        return self.addresses(self.found)

    def addresses(self, found: nametable.Found | None) -> frozenset[bytes]:
        """Those of the type asked for."""
        if not found:
            return frozenset()
        packed, size = (found.addresses.v6, 16) if self.qtype == wire.AAAA else (found.addresses.v4, 4)
        return frozenset(packed[at : at + size] for at in range(0, len(packed), size))

    @cached_property
    def forwards(self) -> bool:
        """Whether this proxy asks its servers."""
        return self.query is not None and self.found is None and self.around.told

    @cached_property
    def taken(self) -> bytes | None:
        """The reply that this proxy passes on."""
        if not self.query or not self.forwards:
            return None
        for said in self.replies[: self.around.servers]:
            for reply in said:
                verdict = judge(self.message[:2], self.query.question, reply)
                if verdict is Verdict.OTHER and not self.tcp:
                    continue
                fits = self.tcp or len(reply) <= self.query.udp_size
                if verdict is Verdict.ANSWER and fits:
                    return reply
                break
        return None

    @cached_property
    def first(self) -> bytes | None:
        """The first reply that the agent does not pass over: over UDP it passes over readable ones of another id."""
        if not (self.forwards and self.replies and self.around.servers):
            return None
        for reply in self.replies[0]:
            if self.tcp or reply[:2] == self.message[:2] or _broken(reply):
                return reply
        return None


def _broken(reply: bytes) -> bool:
    return len(reply) < wire.HEADER or (not readable(reply) and not ends_early(reply))


def readable(message: bytes) -> bool:
    """By this proxy's measure."""
    try:
        wire.check(message)
    except (wire.MalformedError, struct.error):
        return False
    return True


def ends_early(message: bytes) -> bool:
    """Whether it is sound up to its end, which comes before the counts are fulfilled: the agent mends them."""
    if len(message) <= wire.HEADER:
        return len(message) == wire.HEADER and any(message[4:])
    if message[4:6] == b"\0\1":
        with contextlib.suppress(wire.MalformedError):
            if len(message) - wire.skip_name(message, wire.HEADER) in (0, 2):  # a question without its class, its type
                return True
    try:
        _, end = wire.questions(message)
    except wire.MalformedError:
        return False
    try:
        for record in wire.records(message, end):
            wire.check_data(message, record)
            end = record.end
    except wire.MalformedError:
        return end == len(message)
    return False


def _loose_name(message: bytes, at: int, odd: list[int]) -> int:
    """The place after a name whose pointers may lead anywhere; those that lead forward are added to `odd`."""
    start, after, length_so_far, pointers = at, -1, 1, 0
    while True:
        if at >= len(message):
            raise wire.MalformedError
        length = message[at]
        if length == 0:
            return after if after >= 0 else at + 1
        if length >= 0xC0:
            if at + 2 > len(message) or (pointers := pointers + 1) > wire.MAX_POINTERS:
                raise wire.MalformedError
            after = at + 2 if after < 0 else after
            to = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            if to >= min(at, start) or to < wire.HEADER:
                odd.append(at)
            at = to
        else:
            length_so_far += length + 1
            if length > wire.MAX_LABEL or length_so_far > wire.MAX_NAME or at + length >= len(message):
                raise wire.MalformedError
            at += length + 1


def points_forward(message: bytes) -> bool:
    """Whether it can be read but for pointers that do not lead back, which the agent follows all the same."""
    odd: list[int] = []
    at = wire.HEADER
    try:
        for _ in range(min(int.from_bytes(message[4:6], "big"), wire.MAX_PARTS)):
            at = _loose_name(message, at, odd) + 4
        for count in struct.unpack_from(">HHH", message, 6):
            for _ in range(count):
                fixed = _loose_name(message, at, odd)
                kind, _, _, length = struct.unpack_from(">HHIH", message, fixed)
                end = fixed + 10 + length
                at = fixed + 10
                for part in wire.DATA.get(kind, ("*",)):
                    at = at + part if isinstance(part, int) else _loose_name(message, at, odd) if part == "n" else end
                if at != end or end > len(message):
                    return False
    except (wire.MalformedError, struct.error):
        return False
    return bool(odd)


def holds_empty(message: bytes) -> bool:
    """Whether it can be read but for records whose type has data and which have none, which the agent allows."""
    found = False
    try:
        _, at = wire.questions(message)
        for record in wire.records(message, at):
            if record.data == record.end and record.kind in wire.DATA and record.kind != wire.OPT:
                found = True
            else:
                wire.check_data(message, record)
    except (wire.MalformedError, struct.error):
        return False
    return found


def refused_options(message: bytes) -> bool:
    """Whether an OPT record holds an option that the agent's library cannot read; this proxy reads none."""
    if len(message) <= wire.HEADER or not readable(message):
        return False
    _, at = wire.questions(message)
    return any(
        _unreadable(code, value)
        for record in wire.records(message, at)
        if record.kind == wire.OPT
        for code, value in _options(message[record.data : record.end])
    )


def _options(held: bytes) -> Iterator[tuple[int, bytes]]:
    while held:
        code, length = struct.unpack_from(">HH", held)
        yield code, held[4 : 4 + length]
        held = held[4 + length :]


_LENGTHS: dict[int, range | tuple[int, ...]] = {  # of the options whose length is looked at
    1: range(18, 65_536),  # LLQ
    2: (4, 8),  # update lease
    9: (0, *range(4, 65_536)),  # expire
    11: (0, 2),  # TCP keepalive
    15: range(2, 65_536),  # extended error
    19: range(2, 65_536),  # zone version
}


def _unreadable(code: int, value: bytes) -> bool:
    if code in _LENGTHS:
        return len(value) not in _LENGTHS[code]
    if code != 8:  # client subnet
        return False
    if len(value) < 4:
        return True
    family, source, scope = struct.unpack_from(">HBB", value)
    most = {0: 0, 1: 32, 2: 128}.get(family, -1)
    return bool(source > most or (family > 0 and scope > most))


def kinds(message: bytes) -> set[int]:
    """The types of a readable message's records."""
    if not readable(message):
        return set()
    _, at = wire.questions(message)
    return {record.kind for record in wire.records(message, at)}
