"""The name table and the records of the cluster DNS, in step with the sidecars' listeners.

A name that is new, or an address that is new to it, is told when the sidecars that are connected have accepted
listeners and routes for it, and after `PATIENCE_S` in any case: who resolved it earlier would be taken by no listener,
or another one. What goes is forgotten before its listener goes, but for readiness, which waits for nothing. A name that
is there before and after is there in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

from meshdns.istio import records
from meshdns.istio.nametable import Name
from meshdns.istio.records import Record
from meshdns.xds import namefiles
from meshdns.xds.namefiles import NameFiles
from meshdns.xds.nameserver import NameServer

PATIENCE_S = 2.0  # for sidecars to accept what they were sent
RETRY_S = 1.0  # between two tries to write a table
_GLANCE_S = 0.01  # between two looks whether they have


@dataclass(frozen=True)
class Sinks:
    """Who is told besides the sidecars."""

    names: NameFiles = field(default_factory=lambda: NameFiles([]))
    dns: NameServer | None = None
    ttl_s: int = records.TTL_S  # of the cluster DNS's records


@dataclass(frozen=True)
class Names:
    """What DNS proxies and the cluster DNS are to know."""

    table: Mapping[str, Name]
    records: Sequence[Record]

    @cached_property
    def addresses(self) -> frozenset[tuple[str, ...]]:
        """Everything that a name leads to."""
        proxied = {(host, ip) for host, name in self.table.items() for ip in name.ips}
        return frozenset(proxied | {(one.name, one.rtype, one.data) for one in self.records})

    def between(self, later: Names) -> Names:
        """Neither what goes until then nor what comes; of a name of which all is replaced, still the old."""
        table = {
            host: replace(name, ips=_staying(self.table[host].ips, name.ips))
            for host, name in later.table.items()
            if host in self.table
        }
        before, after = _grouped(self.records), _grouped(later.records)
        staying = [
            after[key].get(data) or before[key][data]
            for key in before.keys() & after.keys()
            for data in _staying(tuple(before[key]), tuple(after[key]))
        ]
        return Names(table, sorted(staying))


def _staying(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in new if one in old) or old


def _grouped(found: Sequence[Record]) -> Mapping[tuple[str, str], dict[str, Record]]:
    """Records by name and type, then by what they say."""
    grouped: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for one in found:
        grouped[one.name, one.rtype][one.data] = one
    return grouped


class Announcements:
    """Tells names; `behind` says whether a sidecar has yet to accept its latest listeners or routes."""

    def __init__(self, sinks: Sinks, behind: Callable[[], bool]) -> None:
        self._sinks, self._behind = sinks, behind
        self._writer = ThreadPoolExecutor(1, "names")  # one after the other, also where the wait for one is given up
        self._told: Names | None = None
        self._wanted: Names | None = None
        self._task: asyncio.Task[None] | None = None
        self.pending = False  # something is not told yet

    async def forget(self, later: Names) -> None:
        """What will be gone is known no more, before its listeners go; `follow` tells the rest."""
        if self._task:
            self._task.cancel()
        await self._forget(later)

    def follow(self, wanted: Names) -> None:
        """From now on this is to be known: in the background, with nobody waiting for it."""
        if wanted is self._wanted:
            return
        self._wanted, self.pending = wanted, True
        if self._task:
            self._task.cancel()
        self._task = asyncio.create_task(self._follow(wanted))

    async def stop(self) -> None:
        """No more; what is being written is written."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._writer.shutdown(wait=False)

    async def _forget(self, later: Names) -> None:
        if self._told is not None and self._told.addresses - later.addresses:
            await self._tell(self._told.between(later))

    async def _follow(self, wanted: Names) -> None:
        if self._told is None or wanted.addresses - self._told.addresses:
            await self._forget(wanted)
            deadline_s = time.monotonic() + PATIENCE_S
            while self._behind() and time.monotonic() < deadline_s:
                await asyncio.sleep(_GLANCE_S)
        while not await self._tell(wanted):
            await asyncio.sleep(RETRY_S)
        self.pending = False

    async def _tell(self, names: Names) -> bool:
        """Whether every DNS proxy's table is written; the cluster DNS has a task of its own, which tries again."""
        self._told = names
        if self._sinks.dns:
            self._sinks.dns.want(names.records)
        write = self._sinks.names.write
        await asyncio.get_running_loop().run_in_executor(self._writer, lambda: write(namefiles.text(names.table)))
        return not self._sinks.names.errors()
