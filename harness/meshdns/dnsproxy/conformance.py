"""What Istio's agent answers, as cases that run over the wire against any DNS server.

`run` asks one server every case that its world allows and says what it saw; `python conformance.py --server ADDR:PORT`
prints the same as JSON. Needs dnspython and nothing else, so that the file also runs alone, in a client's container.
The expectation is what Istio's agent does, and a test asks it; where this proxy does otherwise, `differences` says why.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import operator
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TIMEOUT_S = 3.0
SHUFFLES = 24  # by chance all orders of four addresses are one once in 24**23 times
LEAST_UDP = 512


@dataclass(frozen=True)
class Host:
    """An entry of the name table as the server under test was given it."""

    name: str
    ips: tuple[str, ...]
    registry: str = "External"
    namespace: str = ""
    shortname: str = ""
    alt_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """The names that the cases speak of. Where one is None its cases do not apply."""

    namespace: str = "shop"  # of the client
    domain: str = "cluster.local"
    search: tuple[str, ...] = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
    service: Host | None = Host(
        "reviews.shop.svc.cluster.local", ("10.96.0.7",), "Kubernetes", "shop", "reviews",
        ("reviews.shop.svc.clusterset.local",),
    )  # fmt: skip
    other_service: Host | None = Host("ratings.bank.svc.cluster.local", ("10.96.0.8",), "Kubernetes", "bank", "ratings")
    foreign_service: Host | None = Host("rates.bank.svc.cluster.remote", ("10.96.9.9",), "Kubernetes", "bank", "rates")
    headless: Host | None = Host(
        "db.shop.svc.cluster.local", ("10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"), "Kubernetes", "shop", "db"
    )
    pod: Host | None = Host("db-0.db.shop.svc.cluster.local", ("10.1.0.1",), "Kubernetes", "shop", "db-0.db")
    external: Host | None = Host("api.example.com", ("240.240.0.1",))
    dual: Host | None = Host("dual.example.com", ("240.240.0.2", "2001:2::2"))
    six: Host | None = Host("six.example.com", ("2001:2::6",))
    wildcard: Host | None = Host("*.wild.example.com", ("240.240.0.3",))
    deep_wildcard: Host | None = Host("*.deep.wild.example.com", ("240.240.0.4",))
    large: Host | None = Host("large.example.com", tuple(f"240.240.1.{n}" for n in range(1, 65)))
    upstream: str | None = None  # ADDR:PORT of the server behind it, to compare forwarded answers with
    upstream_name: str | None = "known.upstream.test"  # exists there
    absent_name: str | None = "absent.upstream.test"  # NXDOMAIN there

    def hosts(self) -> list[Host]:
        """All entries there are."""
        return [value for field in dataclasses.fields(self) if isinstance(value := getattr(self, field.name), Host)]

    def name_table(self) -> dict[str, Any]:
        """The name table of this world, as the proxy reads it."""
        return {
            "table": {h.name: {k: v for k, v in dataclasses.asdict(h).items() if k != "name"} for h in self.hosts()}
        }


def world(values: dict[str, Any]) -> World:
    """A world from JSON: what is given replaces the default, null takes a role away."""
    hosts = {field.name for field in dataclasses.fields(World) if "Host" in str(field.type)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in hosts and value is not None:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
            made[key] = Host(**fields)
        else:
            made[key] = tuple(value) if isinstance(value, list) else value
    return World(**made)


@dataclass(frozen=True)
class Reply:
    """An answer, or its absence, in words that do not depend on the world."""

    message: dns.message.Message | None
    size: int = 0  # bytes
    reason: str = "no answer"

    @property
    def held(self) -> dns.message.Message:
        """The message of a reply that is one."""
        assert self.message is not None  # noqa: S101  whoever asks has looked
        return self.message

    def outcome(self) -> str:
        """rcode and answers."""
        if self.message is None:
            return self.reason
        rcode = dns.rcode.to_text(self.message.rcode())
        sets = [f"{dns.rdatatype.to_text(s.rdtype)} {' '.join(sorted(str(r) for r in s))}" for s in self.message.answer]
        text = ", ".join(sets)
        return f"{rcode}, {text if len(text) <= 60 else f'{sum(map(len, self.message.answer))} records'}" if sets else (
            f"{rcode}, empty"
        )  # fmt: skip

    def addresses(self) -> set[str]:
        """Every A and AAAA in the answer."""
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        found = [s for s in self.message.answer if s.rdtype in kinds] if self.message else []
        return {str(record) for s in found for record in s}

    def alias(self) -> str:
        """The target of the first CNAME."""
        found = [s for s in self.message.answer if s.rdtype == dns.rdatatype.CNAME] if self.message else []
        return str(found[0][0].target) if found else ""


class Client:
    """Asks one server."""

    def __init__(self, server: str, timeout_s: float = TIMEOUT_S) -> None:
        host, _, port = server.rpartition(":")
        self._address = (host.strip("[]"), int(port))
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._timeout_s = timeout_s

    def ask(self, name: str, qtype: str = "A", *, tcp: bool = False, edns: int = 0, qclass: str = "IN") -> Reply:
        """One question as a resolver would put it; `edns` is the size offered, 0 for none."""
        query = dns.message.make_query(name, qtype, qclass, use_edns=0 if edns else -1, payload=edns or 1232)
        return self.send(query.to_wire(), tcp=tcp)

    def send(self, query: bytes, *, tcp: bool = False) -> Reply:
        """Any bytes."""
        try:
            data = self._tcp(query) if tcp else self._udp(query)
        except TimeoutError:
            return Reply(None)
        except OSError as error:
            return Reply(None, reason=f"no {'TCP' if tcp else 'UDP'}: {error.strerror or error}")
        try:
            return Reply(dns.message.from_wire(data, one_rr_per_rrset=False, ignore_trailing=True), len(data))
        except dns.exception.DNSException as error:
            return Reply(None, len(data), f"not DNS: {error}")

    def _udp(self, query: bytes) -> bytes:
        with socket.socket(self._family, socket.SOCK_DGRAM) as sock:
            sock.connect(self._address)
            end = time.monotonic() + self._timeout_s
            sock.settimeout(self._timeout_s)
            sock.send(query)
            while True:
                data = sock.recv(65_535)
                if data[:2] == query[:2]:
                    return data
                sock.settimeout(max(0.001, end - time.monotonic()))

    def _tcp(self, query: bytes) -> bytes:
        with socket.create_connection(self._address, self._timeout_s) as sock:
            sock.sendall(len(query).to_bytes(2, "big") + query)
            with contextlib.closing(sock.makefile("rb")) as stream:
                length = int.from_bytes(stream.read(2), "big")
                data = stream.read(length)
        if len(data) < 12:
            raise ConnectionError("closed without an answer")
        return data


Observe = Callable[[Client, World], str]
Name = Callable[[World, Host], str]


@dataclass(frozen=True)
class Case:
    """One behaviour. `observe` returns the words of `expected` where the server behaves so, else what it did."""

    id: str
    topic: str
    question: str  # in words
    expected: str  # of Istio's agent
    observe: Observe
    needs: tuple[str, ...] = ()  # what the world must have, the parts of a host behind it

    def applies(self, where: World) -> bool:
        """Whether the world has what the case speaks of."""
        return all(operator.attrgetter(need)(where) for need in self.needs)


@dataclass(frozen=True)
class Row:
    """A case and what a server did."""

    id: str
    topic: str
    question: str
    expected: str
    observed: str
    agrees: bool


def _asked(say: Callable[[Reply, Host], str], role: str = "service", name: Name | None = None, **how: Any) -> Observe:
    """Asks for a host, or a form of its name; what is said of the answer, or why there is none."""

    def observe(client: Client, where: World) -> str:
        host = _need(getattr(where, role))
        seen = client.ask(name(where, host) if name else host.name, **how)
        return seen.outcome() if seen.message is None else say(seen, host)

    return observe


def _host(role: str, words: str, name: Name | None = None, **how: Any) -> Observe:
    """The words, if exactly its addresses of that family come back, without an alias."""

    def say(seen: Reply, host: Host) -> str:
        want = {ip for ip in host.ips if (":" in ip) == (how.get("qtype") == "AAAA")}
        return words if seen.addresses() == want and not seen.alias() else seen.outcome()

    return _asked(say, role, name, **how)


def _empty(role: str, qtype: str, name: Name | None = None) -> Observe:
    return _asked(lambda seen, _: seen.outcome(), role, name, qtype=qtype)


def _forwarded(name: Callable[[World], str], qtype: str = "A", **how: Any) -> Observe:
    """Asks the server and the one behind it the same; the words, if both answer the same."""

    def observe(client: Client, where: World) -> str:
        assert where.upstream is not None  # noqa: S101  the case needs it
        seen = client.ask(name(where), qtype, **how)
        direct = Client(where.upstream).ask(name(where), qtype, **how)
        same = seen.message is not None and seen.outcome() == direct.outcome()
        return "the upstream's answer" if same else seen.outcome()

    return observe


def _need(host: Host | None) -> Host:
    assert host is not None  # noqa: S101  the case needs it
    return host


def _flag(flag: dns.flags.Flag, name: str) -> Observe:
    return _asked(lambda seen, _: f"{name}={int(bool(seen.held.flags & flag))}")


def _ttl(seen: Reply, _: Host) -> str:
    return f"TTL {seen.held.answer[0].ttl} s" if seen.held.answer else seen.outcome()


def _mixed(text: str) -> str:
    return "".join(c.upper() if n % 2 else c for n, c in enumerate(text))


def _echo(seen: Reply, host: Host) -> str:
    if not seen.held.question:
        return seen.outcome()
    name = str(seen.held.question[0].name)
    return "as asked" if name == f"{_mixed(host.name)}." else name


def _owner(seen: Reply, host: Host) -> str:
    if not seen.held.answer:
        return seen.outcome()
    owner = str(seen.held.answer[0].name)
    return "lower case" if owner == owner.lower() else "as asked" if owner == f"{_mixed(host.name)}." else owner


def _expansion(role: str, target: Callable[[Host], str], name: Name, words: str) -> Observe:
    """Asks for a name below the first search domain; the words, if an alias and its address come in one message."""

    def say(seen: Reply, host: Host) -> str:
        first = seen.held.answer[0].rdtype if seen.held.answer else None
        aliased = seen.alias() == f"{target(host)}." and first == dns.rdatatype.CNAME
        return words if aliased and seen.addresses() == set(host.ips) else seen.outcome()

    return _asked(say, role, lambda where, host: f"{name(where, host)}.{where.search[0]}")


def _no_opt(seen: Reply, _: Host) -> str:
    return "no OPT" if seen.held.edns < 0 else "OPT"


def _shuffled(client: Client, where: World) -> str:
    host = _need(where.headless)
    orders = set()
    for _ in range(SHUFFLES):
        seen = client.ask(host.name)
        if seen.addresses() != set(host.ips):
            return seen.outcome()
        assert seen.message is not None  # noqa: S101  it had addresses
        orders.add(tuple(str(record) for s in seen.message.answer for record in s))
    return "all of them, in changing order" if len(orders) > 1 else "all of them, always in one order"


def _truncated(seen: Reply, _: Host) -> str:
    if not seen.held.answer:
        return seen.outcome()
    cut = seen.held.flags & dns.flags.TC
    if cut and seen.size <= LEAST_UDP:
        return "TC, at most 512 bytes"
    return f"{sum(map(len, seen.held.answer))} records, {'TC' if cut else 'no TC'}"


def _compressed(seen: Reply, _: Host) -> str:
    if not seen.held.answer:
        return seen.outcome()
    plain = sum(len(s) * (len(s.name.to_wire() or b"") + 14) for s in seen.held.answer)
    return "names compressed" if seen.size < plain else "names not compressed"


def _questions(count: int) -> Observe:
    def observe(client: Client, where: World) -> str:
        message = dns.message.make_query(_need(where.service).name, "A", use_edns=-1)
        message.question = [dns.rrset.RRset(dns.name.from_text(h.name), dns.rdataclass.IN, dns.rdatatype.A)
                            for h in (_need(where.service), _need(where.external))[:count]]  # fmt: skip
        seen = client.send(message.to_wire())
        return seen.reason if seen.message is None else dns.rcode.to_text(seen.message.rcode())

    return observe


def _class(seen: Reply, _: Host) -> str:
    return "the address, in class IN" if seen.addresses() else seen.outcome()


def _search(where: World, host: Host) -> str:
    return f"{host.name}.{where.search[0]}"


def _below(where: World, host: Host) -> str:
    return "a.b" + host.name[1:]


CASES: tuple[Case, ...] = (
    Case("udp", "transport", "A of a service, UDP", "its address", _host("service", "its address"), ("service",)),
    Case("tcp", "transport", "A of a service, TCP", "its address",
         _host("service", "its address", tcp=True), ("service",)),
    Case("flag-aa", "header", "authoritative bit of a local answer", "AA=1", _flag(dns.flags.AA, "AA"), ("service",)),
    Case("flag-ra", "header", "recursion bit of a local answer", "RA=0", _flag(dns.flags.RA, "RA"), ("service",)),
    Case("ttl", "header", "TTL of a local answer", "TTL 30 s", _asked(_ttl), ("service",)),
    Case("no-opt", "header", "EDNS in the query", "no OPT", _asked(_no_opt, edns=1232), ("service",)),
    Case("no-question", "header", "a message without a question", "FORMERR", _questions(0), ("service", "external")),
    Case("two-questions", "header", "two questions in one message", "FORMERR", _questions(2), ("service", "external")),
    Case("class", "class", "A of a service, class CH", "the address, in class IN",
         _asked(_class, qclass="CH"), ("service",)),
    Case("case", "case", "rEvIeWs instead of reviews", "its address",
         _host("service", "its address", lambda _, h: _mixed(h.name)), ("service",)),
    Case("case-question", "case", "spelling of the question in the answer", "as asked",
         _asked(_echo, name=lambda _, h: _mixed(h.name)), ("service",)),
    Case("owner-case", "case", "spelling of the record's name", "lower case",
         _asked(_owner, name=lambda _, h: _mixed(h.name)), ("service",)),
    Case("name-ns", "short names", "name.namespace", "its address",
         _host("other_service", "its address", lambda _, h: f"{h.shortname}.{h.namespace}"),
         ("other_service", "other_service.shortname")),
    Case("name-ns-svc", "short names", "name.namespace.svc", "its address",
         _host("other_service", "its address", lambda _, h: f"{h.shortname}.{h.namespace}.svc"),
         ("other_service", "other_service.shortname")),
    Case("name", "short names", "name, in the client's namespace", "its address",
         _host("service", "its address", lambda _, h: h.shortname), ("service", "service.shortname")),
    Case("name-elsewhere", "short names", "name, in another namespace", "the upstream's answer",
         _forwarded(lambda w: _need(w.other_service).shortname),
         ("other_service", "other_service.shortname", "upstream")),
    Case("name-ns-svc-part", "short names", "name.namespace.svc.cluster", "the upstream's answer",
         _forwarded(lambda w: _need(w.service).name.rpartition(".")[0]), ("service", "upstream")),
    Case("alt-host", "short names", "an alternative host of the service", "its address",
         _host("service", "its address", lambda _, h: h.alt_hosts[0]), ("service", "service.alt_hosts")),
    Case("foreign", "short names", "a service of another cluster's domain, whole name", "its address",
         _host("foreign_service", "its address"), ("foreign_service",)),
    Case("foreign-name-ns", "short names", "name.namespace of a service of another cluster's domain",
         "the upstream's answer", _forwarded(lambda w: f"{_need(w.foreign_service).shortname}."
         f"{_need(w.foreign_service).namespace}"), ("foreign_service", "foreign_service.shortname", "upstream")),
    Case("search", "search", "external host below the first search domain", "CNAME and address in one message",
         _expansion("external", lambda h: h.name, lambda _, h: h.name, "CNAME and address in one message"),
         ("external",)),
    Case("search-short", "search", "name.namespace below the first search domain", "CNAME and address in one message",
         _expansion("other_service", lambda h: f"{h.shortname}.{h.namespace}",
                    lambda _, h: f"{h.shortname}.{h.namespace}", "CNAME and address in one message"),
         ("other_service", "other_service.shortname")),
    Case("search-second", "search", "external host below the second search domain", "the upstream's answer",
         _forwarded(lambda w: f"{_need(w.external).name}.{w.search[1]}"), ("external", "upstream")),
    Case("search-own", "search", "a name that ends in the search domain, below it again", "the upstream's answer",
         _forwarded(lambda w: _search(w, _need(w.service))), ("service", "upstream")),
    Case("search-family", "search", "AAAA of an IPv4 host below the search domain", "NOERROR, empty",
         _empty("external", "AAAA", _search), ("external",)),
    Case("nodata", "families", "AAAA of an IPv4 host", "NOERROR, empty", _empty("external", "AAAA"), ("external",)),
    Case("nodata-6", "families", "A of an IPv6 host", "NOERROR, empty", _empty("six", "A"), ("six",)),
    Case("aaaa", "families", "AAAA of a host with both", "its IPv6 address only",
         _host("dual", "its IPv6 address only", qtype="AAAA"), ("dual",)),
    Case("a-dual", "families", "A of a host with both", "its IPv4 address only",
         _host("dual", "its IPv4 address only"), ("dual",)),
    Case("wildcard", "wildcards", "two labels below a wildcard", "its address",
         _host("wildcard", "its address", _below), ("wildcard",)),
    Case("wildcard-longest", "wildcards", "below the longer of two wildcards", "the longer one's address",
         _host("deep_wildcard", "the longer one's address", lambda _, h: "x" + h.name[1:]), ("deep_wildcard",)),
    Case("wildcard-apex", "wildcards", "the wildcard's own domain", "the upstream's answer",
         _forwarded(lambda w: _need(w.wildcard).name[2:]), ("wildcard", "upstream")),
    Case("wildcard-search", "wildcards", "below a wildcard and the search domain", "CNAME to the literal wildcard",
         _expansion("wildcard", lambda h: h.name, _below, "CNAME to the literal wildcard"), ("wildcard",)),
    Case("headless", "many addresses", "A of a headless service, again and again", "all of them, in changing order",
         _shuffled, ("headless",)),
    Case("pod", "many addresses", "A of one pod's name", "its address", _host("pod", "its address"), ("pod",)),
    Case("truncated", "many addresses", "64 addresses, no EDNS", "TC, at most 512 bytes",
         _asked(_truncated, "large"), ("large",)),
    Case("edns-size", "many addresses", "64 addresses, EDNS 4096", "all of them",
         _host("large", "all of them", edns=4096), ("large",)),
    Case("tcp-large", "many addresses", "64 addresses, TCP", "all of them",
         _host("large", "all of them", tcp=True), ("large",)),
    Case("compressed", "many addresses", "owner names of 64 addresses, which fit without", "names not compressed",
         _asked(_compressed, "large", edns=4096), ("large",)),
    Case("txt", "other types", "TXT of a service", "the upstream's answer",
         _forwarded(lambda w: _need(w.service).name, "TXT"), ("service", "upstream")),
    Case("https", "other types", "HTTPS of a service", "the upstream's answer",
         _forwarded(lambda w: _need(w.service).name, "HTTPS"), ("service", "upstream")),
    Case("srv", "other types", "SRV of a service", "the upstream's answer",
         _forwarded(lambda w: _need(w.service).name, "SRV"), ("service", "upstream")),
    Case("ptr", "other types", "PTR", "the upstream's answer",
         _forwarded(lambda _: "7.0.96.10.in-addr.arpa", "PTR"), ("upstream",)),
    Case("forward", "forwarding", "A of an unknown name", "the upstream's answer",
         _forwarded(lambda w: str(w.upstream_name)), ("upstream", "upstream_name")),
    Case("forward-tcp", "forwarding", "A of an unknown name, TCP", "the upstream's answer",
         _forwarded(lambda w: str(w.upstream_name), tcp=True), ("upstream", "upstream_name")),
    Case("forward-nxdomain", "forwarding", "A of a name that does not exist", "the upstream's answer",
         _forwarded(lambda w: str(w.absent_name)), ("upstream", "absent_name")),
)  # fmt: skip


def run(server: str, where: World, timeout_s: float = TIMEOUT_S) -> list[Row]:
    """Every case that applies, in order; `server` is ADDR:PORT as seen from here."""
    client = Client(server, timeout_s)
    rows = []
    for case in CASES:
        if case.applies(where):
            observed = case.observe(client, where)
            rows.append(Row(case.id, case.topic, case.question, case.expected, observed, observed == case.expected))
    return rows


def main() -> int:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(description="how a DNS server differs from Istio's agent")
    parser.add_argument("--server", required=True, metavar="ADDR:PORT")
    parser.add_argument("--world", type=Path, help="JSON; replaces defaults of the names asked for")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S)
    options = parser.parse_args()
    where = world(json.loads(options.world.read_text())) if options.world else World()
    json.dump([dataclasses.asdict(row) for row in run(options.server, where, options.timeout_s)], sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
