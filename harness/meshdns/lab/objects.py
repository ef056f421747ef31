"""The manifests of a world as Istio's control plane is told them: without what is the laboratory's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from meshdns.core.world import Nets, World

OURS = "meshdns/"  # annotations that begin so are the laboratory's
Change = Callable[[str], str]
_SETTINGS = ("ConfigMap", "meshdns")  # settings of the laboratory, by kind and name


@dataclass(frozen=True)
class Object:
    """One of them, and the file that it stands in."""

    file: str
    document: Mapping[str, Any]

    @property
    def api(self) -> str:
        """Its API's group and version."""
        return str(self.document["apiVersion"])

    @property
    def kind(self) -> str:
        """As it says itself."""
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        """Within its namespace."""
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Of one that has one."""
        return str(self.document["metadata"].get("namespace", "default"))

    @property
    def created(self) -> str:
        """When it says that it was made; among equals Istio lets the oldest win."""
        return str(self.document["metadata"].get("creationTimestamp") or "")


def told(world: World, nets: Nets | None = None) -> list[Object]:
    """In the order of their age, and of the files; with addresses of these networks."""
    move = mover(Nets(), nets) if nets else str
    others = {_named(each.document) for each in world.manifests if _is_others(each.document)}
    found = [
        Object(each.file, _told(each.document, move))
        for each in world.manifests
        if _named(each.document) not in others and _owner(each.document) not in others
    ]
    return sorted(found, key=lambda each: each.created)


def written(text: str, file: str, nets: Nets) -> list[Object]:
    """Manifests of a file, with addresses of these networks."""
    change = mover(Nets(), nets)
    return [Object(file, _told(each, change)) for each in yaml.safe_load_all(text) if each]


def _is_others(document: Mapping[str, Any]) -> bool:
    """Whether it concerns the laboratory alone."""
    notes = document["metadata"].get("annotations") or {}
    return notes.get(f"{OURS}told") == "false" or _named(document)[::2] == _SETTINGS


def _named(document: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", "default"), metadata["name"]


def _owner(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """The Service of an EndpointSlice; of another object, nothing."""
    metadata = document["metadata"]
    name = (metadata.get("labels") or {}).get("kubernetes.io/service-name", "")
    return "Service", metadata.get("namespace", "default"), name


def fingerprint(world: World) -> str:
    """The same for two worlds of which the control plane is told the same."""
    lines = sorted(json.dumps(each.document, sort_keys=True) for each in told(world))
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def mover(before: Nets, after: Nets) -> Change:
    """What puts addresses of some networks into others, wherever they stand in a text."""
    nets = {getattr(before, net): getattr(after, net) for net in ("pods", "world")}
    pattern = re.compile(rf"(?<![\d.])({'|'.join(map(re.escape, nets))})(?=\.\d)")
    return lambda text: pattern.sub(lambda match: nets[match[1]], text)


def changed(value: object, change: Change) -> Any:
    """The same in lists and dicts, with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): changed(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [changed(each, change) for each in value]
    return value


def _told(document: Mapping[str, Any], change: Change) -> dict[str, Any]:
    found: dict[str, Any] = changed(document, change)
    notes = found["metadata"].get("annotations") or {}
    kept = {key: value for key, value in notes.items() if not key.startswith(OURS)}
    found["metadata"] = {key: value for key, value in found["metadata"].items() if key != "annotations"}
    found["metadata"] |= {"annotations": kept} if kept else {}
    return found
