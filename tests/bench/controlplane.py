"""Scale of the control plane: `python tests/bench/controlplane.py [--envoy FILE] [--services N …]`.

For each number of services, a control plane of its own that serves eight sidecars (clients that speak incremental ADS,
in four namespaces) and one real Envoy. What it takes to compile, alone and for all; from the moment a configuration has
been read to the last answer of the last sidecar; what is sent by type, and after one endpoint has changed; memory at
both ends; and how long `meshdns dns-proxy` takes to answer from that name table. Exits with 1 if a bar is missed.

Of ten services eight have a cluster IP, one is headless, one is a ServiceEntry for a TCP service without an address.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["GRPC_VERBOSITY"] = "ERROR"  # read when gRPC is loaded; else it tells of every control plane that ends

import dnsproxy
import grpc.aio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2

from harness.controlplane import bootstrap
from harness.controlplane.compile import Compiler, Snapshot
from harness.controlplane.encoding import CDS, EDS, LDS, RDS, SDS, SHORT, Encoder
from harness.controlplane.node import Choices, Node
from harness.controlplane.server import SERVICE
from harness.mesh.topology import PORT_ADMIN, PORT_INBOUND, PORT_OUTBOUND, PORT_STATS
from harness.model import reader, registry, vips

COUNTS = (10, 100, 1000, 10_000)
SIDECARS, NAMESPACES = 8, 4
PUSH_BARS_S = {1000: 2.0, 10_000: 20.0}
MEMORY_BAR_MB = {1000: 200}
CHANGE_BAR_BYTES = 2000  # one changed endpoint, per sidecar: the endpoints of one port and the head of the message
PATIENCE_S = 90.0
ROOM = 10_000_000  # of one message: 10,000 services are one route table of 5 MB


def sidecars() -> list[Node]:
    return [Node(f"pod-{n}", f"team-{n % NAMESPACES}", f"198.19.255.{n + 1}", dns="agent") for n in range(SIDECARS + 1)]


def mesh(count: int, moved: int = -1) -> str:
    """The YAML; the first endpoint of service number `moved` is somewhere else."""
    found = [
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {node.pod}, namespace: {node.namespace}}}\n"
        f"status: {{podIP: {node.address}}}\n"
        for node in sidecars()
    ]
    for n in range(count):
        name, namespace, (high, low) = f"service-{n}", f"team-{n % 20}", divmod(n, 250)
        head = f"metadata: {{name: {name}, namespace: {namespace}"
        if n % 10 == 9:
            found.append(
                f"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{head}}}\n"
                f"spec: {{hosts: [{name}.example.com], resolution: DNS, "
                "ports: [{number: 6000, name: tcp, protocol: TCP}]}\n"
            )
            continue
        address = "None" if n % 10 == 8 else f"10.96.{high}.{low + 1}"
        first = f"198.18.{high + (100 if n == moved else 0)}.{low + 1}"
        found.append(
            f"apiVersion: v1\nkind: Service\n{head}}}\n"
            f"spec: {{clusterIP: {address}, "
            "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 5432}]}\n"
            f"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
            f"{head}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n"
            "ports: [{name: http, port: 8080}, {name: tcp, port: 5432}]\n"
            f"endpoints: [{{addresses: [{first}]}}, {{addresses: [198.19.{high}.{low + 1}]}}]\n"
        )
    return "---\n".join(found)


# ---- compiling, in this process


@dataclass
class Compiled:
    read_s: float
    one_s: float  # model and snapshot of one sidecar, as bytes
    all_s: float
    resources: dict[Node, dict[str, int]]  # by type


def compiled(text: str) -> Compiled:
    began = time.perf_counter()
    given = reader.parse({"mesh.yaml": text})
    read_s = time.perf_counter() - began
    took, sizes = [], {}
    for nodes in (sidecars()[:1], sidecars()[:SIDECARS]):
        began = time.perf_counter()
        allocation = vips.assign(vips.Allocation(), vips.wanted(given), vips.reserved(given))
        compiler, encoder = Compiler(registry.build(given, allocation.addresses)), Encoder()
        with encoder.sharing():
            for node in nodes:
                sizes[node] = _sizes(encoder, compiler.snapshot(node))
        took.append(time.perf_counter() - began)
    return Compiled(read_s, took[0], took[1], sizes)


def _sizes(encoder: Encoder, made: Snapshot) -> dict[str, int]:
    return {url: len(group.resources) for url, group in encoder.snapshot(made).items()}


# ---- a control plane of its own process


@dataclass
class Plane:
    process: subprocess.Popen[str]
    folder: Path
    ads: str
    status: str

    def tell(self, text: str) -> None:
        """The configuration from now on; the file is replaced whole."""
        fresh = self.folder / "fresh"
        fresh.write_text(text)
        fresh.replace(self.folder / "mesh" / "mesh.yaml")

    def shown(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.status}/status", timeout=PATIENCE_S) as reply:
            found: dict[str, Any] = json.load(reply)
        assert not found["configuration"]["error"], found["configuration"]["error"]
        return found

    def read_s(self, after_s: float) -> float:
        """When the configuration that is in force had been read, in Unix time; waits for one read after `after_s`."""
        while (at_s := float(self.shown()["configuration"]["last_change"]["at"])) < after_s:
            time.sleep(0.01)
        return at_s

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


@contextlib.contextmanager
def plane(folder: Path) -> Iterator[Plane]:
    (folder / "mesh").mkdir()
    (folder / "mesh" / "mesh.yaml").write_text(mesh(1))
    command = [sys.executable, "-m", "harness.controlplane", "--mesh", str(folder / "mesh"), "--probe", "none",
               "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", "--names", str(folder)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield Plane(process, folder, process.stdout.readline().strip(), process.stdout.readline().strip())
    finally:
        process.terminate()
        process.wait(10)


# ---- sidecars


@dataclass
class Client:
    """A sidecar without its data plane: asks as Envoy does, accepts everything, counts what comes."""

    node: Node
    known: dict[str, dict[str, str]] = field(default_factory=lambda: collections.defaultdict(dict))
    bytes: collections.Counter[str] = field(default_factory=collections.Counter)
    last_s: float = 0.0  # Unix time of the last answer
    call: Any = None

    _referred: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    async def run(self, where: str, referred: dict[tuple[str, str], str]) -> None:
        """Until cancelled; `referred` is what resources refer to, worked out once for all clients."""
        self._referred = referred
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", ROOM)]
        async with grpc.aio.insecure_channel(where, options=options) as channel:
            self.call = channel.stream_stream(
                f"/{SERVICE}/DeltaAggregatedResources",
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=None,
            )()
            who: dict[str, Any] = {"id": self.node.id, "metadata": self.node.metadata()}
            await self.call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, node=_node(who)))
            await self._ask(LDS)
            await self._ask(SDS, ["default", "ROOTCA"])
            while True:
                data = await self.call.read()
                await self._take(discovery_pb2.DeltaDiscoveryResponse.FromString(data), len(data))

    async def _take(self, message: Any, size: int) -> None:
        self.bytes[message.type_url] += size
        known, wanted = self.known[message.type_url], []
        for one in message.resources:
            known[one.name] = one.version
            if message.type_url in (CDS, LDS):
                wanted.append(self._refers(message.type_url, one))
        for name in message.removed_resources:
            known.pop(name, None)
        await self._ask(message.type_url, nonce=message.nonce)
        if message.type_url in (CDS, LDS):
            other = EDS if message.type_url == CDS else RDS
            fresh = sorted({name for name in wanted if name} - self.known[other].keys())
            if fresh:
                await self._ask(other, fresh)
        self.last_s = time.time()

    def _refers(self, type_url: str, one: Any) -> str:
        key = one.name, one.version
        if key not in self._referred:
            value = one.resource.value
            self._referred[key] = _endpoints(value) if type_url == CDS else _table(value)
        return self._referred[key]

    async def _ask(self, type_url: str, names: list[str] | None = None, nonce: str = "") -> None:
        await self.call.write(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, resource_names_subscribe=names or (), response_nonce=nonce
            )
        )

    def has(self, wanted: dict[str, int]) -> bool:
        return all(len(self.known[url]) == count for url, count in wanted.items())


def _node(who: dict[str, Any]) -> Any:
    from envoy.config.core.v3 import base_pb2
    from google.protobuf import json_format

    return json_format.ParseDict(who, base_pb2.Node())


def _endpoints(value: bytes) -> str:
    found = cluster_pb2.Cluster.FromString(value)
    return str(found.name) if found.type == cluster_pb2.Cluster.EDS else ""


def _table(value: bytes) -> str:
    manager = http_connection_manager_pb2.HttpConnectionManager()
    found = listener_pb2.Listener.FromString(value)
    for chain in (*found.filter_chains, found.default_filter_chain):
        for one in chain.filters:
            if one.typed_config.Unpack(manager) and manager.rds.route_config_name:
                return str(manager.rds.route_config_name)
    return ""


@contextlib.contextmanager
def envoy(program: Path, folder: Path, where: str) -> Iterator[Node]:
    """A real one, on its own ports."""
    node = dataclasses.replace(sidecars()[-1], choices=Choices(dns_server="127.0.0.1"))
    for port in (PORT_ADMIN, PORT_INBOUND, PORT_OUTBOUND, PORT_STATS):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("0.0.0.0", port))
            except OSError:
                raise SystemExit(f"port {port} is taken, which a sidecar needs; end the process that has it") from None
    (folder / "envoy.json").write_text(json.dumps(bootstrap.bootstrap(node, where)))
    command = [
        str(program),
        "-c",
        str(folder / "envoy.json"),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "-l",
        "off",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield node
    finally:
        process.kill()
        process.wait()


def envoy_memory_mb() -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT_ADMIN}/memory", timeout=PATIENCE_S) as reply:
        return int(json.load(reply)["allocated"]) / 2**20


def accepted(shown: dict[str, Any], node: Node) -> bool:
    """The control plane knows that the sidecar has taken everything."""
    types = shown["nodes"].get(node.id, {}).get("types", {})
    done = [one["offered"] == one["accepted"] and not one["waiting"] for one in types.values()]
    assert not any(one["rejections"] for one in types.values()), types
    return len(done) >= 3 and all(done)


# ---- one size


@dataclass
class Measured:
    count: int
    compiled: Compiled
    pushed_s: float = 0.0  # from the configuration that was read to the last answer of the last client
    envoy_s: float = 0.0  # and of Envoy
    whole_s: float = 0.0  # from the file to the last answer: watching and reading too
    bytes: dict[str, int] = field(default_factory=dict)  # to one client
    change_bytes: int = 0  # to one client after one endpoint changed
    change_types: str = ""
    change_s: float = 0.0
    plane_mb: float = 0.0
    envoy_mb: float = 0.0
    table: Path = Path()


async def measure(count: int, folder: Path, program: Path) -> Measured:
    text, moved = mesh(count), mesh(count, moved=0)
    found = Measured(count, compiled(text))
    expected = found.compiled.resources
    with plane(folder) as serving, envoy(program, folder, serving.ads) as real:
        clients = [Client(node) for node in sidecars()[:SIDECARS]]
        referred: dict[tuple[str, str], str] = {}
        tasks = [asyncio.create_task(one.run(serving.ads, referred)) for one in clients]
        await until(tasks, lambda: all(one.known[LDS] and one.known[SDS] for one in clients))
        await until_accepted(serving, real)
        for one in clients:
            one.bytes.clear()
        began = time.time()
        serving.tell(text)
        await until(tasks, lambda: all(one.has(expected[one.node]) for one in clients))
        last_s = max(one.last_s for one in clients)
        await until_accepted(serving, real, count)
        took_s = time.time() - began
        read_s = serving.read_s(began) - began
        found.whole_s = last_s - began
        found.pushed_s, found.envoy_s = found.whole_s - read_s, took_s - read_s
        found.bytes = {SHORT[url]: size for url, size in clients[0].bytes.items()}
        found.envoy_mb = envoy_memory_mb()
        await change(found, serving, clients, tasks, moved)
        found.plane_mb = serving.rss_mb()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found.table = folder / "names.json"
    return found


async def change(found: Measured, serving: Plane, clients: list[Client], tasks: list[Any], moved: str) -> None:
    """One endpoint is somewhere else."""
    for one in clients:
        one.bytes.clear()
    began = time.time()
    serving.tell(moved)
    await until(tasks, lambda: all(one.last_s > began for one in clients))
    found.change_s = max(one.last_s for one in clients) - serving.read_s(began)
    await asyncio.sleep(0.5)  # whatever else there may be
    found.change_bytes = max(sum(one.bytes.values()) for one in clients)
    found.change_types = "+".join(sorted({SHORT[url] for one in clients for url in one.bytes}))


async def until(tasks: list[Any], true: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        for task in tasks:
            if task.done():
                task.result()
        if time.monotonic() > end:
            raise SystemExit(f"the sidecars did not get everything within {PATIENCE_S:g} s")
        await asyncio.sleep(0.002)


async def until_accepted(serving: Plane, node: Node, count: int = 0) -> None:
    end = time.monotonic() + PATIENCE_S

    def done(shown: dict[str, Any]) -> bool:
        clusters = shown["nodes"].get(node.id, {}).get("types", {}).get("CDS", {}).get("resources", 0)
        return accepted(shown, node) and clusters >= count

    while not done(await asyncio.to_thread(serving.shown)):
        if time.monotonic() > end:
            raise SystemExit(f"Envoy did not take everything within {PATIENCE_S:g} s")
        await asyncio.sleep(0.05)


# ---- names


def answers_us(folder: Path, tables: dict[int, Path], rounds: int = 5) -> dict[int, float]:
    """Median time to an answer with ten queries in flight, by number of services; rounds are interleaved."""
    name = "service-0.team-0.svc.cluster.local"
    values: dict[int, list[float]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        servers = {}
        for count, table in tables.items():
            port = dnsproxy.free_port()
            command = [sys.executable, "-m", "harness.dnsproxy", "--name-table", str(table), "--listen",
                       f"127.0.0.1:{port}"]  # fmt: skip
            servers[count] = dnsproxy.start(stack, f"names of {count}", command, port, [name])
        for _ in range(rounds):
            for count, server in servers.items():
                values[count].append(dnsproxy.Flight(server.port, server.queries, 10).fly(0.2)[0])
    return {count: sorted(those)[len(those) // 2] for count, those in values.items()}


# ---- what came out


def report(found: list[Measured], dns_us: dict[int, float]) -> int:
    """The table, and 1 if a bar is missed."""
    head = [
        "services",
        "read s",
        "one s",
        f"all {SIDECARS} s",
        "push s",
        "Envoy s",
        "file s",
        *map(SHORT.get, (CDS, EDS, LDS, RDS)),
    ]
    head += ["change B", "of", "change s", "plane MB", "Envoy MB", "DNS p50 µs"]
    rows = [
        [
            f"{one.count}",
            *(f"{value:.2f}" for value in (one.compiled.read_s, one.compiled.one_s, one.compiled.all_s)),
            *(f"{value:.2f}" for value in (one.pushed_s, one.envoy_s, one.whole_s)),
            *(f"{one.bytes.get(kind, 0) / 1000:.1f} kB" for kind in ("CDS", "EDS", "LDS", "RDS")),
            f"{one.change_bytes}", one.change_types, f"{one.change_s:.2f}",
            f"{one.plane_mb:.0f}", f"{one.envoy_mb:.0f}", f"{dns_us[one.count]:.0f}",
        ]
        for one in found
    ]  # fmt: skip
    widths = [max(len(str(row[n])) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        print("  ".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)))
    met = [passed(one) for one in found]  # every one is said
    return int(not all(met))


def passed(one: Measured) -> bool:
    """Say which bars one size has met."""
    bars = [(f"{one.count} services, bytes after one endpoint changed", one.change_bytes, CHANGE_BAR_BYTES)]
    if one.count in PUSH_BARS_S:
        bars += [(f"{one.count} services compiled and pushed, s", one.pushed_s, PUSH_BARS_S[one.count])]
    if one.count in MEMORY_BAR_MB:
        bars += [
            (f"{one.count} services, peak memory of the control plane, MB", one.plane_mb, MEMORY_BAR_MB[one.count])
        ]
    for label, value, bar in bars:
        print(f"{label:60}{value:>10.2f}  bar < {bar:g}  {'PASS' if value < bar else 'FAIL'}")
    return all(value < bar for _, value, bar in bars)


def main() -> int:
    parser = argparse.ArgumentParser(description="scale of the control plane")
    parser.add_argument("--envoy", metavar="FILE", help="Envoy's binary (default: PATH, else the testbed's image)")
    parser.add_argument("--services", metavar="N", type=int, nargs="+", default=list(COUNTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="meshdns-bench-") as given, contextlib.ExitStack() as stack:
        folder = Path(given)
        program = dnsproxy.find_envoy(stack, folder, options.envoy)
        found = []
        for count in options.services:
            (folder / str(count)).mkdir()
            found.append(asyncio.run(measure(count, folder / str(count), program)))
        dns_us = answers_us(folder, {one.count: one.table for one in found})
    return report(found, dns_us)


if __name__ == "__main__":
    sys.exit(main())
