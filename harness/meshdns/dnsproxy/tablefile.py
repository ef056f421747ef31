"""Watches the name table's file and hands over each good state of it; a wrong one is told once and changes nothing.

Looked at every `PERIOD_S`; works with a file renamed over the old one and with one rewritten in place. A table is taken
over as a whole, as by Istio's agent.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import nametable

PERIOD_S = 0.1  # a change is in force 0.1 s later, plus the time to read it
# The kernel stamps files by its tick (10 ms at most): a file this young may change again under the same stamp.
YOUNG_S = 0.02
State = tuple[int, int, int]  # time of the last change, size, inode


class TableFile:
    """One file; `loaded(table)` is called with each new state."""

    def __init__(
        self,
        path: Path,
        scope: nametable.Scope,
        loaded: Callable[[nametable.NameTable], None],
        wrong: Callable[[], None],
    ) -> None:
        self._path, self._scope, self._loaded, self._wrong = path, scope, loaded, wrong
        self._seen: State | None = None  # judged; None: look again
        self._digest = b""
        self._doubt: State | None = None  # wrong when last read; told if it stays so
        self._missing = False
        self._busy = False

    def look(self) -> Iterator[None] | None:
        """The work to do if the file has changed."""
        if self._busy:
            return None
        state = self._state()
        if state is None or state == self._seen:
            return None
        self._busy = True
        return self._load(state)

    def _state(self) -> State | None:
        try:
            found = self._path.stat()
        except OSError as error:
            if not self._missing:
                self._missing = True
                kept = "the last table stays" if self._digest else "SERVFAIL until it is there"
                _say(f"name table {self._path}: {error.strerror}; {kept}")
            self._seen = None
            return None
        self._missing = False
        return found.st_ctime_ns, found.st_size, found.st_ino

    def _load(self, state: State) -> Iterator[None]:
        try:
            data = _read(self._path)
            young = time.time_ns() - state[0] < YOUNG_S * 1e9
            self._seen = None if young else state
            digest = hashlib.blake2b(data).digest()
            if digest == self._digest:
                return
            yield
            table = yield from nametable.read(_text(data), self._scope)
        except (nametable.TableError, OSError) as error:
            self._refuse(state, error)
        else:
            self._digest, self._doubt = digest, None
            self._loaded(table)
            if table.left_out:
                _say(
                    f"name table {self._path}: {len(table.left_out)} hosts or addresses are left out; "
                    f"the first: {table.left_out[0]}"
                )
        finally:
            self._busy = False

    def _refuse(self, state: State, error: Exception) -> None:
        """A file may be half written: it is called wrong when it is the same at the next look."""
        if self._doubt != state:
            self._doubt, self._seen = state, None
            return
        self._seen, self._doubt = state, None
        self._wrong()
        kept = "the last good table stays" if self._digest else "SERVFAIL until it is right"
        _say(f"name table {self._path}: {error}; {kept}")


def _read(path: Path) -> bytes:
    """Its bytes; refuses at once what may never end, a pipe or a device."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise nametable.TableError("not a regular file")
        return file.read()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise nametable.TableError(f"not UTF-8: byte {error.start}") from None


def _say(line: str) -> None:
    print(f"dns-proxy: {line}", file=sys.stderr, flush=True)
