"""Interception of one pod by eBPF, from start to end of a process.

The process runs in the pod's network namespace, beside the application and the proxy. Programs on cgroup hooks are
attached once, to the cgroup above the process's own (see `pod_parent`), and act only on sockets of this namespace, told
by its cookie; the proxy is told by its user or group, as Istio's rules do. So containers of the pod may restart, and no
path to a container's cgroup is needed. Sockets of other pods below the same cgroup cost one comparison per call; give
the pod's containers a `cgroup_parent` of their own, and there are none.

Every attachment is a link held by this process: TERM or KILL ends interception, and nothing is left. New connections
then go where they are addressed. A proxy that is absent while the loader lives: outbound connections are refused,
inbound ones dropped (`fail_closed`) or let through to the application.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from . import libbpf, settings

PAGE_PORT = 15099  # on loopback, beside the proxy's own ports
ASLEEP_S = 3600.0  # wakes for requests and signals only: it stands beside a measurement
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14
CGROUP_PROGRAMS = (
    "connections",  # first: a connection that is rewritten must find its hand-over in place
    "getsockopt",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "connect6",
    "connect4",
)


def namespace_cookie() -> int:
    """The kernel's number of this process's network namespace. Raises Refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return int(struct.unpack("=Q", any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
        except OSError as error:
            raise libbpf.Refused(f"the kernel has no namespace cookies ({error.strerror}); it needs 5.14") from None


def pod_parent(tree: Path) -> Path:
    """The cgroup above this process's own: the engine's, or the one Compose's `cgroup_parent` names.

    A container's own cgroup goes when it stops and takes its attachments along; the one above outlives restarts. It is
    found by this process's number in `cgroup.procs`, which holds for the hybrid layout (cgroup 2 beside version 1), for
    private cgroup namespaces, where /proc/self/cgroup says only `/`, and for either driver. Raises Refused.
    """
    if not (tree / "cgroup.controllers").exists():
        raise libbpf.Refused(f"there is no cgroup 2 tree at {tree}; mount the host's there (read-only is enough)")
    own = _holding(tree, os.getpid())
    if own is None or own == tree:
        raise libbpf.Refused(f"the loader's own cgroup is not in {tree}; mount the host's tree, not the container's")
    return own.parent


def _holding(tree: Path, pid: int) -> Path | None:
    """The cgroup in which a process is; numbers are those of our own pid namespace, 0 for strangers."""
    for folder, names, _ in os.walk(tree):
        names.sort()
        try:
            held = (Path(folder) / "cgroup.procs").read_text()
        except OSError:  # a threaded cgroup, or one that went meanwhile
            continue
        if str(pid) in held.split():
            return Path(folder)
    return None


class Interception:
    """In force from construction until the process ends."""

    def __init__(self, programs: Path, tree: Path, what: settings.Settings, *, fail_closed: bool = False) -> None:
        """Raises Refused, ValueError; nothing is attached then once the process has ended."""
        self.cgroup = pod_parent(tree)
        local = settings.local_addresses(Path("/proc/net/fib_trie").read_text())
        packed = what.packed(namespace_cookie(), local, fail_closed=fail_closed)
        self._programs = libbpf.Programs(programs, packed)
        self._programs.fill("ranges", what.range_entries())
        self._programs.attach(["inbound"], Path("/proc/self/ns/net"), namespace=True)
        self._programs.attach(CGROUP_PROGRAMS, self.cgroup)
        # After attaching: a proxy that starts meanwhile is seen by one or the other.
        self._programs.run("adopt")

    def counters(self) -> dict[str, int]:
        """Counts since the start, by the names of `settings.COUNTERS`."""
        return settings.totals(self._programs.per_cpu("counters", len(settings.COUNTERS)))


class PageServer(http.server.ThreadingHTTPServer):  # one silent client must not hold up the next
    """The page of counters on loopback: any path answers `{"counters": {NAME: COUNT}, "cgroup": PATH}`."""

    def __init__(self, port: int) -> None:
        """The port is ours, and nobody is answered yet. Raises Refused."""
        super().__init__(("127.0.0.1", port), _Page, bind_and_activate=False)
        try:
            self.server_bind()
        except OSError as error:
            fact = f"port {port} for the page of counters is taken ({error.strerror})"
            raise libbpf.Refused(f"{fact}; one loader per pod, or set --page") from None

    def open(self, interception: Interception) -> None:
        """Connections are accepted, to be answered by `serve_forever`."""
        self.interception = interception
        self.server_activate()


class _Page(http.server.BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        interception = self.server.interception
        document = {"counters": interception.counters(), "cgroup": str(interception.cgroup)}
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: standard output holds the line `ready` and no more."""
