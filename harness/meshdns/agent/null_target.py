"""The target that costs as little as Python can: answers DNS and HTTP at once, or after a wait that the asker names.

The first label of the question, or the path, `dNNN` asks for a busy-wait of NNN microseconds before the answer. One
thread spins on epoll; without work it soon sleeps in it, so it does not burn a core when it is not used.
Start: `python3 null_target.py --address 0.0.0.0 --dns-port 53 --http-port 8080`.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import time

MAX_WAIT_US = 1_000_000  # a mistyped label must not stop the target
EVENTS = 64  # what one epoll call may return
now = time.monotonic_ns


def wait_us(word: bytes) -> int:
    """The microseconds that `dNNN` asks for, 0 for any other word."""
    digits = word[1:]
    return min(int(digits), MAX_WAIT_US) if word[:1] in b"dD" and digits.isdigit() and len(digits) < 10 else 0


def hold(until_ns: int) -> None:
    """Burns time until an instant; sleeping would end tens of microseconds late.

    In the kernel as much as outside it: after a pure loop the answer's way through the kernel would be cold, and the
    wait would seem longer than asked.
    """
    while now() < until_ns:
        select.select([], [], [], 0)


def dns_answer(query: bytes, address: bytes) -> bytes:
    """A record with the address for a question of type A, an empty NOERROR for others, nothing for no question."""
    end = query.find(b"\0", 12) + 5
    if end < 17 or len(query) < end:
        return b""
    head, question = query[:2] + b"\x85\x80\0\1\0", query[12:end]
    if query[end - 4 : end - 2] != b"\0\1":
        return head + b"\0\0\0\0\0" + question
    return head + b"\1\0\0\0\0" + question + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + address


class Target:
    """The sockets and the loop around them."""

    def __init__(self, address: str, dns_port: int, http_port: int, answer: str, body_bytes: int) -> None:
        """Listens on both ports."""
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.bind((address, dns_port))
        self.listener = socket.create_server((address, http_port), backlog=1024)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.udp.fileno(), select.EPOLLIN)
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.clients: dict[int, socket.socket] = {}
        self.answer = socket.inet_aton(answer)
        self.answers: dict[bytes, tuple[int, bytes]] = {}  # by question: the wait and the answer, both without the id
        body = b"x" * body_bytes
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {body_bytes}\r\nX-Replica: null\r\n"
        self.keep = head.encode() + b"\r\n" + body
        self.last = head.encode() + b"Connection: close\r\n\r\n" + body

    def run(self, idle_s: float) -> None:
        """Serves until the process ends."""
        poll, udp_fd, listener_fd = self.epoll.poll, self.udp.fileno(), self.listener.fileno()
        idle_ns = round(idle_s * 1e9)
        asleep_at = now() + idle_ns
        while True:
            events = poll(0, EVENTS)
            if not events:
                if now() < asleep_at:
                    continue
                events = poll(None, EVENTS)
            for fd, _ in events:
                if fd == udp_fd:
                    self._dns()
                elif fd == listener_fd:
                    self._accept()
                else:
                    self._http(fd)
            asleep_at = now() + idle_ns

    def _dns(self) -> None:
        try:
            query, peer = self.udp.recvfrom(4096)
            came = now()
            tail = query[2:]
            known = self.answers.get(tail)
            if known is None:
                length = query[12] if len(query) > 12 else 0
                known = wait_us(query[13 : 13 + length]), dns_answer(query, self.answer)[2:]
                if len(self.answers) >= EVENTS:
                    self.answers.clear()
                self.answers[tail] = known
            wait, answer = known
            if answer:
                if wait:
                    hold(came + wait * 1000)
                self.udp.sendto(query[:2] + answer, peer)
        except OSError:  # a peer that went away, or nothing there after all
            return

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clients[client.fileno()] = client
        self.epoll.register(client.fileno(), select.EPOLLIN)

    def _http(self, fd: int) -> None:
        client = self.clients[fd]
        try:
            request = client.recv(65536)
            came = now()
            if request[-4:] == b"\r\n\r\n":  # our clients send their small head in one piece
                path = request.split(b" ", 2)[1]
                wait = wait_us(path[1:])
                if wait:
                    hold(came + wait * 1000)
                closing = b"onnection: close" in request
                client.sendall(self.last if closing else self.keep)
                if not closing:
                    return
        except BlockingIOError:
            return
        except (OSError, IndexError):
            pass
        self.epoll.unregister(fd)
        del self.clients[fd]
        client.close()


def main() -> None:
    """Reads the arguments and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104 - a container of its own
    parser.add_argument("--dns-port", type=int, default=53)
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--answer", default="127.0.0.1", help="address in every A answer")
    parser.add_argument("--body-bytes", type=int, default=1024)
    parser.add_argument(
        "--idle-s", type=float, default=1.0, help="sleep instead of spinning after this long without work"
    )
    asked = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    target = Target(asked.address, asked.dns_port, asked.http_port, asked.answer, asked.body_bytes)
    print(f"dns {target.udp.getsockname()[1]} http {target.listener.getsockname()[1]}", flush=True)
    target.run(asked.idle_s)


if __name__ == "__main__":
    main()
