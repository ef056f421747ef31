"""Starts the proxy as it runs in a bare container: a copy of its folder and nothing else; and servers for it to ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset

PACKAGE = Path(__file__).parents[2] / "harness" / "meshdns" / "dnsproxy"
PATIENCE_S = 20.0  # for what must happen, on a busy machine
SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
TABLE: dict[str, Any] = {
    "table": {
        "reviews.shop.svc.cluster.local": {
            "ips": ["10.96.0.7"], "registry": "Kubernetes", "namespace": "shop", "shortname": "reviews",
        },
        "api.example.com": {"ips": ["240.240.0.1"], "registry": "External"},
        "many.example.com": {"ips": [f"240.240.2.{n}" for n in range(1, 9)]},
        "three.example.com": {"ips": ["240.240.3.1", "240.240.3.2", "240.240.3.3"]},
    }
}  # fmt: skip


@dataclass
class Proxy:
    """A proxy that serves."""

    process: subprocess.Popen[str]
    addresses: list[str]
    table: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.addresses[0].rpartition(":")
        return host.strip("[]"), int(port)

    def udp(self, name: str, qtype: str = "A", **how: Any) -> dns.message.Message:
        return dns.message.from_wire(self.raw(make(name, qtype, **how)), one_rr_per_rrset=True)

    def raw(self, query: bytes, timeout_s: float = PATIENCE_S) -> bytes:
        with self.client() as sock:
            sock.settimeout(timeout_s)
            sock.send(query)
            return sock.recv(65_535)

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(self.address)
        sock.settimeout(PATIENCE_S)
        return sock

    def tcp(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE_S)

    def write(self, table: Any) -> None:
        """In place of the old file, at once."""
        fresh = self.table.with_suffix(".new")
        fresh.write_text(table if isinstance(table, str) else json.dumps(table))
        fresh.replace(self.table)

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def sockets(self) -> int:
        count = 0
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                count += "socket:" in str(fd.readlink())
        return count

    def stop(self) -> str:
        """Ends it as a container's end does; what it said on standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, said
        return later(said)


def later(said: str) -> str:
    """Without the line at the start that says that nothing is forwarded."""
    return re.sub(r"\Adns-proxy: \S+ names no DNS server, so every name .*\n", "", said)


def bare(folder: Path) -> dict[str, str]:
    """The environment in which only a copy of the package is importable."""
    if not (folder / "dnsproxy").exists():
        shutil.copytree(PACKAGE, folder / "dnsproxy", ignore=shutil.ignore_patterns("__pycache__"))
    return {**os.environ, "PYTHONPATH": str(folder)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dnsproxy", *arguments]


@contextlib.contextmanager
def running(
    folder: Path, *options: str, table: Any = TABLE, listen: tuple[str, ...] = ("127.0.0.1:0",)
) -> Iterator[Proxy]:
    """A proxy with a table (None: without the file) and the search list of a pod; it must end cleanly."""
    path = folder / "table.json"
    if table is not None:
        path.write_text(table if isinstance(table, str) else json.dumps(table))
    resolv = folder / "resolv.conf"
    resolv.write_text(f"search {' '.join(SEARCH)}\noptions ndots:5\n")
    where = [part for address in listen for part in ("--listen", address)]
    arguments = ["--name-table", str(path), "--resolv-conf", str(resolv), "--namespace", "shop", *where, *options]
    with subprocess.Popen(
        command(*arguments), env=bare(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            addresses = [process.stdout.readline().strip() for _ in listen]
            assert all(addresses), process.communicate()[1]
            proxy = Proxy(process, addresses, path)
            yield proxy
            if process.poll() is None:
                said = proxy.stop()
                assert "please report" not in said, said
        finally:
            process.kill()


def make(name: str, qtype: str = "A", *, edns: int = 0, qclass: str = "IN") -> bytes:
    query = dns.message.make_query(name, qtype, qclass, use_edns=0 if edns else -1, payload=edns or 1232)
    return query.to_wire()


def reply(query: bytes, *records: str, rcode: int = 0, authority: tuple[str, ...] = ()) -> bytes:
    """A server's answer; records in zone file form, `@` standing for the question's name."""
    asked = dns.message.from_wire(query)
    answer = dns.message.make_response(asked, recursion_available=True)
    answer.set_rcode(rcode)
    for section, texts in ((answer.answer, records), (answer.authority, authority)):
        for text in texts:
            name, ttl, kind, data = text.split(None, 3)
            owner = str(asked.question[0].name) if name == "@" else name
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
    return answer.to_wire(max_size=65_535)


Answer = Callable[[bytes, bool], "bytes | list[bytes] | None"]


@dataclass
class Upstream:
    """A server on loopback; `answer(query, tcp)` gives what it sends back."""

    answer: Answer
    asked: list[tuple[bytes, bool]] = field(default_factory=list)
    port: int = 0

    @property
    def option(self) -> tuple[str, str]:
        return "--upstream", f"127.0.0.1:{self.port}"

    def names(self) -> list[str]:
        return [str(dns.message.from_wire(query).question[0].name) for query, _ in self.asked]


@contextlib.contextmanager
def upstream(answer: Answer) -> Iterator[Upstream]:
    """Serves UDP and TCP on one port in a thread."""
    server = Upstream(answer)
    stop_in, stop_out = socket.socketpair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_in)
        stack.enter_context(stop_out)
        datagrams, listener = _pair(stack)
        server.port = datagrams.getsockname()[1]
        thread = threading.Thread(target=_serve, args=(server, datagrams, listener, stop_out), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            stop_in.send(b"x")
            thread.join(PATIENCE_S)


def _pair(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagrams.bind(listener.getsockname())
        except OSError:
            datagrams.close()
            listener.close()
            continue
        return stack.enter_context(datagrams), stack.enter_context(listener)


def _serve(server: Upstream, datagrams: socket.socket, listener: socket.socket, stop: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([datagrams, listener, stop], [], [])
        if stop in ready:
            return
        with contextlib.suppress(OSError):
            if datagrams in ready:
                query, peer = datagrams.recvfrom(65_535)
                for message in _answers(server, query, False):
                    datagrams.sendto(message, peer)
            if listener in ready:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as stream:
                    connection.settimeout(PATIENCE_S)
                    query = stream.read(int.from_bytes(stream.read(2), "big"))
                    for message in _answers(server, query, True):
                        connection.sendall(len(message).to_bytes(2, "big") + message)


def _answers(server: Upstream, query: bytes, tcp: bool) -> list[bytes]:
    server.asked.append((query, tcp))
    answer = server.answer(query, tcp)
    return answer if isinstance(answer, list) else [answer] if answer is not None else []


def free_port() -> int:
    """One that nobody listens on, for now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def dead_port() -> Iterator[int]:
    """A bound UDP port that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def until(true: Callable[[], bool], what: str) -> None:
    """Waits for it; fails after a patience no idle machine needs."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"not so after {PATIENCE_S:g} s: {what}"
        time.sleep(0.01)


def ask_tcp(sock: socket.socket, query: bytes) -> bytes:
    sock.sendall(len(query).to_bytes(2, "big") + query)
    return read_tcp(sock)


def read_tcp(sock: socket.socket) -> bytes:
    """One message, or b"" at the end."""
    data = _exactly(sock, 2)
    return _exactly(sock, int.from_bytes(data, "big")) if data else b""


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data


def addresses(message: dns.message.Message) -> list[str]:
    return [str(r) for s in message.answer if s.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA) for r in s]


def rcode(wire: bytes) -> int:
    return wire[3] & 15


def is_truncated(message: dns.message.Message) -> bool:
    return bool(message.flags & dns.flags.TC)
