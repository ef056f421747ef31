"""Two real Envoys with compiled configuration, one at each end of a veth: who gets in, and what travels encrypted.

Each end is a network namespace with one redirect rule; the configuration stands in a file, and certificates with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envoydriver import binary
from test_compile import CLIENT, PUBLISHED, SERVER, build, standing
from test_compile_envoy import issued

from generators import document
from meshdns.istio.registry import Registry
from meshdns.xds.api import Json
from meshdns.xds.compile import snapshot
from meshdns.xds.node import Node

pytestmark = pytest.mark.testbed
HERE, THERE = "meshdns-test-compile-c", "meshdns-test-compile-s"
APPLICATION_UID = 4242  # whose connections the client's rule captures; the sidecar runs as root
READY_S = 20
# Answers HTTP with 200 and its port, and anything else with itself.
APPLICATION = """
import socketserver, sys, threading
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            port = self.server.server_address[1]
            head = f"HTTP/1.1 200 OK\\r\\ncontent-length: {len(str(port))}\\r\\n\\r\\n{port}".encode()
            self.request.sendall(head if data.startswith(b"GET ") else data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
servers = [Server(("0.0.0.0", int(port)), Handler) for port in sys.argv[1:]]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
"""
# Asks for `http`, `http2` or `echo` at an address and port as a user, whose connections are captured.
ASK = """
import encodings.idna, encodings.latin_1, os, re, socket, sys  # all of it before the user changes, who may read nothing
kind, host, port, user = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if user:
    os.setuid(user)
def frame(kind, flags, stream, body=b""):
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
def frames(data):
    while len(data) >= 9:
        yield data[3]
        data = data[9 + int.from_bytes(data[:3], "big"):]
def whole(data):
    if kind == "http2":
        return 1 in frames(data)  # the headers of the answer
    head, end, body = data.partition(b"\\r\\n\\r\\n")
    length = re.search(rb"content-length: *([0-9]+)", head, re.I)
    return data if kind == "echo" else end and length and len(body) >= int(length[1])
get = bytes([0x82, 0x86, 0x84, 0x41, len(host)]) + host.encode()  # GET http://host/ as HPACK has it
asked = {
    "echo": b"hello\\n",
    "http": f"GET / HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n".encode(),
    "http2": b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + frame(4, 0, 0) + frame(1, 5, 1, get),
}[kind]
got = b""
with socket.create_connection((host, port), 3) as one:
    one.settimeout(3)
    one.sendall(asked)
    while not whole(got) and (more := one.recv(65536)):
        got += more
head, _, body = got.partition(b"\\r\\n\\r\\n")
text = got if kind != "http" or not got else head.split()[1] + b" " + body
sys.stdout.write(text.decode("latin-1").strip())
"""
PAGE = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:15000" + sys.argv[1], timeout=5).read().decode())
"""


def run(*argv: str, check: bool = True, given: str = "") -> str:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 or not check, f"{argv}: {done.stderr}"
    return done.stdout


def python(name: str, code: str, *argv: str, check: bool = True) -> str:
    """What a program prints in one of the namespaces."""
    return run("ip", "netns", "exec", name, sys.executable, "-I", "-c", code, *argv, check=check)


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return binary(tmp_path_factory.mktemp("envoy"))


@pytest.fixture(scope="module")
def pods() -> Iterator[None]:
    """Two namespaces joined by a veth; what comes in there and what the application sends out here is redirected."""
    if os.geteuid():
        pytest.skip("needs root: network namespaces")
    for tool in ("ip", "nft"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}: apt-get install iproute2 nftables")
    with contextlib.ExitStack() as stack:
        for name in (HERE, THERE):
            run("ip", "netns", "delete", name, check=False)
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-n", HERE, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", THERE)
        for name, address in ((HERE, CLIENT.address), (THERE, SERVER.address)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", link, "up")
        run("ip", "-n", HERE, "route", "add", "default", "via", SERVER.address)
        load(HERE, f"output priority -100; meta skuid {APPLICATION_UID} meta l4proto tcp redirect to :15001")
        load(THERE, "prerouting priority -100; meta l4proto tcp redirect to :15006")
        yield


def load(name: str, rule: str) -> None:
    run("ip", "netns", "exec", name, "nft", "-f", "-",
        given=f"table ip redirected {{ chain one {{ type nat hook {rule}; }}; }}\n")  # fmt: skip


class Ends:
    """A client and a server, each with its sidecar."""

    def http(self, address: str, port: int = 80, *, meshed: bool = True, version: str = "http") -> str:
        """Status code and body, or `closed`; `meshed`: through the client's sidecar."""
        return self._asked(version, address, port, meshed)

    def echo(self, address: str, port: int, *, meshed: bool = True) -> str:
        """What comes back, or `closed`."""
        return self._asked("echo", address, port, meshed)

    def _asked(self, kind: str, address: str, port: int, meshed: bool) -> str:
        user = APPLICATION_UID if meshed else 0
        return python(HERE, ASK, kind, address, str(port), str(user), check=False) or "closed"

    def counted(self, ask: Callable[[], str]) -> tuple[str, set[str]]:
        """What was answered, and which of the server's sidecar's counters it moved."""
        before = counters(THERE)
        said = ask()
        deadline = time.monotonic() + 2  # a connection is counted as TLS when it is closed
        while (moved := {key for key, count in counters(THERE).items() if count > before.get(key, 0)}) == set():
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return said, {_SHOWN[key] for key in moved}


_SHOWN = {
    "listener.0.0.0.0_15006.ssl.handshake": "mutual TLS",
    "http.inbound.downstream_rq_total": "HTTP",
    "http.inbound.downstream_cx_http2_total": "HTTP/2",
    "tcp.inbound.downstream_cx_total": "bytes",
    "listener.0.0.0.0_15006.no_filter_chain_match": "no chain",
}


def counters(name: str) -> dict[str, int]:
    page = python(name, PAGE, "/stats?format=json")
    return {one["name"]: one["value"] for one in json.loads(page)["stats"] if one.get("name") in _SHOWN}


@contextlib.contextmanager
def ends(envoy: Path, folder: Path, model: Registry, account: str = "sa-p0") -> Iterator[Ends]:
    """Both sidecars and the application run; all of it is stopped afterwards."""
    secrets = issued(account)
    with contextlib.ExitStack() as stack:
        application = (sys.executable, "-c", APPLICATION, "8080", "5432", "5000")
        start(stack, THERE, application, folder / "application.log")
        for name, node in ((HERE, CLIENT), (THERE, SERVER)):
            start(stack, name, _sidecar(envoy, folder / f"{name}.json", model, node, secrets), folder / f"{name}.log")
        for name in (HERE, THERE):
            wait(name, folder / f"{name}.log")
        yield Ends()


def _sidecar(envoy: Path, config: Path, model: Registry, node: Node, secrets: list[Json]) -> tuple[str, ...]:
    config.write_text(json.dumps(standing(node, snapshot(model, node), secrets)))
    return (str(envoy), "--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c", str(config))


def start(stack: contextlib.ExitStack, name: str, argv: tuple[str, ...], log: Path) -> None:
    process = subprocess.Popen(("ip", "netns", "exec", name, *argv), stdout=log.open("w"), stderr=subprocess.STDOUT)
    stack.callback(process.wait, 10)
    stack.callback(process.kill)


def wait(name: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while python(name, PAGE, "/ready", check=False).strip() != "LIVE":
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def mesh(mode: str) -> Registry:
    peer = document("PeerAuthentication", "security.istio.io/v1", "shop", "all", spec={"mtls": {"mode": mode}})
    return build(*PUBLISHED, peer)


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE", "DISABLE"])
def test_a_sidecar_takes_what_its_mode_says(envoy: Path, pods: None, tmp_path: Path, mode: str) -> None:
    inside = {"mutual TLS"} if mode != "DISABLE" else set()
    plain = mode != "STRICT"
    with ends(envoy, tmp_path, mesh(mode)) as both:
        assert both.counted(lambda: both.http("10.96.1.10")) == ("200 8080", inside | {"HTTP"})
        assert both.counted(lambda: both.echo("10.96.1.10", 5432)) == ("hello", inside | {"bytes"})
        # A port that says nothing: HTTP of either version and bytes are told apart at both ends.
        assert both.counted(lambda: both.http("10.96.1.10", 5000)) == ("200 5000", inside | {"HTTP"})
        assert both.counted(lambda: both.echo("10.96.1.10", 5000)) == ("hello", inside | {"bytes"})
        http2 = both.counted(lambda: both.http("10.96.1.10", 5000, version="http2"))
        assert http2[1] == inside | {"HTTP", "HTTP/2"}  # the application itself speaks HTTP/1.1 only
        # Without a sidecar at the client.
        here = SERVER.address
        refused = ("closed", {"no chain"})
        said = both.counted(lambda: both.http(here, 8080, meshed=False))
        assert said == (("200 8080", {"HTTP"}) if plain else refused)
        said = both.counted(lambda: both.echo(here, 5432, meshed=False))
        assert said == (("hello", {"bytes"}) if plain else refused)
        said = both.counted(lambda: both.http(here, 5000, meshed=False))
        assert said == (("200 5000", {"HTTP"}) if plain else refused)


def test_a_server_with_another_identity_is_not_spoken_to(envoy: Path, pods: None, tmp_path: Path) -> None:
    with ends(envoy, tmp_path, mesh("PERMISSIVE"), account="somebody-else") as both:
        assert both.http("10.96.1.10").startswith("503 upstream connect error")
        assert both.echo("10.96.1.10", 5432) == "closed"
