"""What a stub resolver asks for a name: the search list, as messages ready to send (resolv.conf(5), RFC 1035)."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rdatatype


def candidates(name: str, ndots: int, search: tuple[str, ...]) -> list[str]:
    """The names that glibc's resolver tries, in order, each with its final dot (resolv.conf(5), `ndots`)."""
    if name.endswith("."):
        return [name]
    expanded = [f"{name}.{domain}." for domain in search]
    as_is = f"{name}."
    return [as_is, *expanded] if name.count(".") >= ndots else [*expanded, as_is]


def question(name: str, qtype: str) -> bytes:
    """A recursive query in wire form with id 0; the agent writes the id."""
    message = dns.message.make_query(dns.name.from_text(name), dns.rdatatype.from_text(qtype), use_edns=False)
    message.id = 0
    message.flags = dns.flags.Flag.RD
    return message.to_wire()


def wire(name: str, qtype: str, ndots: int, search: tuple[str, ...]) -> list[list[str]]:
    """Candidates in search order, each a list of hex messages that are asked side by side (A and AAAA)."""
    return [[question(candidate, t).hex() for t in qtype.split("+")] for candidate in candidates(name, ndots, search)]
