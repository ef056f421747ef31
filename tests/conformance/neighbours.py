"""Near each difference, what both proxies answer alike: fifty questions for each, in which it must not claim to show.

All are about one table; what the servers say to some of them is given with them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.conformance import scripts
from tests.conformance.questions import SEARCH, Asked, query
from tests.conformance.scripts import A, Reply, header, opt, option, plain, record

from meshdns.dnsproxy import wire

COUNT = 50
CASES = {n: format(n + 1, "06b") for n in range(COUNT)}  # six bits that are never all 0
UNKNOWN = "upstream.test"
_OPCODES = [n for n in range(1, 16) if n != 4]


def table() -> dict[str, Any]:
    """Fifty hosts of each kind that is nearly one that the two treat differently."""
    made: dict[str, Any] = {"plain.near.test": _external("203.0.113.1"), "*.owned.test": _external("203.0.113.2")}
    for n in range(COUNT):
        one, two = f"10.1.{n}.1", f"10.1.{n}.2"
        made |= {
            f"host{n}.near.test": _external(one),
            f"two{n}.near.test": _external(one, two, f"2001:db8::{n}"),  # each address once
            f"addresses{n}.near.test": _external(*(f"10.2.{n}.{k}" for k in range(15 + n))),  # too many
            f"*.wild{n}.test": _external(one),
            f"dotted{n}.near.test.": _external(one),  # no service
            f"Same{n}.near.test": _external(one), f"same{n}.near.test": _external(one),
            f"my.shop{n}.svc.cluster.local": _external(one),
            f"a{n}.shop.svc.cluster.local": _external(two),
            f"svc{n}.bank.svc.cluster.local": _service(f"svc{n}", "bank", one, alt_hosts=[f"alt{n}.near.test"]),
            f"svc{n}.bank": _external(one),  # the service's short form, with its address
        }  # fmt: skip
    return made


def _external(*ips: str) -> dict[str, Any]:
    return {"ips": list(ips), "registry": "External"}


def _service(short: str, namespace: str, *ips: str, **more: Any) -> dict[str, Any]:
    return {"ips": list(ips), "registry": "Kubernetes", "shortname": short, "namespace": namespace, **more}


def messages() -> Iterator[tuple[str, Asked, Reply | None]]:
    """The id of a difference, a question near it, and what is said to it where the usual would not do."""
    for name, make in _QUERIES.items():
        for n in range(COUNT):
            message = make(n)
            made = message if isinstance(message, Asked) else Asked("", message)
            yield name, Asked(f"near {name}, {n}", made.message, made.tcp), None
    for name, reply in _REPLIES.items():
        for n in range(COUNT):
            asked = query(f"near{n}x{name}.{UNKNOWN}", edns=1232 if n % 3 else None)
            yield name, Asked(f"near {name}, {n}", asked, n % 2 == 1 and name not in _BY_UDP), reply(n)


def label(asked: Asked) -> str:
    """What the servers know its reply by."""
    return asked.message[13 : 13 + asked.message[12]].decode()


def _flags(n: int, *of: int) -> int:
    """Some of these bits, never none."""
    return sum(bit for bit, chosen in zip(of, CASES[n], strict=False) if chosen == "1")


def _with(message: bytes, records: bytes, *counts: int) -> bytes:
    return message[:6] + struct.pack(">HHH", *counts) + message[12:] + records


def _own(n: int, **how: Any) -> bytes:
    return query(f"host{n}.near.test", **how)


def _known(n: int, **how: Any) -> bytes:
    return query(f"known-near{n}.{UNKNOWN}", **how)


def _good_option(n: int) -> bytes:
    lengths = {
        3: range(50),
        10: range(8, 41),
        12: range(50),
        11: (0, 2),
        9: (0, 4),
        2: (4, 8),
        15: range(2, 50),
        65_001: range(50),
    }
    code = list(lengths)[n % len(lengths)]
    options = list(lengths[code])
    return option(code, b"\0" * options[n % len(options)])


def _back(n: int) -> bytes:
    """A record whose owner is a pointer back, into the question."""
    return record(wire.A, bytes([1, 2, 3, n]), owner=b"\xc0\x0c")


_QUERIES: dict[str, Callable[[int], bytes | Asked]] = {
    "flag-ra": lambda n: _known(n, flags=_flags(n, 0x0100, 0x0010, 0x0020, 0x0040)),
    "refused-flags": lambda n: query("plain.near.test", flags=_OPCODES[n % 14] << 11 | n % 2 << 8 | n % 3 % 2 << 4),
    "refused-question": lambda n: _with(_own(n), A * (n % 2) + opt(option(12, b"\0" * n)), 0, 0, 1 + n % 2),
    "edns-version": lambda n: _with(_own(n), opt(ttl=(n << 24) | 0x8000 * (n % 2)), 0, 0, 1) if n % 2
    else _with(_known(n), opt(ttl=(n + 1) << 16), 0, 0, 1),
    "owner-case": lambda n: (_own(n), query(f"HOST{n}.near.test", "AAAA"), _known(n).upper())[n % 3],
    "compressed": lambda n: query(f"addresses{n}.near.test"),
    "wildcard-search": lambda n: query(
        (f"x{n}.wild{n}.test", f"host{n}.near.test.{SEARCH}", f"x.owned.test.svc{n}")[n % 3]),
    "wildcard-forms": lambda n: query(
        (f"alt{n}.near.test", f"x.alt{n}.near.test", f"x.wild{n}.test", f"*.wild{n}.test")[n % 4]),
    "class": lambda n: (_own(n, qclass=1), _known(n, qclass=3), _own(n, qtype="TXT", qclass=3))[n % 3],
    "hidden-host": lambda n: query((f"host{n}.near.test.{SEARCH}", f"a{n}.{SEARCH}", f"svc{n}.bank.{SEARCH}")[n % 3]),
    "search-twice": lambda n: query(
        (f"x.wild{n}.test", f"x{n}.{SEARCH}.{SEARCH}", f"host{n}.near.test.{SEARCH}")[n % 3]),
    "labels": lambda n: query(
        (f"my.shop{n}.svc.cluster.local.{SEARCH}", f"a{n}.{SEARCH}", f"a{n}.{SEARCH}.{SEARCH}")[n % 3]),
    "dotted-host": lambda n: query((f"dotted{n}.near.test", f"svc{n}.bank.svc.cluster.local")[n % 2]),
    "host-spelling": lambda n: query(f"same{n}.near.test" + f".{SEARCH}" * (n % 2), ("A", "AAAA")[n % 3 % 2]),
    "two-hosts": lambda n: query(f"svc{n}.bank" + f".{SEARCH}" * (n % 2), ("A", "AAAA")[n % 3 % 2]),
    "duplicates": lambda n: query(f"two{n}.near.test", ("A", "AAAA")[n % 2]),
    "notify": lambda n: query("plain.near.test", flags=_OPCODES[n % 14] << 11 | 0x0100 * (n % 2)),
    "query-counts": lambda n: _with(_own(n), A * (n % 2) + A * (n % 4 // 2) + record(65_400, b"x" * n) * (n % 3),
                                    n % 2, n % 4 // 2, n % 3),
    "query-cut": lambda n: _with(_own(n), (A + opt(option(12, b"\0" * 50)))[: 17 + n], 1, 0, 1),
    "query-header": lambda n: (header(b"\x12\x34", 0x0100 | n % 16 << 11, n % 2 * 2, 0, 0, 0) if n % 16 != 4
                               else _own(n)),
    "query-odd": lambda n: _with(_own(n), _back(n), 0, 0, 1),
    "two-opts": lambda n: _with(_own(n), opt(option(12, b"\0" * n)) + A, 0, 0, 2),
    "query-options": lambda n: _with(_own(n) if n % 2 else _known(n), opt(_good_option(n)), 0, 0, 1),
    "tcp-silence": lambda n: Asked("", (_own(n, flags=0x8100), _own(n)[: n % 12])[n % 2]) if n % 3
    else Asked("", _own(n), True),
    "query-bytes": lambda n: _known(n, edns=512 + n) if n % 2 else _own(n) + b"\0" * n,
    "pending": _known,
}  # fmt: skip


def _records(n: int) -> Reply:
    return plain(0x8180, b"".join(record(wire.A, bytes([10, 0, n, k])) for k in range(n % 20)), n % 20, 0, 0)


def _cut_within(n: int) -> Reply:
    """The last record lacks some of its bytes."""
    whole = A + record(16, b"\x31" + b"x" * 49)
    return plain(0x8180, whole[: -1 - n], 2, 0, 0)


def _too_long(n: int) -> Reply:
    """Does not fit, and the 512th byte, or that of the size offered, is within a record of 4,000."""
    return plain(0x8180, record(65_400, b"x" * (2000 + n)), 1, 0, 0)


def _written_out(n: int) -> Reply:
    """Owners written out."""
    return lambda i, q: (
        header(i, 0x8180, 1, n % 4, 0, 0)
        + q
        + b"".join(record(wire.A, bytes([1, 2, n, k]), owner=q[:-4]) for k in range(n % 4)),
    )


def _respelled(n: int) -> Reply:
    """The question comes back in another case."""

    def reply(message_id: bytes, question: bytes) -> tuple[bytes, ...]:
        name = bytes(c ^ 0x20 if chr(c).isalpha() and n >> k % 6 & 1 else c for k, c in enumerate(question[:-4]))
        return (header(message_id, 0x8180, 1, 1, 0, 0) + name + question[-4:] + A,)

    return reply


def _guessed(n: int) -> Reply:
    """First a readable message of another id, then the answer."""

    def reply(message_id: bytes, question: bytes) -> tuple[bytes, ...]:
        other = struct.pack(">H", int.from_bytes(message_id, "big") ^ n + 1)
        return (_records(n)(other, question)[0], *scripts.GOOD(message_id, question))

    return reply


_BY_UDP = ("upstream-guess",)
_REPLIES: dict[str, Callable[[int], Reply]] = {
    "upstream-bytes": _written_out,
    "upstream-match": _respelled,
    "upstream-query": lambda n: plain(0x8000 | n * 0x80 & 0x7C0 | n % 11, A, 1, 0, 0),
    "upstream-guess": _guessed,
    "upstream-counts": lambda n: _records(n) if n % 2 else _cut_within(n),
    "upstream-cut": _too_long,
    "upstream-odd": lambda n: plain(0x8180, _back(n), 1, 0, 0),
    "upstream-options": lambda n: plain(0x8180, A + opt(_good_option(n)), 1, 0, 1),
    "upstream-signed": lambda n: plain(0x8180, A + record(251 + n % 4 if n % 2 else 65_400 + n, b"x" * n), 1, 0, 1),
}  # fmt: skip
