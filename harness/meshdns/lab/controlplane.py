"""Istio's own control plane as a run uses it: policies put in force, its debounce, replicas that come and go.

Nobody probes readiness here and no controller writes EndpointSlices: the testbed writes at once what they would write
after a while, so that what follows is Istio's doing alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.message
import dns.query

from meshdns.ads.types import EDS, LDS, NDS
from meshdns.core import errors, paths
from meshdns.core.world import Pod, Service
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, parts
from meshdns.lab.channel import Channel
from meshdns.lab.parts import istiod
from meshdns.lab.place import Ended, Place

if TYPE_CHECKING:
    from meshdns.lab import live

POLICIES = paths.COMPOSE / "policies"
NONE = "none"
SETTLE_TIMEOUT_S = 30
RESOLVE_TIMEOUT_S = 90  # the longest refresh rate of a sidecar's clusters is a minute, records live for half of one
GRACE_S = 2.0  # between a replica that is ending and its end
STAY_S = 5.0  # of a Service that comes and goes, and of an istiod that is away
# What becomes of a pod, as its endpoints say it; one that is gone is not listed.
READY, UNREADY, ENDING, GONE = "ready", "unready", "ending", "gone"
_FAILING, _SPARE = "shop-1", "shop-4"
_POLL_S, _ASK_S = 0.02, 2
# A Service that nobody calls.
_OTHER = """
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec:
  clusterIP: 10.96.1.99
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
# What was there before and is not there after, and the other way round.
EFFECTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "up": ((_SPARE,), ()),
    "down": ((), (_FAILING,)),
    "replace": ((_SPARE,), (_FAILING,)),
    "unready": ((), (_FAILING,)),
    "crash": ((), (_FAILING,)),
    "unrelated": ((), ()),
    "istiod": ((), ()),
    "deny": ((), ()),
}
_ENDED = ("down", "replace", "crash")  # changes that end the failing replica


@dataclass
class ControlPlane:
    """The control plane of a place where it is live."""

    place: Place
    plane: live.Plane
    observer: Channel  # the one that asks servers
    policy: str = NONE
    debounce: str = istiod.USUAL
    ended: Ended = field(default_factory=Ended)  # by changes

    # -- its configuration -----------------------------------------------------------------------------------------

    def enforce(self, policy: str) -> None:
        """This policy and no other is in force at every sidecar. Raises TestbedError."""
        if policy == self.policy:
            return
        since_s = time.time()
        self._mark(policy, NONE)
        if self.policy != NONE:
            self.plane.remove(*_manifests(self.policy))
        if policy != NONE:
            self.plane.put(*_manifests(policy))
        self.policy = policy
        self._settle(since_s, LDS)

    def gather(self, debounce: str) -> None:
        """istiod gathers changes so before it tells sidecars; it is started anew for that. Raises TestbedError."""
        if debounce == self.debounce:
            return
        for path, text in istiod.settings(self.plane.service, debounce).items():
            self.place.put(path, text)
        self.debounce = debounce
        self._set_ended(self.plane.service)
        self.place.kill(self.plane.service)
        since_s = time.time()
        self.place.start(self.plane.service)
        self._await_istiod(since_s)
        self._unset_ended(self.plane.service)

    def _await_istiod(self, since_s: float) -> None:
        """It runs again and every sidecar has found it, since then."""
        self._await(self.plane.is_ready, "istiod is not ready again")
        self._settle(since_s, LDS)

    def _settle(self, since_s: float, *types: str) -> None:
        """Every sidecar was sent these types since then, and has accepted all that it was sent. Raises TestbedError."""
        waiting: list[str] = []

        def settled() -> bool:
            sidecars = [pod for pod in self.place.world.up(self.place.groups) if pod.sidecar]
            waiting[:] = unsettled(self.plane.sidecars(), sidecars, since_s, types)
            return not waiting

        self._await(settled, lambda: next(iter(waiting), "istiod does not answer"))

    def _await(self, holds: Callable[[], bool], otherwise: str | Callable[[], str]) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while not self._holds(holds):
            if time.monotonic() > deadline:
                fact = otherwise if isinstance(otherwise, str) else otherwise()
                raise errors.TestbedError(fact, place=self.plane.service, step="see `meshdns status`")
            time.sleep(_POLL_S)

    def _holds(self, holds: Callable[[], bool]) -> bool:
        with contextlib.suppress(errors.TestbedError):  # it does not answer, yet
            return holds()
        return False

    # -- changes ---------------------------------------------------------------------------------------------------

    def change(self, kind: str) -> dict[str, Any]:
        """Bring a change about; when it happened (CLOCK_MONOTONIC) and whom it concerns. Raises TestbedError."""
        self._mark(self.policy, kind)
        at_ns = self._act(kind)
        added, removed = EFFECTS[kind]
        return {"at_ns": at_ns, "done_ns": time.monotonic_ns(), "added": list(added), "removed": list(removed)}

    def _act(self, kind: str) -> int:
        """The instant of the change."""
        at_ns, since_s = time.monotonic_ns(), time.time()
        match kind:
            case "up" | "unready":
                return self.plane.report({_SPARE: READY} if kind == "up" else {_FAILING: UNREADY})
            case "crash" | "replace":
                at_ns = self._kill(_FAILING)
                self.plane.report(dict.fromkeys(EFFECTS[kind][0], READY) | {_FAILING: UNREADY})
            case "down":
                at_ns = self.plane.report({_FAILING: ENDING})
                time.sleep(GRACE_S)
                self._kill(_FAILING)
                self.plane.report({_FAILING: GONE})
            case "unrelated":
                self.plane.put(_OTHER, "other.yaml")
                time.sleep(STAY_S)
                self.plane.remove(_OTHER, "other.yaml")
            case "istiod":
                self._set_ended(self.plane.service)
                at_ns = self.place.kill(self.plane.service)
                time.sleep(STAY_S)
                self.place.start(self.plane.service)
            case "deny":
                self.plane.put(*_manifests(kind))
                self._settle(since_s, LDS)
        return at_ns

    def restore(self, kind: str) -> None:
        """As it was, known to every sidecar but by names that it resolves. Raises TestbedError."""
        added, removed = EFFECTS[kind]
        if kind in _ENDED:
            self._start(_FAILING)
        since_s = time.time()
        if added or removed:
            self.plane.report(dict.fromkeys(removed, READY) | dict.fromkeys(added, UNREADY))
            self._settle(since_s, EDS, NDS)
        elif kind == "istiod":
            self._await_istiod(0.0)
            self._unset_ended(self.plane.service)
        elif kind == "deny":
            self.plane.remove(*_manifests(kind))
            self._settle(since_s, LDS)
        self._mark(self.policy, NONE)

    def _mark(self, policy: str, change: str) -> None:
        """A testbed in which a killed run has left these is not taken for one as it was started."""
        for path, text in istiod.in_force(self.plane.service, policy, change).items():
            self.place.put(path, text)

    def await_usual(self, service: Service, client: Pod, observer: Channel) -> None:
        """What an earlier change did is forgotten by who resolves the name for this client. Raises TestbedError."""
        usual = {self.place.address(each) for each in service.replicas}
        if service.resolved:
            self._forgotten(service.host, lambda: _members(observer, service.host) == usual, "its sidecar")
        elif not (service.cluster_ip or client.dns_proxy):
            server = self.place.address(self.place.world.dns_pod(client).pod)
            self._forgotten(service.host, lambda: _answers(server, service.host) == usual, "the cluster DNS")

    def pooled(self, service: Service, observer: Channel) -> int:
        """Connections to the replicas that a pod's sidecar keeps; 0 where there is none."""
        wanted = urllib.parse.quote(rf"outbound\|\d+\|\|{re.escape(service.host)};?\.upstream_cx_active", safe="")
        page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/stats?format=json&filter={wanted}", "timeout_s": _ASK_S}
        stats = json.loads(observers.page(observer, page) or '{"stats": []}')["stats"]
        return sum(int(each["value"]) for each in stats if "value" in each)

    def _forgotten(self, host: str, holds: Callable[[], bool], who: str) -> None:
        deadline = time.monotonic() + RESOLVE_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise errors.TestbedError(f"{who} does not know the usual replicas again", place=host)
            time.sleep(0.2)

    def _kill(self, pod: str) -> int:
        """Application and sidecar end at once; the instant in CLOCK_MONOTONIC."""
        services = _services(self.place.world.named(pod))
        self._set_ended(*services)
        return self.place.kill(*services)

    def _start(self, pod: str) -> None:
        """They run and answer again."""
        there = self.place.world.named(pod)
        services = _services(there)
        self.place.start(*services)
        self._unset_ended(*services)
        every = [at for at in parts.there(self.place)[pod] if at.service in services]
        pages = [page for at in every if isinstance(page := at.part.ready(at), dict)]

        def answered() -> bool:
            return all(observers.page(self.observer, each) is not None for each in pages)

        self._await(answered, f"{pod} does not answer")

    def _set_ended(self, *services: str) -> None:
        self.ended = Ended(self.ended.now | {*services}, self.ended.ever | {*services})

    def _unset_ended(self, *services: str) -> None:
        self.ended = Ended(self.ended.now - {*services}, self.ended.ever)


def _manifests(policy: str) -> tuple[str, str]:
    """What a policy's file says, and its name."""
    file = POLICIES / f"{policy}.yaml"
    return file.read_text(), file.name


def _services(pod: Pod) -> tuple[str, str]:
    """What ends and starts again with a replica."""
    return f"{pod.pod}-app", parts.sidecar(pod)


def _members(observer: Channel, host: str) -> set[str]:
    """Addresses behind the clusters of a host, by the pod's own Envoy."""
    page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/clusters", "timeout_s": _ASK_S}
    lines = (line.split("::") for line in (observers.page(observer, page) or "").splitlines())
    members = {each[1] for each in lines if len(each) == 4 and each[0].partition(";")[0].endswith(f"||{host}")}
    return {each.rpartition(":")[0] for each in members if each[0].isdigit()}


def _answers(server: str, host: str) -> set[str]:
    """Addresses of a name, by a name server; none where it does not answer."""
    question = dns.message.make_query(f"{host}.", "A")
    try:
        answer = dns.query.udp(question, server, timeout=_ASK_S)
    except (dns.exception.DNSException, OSError):
        return set()
    return {each.address for rrset in answer.answer for each in rrset if hasattr(each, "address")}


def unsettled(
    known: Mapping[str, Mapping[str, Any]], sidecars: Collection[Pod], since_s: float = 0.0, types: Collection[str] = ()
) -> Iterator[str]:
    """Sidecars that have not accepted what they were sent, or were not sent these types since then, each with why."""
    for pod in sidecars:
        resources = known.get(pod.pod)
        if resources is None:
            yield f"{pod.pod} is not connected"
            continue
        wanted = [each for each in types if each != NDS or pod.dns == "agent"]
        for kind in (each for each in wanted if _sent_s(resources.get(each)) < since_s):
            yield f"{pod.pod} was not sent {_short(kind)}"
        for kind, one in resources.items():
            if error := one.get("lastError"):
                yield f"{pod.pod} rejects {_short(kind)}: {error}"
            elif one.get("sent") != one.get("acked"):
                yield f"{pod.pod} has not accepted {_short(kind)} yet"


def _sent_s(resource: Mapping[str, Any] | None) -> float:
    """When, in seconds since the epoch."""
    return datetime.fromisoformat(resource["sentTime"]).timestamp() if resource and "sentTime" in resource else 0.0


def _short(kind: str) -> str:
    return kind.rpartition(".")[2]


def summary(place: Place) -> Iterator[str]:
    """What people want to know of it, a line each."""
    there = {part.service for part in place.parts()}
    sidecars = [pod for pod in place.world.injected if parts.sidecar(pod) in there]
    waiting = list(unsettled(place.plane().sidecars(), sidecars))
    yield from (f"istiod: {each}" for each in waiting)
    if not waiting:
        yield f"istiod: {len(sidecars)} sidecars have accepted all that they were sent"
