"""A fresh network namespace and cgroup, the eBPF programs in force there, and real sockets that meet them.

Run as a program in a namespace of its own (`unshare --net`): reads options and packets from standard input, and prints
which counter each packet moved, or none, and which ports a neighbour could connect to. Nobody but the proxy listens, so
that from outside a port answers only where it is captured.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import probe

from meshdns.interception.ebpf.loader import Interception
from meshdns.interception.ebpf.settings import from_options
from meshdns.interception.options import from_json

CONNECT = """
import json, socket, sys
def reached(port):
    with socket.socket() as one:
        one.settimeout(2)
        return one.connect_ex(("198.18.7.2", port)) == 0
print(json.dumps([reached(port) for port in json.loads(sys.argv[1])]))
"""


def meet(packet: dict[str, Any]) -> None:
    """A socket of the packet's user and group connects, or sends without being connected."""
    kind = socket.SOCK_STREAM if packet["protocol"] == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind((packet["source"], 0))
        one.settimeout(2 if packet["interface"] == "lo" else 0)  # who is addressed outside does not answer
        there = (packet["destination"], packet["destination_port"])
        os.setresgid(packet["gid"], packet["gid"], 0)
        os.setresuid(packet["uid"], packet["uid"], 0)
        try:
            with contextlib.suppress(OSError):
                if packet["protocol"] == "udp" and not packet["connected"]:
                    one.sendto(b"x", there)
                else:
                    one.connect(there)
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the programs did."""
    neighbour = probe.connect_namespaces()
    folder = Path(request["cgroup"]) / "member"
    folder.mkdir()
    (folder / "cgroup.procs").write_text(str(os.getpid()))
    what = from_options(from_json(request["options"], "options"))
    listeners = [socket.create_server(("127.0.0.1", port)) for port in (what.outbound_port, what.dns_port)]
    interception = Interception(Path(request["programs"]), Path(request["tree"]), what)
    listeners.append(socket.create_server(("0.0.0.0", what.inbound_port)))
    moved = []
    for packet in request["packets"]:
        before = interception.counters()
        meet(packet)
        after = interception.counters()
        moved.append([name for name in after if after[name] != before[name] and name != "handed_over"])
    argv = ["nsenter", "-t", str(neighbour.pid), "-n", sys.executable, "-c", CONNECT, json.dumps(request["ports"])]
    return {"moved": moved, "reached": json.loads(probe.call(*argv))}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
