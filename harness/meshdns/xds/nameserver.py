"""Keeps the cluster DNS as the model says, by dynamic updates (RFC 2136) signed with TSIG (RFC 8945).

Only differences are sent. What the server has is learned by a transfer of the zone (RFC 5936): at the start, after
any failure, and when the zone's serial is not the one we left (a server that came back without our updates, or another
writer). So stale records go. Ours are the A, AAAA and SRV records below `svc.` of the zone; names that match `keep` are
somebody else's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import fnmatch
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr
import dns.zone

from meshdns.core import errors
from meshdns.istio import records
from meshdns.istio.records import Record

TIMEOUT_S = 5.0
CHECK_S = 30.0  # between two looks at the zone's serial
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0  # doubled from one to the other
BATCH = 300  # changes per message: some 30 kB, and a message has 64
_TYPES = ("A", "AAAA", "SRV")
_KEY = re.compile(r'key\s+"?([^\s"{]+)"?\s*\{(.*?)\}', re.DOTALL)
_FIELD = re.compile(r'(algorithm|secret)\s+"?([^\s";]+)"?\s*;')


class Refused(Exception):
    """The server does not do it; the message says what and why."""


@dataclass(frozen=True)
class Target:
    """A server, and how to speak to it."""

    address: str
    port: int
    key: dns.tsig.Key | None = None  # None: unsigned
    zone: str = records.zone()
    keep: tuple[str, ...] = ()  # patterns of names that are not ours, with their final dot

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    def keeps(self, name: str) -> bool:
        """Whether a name is somebody else's: neither removed nor written."""
        return any(fnmatch.fnmatchcase(name, one) for one in self.keep)


def key(path: Path) -> dns.tsig.Key:
    """The key of a file as `tsig-keygen` prints it and named.conf includes it; InputError if it is not one."""
    step = "give what `tsig-keygen` prints"
    try:
        match = _KEY.search(path.read_text())
        found = dict(_FIELD.findall(match[2])) if match else {}
        if not match or set(found) != {"algorithm", "secret"}:
            raise errors.InputError("no key with an algorithm and a secret", place=str(path), step=step)
        secret = base64.b64decode(found["secret"], validate=True)
        return dns.tsig.Key(match[1], secret, found["algorithm"])
    except OSError as error:
        raise errors.InputError(f"cannot be read: {error.strerror}", place=str(path), step=step) from error
    except (binascii.Error, UnicodeDecodeError, dns.exception.DNSException) as error:
        raise errors.InputError(f"not a TSIG key ({error})", place=str(path), step=step) from error


class NameServer:
    """One zone of one server."""

    def __init__(self, target: Target, say: Callable[[str], None] = lambda _: None, check_s: float = CHECK_S) -> None:
        self._target, self._say, self._check_s = target, say, check_s
        self._wanted: frozenset[Record] | None = None
        self._have: set[Record] | None = None  # None: not known
        self._serial = 0
        self._stirred = asyncio.Event()
        self._error = ""
        self._failures = 0
        self._messages = self._added = self._removed = self._transfers = 0
        self._current_s = 0.0  # Unix time of the last moment at which the zone was known to be as wanted
        self._took_ms = 0.0

    def want(self, wanted: Iterable[Record]) -> None:
        """The zone is to hold these, but for names that are somebody else's."""
        fresh = frozenset(one for one in wanted if not self._target.keeps(one.name))
        if fresh != self._wanted:
            self._wanted = fresh
            self._stirred.set()

    async def run(self) -> None:
        """Keep it so until cancelled."""
        own = asyncio.current_task()
        # Where dnspython waits, Python 3.11 loses a cancellation that comes together with an answer.
        while not (own and own.cancelling()):
            await self._rest()
            if self._wanted is None:
                continue
            try:
                await self._reconcile(self._wanted)
            except (Refused, dns.exception.DNSException, OSError, EOFError) as error:
                self._have = None  # it may have been done all the same
                self._failures += 1
                reason = _why(error, self._target)
                if reason != self._error:
                    self._say(reason)
                self._error = reason
            else:
                if self._error:
                    self._say(f"{self._target}: the zone {self._target.zone} is as it should be again")
                self._error, self._failures, self._current_s = "", 0, time.time()

    async def _rest(self) -> None:
        """Until something is wanted, it is time to try again, or time to look whether the zone is still ours."""
        if self._failures:
            await asyncio.sleep(min(FIRST_RETRY_S * 2.0 ** (self._failures - 1), LAST_RETRY_S))
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_s or None):
                    await self._stirred.wait()
        self._stirred.clear()

    async def _reconcile(self, wanted: frozenset[Record]) -> None:
        began = time.monotonic()
        if self._have is not None and await self._asked_serial() != self._serial:
            self._have = None
        if self._have is None:
            self._have = await self._transfer()
        changed = False
        for removed, added in batches(self._have - wanted, wanted - self._have):
            await self._update(removed, added)
            self._have = (self._have - set(removed)) | set(added)
            self._added, self._removed = self._added + len(added), self._removed + len(removed)
            self._messages += 1
            changed = True
        if changed:
            self._took_ms = (time.monotonic() - began) * 1000
        self._serial = await self._asked_serial()

    async def _transfer(self) -> set[Record]:
        zone = dns.zone.Zone(dns.name.from_text(self._target.zone), relativize=False)
        query, _ = dns.xfr.make_query(zone, keyring=self._target.key)
        await dns.asyncquery.inbound_xfr(
            self._target.address, zone, query, self._target.port, timeout=TIMEOUT_S, lifetime=6 * TIMEOUT_S
        )
        self._transfers += 1
        return set(self._ours(zone))

    def _ours(self, zone: dns.zone.Zone) -> Iterator[Record]:
        below = f".svc.{self._target.zone}"
        for name, node in zone.nodes.items():
            text = name.to_text().lower()
            if not text.endswith(below) or self._target.keeps(text):
                continue
            for rdataset in node.rdatasets:
                rtype = dns.rdatatype.to_text(rdataset.rdtype)
                for rdata in rdataset if rtype in _TYPES else ():
                    yield Record(text, rtype, rdata.to_text().lower(), rdataset.ttl)

    async def _update(self, removed: Iterable[Record], added: Iterable[Record]) -> None:
        update = dns.update.UpdateMessage(self._target.zone, keyring=self._target.key)
        for one in removed:
            update.delete(dns.name.from_text(one.name), one.rtype, one.data)
        for one in added:
            update.add(dns.name.from_text(one.name), one.ttl_s, one.rtype, one.data)
        reply = await dns.asyncquery.tcp(update, self._target.address, TIMEOUT_S, self._target.port)
        if reply.rcode() != dns.rcode.NOERROR:
            raise Refused(f"the update was answered with {dns.rcode.to_text(reply.rcode())}")

    async def _asked_serial(self) -> int:
        query = dns.message.make_query(self._target.zone, "SOA")
        if self._target.key:
            query.use_tsig(self._target.key)
        reply = await dns.asyncquery.tcp(query, self._target.address, TIMEOUT_S, self._target.port)
        found = reply.get_rrset(reply.answer, query.question[0].name, dns.rdataclass.IN, dns.rdatatype.SOA)
        if reply.rcode() != dns.rcode.NOERROR or not found:
            raise Refused(f"there is no zone {self._target.zone} ({dns.rcode.to_text(reply.rcode())})")
        return int(found[0].serial)

    def to_json(self) -> dict[str, Any]:
        """For people."""
        return {
            "server": str(self._target),
            "zone": self._target.zone,
            "wanted": len(self._wanted or ()),
            "held": None if self._have is None else len(self._have),
            "current_at": round(self._current_s, 3),
            "error": self._error,
            "failures_in_a_row": self._failures,
            "transfers": self._transfers,
            "messages": self._messages,
            "added": self._added,
            "removed": self._removed,
            "last_change_ms": round(self._took_ms, 1),
        }


def batches(
    removed: AbstractSet[Record], added: AbstractSet[Record], size: int = BATCH
) -> Iterator[tuple[list[Record], list[Record]]]:
    """The changes in messages of some `size`; those of one name stay together, as a message is done whole or not."""
    names: dict[str, tuple[list[Record], list[Record]]] = defaultdict(lambda: ([], []))
    for one in sorted(removed):
        names[one.name][0].append(one)
    for one in sorted(added):
        names[one.name][1].append(one)
    out: tuple[list[Record], list[Record]] = ([], [])
    for gone, fresh in names.values():
        out[0].extend(gone)
        out[1].extend(fresh)
        if len(out[0]) + len(out[1]) >= size:
            yield out
            out = ([], [])
    if out[0] or out[1]:
        yield out


_HINTS = {
    "REFUSED": "allow the key in the zone's update-policy",
    "NOTAUTH": "check the key's name and secret, and that the server is primary for the zone",
    "NOTIMP": "the server takes no dynamic updates; use one that does, as BIND",
    "NXDOMAIN": "",
    "SERVFAIL": "look into the server's log: the zone's journal may not be writable",
}


def _why(error: Exception, target: Target) -> str:
    """What went wrong, where, and what to do."""
    where = f"cluster DNS {target}"
    if isinstance(error, Refused):
        step = next((hint for word, hint in _HINTS.items() if word in str(error) and hint), "")
        return f"{where}: {error}" + (f"; {step}" if step else "")
    if isinstance(error, dns.xfr.TransferError):
        return (f"{where}: the transfer of {target.zone} was answered with {dns.rcode.to_text(error.rcode)}; "
                "allow it for the key (allow-transfer)")  # fmt: skip
    if isinstance(error, (dns.tsig.PeerError, dns.tsig.BadSignature, dns.tsig.BadTime)):
        return f"{where}: the key is not accepted ({error}); use the server's own key, and the same time"
    if isinstance(error, dns.exception.Timeout):
        return f"{where}: no answer within {TIMEOUT_S:g} s; see whether the server is up"
    if isinstance(error, OSError):
        return f"{where}: {error.strerror or error}; see whether the server is up"
    return f"{where}: {type(error).__name__}: {error}"
