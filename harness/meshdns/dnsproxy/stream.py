"""A TCP connection on the reactor, and a listener for them: buffered, bounded, closed once."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from typing import Any

from .reactor import READ, WRITE, Countdown, Reactor

CHUNK = 65_536
UNSENT_BYTES = 65_536  # more than one whole DNS message waiting to be taken: stop reading from such a peer
REST_S = 0.1  # after the machine ran out of descriptors


def endpoint(address: str, port: int) -> tuple[Any, ...]:
    """As sockets take it: where a link-local address names its interface, by the number, they would pass over it."""
    plain, found, interface = address.partition("%")
    return (plain, port, 0, int(interface)) if found else (plain, port)


def _nobody(_: Stream) -> None:
    """Whom a closed stream tells."""


class Stream:
    """A connected, or connecting, socket: what arrives is handed over, what is written waits until it fits.

    `received` is called when bytes came, when no more will come (`ended`), and when the peer has taken all it was sent.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        received: Callable[[Stream], None],
        closed: Callable[[Stream], None],
        *,
        connecting: bool = False,
        peer: tuple[Any, ...] = (),
    ) -> None:
        self.peer = peer  # of a connection that was accepted
        self.incoming = bytearray()
        self.ended = False  # the peer sends no more
        self.closed = False
        self._reactor, self._socket = reactor, sock
        self._received, self._closed = received, closed
        self._outgoing = bytearray()
        self._connecting = connecting
        self._finishing = False
        self._reading = not connecting
        self._events = WRITE if connecting else READ
        reactor.watch(sock.fileno(), self._events, self._ready)

    @property
    def unsent(self) -> int:
        """Bytes the peer has not taken yet."""
        return len(self._outgoing)

    def message(self) -> bytes | None:
        """The next whole DNS message, taken from what came; None if there is none yet."""
        end = 2 + int.from_bytes(self.incoming[:2], "big")
        if len(self.incoming) < max(end, 2):
            return None
        message = bytes(self.incoming[2:end])
        del self.incoming[:end]
        return message

    def write(self, data: bytes) -> None:
        """Sends now what fits and the rest later."""
        if self.closed:
            return
        self._outgoing += data
        self._flush()

    def finish(self, data: bytes = b"") -> None:
        """Sends the last of it and closes once the peer has taken all."""
        self._finishing = True
        self.read(False)
        self.write(data)

    def read(self, wanted: bool) -> None:
        """Whether more is wanted from the peer."""
        self._reading = wanted
        self._update()

    def close(self) -> None:
        """At once; `closed` is called the first time."""
        if self.closed:
            return
        self.closed = True
        self._reactor.forget(self._socket.fileno())
        self._socket.close()
        closed = self._closed
        self._received = self._closed = _nobody  # no cycle is left: the collector does not look at frozen ones
        closed(self)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLERR or (self.ended and events & select.EPOLLHUP):
            self.close()
            return
        if events & WRITE:
            if self._connecting:
                self._connecting = False
                self._reading = True
            self._flush()
            if not (self.closed or self._outgoing):
                self._received(self)
        if not self.closed and events & (READ | select.EPOLLHUP):
            self._take()

    def _take(self) -> None:
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self.incoming += data
        else:
            self.ended = True
            self.read(False)
        self._received(self)

    def _flush(self) -> None:
        if self._outgoing and not self._connecting:
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            del self._outgoing[:sent]
        if self._finishing and not self._outgoing:
            self.close()
        else:
            self._update()

    def _update(self) -> None:
        if self.closed:
            return
        events = READ if self._reading and not self.ended else 0
        if self._outgoing or self._connecting:
            events |= WRITE
        if events != self._events:
            self._events = events
            self._reactor.change(self._socket.fileno(), events)


class Acceptor:
    """A listening socket that opens at most so many streams; one more pushes out the one that idled longest."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        received: Callable[[Stream], None],
        *,
        most: int,
        idle_s: float,
        waiting: Callable[[Stream], bool] = lambda _: False,
    ) -> None:
        self._reactor, self._socket, self._received, self._most = reactor, sock, received, most
        self._waiting = waiting
        self._idle: Countdown[Stream] = reactor.countdown(idle_s, self._idled)
        self._rest: Countdown[str] = reactor.countdown(REST_S, lambda _: self._resume())
        self._streams: dict[Stream, None] = {}
        reactor.watch(sock.fileno(), READ, self._accept)

    def alive(self, stream: Stream) -> None:
        """Something whole was exchanged: the idle time begins anew."""
        if stream in self._streams:
            self._idle.start(stream)

    def close(self) -> None:
        """The listener and every stream."""
        self._reactor.forget(self._socket.fileno())
        self._socket.close()
        for stream in list(self._streams):
            stream.close()

    def _accept(self, _: int) -> None:
        try:
            sock, peer = self._socket.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: trying again at once would only burn the CPU
            self._reactor.change(self._socket.fileno(), 0)
            self._rest.start("rest")
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._streams) >= self._most:
            self._idle.first().close()
        stream = Stream(self._reactor, sock, self._received, self._ended, peer=peer)
        self._streams[stream] = None
        self._idle.start(stream)

    def _idled(self, stream: Stream) -> None:
        if self._waiting(stream):  # for us: then it is not the one that idles
            self._idle.start(stream)
        else:
            stream.close()

    def _ended(self, stream: Stream) -> None:
        self._streams.pop(stream, None)
        self._idle.stop(stream)

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self._reactor.change(self._socket.fileno(), READ)
