"""What the servers behind both DNS proxies say: each kind of reply there is, by the first label of the name asked for.

`said` gives the replies to a query, one tuple for each time it is asked; the same function answers in the server and
tells the differential what was answered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from meshdns.dnsproxy import wire

Reply = Callable[[bytes, bytes], tuple[bytes, ...]]
NEXT = "next"  # in a first label: the second time it is asked a good answer is given


def record(kind: int, data: bytes, ttl_s: int = 60, owner: bytes = b"\xc0\x0c") -> bytes:
    """One of class IN."""
    return owner + struct.pack(">HHIH", kind, wire.IN, ttl_s, len(data)) + data


def header(message_id: bytes, flags: int, *counts: int) -> bytes:
    """The first twelve bytes."""
    return message_id + struct.pack(">H4H", flags, *counts)


A = record(wire.A, b"\xc0\0\2\1")
SOA = record(wire.SOA, b"\2ns\0\2me\0" + struct.pack(">5I", 1, 2, 3, 4, 5), owner=b"\4test\0")


def opt(data: bytes = b"", ttl: int = 0) -> bytes:
    """An OPT record that offers 1232 bytes."""
    return b"\0" + struct.pack(">HHIH", wire.OPT, 1232, ttl, len(data)) + data


def option(code: int, value: bytes) -> bytes:
    """One of an OPT record."""
    return struct.pack(">HH", code, len(value)) + value


def plain(flags: int, answer: bytes = b"", *counts: int) -> Reply:
    """Header, question, records."""
    return lambda i, q: (header(i, flags, 1, *(counts or (0, 0, 0))) + q + answer,)


def bare(flags: int, *counts: int) -> Reply:
    """A header alone."""
    return lambda i, _: (header(i, flags, *(counts or (0, 0, 0, 0))),)


def other_id(message_id: bytes) -> bytes:
    """Not this one."""
    return bytes([message_id[0] ^ 1, message_id[1]])


def many(count: int) -> Reply:
    """So many addresses."""
    return plain(0x8180, b"".join(record(wire.A, bytes([10, 0, n >> 8, n & 255])) for n in range(count)), count, 0, 0)


def _fill(message_id: bytes, question: bytes) -> tuple[bytes, ...]:
    """Forty addresses, and before them a record of such a length that the 512th byte is the last of one of them."""
    room = (wire.LEAST_UDP - wire.HEADER - len(question) - 12 - 1) % 16 + 1
    first = record(65_400, b"x" * room)
    rest = b"".join(record(wire.A, bytes([10, 0, 0, n])) for n in range(40))
    return (header(message_id, 0x8180, 1, 41, 0, 0) + question + first + rest,)


GOOD = plain(0x8180, A, 1, 0, 0)
KINDS: dict[str, Reply] = {
    "known": GOOD,
    "nx": plain(0x8183, SOA, 0, 1, 0),
    "nodata": plain(0x8180, SOA, 0, 1, 0),
    "ad": plain(0x81A0, A, 1, 0, 0),
    "aa": plain(0x8580, A, 1, 0, 0),
    "norecursion": plain(0x8100, A, 1, 0, 0),
    "zbit": plain(0x81C0, A, 1, 0, 0),
    "opt": plain(0x8180, A + opt(), 1, 0, 1),
    "ede": plain(0x8182, opt(option(15, b"\0\x16")), 0, 0, 1),
    "edecut": plain(0x8182, opt(option(15, b"\0")), 0, 0, 1),
    "cookie": plain(0x8180, A + opt(option(10, b"abcdefgh12345678")), 1, 0, 1),
    "subnet": plain(0x8180, A + opt(option(8, b"\0\1\x18\x18\1\2\3")), 1, 0, 1),
    "badsubnet": plain(0x8180, A + opt(option(8, b"\0\1\x40\0\1\2\3")), 1, 0, 1),
    "keepalive": plain(0x8180, A + opt(option(11, b"\0\5")), 1, 0, 1),
    "badkeepalive": plain(0x8180, A + opt(option(11, b"\0")), 1, 0, 1),
    "badvers": plain(0x8180, opt(ttl=1 << 24), 0, 0, 1),
    "twoopts": plain(0x8180, A + opt() + opt(), 1, 0, 2),
    "unknown": plain(0x8180, record(65_400, b"\1\2\3"), 1, 0, 0),
    "unknownempty": plain(0x8180, record(65_400, b""), 1, 0, 0),
    "ttl0": plain(0x8180, record(wire.A, b"\1\2\3\4", 0), 1, 0, 0),
    "ttlmost": plain(0x8180, record(wire.A, b"\1\2\3\4", 0xFFFFFFFF), 1, 0, 0),
    "fits": many(28),
    "large": many(60),
    "between": _fill,
    "tc": plain(0x8380),
    "tcsome": plain(0x8380, A, 1, 0, 0),
    **{f"bare{code}": bare(0x8180 | code) for code in (0, 1, 2, 3, 4, 5, 9)},
    "bareone": bare(0x8180, 1, 0, 0, 0),
    "barerecords": bare(0x8185, 1, 3, 0, 0),
    "cut": plain(0x8180, b"", 9, 0, 0),
    "cutone": plain(0x8180, A, 2, 0, 0),
    "cutauthority": plain(0x8183, b"", 0, 1, 0),
    "cutrecord": plain(0x8180, A + A[:9], 2, 0, 0),
    "cutdata": plain(0x8180, A[:-1], 1, 0, 0),
    "cutclass": lambda i, q: (header(i, 0x8180, 1, 0, 0, 0) + q[:-2],),
    "cutquestion": lambda i, q: (header(i, 0x8180, 1, 0, 0, 0) + q[:-1],),
    "cutname": lambda i, q: (header(i, 0x8180, 1, 0, 0, 0) + q[:5],),
    "forward": plain(0x8180, record(wire.A, b"\1\2\3\4", owner=b"\xc0\xff"), 1, 0, 0),
    "forwardgood": plain(0x8180, record(wire.A, b"\1\2\3\4", owner=b"\xc0\x3e")
                         + record(65_400, b"\1a\4test\0" * 4), 2, 0, 0),
    "loop": lambda i, q: (header(i, 0x8180, 1, 1, 0, 0) + q + record(
        wire.A, b"\1\2\3\4", owner=struct.pack(">H", 0xC000 | (wire.HEADER + len(q)))),),
    "labelkind": plain(0x8180, record(wire.A, b"\1\2\3\4", owner=b"\x41ab\0"), 1, 0, 0),
    "trailing": plain(0x8180, A + b"\0\1\2\3", 1, 0, 0),
    "trailingname": plain(0x8180, A + A, 1, 0, 0),
    "short": lambda i, _: (i + b"\x81\x80",),
    "eleven": lambda i, _: (header(i, 0x8180, 0, 0, 0, 0)[:11],),
    "empty": lambda i, q: (b"",),
    "silent": lambda i, q: (),
    "otherid": lambda i, q: (other_id(i) + GOOD(i, q)[0][2:],),
    "otheridthen": lambda i, q: (other_id(i) + plain(0x8183)(i, q)[0][2:], *GOOD(i, q)),
    "otheridcut": lambda i, q: (other_id(i) + plain(0x8180, A[:-1], 1, 0, 0)(i, q)[0][2:],),
    "otheridcutthen": lambda i, q: (other_id(i) + plain(0x8180, A[:-1], 1, 0, 0)(i, q)[0][2:], *GOOD(i, q)),
    "shortthen": lambda i, q: (b"\0", *GOOD(i, q)),
    "otherquestion": lambda i, q: (header(i, 0x8180, 1, 1, 0, 0) + b"\5other\4test\0" + q[-4:] + A,),
    "otherquestionthen": lambda i, q: (
        header(i, 0x8180, 1, 1, 0, 0) + b"\5other\4test\0" + q[-4:] + A, *GOOD(i, q)),
    "othertype": lambda i, q: (header(i, 0x8180, 1, 1, 0, 0) + q[:-4] + b"\0\x10\0\1" + A,),
    "otherclass": lambda i, q: (header(i, 0x8180, 1, 1, 0, 0) + q[:-2] + b"\0\3" + A,),
    "upper": lambda i, q: (header(i, 0x8180, 1, 1, 0, 0) + q[:-4].upper() + q[-4:] + A,),
    "noquestion": lambda i, q: (
        header(i, 0x8180, 0, 1, 0, 0) + record(wire.A, b"\1\2\3\4", owner=q[:-4]),),
    "twoquestions": lambda i, q: (header(i, 0x8180, 2, 1, 0, 0) + q + q + A,),
    "twoquestionscut": lambda i, q: (header(i, 0x8180, 2, 0, 0, 0) + q,),
    "query": plain(0x0180, A, 1, 0, 0),
    "querythen": lambda i, q: (plain(0x0180, A, 1, 0, 0)(i, q)[0], *plain(0x8183)(i, q)),
    "opcode": plain(0xA980, A, 1, 0, 0),
    "twice": plain(0x8180, A + A, 2, 0, 0),
    "threebytes": plain(0x8180, record(wire.A, b"\1\2\3"), 1, 0, 0),
    "fivebytes": plain(0x8180, record(wire.A, b"\1\2\3\4\5"), 1, 0, 0),
    "nobytes": plain(0x8180, record(wire.A, b""), 1, 0, 0),
    "aaaa15": plain(0x8180, record(wire.AAAA, b"\1" * 15), 1, 0, 0),
    "mxcut": plain(0x8180, record(15, b"\0\1\3ab"), 1, 0, 0),
    "cnamelong": plain(0x8180, record(wire.CNAME, b"\1a\0\0"), 1, 0, 0),
    "soacut": plain(0x8183, record(wire.SOA, b"\0\0" + b"\1" * 19), 0, 1, 0),
    "txtcut": plain(0x8180, record(16, b"\5abc"), 1, 0, 0),
    "txtempty": plain(0x8180, record(16, b""), 1, 0, 0),
    "txt": plain(0x8180, record(16, b"\3abc\0\2de"), 1, 0, 0),
    "srv": plain(0x8180, record(33, b"\0\1\0\2\0\3\1x\4test\0"), 1, 0, 0),
    "naptr": plain(0x8180, record(35, b"\0\1\0\2\1u\3E2U\0\1x\4test\0"), 1, 0, 0),
    "caa": plain(0x8180, record(257, b"\0\5issueca.test"), 1, 0, 0),
    "svcb": plain(0x8180, record(65, b"\0\1\0\0\1\0\3\2h2"), 1, 0, 0),
    "svcbcut": plain(0x8180, record(65, b"\0\1\0\0\1\0\x09\2h2"), 1, 0, 0),
    "rrsig": plain(0x8180, record(46, b"\0\1\x08\2" + b"\0" * 14 + b"\4test\0" + b"sig"), 1, 0, 0),
    **{f"code{code}": plain(0x8180 | code) for code in (1, 2, 4, 5, 6, 9, 15)},
    "chain": plain(0x8180, record(wire.CNAME, b"\1x\4test\0")
                   + record(wire.A, b"\1\2\3\4", owner=b"\1x\4test\0"), 2, 0, 0),
    "sections": plain(0x8180, A + record(2, b"\2ns\4test\0", owner=b"\4test\0")
                      + record(wire.A, b"\1\2\3\4", owner=b"\2ns\4test\0"), 1, 1, 1),
    "signed": plain(0x8180, A + b"\1k\0" + struct.pack(">HHIH", 250, 255, 0, 22) + b"\4hmac\0" + b"\0" * 6
                    + b"\1\x2c\0\0" + b"\0" * 6, 1, 0, 1),
}  # fmt: skip


def said(query: bytes, more: Mapping[str, Reply]) -> tuple[tuple[bytes, ...], ...]:
    """What is said to the query each time, under its id; the last for all further times. Unknown names do not exist.

    `more`: kinds beside those above.
    """
    try:
        end = wire.skip_name(query, wire.HEADER) + 4
    except wire.MalformedError:
        return ((),)
    label = query[wire.HEADER + 1 : wire.HEADER + 1 + query[wire.HEADER]].decode("latin-1").lower()
    kind, _, rest = label.partition("-")
    reply = more.get(kind) or KINDS.get(kind, KINDS["nx"])
    question = query[wire.HEADER : end]
    first = reply(query[:2], question)
    return (first, GOOD(query[:2], question)) if rest.startswith(NEXT) else (first,)
