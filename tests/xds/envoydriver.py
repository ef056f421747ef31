"""A real Envoy on loopback that knows nothing but a control plane; servers behind it, and a load in front of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serverdriver import PATIENCE_S

from meshdns.lab.compose import engine

_TYPE = "type.googleapis.com/envoy."


def binary(folder: Path) -> Path:
    """The program out of the sidecar's image."""
    engine.ensure(lambda _: None)
    image = engine.images(lambda _: None, ["envoy"]).tags["envoy"]
    name = f"meshdns-test-cp-{uuid.uuid4().hex[:8]}"
    _docker("create", "--name", name, image)
    try:
        _docker("cp", f"{name}:/usr/local/bin/envoy", str(folder / "envoy"))
    finally:
        _docker("rm", name)
    return folder / "envoy"


def _docker(*arguments: str) -> None:
    found = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


def bootstrap(node: str, xds_port: int, admin_port: int, *, delta: bool) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": xds_port}}
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": node, "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                }
            ]
        },
    }


@dataclass(eq=False)
class Envoy:
    process: subprocess.Popen[bytes]
    admin_port: int
    log: Path

    async def page(self, path: str) -> str:
        def get() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=PATIENCE_S) as reply:
                return str(reply.read().decode())

        return await asyncio.to_thread(get)

    async def counter(self, name: str) -> int:
        found = json.loads(await self.page(f"/stats?format=json&filter=^{name}$"))["stats"]
        return sum(int(one["value"]) for one in found if "value" in one)

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@contextlib.contextmanager
def envoy(program: Path, folder: Path, node: str, xds_port: int, *, delta: bool = True) -> Iterator[Envoy]:
    """Running; it comes up as soon as the control plane answers."""
    (admin_port,) = free_ports(1)
    name = node.replace("/", "-")
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    file.write_text(json.dumps(bootstrap(node, xds_port, admin_port, delta=delta)))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "info"],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield Envoy(process, admin_port, log)
        assert process.poll() is None, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def backend(name: str) -> AsyncIterator[int]:
    """An HTTP server that says its name; the port."""

    async def answer(read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await read.readuntil(b"\r\n\r\n"):
                write.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
                await write.drain()
        write.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def get(port: int, path: str = "/") -> tuple[str, str]:
    """Status and body over a connection of its own; what went wrong as the status."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            read, write = await asyncio.open_connection("127.0.0.1", port)
            try:
                write.write(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await read.read()).partition(b"\r\n\r\n")
                return head.split(b" ", 2)[1].decode() if head else "no answer", body.decode()
            finally:
                write.close()
    except (OSError, TimeoutError) as error:
        return type(error).__name__, str(error)


@dataclass
class Load:
    """Requests at a steady rate, each on a connection of its own."""

    answers: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)

    @property
    def failed(self) -> dict[tuple[str, str], int]:
        return {answer: count for answer, count in self.answers.items() if answer[0] != "200"}

    def seen(self, name: str) -> int:
        return self.answers["200", name]


@contextlib.asynccontextmanager
async def load(port: int, path: str = "/", rate_hz: float = 100.0) -> AsyncIterator[Load]:
    made = Load()
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        made.answers[await get(port, path)] += 1

    async def offer() -> None:
        due_s = time.monotonic()
        while True:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            due_s += 1 / rate_hz
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    offering = asyncio.create_task(offer())
    try:
        yield made
    finally:
        offering.cancel()
        await asyncio.gather(offering, *running, return_exceptions=True)


async def answers(port: int, body: str, path: str = "/") -> None:
    """Wait until requests are answered so."""
    last = ("", "")

    async def right() -> bool:
        nonlocal last
        last = await get(port, path)
        return last == ("200", body)

    end = time.monotonic() + PATIENCE_S
    while not await right():
        assert time.monotonic() < end, f"{last}, expected {body}"
        await asyncio.sleep(0.02)
