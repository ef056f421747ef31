"""Upstream answers kept for as long as they say: RFC 1035 TTLs, RFC 2308 negative answers, RFC 8767 stale ones.

Istio's agent keeps none; this is the option `--cache`. What a query's EDNS options (cookie, client subnet) are answered
with is one client's: such queries must not come here.
"""

from __future__ import annotations

import collections
import time
from typing import NamedTuple

from . import wire

ENTRIES = 10_000  # some 8 MB of ordinary answers
MOST_BYTES = 32 << 20  # of answers that are not
ENTRY_BYTES, TTL_BYTES = 600, 160  # beside the message, and for each TTL in it
MOST_TTL_S = 86_400  # RFC 8767 4: a day is enough for anybody
MOST_NEGATIVE_S = 10_800  # RFC 2308 5: one to three hours
STALE_TTL_S = 30  # RFC 8767 4
STALE_WAIT_S = 1.8  # RFC 8767 5: a client gives up soon after; then the stale answer is the better one
RETRY_S = 30.0  # RFC 8767 5: after a failure the servers are left alone for so long

Key = tuple[bytes, bool, int, int]


class Entry:
    """An answer, the places of its TTLs, and the time it was taken."""

    __slots__ = ("expires_s", "message", "retry_s", "size", "taken_s", "ttls")

    def __init__(self, message: bytes, ttls: list[tuple[int, int]], lifetime_s: int, now: float) -> None:
        self.message, self.ttls = message, ttls
        self.size = ENTRY_BYTES + len(message) + TTL_BYTES * len(ttls)
        self.taken_s, self.expires_s = now, now + lifetime_s
        self.retry_s = 0.0  # stale and no server answered: do not ask before


class Hit(NamedTuple):
    """An answer as it goes to the client."""

    message: bytes
    stale: bool
    ask: bool  # whether the servers should be asked nevertheless


class Cache:
    """Least recently used first out."""

    def __init__(self, stale_s: float = 0) -> None:
        self._stale_s = stale_s
        self._entries: collections.OrderedDict[Key, Entry] = collections.OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, query: wire.Query, limit: int) -> Hit | None:
        """A fresh answer, or a stale one that serves if no server answers."""
        key = _key(query)
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is None or len(entry.message) > limit:
            return None
        if now >= entry.expires_s + self._stale_s:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        stale = now >= entry.expires_s
        return Hit(_message(query, entry, now, stale), stale, stale and now >= entry.retry_s)

    def store(self, query: wire.Query, answer: bytes) -> bool:
        """Keeps an answer if it may be kept; False where it says that the server failed."""
        rcode = answer[3] & 15
        if rcode not in (wire.NOERROR, wire.NXDOMAIN):
            return False
        if answer[2] & 0x02 or query.message[4:6] != b"\0\1":
            return True
        try:
            places, lifetime_s = _lifetime(answer)
        except wire.MalformedError:
            return True
        if lifetime_s > 0:
            key, entry = _key(query), Entry(answer, places, lifetime_s, time.monotonic())
            if key in self._entries:
                self._drop(key)
            self._entries[key] = entry
            self._bytes += entry.size
            while len(self._entries) > ENTRIES or self._bytes > MOST_BYTES:
                self._drop(next(iter(self._entries)))
        return True

    def _drop(self, key: Key) -> None:
        self._bytes -= self._entries.pop(key).size

    def failed(self, query: wire.Query) -> None:
        """No server answered: a stale answer serves without asking again for a while."""
        if entry := self._entries.get(_key(query)):
            entry.retry_s = time.monotonic() + RETRY_S


def _key(query: wire.Query) -> Key:
    """What an answer depends on; class and type stand in the question."""
    flags = query.flags & (wire.RD | wire.AD | wire.CD)
    return query.name + query.question[-4:], query.edns, query.edns_flags, flags


def _lifetime(answer: bytes) -> tuple[list[tuple[int, int]], int]:
    """Where the TTLs stand and what they are, and for how long the whole may be kept, in seconds."""
    _, at = wire.questions(answer)
    places: list[tuple[int, int]] = []
    positive: list[int] = []
    negative = 0
    for record in wire.records(answer, at):
        if record.kind == wire.OPT:
            continue
        ttl_s = record.ttl if record.ttl < 1 << 31 else 0  # RFC 2181 8
        places.append((record.fixed + 4, ttl_s))
        if record.section == 0:
            positive.append(ttl_s)
        elif record.section == 1 and record.kind == wire.SOA and record.end - record.data >= 20:
            minimum_s = int.from_bytes(answer[record.end - 4 : record.end], "big")
            negative = min(ttl_s, minimum_s, MOST_NEGATIVE_S)
    qtype = int.from_bytes(wire.questions(answer)[0][-4:-2], "big")
    if answer[3] & 15 == wire.NXDOMAIN or not _answers(answer, at, qtype):
        return places, min([negative, *positive])
    return places, min([MOST_TTL_S, *positive])


def _answers(answer: bytes, at: int, qtype: int) -> bool:
    """Whether the answer section holds what was asked for; an alias alone is a negative answer."""
    kinds = {record.kind for record in wire.records(answer, at) if record.section == 0}
    return qtype in kinds or (qtype == 255 and bool(kinds))


def _message(query: wire.Query, entry: Entry, now: float, stale: bool) -> bytes:
    """The answer under the client's id and spelling, its TTLs counted down."""
    age_s = int(now - entry.taken_s)
    message = bytearray(entry.message)
    message[:2] = query.message[:2]
    message[2] &= 0xFB  # AA: we are not the authority that answered
    if message[4:6] == b"\0\1":
        message[wire.HEADER : wire.HEADER + len(query.question)] = query.question
    for place, ttl_s in entry.ttls:
        left_s = STALE_TTL_S if stale else max(0, ttl_s - age_s)
        message[place : place + 4] = left_s.to_bytes(4, "big")
    return bytes(message)
