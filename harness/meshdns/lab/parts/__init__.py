"""The parts that pods are made of: a module each, found by being here. `component` says what one says of itself."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import re
from pathlib import Path

from meshdns.core import paths
from meshdns.core.world import Nets, Pod, World
from meshdns.interception import mechanisms
from meshdns.lab.parts.component import At, Component, Secrets
from meshdns.lab.place import Place

ALL: dict[str, Component] = {
    module.name.replace("_", "-"): importlib.import_module(f"{__name__}.{module.name}").PART
    for module in pkgutil.iter_modules(__path__)
    if module.name != "component"
}


@functools.cache
def stages(file: Path = paths.COMPOSE / "images" / "Dockerfile") -> list[str]:
    """The stages that are images: those with a line `# image` right above their FROM."""
    return re.findall(r"^# image\b.*\nFROM\s+\S+\s+AS\s+(\S+)", file.read_text(), re.MULTILINE | re.IGNORECASE)


def of(world: World, nets: Nets, pod: Pod, *, address: str = "", keys: Secrets | None = None) -> list[At]:
    """What a pod consists of, in the order in which it starts; the first owns the network."""
    where, known = address or world.address(nets, pod.pod), keys or Secrets()
    services = {f"{pod.pod}-{name}".removesuffix("-"): part for name, part in _names(world, pod).items()}
    return [At(ALL[part], service, pod, world, nets, where, known) for service, part in services.items()]


def sidecar(pod: Pod) -> str:
    """The service that is a pod's sidecar."""
    return f"{pod.pod}-istio-proxy"


def _names(world: World, pod: Pod) -> dict[str, str]:
    """What its services are called beside it -> part."""
    if pod.pod in world.cluster_dns.values():
        return {"": "pause", "queries": "queries", **{name: name for name in pod.parts or (pod.part,)}}
    if not (pod.arm or pod.sidecar):
        return {"": "pause", **{name: name for name in pod.parts}} if pod.parts else {"": pod.part}
    found = {"": "pause", "loader": "loader"} if mechanisms.ALL[pod.mechanism].programs else {"": "pause"}
    found["rules"] = "rules"
    if pod.sidecar:
        found["istio-proxy"] = "istio-proxy"
    if pod.arm and world.asks_node(pod):
        found["node-dns"] = "node-dns"
    found["app"] = pod.part
    return {**found, "observer": "observer"} if pod.arm else found


def there(place: Place) -> dict[str, list[At]]:
    """Those of a place that is up, by pod."""
    keys = Secrets(**json.loads(place.read("secrets.json")))
    up = place.world.up(place.groups)
    return {pod.pod: of(place.world, place.nets, pod, address=place.address(pod.pod), keys=keys) for pod in up}
