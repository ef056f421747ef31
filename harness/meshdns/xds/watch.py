"""Watches the folder of YAML: each state that has settled is read as a whole, and what cannot be used changes nothing.

Looked at every `PERIOD_S` by stat. A state counts once it is the same at two looks, so that several files that are
written together, or one that is half written, are not taken for a configuration: a change is in force after 0.2 to
0.4 s and the time to read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from meshdns.core import errors
from meshdns.istio import reader
from meshdns.istio.resources import Resources

PERIOD_S = 0.2
State = tuple[tuple[str, int, int, int], ...]  # path, change of content, size, inode


class Folder:
    """One folder; `loaded` gets each good state, `failed` what is wrong with one that is not."""

    def __init__(self, path: Path, loaded: Callable[[Resources], None], failed: Callable[[str], None]) -> None:
        self._path, self._loaded, self._failed = path, loaded, failed

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Watch until cancelled."""
        read: State | None = None
        before: State | None = None
        while True:
            now = self.state()
            if now != read and (now == before or read is None):
                await self._read()
                read = now
            before = now
            await asyncio.sleep(period_s)

    async def _read(self) -> None:
        try:
            found = await asyncio.to_thread(reader.read, [self._path])
        except errors.MeshdnsError as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001  a fault of ours must not take what is in force away
            self._failed(f"{self._path}: {type(error).__name__}: {error}; please report it")
        else:
            self._loaded(found)

    def state(self) -> State:
        """What stat says of every YAML file; empty where there is none."""
        found = []
        for path in sorted(self._path.rglob("*")):
            if path.suffix in reader.SUFFIXES:
                try:
                    stat = path.stat()
                except OSError:  # gone between the two, or a link to nothing: the next look tells
                    continue
                found.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)
