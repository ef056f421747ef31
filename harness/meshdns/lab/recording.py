"""What Istio's control plane answers to each sidecar of a world, kept as JSON that a person can review.

A file for each type of resource. One that several pods are told alike stands once, beside the names of those pods.
Addresses of the testbed's networks are placeholders, so that a recording serves a testbed on other networks as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshdns.ads.types import TYPES, Resource, name_of
from meshdns.core import errors, paths
from meshdns.core.world import Nets, World
from meshdns.lab import objects

FOLDER = paths.COMPOSE / "recorded"
ABOUT = "recording.json"
_PLACEHOLDERS = Nets(pods="{pods}", world="{world}")
_STEP = "make it anew with `meshdns record`"
Answers = Mapping[str, Sequence[Resource]]  # by type URL


@dataclass(frozen=True)
class Shared:
    """One resource, and the pods that are told it."""

    pods: tuple[str, ...]
    resource: Resource


@dataclass(frozen=True)
class Recording:
    """All answers for one world."""

    istio: str  # the version that gave them
    world: str  # fingerprint of what it was told
    nodes: Mapping[str, Resource]  # pod -> what it said of itself when it asked
    shared: Mapping[str, tuple[Shared, ...]]  # by type URL

    def answers(self, pod: str, nets: Nets) -> dict[str, list[Resource]]:
        """What this pod is told on these networks, by type URL. Raises InputError for one that was not recorded."""
        if pod not in self.nodes:
            raise errors.InputError("was not recorded", place=pod, step=_STEP)
        mine = {url: [each.resource for each in self.shared[url] if pod in each.pods] for url in TYPES}
        return {url: _moved(found, _PLACEHOLDERS, nets) for url, found in mine.items()}

    def fits(self, world: World) -> bool:
        """Whether Istio would be told the same today."""
        return self.world == objects.fingerprint(world)

    def files(self) -> dict[str, str]:
        """File -> content: the same for the same answers."""
        about = {"istio": self.istio, "pods": self.nodes, "world": self.world}
        found = {ABOUT: _text(about)}
        for url in TYPES:
            entries = [{"pods": list(each.pods), "resource": each.resource} for each in self.shared[url]]
            found[_file(url)] = _text(entries)
        return found


def of(world: World, istio: str, nodes: Mapping[str, Resource], told: Mapping[str, Answers], nets: Nets) -> Recording:
    """The recording of what pods on these networks were told."""
    nodes = {pod: _moved(node, nets, _PLACEHOLDERS) for pod, node in sorted(nodes.items())}
    return Recording(istio, objects.fingerprint(world), nodes, {url: _share(told, url, nets) for url in TYPES})


def write(recording: Recording, folder: Path) -> list[str]:
    """The folder holds it; the names of the files that were otherwise before."""
    folder.mkdir(parents=True, exist_ok=True)
    other = []
    for name, text in recording.files().items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
            other.append(name)
    return other


def kept() -> Path:
    """The folder of what is served: the package's, or that which MESHDNS_RECORDED names."""
    return Path(os.environ.get("MESHDNS_RECORDED", FOLDER))


def read(folder: Path | None = None) -> Recording:
    """One that was kept, by default the one that is served. Raises DataError."""
    folder = folder or kept()
    try:
        about = json.loads((folder / ABOUT).read_text())
        shared = {
            url: tuple(
                Shared(tuple(each["pods"]), each["resource"]) for each in json.loads((folder / _file(url)).read_text())
            )
            for url in TYPES
        }
        return Recording(about["istio"], about["world"], about["pods"], shared)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.DataError(f"holds no recording ({error})", place=str(folder), step=_STEP) from None


def serves(world: World) -> bool:
    """Whether the kept one is of this world."""
    try:
        return read().fits(world)
    except errors.DataError:
        return False


def _share(told: Mapping[str, Answers], url: str, nets: Nets) -> tuple[Shared, ...]:
    pods: dict[str, list[str]] = {}
    found: dict[str, Resource] = {}
    for pod, answers in sorted(told.items()):
        for resource in _moved(list(answers[url]), nets, _PLACEHOLDERS):
            key = json.dumps(resource, sort_keys=True)
            found[key] = resource
            pods.setdefault(key, []).append(pod)
    shared = [Shared(tuple(pods[key]), resource) for key, resource in found.items()]
    return tuple(sorted(shared, key=lambda each: (name_of(each.resource), each.pods)))


def _file(url: str) -> str:
    return f"{url.rpartition('.')[2]}.json"


def _text(value: object) -> str:
    return f"{json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)}\n"


def _moved(value: Any, before: Nets, after: Nets) -> Any:
    return objects.changed(value, objects.mover(before, after))
