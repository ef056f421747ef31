"""Serve observations until standard input ends."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 5  # a statistics page that takes longer is as good as down
CAPTURE = Path("/tmp/capture.pcap")  # noqa: S108  the container's own tmpfs
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
    """One tcpdump at a time, with nanosecond stamps of the kernel."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def start(self, expression: str, interface: str) -> None:
        """Returns when tcpdump listens."""
        argv = ["tcpdump", "-i", interface, "-n", "-s", "256", "-B", "8192", "-w", str(CAPTURE), "-Z", "root"]
        argv += ["--time-stamp-precision=nano", "--immediate-mode", "-U", *expression.split()]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None  # noqa: S101  asked for above
        for line in self.process.stderr:
            if "listening on" in line:
                return
        raise RuntimeError("tcpdump did not start")

    def stop(self) -> tuple[bytes, str]:
        """The capture file, and tcpdump's closing lines (packets dropped by the kernel stand there)."""
        assert self.process is not None  # noqa: S101  stop follows start
        time.sleep(0.05)  # packets of the last request may still be in the ring
        self.process.send_signal(signal.SIGINT)
        _, summary = self.process.communicate(timeout=TIMEOUT_S)
        self.process = None
        return CAPTURE.read_bytes(), summary


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
            capture.start(request["filter"], request["interface"])
            return {}
        case "captured":
            data, summary = capture.stop()
            return {"pcap": base64.b64encode(data).decode(), "summary": summary}
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
    if capture.process is not None:
        capture.process.kill()


if __name__ == "__main__":
    main()
