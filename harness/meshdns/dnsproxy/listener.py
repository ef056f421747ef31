"""Where clients come in: UDP, the hot path, and TCP (RFC 7766: many queries on a connection, answers as they come)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

from . import batch, wire
from .proxy import Proxy
from .reactor import READ, Reactor
from .stream import UNSENT_BYTES, Acceptor, Stream, endpoint

BURST = 2  # full batches of datagrams taken before the other sockets have their turn
DATAGRAM = batch.ROOM_IN  # what is cut reads as malformed
CONNECTIONS = 256  # TCP clients at a time; one more pushes out the one that idled longest
IDLE_S = 10.0  # between two queries, and for the bytes of one
PIPELINED = 16  # unanswered queries of one connection; more are not read until one is answered
ROOM_BYTES = 4 << 20  # kernel queue of waiting queries; the system may give less
IP_PKTINFO, IPV6_RECVPKTINFO = 8, socket.IPV6_RECVPKTINFO
IPV6_PKTINFO = socket.IPV6_PKTINFO
TRIES = 64  # port 0: ports on which TCP is free and UDP is not are given back


class Udp:
    """A bound datagram socket."""

    def __init__(self, reactor: Reactor, sock: socket.socket, proxy: Proxy) -> None:
        self._reactor, self._socket, self._proxy = reactor, sock, proxy
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
        self._receive, self._send = sock.recvfrom, sock.sendto
        self._batch = batch.Batch(sock)
        anywhere = sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104  compared, not bound
        if anywhere:
            _tell_destination(sock)
        reactor.watch(sock.fileno(), READ, self._take_addressed if anywhere else self._take)

    def close(self) -> None:
        """No more queries, and no more answers."""
        self._reactor.forget(self._socket.fileno())
        self._socket.close()

    def _take(self, _: int) -> None:
        """The hot path: one dictionary look-up by the bytes of the query after the id."""
        ready = self._proxy.ready.get
        try:
            message, client = self._receive(DATAGRAM)
            prepared = ready(message[2:])
            if prepared is not None:
                prepared.tally.hits += 1
                self._send(message[:2] + (prepared.rest or prepared.shuffled()), client)
        except OSError:  # nothing came; or no room or no way back: a datagram may be lost
            return
        if prepared is None:
            self._answer(message, client)
        for _ in range(BURST):
            if self._batch.exchange(ready, self._answer) < batch.SIZE:
                return

    def _answer(self, message: bytes, client: Any) -> None:
        if not self._proxy.came_back(message, False, client):
            self._proxy.answer(message, False, self._sender(client, []))

    def _take_addressed(self, _: int) -> None:
        """On a wildcard address: the answer must leave from the address that was asked, or the client refuses it."""
        for _ in range(BURST * batch.SIZE):
            try:
                message, ancillary, _, client = self._socket.recvmsg(DATAGRAM, 128)
            except BlockingIOError:
                return
            send = self._sender(client, _source(ancillary))
            if prepared := self._proxy.ready.get(message[2:]):
                prepared.tally.hits += 1
                send(message[:2] + (prepared.rest or prepared.shuffled()))
            elif not self._proxy.came_back(message, False, client):
                self._proxy.answer(message, False, send)

    def _sender(self, client: Any, source: list[tuple[int, int, bytes]]) -> Callable[[bytes], None]:
        def send(reply: bytes) -> None:
            try:
                self._socket.sendmsg([reply], source, 0, client)
            except OSError:  # as above; or closed in the meantime
                return

        return send


def _tell_destination(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)


def _source(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """What makes the answer leave from the address the query came to (ip(7), ipv6(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, _, destination = struct.unpack("=I4s4s", data[:12])
            return [(level, kind, struct.pack("=I4s4s", 0, destination, b"\0" * 4))]
        if level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            return [(level, kind, data)]
    return []


class Tcp:
    """A listening stream socket."""

    def __init__(self, reactor: Reactor, sock: socket.socket, proxy: Proxy) -> None:
        self._proxy = proxy
        self._unanswered: dict[Stream, int] = {}
        self._serving: Stream | None = None
        self._acceptor = Acceptor(
            reactor, sock, self._serve, most=CONNECTIONS, idle_s=IDLE_S, waiting=self._unanswered.__contains__
        )

    def close(self) -> None:
        """No more queries; what was not answered will not be."""
        self._acceptor.close()

    def _serve(self, stream: Stream) -> None:
        """Hands over the queries that came whole, as many as the client may have open."""
        if stream is self._serving:  # an answer given at once; the loop below goes on
            return
        self._serving = stream
        try:
            while self._may_ask(stream) and (message := stream.message()) is not None:
                bad = len(message) < wire.HEADER or message[2] & 0x80  # no answer is possible, so nothing is owed
                if bad or self._proxy.came_back(message, True, stream.peer):
                    stream.close()
                    return
                self._acceptor.alive(stream)
                self._unanswered[stream] = self._unanswered.get(stream, 0) + 1
                self._proxy.answer(message, True, lambda reply: self._answered(stream, reply))
        finally:
            self._serving = None
        if stream.closed:
            return
        stream.read(self._may_ask(stream))
        if stream.ended and self._may_ask(stream) and stream not in self._unanswered:
            stream.finish()

    def _answered(self, stream: Stream, reply: bytes) -> None:
        self._unanswered[stream] -= 1
        if not self._unanswered[stream]:
            del self._unanswered[stream]
        if not stream.closed:
            self._acceptor.alive(stream)
            stream.write(len(reply).to_bytes(2, "big") + reply)
            self._serve(stream)

    def _may_ask(self, stream: Stream) -> bool:
        return not stream.closed and stream.unsent < UNSENT_BYTES and self._unanswered.get(stream, 0) < PIPELINED


def bind(family: socket.AddressFamily, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A datagram and a stream socket on one address and one port number; raises OSError."""
    tries = TRIES if port == 0 else 1
    while True:
        tries -= 1
        stream = listening(family, address, port)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            datagrams.bind(endpoint(address, stream.getsockname()[1]))
            datagrams.setblocking(False)
        except OSError as error:
            stream.close()
            datagrams.close()
            if error.errno == errno.EADDRINUSE and tries:
                continue
            raise
        return datagrams, stream


def listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """A stream socket that accepts connections; raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(endpoint(address, port))
        sock.listen(CONNECTIONS)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
