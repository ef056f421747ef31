"""Where this proxy does otherwise than Istio's agent, and why: what `--differences` prints.

Each difference says in code in which situations it shows (`where`), and takes itself away from what was seen of the two
(`level`). A test puts tens of thousands of situations to both: what is left unequal is a difference that is not listed,
and a `where` that holds while both answer alike says too much.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import situations, wire
from .situations import NOTIFY, REFUSED, TSIG, Seen, Situation
from .upstream import Verdict, judge

WIDTH = 100
PENDING = 2048  # questions to the servers at a time, at most
Level = Callable[[Situation, Seen, Seen], tuple[Seen, Seen]]


@dataclass(frozen=True)
class Difference:
    """Where this proxy does otherwise than Istio's agent; `id` is the case's if one shows it."""

    id: str
    topic: str
    istio: str
    here: str
    reason: str
    where: Callable[[Situation], bool]
    level: Level  # the agent's and ours, with this difference taken away
    chance: bool = False  # it may show or not, by the agent's order of a map


def _each(change: Callable[[Seen], Seen]) -> Level:
    return lambda _, agent, ours: (change(agent), change(ours))


@dataclass(frozen=True)
class Whole:
    """A difference of the whole answer: where the two are as described, the agent's is taken to be ours."""

    as_described: Callable[[Situation, Seen, Seen], bool]

    def __call__(self, x: Situation, agent: Seen, ours: Seen) -> tuple[Seen, Seen]:
        """Nothing is left of it."""
        return (ours, ours) if self.as_described(x, agent, ours) else (agent, ours)


# Which situations they are.


def _made_here(x: Situation) -> bool:
    echoed = x.query is None and x.bits & wire.RA  # a query's own flag, sent back with the refusal
    return not x.silent and x.taken is None and not echoed


def _both_empty(x: Situation) -> bool:
    """Whether both know the name, and no address of the type asked for."""
    empty = not x.own_addresses and not any(x.family(claim) for claim in x.claims)
    return x.found is not None and x.place is not None and empty


def _plain_fits(x: Situation) -> bool:
    """Whether the agent's answer fits without compression; then it has none."""
    if not (x.query and x.found):
        return False
    addresses = x.found.addresses.v6 if x.qtype == wire.AAAA else x.found.addresses.v4
    size = 16 if x.qtype == wire.AAAA else 4
    owner = x.found.alias or x.query.name
    alias = len(x.query.name) + 10 + len(x.found.alias) if x.found.alias else 0
    plain = wire.HEADER + len(x.query.question) + alias + len(addresses) // size * (len(owner) + 10 + size)
    return plain <= (wire.MOST_TCP if x.tcp else x.query.udp_size)


def _alias(x: Situation) -> bool:
    return bool(x.place and x.place[0] in x.around.forms().aliases)


def _literal(x: Situation) -> bool:
    """The agent's alias is a wildcard's name, for a name below it that both know."""
    return bool(_alias(x) and x.place and x.place[1] and x.found and x.found.alias and x.own_addresses)


def _twice(x: Situation) -> bool:
    wild = _alias(x) and x.place is not None and x.place[1] and not _star(x)
    return wild and not (x.found and x.found.alias) and any(x.family(claim) for claim in x.claims)


def _star(x: Situation) -> bool:
    return x.target == "*." and bool(x.place and x.place[1])


def _hidden(x: Situation) -> bool:
    hidden = bool(_alias(x) and x.place and x.place[0] in x.around.forms().claims)
    return hidden and (bool(x.own_addresses) or any(x.family(claim) for claim in x.claims))


def _rivals(x: Situation) -> int:
    """Hosts with one name: of each family one of them gives the addresses, by chance; here the same one always.

    How many they are but for case, 0 where there is no choice.
    """
    given = {family for claim in x.claims if (family := x.family(claim))}
    choice = len(x.claims) > 1 and x.query and x.query.qclass == wire.IN and given not in (set(), {x.own_addresses})
    return len({claim.host.lower() for claim in x.claims}) if choice else 0


def _listed_wildcard(x: Situation) -> bool:
    wild = x.target.startswith("*.") and bool(x.place and x.place[1])
    return wild and any(claim.listed for claim in x.claims) and not _both_empty(x)


def _dotted(x: Situation) -> bool:
    if not (x.around.dotted and x.query and x.found):
        return False
    without = x.around.ours(dotted=False).find(x.query.name)
    own, others = x.own_addresses, x.addresses(without)
    return without is None or own != others or (bool(own) and without.alias != x.found.alias)


def _labels(x: Situation) -> bool:
    """Suffixes compared as text, or by labels: the name is known in one way alone."""
    strict = x.around.forms(whole_labels=True).lookup(x.name) if x.asks_address and x.around.told else None
    return strict != x.place and not _both_empty(x)


def _repeated(x: Situation) -> bool:
    size = 16 if x.qtype == wire.AAAA else 4
    return bool(x.claims) and any(size in claim.repeated for claim in x.claims)


def _lying_counts(x: Situation) -> bool:
    return x.query is None and x.taken_by_agent and len(x.message) > wire.HEADER and situations.ends_early(x.message)


def _many_records(x: Situation) -> bool:
    _, answers, authorities, others = x.counts
    return x.query is not None and (answers > 1 or authorities > 1 or others > 2)


def _two_opts(x: Situation) -> bool:
    return (
        x.query is None and x.taken_by_agent and x.opcode == 0 and situations.readable(x.message) and x.counts[3] == 2
    )


def _odd_query(x: Situation) -> bool:
    return x.query is None and x.taken_by_agent and x.opcode == 0 and (
        situations.points_forward(x.message) or situations.holds_empty(x.message)
    )  # fmt: skip


def _unread_question(x: Situation) -> bool:
    """Refused for more records than it takes: the agent has not read the question then."""
    refused = x.query is None and not x.silent and not x.taken_by_agent and x.opcode == 0 and x.counts[0] == 1
    return refused and wire.bare_reply(x.message, wire.FORMERR)[4:6] == b"\0\1"


def _rewritten(x: Situation) -> bool:
    """A query that is forwarded and is not written as the agent's library would write it."""
    if not (x.forwards and x.query and x.around.servers):
        return False
    _, at = wire.questions(x.message)
    held = list(wire.records(x.message, at))
    plain = x.query.question[:-4] == situations.expanded(x.message, wire.HEADER)
    return (held[-1].end if held else at) < len(x.message) or not plain or any(
        x.message[record.name] >= 0xC0 for record in held
    )  # fmt: skip


def _first_is(test: Callable[[bytes], bool]) -> Callable[[Situation], bool]:
    return lambda x: x.first is not None and test(x.first)


def _answers_something_else(x: Situation) -> bool:
    first = x.first
    if first is None or x.query is None or not situations.readable(first) or first[:2] != x.message[:2]:
        return False
    return bool(first[2] & 0x80) and judge(first[:2], x.query.question, first) is Verdict.OTHER


def _no_response(x: Situation) -> bool:
    first = x.first
    if first is None or len(first) < wire.HEADER or first[:2] != x.message[:2]:
        return False
    return situations.readable(first) and not first[2] & 0x80


def _guessed_and_broken(x: Situation) -> bool:
    first = x.first
    return bool(first and not x.tcp and len(first) >= wire.HEADER and first[:2] != x.message[:2])


def _cut_between(x: Situation) -> bool:
    """What has no room is cut where a record ends, by chance; the agent takes that for the whole."""
    if x.tcp or x.first is None or x.query is None or len(x.first) <= x.query.udp_size:
        return False
    return situations.readable(x.first) and situations.ends_early(x.first[: x.query.udp_size])


def _mended(x: Situation) -> bool:
    return (
        x.first is not None and x.first[:2] == x.message[:2] and situations.ends_early(x.first) and not _cut_between(x)
    )


def _taken_first(test: Callable[[bytes], bool]) -> Callable[[Situation], bool]:
    return lambda x: x.first is not None and x.taken is x.first and test(x.first)


def _repacked(x: Situation) -> bool:
    """Whether the agent would write the reply otherwise: without pointers if it fits so, without what follows."""
    if x.taken is None or x.query is None or len(x.taken) == wire.HEADER:
        return False
    plain, packed, trailing = situations.written_out(x.taken)
    return trailing or (packed and plain <= (wire.MOST_TCP if x.tcp else x.query.udp_size))


# What is taken away.


def _without(flags: int) -> Level:
    return _each(lambda seen: replace(seen, flags=seen.flags & ~flags))


def _lower_owners(seen: Seen) -> Seen:
    return replace(seen, records=tuple(sorted(r._replace(owner=r.owner.lower()) for r in seen.records)))


def _named(x: Situation, agent: Seen, ours: Seen) -> tuple[Seen, Seen]:
    """The literal wildcard replaced by the name that this proxy gives."""
    literal = wire.encode_name(x.target)
    alias = x.found.alias if x.found else b""
    records = [
        r._replace(
            owner=alias if r.owner == literal else r.owner,
            data=alias if r.kind == wire.CNAME and r.data == literal else r.data,
        )
        for r in agent.records
    ]
    return replace(agent, records=tuple(sorted(records))), ours


def _chosen(x: Situation, agent: Seen, ours: Seen) -> bool:
    """The agent gives the addresses of one of those that have the name."""
    given = {family for claim in x.claims if (family := x.family(claim))}
    return agent.local and agent.addresses in given and (ours.local or bool(ours.forwarded))


def _formerr(_: Situation, agent: Seen, ours: Seen) -> bool:
    return agent.rcode == wire.FORMERR and not agent.forwarded and ours.rcode != wire.FORMERR


def _answered(_: Situation, agent: Seen, ours: Seen) -> bool:
    return ours.rcode == wire.FORMERR and agent.rcode >= 0 and agent.rcode != wire.FORMERR


def _took(_: Situation, agent: Seen, ours: Seen) -> bool:
    """The agent passed a reply on, at once, and this proxy failed the server or waited for another."""
    return agent.rcode >= 0 and not agent.late and len(agent.forwarded) == 1 and agent != ours


def _gave_up(_: Situation, agent: Seen, ours: Seen) -> bool:
    """The agent failed a server whose reply this proxy passed on."""
    return len(agent.forwarded) > len(ours.forwarded) > 0


D = Difference
DIFFERENCES: tuple[Difference, ...] = (
    D("flag-ra", "header", "RA=0 in what it answers itself", "RA=1",
      "recursion is available, by forwarding (RFC 1035 4.1.1); clients such as dig warn without it",
      _made_here, _without(wire.RA)),
    D("refused-flags", "header", "AD and TC of a query that it refuses are sent back", "they are clear",
      "they say something of the answer, which the query cannot know",
      lambda x: x.query is None and not x.silent and bool(x.bits & (wire.AD | wire.TC)), _without(wire.AD | wire.TC)),
    D("refused-question", "header", "a refusal for the number of records has no question", "it has, if it can be read",
      "clients match an answer by its question", _unread_question, _each(lambda s: replace(s, question=b""))),
    D("edns-version", "header", "the version of EDNS is ignored",
      "BADVERS for names of ours unless it is 0, others forwarded as they come",
      "RFC 6891 6.1.3: the client then asks by the version there is",
      lambda x: bool(x.found and x.query and x.query.edns_version),
      Whole(lambda _, agent, ours: agent.local and ours.rcode == wire.BADVERS & 15 and not ours.forwarded)),
    D("owner-case", "case", "owner names in lower case", "owner names as asked",
      "resolvers that vary the case (DNS 0x20) find the name they asked for",
      lambda x: bool(x.own_addresses and x.query and x.query.question[:-4] != x.query.name), _each(_lower_owners)),
    D("compressed", "header", "names are compressed where the answer does not fit without", "always",
      "46 bytes an address or 40 are one datagram; it costs nothing",
      lambda x: _plain_fits(x) and bool(x.own_addresses), _each(lambda s: replace(s, packed=False))),
    D("wildcard-search", "wildcards", "CNAME to the literal `*.` name (issue 61732)",
      "CNAME to the name asked for without the search domain", "resolvers refuse `*` in a host name", _literal, _named),
    D("wildcard-forms", "wildcards", "a wildcard among the alternative hosts of a service works; host `*` answers for "
      "every name below the first search domain", "neither does", "Istio's control plane makes neither",
      lambda x: _listed_wildcard(x) or _star(x), Whole(lambda _, agent, ours: agent.local)),
    D("class", "class", "class ignored: a CH question gets an IN address", "forwarded, as unknown names are",
      "a record of another class does not answer the question",
      lambda x: x.asks_address and bool(x.query and x.query.qclass != wire.IN and x.claims),
      Whole(lambda _, agent, ours: agent.local and bool(ours.forwarded))),
    D("hidden-host", "search", "the expansion of one host can hide another host of that very name",
      "a host of the table always comes first", "what is named exactly is meant", _hidden,
      Whole(lambda _, agent, ours: (agent.local and ours.local and agent.addresses != ours.addresses)
          or agent.first == wire.CNAME)),
    D("search-twice", "search", "a name that ends in the search domain twice, below a wildcard that owns it: CNAME to "
      "the literal wildcard, and its addresses", "its addresses", "the name is owned without the search domain's help",
      _twice, Whole(lambda _, agent, ours: agent.local and agent.addresses == ours.addresses)),
    D("labels", "search", "suffixes are compared as text, case and all: a host `myshop.svc.cluster.local` ends in "
      "`shop.svc.cluster.local`", "by labels, in any case", "they are names", _labels,
      Whole(lambda _, agent, ours: agent != ours)),
    D("dotted-host", "short names", "a Kubernetes host that ends in a dot is dropped, whatever its form",
      "it is known by its name", "the dot changes nothing in a name", _dotted,
      Whole(lambda _, agent, ours: ours.local)),
    D("host-spelling", "case", "of hosts that are equal but for case one answers, by the order of a map, and "
      "another after the next push", "the later one", "the same table shall give the same answers",
      lambda x: _rivals(x) == 1, Whole(_chosen), True),
    D("two-hosts", "short names", "a short form or alternative host that is another host's name belongs to one of "
      "them, by the order of a map, for each family by itself", "to the host whose whole name it is, else to the first",
      "the same table shall give the same answers; what is named exactly is meant",
      lambda x: _rivals(x) > 1, Whole(_chosen), True),
    D("notify", "opcodes", "NOTIFY is treated as a query", "NOTIMP", "it is none",
      lambda x: x.opcode == NOTIFY and x.taken_by_agent,
      Whole(lambda _, agent, ours: ours.rcode == wire.NOTIMP and agent.rcode != wire.NOTIMP)),
    D("query-counts", "queries", "FORMERR for more than one record in the answer or authority section, or more than "
      "two additional ones", "answered, up to 32", "they do no harm", _many_records, Whole(_formerr)),
    D("query-cut", "queries", "a query that ends before its counts are fulfilled, or without its class, is answered",
      "FORMERR", "RFC 1035 4.1.1: it cannot be interpreted", _lying_counts, Whole(_answered)),
    D("query-header", "queries", "REFUSED for a header that promises a question and ends", "FORMERR",
      "RFC 1035 4.1.1: it cannot be interpreted", lambda x: x.taken_by_agent and len(x.message) == wire.HEADER,
      Whole(lambda _, agent, ours: (agent.rcode, ours.rcode) == (REFUSED, wire.FORMERR))),
    D("query-odd", "queries", "pointers that lead forward and records without data are taken", "FORMERR",
      "RFC 1035 4.1.4: a pointer is to a prior occurrence", _odd_query, Whole(_answered)),
    D("two-opts", "queries", "a query with two OPT records is answered", "FORMERR", "RFC 6891 6.1.1", _two_opts,
      Whole(_answered)),
    D("query-options", "queries", "FORMERR for options that its library cannot read, as a client subnet of one byte",
      "options are not looked into: answered, and forwarded as they are", "they concern the server behind",
      lambda x: x.query is not None and x.taken_by_agent and situations.refused_options(x.message), Whole(_formerr)),
    D("tcp-silence", "queries", "after a response, or less than a header, over TCP the connection stays open, without "
      "a word", "it is closed", "nothing more can be expected of such a client", lambda x: x.tcp and x.silent,
      _each(lambda s: replace(s, closed=False))),
    D("query-bytes", "forwarding", "a query is decoded and written anew: pointers written out, what follows it dropped",
      "the client's bytes but for the id", "nothing is lost that we do not know", _rewritten,
      _each(lambda s: replace(s, forwarded=tuple((tcp, b"") for tcp, _ in s.forwarded)))),
    D("upstream-bytes", "forwarding", "the answer is decoded and written anew, compressed if it does not fit without",
      "the upstream's bytes but for the id", "nothing is lost that we do not know; RFC 3597", _repacked,
      _each(lambda s: replace(s, packed=False, trailing=False))),
    D("upstream-match", "forwarding", "an answer is believed by its id and source",
      "and by its question; others are passed over until the deadline, or over TCP fail the server",
      "one forged datagram decides nothing", _answers_something_else, Whole(_took)),
    D("upstream-query", "forwarding", "a message that is no response is taken for one",
      "it is passed over until the deadline, or over TCP fails the server", "RFC 1035 4.1.1", _no_response,
      Whole(_took)),
    D("upstream-guess", "forwarding", "a datagram of another id that cannot be read fails the server at once",
      "it is passed over until the deadline", "one forged datagram decides nothing", _guessed_and_broken,
      Whole(lambda _, agent, ours: not agent.late)),
    D("upstream-counts", "forwarding", "an answer that ends before its counts are fulfilled is taken for as much as "
      "there is", "the server has failed, the next is asked; at last SERVFAIL",
      "what is missing may be all of it", _mended, Whole(_took)),
    D("upstream-cut", "forwarding", "an answer that has no room is SERVFAIL, but passed on without a word if it is cut "
      "just where a record ends", "SERVFAIL", "what is missing may be all of it", _cut_between,
      Whole(_took)),
    D("upstream-odd", "forwarding", "pointers that lead forward and records without data are taken, and written anew",
      "the server has failed, the next is asked; at last SERVFAIL",
      "RFC 1035 4.1.4: a pointer is to a prior occurrence",
      _first_is(lambda r: situations.points_forward(r) or situations.holds_empty(r)), Whole(_took)),
    D("upstream-options", "forwarding", "an answer with options that its library cannot read fails the server",
      "passed on as it is", "they concern the client",
      _taken_first(situations.refused_options), Whole(_gave_up)),
    D("upstream-signed", "forwarding", "an answer with a TSIG record fails the server", "passed on as it is",
      "it is for the client to check", _taken_first(lambda r: TSIG in situations.kinds(r)), Whole(_gave_up)),
    D("pending", "forwarding", "any number of questions under way", "bounded; beyond, SERVFAIL at once",
      "a flood must not take the descriptors of all", lambda x: x.forwards and x.around.under_way > PENDING,
      Whole(lambda _, agent, ours: ours.rcode == wire.SERVFAIL and not ours.forwarded)),
    D("no-servers", "forwarding", "in parallel mode without servers a query waits for ever, and the agent no longer "
      "ends by SIGTERM", "SERVFAIL", "the client can then try elsewhere",
      lambda x: x.forwards and x.around.parallel and not x.around.servers,
      Whole(lambda _, agent, ours: agent.rcode < 0 and ours.rcode == wire.SERVFAIL)),
    D("untold", "forwarding", "on port 53, as root, every name is forwarded until the table is there",
      "SERVFAIL, on any port", "names that will be ours would be asked of strangers",
      lambda x: not x.around.told and x.around.port == 53 and x.query is not None,
      Whole(lambda _, agent, ours: bool(agent.forwarded) and ours.rcode == wire.SERVFAIL)),
    D("duplicates", "addresses", "an address that is in the table twice is answered twice", "once",
      "RFC 2181 5: a set has no duplicates", _repeated,
      _each(lambda s: replace(s, records=tuple(sorted(set(s.records)))))),
)  # fmt: skip


def text() -> str:
    """All of them for a reader, a paragraph each."""
    return "\n".join(_paragraph(difference) for difference in DIFFERENCES)


def _paragraph(difference: Difference) -> str:
    lines = {"Istio's agent": difference.istio, "this proxy": difference.here, "because": difference.reason}
    said = [f"{difference.id} ({difference.topic})\n"]
    for who, what in lines.items():
        said.append(textwrap.fill(what, WIDTH, initial_indent=f"  {who + ':':15}", subsequent_indent=" " * 17) + "\n")
    return "".join(said)
