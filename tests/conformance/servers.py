"""The DNS servers behind both proxies, on port 53 of two addresses. They say what is scripted and keep what they heard.

Which of them is asked first is chance, so they share the count of how often a question came.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
import threading

from tests.conformance import scripts

ADDRESSES = ("127.0.0.1", "127.0.0.2")
PORT = 53
Heard = tuple[bool, bytes]  # by TCP or not, the query


class Servers:
    """Both, in one thread."""

    def __init__(self, port: int = PORT) -> None:
        self.heard: list[Heard] = []
        self.more: dict[str, scripts.Reply] = {}  # kinds of replies beside the usual ones
        self._asked: collections.Counter[bytes] = collections.Counter()
        self._datagrams = [_datagrams(address, port) for address in ADDRESSES]
        self._listeners = [socket.create_server((address, port), backlog=512) for address in ADDRESSES]
        threading.Thread(target=self._serve, daemon=True).start()

    def forget(self) -> None:
        """Nobody has asked anything."""
        self.heard = []
        self._asked.clear()

    def _serve(self) -> None:
        waiting: list[socket.socket] = [*self._datagrams, *self._listeners]
        while True:
            for ready in select.select(waiting, [], [])[0]:
                with contextlib.suppress(OSError):
                    if ready in self._datagrams:
                        query, client = ready.recvfrom(65_535)
                        for reply in self._answer(False, query):
                            ready.sendto(reply, client)
                    else:
                        connection, _ = ready.accept()
                        threading.Thread(target=self._stream, args=(connection,), daemon=True).start()

    def _stream(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            while length := int.from_bytes(stream.read(2), "big"):
                replies = self._answer(True, stream.read(length))
                connection.sendall(b"".join(len(reply).to_bytes(2, "big") + reply for reply in replies))

    def _answer(self, tcp: bool, query: bytes) -> tuple[bytes, ...]:
        self.heard.append((tcp, query))
        key = bytes([tcp]) + query[12:]
        times = self._asked[key]
        self._asked[key] += 1
        replies = scripts.said(query, self.more)
        return replies[min(times, len(replies) - 1)]


def _datagrams(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((address, port))
    return sock
