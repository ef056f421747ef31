"""Scale of the control plane: `python tests/bench/controlplane.py [--services N …] [--out FILE]`.

For each number of services and each mode a control plane of its own, which tells nine sidecars of that mode (eight
clients that speak incremental ADS, in four namespaces, and one real Envoy) and whoever answers their names: in `mode1`
the cluster DNS, in `mode2-agent` a DNS proxy in the pod, in `mode2-envoy` Envoy's own filter. A mesh is of one mode, so
the bars are held by each mode for itself. Pushed is what all clients have taken, Envoy when it has accepted everything;
the bar is on the later of the two. Exits with 1 if a bar is missed.

Of ten services eight have a cluster IP, one is headless, one is a ServiceEntry for a TCP service without an address.
After the push one endpoint of a cluster IP is moved, which changes no name, then one of a headless service, which does:
Envoy's filter has its table in one resource, so then it is sent whole, and no bar is held to that.

Names are asked when everything has been pushed: all local ones in turn, the servers of all modes and sizes in rounds of
random order, each pinned to one core and the client to another. Sidecars have fixed ports, so two cannot run at a time:
in the rounds the filter of `mode2-envoy` is the compiled listener in an Envoy of its own; the sidecar itself is asked
alone, right after its push. The cluster DNS is BIND on loopback, without dnsdist and without a network between.

`--out` writes a JSON object: `schema` (1), `taken_at` (UTC), `facts` (machine and versions), `bars` (each with `what`,
`mode`, `services`, `value`, `limit`, `met`) and `rows`, one per mode and number of services, with the fields of `Row`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRPC_VERBOSITY"] = "ERROR"  # read when gRPC is loaded; else it tells of every control plane that ends

import participants
from participants import CLIENTS, HEADLESS, PATIENCE_S, Client, Plane, mesh, names, plane

import dnsproxy
import meshdns
from meshdns.core import paths
from meshdns.interception.conventions import ISTIO
from meshdns.istio import reader, registry, vips
from meshdns.measure import facts
from meshdns.xds import api
from meshdns.xds.compile import Compiler, Snapshot
from meshdns.xds.encoding import CDS, EDS, LDS, RDS, SDS, SHORT, Encoder
from meshdns.xds.node import Dns, Node

MODES: dict[str, Dns] = {"mode1": "cluster", "mode2-agent": "agent", "mode2-envoy": "envoy"}
COUNTS = (10, 100, 1000, 10_000)
LEAST = 10  # services, so that each kind is there
SCHEMA = 1
PUSH_BARS_S = {1000: 2.0, 10_000: 20.0}
MEMORY_BAR_MB = {1000: 200}
CHANGE_BAR_BYTES = 2000  # one changed endpoint, per sidecar: the endpoints of one port and the head of the message
MOVED, MOVED_HEADLESS = 0, HEADLESS  # numbers of the services
QUIET_S = 0.5  # without a message, after which a change has been told
ROUNDS, FLIGHT_S = 7, 0.2
FLIGHTS = (1, 10)  # queries under way
Key = tuple[str, int]  # mode, services
Fields = dict[str, Any]  # of a row
PACKAGES = ("grpcio", "protobuf", "xds-protos", "dnspython")


@dataclass(frozen=True)
class Row:
    """One mode with one number of services. MB are 10^6 bytes; bytes are those that one client got."""

    mode: str
    services: int
    read_s: float  # YAML to resources
    compile_one_s: float  # resources to the bytes for one sidecar: model, snapshot, encoding
    compile_all_s: float  # and for all eight clients
    push_s: float  # from the configuration that has been read to the last answer of the last client
    envoy_push_s: float  # and to the moment at which the control plane knows that Envoy has taken everything
    names_s: float  # and to the first answer for the last name
    file_s: float  # from the file to the last answer of the last client: watching and reading too
    cds_bytes: int
    eds_bytes: int
    lds_bytes: int
    rds_bytes: int
    name_table_bytes: int | None  # the proxy's file, or the DNS listener, which is part of lds_bytes; mode1 has none
    dns_records: int | None  # in the cluster DNS; mode 2 is measured without one
    change_s: float  # one endpoint of a cluster IP is somewhere else: from the read configuration to the last answer
    change_bytes: int
    change_types: str
    headless_change_s: float  # one endpoint of a headless service is somewhere else
    headless_change_bytes: int
    headless_change_types: str
    control_plane_peak_mb: float  # resident
    envoy_mb: float  # allocated, after the push
    name_server_peak_mb: float | None  # BIND's or the proxy's, resident; Envoy's filter is part of envoy_mb
    sidecar_dns_p50_1_in_flight_us: float | None  # mode2-envoy: the sidecar itself, asked alone after its push
    sidecar_dns_p50_10_in_flight_us: float | None
    # The median of the rounds, and each round's median; other modes and sizes were asked between them.
    dns_p50_1_in_flight_us: float
    dns_p50_10_in_flight_us: float
    dns_rounds_1_in_flight_us: list[float]
    dns_rounds_10_in_flight_us: list[float]


# ---- compiling, in this process


@dataclass(frozen=True)
class Compiled:
    read_s: float
    one_s: float
    all_s: float
    resources: dict[Node, dict[str, int]]  # how many, by type
    dns_listener: api.Json | None
    dns_listener_bytes: int | None


def compiled(text: str, dns: Dns) -> Compiled:
    began = time.perf_counter()
    given = reader.parse({"mesh.yaml": text})
    read_s = time.perf_counter() - began
    took: list[float] = []
    counts: dict[Node, dict[str, int]] = {}
    made: Snapshot = {}
    everyone = participants.nodes(dns)[:CLIENTS]
    for nodes in (everyone[:1], everyone):
        began = time.perf_counter()
        allocation = vips.assign(vips.Allocation(), vips.wanted(given), vips.reserved(given))
        compiler, encoder = Compiler(registry.build(given, allocation.addresses)), Encoder()
        with encoder.sharing():
            for node in nodes:
                made = compiler.snapshot(node)
                counts[node] = {url: len(group.resources) for url, group in encoder.snapshot(made).items()}
        took.append(time.perf_counter() - began)
    listener = made[api.LISTENER].get("dns_udp")
    size = len(Encoder().group(LDS, {"dns_udp": listener}).resources["dns_udp"].value) if listener else None
    return Compiled(read_s, took[0], took[1], counts, listener, size)


# ---- one mode, one size


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


@dataclass(frozen=True)
class Programs:
    envoy: Path
    named: list[str]


class Bench:
    """One control plane, its sidecars, and the server that answers their names."""

    def __init__(self, mode: str, count: int, folder: Path, programs: Programs) -> None:
        self.mode, self.count, self.folder, self.programs = mode, count, folder, programs
        self.text = mesh(count)
        self.compiled = compiled(self.text, MODES[mode])
        self.nodes = participants.nodes(MODES[mode])
        referred: dict[tuple[str, str], str] = {}
        self.clients = [Client(node, referred) for node in self.nodes[:CLIENTS]]
        self.tasks: list[asyncio.Task[None]] = []

    async def run(self, stack: contextlib.ExitStack) -> tuple[Fields, dnsproxy.Server]:
        """What it came to; the name server lasts as long as the stack."""
        bind: dnsproxy.Server | None = None
        options: tuple[str, ...] = ("--names", str(self.folder)) if self.mode == "mode2-agent" else ()
        if self.mode == "mode1":
            bind, options = participants.cluster_dns(stack, self.folder, self.programs.named)
        with (
            plane(self.folder, *options) as serving,
            participants.envoy(self.programs.envoy, self.folder, serving.ads, self.nodes[-1]) as sidecar,
        ):
            server = bind or self._server(stack)
            server.queries = queries(self.count)
            own = dnsproxy.Server("the sidecar", sidecar, ISTIO.dns_port, server.queries)
            self.tasks = [asyncio.create_task(one.run(serving.ads)) for one in self.clients]
            await self._until(lambda: all(one.known[LDS] and one.known[SDS] for one in self.clients))
            await self._until_shown(serving, lambda shown: accepted(shown, self.nodes[-1]))
            found = await self._measure(serving, server, own if self.mode == "mode2-envoy" else None)
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return found, server

    def _server(self, stack: contextlib.ExitStack) -> dnsproxy.Server:
        first = names(1)[0]
        if self.compiled.dns_listener is None:
            return participants.proxy(stack, self.folder / "names.json", first)
        return participants.dns_filter(stack, self.programs.envoy, self.folder, self.compiled.dns_listener, first)

    async def _measure(self, serving: Plane, server: dnsproxy.Server, own: dnsproxy.Server | None) -> Fields:
        found = await self._push(serving, own or server)
        found |= await self._memory_and_names(serving, server, own)
        found |= await self._change(serving, "change", [MOVED])
        found |= await self._change(serving, "headless_change", [MOVED, MOVED_HEADLESS])
        found["control_plane_peak_mb"] = peak_mb(serving.process.pid)
        made = self.compiled
        return found | {"mode": self.mode, "services": self.count, "read_s": made.read_s,
                        "compile_one_s": made.one_s, "compile_all_s": made.all_s}  # fmt: skip

    async def _push(self, serving: Plane, answering: dnsproxy.Server) -> Fields:
        for one in self.clients:
            one.bytes.clear()
        began = time.time()
        serving.tell(self.text)
        last = max(names(self.count))  # the cluster DNS is told names in their order
        naming = asyncio.create_task(asyncio.to_thread(participants.answered_s, answering.port, last))
        await self._until(lambda: all(one.has(self.compiled.resources[one.node]) for one in self.clients))
        last_s = max(one.last_s for one in self.clients)
        await self._until_shown(serving, lambda shown: accepted(shown, self.nodes[-1], self.count))
        envoy_s, named_s, read_s = time.time(), await naming, serving.read_s(began)
        sizes = {f"{SHORT[url].lower()}_bytes": self.clients[0].bytes[url] for url in (CDS, EDS, LDS, RDS)}
        return {"push_s": last_s - read_s, "envoy_push_s": envoy_s - read_s, "names_s": named_s - read_s,
                "file_s": last_s - began, **sizes}  # fmt: skip

    async def _memory_and_names(self, serving: Plane, server: dnsproxy.Server, own: dnsproxy.Server | None) -> Fields:
        shown = await self._until_shown(serving, lambda shown: not shown["dns"] or told(shown["dns"]))
        table_bytes = self.compiled.dns_listener_bytes
        if self.mode == "mode2-agent":
            table_bytes = (self.folder / "names.json").stat().st_size
        own_us = ask({(self.mode, self.count): own})[self.mode, self.count] if own else {}
        return {
            "name_table_bytes": table_bytes,
            "dns_records": shown["dns"]["held"] if shown["dns"] else None,
            "envoy_mb": participants.envoy_memory_mb(),
            "name_server_peak_mb": None if own else peak_mb(server.process.pid),
            **{f"sidecar_dns_p50_{n}_in_flight_us": statistics.median(own_us[n]) if own else None for n in FLIGHTS},
        }

    async def _change(self, serving: Plane, what: str, moved: Sequence[int]) -> Fields:
        for one in self.clients:
            one.bytes.clear()
        began = time.time()
        serving.tell(mesh(self.count, moved))
        await self._until(lambda: all(one.last_s > began for one in self.clients))
        await self._until(lambda: time.time() - max(one.last_s for one in self.clients) > QUIET_S)
        most = max((one.bytes for one in self.clients), key=lambda sizes: sizes.total())
        return {
            f"{what}_s": max(one.last_s for one in self.clients) - serving.read_s(began),
            f"{what}_bytes": most.total(),
            f"{what}_types": "+".join(sorted(SHORT[url] for url in most)),
        }

    async def _until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            for task in self.tasks:
                if task.done():
                    task.result()
            if time.monotonic() > end:
                raise SystemExit(f"the sidecars did not get everything within {PATIENCE_S:g} s")
            await asyncio.sleep(0.002)

    async def _until_shown(self, serving: Plane, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The control plane's status that says so."""
        end = time.monotonic() + PATIENCE_S
        while not true(shown := await asyncio.to_thread(serving.shown)):
            if time.monotonic() > end:
                raise SystemExit(f"Envoy or the cluster DNS did not take everything within {PATIENCE_S:g} s")
            await asyncio.sleep(0.05)
        return shown


def accepted(shown: dict[str, Any], node: Node, clusters: int = 0) -> bool:
    """The control plane knows that the sidecar has taken everything, at least that many clusters.

    A sidecar that was too busy to answer pings comes back with what it has, and is sent nothing of such a type.
    """
    types = shown["nodes"].get(node.id, {}).get("types", {})
    done = [one["settled"] and (one["accepted"] == one["offered"] or not one["sent"]) for one in types.values()]
    assert not any(one["rejections"] for one in types.values()), types
    return len(done) >= 3 and all(done) and types.get("CDS", {}).get("resources", 0) >= clusters


def told(dns: dict[str, Any]) -> bool:
    """The cluster DNS has every record."""
    assert not dns["error"], dns["error"]
    return bool(dns["held"] == dns["wanted"])


# ---- names


def queries(count: int) -> list[bytes]:
    """For every local name, in an order that no table has."""
    found = [dnsproxy.query(name) for name in names(count)]
    return random.Random(count).sample(found, len(found))


def ask(servers: Mapping[Key, dnsproxy.Server]) -> dict[Key, dict[int, list[float]]]:
    """By number of queries under way: of each round the median time to an answer, in microseconds."""
    cores = os.sched_getaffinity(0)
    found: dict[Key, dict[int, list[float]]] = {key: {count: [] for count in FLIGHTS} for key in servers}
    work = [(key, count) for key in servers for count in FLIGHTS]
    for server in servers.values():
        server.pin({max(cores)})
        dnsproxy.Flight(server.port, server.queries, 10).fly(0, len(server.queries))  # warm: every name was asked
    os.sched_setaffinity(0, {min(cores)})
    try:
        for _ in range(ROUNDS):
            for key, count in random.sample(work, len(work)):
                took_us, _ = dnsproxy.Flight(servers[key].port, servers[key].queries, count).fly(FLIGHT_S)
                found[key][count].append(took_us)
    finally:
        os.sched_setaffinity(0, cores)
    for server in servers.values():
        server.pin(cores)
    return found


def answers(rounds_us: Mapping[int, Sequence[float]]) -> Fields:
    """What a row has of them."""
    medians = {f"dns_p50_{count}_in_flight_us": statistics.median(each) for count, each in rounds_us.items()}
    return {**medians, **{f"dns_rounds_{count}_in_flight_us": list(each) for count, each in rounds_us.items()}}


# ---- what came out


def seconds(value: float) -> str:
    return f"{value:.2f}"


def kilo(value: float) -> str:
    return f"{value / 1000:.1f}"


def whole(value: float) -> str:
    return f"{value:.0f}"


TABLES: dict[str, list[tuple[str, str, Callable[[Any], str]]]] = {  # heading: of each column its head, field and form
    "seconds: to compile, from the configuration that was read, and after one endpoint has moved": [
        ("read", "read_s", seconds), ("compile 1", "compile_one_s", seconds),
        (f"compile {CLIENTS}", "compile_all_s", seconds), ("pushed", "push_s", seconds),
        ("Envoy", "envoy_push_s", seconds), ("last name", "names_s", seconds), ("from file", "file_s", seconds),
        ("endpoint", "change_s", seconds), ("headless", "headless_change_s", seconds),
    ],
    "kB to one sidecar, and of the table of names; bytes to one sidecar after one endpoint has moved": [
        *((kind, f"{kind.lower()}_bytes", kilo) for kind in ("CDS", "EDS", "LDS", "RDS")),
        ("table", "name_table_bytes", kilo), ("DNS records", "dns_records", str),
        ("endpoint", "change_bytes", str), ("of", "change_types", str),
        ("headless", "headless_change_bytes", str), ("of", "headless_change_types", str),
    ],
    "MB of memory; µs to an answer of the name server (p50)": [
        ("control plane", "control_plane_peak_mb", whole), ("Envoy", "envoy_mb", whole),
        ("name server", "name_server_peak_mb", whole), ("1 in flight", "dns_p50_1_in_flight_us", whole),
        ("10 in flight", "dns_p50_10_in_flight_us", whole),
        ("sidecar, 1", "sidecar_dns_p50_1_in_flight_us", whole),
        ("sidecar, 10", "sidecar_dns_p50_10_in_flight_us", whole),
    ],
}  # fmt: skip


def show(rows: Sequence[Row]) -> None:
    """The tables; what a mode does not have is a dash."""
    for heading, columns in TABLES.items():
        cells = [["mode", "services", *(head for head, _, _ in columns)]]
        for row in rows:
            values = [(getattr(row, name), form) for _, name, form in columns]
            cells.append([row.mode, str(row.services), *("-" if v is None else form(v) for v, form in values)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(heading)
        for line in cells:
            print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
        print()


@dataclass(frozen=True)
class Bar:
    what: str
    mode: str
    services: int
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value < self.limit


def bars(row: Row) -> Iterator[Bar]:
    found = [
        ("compiled, pushed and taken by all, s", max(row.push_s, row.envoy_push_s), PUSH_BARS_S.get(row.services)),
        ("bytes to one sidecar after one endpoint changed", row.change_bytes, CHANGE_BAR_BYTES),
        ("peak memory of the control plane, MB", row.control_plane_peak_mb, MEMORY_BAR_MB.get(row.services)),
    ]
    for what, value, limit in found:
        if limit is not None:
            yield Bar(what, row.mode, row.services, value, limit)


def report(rows: Sequence[Row], held: Sequence[Bar]) -> int:
    """Everything for people, and 1 if a bar is missed."""
    show(rows)
    for bar in held:
        said = "PASS" if bar.met else "FAIL"
        print(
            f"{bar.mode:11}  {bar.services:>5} services, {bar.what:47}{bar.value:>9.2f}  bar < {bar.limit:<5g} {said}"
        )
    return int(not all(bar.met for bar in held))


def document(rows: Sequence[Row], held: Sequence[Bar], programs: Programs) -> dict[str, Any]:
    """What `--out` holds."""
    return {
        "schema": SCHEMA,
        "taken_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "facts": {"machine": facts.machine(), "versions": versions(programs)},
        "bars": [{**dataclasses.asdict(bar), "met": bar.met} for bar in held],
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def versions(programs: Programs) -> dict[str, str]:
    found = {"meshdns": meshdns.__version__, "commit": paths.commit(), "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name, command in (("envoy", [str(programs.envoy), "--version"]), ("bind", [*programs.named, "-v"])):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[name] = facts._version_in(said.removeprefix(command[0]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="scale of the control plane")
    parser.add_argument("--envoy", metavar="FILE", help="Envoy's binary (default: PATH, else the testbed's image)")
    parser.add_argument("--named", metavar="FILE", help="BIND's binary (default: the testbed's image, else PATH)")
    parser.add_argument("--services", metavar="N", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the rows there, as JSON")
    options = parser.parse_args()
    if min(options.services) < LEAST:
        parser.error(f"--services: give {LEAST} or more")
    if options.out and not options.out.absolute().parent.is_dir():
        parser.error(f"--out {options.out}: there is no such folder")
    fields: dict[Key, Fields] = {}
    servers: dict[Key, dnsproxy.Server] = {}
    with tempfile.TemporaryDirectory(prefix="meshdns-bench-") as given, contextlib.ExitStack() as stack:
        folder = Path(given)
        envoy = dnsproxy.find_envoy(stack, folder, options.envoy)
        programs = Programs(envoy, participants.find_named(folder, options.named))
        for count in dict.fromkeys(options.services):
            for mode in MODES:
                print(f"{mode}, {count} services", file=sys.stderr)
                place = folder / f"{mode}-{count}"
                place.mkdir()
                fields[mode, count], servers[mode, count] = asyncio.run(Bench(mode, count, place, programs).run(stack))
        rounds_us = ask(servers)
        rows = [Row(**found, **answers(rounds_us[key])) for key, found in fields.items()]
        held = [bar for row in rows for bar in bars(row)]
        if options.out:
            options.out.write_text(json.dumps(document(rows, held, programs), indent=1) + "\n")
    return report(rows, held)


if __name__ == "__main__":
    sys.exit(main())
