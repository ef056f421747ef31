"""Files the containers mount, and the Compose file, rendered for this machine's networks."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Collection

import yaml

from meshdns.core.world import Nets, World
from meshdns.lab import names, newkeys, parts
from meshdns.lab.compose import containers
from meshdns.lab.parts.component import Secrets


def new_secrets(*, live: bool = False) -> Secrets:
    """Fresh ones; dnsdist wants 32 bytes in base64 for its console."""
    console = base64.b64encode(secrets.token_bytes(32)).decode()
    return Secrets(console, secrets.token_urlsafe(18), newkeys.made() if live else {})


def composition(world: World, nets: Nets, groups: Collection[str]) -> str:
    """The Compose file."""
    return yaml.safe_dump(containers.composition(world, nets, groups), sort_keys=False, width=120)


def files(world: World, nets: Nets, keys: Secrets, groups: Collection[str]) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    found = {
        "compose.yaml": composition(world, nets, groups),
        "world.json": json.dumps(world.to_json(), indent=1),
        "conformance.json": json.dumps(dataclasses.asdict(names.conformance_world(world, nets)), indent=1),
    }
    for at in (each for pod in world.pods for each in parts.of(world, nets, pod, keys=keys)):
        found |= at.part.files(at)
    return found
