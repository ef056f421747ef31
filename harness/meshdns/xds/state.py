"""What is in force, and the one place where it changes: configuration, readiness and certificates in, everything out.

A change is worked out whole, for every sidecar that is connected, before the first of them is told; if anything in it
fails, nothing of it is used and what was in force stays. The work is done in one thread, so that streams and probes go
on meanwhile; changes that come meanwhile are taken together in the next round.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from meshdns.core import errors
from meshdns.istio import nametable, records, registry, vips
from meshdns.istio.outbound import Conflict
from meshdns.istio.registry import Registry
from meshdns.istio.resources import Resources
from meshdns.xds import probes
from meshdns.xds.announcements import Announcements, Names, Sinks
from meshdns.xds.api import Json
from meshdns.xds.authority import Certificates
from meshdns.xds.encoding import LDS, NOTHING, RDS, SDS, Encoder, Group
from meshdns.xds.server import Node, Server

VIRTUAL_IPS = "virtual-ips.json"
RETRY_S = 1.0
SHOWN = 20  # conflicts that are named; all are counted
Result = TypeVar("Result")
Identify = Callable[[Registry, Node], str]  # the SPIFFE name; empty: none, so no certificate


@dataclass(frozen=True)
class Compiled:
    """What one sidecar is to have."""

    resources: Mapping[str, Mapping[str, Json]]  # type URL -> name -> resource
    mode: int = 1  # 2: its pod has a DNS proxy
    conflicts: tuple[Conflict, ...] = ()  # services that get no listener of their own


Compile = Callable[[Registry], Callable[[Node], Compiled]]  # of one model, for each sidecar


@dataclass(frozen=True)
class Snapshots:
    """Compiled and encoded, by node."""

    groups: Mapping[str, Mapping[str, Group]] = field(default_factory=dict)  # without secrets
    faults: Mapping[str, str] = field(default_factory=dict)  # why it gets nothing, or no certificate
    conflicts: Mapping[str, tuple[int, tuple[Conflict, ...]]] = field(default_factory=dict)  # with its mode

    def of(self, nodes: Collection[str]) -> Snapshots:
        """Those of these nodes."""
        return Snapshots(
            {name: one for name, one in self.groups.items() if name in nodes},
            {name: one for name, one in self.faults.items() if name in nodes},
            {name: one for name, one in self.conflicts.items() if name in nodes},
        )

    def __or__(self, other: Snapshots) -> Snapshots:
        return Snapshots(
            {**self.groups, **other.groups}, {**self.faults, **other.faults}, {**self.conflicts, **other.conflicts}
        )

    @cached_property
    def lost(self) -> tuple[tuple[int, Conflict], ...]:
        """Who lost which listener in which mode, each once."""
        return tuple(dict.fromkeys((mode, one) for mode, those in self.conflicts.values() for one in those))


@dataclass(frozen=True)
class Applied:
    """A configuration that is in force, with what probes and certificates made of it."""

    resources: Resources
    allocation: vips.Allocation
    model: Registry
    snapshots: Snapshots
    names: Names


@dataclass(frozen=True)
class Change:
    """What has come since the last round."""

    candidate: Resources | None
    wanted: Mapping[str, probes.Probe]  # of the candidate
    ready: Mapping[str, bool]
    readiness: bool  # has changed
    joined: frozenset[str]  # sidecars
    since_s: float  # when the oldest of it had happened, monotonic

    @property
    def reason(self) -> str:
        """In a word, the weightiest."""
        if self.candidate:
            return "configuration"
        return "readiness" if self.readiness else "sidecars" if self.joined else "certificates"


@dataclass(frozen=True)
class _Stalled:
    """A configuration that waits for the disk."""

    candidate: Resources
    reason: str
    due_s: float  # monotonic


class State:
    """Holds it together."""

    def __init__(
        self,
        compile_: Compile,
        identify: Identify,
        certificates: Certificates,
        sinks: Sinks,
        *,
        folder: Path | None = None,
        probe: probes.Probe | None = None,
    ) -> None:
        self._compile, self._identify, self._certificates, self._sinks = compile_, identify, certificates, sinks
        self._path, self._probe = folder / VIRTUAL_IPS if folder else None, probe
        self.server = Server(self._joined)
        self._announcements = Announcements(sinks, lambda: self.server.behind((LDS, RDS)))
        self.probes = probes.Probes(self._readiness)
        self._allocation = vips.load(self._path) if self._path else vips.Allocation()
        self._encoder = Encoder()
        self._worker = ThreadPoolExecutor(1, "compile")
        self._stirred = asyncio.Event()
        self._since_s = 0.0  # when the oldest change that is not in force yet had happened
        self._candidate: Resources | None = None
        self._stalled: _Stalled | None = None
        self._unseen = False  # readiness changed
        self._new: set[str] = set()
        self._applied: Applied | None = None
        self._number, self._applied_s = 0, 0.0
        self._error = ""  # of the configuration that was read last
        self._fault = ""  # of the last round
        self._last: dict[str, Any] = {}

    def loaded(self, resources: Resources) -> None:
        """A new configuration has been read."""
        if self._applied is None:
            self._since_s = 0.0  # who came before there was anything to serve has not waited for us
        self._candidate, self._stalled, self._error = resources, None, ""
        self._stir()

    def rotate(self) -> None:
        """Every certificate is replaced now."""
        self._certificates.keep(set())
        self._stir()

    def failed(self, reason: str) -> None:
        """A new configuration cannot be used."""
        self._error = reason

    @property
    def ready(self) -> bool:
        """A configuration is in force."""
        return self._applied is not None

    async def run(self) -> None:
        """Put changes into force until cancelled."""
        try:
            while True:
                await self._rest()
                try:
                    await self._round()
                except errors.MeshdnsError as error:
                    self._fault = str(error)
                else:
                    self._fault = self._stalled.reason if self._stalled else ""
        finally:
            self.probes.stop()
            await self._announcements.stop()
            self._worker.shutdown(wait=False, cancel_futures=True)
            await self.server.stop()

    def _joined(self, node: Node) -> None:
        self._new.add(node.id)
        self._stir()

    def _readiness(self) -> None:
        self._unseen = True
        self._stir()

    def _stir(self) -> None:
        self._since_s = self._since_s or time.monotonic()
        self._stirred.set()

    async def _rest(self) -> None:
        """Until something changed, a certificate is due, or it is time to try again what has failed."""
        due_s = self._certificates.due_s()
        wait_s = None if due_s is None else max(0.0, due_s - time.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S if self._fault else wait_s):
                await self._stirred.wait()
        self._stirred.clear()

    async def _round(self) -> None:
        change = await self._changes()
        if change is None:
            return
        nodes, began_s = self.server.nodes(), time.monotonic()
        work = self._rebuild if change.candidate or change.readiness else self._extend
        try:
            applied = await self._working(work, change, nodes)
        except errors.MeshdnsError as error:
            self._put_back(change)
            if change.candidate is None:
                raise
            if isinstance(error, errors.StorageError):  # the disk's fault: what was written there is used later
                self._stalled = _Stalled(change.candidate, str(error), time.monotonic() + RETRY_S)
            else:
                self._error = str(error)
            return
        if change.candidate:
            self.probes.plan(change.wanted)
            await self._announcements.forget(applied.names)
        self._applied, self._allocation = applied, applied.allocation
        failed = await self._publish(applied, nodes, change.since_s)
        if change.candidate:  # not before: who sees the number sees also who has yet to accept it
            self._number, self._applied_s = self._number + 1, time.time()
        done_s = time.monotonic()
        self._last = {
            "reason": change.reason,
            "at": round(time.time() - done_s + change.since_s, 3),  # when what led to it had happened, Unix time
            "work_ms": round((done_s - began_s) * 1000, 1),
            "whole_ms": round((done_s - change.since_s) * 1000, 1),
        }
        if failed:
            raise failed[0]

    async def _changes(self) -> Change | None:
        """Everything that has come since the last round; None before the first configuration."""
        if self._stalled and time.monotonic() >= self._stalled.due_s:
            self._candidate, self._stalled = self._stalled.candidate, None
        candidate, self._candidate = self._candidate, None
        if self._applied is None and candidate is None:
            return None
        wanted = probes.wanted(candidate, self._probe) if candidate else {}
        if candidate and self._applied is None:  # at the start nobody is called unready who was not asked
            self.probes.plan(wanted)
            await self.probes.settled()
        ready = self.probes.ready()
        if candidate:
            ready = {address: ready.get(address, False) for address in wanted}
        change = Change(candidate, wanted, ready, self._unseen, frozenset(self._new),
                        self._since_s or time.monotonic())  # fmt: skip
        self._unseen, self._new, self._since_s = False, set(), 0.0
        return change

    def _put_back(self, change: Change) -> None:
        """Without the configuration: whoever came, and what probes found, goes by what is in force."""
        self._new |= change.joined
        self._unseen = self._unseen or change.readiness
        if change.candidate and (change.joined or change.readiness):
            self._stir()

    async def _working(self, work: Callable[..., Result], *given: Any) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work, *given)
        except errors.MeshdnsError:
            raise
        except Exception as error:  # a fault of ours must not take what is in force away
            raise errors.DataError(f"{type(error).__name__}: {error}", place="compiling the configuration",
                                   step="please report it; what was in force stays") from error  # fmt: skip

    def _rebuild(self, change: Change, nodes: Sequence[Node]) -> Applied:
        """Everything anew. Runs in the worker's thread."""
        resources, allocation = change.candidate, self._allocation
        if resources is None:
            assert self._applied is not None  # noqa: S101  readiness alone comes after a configuration
            resources = self._applied.resources
        else:
            allocation = vips.assign(allocation, vips.wanted(resources), vips.reserved(resources))
        model = registry.build(resources, allocation.addresses, change.ready)
        names = Names(nametable.build(model), records.build(model, self._sinks.ttl_s))
        applied = Applied(resources, allocation, model, self._snapshots(model, nodes), names)
        if self._path and allocation != self._allocation:
            vips.save(self._path, allocation)  # before anybody is told one of them
        return applied

    def _extend(self, change: Change, nodes: Sequence[Node]) -> Applied:
        """The same model, for sidecars that came. Runs in the worker's thread."""
        old = self._applied
        assert old is not None  # noqa: S101
        kept = old.snapshots.of({node.id for node in nodes})
        fresh = [node for node in nodes if node.id in change.joined or node.id not in old.snapshots.groups]
        return replace(old, snapshots=kept | self._snapshots(old.model, fresh))

    def _snapshots(self, model: Registry, nodes: Sequence[Node]) -> Snapshots:
        """Of each node; a sidecar that does not say who it is has a fault, and hinders no other."""
        groups: dict[str, Mapping[str, Group]] = {}
        faults: dict[str, str] = {}
        conflicts: dict[str, tuple[int, tuple[Conflict, ...]]] = {}
        if not nodes:
            return Snapshots()
        compile_one = self._compile(model)
        with self._encoder.sharing():
            for node in nodes:
                try:
                    compiled = compile_one(node)
                    if not self._identify(model, node):
                        faults[node.id] = f"{node.id}: no Pod of this name is configured; so it gets no certificate"
                except errors.InputError as error:
                    faults[node.id] = str(error)
                    continue
                groups[node.id] = self._encoder.snapshot(compiled.resources)
                conflicts[node.id] = compiled.mode, compiled.conflicts
        return Snapshots(groups, faults, conflicts)

    async def _publish(self, applied: Applied, nodes: Sequence[Node], since_s: float) -> list[errors.MeshdnsError]:
        """To the sidecars, and to the others what is new when those have accepted it; what failed for some."""
        certified: set[str] = set()
        failed: list[errors.MeshdnsError] = []
        for node in nodes:
            compiled = applied.snapshots.groups.get(node.id)
            if compiled is None:
                continue
            try:
                secrets = await self._working(self._secrets, applied.model, node)
            except errors.MeshdnsError as error:  # it keeps what it has, and the others are told
                failed.append(error)
                self._new.add(node.id)
                continue
            certified |= {node.id} if secrets is not NOTHING else set()
            self.server.publish(node.id, {**compiled, SDS: secrets}, since_s)
        self._certificates.keep(certified)  # what nobody has any more is not renewed
        self._announcements.follow(applied.names)
        return failed

    def _secrets(self, model: Registry, node: Node) -> Group:
        """The sidecar's certificate, renewed if that is due. Runs in the worker's thread."""
        identity = self._identify(model, node)
        if not identity:
            return NOTHING
        certificate = self._certificates.of(node.id, identity, time.time())
        return self._encoder.group(SDS, self._certificates.secrets(certificate))

    def to_json(self) -> dict[str, Any]:
        """Everything, for people and for `meshdns status`."""
        applied = self._applied
        kinds = Counter(one.meta.kind for one in applied.resources) if applied else {}
        return {
            "configuration": {
                "number": self._number,
                "applied_at": round(self._applied_s, 3),
                "resources": dict(kinds),
                "error": self._error,
                "fault": self._fault,
                "last_change": self._last,
            },
            "sidecar_faults": dict(applied.snapshots.faults) if applied else {},
            "conflicts": _shown(applied.snapshots.lost if applied else ()),
            **self.server.to_json(),
            "probes": self.probes.to_json(),
            "dns": self._sinks.dns.to_json() if self._sinks.dns else None,
            "name_tables": self._sinks.names.to_json(),
            "names_pending": self._announcements.pending,
            "certificates": self._certificates.to_json(),
            "virtual_ips": dict(self._allocation.addresses),
        }


def _shown(lost: Sequence[tuple[int, Conflict]]) -> dict[str, Any]:
    first = [
        {"mode": mode, "listener": one.listener, "loser": one.loser, "winner": one.winner, "why": one.why}
        for mode, one in lost[:SHOWN]
    ]
    return {"count": len(lost), "first": first}
