"""The manifests of a world as Istio's control plane is told them: without what is the laboratory's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from meshdns.core.world import Manifest, Nets, World

OURS = "meshdns/"  # annotations that begin so are the laboratory's
Change = Callable[[str], str]
_SETTINGS = ("ConfigMap", "meshdns")  # settings of the laboratory, by kind and name


def told(world: World, nets: Nets | None = None) -> list[Manifest]:
    """In the order of their age, and of the files; with addresses of these networks."""
    move = mover(Nets(), nets) if nets else str
    others = {(each.kind, each.namespace, each.name) for each in world.manifests if _is_others(each)}
    found = [
        Manifest(each.file, _told(each.document, move))
        for each in world.manifests
        if not {(each.kind, each.namespace, each.name), ("Service", each.namespace, each.service)} & others
    ]
    return sorted(found, key=lambda each: each.created)


def written(text: str, file: str, nets: Nets) -> list[Manifest]:
    """Manifests of a file, with addresses of these networks."""
    change = mover(Nets(), nets)
    return [Manifest(file, _told(each, change)) for each in yaml.safe_load_all(text) if each]


def _is_others(manifest: Manifest) -> bool:
    """Whether it concerns the laboratory alone."""
    notes = manifest.document["metadata"].get("annotations") or {}
    return notes.get(f"{OURS}told") == "false" or (manifest.kind, manifest.name) == _SETTINGS


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
