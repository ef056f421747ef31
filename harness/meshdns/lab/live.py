"""Istio's own control plane in a place: told the world, and what agents need of it handed to them."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from meshdns.core import errors
from meshdns.core.world import LIVE, Manifest, Nets, Pod, World
from meshdns.lab import keys, kubernetes, objects, parts, ports, readiness, recorder
from meshdns.lab.controlplane import ENDING, GONE, READY, UNREADY
from meshdns.lab.parts import apiserver, istiod
from meshdns.lab.parts.component import At
from meshdns.lab.parts.istio_proxy import handed
from meshdns.lab.place import Place
from meshdns.lab.recording import Recording

_CRDS = "/usr/share/istio/crd-all.gen.yaml"  # in istiod's image
# Conditions of an endpoint, as the controller of EndpointSlices writes them.
_CONDITIONS: Mapping[str, Mapping[str, bool]] = {
    READY: {"ready": True, "serving": True, "terminating": False},
    UNREADY: {"ready": False, "serving": False, "terminating": False},
    ENDING: {"ready": False, "serving": True, "terminating": True},
}
_TIMEOUT_S = 2
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


def parts_of(world: World, nets: Nets) -> list[At]:
    """What the plane consists of, in the order in which it starts; istiod, which needs the others, comes last."""
    return [at for pod in world.pods if pod.group == LIVE for at in parts.of(world, nets, pod)]


def services(world: World, nets: Nets) -> list[str]:
    """By which the place knows them. Raises InputError for a world without them."""
    if found := [at.service for at in parts_of(world, nets)]:
        return found
    fact, step = f"no Pod is of the group {LIVE}", "take compose/worlds/live.yaml into it"
    raise errors.InputError(fact, place="the world", step=step)


class Plane:
    """The one of a place of which etcd and API server run; TestbedError where who is asked does not answer."""

    def __init__(self, place: Place, folder: Path) -> None:
        """`folder` has what was rendered. Raises TestbedError where the API server does not answer."""
        self._place, self._world, self._nets = place, place.world, place.nets
        by_part = {at.part: at for at in parts_of(self._world, self._nets)}
        self.service, own = by_part[istiod.PART].service, folder / by_part[apiserver.PART].service
        self._pod = by_part[istiod.PART].pod
        self._address = f"{self._nets.plane}.{self._pod.host}"
        self._states: dict[str, str] = {}  # of pods that were told of
        token = (own / keys.TOKENS).read_text().partition(",")[0]
        url, self._well = apiserver.url(self._world, self._nets), partial(readiness.refuse_ended, place)
        self._api = kubernetes.Api(url, token, own / keys.AUTHORITY, self._well)

    @kubernetes.told()
    def tell(self, start: Callable[[], None]) -> None:
        """The API server has the world; istiod, which `start` starts then, knows and accepts it. Raises InputError."""
        self._api.define(self._place.exec(self._pod.pod, ["cat", _CRDS], timeout_s=20, image=istiod.PART.image))
        self._api.apply(self._world, self._told)
        start()
        kubernetes.awaited("istiod", self.is_ready, self._well)
        self._api.ask_istio(f"https://localhost:{istiod.WEBHOOK_PORT}/validate")
        self._api.judge(self._told)
        kubernetes.awaited("virtual IPs of ServiceEntries", self._api.allocated, self._well)

    def is_ready(self) -> bool:
        """Whether istiod says that it knows everything."""
        try:
            with _DIRECT.open(f"http://{self._address}:{istiod.READY_PORT}/ready", timeout=_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @kubernetes.told()
    def hand_out(self) -> None:
        """Each sidecar has what a kubelet would mount: its account's token, the root of Istio's authority."""
        root = self._api.root(self._world.namespace)
        for pod in self._world.injected:
            token = self._api.token(self._world.namespace, pod.account, pod.pod)
            self._place.put(handed(parts.sidecar(pod), "tokens/istio-token"), token)
            self._place.put(handed(parts.sidecar(pod), f"istio/{kubernetes.ROOT_KEY}"), root)

    @kubernetes.told()
    def put(self, text: str, file: str) -> None:
        """Manifests of a file, with addresses of the usual networks, are there as they stand. Raises InputError."""
        self._api.put(objects.written(text, file, self._nets))

    @kubernetes.told()
    def remove(self, text: str, file: str) -> None:
        """They are gone."""
        self._api.remove(objects.written(text, file, self._nets))

    @kubernetes.told()
    def report(self, pods: Mapping[str, str]) -> int:
        """What a kubelet and the controller of EndpointSlices would write of pods that became so.

        The instant right before the first of it, in nanoseconds of CLOCK_MONOTONIC.
        """
        self._states |= pods
        told = [each for each in self._told if each.kind in ("EndpointSlice", "Pod")]
        slices = [self._with_states(each) for each in told if set(pods) & {*_targets(each)}]
        at_ns = time.monotonic_ns()
        self._api.tell_endpoints(slices)
        for each in told:
            if each.kind == "Pod" and each.name in pods:
                self._api.tell_pod(each, ready=pods[each.name] == READY)
        return at_ns

    def _with_states(self, told: Manifest) -> Manifest:
        """An EndpointSlice as it is by now."""
        known = zip(told.document["endpoints"], map(self._states.get, _targets(told)), strict=True)
        there = [(each, state) for each, state in known if state != GONE]
        endpoints = [{**each, "conditions": _CONDITIONS[state]} if state else each for each, state in there]
        return Manifest(told.file, {**told.document, "endpoints": endpoints})

    @cached_property
    def _told(self) -> list[Manifest]:
        return objects.told(self._world, self._nets)

    def sidecars(self) -> dict[str, dict[str, Any]]:
        """Of each that is connected, by pod: type URL -> what was sent last, when, and what was accepted."""
        request = urllib.request.Request(f"http://{self._address}:{istiod.READY_PORT}/debug/syncz")
        request.add_header("Authorization", f"Bearer {self._api.operator}")
        try:
            with _DIRECT.open(request, timeout=_TIMEOUT_S) as answer:
                found = json.load(answer)
        except OSError as error:
            fact, step = f"does not say who is connected ({error})", f"see `meshdns logs {self.service}`"
            raise errors.TestbedError(fact, place=self.service, step=step) from None
        return {each["proxy"].partition(".")[0]: each.get("resources", {}) for each in found}

    def names(self, pod: Pod) -> dict[str, list[str]]:
        """What it tells the agent of a pod of names: host -> addresses."""
        return recorder.names(self._world, self._nets, pod, f"{self._address}:{ports.PORT_XDS}")

    def record(self) -> Recording:
        """What it tells each sidecar."""
        version = self._place.exec(self.service, istiod.PART.versions["istiod"].split(), timeout_s=20).split()[-1]
        return recorder.record(self._world, self._nets, f"{self._address}:{ports.PORT_XDS}", version)


def _targets(told: Manifest) -> Iterator[str]:
    """The pod behind each endpoint of an EndpointSlice; empty where it is nobody's."""
    for endpoint in told.document.get("endpoints") or ():
        yield str(endpoint.get("targetRef", {}).get("name", ""))
