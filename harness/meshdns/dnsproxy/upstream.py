"""Asks the real DNS servers, over the transport the client came by, and believes only the answer to its own question.

What cannot be read is never handed on: that server has failed. A header alone can be read: it is how some servers
refuse. What answers another question is passed over where it may be forged, by UDP.

Each attempt has a socket of its own: the kernel picks a random port, passes on only what comes from the server's
address and reports its ICMP errors. After Istio's agent: servers shuffled, the next one on a transport error; or all at
once. A question that comes back to the proxy is known by the socket it left by and by its bytes: the server's address
does not tell, where rules of the kernel lead elsewhere.
"""

from __future__ import annotations

import enum
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from . import wire
from .reactor import READ, Countdown, Reactor
from .stream import Stream, endpoint

if TYPE_CHECKING:
    from .metrics import Metrics  # which asks for options, and these for what is said of answers from here

LATE_S = 2.0  # longer than a datagram waits to be read
Done = Callable[[bytes | None], None]


class Verdict(enum.Enum):
    """What came from a server."""

    ANSWER = enum.auto()
    OTHER = enum.auto()  # to another question, or from somebody who guesses
    BROKEN = enum.auto()


class Server(NamedTuple):
    """An address as sockets take it."""

    family: socket.AddressFamily
    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def judge(message_id: bytes, question: bytes, answer: bytes) -> Verdict:
    """Whether a message is the answer to the question that was asked under that id."""
    if len(answer) < wire.HEADER:
        return Verdict.BROKEN
    if answer[:2] != message_id or not answer[2] & 0x80:
        return Verdict.OTHER
    try:
        wire.check(answer)
    except wire.MalformedError:
        return Verdict.BROKEN
    return Verdict.ANSWER if len(answer) == wire.HEADER or _echoes(answer, question) else Verdict.OTHER


def _echoes(answer: bytes, question: bytes) -> bool:
    echoed = answer[wire.HEADER : wire.HEADER + len(question)]
    return answer[4:6] != b"\0\0" and echoed[-4:] == question[-4:] and echoed[:-4].lower() == question[:-4].lower()


Way = tuple[bool, str, int, bytes]  # whether by TCP, the address and port that a question leaves by, and its id


class Forwarder:
    """Questions under way; at most `most` attempts at a time, beyond that a question fails at once."""

    def __init__(
        self, reactor: Reactor, servers: list[Server], timeout_s: float, most: int, metrics: Metrics, *, parallel: bool
    ) -> None:
        self.reactor, self.most, self.metrics = reactor, most, metrics
        self._servers, self._parallel = servers, parallel
        self.deadlines: Countdown[Attempt] = reactor.countdown(timeout_s, Attempt.fail)
        self.attempts: set[Attempt] = set()
        self.ways: dict[Way, Attempt] = {}
        self._left: Countdown[Way] = reactor.countdown(LATE_S, self._forget)
        self._loops: set[Server] = set()

    def came_back(self, message: bytes, tcp: bool, client: tuple[Any, ...]) -> bool:
        """Whether this is one of our own questions; the server that it was for has then failed."""
        attempt = self.ways.get((tcp, *client[:2], message[:2])) if self.ways else None
        if attempt is None or attempt.message != message:
            return False
        if attempt.server not in self._loops:
            self._loops.add(attempt.server)
            line = f"dns-proxy: the server {attempt.server} leads back to this proxy; name the real DNS server"
            print(line, file=sys.stderr, flush=True)
        attempt.fail()
        return True

    def leave(self, way: Way) -> None:
        """Nobody waits for an answer any more; but if there was none, the question may still wait at our own door."""
        if way in self.ways:
            self._left.start(way)
            if len(self._left) > self.most:
                self._forget(self._left.first())

    def _forget(self, way: Way) -> None:
        self._left.stop(way)
        self.ways.pop(way, None)

    def ask(self, query: wire.Query, tcp: bool, done: Done) -> None:
        """`done` is called once, with the answer under the client's id, or with None if every server failed."""
        servers = random.sample(self._servers, len(self._servers))
        Question(self, query, tcp, servers, done).start(len(servers) if self._parallel else 1)

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for attempt in list(self.attempts):
            attempt.close()


class Question:
    """One query and the servers that were not asked yet."""

    def __init__(self, forwarder: Forwarder, query: wire.Query, tcp: bool, servers: list[Server], done: Done) -> None:
        self.query = query
        self._forwarder, self._tcp, self._left, self._done = forwarder, tcp, servers, done
        self._attempts: set[Attempt] = set()
        self._begin_s = time.monotonic()
        self._over = False

    def start(self, at_once: int) -> None:
        """Asks so many of the servers."""
        self._forwarder.metrics.upstream_requests += 1
        for _ in range(at_once):
            self._next()
        self._settle()

    def answered(self, attempt: Attempt, answer: bytes) -> None:
        """The first answer is the answer, whatever its rcode."""
        self._attempts.discard(attempt)
        self._finish(self.query.message[:2] + answer[2:])

    def failed(self, attempt: Attempt) -> None:
        """This server did not answer; the next one may."""
        self._attempts.discard(attempt)
        if not self._over:
            if not self._attempts:
                self._next()
            self._settle()

    def _next(self) -> None:
        """Opens an attempt with the next server that can be reached at all."""
        while self._left and not self._over and len(self._forwarder.attempts) < self._forwarder.most:
            server = self._left.pop()
            try:
                self._attempts.add((TcpAttempt if self._tcp else UdpAttempt)(self._forwarder, self, server))
            except OSError:  # no route, no descriptor
                continue
            return

    def _settle(self) -> None:
        if not self._over and not self._attempts:
            self._forwarder.metrics.upstream_failures += 1
            self._finish(None)

    def _finish(self, answer: bytes | None) -> None:
        if self._over:
            return
        self._over = True
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()
        self._forwarder.metrics.took(time.monotonic() - self._begin_s)
        self._done(answer)


class Attempt:
    """One question to one server: under an id of its own, with a deadline."""

    def __init__(self, forwarder: Forwarder, question: Question, server: Server) -> None:
        self.server = server
        self._forwarder, self._question = forwarder, question
        self._id = os.urandom(2)
        self._way: Way = (False, "", 0, b"")

    def begin(self, sock: socket.socket, *, tcp: bool) -> None:
        """Counted from now on."""
        self._way = (tcp, *sock.getsockname()[:2], self._id)
        self._forwarder.ways[self._way] = self
        self._forwarder.attempts.add(self)
        self._forwarder.deadlines.start(self)

    @property
    def message(self) -> bytes:
        """The client's query under the attempt's id."""
        return self._id + self._question.query.message[2:]

    def judge(self, answer: bytes) -> Verdict:
        """Whether this is the answer to our question and to no other."""
        return judge(self._id, self._question.query.question, answer)

    def accept(self, answer: bytes) -> None:
        """This is it."""
        self._forwarder.ways.pop(self._way, None)
        self.close()
        self._question.answered(self, answer)

    def fail(self) -> None:
        """The server did not answer in time or not at all."""
        self.close()
        self._question.failed(self)

    def close(self) -> None:
        """Free of descriptors; no more events."""
        self._forwarder.attempts.discard(self)
        self._forwarder.leave(self._way)
        self._forwarder.deadlines.stop(self)


class UdpAttempt(Attempt):
    """By one datagram; forged ones are passed over until the deadline."""

    def __init__(self, forwarder: Forwarder, question: Question, server: Server) -> None:
        super().__init__(forwarder, question, server)
        self._socket = socket.socket(server.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(endpoint(server.address, server.port))
            self._socket.send(self.message)
        except OSError:
            self._socket.close()
            raise
        forwarder.reactor.watch(self._socket.fileno(), READ, self._ready)
        self.begin(self._socket, tcp=False)

    def _ready(self, _: int) -> None:
        try:
            answer = self._socket.recv(wire.MOST_TCP)
        except BlockingIOError:
            return
        except OSError:  # ICMP: nobody listens there
            self.fail()
            return
        verdict = self.judge(answer)
        if verdict is Verdict.OTHER:
            return
        # As in Istio: what the client cannot take is an error.
        if verdict is Verdict.BROKEN or len(answer) > self._question.query.udp_size:
            self.fail()
            return
        self.accept(answer)

    def close(self) -> None:
        """Free of descriptors; no more events."""
        super().close()
        if self._socket.fileno() >= 0:
            self._forwarder.reactor.forget(self._socket.fileno())
            self._socket.close()


class TcpAttempt(Attempt):
    """By one connection for one question."""

    def __init__(self, forwarder: Forwarder, question: Question, server: Server) -> None:
        super().__init__(forwarder, question, server)
        sock = socket.socket(server.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(endpoint(server.address, server.port))
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        self._stream = Stream(forwarder.reactor, sock, self._received, self._closed, connecting=True)
        self.begin(sock, tcp=True)
        self._stream.write(len(self.message).to_bytes(2, "big") + self.message)

    def _received(self, stream: Stream) -> None:
        answer = stream.message()
        if answer is None:
            if stream.ended:
                stream.close()
        elif self.judge(answer) is Verdict.ANSWER:
            self.accept(answer)
        else:  # nobody forges what comes over a connection
            self.fail()

    def _closed(self, _: Stream) -> None:
        if self in self._forwarder.attempts:  # not by us
            self.fail()

    def close(self) -> None:
        """Free of descriptors; no more events."""
        super().close()
        self._stream.close()
