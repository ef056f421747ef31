"""One thread, one epoll: sockets, deadlines and background work take turns, and no handler's fault ends the others."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
FAULT_LINE_S = 1.0  # at most one line per second about handlers that failed
Key = TypeVar("Key", bound=Hashable)
Handler = Callable[[int], None]  # takes the events


class Countdown(Generic[Key]):
    """Deadlines that all lie the same time ahead, so that the oldest is the next; starting one again moves it back."""

    def __init__(self, delay_s: float, expired: Callable[[Key], None]) -> None:
        self.delay_s = delay_s
        self._expired = expired
        self._due: collections.OrderedDict[Key, float] = collections.OrderedDict()

    def start(self, key: Key) -> None:
        """`expired(key)` is called once, in `delay_s` from now."""
        self._due[key] = time.monotonic() + self.delay_s
        self._due.move_to_end(key)

    def stop(self, key: Key) -> None:
        """It is not called."""
        self._due.pop(key, None)

    def next_s(self) -> float | None:
        """When the next one is due, on the monotonic clock."""
        return next(iter(self._due.values()), None)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def first(self) -> Key:
        """The key that is due next."""
        return next(iter(self._due))

    def run(self, now: float) -> None:
        """Calls what is due."""
        while self._due and next(iter(self._due.values())) <= now:
            key, _ = self._due.popitem(last=False)
            self._expired(key)

    def __len__(self) -> int:
        return len(self._due)


class Reactor:
    """Waits for sockets and calls their handlers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._countdowns: list[Countdown[Hashable]] = []
        self._jobs: collections.deque[Iterator[None]] = collections.deque()
        self._stopped = False
        self._next_line = 0.0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, READ, self._woken)

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """`handler(events)` is called whenever the descriptor is ready."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Other events from now on; errors and hang-ups are always reported."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed."""
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)

    def countdown(self, delay_s: float, expired: Callable[[Key], None]) -> Countdown[Key]:
        """A new kind of deadline."""
        one = Countdown(delay_s, expired)
        self._countdowns.append(one)  # type: ignore[arg-type]  # each is only given back its own keys
        return one

    def every(self, period_s: float, action: Callable[[], None]) -> None:
        """Calls the action again and again."""

        def again(_: str) -> None:
            ticks.start("tick")
            action()

        ticks = self.countdown(period_s, again)
        ticks.start("tick")

    def background(self, job: Iterator[None]) -> None:
        """Runs the job to its end, a step between two looks at the sockets."""
        self._jobs.append(job)

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped:
            for fd, events in self._epoll.poll(self._patience_s()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    try:
                        handler(events)
                    except Exception as error:  # noqa: BLE001  one bad packet must not end the service
                        self._fault(error)
            now = time.monotonic()
            for countdown in self._countdowns:
                try:
                    countdown.run(now)
                except Exception as error:  # noqa: BLE001  as above
                    self._fault(error)
            if self._jobs:
                self._step()

    def stop(self) -> None:
        """`run` returns; may be called from a signal handler or another thread."""
        self._stopped = True
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """After `run`; what is still watched belongs to whoever opened it."""
        self.forget(self._wake)
        os.close(self._wake)
        self._epoll.close()

    def _woken(self, _: int) -> None:
        os.eventfd_read(self._wake)

    def _patience_s(self) -> float:
        if self._jobs or self._stopped:
            return 0
        due = [at for countdown in self._countdowns if (at := countdown.next_s()) is not None]
        return max(0.0, min(due) - time.monotonic()) if due else -1

    def _step(self) -> None:
        job = self._jobs.popleft()
        try:
            next(job)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  as above
            self._fault(error)
            return
        self._jobs.append(job)

    def _fault(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + FAULT_LINE_S
            place = error.__traceback__
            while place and place.tb_next:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
            print(
                f"dns-proxy: {type(error).__name__}: {error} ({where}); please report it", file=sys.stderr, flush=True
            )
