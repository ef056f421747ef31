"""The mesh of the control plane's bench, and who takes part in it: control plane, sidecars, name servers.

In each mode others answer the names of a pod: the cluster DNS (BIND, told by the control plane's dynamic updates), the
DNS proxy beside the sidecar (told by a file), or Envoy's own filter (told with its listeners). All traffic stays on
loopback: BIND and Envoy run as processes of this machine, out of the testbed's images where they are not installed.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

import dnsproxy
from meshdns.interception.conventions import ISTIO
from meshdns.xds import api, bootstrap
from meshdns.xds.encoding import CDS, EDS, LDS, RDS, SDS
from meshdns.xds.node import Choices, Dns, Node
from meshdns.xds.server import SERVICE

CLIENTS, NAMESPACES = 8, 4
HEADLESS, EXTERNAL = 8, 9  # last digits of the services' numbers
PATIENCE_S = 300.0  # Envoy takes 10,000 services one by one, and the machine may be busy
ROOM = 10_000_000  # of one message: 10,000 services are one route table of 5 MB


def nodes(dns: Dns = "cluster") -> list[Node]:
    """The clients', and last the real Envoy's."""
    choices = Choices(dns_server="127.0.0.1")  # the testbed's cluster DNS is not there to be asked
    return [
        Node(f"pod-{n}", f"team-{n % NAMESPACES}", f"198.19.255.{n + 1}", dns=dns, choices=choices)
        for n in range(CLIENTS + 1)
    ]


# ---- the mesh


def mesh(count: int, moved: Collection[int] = ()) -> str:
    """The YAML; the first endpoint of the services with the numbers `moved` is somewhere else."""
    found = [
        f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {node.pod}, namespace: {node.namespace}}}\n"
        f"status: {{podIP: {node.address}}}\n"
        for node in nodes()
    ]
    for n in range(count):
        name, namespace, (high, low) = f"service-{n}", f"team-{n % 20}", divmod(n, 250)
        head = f"metadata: {{name: {name}, namespace: {namespace}"
        if n % 10 == EXTERNAL:
            found.append(
                f"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{head}}}\n"
                f"spec: {{hosts: [{name}.example.com], resolution: DNS, "
                "ports: [{number: 6000, name: tcp, protocol: TCP}]}\n"
            )
            continue
        address = "None" if n % 10 == HEADLESS else f"10.96.{high}.{low + 1}"
        first = f"198.18.{high + (100 if n in moved else 0)}.{low + 1}"
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


def names(count: int) -> list[str]:
    """The local ones."""
    return [f"service-{n}.team-{n % 20}.svc.cluster.local" for n in range(count) if n % 10 != EXTERNAL]


# ---- the control plane, a process of its own


@dataclass(frozen=True)
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


@contextlib.contextmanager
def plane(folder: Path, *options: str) -> Iterator[Plane]:
    (folder / "mesh").mkdir()
    (folder / "mesh" / "mesh.yaml").write_text(mesh(1))
    command = [sys.executable, "-m", "meshdns.xds", "--mesh", str(folder / "mesh"), "--probe", "none",
               "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", *options]  # fmt: skip
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
    referred: dict[tuple[str, str], str]  # what resources refer to, worked out once for all clients
    known: dict[str, dict[str, str]] = field(default_factory=lambda: collections.defaultdict(dict))
    bytes: collections.Counter[str] = field(default_factory=collections.Counter)
    last_s: float = 0.0  # Unix time of the last answer
    call: Any = None

    async def run(self, where: str) -> None:
        """Until cancelled."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", ROOM)]
        async with grpc.aio.insecure_channel(where, options=options) as channel:
            self.call = channel.stream_stream(
                f"/{SERVICE}/DeltaAggregatedResources",
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=None,
            )()
            who = json_format.ParseDict({"id": self.node.id, "metadata": self.node.metadata()}, base_pb2.Node())
            await self.call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=CDS, node=who))
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
        if key not in self.referred:
            value = one.resource.value
            self.referred[key] = _endpoints(value) if type_url == CDS else _table(value)
        return self.referred[key]

    async def _ask(self, type_url: str, names: list[str] | None = None, nonce: str = "") -> None:
        await self.call.write(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, resource_names_subscribe=names or (), response_nonce=nonce
            )
        )

    def has(self, wanted: dict[str, int]) -> bool:
        return all(len(self.known[url]) == count for url, count in wanted.items())


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
def envoy(program: Path, folder: Path, where: str, node: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A real one, on the ports that every sidecar has."""
    for port in (ISTIO.admin_port, ISTIO.inbound_port, ISTIO.outbound_port, ISTIO.stats_port, ISTIO.dns_port):
        _need(socket.SOCK_STREAM, "0.0.0.0", port)
    _need(socket.SOCK_DGRAM, "127.0.0.1", ISTIO.dns_port)
    (folder / "envoy.json").write_text(json.dumps(bootstrap.bootstrap(node, where)))
    process = subprocess.Popen(
        _envoy_command(program, folder / "envoy.json"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _need(kind: socket.SocketKind, address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, kind) as one:
        if kind == socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, port))
        except OSError:
            raise SystemExit(f"port {port} is taken, which a sidecar needs; end the process that has it") from None


def _envoy_command(program: Path, configuration: Path) -> list[str]:
    return [str(program), "-c", str(configuration), "--concurrency", "1", "--use-dynamic-base-id", "-l", "off"]


def envoy_memory_mb() -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{ISTIO.admin_port}/memory", timeout=PATIENCE_S) as reply:
        return int(json.load(reply)["allocated"]) / 1e6


# ---- who answers names


def cluster_dns(stack: contextlib.ExitStack, folder: Path, named: list[str]) -> tuple[dnsproxy.Server, tuple[str, ...]]:
    """BIND with an empty zone, and what a control plane must be told to fill it."""
    port, secret = dnsproxy.free_port(), base64.b64encode(os.urandom(32)).decode()
    (folder / "key").write_text(f'key "bench" {{ algorithm hmac-sha256; secret "{secret}"; }};\n')
    (folder / "zone").write_text(
        "$TTL 30\n@ IN SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ IN NS ns.dns\nns.dns IN A 10.96.0.10\n"
    )
    (folder / "named.conf").write_text(
        f'include "{folder}/key";\n'
        f'options {{ directory "{folder}"; pid-file none; session-keyfile "{folder}/session.key";\n'
        f"  listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; }};\n"
        "controls { };\n"
        f'zone "cluster.local" {{ type primary; file "{folder}/zone";\n'
        "  update-policy { grant bench zonesub ANY; }; allow-transfer { key bench; }; };\n"
    )
    command = [*named, "-g", "-n", "1", "-c", str(folder / "named.conf")]
    server = dnsproxy.start(stack, "the cluster DNS", command, port, ["ns.dns.cluster.local"])
    return server, ("--dns", f"127.0.0.1:{port}", "--dns-key", str(folder / "key"))


def find_named(folder: Path, given: str | None) -> list[str]:
    """What starts the BIND asked for, the newest image's, or that of the machine.

    The image's runs with the image's own loader and libraries. It comes before the machine's, which some distributions
    confine to folders of its own, and it is the one that the testbed measures.
    """
    if given:
        return [given]
    installed = shutil.which("named") or shutil.which("named", path="/usr/sbin")
    list_images = ["docker", "images", "meshdns/dns", "--quiet"]
    images = []
    if shutil.which("docker"):
        images = subprocess.run(list_images, capture_output=True, text=True, check=False).stdout.split()
    if not images:
        if installed:
            return [installed]
        raise SystemExit("there is neither a testbed image nor BIND; run `meshdns engine` or give --named FILE")
    made = subprocess.run(["docker", "create", images[0]], capture_output=True, text=True, check=True).stdout.strip()
    libraries, program = folder / "libraries", folder / "named"
    try:
        for source, target in ((f"/usr/lib/{platform.machine()}-linux-gnu", libraries), ("/usr/sbin/named", program)):
            subprocess.run(["docker", "cp", f"{made}:{source}", str(target)], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", made], capture_output=True, check=True)
    loader = next(libraries.glob("ld-linux*.so.*"))
    return [str(loader), "--library-path", str(libraries), str(program)]


def proxy(stack: contextlib.ExitStack, table: Path, name: str) -> dnsproxy.Server:
    """The DNS proxy, once it answers that name."""
    port = dnsproxy.free_port()
    command = [sys.executable, "-m", "meshdns.dnsproxy", "--name-table", str(table), "--listen", f"127.0.0.1:{port}"]
    return dnsproxy.start(stack, "the DNS proxy", command, port, [name])


def dns_filter(
    stack: contextlib.ExitStack, program: Path, folder: Path, listener: api.Json, name: str
) -> dnsproxy.Server:
    """An Envoy that has nothing but a sidecar's DNS listener, at a port of its own."""
    port = dnsproxy.free_port()
    listener = {**listener, "address": api.address("127.0.0.1", port, "UDP")}
    (folder / "filter.json").write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    return dnsproxy.start(stack, "Envoy's DNS filter", _envoy_command(program, folder / "filter.json"), port, [name])


def answered_s(port: int, name: str) -> float:
    """When a name server begins to answer that name, in Unix time; waits for it."""
    end = time.monotonic() + PATIENCE_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        sock.connect(("127.0.0.1", port))
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                sock.send(b"\0\0" + dnsproxy.query(name))
                if sock.recv(512)[7]:  # records in the answer
                    return time.time()
            time.sleep(0.01)
    raise SystemExit(f"{name} is not answered within {PATIENCE_S:g} s")
