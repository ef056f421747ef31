"""Serve observations, and changes to the pod's rules, until standard input ends."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pages import Pages
from .rules import counted, said

ETH_P_ALL = 0x0003  # linux/if_ether.h; outgoing packets are seen with this only
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
PACKET_OUTGOING = 4  # linux/if_packet.h
ROOM_BYTES = 64 << 20  # some 25,000 small packets: more than a captured trial sends
HEAD_BYTES = 128  # Ethernet, IPv4 and TCP with options fit
CONTROL_BYTES = 256


def _conntrack() -> int:
    """Entries in this namespace's connection tracking table."""
    path = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(path.read_text()) if path.exists() else 0


class Capture:
    """Packets of one interface with the kernel's own stamps.

    A bare packet socket that nobody reads during the load: the kernel queues a reference to each packet, wakes no one.
    tcpdump would be woken for every packet, and what it costs would be in what is measured.
    """

    def __init__(self, interface: str, ports: list[int], size: int = HEAD_BYTES) -> None:
        """From now on packets are kept, `size` bytes of each; without ports those of all."""
        self.ports, self.size, self.loopback = set(ports), size, interface == "lo"
        taking = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        taking.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        taking.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        taking.bind((interface, ETH_P_ALL))
        taking.setblocking(False)
        self.socket = taking

    def stop(self) -> bytes:
        """A pcap file (nanosecond stamps)."""
        out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, self.size, 1)]
        with self.socket as taken:
            while True:
                try:
                    frame, control, _, address = taken.recvmsg(self.size, CONTROL_BYTES)
                except BlockingIOError:
                    break
                if self._wanted(frame, address[2]):
                    seconds, nanoseconds = struct.unpack("qq", control[0][2][:16])
                    out.append(struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
        return b"".join(out)

    def _wanted(self, frame: bytes, direction: int) -> bool:
        """UDP or TCP over IPv4 with one of the ports at either end; on lo, where packets pass twice, once."""
        above = 14 + (frame[14] & 15) * 4 if len(frame) > 14 else 0
        if frame[12:14] != b"\x08\x00" or len(frame) < above + 4 or frame[23] not in (6, 17):
            return False
        if self.loopback and direction != PACKET_OUTGOING:
            return False
        return not self.ports or bool(self.ports & set(struct.unpack_from(">HH", frame, above)))


Request = dict[str, Any]


@dataclass
class State:
    """What lasts from one request to the next."""

    captures: dict[str, Capture] = field(default_factory=dict)  # by interface
    pages: Pages = field(default_factory=Pages)


def _snapshot(request: Request, state: State) -> dict[str, Any]:
    asked = state.pages.ask(request.get("pages", []))  # the servers work while the rules are read
    return {
        "rules": counted(request.get("rules", [])),
        "conntrack": _conntrack(),
        "pages": [question.answer() for question in asked],
    }


def _loaded(_: Request, _state: State) -> dict[str, Any]:
    """The rules and routes as the kernel holds them."""
    texts = [
        subprocess.run(c, capture_output=True, text=True, check=False).stdout
        for c in (["iptables-save"], ["nft", "list", "ruleset", "inet"], ["ip", "rule"], ["ip", "route"])
    ]
    return {"text": "\n".join(texts)}


def _tracked(_: Request, _state: State) -> dict[str, Any]:
    """Connection tracking entries, a line each, as conntrack(8) prints them."""
    return {"entries": said("conntrack", "-L", "-o", "extended").splitlines()}


def _capture(request: Request, state: State) -> dict[str, Any]:
    for interface in request["interfaces"]:
        state.captures[interface] = Capture(interface, request.get("ports", []), request.get("size", HEAD_BYTES))
    return {}


def _captured(_: Request, state: State) -> dict[str, Any]:
    found = {interface: state.captures.pop(interface).stop() for interface in list(state.captures)}
    return {"pcap": {interface: base64.b64encode(data).decode() for interface, data in found.items()}}


def _run(request: Request, _: State) -> dict[str, Any]:
    for command, given in request["commands"]:
        said(*command, given=given)
    return {}


OPERATIONS: dict[str, Callable[[Request, State], dict[str, Any]]] = {
    "snapshot": _snapshot,
    "loaded": _loaded,
    "tracked": _tracked,
    "capture": _capture,
    "captured": _captured,
    "run": _run,
}


def answer(request: Request, state: State) -> dict[str, Any]:
    """One observation, or one change."""
    if request["op"] not in OPERATIONS:
        return {"error": f"unknown op {request['op']!r}"}
    return OPERATIONS[request["op"]](request, state)


def main() -> None:
    """Answer each line; a failed observation is an answer too."""
    state = State()
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), state)
        except Exception as error:  # noqa: BLE001  the driver turns it into a message that names the pod
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
