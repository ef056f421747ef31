"""Serve observations until standard input ends."""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 5  # a statistics page that takes longer is as good as down
ETH_P_ALL = 0x0003  # linux/if_ether.h; outgoing packets are seen with this only
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/if_packet.h
ROOM_BYTES = 64 << 20  # some 25,000 small packets: more than a captured trial sends
HEAD_BYTES = 128  # Ethernet, IPv4 and TCP with options fit
CONTROL_BYTES = 256
_COUNTED = re.compile(r"^\[(\d+):(\d+)\].*--comment \"?meshdns:(\w+)")


def rules() -> dict[str, int]:
    """Packets per rule comment, summed over the rules that share it (in nat: new flows)."""
    out = subprocess.run(["iptables-save", "-c"], capture_output=True, text=True, check=True).stdout
    counters: dict[str, int] = {}
    for line in out.splitlines():
        match = _COUNTED.match(line)
        if match:
            counters[match[3]] = counters.get(match[3], 0) + int(match[1])
    return counters


def loaded() -> str:
    """The rules and routes as the kernel holds them."""
    texts = [
        subprocess.run(c, capture_output=True, text=True, check=False).stdout
        for c in (["iptables-save"], ["ip", "route"])
    ]
    return "\n".join(texts)


def pages(requests: list[dict[str, Any]]) -> list[str | None]:
    """The body of each page, or None where it does not answer."""
    bodies: list[str | None] = []
    for one in requests:
        request = urllib.request.Request(one["url"], headers=one.get("headers", {}))  # noqa: S310  http, from the driver
        try:
            with urllib.request.urlopen(request, timeout=one.get("timeout_s", TIMEOUT_S)) as reply:  # noqa: S310
                bodies.append(reply.read().decode())
        except (urllib.error.URLError, OSError):
            bodies.append(None)
    return bodies


def conntrack() -> int:
    """Entries in this namespace's connection tracking table."""
    path = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(path.read_text()) if path.exists() else 0


class Capture:
    """Packets of one interface with the kernel's own stamps.

    A bare packet socket that nobody reads during the load: the kernel queues a reference to each packet, wakes no one.
    tcpdump would be woken for every packet, and what it costs would be in what is measured.
    """

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    def start(self, interface: str, ports: list[int]) -> None:
        """From now on packets are kept."""
        self.ports = set(ports)
        taking = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        taking.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        taking.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        taking.bind((interface, ETH_P_ALL))
        taking.setblocking(False)
        self.socket = taking

    def stop(self) -> tuple[bytes, int]:
        """A pcap file (nanosecond stamps, heads only) and the number of packets that found no room."""
        assert self.socket is not None  # noqa: S101  stop follows start
        out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, HEAD_BYTES, 1)]
        with self.socket as taken:
            while True:
                try:
                    frame, control, _, _ = taken.recvmsg(HEAD_BYTES, CONTROL_BYTES)
                except BlockingIOError:
                    break
                if self._wanted(frame):
                    seconds, nanoseconds = struct.unpack("qq", control[0][2][:16])
                    out.append(struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
            _, dropped = struct.unpack("II", taken.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.socket = None
        return b"".join(out), dropped

    def _wanted(self, frame: bytes) -> bool:
        """UDP or TCP over IPv4 with one of the ports at either end."""
        above = 14 + (frame[14] & 15) * 4 if len(frame) > 14 else 0
        if frame[12:14] != b"\x08\x00" or len(frame) < above + 4 or frame[23] not in (6, 17):
            return False
        return bool(self.ports & set(struct.unpack_from(">HH", frame, above)))


def answer(request: dict[str, Any], capture: Capture) -> dict[str, Any]:
    """One observation."""
    match request["op"]:
        case "snapshot":
            return {
                "rules": rules() if request.get("rules") else {},
                "conntrack": conntrack(),
                "pages": pages(request.get("pages", [])),
            }
        case "loaded":
            return {"text": loaded()}
        case "capture":
            capture.start(request["interface"], request["ports"])
            return {}
        case "captured":
            data, dropped = capture.stop()
            return {"pcap": base64.b64encode(data).decode(), "dropped": dropped}
        case other:
            return {"error": f"unknown op {other!r}"}


def main() -> None:
    """Answer each line; a failed observation is an answer too."""
    capture = Capture()
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), capture)
        except Exception as error:  # noqa: BLE001  the driver turns it into a message that names the pod
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
