"""Speed bars of the DNS proxy, side by side in one run: `python tests/bench/dnsproxy.py [--envoy FILE] [--rounds N]`.

Envoy's dns_filter, the proxy, the proxy with 50,000 names, the proxy with metrics and, if installed, Unbound answer
the same local name by UDP (and one all of the 50,000 in turn, more than a CPU's cache holds), each pinned to one core,
the client to another. Rounds are interleaved, ratios are taken within a round; shown are their median and an interval
that holds it in 95 of 100 such runs. The client keeps a fixed number of queries in flight and sends and receives in
batches (sendmmsg, recvmmsg), so that it is not the slowest part. Exits with 1 if a bar is missed.

With one query in flight most of the time is the kernel's, waking two sleeping processes; the bar for p50 is held with
ten in flight, and the ratio with one is shown beside it. What goes beyond Istio's agent is measured against the proxy
without it: metrics and other options on a local name, the cache and the whole search list on names that are else
forwarded to a server on the same core, stale answers (their server is gone) against fresh ones. Envoy's binary is taken
from PATH or out of the testbed's image.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME, ADDRESS = "reviews.shop.svc.cluster.local", "10.96.0.7"
FORWARDED = "known.example.com"
SEARCHED = f"{FORWARDED}.svc.cluster.local"  # below the second search domain
MANY = 50_000
FLIGHT = {"p50, 1 in flight": 1, "p50, 10 in flight": 10, "rate": 64}
BASES = {  # what is compared with another than Envoy's filter
    "proxy, metrics": "proxy",
    "proxy, --soa --ttl-s": "proxy",
    "forwarded, --cache": "forwarded",
    "searched, --all-search": "searched",
    "cache, --serve-stale-s": "forwarded, --cache",
}
P50_BAR, RATE_BAR, MEMORY_BAR_MB, MANY_BAR = 0.8, 1.2, 200, 1.1
SERVER_CORE, CLIENT_CORE = 1, 0
MSG_WAITFORONE = 0x10000
ROOM = 512


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _Header(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint),
        ("parts", ctypes.c_void_p), ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("length", ctypes.c_uint), ("padding", ctypes.c_uint),
    ]  # fmt: skip


assert ctypes.sizeof(_Header) == 64  # struct mmsghdr of 64-bit Linux


class Flight:
    """So many queries under way to one server, each under the id of its slot."""

    def __init__(self, port: int, queries: list[bytes], count: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queries, self._count, self._next = queries, count, 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, (1).to_bytes(8, "little") + bytes(8))
        self._out, self._in = bytearray(ROOM * count), bytearray(ROOM * count)
        self._out_at = ctypes.addressof(ctypes.c_char.from_buffer(self._out))
        self._send, self._send_parts = self._headers(self._out_at)
        self._receive, self._receive_parts = self._headers(ctypes.addressof(ctypes.c_char.from_buffer(self._in)))
        self._sent_ns = [0] * count

    def _headers(self, at: int) -> tuple[ctypes.Array[_Header], memoryview]:
        parts = (_Iovec * self._count)()
        headers = (_Header * self._count)()
        for n in range(self._count):
            parts[n].base, parts[n].length = at + n * ROOM, ROOM
            headers[n].parts, headers[n].count = ctypes.addressof(parts[n]), 1
        return headers, memoryview(parts).cast("B").cast("Q")

    def _launch(self, slots: list[int]) -> None:
        for place, slot in enumerate(slots):
            query = self._queries[self._next]
            self._next = (self._next + 1) % len(self._queries)
            self._out[slot * ROOM : slot * ROOM + 2 + len(query)] = slot.to_bytes(2, "big") + query
            self._send_parts[2 * place] = self._out_at + slot * ROOM
            self._send_parts[2 * place + 1] = 2 + len(query)
        now = time.perf_counter_ns()
        for slot in slots:
            self._sent_ns[slot] = now
        if self._libc.sendmmsg(self._socket.fileno(), self._send, len(slots), 0) != len(slots):
            raise OSError(ctypes.get_errno(), "sendmmsg")

    def fly(self, seconds: float, least: int = 0) -> tuple[float, float]:
        """Median of the time to an answer in microseconds, and answers per second; at least so many are taken.

        A wrong or lost answer ends it.
        """
        took: list[int] = []
        self._launch(list(range(self._count)))
        begin = time.perf_counter_ns()
        end = begin + int(seconds * 1e9)
        now = begin
        while now < end or len(took) < least:
            got = self._libc.recvmmsg(self._socket.fileno(), self._receive, self._count, MSG_WAITFORONE, None)
            now = time.perf_counter_ns()
            if got <= 0:
                raise TimeoutError("an answer was lost")
            slots = []
            for at in range(0, got * ROOM, ROOM):
                slot = self._in[at] << 8 | self._in[at + 1]
                if self._in[at + 3] & 15 or not self._in[at + 7]:
                    raise ValueError(f"not the answer: {bytes(self._in[at : at + 12]).hex()}")
                took.append(now - self._sent_ns[slot])
                slots.append(slot)
            self._launch(slots)
        self._socket.close()
        return statistics.median(took) / 1000, len(took) / ((now - begin) / 1e9)


def query(name: str) -> bytes:
    """Everything but the id."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


@dataclass
class Server:
    """One that serves, and what it is asked."""

    label: str
    process: subprocess.Popen[bytes]
    port: int
    queries: list[bytes]

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024

    def pin(self, cores: set[int]) -> None:
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def free_port() -> int:
    """One that is free for UDP and for TCP."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket() as stream:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            with contextlib.suppress(OSError):
                stream.bind(("127.0.0.1", port))
                return port


def start(stack: contextlib.ExitStack, label: str, command: list[str], port: int, names: list[str]) -> Server:
    """Waits until it answers; it is ended with the stack."""
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    stack.callback(process.kill)
    server = Server(label, process, port, [query(name) for name in names])
    end = time.monotonic() + 60
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                sock.sendto(b"\0\0" + server.queries[0], ("127.0.0.1", port))
                if sock.recv(512)[7]:  # records in the answer
                    return server
                time.sleep(0.1)
    raise SystemExit(f"{label} does not answer: {' '.join(command)}")


def proxy(
    stack: contextlib.ExitStack, folder: Path, label: str, names: list[str], asked: list[str], *options: str
) -> Server:
    table, port = folder / f"{label}.json", free_port()
    table.write_text(json.dumps({"table": {name: {"ips": [ADDRESS]} for name in names}}))
    listen = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "meshdns.dnsproxy", "--name-table", str(table), "--listen", listen, *options]
    return start(stack, label, command, port, asked)


def envoy(stack: contextlib.ExitStack, folder: Path, binary: Path) -> Server:
    port = free_port()
    kind = "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig"
    domain = {"name": NAME, "answer_ttl": "30s", "endpoint": {"address_list": {"address": [ADDRESS]}}}
    config = {"@type": kind, "stat_prefix": "b", "server_config": {"inline_dns_table": {"virtual_domains": [domain]}}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port, "protocol": "UDP"}}
    filters = [{"name": "envoy.filters.udp.dns_filter", "typed_config": config}]
    (folder / "envoy.json").write_text(
        json.dumps(
            {"static_resources": {"listeners": [{"name": "dns", "address": address, "listener_filters": filters}]}}
        )
    )
    command = [str(binary), "--config-path", str(folder / "envoy.json"), "--concurrency", "1", "--use-dynamic-base-id"]
    return start(stack, "envoy", command, port, [NAME])


def unbound(stack: contextlib.ExitStack, folder: Path, binary: str) -> Server:
    port = free_port()
    (folder / "unbound.conf").write_text(
        f'server:\n interface: 127.0.0.1@{port}\n do-daemonize: no\n chroot: ""\n directory: "{folder}"\n'
        ' username: ""\n pidfile: ""\n'
        f' use-syslog: no\n num-threads: 1\n local-zone: "cluster.local." static\n'
        f' local-data: "{NAME}. 30 IN A {ADDRESS}"\n'
        "remote-control:\n control-enable: no\n"
    )
    return start(stack, "unbound", [binary, "-d", "-c", str(folder / "unbound.conf")], port, [NAME])


def find_envoy(stack: contextlib.ExitStack, folder: Path, given: str | None) -> Path:
    """The binary asked for, in PATH, or out of the newest testbed image."""
    if found := given or shutil.which("envoy"):
        return Path(found)
    list_images = ["docker", "images", "meshdns/sidecar", "--quiet"]
    images = subprocess.run(list_images, capture_output=True, text=True, check=False).stdout.split()
    if not images:
        raise SystemExit(
            "Envoy is not in PATH and there is no testbed image; run `meshdns engine` or give --envoy FILE"
        )
    made = subprocess.run(["docker", "create", images[0]], capture_output=True, text=True, check=True).stdout.strip()
    stack.callback(subprocess.run, ["docker", "rm", made], capture_output=True, check=True)
    copy = ["docker", "cp", f"{made}:/usr/local/bin/envoy", str(folder / "envoy")]
    subprocess.run(copy, check=True, capture_output=True)
    return folder / "envoy"


def measure(servers: list[Server], rounds: int, seconds: float) -> dict[tuple[str, str], list[float]]:
    """(server, what) -> one value per round; the order within a round is random."""
    values: dict[tuple[str, str], list[float]] = {(s.label, what): [] for s in servers for what in FLIGHT}
    for _ in range(rounds):
        for what, count in FLIGHT.items():
            for server in random.sample(servers, len(servers)):
                p50_us, rate = Flight(server.port, server.queries, count).fly(seconds)
                values[server.label, what].append(rate if what == "rate" else p50_us)
    return values


def forwarding(stack: contextlib.ExitStack, folder: Path) -> list[Server]:
    """What is forwarded, and what options keep from being so."""
    behind = proxy(stack, folder, "behind", [FORWARDED, SEARCHED], [FORWARDED])
    behind.pin({SERVER_CORE})
    upstream = ("--upstream", f"127.0.0.1:{behind.port}")
    search = ("--resolv-conf", str(folder / "resolv.conf"))
    (folder / "resolv.conf").write_text("search shop.svc.cluster.local svc.cluster.local cluster.local\n")
    return [
        proxy(stack, folder, "forwarded", [NAME], [FORWARDED], *upstream),
        proxy(stack, folder, "forwarded, --cache", [NAME], [FORWARDED], *upstream, "--cache"),
        stale(stack, folder),
        proxy(stack, folder, "searched", [FORWARDED], [SEARCHED], *upstream, *search),
        proxy(stack, folder, "searched, --all-search", [FORWARDED], [SEARCHED], *upstream, *search, "--all-search"),
    ]


def stale(stack: contextlib.ExitStack, folder: Path) -> Server:
    """One that has nothing but what is over its time, and whose server is gone."""
    gone = proxy(stack, folder, "gone", [FORWARDED], [FORWARDED], "--ttl-s", "1")
    options = ("--upstream", f"127.0.0.1:{gone.port}", "--cache", "--serve-stale-s", "3600")
    server = proxy(stack, folder, "cache, --serve-stale-s", [NAME], [FORWARDED], *options)
    gone.process.kill()
    time.sleep(1.1)
    return server


@contextlib.contextmanager
def serving(folder: Path, given: str | None) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        many = [NAME, *(f"service-{n}.namespace-{n % 97}.svc.cluster.local" for n in range(MANY - 1))]
        random.shuffle(many)
        servers = [
            envoy(stack, folder, find_envoy(stack, folder, given)),
            proxy(stack, folder, "proxy", [NAME], [NAME]),
            proxy(stack, folder, "proxy, 50,000 names", many, [NAME]),
            proxy(stack, folder, "the same, all asked", many, many),
            proxy(stack, folder, "proxy, metrics", [NAME], [NAME], "--metrics", f"127.0.0.1:{free_port()}"),
            proxy(stack, folder, "proxy, --soa --ttl-s", [NAME], [NAME], "--soa", "--ttl-s", "5"),
            *forwarding(stack, folder),
        ]
        if found := shutil.which("unbound") or shutil.which("unbound", path="/usr/sbin"):
            servers.append(unbound(stack, folder, found))
        for server in servers:
            server.pin({SERVER_CORE})
        yield servers


def main() -> int:
    parser = argparse.ArgumentParser(description="speed of the DNS proxy beside Envoy's dns_filter and Unbound")
    parser.add_argument("--envoy", metavar="FILE", help="Envoy's binary (default: PATH, else the testbed's image)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement (default: 0.5)")
    options = parser.parse_args()
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        raise SystemExit("two cores are needed: one for the client, one for the server")
    with (
        tempfile.TemporaryDirectory(prefix="meshdns-bench-") as folder,
        serving(Path(folder), options.envoy) as servers,
    ):
        os.sched_setaffinity(0, {CLIENT_CORE})
        for server in servers:  # warm: every name was asked
            Flight(server.port, server.queries, 64).fly(options.seconds, len(server.queries) + 64)
        values = measure(servers, options.rounds, options.seconds)
        memory_mb = {server.label: server.memory_mb() for server in servers}
    return report([server.label for server in servers], values, memory_mb)


@dataclass(frozen=True)
class Ratio:
    """Median over rounds, and the order statistics that hold it in 95 of 100 cases whatever the distribution."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_of(mine: list[float], theirs: list[float]) -> Ratio:
    """Round by round; with fewer than six rounds there is no interval."""
    each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    outside, below = 0, 1.0 / 2 ** len(each)
    while below <= 0.025:
        outside += 1
        below += math.comb(len(each), outside) / 2 ** len(each)
    low, high = (each[outside - 1], each[-outside]) if outside else (math.nan, math.nan)
    return Ratio(statistics.median(each), low, high)


def report(labels: list[str], values: dict[tuple[str, str], list[float]], memory_mb: dict[str, float]) -> int:
    """The table, and 1 if a bar is missed."""

    def ratio(label: str, what: str, to: str) -> Ratio:
        return ratio_of(values[label, what], values[to, what])

    print(f"{'':22}" + "".join(f"{what:>36}" for what in FLIGHT) + f"{'memory':>10}")
    for label in labels:
        cells = [f"{statistics.median(values[label, w]):>10.0f} {'/s' if w == 'rate' else 'us'}" for w in FLIGHT]
        base = BASES.get(label, "envoy")
        ratios = [f"{ratio(label, what, base)!s:>18} {base[:4]}" for what in FLIGHT]
        print(
            f"{label:22}" + "".join(a + b for a, b in zip(cells, ratios, strict=True)) + f"{memory_mb[label]:>7.0f} MB"
        )
    many = "proxy, 50,000 names"
    memory = memory_mb["the same, all asked"]
    alone = ratio("proxy", "p50, 1 in flight", "envoy")
    bars = [
        ("p50 / Envoy's, 10 in flight", ratio("proxy", "p50, 10 in flight", "envoy"), "<=", P50_BAR),
        ("rate / Envoy's", ratio("proxy", "rate", "envoy"), ">=", RATE_BAR),
        ("p50 with 50,000 names / with one, 10 in flight", ratio(many, "p50, 10 in flight", "proxy"), "<=", MANY_BAR),
        ("peak memory with 50,000 names, MB", Ratio(memory, memory, memory), "<=", MEMORY_BAR_MB),
    ]
    missed = 0
    name = "p50 / Envoy's, 1 in flight"
    print(f"{name:48}{alone!s:>26}  no bar")
    for label, value, sign, bar in bars:
        good = value.median <= bar if sign == "<=" else value.median >= bar
        missed += not good
        sure = "" if not value.low <= bar <= value.high else "  (the interval reaches over it)"
        print(f"{label:48}{value!s:>26}  bar {sign} {bar:g}{'' if good else '  MISSED'}{sure}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
