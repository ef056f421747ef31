"""DNS messages as bytes: queries read and checked, names written, records walked. Pure functions; RFC 1035, 6891.

A name is kept in wire form, uncompressed and in lower case (`b"\\3www\\7example\\3com\\0"`): no dot in a label can
deceive it, and a parent domain is the same bytes from a label's start on.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

A, CNAME, SOA, AAAA, OPT = 1, 5, 6, 28, 41
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
BADVERS = 16  # its upper bits stand in the OPT record, RFC 6891 9
HEADER = 12
QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
OPT_BYTES = 11  # an OPT record without options
LEAST_UDP = 512  # what every client takes, RFC 1035 2.3.4
MOST_TCP = 65_535
MOST_UDP = 65_507  # what fits an IPv4 packet beside its header and UDP's
TAKEN_UDP = 4096  # what we take ourselves; no query is longer
MAX_NAME = 255
MAX_LABEL = 63
MAX_POINTERS = 126  # one before each label but the first is the most that a name can use
MAX_PARTS = 32  # questions or records of a query; ordinary ones have two


class MalformedError(Exception):
    """The bytes are not a DNS message."""


class RefusedError(Exception):
    """A message that is answered by an rcode alone; `rcode` is -1 where even that would be wrong."""

    def __init__(self, rcode: int) -> None:
        super().__init__(rcode)
        self.rcode = rcode


class Query(NamedTuple):
    """A query of which every byte was looked at."""

    message: bytes  # as it came
    question: bytes  # the first question as asked: name, type, class
    name: bytes  # its name in lower case
    qtype: int
    qclass: int
    udp_size: int  # what the client takes by UDP; at least 512, at most what a datagram holds
    edns: bool
    edns_flags: int  # TTL field of the OPT record: extended rcode, version, DO and other flags
    options: bool  # whether the OPT record holds any: a cookie, a client's subnet

    @property
    def flags(self) -> int:
        """Bytes 2 and 3 of the header."""
        return int.from_bytes(self.message[2:4], "big")

    @property
    def edns_version(self) -> int:
        """0 is the only one there is."""
        return self.edns_flags >> 16 & 0xFF


class Record(NamedTuple):
    """Where a record's parts lie in its message."""

    section: int  # 0 answer, 1 authority, 2 additional
    name: int
    kind: int
    qclass: int
    ttl: int  # seconds, or OPT's flags
    fixed: int  # place of the type; the TTL lies 4 bytes further
    data: int
    end: int


def skip_name(message: bytes, at: int) -> int:
    """The place after the name that begins at `at`. Pointers must lead backwards, so no loop is possible."""
    after, length_so_far, lowest, pointers = -1, 1, at, 0
    while True:
        if at >= len(message):
            raise MalformedError("a name is cut short")
        length = message[at]
        if length == 0:
            return after if after >= 0 else at + 1
        if length >= 0xC0:
            if at + 2 > len(message):
                raise MalformedError("a pointer is cut short")
            if after < 0:
                after = at + 2
            at = int.from_bytes(message[at : at + 2], "big") & 0x3FFF
            if at >= lowest or at < HEADER:
                raise MalformedError("a pointer does not lead backwards")
            lowest = at
            pointers += 1
            if pointers > MAX_POINTERS:  # each name of a message could lead down one long chain of them
                raise MalformedError("a name has too many pointers")
        elif length > MAX_LABEL:
            raise MalformedError("a label of an unknown kind")
        else:
            length_so_far += length + 1
            if length_so_far > MAX_NAME:
                raise MalformedError("a name is longer than 255 bytes")
            at += length + 1


def questions(message: bytes) -> tuple[bytes, int]:
    """The first question as asked, and the place after the last one."""
    at = HEADER
    first = b""
    count = int.from_bytes(message[4:6], "big")
    if count > MAX_PARTS:
        raise MalformedError("too many questions")
    for _ in range(count):
        end = skip_name(message, at) + 4
        if end > len(message):
            raise MalformedError("a question is cut short")
        first = first or message[at:end]
        at = end
    return first, at


def records(message: bytes, at: int) -> Iterator[Record]:
    """Every record from the place after the questions on; raises MalformedError where the counts promise more."""
    for section, count in enumerate(struct.unpack_from(">HHH", message, 6)):
        for _ in range(count):
            name = at
            fixed = skip_name(message, at)
            data = fixed + 10
            if data > len(message):
                raise MalformedError("a record is cut short")
            kind, qclass, ttl, length = struct.unpack_from(">HHIH", message, fixed)
            at = data + length
            if at > len(message):
                raise MalformedError("a record is cut short")
            yield Record(section, name, kind, qclass, ttl, fixed, data, at)


# What the data of a record consists of, where it can be checked: bytes, names (n), strings (s: one, t: one or more),
# numbered values (v, as in OPT), and what is not looked at (*). Other types are bytes to everybody (RFC 3597).
DATA: dict[int, tuple[int | str, ...]] = {
    **dict.fromkeys((2, 3, 4, CNAME, 7, 8, 9, 12, 39), ("n",)),  # NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME
    A: (4,),
    SOA: ("n", "n", 20),
    13: ("s", "s"),  # HINFO
    **dict.fromkeys((15, 18, 36), (2, "n")),  # MX, AFSDB, KX
    **dict.fromkeys((16, 99), ("t",)),  # TXT, SPF
    17: ("n", "n"),  # RP
    AAAA: (16,),
    29: (16,),  # LOC
    33: (6, "n"),  # SRV
    35: (4, "s", "s", "s", "n"),  # NAPTR
    OPT: ("v",),
    **dict.fromkeys((43, 48), (4, "*")),  # DS, DNSKEY
    46: (18, "n", "*"),  # RRSIG
    47: ("n", "*"),  # NSEC
    **dict.fromkeys((64, 65), (2, "n", "v")),  # SVCB, HTTPS
    257: (1, "s", "*"),  # CAA
}


def check(message: bytes) -> None:
    """Raises MalformedError unless all that the counts promise is there and can be read; more may follow."""
    _, at = questions(message)
    for record in records(message, at):
        check_data(message, record)


def check_data(message: bytes, record: Record) -> None:
    """Raises MalformedError unless the data is what the record's type says, neither less nor more."""
    at, end = record.data, record.end
    for part in DATA.get(record.kind, ("*",)):
        if isinstance(part, int):
            at += part
        elif part == "n":
            at = skip_name(message, at)
        elif part == "*":
            at = max(at, end)
        else:
            at = _skip_values(message, at, end) if part == "v" else _skip_strings(message, at, end, part == "t")
        if at > end:
            raise MalformedError("a record's data is cut short")
    if at != end:
        raise MalformedError("a record's data is too long")


def _skip_strings(message: bytes, at: int, end: int, all_of_them: bool) -> int:
    if at >= end:
        raise MalformedError("a string is missing")
    at += 1 + message[at]
    while all_of_them and at < end:
        at += 1 + message[at]
    return at


def _skip_values(message: bytes, at: int, end: int) -> int:
    while at < end:
        if at + 4 > end:
            raise MalformedError("a value is cut short")
        at += 4 + int.from_bytes(message[at + 2 : at + 4], "big")
    return at


def read_query(message: bytes) -> Query:
    """The query in a message; raises RefusedError with the rcode it deserves."""
    if len(message) < HEADER or message[2] & 0x80:  # to answer a response is to start a loop
        raise RefusedError(-1)
    if int.from_bytes(message[2:4], "big") & OPCODE:
        raise RefusedError(NOTIMP)
    try:
        if message[4:6] != b"\0\1":  # RFC 9619
            raise MalformedError("not one question")
        question, at = questions(message)
        if sum(struct.unpack_from(">HHH", message, 6)) > MAX_PARTS:
            raise MalformedError("too many records")
        held = list(records(message, at))
        for record in held:
            check_data(message, record)
    except MalformedError:
        raise RefusedError(FORMERR) from None
    edns = [record for record in held if record.kind == OPT]
    if len(edns) > 1:  # RFC 6891 6.1.1
        raise RefusedError(FORMERR)
    qtype, qclass = struct.unpack(">HH", question[-4:])
    size, edns_flags, options = LEAST_UDP, 0, False
    for record in edns:
        size = min(max(record.qclass, LEAST_UDP), MOST_UDP)
        edns_flags, options = record.ttl, record.end > record.data
    return Query(message, question, question[:-4].lower(), qtype, qclass, size, bool(edns), edns_flags, options)


def bare_reply(message: bytes, rcode: int) -> bytes:
    """A header and, where there is one to be read, the question: what refusals and failures look like."""
    flags = int.from_bytes(message[2:4], "big")
    question, count = b"", 0
    if not flags & OPCODE and message[4:6] == b"\0\1":  # other operations have something else in that place
        with contextlib.suppress(MalformedError):
            question, _ = questions(message)
            count = int(bool(question))
    flags = QR | RA | (flags & (OPCODE | RD | CD)) | rcode
    return message[:2] + struct.pack(">HHHHH", flags, count, 0, 0, 0) + question


def bad_version(query: Query) -> bytes:
    """The answer to a version of EDNS that is not ours; the OPT record names the one that is (RFC 6891 6.1.3)."""
    reply = bare_reply(query.message, BADVERS & 15)
    return reply[:11] + b"\1" + reply[12:] + struct.pack(">BHHIH", 0, OPT, TAKEN_UDP, BADVERS >> 4 << 24, 0)


def encode_name(text: str) -> bytes:
    """A host name in wire form and lower case; raises ValueError where it cannot be one."""
    parts = []
    for label in text.removesuffix(".").lower().split("."):
        octets = label.encode("ascii")  # UnicodeEncodeError is a ValueError
        if not 0 < len(octets) <= MAX_LABEL:
            raise ValueError(f"{text!r} has a label of {len(octets)} bytes")
        parts.append(bytes([len(octets)]) + octets)
    wire = b"".join(parts) + b"\0"
    if len(wire) > MAX_NAME:
        raise ValueError(f"{text!r} is longer than {MAX_NAME} bytes")
    return wire


def parents(name: bytes) -> list[int]:
    """Places of the labels of a name in wire form, the first at 0; the root is not among them."""
    places = []
    at = 0
    while name[at]:
        places.append(at)
        at += name[at] + 1
    return places


def show_name(name: bytes) -> str:
    """A name as people write it, without the last dot; unprintable bytes as \\DDD (RFC 4343)."""
    labels = (name[at + 1 : at + 1 + name[at]] for at in parents(name))
    shown = ("".join(chr(b) if 0x21 <= b <= 0x7E and b not in b'."\\' else f"\\{b:03d}" for b in one) for one in labels)
    return ".".join(shown) or "."
