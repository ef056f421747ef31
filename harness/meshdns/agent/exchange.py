"""Carries one request through its phases, as a generator that yields whenever it must wait for its socket.

A phase ends with the clock read right after the system call that told of its end, so an answer counts as here when its
socket is ready; whatever can be done before the due time (sockets, the first query) is done before, and whatever can
wait (reading, parsing, ports, closing) is done after the stamp.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import Final

from . import dnswire, httpwire
from .job import Job, Tcp

Steps = Generator[None, int, None]

now: Final = time.monotonic_ns
EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
DATAGRAM = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
MAX_DATAGRAM = 4096  # the largest EDNS size in common use
RECEIVE = 65536  # under malloc's mmap threshold, so a receive does not fault new pages in
# getaddrinfo tells less than DNS: EAI_NONAME, EAI_AGAIN, EAI_FAIL and EAI_NODATA as the nearest return code
GAI_RCODES = {-2: 3, -3: 2, -4: 2, -5: 0}


class PhaseError(Exception):
    """The request ends here; the text is a word of the outcome column."""


class Line:
    """A TCP connection, with its TLS when it has one."""

    __slots__ = ("address", "fd", "incoming", "local_port", "outgoing", "registered", "sock", "tls")

    def __init__(self, sock: socket.socket) -> None:
        """Takes a socket that is not connected yet."""
        self.sock = sock
        self.fd = sock.fileno()
        self.registered = False
        self.address = ""
        self.local_port = 0
        self.tls: ssl.SSLObject | None = None
        self.incoming = self.outgoing = None  # type: ssl.MemoryBIO | None

    def wrap(self, context: ssl.SSLContext, server_name: str | None) -> None:
        """Gives the line a TLS state of its own; costs tens of microseconds, so it is done before the due time."""
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_name or None)


class Flight:
    """One request under way: its instants and what it learnt."""

    __slots__ = (
        "address", "body_bytes", "connect_ns", "deadline_ns", "dns_ns", "due_ns", "encoded", "end_ns", "first_byte_ns",
        "line", "local_port", "outcome", "queries", "rcode", "replica", "row", "start_ns", "status", "steps",
        "tls_ns", "udp",
    )  # fmt: skip

    def __init__(self) -> None:
        self.row = self.due_ns = self.deadline_ns = self.local_port = self.status = self.queries = self.body_bytes = 0
        self.start_ns = self.dns_ns = self.connect_ns = self.tls_ns = self.first_byte_ns = self.end_ns = 0
        self.rcode = -1
        self.address = self.replica = ""
        self.outcome = "ok"
        self.encoded: tuple[int, list[bytes]] = (0, [])
        self.udp: socket.socket | None = None
        self.line: Line | None = None
        self.steps: Steps

    def fill(self, moment: int = 0) -> None:
        """Gives phases that did not happen zero length, or ends them at the moment of a failure."""
        self.dns_ns = self.dns_ns or moment or self.start_ns
        self.connect_ns = self.connect_ns or moment or self.dns_ns
        self.tls_ns = self.tls_ns or moment or self.connect_ns
        self.first_byte_ns = self.first_byte_ns or moment or self.tls_ns
        self.end_ns = moment or self.end_ns or self.first_byte_ns

    def fail(self, outcome: str) -> None:
        """Ends the request now: the instants from the failing phase on are this moment."""
        moment = now()
        self.outcome = outcome
        self.start_ns = self.start_ns or moment
        self.fill(moment)


class Exchange:
    """How requests of one job are made: addresses, open connections, and who waits for which descriptor."""

    def __init__(self, job: Job, epoll: select.epoll) -> None:
        self.job = job
        self.epoll = epoll
        self.context = job.tls.context() if job.tls else None
        self.server_name = job.tls.server_name if job.tls else None
        self.waiting: dict[int, Flight] = {}
        self.idle: dict[int, Line] = {}  # kept connections, longest idle first, so that each carries its share
        self.spent: deque[socket.socket] = deque()
        self.kept: list[socket.socket] = []  # sockets of earlier lookups, where lookups share theirs
        self.payload = job.tcp.payload if job.tcp else job.request
        self.query_id = int.from_bytes(os.urandom(2), "big")
        self.to_open = 0  # connections that the warm-up still has to open before it uses one again
        self.connections_opened = self.queries_sent = self.stray_answers = 0

    def prepare(self) -> Flight:
        """A request that has its sockets and waits for its due time; `send(0)` to its steps starts it."""
        flight = Flight()
        flight.steps = self._journey(flight)
        next(flight.steps)
        return flight

    def discard(self, flight: Flight) -> None:
        """Lets go of a prepared request that will not be started."""
        flight.steps.close()
        if flight.udp is not None:
            flight.udp.close()
        if flight.line is not None:
            flight.line.sock.close()

    def close(self) -> None:
        """Closes what the job left open."""
        for sock in (*(line.sock for line in self.idle.values()), *self.spent, *self.kept):
            sock.close()

    def drop(self, fd: int) -> None:
        """Forgets a kept connection that the server closed."""
        line = self.idle.pop(fd, None)
        if line is None:
            with suppress(OSError):  # closed meanwhile
                self.epoll.unregister(fd)
        else:
            line.sock.close()

    def _journey(self, flight: Flight) -> Steps:
        job = self.job
        lacking: OSError | None = None
        if not self._reusable():
            try:
                self._sockets(flight)
            except OSError as error:  # descriptors or a route are missing; told when the request is due
                lacking = error
        yield  # until the due time
        try:
            if lacking is not None:
                raise lacking
            if flight.line is None and flight.udp is None and not self._reuse(flight):
                self._sockets(flight)  # the kept connection went away in between
            yield from self._phases(flight)
            flight.fill()
        except PhaseError as failure:
            flight.fail(str(failure))
        except OSError:
            flight.fail("connect_error" if flight.dns_ns or job.lookup == "none" else "dns_error")
        self._leave(flight)

    def _phases(self, flight: Flight) -> Steps:
        job, line = self.job, flight.line
        if line is not None and line.registered:  # a kept connection
            flight.start_ns = now()
            yield from self._request(flight, line)
            return
        if job.lookup == "wire":
            yield from self._lookup(flight)
        elif job.lookup == "getaddrinfo":
            self._getaddrinfo(flight)
        else:
            flight.start_ns = flight.dns_ns = now()
            flight.address = job.address
        if job.kind == "lookup":
            return
        if not flight.address:
            raise PhaseError("dns_error")
        line = yield from self._connect(flight)
        if line.tls is not None:
            yield from self._handshake(flight, line, line.tls)
        yield from self._request(flight, line)

    # before and after the timed path

    def _sockets(self, flight: Flight) -> None:
        """Opens what the request will need; addresses of the other family are rare and get their socket when known."""
        job = self.job
        while len(self.spent) > job.concurrency:  # closed this late so that a server that closes first keeps TIME_WAIT
            self.spent.popleft().close()
        if job.lookup == "wire":
            flight.udp = self.kept.pop() if self.kept else self._datagram()
            flight.encoded = self._encode(job.wire[0])
        if job.kind == "request":
            known = job.address if job.lookup == "none" else ""
            flight.line = self._line(_family(known))
            self.to_open -= 1

    def _datagram(self) -> socket.socket:
        udp = socket.socket(_family(self.job.resolver[0]), DATAGRAM)
        udp.connect(self.job.resolver)
        return udp

    def _line(self, family: int) -> Line:
        sock = socket.socket(family, STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = Line(sock)
        if self.context is not None:
            line.wrap(self.context, self.server_name)
        return line

    def _reusable(self) -> bool:
        return self.job.keepalive and self.to_open <= 0 and bool(self.idle)

    def _reuse(self, flight: Flight) -> bool:
        if not self._reusable():
            return False
        line = flight.line = self.idle.pop(next(iter(self.idle)))
        flight.address, flight.local_port = line.address, line.local_port
        return True

    def _leave(self, flight: Flight) -> None:
        """Notes the ports and lets go of the sockets; a connection that may be kept waits for the next request."""
        if flight.udp is not None:
            self.waiting.pop(flight.udp.fileno(), None)
            if self.job.kind == "lookup":
                flight.local_port = flight.udp.getsockname()[1]
            self._put_away(flight.udp, flight.outcome == "ok")
            flight.udp = None
        line = flight.line
        if line is None:
            return
        self.waiting.pop(line.fd, None)
        if not flight.local_port and flight.connect_ns and line.registered:
            flight.local_port = line.local_port = line.sock.getsockname()[1]
        if line.registered and flight.outcome == "ok" and self.job.keepalive and line.address:
            self.idle[line.fd] = line
        elif flight.outcome == "ok":
            self.epoll.unregister(line.fd)
            self.spent.append(line.sock)
        else:
            line.sock.close()

    def _put_away(self, udp: socket.socket, good: bool) -> None:
        """Keeps the socket of a lookup for the next one if the job says so; a failed one may still get its answer."""
        if good and self.job.keepalive and self.job.kind == "lookup":
            self.epoll.unregister(udp.fileno())
            self.kept.append(udp)
        else:
            udp.close()

    # the phases

    def _lookup(self, flight: Flight) -> Steps:
        """Asks for each candidate in turn until one has an address; ends with the clock read after the last answer."""
        udp = flight.udp
        assert udp is not None  # noqa: S101 - opened by _sockets for every wire lookup
        fd = udp.fileno()
        answers: list[dnswire.Answer | None]
        for candidate in self.job.wire:
            if flight.start_ns:
                first, messages = self._encode(candidate)
            else:
                first, messages = flight.encoded
                flight.start_ns = now()
            try:
                for message in messages:
                    udp.send(message)
            except OSError as error:
                raise PhaseError("dns_error") from error
            flight.queries += len(messages)
            self.queries_sent += len(messages)
            if fd not in self.waiting:
                self.epoll.register(fd, EPOLLIN)  # after the send: the answer is still on its way
                self.waiting[fd] = flight
            answers = [None] * len(messages)
            moment = 0
            for _ in candidate:
                moment = yield from self._answer(flight, udp, first, candidate, answers)
            if self._settle(flight, [answer for answer in answers if answer is not None]):
                break
        else:
            if not (self.job.accept_nxdomain and flight.rcode == 3):
                raise PhaseError("dns_error")
        flight.dns_ns = moment

    def _encode(self, candidate: tuple[dnswire.Query, ...]) -> tuple[int, list[bytes]]:
        """The messages of a candidate under fresh ids, and the first id."""
        first = self.query_id
        self.query_id = (first + len(candidate)) & 0xFFFF
        return first, [((first + k) & 0xFFFF).to_bytes(2, "big") + query.tail for k, query in enumerate(candidate)]

    def _answer(
        self,
        flight: Flight,
        udp: socket.socket,
        first: int,
        candidate: tuple[dnswire.Query, ...],
        answers: list[dnswire.Answer | None],
    ) -> Generator[None, int, int]:
        """Waits for one answer to one of the parallel queries and returns when it came."""
        while True:
            ready_ns = yield
            try:
                message = udp.recv(MAX_DATAGRAM)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PhaseError("dns_error") from error
            place = (int.from_bytes(message[:2], "big") - first) & 0xFFFF
            if len(message) < 2 or place >= len(candidate) or answers[place] is not None:
                self.stray_answers += 1
                continue
            answer = answers[place] = candidate[place].read(message)
            if answer.bad:
                flight.rcode = answer.rcode
                raise PhaseError("bad_answer")
            return ready_ns

    def _settle(self, flight: Flight, answers: list[dnswire.Answer]) -> bool:
        """Whether the lookup ends with these answers; notes the address and the return code."""
        for answer in answers:
            if answer.address:
                flight.address, flight.rcode = answer.address, 0
                return True
        flight.rcode = max(answer.rcode for answer in answers)
        return self.job.accept_nodata and flight.rcode == 0

    def _getaddrinfo(self, flight: Flight) -> None:
        """The C library's own lookup, by the raw module: the wrapper in `socket` makes enums inside the timed path."""
        job = self.job
        flight.queries = -1
        flight.start_ns = now()
        try:
            found = _socket.getaddrinfo(job.name, job.port, job.family, socket.SOCK_STREAM)
        except OSError as error:
            moment = now()
            flight.rcode = GAI_RCODES.get(error.errno or 0, -1)
            accepted = {3: job.accept_nxdomain, 0: job.accept_nodata}.get(flight.rcode, False)
            if not accepted:
                raise PhaseError("timeout" if moment - flight.start_ns >= job.timeout_ns else "dns_error") from error
            flight.dns_ns = moment
            return
        flight.dns_ns = now()
        flight.rcode = 0
        flight.address = str(found[0][4][0])

    def _connect(self, flight: Flight) -> Generator[None, int, Line]:
        line = flight.line
        assert line is not None  # noqa: S101 - opened by _sockets for every request
        family = _family(flight.address)
        if family != line.sock.family:
            line.sock.close()
            line = flight.line = self._line(family)
        sock, target = line.sock, (flight.address, self.job.port)
        # A second connect returns 0 as soon as the connection stands. Next door it stands when the first call returns,
        # so this saves the turn through epoll that a non-blocking connect would add to the phase. After a refusal it
        # would be another attempt.
        code = sock.connect_ex(target)
        if code == errno.EINPROGRESS:
            code = sock.connect_ex(target)
        if code not in (0, errno.EALREADY):
            raise PhaseError("connect_error")
        if code:
            self.waiting[line.fd] = flight
            self.epoll.register(line.fd, EPOLLOUT)
            line.registered = True
            moment = yield
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or sock.connect_ex(target) not in (0, errno.EISCONN):
                raise PhaseError("connect_error")
            flight.connect_ns = moment
            self.epoll.modify(line.fd, EPOLLIN)
        else:
            flight.connect_ns = now()
        line.address = flight.address
        self.connections_opened += 1
        return line

    def _handshake(self, flight: Flight, line: Line, tls: ssl.SSLObject) -> Steps:
        incoming, outgoing = line.incoming, line.outgoing
        assert incoming is not None and outgoing is not None  # noqa: S101 - made by wrap together with tls
        while True:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except (ssl.SSLError, ValueError) as error:
                raise PhaseError("tls_error") from error
            try:
                yield from self._send(flight, line, outgoing.read())
                if done:
                    flight.tls_ns = now()
                    return
                self._register(flight, line)
                yield
                data = line.sock.recv(RECEIVE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PhaseError("tls_error") from error
            if not data:
                raise PhaseError("tls_error")
            incoming.write(data)

    def _request(self, flight: Flight, line: Line) -> Steps:
        """Sends the request and reads the answer to its end."""
        payload, tcp = self.payload, self.job.tcp
        try:
            if line.tls is not None and line.outgoing is not None:
                line.tls.write(payload)
                payload = line.outgoing.read()
            yield from self._send(flight, line, payload)
            self._register(flight, line)
            keep = yield from (self._response(flight, line) if tcp is None else self._told(flight, line, tcp))
        except httpwire.MalformedError as error:
            raise PhaseError("http_error") from error
        except OSError as error:  # the connection broke; SSLError is an OSError
            raise PhaseError("reset") from error
        finally:
            flight.dns_ns = flight.dns_ns or flight.start_ns
            flight.connect_ns = flight.connect_ns or flight.dns_ns
            flight.tls_ns = flight.tls_ns or flight.connect_ns
        if not keep:
            line.address = ""  # not to be kept
        if flight.status >= 400:
            flight.outcome = "http_error"

    def _response(self, flight: Flight, line: Line) -> Generator[None, int, bool]:
        data = yield from self._receive(flight, line)
        flight.first_byte_ns = flight.end_ns
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if not data or len(data) > httpwire.MAX_HEAD:
                    raise PhaseError("http_error" if data else "reset")
                more = yield from self._receive(flight, line)
                if not more:
                    raise PhaseError("reset")
                data += more
                continue
            head = httpwire.read_head(data[:end])
            data = data[end + 4 :]
            if head.status >= 200 or head.status == 101:
                break
        flight.status, flight.replica = head.status, head.replica
        body = httpwire.Body(head.length)
        if data:
            body.feed(data)
        while not body.done:
            data = yield from self._receive(flight, line)
            if not data:
                if body.length != httpwire.UNTIL_CLOSE:
                    raise PhaseError("reset")
                break
            body.feed(data)
            flight.body_bytes = body.size
        flight.body_bytes = body.size
        return head.keep

    def _told(self, flight: Flight, line: Line, tcp: Tcp) -> Generator[None, int, bool]:
        """Reads until the bytes tell which server answers; the connection is of no further use."""
        data, server = b"", None
        while server is None:
            more = yield from self._receive(flight, line)
            flight.first_byte_ns = flight.first_byte_ns or flight.end_ns
            if not more:
                raise PhaseError("bad_answer" if data else "reset")
            data += more
            flight.body_bytes = len(data)
            server = tcp.answers.read(data)
        if not server:
            raise PhaseError("bad_answer")
        flight.replica = server
        return False

    def _receive(self, flight: Flight, line: Line) -> Generator[None, int, bytes]:
        """The next bytes of the stream, stamped in `end_ns`; none at its end."""
        tls = line.tls
        while True:
            if tls is not None:
                try:
                    plain = tls.read(RECEIVE)
                except ssl.SSLWantReadError:
                    plain = None
                except ssl.SSLZeroReturnError:
                    plain = b""
                if plain is not None:
                    return plain
            ready_ns = yield
            try:
                data = line.sock.recv(RECEIVE)
            except BlockingIOError:
                continue
            flight.end_ns = ready_ns
            if tls is None or not data or line.incoming is None:
                return data
            line.incoming.write(data)

    def _send(self, flight: Flight, line: Line, data: bytes) -> Steps:
        while data:
            try:
                sent = line.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self._register(flight, line)
            self.epoll.modify(line.fd, EPOLLOUT)
            yield
            self.epoll.modify(line.fd, EPOLLIN)

    def _register(self, flight: Flight, line: Line) -> None:
        """From here on the line's events belong to this request."""
        if not line.registered:
            self.epoll.register(line.fd, EPOLLIN)  # after the send: the answer is still on its way
            line.registered = True
        self.waiting[line.fd] = flight


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
