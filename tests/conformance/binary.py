"""Istio's agent: the one that the testbed's sidecars are, or of another version."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meshdns.core import process
from meshdns.lab.compose import engine

GIVEN = "MESHDNS_PILOT_AGENT"  # a path: that binary instead
IMAGE, PLACE = "sidecar", "/usr/local/bin/pilot-agent"
MODULE = "istio.io/istio"


def find(folder: Path, announce: process.Announce, version: str = "") -> Path:
    """The binary, copied out of the image into the folder; of that version if one is named."""
    if given := os.environ.get(GIVEN):
        return Path(given)
    engine.ensure(announce)
    return engine.take(_variant(version, announce) if version else _pinned(announce), PLACE, folder)


def _pinned(announce: process.Announce) -> str:
    return engine.images(announce, [IMAGE])[IMAGE]


def _variant(version: str, announce: process.Announce) -> str:
    """The same recipe with another version of the module; what it needs is then looked up anew."""

    def change(path: str, content: bytes) -> bytes:
        if path.endswith("istio/go.mod"):
            return re.sub(
                rb"(?m)^(require )?(\s*)istio\.io/istio v\S+", rb"\1\2istio.io/istio " + version.encode(), content
            )
        return content.replace(b"-mod=readonly", b"-mod=mod") if path == engine.DOCKERFILE.name else content

    return engine.build_variant(announce, IMAGE, f"meshdns/{IMAGE}:istio-{version}", change)


def stamp(binary: Path) -> str:
    """The version of Istio that it was built of."""
    said = process.run(str(binary), "version", timeout_s=30)
    found = re.search(r'Version:"([^"]+)"', said.out)
    return found[1] if found and found[1] != "unknown" else "unknown version"
