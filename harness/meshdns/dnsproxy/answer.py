"""Local answers as wire bytes: built once per name, shuffled per answer, cut to what the client takes.

RFC 1035, 2181; contents after Istio's agent: AA, CNAME first, addresses in random order, no OPT record, NODATA for a
known host without that family.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from . import wire
from .nametable import Found
from .options import TTL_S

PERMUTED = 3  # up to so many addresses (6 orders) all orders are kept; beyond, each answer is shuffled
RECORD = 12  # bytes beside the address
OBJECT = 40  # bytes that each piece takes in memory beside its own
_SIZE = {wire.A: 4, wire.AAAA: 16}
_OWNER = struct.pack(">H", 0xC000 | wire.HEADER)  # the question's name


class Tally:
    """A counter that many answers share."""

    __slots__ = ("hits",)

    def __init__(self) -> None:
        self.hits = 0


class Prepared:
    """An answer without its id, which is all that differs between two answers to the same bytes."""

    __slots__ = ("_head", "_orders", "_records", "rest", "size", "tally")

    def __init__(self, head: bytes, records: list[bytes], tally: Tally) -> None:
        self.tally = tally
        self._head = head
        self._records = records
        self._orders: list[bytes] = []
        self.rest = b""  # where the order is always the same
        if len(records) < 2:
            self.rest = head + b"".join(records)
        elif len(records) <= PERMUTED:
            self._orders = [head + b"".join(order) for order in itertools.permutations(records)]
        self.size = sum(OBJECT + len(part) for part in (head, self.rest, *records, *self._orders))

    def shuffled(self) -> bytes:
        """The answer in a random order, each as likely."""
        if self._orders:
            return self._orders[int(random.random() * len(self._orders))]  # noqa: S311  load spreading, no secret
        return self._head + b"".join(random.sample(self._records, len(self._records)))


@dataclass(frozen=True)
class Style:
    """What all local answers have in common."""

    ttl_s: int = TTL_S
    soa: bool = False  # in negative answers, so that clients can cache them (RFC 2308)
    domain: bytes = wire.encode_name("cluster.local")


def build(query: wire.Query, found: Found, style: Style, *, limit: int, tally: Tally, serial: int) -> Prepared:
    """The answer to an A or AAAA query for a name of ours, at most `limit` bytes long."""
    size = _SIZE[query.qtype]
    packed = found.addresses.v4 if query.qtype == wire.A else found.addresses.v6
    head, owner = b"", _OWNER
    if found.alias and packed:
        head = _record(_OWNER, wire.CNAME, style.ttl_s, found.alias)
        owner = struct.pack(">H", 0xC000 | wire.HEADER + len(query.question) + len(head) - len(found.alias))
    authority = _soa(query, style, serial) if style.soa and not packed else b""
    room = limit - wire.HEADER - len(query.question) - len(head) - len(authority)
    places: Sequence[int] = range(0, len(packed), size)
    truncated = len(places) * (RECORD + size) > room
    if truncated:
        places = random.sample(places, max(0, room // (RECORD + size)))
    if room < 0:
        head = authority = b""
    records = [_record(owner, query.qtype, style.ttl_s, packed[at : at + size]) for at in places]
    flags = wire.QR | wire.AA | wire.RA | (query.flags & (wire.RD | wire.CD)) | (wire.TC if truncated else 0)
    counts = (1, len(records) + bool(head), bool(authority), 0)
    return Prepared(struct.pack(">HHHHH", flags, *counts) + query.question + head + authority, records, tally)


def _record(owner: bytes, kind: int, ttl_s: int, data: bytes) -> bytes:
    return owner + struct.pack(">HHIH", kind, wire.IN, ttl_s, len(data)) + data


def _soa(query: wire.Query, style: Style, serial: int) -> bytes:
    """The SOA of the cluster's domain, or of the name itself where that lies elsewhere."""
    at = len(query.name) - len(style.domain)
    inside = query.name.endswith(style.domain) and at in wire.parents(query.name)
    owner = struct.pack(">H", 0xC000 | (wire.HEADER + at)) if inside else _OWNER
    # Refresh, retry, expire as CoreDNS gives for a cluster's zone; nobody transfers this one.
    data = b"\2ns\3dns" + style.domain + b"\nhostmaster" + style.domain
    return _record(owner, wire.SOA, style.ttl_s, data + struct.pack(">IIIII", serial, 7200, 1800, 86400, style.ttl_s))
