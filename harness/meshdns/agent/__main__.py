"""`python3 -m agent`: serves jobs, one JSON line in, one JSON line and raw columns out, until standard input ends."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from . import clock, job, loop

STDIN, STDOUT = 0, 1
HUNG_UP = 130  # how we leave when the driver goes away during a job


def main() -> int:
    """Answers jobs until there are no more."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)  # also as process 1 of a container, where the default would be to ignore it
    with suppress(OSError):  # timers of this process may fire on time instead of 50 us late; absent on odd kernels
        Path("/proc/self/timerslack_ns").write_text("1", encoding="ascii")
    gc.freeze()  # what is there now stays: a collection before each load looks at what the last one left
    for line in sys.stdin.buffer:
        try:
            header, raw = answer(line)
        except loop.HangupError:
            return HUNG_UP
        try:
            _write(json.dumps(header, separators=(",", ":")).encode() + b"\n", *raw)
        except BrokenPipeError:
            return HUNG_UP
    return 0


def answer(line: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header, and the columns if it was a load, for one line of input."""
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise job.JobError("a job must be a JSON object")
        if fields.get("kind") == "ping":
            return {"pong": True}, []
        if fields.get("kind") == "clock":
            return {"clock": clock.judge()}, []
        asked = job.read(fields)
        with _watched() if asked.lookup == "getaddrinfo" else nullcontext():
            return loop.load(asked, STDIN)
    except (ValueError, OSError, MemoryError, RecursionError) as error:  # JobError is a ValueError
        return {"error": f"{error}" or type(error).__name__}, []


@contextmanager
def _watched() -> Iterator[None]:
    """Ends the process on hangup or signal even while the C library keeps the main thread.

    Only for getaddrinfo: a second thread makes every system call of the first a little dearer.
    """
    inner, outer = os.pipe()
    os.set_blocking(outer, False)

    def watch() -> None:
        poll = select.poll()
        poll.register(inner, select.POLLIN)
        poll.register(STDIN, select.POLLRDHUP)
        for fd, mask in poll.poll():
            if fd == STDIN and mask & (select.POLLHUP | select.POLLRDHUP | select.POLLERR):
                os._exit(HUNG_UP)
        number = os.read(inner, 1)[0]
        if number:  # the signal's; 0 is the end of the job
            os._exit(128 + number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(outer, b"\0")
        thread.join()
        os.close(inner)
        os.close(outer)


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _write(*parts: bytes) -> None:
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(STDOUT, view) :]


if __name__ == "__main__":
    sys.exit(main())
