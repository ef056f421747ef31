"""Writes the name table where DNS proxies look for it: one folder per proxy, the file replaced whole.

One text serves them all: what differs between proxies (whose short names are theirs) they derive themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meshdns.core import errors
from meshdns.istio import nametable

FILE = "names.json"


def text(table: Mapping[str, nametable.Name]) -> bytes:
    """The table as proxies read it."""
    return json.dumps(nametable.to_json(table), separators=(",", ":")).encode()


class NameFiles:
    """What each folder holds."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._held: dict[Path, bytes] = dict.fromkeys(folders, b"")
        self._errors: dict[Path, str] = {}
        self.writes = 0

    def write(self, data: bytes) -> None:
        """Every folder holds it; one that cannot be written is named in the status and hinders no other."""
        for folder, held in self._held.items():
            if held == data and folder not in self._errors:
                continue
            try:
                _replace(folder / FILE, data)
            except OSError as error:
                self._errors[folder] = str(
                    errors.StorageError(f"the name table cannot be written: {error.strerror}", place=str(folder),
                                        step="make the folder writable; the proxy keeps its last table")
                )  # fmt: skip
            else:
                self._errors.pop(folder, None)
                self._held[folder] = data
                self.writes += 1

    def errors(self) -> list[str]:
        """What could not be written."""
        return list(self._errors.values())

    def to_json(self) -> Mapping[str, Any]:
        """For people."""
        return {
            str(folder): {"bytes": len(held), "error": self._errors.get(folder, "")}
            for folder, held in self._held.items()
        }


def _replace(path: Path, data: bytes) -> None:
    """Under another name first: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  a descriptor, which Path cannot open
            file.write(data)
        os.chmod(temporary, 0o644)  # noqa: PTH101  the proxy runs as another user
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
