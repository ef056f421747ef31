"""The engine by its SDK: the client, its refusals as errors of ours, and programs that are run in containers."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import docker
import docker.errors

from meshdns.core import errors
from meshdns.lab.compose import engine

# What the SDK raises: its own errors and, where the engine is gone, those of requests (which are OSErrors).
ERRORS = (docker.errors.DockerException, OSError)
_STDERR = 2  # stream in a frame's header; Engine API, "Attach to a container", stream format
_HEADER = 8
_CHUNK = 1 << 18
_SAID = 4096  # bytes of what a program says on standard error that are kept: its last words
_GRACE_S = 2.0


def client() -> docker.DockerClient:
    """The engine's API. Raises EnvironmentProblem."""
    try:
        # The SDK itself knows DOCKER_HOST and no contexts; certificates are found by the environment.
        return docker.from_env(timeout=60, environment=os.environ | {"DOCKER_HOST": engine.endpoint()})
    except docker.errors.DockerException as error:
        raise errors.EnvironmentProblem(
            f"the container engine does not answer ({error})", step="run `meshdns doctor`"
        ) from None


@contextlib.contextmanager
def asked(place: str = "container engine", fact: str = "it refused") -> Iterator[None]:
    """What the SDK raises becomes a TestbedError: `fact` where the engine said no, else that it is gone."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise errors.TestbedError(str(error.explanation or error), place=place, step="see `meshdns status`") from None
    except docker.errors.APIError as error:
        raise errors.TestbedError(
            f"{fact} ({error.explanation or error})", place=place, step="see `meshdns status`"
        ) from None
    except ERRORS as error:
        raise errors.TestbedError(
            f"it stopped answering ({error})", place="container engine", step=f"start it and {errors.AGAIN}"
        ) from None


class Program:
    """A program that was started in a container, over a socket of its own to the engine (`channel.Line`)."""

    def __init__(
        self,
        api: docker.APIClient,
        container: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        keeping: Callable[[], contextlib.ExitStack] = contextlib.ExitStack,
    ) -> None:
        """Starts it; what is in the stack of `keeping` stays as long as it. Raises what the SDK raises."""
        self._api, self._frames, self._said, self._closed = api, bytearray(), b"", False
        self._id = api.exec_create(container, list(argv), stdin=True, environment=dict(env or {}))["Id"]
        stream: Any = api.exec_start(self._id, socket=True)
        self._response = stream._response  # closes the connection when it is collected
        self._socket: socket.socket = getattr(stream, "_sock", stream)
        # The SDK has read the answer's head through a buffer, where the program's first words may be already.
        self._socket.settimeout(0)
        self._frames += self._response.raw._fp.fp.peek()
        self._kept = keeping()

    def write(self, data: bytes) -> None:
        self._socket.settimeout(_GRACE_S * 10)
        self._socket.sendall(data)

    def read(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while not (found := self._unframed()):
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                break
            self._frames += chunk
        return found

    def _unframed(self) -> bytes:
        """Standard output out of the frames that have come whole; standard error is put aside."""
        found, at, frames = list[bytes](), 0, self._frames
        while len(frames) - at >= _HEADER:
            end = at + _HEADER + int.from_bytes(frames[at + 4 : at + _HEADER], "big")
            if end > len(frames):
                break
            payload = bytes(frames[at + _HEADER : end])
            if frames[at] == _STDERR:
                self._said = (self._said + payload)[-_SAID:]
            else:
                found.append(payload)
            at = end
        del frames[:at]
        return b"".join(found)

    def end_input(self) -> None:
        """The program's standard input ends; what it prints can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def code(self) -> int:
        """Exit code of a program that has ended. Raises what the SDK raises."""
        return int(self._api.exec_inspect(self._id)["ExitCode"] or 0)

    def close(self) -> str:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                self.end_input()
                deadline = time.monotonic() + _GRACE_S
                while self.read(deadline - time.monotonic()):  # until it has ended
                    pass
            self._socket.close()
            self._response.close()
            self._kept.close()
        return self._said.decode(errors="replace")


def run(program: Program, place: str, what: str, timeout_s: float, given: str = "") -> str:
    """What a program prints until it ends well. Raises TestbedError, and what the SDK raises."""
    deadline, printed = time.monotonic() + timeout_s, b""
    try:
        if given:
            program.write(given.encode())
        program.end_input()
        while chunk := program.read(deadline - time.monotonic()):
            printed += chunk
    except TimeoutError:
        raise errors.TestbedError(f"{what} did not end in {timeout_s:g} s", place=place) from None
    finally:
        said = program.close()
    if code := program.code():
        words = (said or printed.decode(errors="replace")).strip().splitlines()
        fact = f"{what} failed ({words[-1] if words else f'exit code {code}'})"
        raise errors.TestbedError(fact, place=place, step="see `meshdns status`")
    return printed.decode(errors="replace")
