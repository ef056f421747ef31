"""The xDS protocol of one stream, without the stream: told requests and snapshots, it says what to send next.

Aggregated discovery in both forms: state of the world (`WorldSession`) and incremental (`DeltaSession`), after "xDS
REST and gRPC protocol" of the Envoy documentation. One response per type is on its way at a time; what changes
meanwhile goes into the next one, so a slow reader gets the latest state, not every state.

Make before break: endpoints and clusters first, listeners when those are accepted, routes after listeners; what nobody
refers to any more goes last. A cluster that was rejected and is not there in an older form holds back the listeners and
routes that name it, and nothing else; the sidecar keeps what it accepted last.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from meshdns.xds.encoding import CDS, EDS, LDS, NOTHING, RDS, SDS, Encoded, Group, Snapshot, digest

ORDER = (CDS, EDS, LDS, RDS, SDS)
WHOLE = (CDS, LDS)  # state of the world: what is not in the response is gone; other types may be sent in part
ADD_AFTER = {LDS: (CDS, EDS), RDS: (CDS, EDS, LDS)}
REMOVE_AFTER = {RDS: (LDS,), CDS: (LDS, RDS), EDS: (CDS,), SDS: (CDS, LDS)}
PATIENCE_S = 30.0  # a sidecar that accepts nothing for so long holds up its later types no more; Envoy may need 10 s
SETTLE_S = 1.0  # a client that comes back asks for all its types within this time
WILDCARD = "*"


@dataclass(frozen=True)
class Rejection:
    """A response that the sidecar did not take."""

    version: str
    reason: str  # in Envoy's words
    at_s: float  # Unix time


@dataclass
class Subscription:
    """What a stream wants of one type, has been sent, and has accepted."""

    type_url: str
    group: Group = NOTHING  # what there is
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    named: bool = False  # names were given once: from then on, no names mean none
    claimed: str = ""  # the version that the client came with
    known: dict[str, Encoded] = field(default_factory=dict)  # what the client was sent
    asked: set[str] = field(default_factory=set)  # to be sent, changed or not
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    fresh: bool = True  # never answered
    waiting: bool = False  # a response is on its way
    nonce: str = ""
    sent_at_s: float = 0.0  # monotonic
    sent: str = ""
    accepted: str = ""
    flight: set[str] = field(default_factory=set)  # the names in the response that is on its way
    taken: set[str] = field(default_factory=set)  # what the client holds, in the latest or an older form
    refused: set[str] = field(default_factory=set)  # rejected, and not accepted since
    rejected: Rejection | None = None
    rejections: int = 0

    @property
    def behind(self) -> bool:
        """Something is to be sent, or on its way and not answered."""
        return bool(self.waiting or self.fresh or self.asked or self.changed)

    def look(self, group: Group) -> None:
        """Compare with what is there now."""
        if group is self.group:
            return
        self.group = group
        have = group.resources
        wanted: Iterable[str] = have if self.wildcard else [name for name in self.names if name in have]
        self.changed = {name for name in wanted if _differs(self.known.get(name), have[name])}
        self.gone = {name for name in self.known if name not in have}
        self.refused &= have.keys()

    def relook(self) -> None:
        """The same after a change of the subscription."""
        group, self.group = self.group, NOTHING
        self.changed, self.gone = set(), set()
        self.look(group)

    def add(self, names: Iterable[str]) -> None:
        """New names are answered whether or not the client may know them."""
        fresh = set(names)
        self.names |= fresh
        self.asked |= fresh

    def drop(self, names: Iterable[str]) -> None:
        """No longer wanted by name; with a wildcard they are wanted still, and the client must be told so."""
        for name in names:
            self.names.discard(name)
            if self.wildcard:
                self.asked.add(name)
            else:
                self.known.pop(name, None)
                for these in (self.asked, self.changed, self.gone):
                    these.discard(name)

    def answered(self, reason: str | None, clock_s: float) -> None:
        """Accepted (None), or rejected with a reason."""
        self.waiting = False
        blamed = set() if reason is None else self._blamed(reason)
        self.taken |= self.flight - blamed
        self.refused = (self.refused - self.flight) | blamed
        if reason is not None:
            self.rejected = Rejection(self.sent, reason, clock_s)
            self.rejections += 1
        elif not self.refused:  # of an incremental answer the earlier ones may still be missing
            self.accepted, self.rejected = self.sent, None

    def _blamed(self, reason: str) -> set[str]:
        """Of clusters and listeners Envoy takes those that are good, and names the others."""
        words = {word.strip(":,;()'\"") for word in reason.split()}
        return (self.flight & words if self.type_url in WHOLE else set()) or set(self.flight)


def _text(name: str) -> bytes:
    """As it stands in a message: after its length, a varint."""
    data = name.encode()
    length = [len(data)] if len(data) < 128 else [len(data) & 127 | 128, len(data) >> 7]
    return bytes(length) + data


def _differs(old: Encoded | None, new: Encoded) -> bool:
    return old is not new and (old is None or old.version != new.version)


@dataclass(frozen=True)
class Push:
    """One response, and what it is about."""

    type_url: str
    resources: int
    removed: int
    message: Any  # DiscoveryResponse or DeltaDiscoveryResponse
    first: bool  # answers a question; it is not a change that was pushed


class Session(abc.ABC):
    """What both forms share: order, and who waits for whom."""

    protocol = ""

    def __init__(self, began_s: float = 0.0) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self._now_s = self._began_s = began_s
        self._returning = False  # the client came with resources of an earlier stream
        self._snapshot: Snapshot | None = None
        self._nonces = 0
        self._expected: set[str] = set()  # endpoints of new clusters that the client has yet to ask for
        self._expected_at_s = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """This is what there is now."""
        self._snapshot = snapshot
        for type_url, one in self.subscriptions.items():
            one.look(snapshot.get(type_url, NOTHING))

    def next(self, now_s: float) -> Push | None:
        """The next response to send; None: nothing, for now."""
        self._now_s = now_s
        if self._snapshot is None:
            return None
        rest = [type_url for type_url in self.subscriptions if type_url not in ORDER]
        for type_url in (*ORDER, *rest):
            one = self.subscriptions.get(type_url)
            if one and not one.waiting and self._may_answer(type_url):
                push = self._take(one, set() if one.fresh else self._held_back(one), self._may_remove(type_url))
                if push:
                    one.sent_at_s = now_s
                    return push
        return None

    def held(self) -> bool:
        """Something waits for another type to be accepted, or for time to pass."""
        return any(one.fresh or one.asked or one.changed or one.gone for one in self.subscriptions.values())

    def _subscription(self, type_url: str) -> tuple[Subscription, bool]:
        """The one of this type, and whether it is new."""
        found = self.subscriptions.get(type_url)
        if found:
            return found, False
        found = self.subscriptions[type_url] = Subscription(type_url)
        return found, True

    def _see(self, one: Subscription) -> None:
        if self._snapshot is not None:
            one.look(self._snapshot.get(one.type_url, NOTHING))

    @abc.abstractmethod
    def _take(self, one: Subscription, held: set[str], may_remove: bool) -> Push | None:
        """What is sent of this subscription now, without what is held back; None: nothing."""

    def _may_answer(self, type_url: str) -> bool:
        return all(self._calm(before) for before in ADD_AFTER.get(type_url, ()))

    def _missing(self) -> set[str]:
        """Clusters that were rejected, and of which the client has no older form."""
        clusters = self.subscriptions.get(CDS)
        return clusters.refused - clusters.taken if clusters else set()

    def _held_back(self, one: Subscription) -> set[str]:
        """Changes that name a missing cluster; what is asked for is answered all the same, as well as can be."""
        missing = self._missing() if CDS in ADD_AFTER.get(one.type_url, ()) else set()
        if not missing:
            return set()
        marks = [_text(name) for name in missing]
        have = one.group.resources
        return {name for name in one.changed if any(mark in have[name].value for mark in marks)}

    def _calm(self, type_url: str) -> bool:
        """What later types need of this one has been accepted, or has been waited for long enough."""
        one = self.subscriptions.get(type_url)
        if type_url == EDS and not self._endpoints_calm(one):
            return False
        if one is None:
            return True
        busy = bool(one.waiting or one.asked or one.changed - self._held_back(one))
        return not busy or self._now_s - one.sent_at_s > PATIENCE_S

    def _endpoints_calm(self, one: Subscription | None) -> bool:
        """The endpoints of new clusters were asked for."""
        if self._expected and self._snapshot is not None:
            have = self._snapshot.get(EDS, NOTHING).resources
            known: Mapping[str, Encoded] = one.known if one else {}
            clusters = self._snapshot.get(CDS, NOTHING).resources
            never = {clusters[name].endpoints for name in self._missing() if name in clusters}
            self._expected = {name for name in self._expected if name in have and name not in known} - never
        return not self._expected or self._now_s - self._expected_at_s > PATIENCE_S

    def _may_remove(self, type_url: str) -> bool:
        """Nobody refers to what is gone: those that did have accepted their own change."""
        for before in REMOVE_AFTER.get(type_url, ()):
            one = self.subscriptions.get(before)
            if one is None and self._returning and self._now_s - self._began_s < SETTLE_S:
                return False
            if one and (one.waiting or one.changed or one.asked or one.gone or one.rejected):
                return False
        return True

    def _sending(self, one: Subscription, names: Iterable[str]) -> None:
        """Clusters that are sent again need their endpoints again: Envoy warms them anew, and does not always ask."""
        if one.type_url != CDS:
            return
        endpoints = self.subscriptions.get(EDS)
        have = (self._snapshot or {}).get(EDS, NOTHING).resources
        for name in names:
            wanted = one.group.resources[name].endpoints
            if wanted not in have:
                continue
            if endpoints and wanted in endpoints.names:
                endpoints.asked.add(wanted)
            elif not one.fresh:
                self._expected.add(wanted)
                self._expected_at_s = self._now_s

    def _sent(self, one: Subscription, names: Collection[str]) -> None:
        for name in names:
            one.known[name] = one.group.resources[name]
        one.fresh = False
        one.waiting = True
        one.flight = set(names)
        self._nonces += 1
        one.nonce = str(self._nonces)


class WorldSession(Session):
    """State of the world: a request names all that is wanted, a response of clusters or listeners has all of them."""

    protocol = "SotW"

    def received(self, request: Any, clock_s: float | None = None) -> None:
        """A DiscoveryRequest."""
        one, new = self._subscription(request.type_url)
        names = set(request.resource_names)
        if new:
            one.claimed = request.version_info
            one.wildcard = WILDCARD in names or (not names and one.type_url in WHOLE)
        elif request.response_nonce != one.nonce:
            return  # an answer to an older response; one to the latest follows, and names all that is wanted
        elif one.waiting:
            reason = request.error_detail.message if request.HasField("error_detail") else None
            one.answered(reason, time.time() if clock_s is None else clock_s)
        self._named(one, names, new)
        self._see(one)

    def _named(self, one: Subscription, names: set[str], new: bool) -> None:
        if not new and (names or one.named):
            wild = WILDCARD in names
            if wild != one.wildcard:
                one.wildcard = wild
                one.known = {name: known for name, known in one.known.items() if wild or name in names}
                one.relook()
        one.named = one.named or bool(names)
        names.discard(WILDCARD)
        one.add(names - one.names)
        one.drop(one.names - names)

    def _take(self, one: Subscription, held: set[str], may_remove: bool) -> Push | None:
        if one.type_url in WHOLE:
            return self._whole(one, held, may_remove)
        names = {name for name in one.asked | (one.changed - held) if name in one.group.resources}
        one.asked.clear()
        if may_remove:  # no response can say so: the client drops them when nothing refers to them
            for name in one.gone:
                one.known.pop(name, None)
            one.gone.clear()
        if not names:
            return None
        one.changed -= names
        first = one.fresh
        self._sent(one, names)
        one.sent = digest(one.known.values())
        return self._response(one, [one.group.resources[name] for name in sorted(names)], 0, first)

    def _whole(self, one: Subscription, held: set[str], may_remove: bool) -> Push | None:
        if not (one.fresh or one.asked or one.changed - held or (one.gone and may_remove)):
            return None
        have = one.group.resources
        names = [name for name in (have if one.wildcard else one.names) if name in have and name not in held]
        first = one.fresh
        if first and one.claimed and one.claimed == one.group.version and one.wildcard:
            self._has_all(one)
            return None
        fresh = [name for name in names if _differs(one.known.get(name), have[name])]
        older = held & one.known.keys() if may_remove else held & one.known.keys() | one.gone
        kept = [one.known[name] for name in older]
        removed = len(one.gone) if may_remove else 0
        self._sending(one, fresh)
        if may_remove:
            for name in one.gone:
                one.known.pop(name, None)
            one.taken -= one.gone
            one.gone.clear()
        self._sent(one, names)
        one.asked.clear()
        one.changed &= held
        one.sent = one.group.version if one.wildcard and not older | held else digest(one.known.values())
        return self._response(one, [*(have[name] for name in names), *kept], removed, first)

    def _has_all(self, one: Subscription) -> None:
        """The client came back with the very version that is there."""
        one.known = dict(one.group.resources)
        one.taken = set(one.known)
        one.fresh = False
        one.asked.clear()
        one.changed.clear()
        one.sent = one.accepted = one.claimed

    def _response(self, one: Subscription, resources: list[Encoded], removed: int, first: bool) -> Push:
        response = discovery_pb2.DiscoveryResponse(version_info=one.sent, type_url=one.type_url, nonce=one.nonce)
        for each in resources:
            response.resources.add(type_url=one.type_url, value=each.value)
        return Push(one.type_url, len(resources), removed, response, first)


class DeltaSession(Session):
    """Incremental: requests say what is wanted besides and no longer, responses what has changed and what is gone."""

    protocol = "delta"

    def received(self, request: Any, clock_s: float | None = None) -> None:
        """A DeltaDiscoveryRequest."""
        one, new = self._subscription(request.type_url)
        names = set(request.resource_names_subscribe)
        if new:
            one.known = {
                name: Encoded(name, version, b"") for name, version in request.initial_resource_versions.items()
            }
            one.taken = set(one.known)
            self._returning = self._returning or bool(one.known)
            one.wildcard = not names and one.type_url in WHOLE
        elif request.response_nonce and request.response_nonce == one.nonce and one.waiting:
            reason = request.error_detail.message if request.HasField("error_detail") else None
            one.answered(reason, time.time() if clock_s is None else clock_s)
        self._named(one, names, set(request.resource_names_unsubscribe), new)
        self._see(one)

    def _named(self, one: Subscription, wanted: set[str], unwanted: set[str], new: bool) -> None:
        wild = (one.wildcard or WILDCARD in wanted) and WILDCARD not in unwanted
        one.add(wanted - {WILDCARD})
        if new:
            one.asked -= one.known.keys()  # compared by version instead
        if wild != one.wildcard:
            one.wildcard = wild
            if not wild:
                one.known = {name: known for name, known in one.known.items() if name in one.names}
            one.relook()
        one.drop(unwanted - {WILDCARD})

    def _take(self, one: Subscription, held: set[str], may_remove: bool) -> Push | None:
        have = one.group.resources
        names = one.asked | (one.changed - held)
        removed = {name for name in names if name not in have}  # asked for by name, and not there
        names -= removed
        if may_remove:
            removed |= one.gone
        first = one.fresh
        if not names and not removed and not (first and one.wildcard):
            one.asked.clear()
            one.fresh = False
            if first and one.known and not one.gone:  # it came back with all that there is, and is sent nothing
                one.sent = one.accepted = one.group.version
            return None
        self._sending(one, (name for name in names if _differs(one.known.get(name), have[name])))
        one.asked.clear()
        one.changed -= names
        one.gone -= removed
        for name in removed:
            one.known.pop(name, None)
        one.taken -= removed
        self._sent(one, names)
        one.sent = one.group.version
        response = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=one.sent, type_url=one.type_url, nonce=one.nonce, removed_resources=sorted(removed)
        )
        for name in sorted(names):
            each = have[name]
            entry = response.resources.add(name=name, version=each.version)
            entry.resource.type_url, entry.resource.value = one.type_url, each.value
        return Push(one.type_url, len(names), len(removed), response, first)
