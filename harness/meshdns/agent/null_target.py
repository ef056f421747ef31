"""The target that costs as little as Python can: answers DNS at once, or after a wait that the asker names.

The first label of the question, `dNNN`, asks for a busy-wait of NNN microseconds before the answer. One thread spins on
epoll; without work it soon sleeps in it, so it does not burn a core when it is not used.
"""

from __future__ import annotations

import argparse
import functools
import os
import select
import signal
import socket
import time

MAX_WAIT_US = 1_000_000  # a mistyped label must not stop the target
KEPT = 64  # questions whose answers are remembered: a load asks few
ADDRESS = socket.inet_aton("127.0.0.1")  # in every answer
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


def dns_answer(query: bytes) -> bytes:
    """A record with an address for a question of type A, an empty NOERROR for others, nothing for no question."""
    end = query.find(b"\0", 12) + 5
    if end < 17 or len(query) < end:
        return b""
    head, question = query[:2] + b"\x85\x80\0\1\0", query[12:end]
    if query[end - 4 : end - 2] != b"\0\1":
        return head + b"\0\0\0\0\0" + question
    return head + b"\1\0\0\0\0" + question + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + ADDRESS


@functools.lru_cache(KEPT)
def read(tail: bytes) -> tuple[int, bytes]:
    """Of a question without its id: the wait that it asks for, and the answer without its id."""
    query = b"\0\0" + tail
    length = query[12] if len(query) > 12 else 0
    return wait_us(query[13 : 13 + length]), dns_answer(query)[2:]


def answer(udp: socket.socket) -> None:
    """Answers the question that has come."""
    try:
        query, peer = udp.recvfrom(4096)
        came = now()
        wait, known = read(query[2:])
        if known:
            if wait:
                hold(came + wait * 1000)
            udp.sendto(query[:2] + known, peer)
    except OSError:  # a peer that went away, or nothing there after all
        return


def serve(udp: socket.socket, idle_s: float) -> None:
    """Answers until the process ends."""
    idle_ns = round(idle_s * 1e9)
    asleep_at = now() + idle_ns
    with select.epoll() as epoll:
        epoll.register(udp.fileno(), select.EPOLLIN)
        while True:
            if not epoll.poll(0):
                if now() < asleep_at:
                    continue
                epoll.poll()
            answer(udp)
            asleep_at = now() + idle_ns


def main() -> None:
    """Reads the arguments and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=53)
    parser.add_argument(
        "--idle-s", type=float, default=1.0, help="sleep instead of spinning after this long without work"
    )
    asked = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as udp:
        udp.bind(("", asked.port))
        print(udp.getsockname()[1], flush=True)
        serve(udp, asked.idle_s)


if __name__ == "__main__":
    main()
