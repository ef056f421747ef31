"""Many messages to one DNS server at a time, each from a socket of its own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

AT_ONCE = 48  # fewer than any queue on the way holds


@dataclass
class Exchange:
    """A message and what came back."""

    message: bytes
    tcp: bool
    reply: bytes | None = None
    closed: bool = False  # the connection, before an answer came
    took_s: float = 0.0
    _begun_s: float = 0.0
    _pending: bytearray = field(default_factory=bytearray)

    def begin(self, server: tuple[str, int]) -> socket.socket | None:
        """Sent; None where it could not be."""
        kind = socket.SOCK_STREAM if self.tcp else socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_INET, kind)
        try:
            sock.settimeout(5)
            sock.connect(server)
            self._begun_s = time.monotonic()
            sock.sendall(len(self.message).to_bytes(2, "big") + self.message) if self.tcp else sock.send(self.message)
            sock.setblocking(False)
        except OSError:
            sock.close()
            self.closed = True
            return None
        return sock

    def take(self, sock: socket.socket) -> bool:
        """Whether that was all."""
        try:
            got = sock.recv(65_535)
        except BlockingIOError:
            return False
        except OSError:
            got = b""
        if not self.tcp:
            self.reply = got
        elif not got:
            self.closed = True
        else:
            self._pending += got
            if len(self._pending) < 2 or len(self._pending) < 2 + int.from_bytes(self._pending[:2], "big"):
                return False
            self.reply = bytes(self._pending[2:])
        self.took_s = time.monotonic() - self._begun_s
        return True


def ask(server: tuple[str, int], messages: Sequence[tuple[bytes, bool]], wait_s: float) -> list[Exchange]:
    """Each message (and whether by TCP) with its answer, if one came within that time."""
    exchanges = [Exchange(message, tcp) for message, tcp in messages]
    left = list(reversed(exchanges))
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as stack:
        open_sockets: dict[socket.socket, tuple[Exchange, float]] = {}
        while left or open_sockets:
            while left and len(open_sockets) < AT_ONCE:
                exchange = left.pop()
                if sock := exchange.begin(server):
                    stack.callback(sock.close)
                    waiting.register(sock, selectors.EVENT_READ)
                    open_sockets[sock] = exchange, time.monotonic() + wait_s
            for key, _ in waiting.select(0.02):
                sock = key.fileobj  # type: ignore[assignment]  # it was registered as a socket
                assert isinstance(sock, socket.socket)
                if open_sockets[sock][0].take(sock):
                    _end(sock, open_sockets, waiting)
            now = time.monotonic()
            for sock in [one for one, (_, end) in open_sockets.items() if now > end]:
                _end(sock, open_sockets, waiting)
    return exchanges


def _end(
    sock: socket.socket, held: dict[socket.socket, tuple[Exchange, float]], waiting: selectors.BaseSelector
) -> None:
    waiting.unregister(sock)
    del held[sock]
    sock.close()
