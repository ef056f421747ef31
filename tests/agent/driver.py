"""Starts the agent as a process and talks to it; small servers on loopback for it to talk to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGENT = Path(__file__).parents[2] / "harness" / "meshdns" / "agent"
GET = "GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@dataclass(frozen=True)
class Result:
    header: dict[str, Any]
    columns: dict[str, array]

    def words(self, name: str) -> list[str]:
        return [self.header["strings"][name][k] for k in self.columns[name]]

    @property
    def facts(self) -> dict[str, Any]:
        return self.header["facts"]


class Agent:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent"], cwd=AGENT.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, text: str) -> None:
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> Result:
        header = json.loads(self.process.stdout.readline())
        columns = {}
        if "columns" in header:
            raw = self.process.stdout.read(header["nbytes"])
            at = 0
            for name, code in header["columns"]:
                column = columns[name] = array(code)
                end = at + header["rows"] * column.itemsize
                column.frombytes(raw[at:end])
                at = end
            assert at == len(raw)
        return Result(header, columns)

    def run(self, **job: Any) -> Result:
        self.send(json.dumps({"wait": "block", "timeout_ms": 2000, "duration_limit_s": 20, "count": 1} | job))
        result = self.read()
        assert "error" not in result.header, result.header
        c = result.columns
        names = ("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")
        for instants in zip(*(c[name] for name in names), strict=True):
            assert list(instants) == sorted(instants)
        assert all(due <= start for due, start in zip(c["due_ns"], c["start_ns"], strict=True))
        return result

    def close(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(5)


@contextlib.contextmanager
def tcp_server(handle: Callable[[socket.socket, int], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Calls handle(connection, number) in a thread for each connection; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError), connection:
            connection.settimeout(5)
            if context is None:
                handle(connection, number)
            else:
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    handle(wrapped, number)

    def accept() -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection, number), daemon=True).start()
                number += 1

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def udp_server(answer: Callable[[bytes], bytes | list[bytes] | None]) -> Iterator[int]:
    """Answers each datagram with answer(datagram); yields the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    query, peer = sock.recvfrom(4096)
                    replies = answer(query)
                    for reply in [replies] if isinstance(replies, bytes) else replies or []:
                        sock.sendto(reply, peer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield sock.getsockname()[1]
        stop.set()
        thread.join()
