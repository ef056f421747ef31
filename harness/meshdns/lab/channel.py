"""A conversation with a program in a service: one JSON line each way, and bytes behind a line that announces them.

How the lines travel is the place's. The program ends when its standard input does, so whatever ends this process also
ends the load.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol, Self

from meshdns.core import errors


class Line(Protocol):
    """The program's standard input and output, and what it says beside them."""

    def write(self, data: bytes) -> None:
        """The program's input holds these as well. Raises OSError."""

    def read(self, timeout_s: float) -> bytes:
        """What it has printed since, as soon as there is some; nothing once it has ended. Raises OSError."""

    def close(self) -> str:
        """Its input ends, and so does the program; what it said on standard error."""


class Channel:
    """One running program; not shared between threads."""

    def __init__(self, line: Line, place: str) -> None:
        """`place` is how messages name it."""
        self._line, self._place, self._buffer = line, place, b""

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer to one request, and the bytes its `nbytes` announces. Raises TestbedError."""
        self.send(request)
        return self.receive(timeout_s)

    def send(self, request: Mapping[str, Any]) -> None:
        """The program has the request; `receive` must follow. Raises TestbedError."""
        try:
            self._line.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise self._ended() from None

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer to the request that was sent. Raises TestbedError."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._buffer += self._read(deadline)
        line, _, rest = self._buffer.partition(b"\n")
        header = json.loads(line)
        if "error" in header:
            self._buffer = rest
            raise errors.TestbedError(str(header["error"]), place=self._place, step="see `meshdns logs`")
        size, chunks, found = int(header.get("nbytes", 0)), [rest], len(rest)
        while found < size:
            chunks.append(self._read(deadline))
            found += len(chunks[-1])
        body = b"".join(chunks)
        self._buffer = body[size:]
        return header, body[:size]

    def _read(self, deadline: float) -> bytes:
        try:
            chunk = self._line.read(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise errors.TestbedError("no answer in time", place=self._place, step="see `meshdns status`") from None
        except OSError:
            raise self._ended() from None
        if not chunk:
            raise self._ended()
        return chunk

    def _ended(self) -> errors.TestbedError:
        with contextlib.suppress(OSError):
            if said := self._line.close().strip().splitlines():
                fact = f"the program in the container ended ({said[-1]})"
                return errors.TestbedError(fact, place=self._place, step="see `meshdns status`")
        return errors.TestbedError("the program in the container ended", place=self._place, step="see `meshdns status`")

    def close(self) -> None:
        """The program ends with its input."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
