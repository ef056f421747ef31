"""Istio's agent: the one that the testbed's sidecars are, or of another version."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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
    return _take(_variant(version, announce) if version else _pinned(announce), PLACE, folder)


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

    return _build(announce, f"meshdns/{IMAGE}:istio-{version}", change)


def _build(announce: process.Announce, tag: str, change: Callable[[str, bytes], bytes]) -> str:
    """One image of what `change` makes of each source file; its tag, which must be one of no other image."""
    engine.base_image(announce)
    given = {engine.DOCKERFILE.name: engine.DOCKERFILE.read_bytes(), **engine._recipe().files}
    announce(f"building image: {tag}")
    engine._build({IMAGE: tag}, {path: change(path, content) for path, content in given.items()})
    return tag


def _take(image: str, path: str, folder: Path) -> Path:
    """A file of an image, copied into a folder."""
    container = engine._docker("create", image).strip()
    try:
        engine._docker("cp", f"{container}:{path}", str(folder), timeout_s=300.0)
    finally:
        engine._docker("rm", container)
    return folder / Path(path).name


def stamp(binary: Path) -> str:
    """The version of Istio that it was built of."""
    said = process.run(str(binary), "version", timeout_s=30)
    found = re.search(r'Version:"([^"]+)"', said.out)
    return found[1] if found and found[1] != "unknown" else "unknown version"
