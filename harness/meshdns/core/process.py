"""Other programs, run to their end.

Every program meshdns starts on the host goes through `run` or `run_all`: with a deadline, in a process group of its
own, and gone when the function is left, also by Ctrl-C. What the programs say is returned, never printed. The one that
shall stay, the container engine, is started by `detach`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

Announce = Callable[[str], None]  # says a line to the person who waits
_POLL_S = 0.005  # short beside the fastest program we run (13 ms)
_GRACE_S = 3.0  # Compose and apt put things right on TERM; a program that takes longer is killed


@dataclass(frozen=True)
class Command:
    """What to run, and how long it may take."""

    argv: tuple[str, ...]
    timeout_s: float
    hush_s: float | None = None  # give up when nothing was said by then: a registry that does not answer
    env: Mapping[str, str] = field(default_factory=dict)  # added to ours
    cwd: Path | None = None
    log: Path | None = None  # keeps the output, both streams together


@dataclass(frozen=True)
class Finished:
    """How it went."""

    argv: tuple[str, ...]
    code: int  # 127: no such program; 124: out of time; as in the shell
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """It returned 0."""
        return self.code == 0

    def last_lines(self, count: int) -> str:
        """The end of what it said, where the reason usually stands."""
        lines = [line for line in f"{self.out}\n{self.err}".splitlines() if line.strip()]
        return "\n".join(lines[-count:])


def run(*argv: str, timeout_s: float, hush_s: float | None = None, env: Mapping[str, str] | None = None) -> Finished:
    """One program has ended."""
    return run_all([Command(argv, timeout_s, hush_s, env or {})])[0]


def run_all(commands: Sequence[Command], at_once: int = 1) -> list[Finished]:
    """All have ended, at most `at_once` of them side by side; results in the order of `commands`."""
    waiting = list(enumerate(commands))[::-1]
    running: dict[int, _Running] = {}
    finished: dict[int, Finished] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, command = waiting.pop()
                running[index] = _Running(command)
            for index in [i for i, program in running.items() if program.over()]:
                finished[index] = running.pop(index).result()
            if running:
                time.sleep(_POLL_S)
    finally:
        for program in running.values():
            program.stop()
    return [finished[index] for index in range(len(commands))]


def detach(argv: Sequence[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A program that outlives us, adding what it says to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **env},
            cwd="/",
            start_new_session=True,  # Ctrl-C and the terminal's end are not for it
        )


class _Running:
    """A program between its start and its end."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._started = time.monotonic()
        self._code = 0
        # Files, not pipes: a program that says much never waits for us. result() closes them.
        self._out: IO[bytes] = command.log.open("w+b") if command.log else tempfile.TemporaryFile()  # noqa: SIM115
        self._err: IO[bytes] = self._out if command.log else tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                env={**os.environ, **command.env},
                cwd=command.cwd,
                start_new_session=True,  # so that stop() reaches its children, and Ctrl-C reaches us first
            )
        except OSError as problem:
            self._err.write(f"{command.argv[0]}: {problem.strerror}\n".encode())
            self._code = 127

    def over(self) -> bool:
        if self._process is None:
            return True
        code = self._process.poll()
        if code is not None:
            self._code = code
            return True
        elapsed = time.monotonic() - self._started
        hush_s = self._command.hush_s
        silent = hush_s is not None and elapsed > hush_s and os.fstat(self._out.fileno()).st_size == 0
        if silent or elapsed > self._command.timeout_s:
            self.stop()
            self._err.write(f"\n{self._command.argv[0]}: stopped after {elapsed:.0f} s\n".encode())
            self._code = 124
            return True
        return False

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
                return

    def result(self) -> Finished:
        texts = []
        for stream in dict.fromkeys((self._out, self._err)):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        return Finished(self._command.argv, self._code, texts[0], texts[1] if len(texts) > 1 else "")
