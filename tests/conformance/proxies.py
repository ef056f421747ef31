"""Istio's agent without its Envoy, and this project's DNS proxy: started with the same table, servers and search list.

The agent takes its servers from /etc/resolv.conf and asks port 53, so all this runs in namespaces of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conformance import plane, servers

from meshdns.dnsproxy import nametable

NAMESPACE, DOMAIN = "shop", "cluster.local"
SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
SCOPE = nametable.Scope(NAMESPACE, DOMAIN, SEARCH)
TIMEOUT_S = 0.5  # until the next server is asked
RESOLV_CONF = Path("/etc/resolv.conf")
PATIENCE_S = 20.0
GRACE_S = 2.0  # one that waits for an answer that never comes does not end by itself
MARKER = "marker.meshdns.test"  # a host whose address tells which table is in force


@dataclass(frozen=True)
class Setup:
    """How both are started."""

    servers: tuple[str, ...] = servers.ADDRESSES
    parallel: bool = False
    listen: str = "127.0.0.1"  # of the agent; this project's proxy is on a free port
    port: int = 0  # the same; 0: a free one
    told: bool = True  # whether there is a name table

    def resolv_conf(self) -> str:
        """What a pod would have."""
        lines = [f"nameserver {address}" for address in self.servers]
        return "\n".join([*lines, f"search {' '.join(SEARCH)}", "options ndots:5", ""])


class Pair:
    """Both, serving."""

    def __init__(self, agent: tuple[str, int], own: tuple[str, int], folder: Path) -> None:
        self.agent, self.own = agent, own
        self.plane: plane.Plane | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._file = folder / "table.json"
        self._number = 0

    def put(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Both have this table, and a marker in it, when it returns."""
        assert self.plane is not None
        self._number += 1
        address = f"192.0.2.{self._number % 250 + 1}"
        whole = {**table, MARKER: {"ips": [address], "registry": "External"}}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({"table": whole}))
        fresh.replace(self._file)
        self.plane.put(whole)
        self._await(address)
        return whole

    def _await(self, address: str) -> None:
        query = b"\0\0\1\0\0\1\0\0\0\0\0\0" + _wire(MARKER) + b"\0\1\0\1"
        end = time.monotonic() + PATIENCE_S
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect(self.own)
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    sock.send(query)
                    if sock.recv(4096).endswith(socket.inet_aton(address)):
                        return
                time.sleep(0.005)
        raise TimeoutError("the DNS proxy has not taken its name table")


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


@contextlib.contextmanager
def running(binary: Path, setup: Setup, table: Mapping[str, Any]) -> Iterator[Pair]:
    """Both with this table."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshdns-agent-")))
        (folder / "resolv.conf").write_text(setup.resolv_conf())
        _mount(folder / "resolv.conf", RESOLV_CONF, stack)
        source = plane.Plane()
        stack.callback(source.close)
        if setup.told:
            (folder / "table.json").write_text(json.dumps({"table": dict(table)}))
            source.offer(table)
        agent = (setup.listen, setup.port or _free_port())
        process = stack.enter_context(_process(_agent(binary), _environment(setup, source.port, agent), folder))
        stop = threading.Event()
        stack.callback(stop.set)
        path = folder / "etc/istio/proxy/XDS"
        threading.Thread(target=plane.ask_as_envoy, args=(path, stop), daemon=True).start()
        own = stack.enter_context(_process(_proxy(setup, folder), dict(os.environ), folder, heard=True))
        assert own.stdout is not None
        own_port = int(own.stdout.readline().rpartition(b":")[2])
        source.taken() if setup.told else _await_open(agent)
        pair = Pair(agent, ("127.0.0.1", own_port), folder)
        pair.plane, pair.process = source, process
        yield pair


def _await_open(address: tuple[str, int]) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(address, 1):
            return
        time.sleep(0.01)
    raise TimeoutError("the agent does not listen")


def _mount(file: Path, over: Path, stack: contextlib.ExitStack) -> None:
    subprocess.run(["mount", "--bind", str(file), str(over)], check=True)
    stack.callback(subprocess.run, ["umount", str(over)], check=False)


def _agent(binary: Path) -> list[str]:
    domain = f"{NAMESPACE}.svc.{DOMAIN}"
    return [str(binary), "proxy", "sidecar", "--domain", domain, "--log_output_level", "default:error"]


def _environment(setup: Setup, plane_port: int, listen: tuple[str, int]) -> dict[str, str]:
    address = {"discoveryAddress": f"127.0.0.1:{plane_port}", "controlPlaneAuthPolicy": "NONE"}
    config = {**address, "statusPort": _free_port()}
    return {
        "PATH": os.environ.get("PATH", ""),
        "PROXY_CONFIG": json.dumps(config),
        "DISABLE_ENVOY": "true",
        "ISTIO_META_DNS_CAPTURE": "true",
        "DNS_PROXY_ADDR": "{}:{}".format(*listen),
        "DNS_FORWARD_TIMEOUT": f"{TIMEOUT_S * 1000:.0f}ms",
        "DNS_FORWARD_PARALLEL": str(setup.parallel).lower(),
        "FILE_MOUNTED_CERTS": "true",
        "POD_NAME": "client",
        "POD_NAMESPACE": NAMESPACE,
        "INSTANCE_IP": "127.0.0.1",
        "SERVICE_ACCOUNT": "default",
        "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "CLOUD_PLATFORM": "none",  # else it asks the addresses at which clouds tell who they are
        "GRPC_XDS_BOOTSTRAP": "",  # else it writes a file
    }


def _proxy(setup: Setup, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "meshdns", "dns-proxy", "--name-table", str(folder / "table.json")),
        *("--resolv-conf", str(folder / "resolv.conf"), "--namespace", NAMESPACE, "--domain", DOMAIN),
        *("--listen", "127.0.0.1:0", "--timeout-ms", f"{TIMEOUT_S * 1000:.0f}"),
        *(["--parallel"] if setup.parallel else []),
    ]


@contextlib.contextmanager
def _process(
    argv: Sequence[str], env: Mapping[str, str], folder: Path, *, heard: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (folder / f"{Path(argv[0]).name}.log").open("wb") as log,
        subprocess.Popen(
            argv, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if heard else log, stderr=log
        ) as made,
    ):
        try:
            yield made
        finally:
            made.send_signal(signal.SIGTERM)
            try:
                made.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                made.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
