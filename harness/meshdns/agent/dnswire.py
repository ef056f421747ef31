"""Reads DNS messages, as far as needed to know which address was answered. Called after the clock was stamped."""

from __future__ import annotations

import functools
import socket
from typing import NamedTuple

A, AAAA, CNAME, IN = 1, 28, 5, 1
HEADER = 12
MAX_CHAIN = 16  # resolvers give up at 8 to 16 aliases; longer ones are loops
MAX_LABELS = 128  # a name of 255 bytes has at most 127 labels, so more steps mean a pointer loop
CACHED_ANSWERS = 512  # one query has few distinct answers (rotation times TTL)


class MalformedError(Exception):
    """The message is not what RFC 1035 describes."""


class Answer(NamedTuple):
    """What one message says: return code, first address at the end of the alias chain, and whether to trust it."""

    rcode: int
    address: str  # "" without one
    bad: bool  # malformed, truncated, or the answer to another question


class Query:
    """One pre-encoded query, and its question."""

    __slots__ = ("qtype", "question", "tail")

    def __init__(self, wire: bytes) -> None:
        """Takes a whole query message; raises MalformedError unless it holds exactly one question."""
        if len(wire) < HEADER or wire[4:6] != b"\0\1":
            raise MalformedError("a query has a header and exactly one question")
        _, end = _name(wire, HEADER)
        if end + 4 > len(wire):
            raise MalformedError("the question is cut short")
        self.tail = wire[2:]
        self.question = wire[HEADER : end + 4]
        self.qtype = int.from_bytes(wire[end : end + 2], "big")

    def read(self, message: bytes) -> Answer:
        """What the message answers to this query; never raises, whatever the bytes are."""
        return _read(message[2:], self.question, self.qtype)


@functools.lru_cache(CACHED_ANSWERS)
def _read(tail: bytes, question: bytes, qtype: int) -> Answer:
    """The answer in a message, given without its id, so that the same one is parsed once."""
    message = b"\0\0" + tail
    try:
        return _parse(message, question, qtype)
    except MalformedError:
        return Answer(message[3] & 15 if len(message) > 3 else -1, "", True)


def _parse(message: bytes, question: bytes, qtype: int) -> Answer:
    if len(message) < HEADER:
        raise MalformedError("shorter than a header")
    rcode = message[3] & 15
    if not message[2] & 0x80 or message[2] & 0x02:  # not a response, or truncated
        raise MalformedError("not a whole response")
    questions = int.from_bytes(message[4:6], "big")
    if questions == 0 and rcode:  # FORMERR and the like may leave the question out
        return Answer(rcode, "", False)
    end = HEADER + len(question)
    if questions != 1 or message[HEADER:end].lower() != question.lower():
        raise MalformedError("another question")
    address = _address(message, end, int.from_bytes(message[6:8], "big"), qtype)
    return Answer(rcode, address if rcode == 0 else "", False)


def _address(message: bytes, at: int, records: int, qtype: int) -> str:
    """The first address of the wanted type that the name, or the end of its alias chain, owns."""
    aliases: dict[bytes, bytes] = {}
    addresses: dict[bytes, bytes] = {}
    size = {A: 4, AAAA: 16}.get(qtype, -1)
    for _ in range(records):
        owner, at = _name(message, at)
        start = at + 10
        length = int.from_bytes(message[at + 8 : start], "big")
        if start + length > len(message):
            raise MalformedError("a record is cut short")
        kind, family = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
        at = start + length
        if family != IN:
            continue
        if kind == CNAME:
            aliases[owner], _ = _name(message, start)
        elif kind == qtype and size > 0:
            if length != size:
                raise MalformedError("an address of the wrong size")
            addresses.setdefault(owner, message[start:at])
    name, _ = _name(message, HEADER)
    for _ in range(MAX_CHAIN):
        if name in addresses:
            return socket.inet_ntop(socket.AF_INET if qtype == A else socket.AF_INET6, addresses[name])
        if name not in aliases:
            break
        name = aliases[name]
    return ""


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at a place, lower case and uncompressed, and the place after it. Owners may come compressed or whole."""
    parts: list[bytes] = []
    after = -1
    for _ in range(MAX_LABELS):
        if at >= len(message):
            raise MalformedError("a name is cut short")
        length = message[at]
        if length == 0:
            return b"".join(parts).lower(), after if after >= 0 else at + 1
        if length >= 0xC0:
            if at + 2 > len(message):
                raise MalformedError("a pointer is cut short")
            if after < 0:
                after = at + 2
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
        elif length >= 0x40:
            raise MalformedError("a label of an unknown kind")
        else:
            parts.append(message[at : at + 1 + length])
            at += 1 + length
    raise MalformedError("a name without end")
