"""Fuzzes the DNS proxy for as long as wanted: `python tests/dnsproxy/fuzz.py --seconds 3600 [--seed N]`.

The whole proxy runs in this process, on real sockets, between a client and an upstream that both send what no one
should: mutated queries by UDP and TCP, pieces and floods, forged and mutated answers, tables swapped and damaged
meanwhile. After every batch it must still answer a plain query rightly, and at the end hold no more sockets, attempts
and connections than at the start. With atheris installed (`--atheris`), coverage guides the messages instead of the
mutator. Exits with 1 and the seed that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import random
import socket
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "harness"))

from meshdns.dnsproxy import answer, cache, listener, nametable, wire
from meshdns.dnsproxy.metrics import Metrics
from meshdns.dnsproxy.proxy import Proxy
from meshdns.dnsproxy.reactor import Reactor
from meshdns.dnsproxy.tablefile import PERIOD_S, TableFile
from meshdns.dnsproxy.upstream import Forwarder, Server

BATCH = 200
SCOPE = nametable.Scope("shop", "cluster.local", ("shop.svc.cluster.local", "svc.cluster.local"))
TABLE = {
    "table": {
        "api.example.com": {"ips": ["192.0.2.1"]},
        "many.example.com": {"ips": [f"10.0.{a}.{b}" for a in range(4) for b in range(250)]},
        "*.wild.example.com": {"ips": ["192.0.2.2", "2001:db8::2"]},
        "reviews.shop.svc.cluster.local": {
            "ips": ["10.96.0.7"], "registry": "Kubernetes", "namespace": "shop", "shortname": "reviews",
        },
    }
}  # fmt: skip
NAMES = ["api.example.com", "many.example.com", "a.b.wild.example.com", "reviews", "unknown.test", "x" * 63 + ".test",
         "many.example.com.shop.svc.cluster.local", ".".join("abcdefghij" * 12)]  # fmt: skip
PIECES = [b"\0", b"\xc0\x0c", b"\xc0\x0d", b"\xff\xff", b"\x3f", b"\x40", b"\0\1\0\1", b"\0\0\x29\x04\xd0" + b"\0" * 6,
          b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\1\2\3\4", b"\0\6\0\1\0\0\0\1\0\x16\0\0" + b"\0" * 20]  # fmt: skip


def question(rng: random.Random) -> bytes:
    """A query as a resolver would send it."""
    name = rng.choice(NAMES)
    qtype = rng.choice([1, 28, 16, 65, 255, 6, 251])
    header = rng.randbytes(2) + b"\1\0\0\1\0\0\0\0\0"
    edns = rng.random() < 0.3
    tail = b"\0\0\x29" + rng.choice([512, 1232, 65_535]).to_bytes(2, "big") + b"\0" * 6 if edns else b""
    return header + bytes([edns]) + wire.encode_name(name) + qtype.to_bytes(2, "big") + b"\0\1" + tail


def mutated(rng: random.Random, message: bytes) -> bytes:
    """Some bytes changed, taken away, doubled or put in."""
    data = bytearray(message)
    for _ in range(rng.choice([0, 1, 1, 2, 4, 9])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                data[at:at] = rng.choice(PIECES)
            case 2:
                del data[at : at + rng.randrange(1, 12)]
            case 3:
                data[at:at] = data[at : at + 20]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 300))
    return bytes(data[:60_000])


class Stage:
    """The proxy in a thread, with everything switched on, and a lying upstream behind it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng, self.path = rng, folder / "table.json"
        self.path.write_text(json.dumps(TABLE))
        self.upstream_udp, self.upstream_tcp = listener.bind(socket.AF_INET, "127.0.0.1", 0)
        self.upstream_udp.setblocking(True)
        self.upstream_tcp.setblocking(True)
        port = self.upstream_udp.getsockname()[1]
        self.reactor = Reactor()
        metrics = Metrics(enabled=True)
        servers = [Server(socket.AF_INET, "127.0.0.1", port)] * 2
        self.forwarder = Forwarder(self.reactor, servers, 0.1, 64, metrics, parallel=rng.random() < 0.5)
        style = answer.Style(soa=rng.random() < 0.5)
        self.proxy = Proxy(self.reactor, self.forwarder, metrics, style, cache.Cache(2) if rng.random() < 0.5 else None)
        datagrams, stream = listener.bind(socket.AF_INET, "127.0.0.1", 0)
        self.address = datagrams.getsockname()
        self.udp = listener.Udp(self.reactor, datagrams, self.proxy)
        self.tcp = listener.Tcp(self.reactor, stream, self.proxy)
        file = TableFile(self.path, SCOPE, self.proxy.swap, lambda: None)
        for _ in file.look() or ():
            pass

        def look() -> None:
            if work := file.look():
                self.reactor.background(work)

        self.reactor.every(PERIOD_S, look)
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.reactor.run, self.lie, self.lie_tcp)]
        for thread in self.threads:
            thread.start()

    def lie(self) -> None:
        """Answers to upstream queries: mostly mutated ones, sometimes several, sometimes none."""
        rng = random.Random(self.rng.random())
        with contextlib.suppress(OSError):
            while True:
                query, peer = self.upstream_udp.recvfrom(65_535)
                for _ in range(rng.choice([0, 1, 1, 3])):
                    self.upstream_udp.sendto(self.lies(rng, query), peer)

    def lie_tcp(self) -> None:
        """The same over connections, cut at any place."""
        rng = random.Random(self.rng.random())
        while True:
            try:
                connection, _ = self.upstream_tcp.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(0.2)
                query = connection.recv(65_535)[2:]
                lie = self.lies(rng, query)
                connection.sendall((len(lie).to_bytes(2, "big") + lie)[: rng.choice([0, 1, 2, 13, 70_000])])

    @staticmethod
    def lies(rng: random.Random, query: bytes) -> bytes:
        reply = bytearray(query)
        if len(reply) > 8:
            reply[2] |= 0x80
            reply[7] = 1
        record = b"\xc0\x0c\0\1\0\1" + rng.choice([b"\0\0\0\0", b"\0\0\0\1", b"\xff" * 4]) + b"\0\4\1\2\3\4"
        return mutated(rng, bytes(reply) + record) if rng.random() < 0.7 else bytes(reply) + record

    def batch(self) -> None:
        """Some of everything."""
        rng = self.rng
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(self.address)
            for _ in range(BATCH):
                self.send(sock, mutated(rng, question(rng)) if rng.random() < 0.9 else rng.randbytes(rng.randrange(80)))
        for _ in range(4):
            with contextlib.suppress(OSError), socket.create_connection(self.address, 0.2) as stream:
                messages = [mutated(rng, question(rng)) for _ in range(rng.randrange(1, 30))]
                data = b"".join(len(m).to_bytes(2, "big") + m for m in messages)
                stream.sendall(mutated(rng, data) if rng.random() < 0.3 else data)
                if rng.random() < 0.5:
                    stream.settimeout(0.02)
                    stream.recv(65_535)
        if rng.random() < 0.2:
            text = json.dumps(TABLE)
            if rng.random() < 0.7:
                text = mutated(rng, text.encode()).decode("latin-1")
            self.path.write_text(text)
        if rng.random() < 0.1:
            self.path.unlink(missing_ok=True)

    @staticmethod
    def send(sock: socket.socket, message: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.send(message)

    def check(self) -> None:
        """A name that is in every table it may have, or was never in one: answered, and readably."""
        query = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + wire.encode_name("api.example.com") + b"\0\1\0\1"
        for attempt in range(50):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1)
                sock.connect(self.address)
                sock.send(query)
                try:
                    reply = sock.recv(4096)
                except TimeoutError:
                    continue  # lost in the flood: the receive queue was full
            if reply[:2] != query[:2]:
                continue  # a late answer to a socket that had this port before
            if len(reply) == wire.HEADER and reply[:2] == query[:2]:
                continue  # forwarded for want of a table, and the upstream said FORMERR without a question
            if reply[12 : len(query)] != query[12:]:
                raise AssertionError(f"attempt {attempt}: {reply.hex()} is not the answer")
            return
        raise AssertionError("no answer to a plain query any more")

    def settle(self) -> None:
        """With everybody gone, nothing is left over."""
        end = time.monotonic() + 30
        streams = self.tcp._acceptor._streams
        while self.forwarder.attempts or streams or len(self.forwarder.deadlines):
            if time.monotonic() > end:
                raise AssertionError(f"left over: {len(self.forwarder.attempts)} attempts, {len(streams)} connections")
            time.sleep(0.05)

    def close(self) -> None:
        self.reactor.stop()
        self.threads[0].join(10)
        self.upstream_udp.close()
        self.upstream_tcp.close()
        self.udp.close()
        self.tcp.close()
        self.forwarder.close()
        self.reactor.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def play(seed: int, seconds: float, folder: Path) -> int:
    """One stage until the time is over; the number of messages."""
    rng = random.Random(seed)
    stage = Stage(folder, rng)
    sent = 0
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stage.batch()
            stage.check()
            sent += BATCH
        stage.settle()
    finally:
        stage.close()
    return sent


def with_atheris(seconds: int) -> None:
    """Coverage-guided, one message per step, in this process and without sockets."""
    import atheris  # type: ignore[import-not-found,unused-ignore]  # an extra of whoever wants it

    for one_of in gc.get_objects():  # instrument_all takes minutes for what is not ours
        if isinstance(one_of, types.FunctionType) and "meshdns.dnsproxy" in str(one_of.__module__):
            atheris.instrument_func(one_of)
    reading = nametable.read(json.dumps(TABLE), SCOPE)
    table: nametable.NameTable | None = None
    while table is None:
        try:
            next(reading)
        except StopIteration as done:
            table = done.value
    reactor = Reactor()
    metrics = Metrics(enabled=True)
    nobody = Forwarder(reactor, [], 1, 1, metrics, parallel=False)
    proxy = Proxy(reactor, nobody, metrics, answer.Style(soa=True), None)
    proxy.swap(table)
    kept = cache.Cache(60)
    plain = wire.read_query(question(random.Random(1)))

    def one(data: bytes) -> None:
        sent: list[bytes] = []
        proxy.answer(data[1:], bool(data[:1] > b"\x7f"), sent.append)
        wanted = int(len(data) > wire.HEADER and not data[3] & 0x80)
        assert len(sent) == wanted, data
        if wanted:
            kept.store(plain, data[1:])
            kept.find(plain, 512)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=600"], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="fuzz the DNS proxy")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--atheris", action="store_true", help="guided by coverage (needs the package atheris)")
    options = parser.parse_args()
    if options.atheris:
        with_atheris(options.seconds)
        return 0
    before, sent, seed = descriptors(), 0, options.seed
    end = time.monotonic() + options.seconds
    said = io.StringIO()
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory(prefix="meshdns-fuzz-") as folder, contextlib.redirect_stderr(said):
            try:
                sent += play(seed, min(left, 60), Path(folder))
            except AssertionError as error:
                print(f"seed {seed}: {error}")
                return 1
        faults = [line for line in said.getvalue().splitlines() if "please report" in line]
        if faults or descriptors() > before:
            print(f"seed {seed}: {faults[0] if faults else f'{descriptors() - before} descriptors are left open'}")
            return 1
        said.truncate(0)
        seed += 1
    print(f"{sent} messages, seeds {options.seed} to {seed - 1}, {time.process_time():.0f} s of CPU time: "
          "every one answered or dropped, nothing left over")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
