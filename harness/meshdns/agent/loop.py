"""Starts requests when they are due and wakes them when their sockets speak: one thread, one epoll, nothing else.

Open loop: a request is due at its instant whatever became of the earlier ones; only the cap on requests in flight can
hold it back, and then its due time stays, so the wait is seen. Closed loop: as many workers as asked, due is start.
"""

from __future__ import annotations

import gc
import select
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .exchange import Exchange, Flight, PhaseError, now
from .job import Job

COLUMNS = (
    ("due_ns", "q"), ("start_ns", "q"), ("dns_ns", "q"), ("connect_ns", "q"), ("tls_ns", "q"), ("first_byte_ns", "q"),
    ("end_ns", "q"), ("outcome", "i"), ("address", "i"), ("replica", "i"), ("rcode", "i"), ("status", "i"),
    ("queries", "i"), ("bytes", "i"), ("local_port", "i"),
)  # fmt: skip

FAR_NS = 1 << 62  # later than any instant of this boot
LEAD_NS = 5_000_000  # between the decision to start and the first due time: enough to open the first sockets
# The kernel wakes a sleeper up to a millisecond late (epoll counts in whole ones), so spin this long.
SPIN_NS = 1_500_000
# Opening sockets takes some 20 us; this close to the due time it can no longer wait for a quiet moment.
PREPARE_NS = 200_000
STOCK = 8  # Poisson arrivals come in bursts; at 70 % load more than eight within one service time are rarer than 1e-6
GAP_NS = 50_000  # an idle turn of the loop takes 1 us; fifty of them are time that somebody else took
TICK_NS = 1_000_000  # time-outs are looked at this often; they are told in milliseconds
EVENTS = 64  # what one epoll call may return; the default allocates room for a thousand each time
WARMUP_WORKERS = 8  # of an open loop, whose cap may be far above what it needs
NAP_S = 0.05  # a blocking wait looks at the clock at least this often


class HangupError(Exception):
    """The driver went away."""


class Table:
    """The sample columns, allocated before the first request."""

    def __init__(self, rows: int) -> None:
        self.columns = {name: array(code, bytes(array(code).itemsize * rows)) for name, code in COLUMNS}
        self.strings: dict[str, dict[str, int]] = {"outcome": {}, "address": {}, "replica": {}}

    def recorder(self) -> Callable[[Flight], None]:
        """The function that writes a finished request into its row."""
        (due, start, dns, connect, tls, first, end, outcome, address, replica, rcode, status, queries, size, port) = (
            self.columns[name] for name, _ in COLUMNS
        )
        outcomes, addresses, replicas = (self.strings[name] for name in ("outcome", "address", "replica"))

        def record(flight: Flight) -> None:
            row = flight.row
            due[row] = flight.due_ns or flight.start_ns
            start[row] = flight.start_ns
            dns[row] = flight.dns_ns
            connect[row] = flight.connect_ns
            tls[row] = flight.tls_ns
            first[row] = flight.first_byte_ns
            end[row] = flight.end_ns
            outcome[row] = outcomes.setdefault(flight.outcome, len(outcomes))
            address[row] = addresses.setdefault(flight.address, len(addresses))
            replica[row] = replicas.setdefault(flight.replica, len(replicas))
            rcode[row] = flight.rcode
            status[row] = flight.status
            queries[row] = flight.queries
            size[row] = flight.body_bytes
            port[row] = flight.local_port

        return record

    def answer(self, rows: int, facts: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The header and the columns behind it."""
        raw = [self.columns[name][:rows].tobytes() for name, _ in COLUMNS]
        header = {
            "rows": rows,
            "columns": [list(column) for column in COLUMNS],
            "strings": {name: list(values) for name, values in self.strings.items()},
            "nbytes": sum(map(len, raw)),
            "facts": facts,
        }
        return header, raw


class Loop:
    """Drives one series of requests over an exchange; made anew for the warm-up and for the recorded part."""

    def __init__(self, exchange: Exchange, hangup_fd: int, count: int, dues: array[int] | None, workers: int) -> None:
        """Takes what to start and when; `dues` counts from the start of `run`, None is a closed loop."""
        self.exchange = exchange
        self.hangup_fd = hangup_fd
        self.count = count
        self.dues = dues
        self.workers = workers
        self.spin = exchange.job.spin  # waiting burns the processor, for the sake of hearing of an answer at once
        self.record: Callable[[Flight], None] | None = None
        self.row = 0  # the next to start
        self.gaps = self.gap_ns = 0
        self._flights: dict[Flight, None] = {}  # in order of start, so the first is the first to time out
        self._stock: deque[Flight] = deque()  # prepared, and waiting for their due time
        self._depth = STOCK if dues is not None and not exchange.job.keepalive else 0
        self._due_ns = self._t0 = self._stop_ns = 0
        self._worked = False  # this turn did more than look

    def run(self, t0: int) -> int:
        """Makes the requests and returns how many were started before the time limit; all of those have ended."""
        self._t0, self._stop_ns = t0, t0 + self.exchange.job.limit_ns
        self._due_ns = t0 + self.dues[0] if self.dues is not None else 0
        flights, poll, open_loop, spin = self._flights, self.exchange.epoll.poll, self.dues is not None, self.spin
        events: list[tuple[int, int]] = []
        last = tick_ns = 0
        while self.row < self.count or flights:
            t = now()
            if last and t - last > GAP_NS:
                self.gaps += 1
                self.gap_ns += t - last
            self._worked, pause = False, 0.0
            if t >= self._due_ns and (open_loop or not events):  # closed loop: answers are stamped before new starts
                self._begin(t)
            elif not events and (not spin or not flights or len(self._stock) < self._depth):
                pause = self._rest(t)
            events = poll(pause, EVENTS)
            if not events and spin and flights and not self._worked:
                # Nothing else to do: look again and again in the tightest loop, until something is due.
                until_ns = min(self._due_ns or FAR_NS, tick_ns)
                while not events and (seen := now()) < until_ns:
                    if seen - t > GAP_NS:
                        self.gaps += 1
                        self.gap_ns += seen - t
                    t = seen
                    events = poll(0, EVENTS)
            if events:
                self._wake(events, now())
            if t >= tick_ns:
                tick_ns = t + TICK_NS
                self._expire(t)
            last = 0 if self._worked or pause or events else t
        for flight in self._stock:
            self.exchange.discard(flight)
        return self.row

    def _begin(self, t: int) -> None:
        """Starts the request that is due, unless the time limit or the cap forbids it."""
        self._worked = True
        dues = self.dues
        if t >= self._stop_ns:
            self.count, self._due_ns = self.row, FAR_NS
            return
        if len(self._flights) >= self.workers:
            self._worked = False
            if not self.spin:
                self._sleep(next(iter(self._flights)).deadline_ns - t)
            return
        flight = self._stock.popleft() if self._stock else self.exchange.prepare()
        flight.row, flight.due_ns = self.row, self._due_ns
        self.row += 1
        if self.row >= self.count:
            self._due_ns = FAR_NS
        elif dues is not None:
            self._due_ns = self._t0 + dues[self.row]
        elif len(self._flights) + 1 >= self.workers:
            self._due_ns = FAR_NS  # until one ends
        self._launch(flight)

    def _launch(self, flight: Flight) -> None:
        self._flights[flight] = None
        try:
            flight.steps.send(0)
        except StopIteration:
            self._finish(flight)
        flight.deadline_ns = flight.start_ns + self.exchange.job.timeout_ns

    def _rest(self, t: int) -> float:
        """Uses a quiet turn: opens sockets ahead, or sleeps; returns how long epoll may sleep instead."""
        flights, due_ns = self._flights, self._due_ns
        if len(self._stock) < self._depth and self.row + len(self._stock) < self.count:
            if not flights or (not self._stock and due_ns - t < PREPARE_NS):
                self._stock.append(self.exchange.prepare())
                self._worked = True
            return 0.0
        if flights:
            if self.spin:
                return 0.0
            until_ns = next(iter(flights)).deadline_ns
            if self.dues is None:
                return min(max(until_ns - t, 0) * 1e-9, NAP_S)
            self._sleep(min(until_ns, due_ns) - t)
        else:
            self._sleep(due_ns - t - (SPIN_NS if self.spin else 0))
        return 0.0

    def _wake(self, events: list[tuple[int, int]], ready_ns: int) -> None:
        """Hands each event to the request that waits for it, with the time at which the kernel told of it."""
        waiting = self.exchange.waiting
        for fd, _ in events:
            flight = waiting.get(fd)
            if flight is not None:
                try:
                    flight.steps.send(ready_ns)
                except StopIteration:
                    self._finish(flight)
            elif fd == self.hangup_fd:
                raise HangupError
            else:
                self.exchange.drop(fd)

    def _finish(self, flight: Flight) -> None:
        del self._flights[flight]
        if self.record is not None:
            self.record(flight)
        if self.dues is None and self.row < self.count:
            self._due_ns = 0  # a worker is free

    def _expire(self, t: int) -> None:
        """Ends requests whose time is over."""
        while self._flights:
            flight = next(iter(self._flights))
            if flight.deadline_ns > t:
                return
            with suppress(StopIteration):
                flight.steps.throw(PhaseError("timeout"))
            self._finish(flight)

    def _sleep(self, wait_ns: int) -> None:
        """Waits for a socket or the time, to the microsecond: `select` on the epoll, whose own timeout counts in ms."""
        if wait_ns > 0:
            self._worked = True
            select.select([self.exchange.epoll], [], [], min(wait_ns * 1e-9, NAP_S))


def load(job: Job, hangup_fd: int) -> tuple[dict[str, Any], list[bytes]]:
    """Runs one job; returns the header and the columns."""
    dues = job.dues()
    table = Table(job.count)
    with select.epoll() as epoll:
        with suppress(OSError):  # a regular file cannot hang up
            epoll.register(hangup_fd, select.EPOLLRDHUP)
        exchange = Exchange(job, epoll)
        gc.collect()
        gc.disable()
        try:
            if job.warmup:
                workers = job.concurrency if dues is None else min(job.concurrency, WARMUP_WORKERS)
                exchange.to_open = min(workers, job.warmup)
                Loop(exchange, hangup_fd, job.warmup, None, workers).run(now())
            warmup = {"connections_opened": exchange.connections_opened, "queries_sent": exchange.queries_sent}
            exchange.to_open = exchange.connections_opened = exchange.queries_sent = exchange.stray_answers = 0
            loop = Loop(exchange, hangup_fd, job.count, dues, job.concurrency)
            loop.record = table.recorder()
            t0 = now() + (LEAD_NS if dues is not None else 0)
            rows = loop.run(t0)
            wall_ns = now() - t0
        finally:
            gc.enable()
            exchange.close()
    facts = {
        "t0_ns": t0,
        "wall_ns": wall_ns,
        "gaps": loop.gaps,
        "gap_ns": loop.gap_ns,
        "not_started": job.count - rows,
        "connections_opened": exchange.connections_opened,
        "queries_sent": exchange.queries_sent,
        "stray_answers": exchange.stray_answers,
        "warmup": warmup,
    }
    return table.answer(rows, facts)
