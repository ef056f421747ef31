"""Where this proxy does otherwise than Istio's agent, and why: what `--differences` prints."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

WIDTH = 100


@dataclass(frozen=True)
class Difference:
    """Where this proxy does otherwise than Istio's agent; `id` is the case's if one shows it."""

    id: str
    topic: str
    istio: str
    here: str
    reason: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference("listen", "listener", "localhost:15053, on 127.0.0.1 and ::1 by the families of resolv.conf's servers",
               "the same by default, any other addresses with --listen", "it can be used alone, and beside an agent"),
    Difference("flag-ra", "header", "RA=0 in local answers", "RA=1",
               "recursion is available, by forwarding (RFC 1035 4.1.1); clients such as dig warn without it"),
    Difference("edns-version", "header", "the version of EDNS is ignored",
               "BADVERS for names of ours unless it is 0, others forwarded as they come",
               "RFC 6891 6.1.3: the client then asks by the version there is"),
    Difference("owner-case", "case", "owner names in lower case", "owner names as asked",
               "resolvers that vary the case (DNS 0x20) find the name they asked for"),
    Difference("wildcard-search", "wildcards", "CNAME to the literal `*.` name (issue 61732)",
               "CNAME to the name asked for without the search domain", "resolvers refuse `*` in a host name"),
    Difference("class", "class", "class ignored: a CH question gets an IN address", "forwarded, as unknown names are",
               "a record of another class does not answer the question"),
    Difference("hidden-host", "search", "the expansion of one host can hide another host of that very name",
               "a host of the table always comes first", "what is named exactly is meant"),
    Difference("questions", "header", "code for none (SERVFAIL) and several (the first) exists, but its DNS library "
               "refuses such messages before with FORMERR", "SERVFAIL, and the first", "as the agent's own code says"),
    Difference("notify", "opcodes", "NOTIFY is treated as a query", "NOTIMP", "it is none"),
    Difference("upstream-bytes", "forwarding", "the answer is decoded, compressed, and cut to the client's size",
               "the upstream's bytes but for the id", "nothing is lost that we do not know; RFC 3597"),
    Difference("upstream-match", "forwarding", "an answer is believed by its id and source",
               "and by its question; others are passed over until the deadline", "one forged datagram decides nothing"),
    Difference("pending", "forwarding", "any number of questions under way", "bounded; beyond, SERVFAIL at once",
               "a flood must not take the descriptors of all"),
    Difference("no-servers", "forwarding", "in parallel mode without servers a query waits for ever",
               "SERVFAIL", "the client can then try elsewhere"),
    Difference("duplicates", "addresses", "an address that is in the table twice is answered twice", "once",
               "RFC 2181 5: a set has no duplicates"),
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
