"""The control plane as the testbed sees it: its own page, policies put in force, replicas that come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from meshdns.core import errors, paths
from meshdns.core.world import World
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, ports
from meshdns.lab.channel import Channel
from meshdns.lab.parts import bind
from meshdns.lab.place import Ended, Place

COMPOSE = paths.COMPOSE
ASK_TIMEOUT_S = 15
SETTLE_TIMEOUT_S = 30
RESOLVE_TIMEOUT_S = 90  # the longest refresh rate of a sidecar's clusters is a minute
GRACE_S = 2.0  # between a replica that is unready and its end
STAY_S = 5.0  # of a Service that comes and goes
_SHOWN = 5  # conflicts that `meshdns status` names
POLICY, UNRELATED = "policy.yaml", "unrelated.yaml"
_HEADLESS = "shop-headless.yaml"  # the Service whose records are removed
_FAILING, _SPARE = "shop-1", "shop-4"
# A Service that nobody calls.
_OTHER = """
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec:
  clusterIP: 10.96.1.99
  ports: [{name: http, port: 80, targetPort: 8080}]
"""
# Changes of the configuration: the file, and whether the change takes it away or puts it there.
_EDITS = {"gone": (_HEADLESS, True), "unrelated": (UNRELATED, False)}
# What was there before and is not there after, and the other way round.
EFFECTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "up": ((_SPARE,), ()),
    "down": ((), (_FAILING,)),
    "replace": ((_SPARE,), (_FAILING,)),
    "unready": ((), (_FAILING,)),
    "crash": ((), (_FAILING,)),
    "gone": ((), ()),
    "rotate": ((), ()),
    "unrelated": ((), ()),
}


@dataclass
class ControlPlane:
    """The control plane of a testbed that has one."""

    place: Place
    observer: Channel  # the one that asks servers
    policy: str = "none"
    ended: Ended = field(default_factory=Ended)  # by changes
    _taken: dict[str, str] = field(default_factory=dict)  # file -> what it held before a change took it away

    @property
    def world(self) -> World:
        """What the testbed is made of."""
        return self.place.world

    def status(self) -> dict[str, Any]:
        """Its own page. Raises TestbedError."""
        url = f"http://{self.place.address('control-plane')}:{ports.PORT_PLANE}/status"
        page = observers.page(self.observer, {"url": url, "timeout_s": 2})
        if page is None:
            raise errors.TestbedError(
                "the control plane does not answer", place="control-plane", step="see `meshdns logs control-plane`"
            )
        return dict(json.loads(page))

    # -- policies --------------------------------------------------------------------------------------------------

    def enforce(self, policy: str) -> None:
        """This policy and no other is in force at every sidecar. Raises TestbedError."""
        if policy == self.policy:
            return
        before = self.status()["configuration"]["number"]
        text = None if policy == "none" else (COMPOSE / "policies" / f"{policy}.yaml").read_text()
        self.place.put(f"mesh/{POLICY}", text)
        self.policy = policy
        self._await(lambda status: status["configuration"]["number"] > before and self._settled(status))

    def _settled(self, status: Mapping[str, Any]) -> bool:
        return not any(unsettled(status, self.world))

    def _await(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while not holds(status := self.status()):
            wrong = status["configuration"]["error"] or status["configuration"]["fault"]
            if wrong or time.monotonic() > deadline:
                fact = wrong or next(iter(unsettled(status, self.world)), "the configuration did not change")
                raise errors.TestbedError(fact, place="control-plane", step="see `meshdns status`")
            time.sleep(0.05)

    # -- changes ---------------------------------------------------------------------------------------------------

    def change(self, kind: str) -> dict[str, Any]:
        """Bring a change about; when it happened (CLOCK_MONOTONIC) and whom it concerns. Raises TestbedError."""
        at_ns = self._act(kind)
        added, removed = EFFECTS[kind]
        return {
            "at_ns": at_ns,
            "done_ns": time.monotonic_ns(),
            "added": list(added),
            "removed": list(removed),
            "probe_period_s": self.world.probe_period_s,
        }

    def _act(self, kind: str) -> int:
        """The instant of the change."""
        if kind in _EDITS:
            before, at_ns = self.status()["configuration"]["number"], time.monotonic_ns()
            self._edit(kind, changed=True)
            if kind == "unrelated":
                time.sleep(STAY_S)
                self._await(lambda status: status["configuration"]["number"] > before and self._settled(status))
                self._edit(kind, changed=False)
            return at_ns
        if kind == "rotate":
            return self.place.kill("control-plane", signal="SIGUSR1")
        if kind == "up":
            return self._set_ready(_SPARE, ready=True)
        if kind in ("unready", "down"):
            at_ns = self._set_ready(_FAILING, ready=False)
            if kind == "down":
                time.sleep(GRACE_S)
                self._kill(_FAILING)
            return at_ns
        with ThreadPoolExecutor(1) as beside:  # at once, as near as two calls can be
            ready = beside.submit(self._set_ready, _SPARE, ready=True) if kind == "replace" else None
            at_ns = self._kill(_FAILING)
        return min(at_ns, ready.result()) if ready else at_ns

    def _edit(self, kind: str, *, changed: bool) -> None:
        """The file that the change is about is there, or is not."""
        name, removed = _EDITS[kind]
        path = f"mesh/{name}"
        if removed and changed:
            self._taken[path] = self.place.read(path)
        there = self._taken.get(path) if removed else _OTHER
        if not removed or there is not None:
            self.place.put(path, None if changed == removed else there)

    def restore(self, kind: str) -> None:
        """As it was, known to every sidecar but by names that it resolves. Raises TestbedError."""
        if kind in _EDITS:
            self._edit(kind, changed=False)
        for pod in EFFECTS[kind][1]:
            for service in _services(pod):
                self.place.start(service)
                self.ended = Ended(self.ended.now - {service}, self.ended.ever)
            self._set_ready(pod, ready=True)
        for pod in EFFECTS[kind][0]:
            self._set_ready(pod, ready=False)
        wanted = {pod.pod: pod.ready for pod in self.world.meshed if pod.managed}
        self._await(lambda status: self._settled(status) and self._readiness(status) == wanted and _written(status))

    def await_resolved(self, host: str, observer: Channel) -> None:
        """A pod's sidecar has resolved the usual replicas of a host again. Raises TestbedError.

        After NXDOMAIN c-ares leaves Envoy without a time to live: it asks again only after its refresh rate, a minute.
        """
        service = next(each for each in self.world.services if each.host == host)
        usual = {f"{self.place.address(each)}:{service.target_ports[0]}" for each in service.replicas}
        page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/clusters", "timeout_s": 2}
        deadline = time.monotonic() + RESOLVE_TIMEOUT_S
        while True:
            lines = (line.split("::") for line in (observers.page(observer, page) or "").splitlines())
            members = {parts[1] for parts in lines if len(parts) == 4 and parts[0].endswith(f"||{host}")}
            if usual == {each for each in members if each[0].isdigit()}:
                return
            if time.monotonic() > deadline:
                raise errors.TestbedError("its sidecar has not resolved the replicas again", place=host)
            time.sleep(0.2)

    def _readiness(self, status: Mapping[str, Any]) -> dict[str, bool]:
        pods = {self.place.address(pod.pod): pod.pod for pod in self.world.meshed if pod.managed}
        return {pods[address]: one["ready"] for address, one in status["probes"].items() if address in pods}

    def _set_ready(self, pod: str, *, ready: bool) -> int:
        """What its readiness page says from now on; the instant in CLOCK_MONOTONIC."""
        act = "rm -f /tmp/unready" if ready else "touch /tmp/unready"
        at = self.place.exec(f"{pod}-app", ["sh", "-c", f"{act}; date +%s%N"], timeout_s=30)
        return int(at) - (time.time_ns() - time.monotonic_ns())

    def _kill(self, pod: str) -> int:
        """Application and sidecar end at once; the instant in CLOCK_MONOTONIC."""
        self.ended = Ended(self.ended.now | {*_services(pod)}, self.ended.ever | {*_services(pod)})
        return self.place.kill(*_services(pod))

    # -- what was told to whom -------------------------------------------------------------------------------------

    def pushed(self) -> dict[str, Any]:
        """What the agent's DNS proxy and the cluster DNS hold of the model, for the record. Raises TestbedError.

        Envoy's DNS filter has its table in a listener, which is recorded with its configuration.
        """
        names: dict[str, Any] = {}
        for proxy in [each for each in self.world.clients if each.managed and each.dns == "agent"][:1]:
            table = self.place.exec(f"{proxy.pod}-dns", ["cat", "/etc/meshdns/names.json"], timeout_s=30)
            names = {host: entry["ips"] for host, entry in json.loads(table)["table"].items()}
        records = keeper.pod if (keeper := bind.keeper(self.world)) else ""  # a world with a control plane has one
        zone = [self.place.address(records), f"/state/{records}/update.key", f"{self.world.domain}."]
        ask = ["python3", "-c", _TRANSFER, *zone]
        said = self.place.exec("observer", ask, timeout_s=ASK_TIMEOUT_S, image="dnsproxy")
        return {"names": names, "records": json.loads(said), "status": self.status()}


# Every address record of the zone, by a transfer signed with the testbed's key.
_TRANSFER = """
import json, re, sys, dns.query, dns.tsig, dns.zone
secret = re.search(r'secret "(.*?)"', open(sys.argv[2]).read())[1]
key = dns.tsig.Key("meshdns", secret, "hmac-sha256")
where, how = (sys.argv[1], sys.argv[3]), {"port": 5300, "keyring": key, "lifetime": 5}
answers = dns.query.xfr(*where, **how, relativize=False)
zone = dns.zone.from_xfr(answers, relativize=False)
found = {}
for name, _, data in zone.iterate_rdatas("A"):
    found.setdefault(name.to_text().rstrip("."), []).append(data.address)
print(json.dumps(found))
"""


def _services(pod: str) -> tuple[str, ...]:
    """What ends and starts again with a replica."""
    return tuple(f"{pod}-{part}" for part in ("app", "envoy"))


def unsettled(status: Mapping[str, Any], world: World) -> Iterator[str]:
    """Sidecars that have not accepted what they are offered, and names that are not told, each with why."""
    for pod in (each for each in world.pods if each.managed):
        name = f"{world.namespace}/{pod.pod}"
        node = status["nodes"].get(name)
        if not node or not node["connected"]:
            yield f"{name} is not connected"
            continue
        for kind, one in node["types"].items():
            if rejected := one.get("rejected"):
                yield f"{name} rejects {kind}: {rejected['reason']}"
            elif not one["settled"]:
                yield f"{name} has not accepted {kind} yet"
    unwritten = [table["error"] for table in status["name_tables"].values() if table["error"]]
    yield from unwritten
    if status["names_pending"] and not unwritten:
        yield "new names are not told yet"


def _written(status: Mapping[str, Any]) -> bool:
    """The cluster DNS holds what it should."""
    dns = status["dns"]
    return dns is None or (dns["held"] == dns["wanted"] and not dns["error"])


def summary(status: Mapping[str, Any], world: World) -> Iterator[str]:
    """What people want to know of it, a line each: what is in force, and whatever is not as it should be."""
    configuration = status["configuration"]
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(configuration["resources"].items()))
    yield f"control plane: configuration {configuration['number']} is in force: {counts or 'nothing'}"
    for wrong in (configuration["error"], configuration["fault"]):
        if wrong:
            yield f"control plane: {wrong}; what was in force stays"
    yield from (f"control plane: {fault}" for fault in status["sidecar_faults"].values())
    if status["dns"] and status["dns"]["error"]:
        yield f"control plane: {status['dns']['error']}"
    yield from _conflicts(status["conflicts"])
    waiting = list(unsettled(status, world))
    yield from waiting
    if not waiting:
        yield f"control plane: {len(status['nodes'])} sidecars have accepted all they were sent"


def _conflicts(found: Mapping[str, Any]) -> Iterator[str]:
    """Services that get no listener of their own, the first of them by name."""
    shown = found["first"][:_SHOWN]
    for one in shown:
        yield (f"conflict: in mode {one['mode']}, {one['loser']} loses listener {one['listener']} to {one['winner']}: "
               f"{one['why']}")  # fmt: skip
    if more := found["count"] - len(shown):
        yield f"conflict: {more} more, {found['count']} in all; see `meshdns validate`"
