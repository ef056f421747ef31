"""A conversation with a program inside a container: `docker exec -i`, one JSON line each way.

The program ends when its standard input does, so whatever ends this process also ends the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from meshdns.core import errors

_CHUNK = 1 << 16


class Channel:
    """One running program; not shared between threads."""

    def __init__(self, container: str, argv: list[str], env: Mapping[str, str] | None = None) -> None:
        """Starts the program; `container` is also how messages name the place."""
        options = [f"--env={key}={value}" for key, value in (env or {}).items()]
        self.container = container
        self._buffer = b""
        # A session of its own: Ctrl-C reaches us, and we end the program by closing its input.
        self._process = subprocess.Popen(
            ["docker", "exec", "-i", *options, container, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer to one request, and the bytes its `nbytes` announces. Raises TestbedError."""
        self.send(request)
        return self.receive(timeout_s)

    def send(self, request: Mapping[str, Any]) -> None:
        """The program has the request; `receive` must follow. Raises TestbedError."""
        assert self._process.stdin is not None  # noqa: S101  asked for above
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._ended() from None

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer to the request that was sent. Raises TestbedError."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._receive(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        header = json.loads(line)
        if "error" in header:
            raise errors.TestbedError(str(header["error"]), place=self.container, step="see `meshdns logs`")
        size = int(header.get("nbytes", 0))
        while len(self._buffer) < size:
            self._receive(deadline)
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return header, body

    def _receive(self, deadline: float) -> None:
        assert self._process.stdout is not None  # noqa: S101  asked for above
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise errors.TestbedError("no answer in time", place=self.container, step="see `meshdns status`")
        chunk = os.read(self._process.stdout.fileno(), _CHUNK)
        if not chunk:
            raise self._ended()
        self._buffer += chunk

    def _ended(self) -> errors.TestbedError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, said = self._process.communicate(timeout=2)
            lines = said.decode(errors="replace").strip().splitlines()
            fact = "the program in the container ended" + (f" ({lines[-1]})" if lines else "")
            return errors.TestbedError(fact, place=self.container, step="see `meshdns status`")
        return errors.TestbedError("the connection to the container broke", place=self.container)

    def close(self) -> None:
        """The program ends with its input; what does not end is killed."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
