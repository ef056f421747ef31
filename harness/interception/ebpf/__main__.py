"""`python3 -m interception.ebpf`: the loader of one pod, the check whether it may, and the wait for it.

One line on standard output, `ready`, once interception is in force; then a page of counters until TERM. Exit codes:
0 after TERM, 2 bad arguments, 3 the kernel or the engine does not allow it: one line on standard error says why.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from . import libbpf, loader, settings

_NOT_ALLOWED = 3
_POLL_S = 0.02


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ebpf", description="Intercept one pod's traffic by eBPF until TERM.")
    add = parser.add_argument
    add("--programs", type=Path, default=Path("/usr/lib/meshdns/mesh.bpf.o"), help="the object file")
    add("--cgroup2", type=Path, default=Path("/cgroup2"), help="where the host's cgroup 2 tree is mounted")
    add("--page", type=settings.port, default=loader.PAGE_PORT, help="port of the page of counters, on loopback")
    add("--proxy-uid", type=int, default=settings.Settings.proxy_uid)
    add("--proxy-gid", type=int, default=settings.Settings.proxy_gid)
    add("--outbound-port", type=settings.port, default=settings.Settings.outbound_port)
    add("--inbound-port", type=settings.port, default=settings.Settings.inbound_port)
    add("--dns-port", type=settings.port, default=settings.Settings.dns_port)
    add("--capture-dns", action="store_true", help="send port 53, UDP and TCP, to the DNS port")
    add("--fail-closed", action="store_true", help="drop inbound connections while no proxy listens")
    add("--exclude-outbound", type=settings.ports, default=settings.Settings.outbound_excluded, metavar="PORTS")
    add("--exclude-inbound", type=settings.ports, default=settings.Settings.inbound_excluded, metavar="PORTS")
    add("--check", action="store_true", help="end at once: whether it is allowed here")
    add("--wait", type=float, metavar="SECONDS", help="load nothing: end once the pod's loader is ready, 1 if never")
    return parser.parse_args(argv)


def _settings(options: argparse.Namespace) -> settings.Settings:
    return settings.Settings(
        netns=loader.namespace_cookie(),
        local=settings.local_addresses(Path("/proc/net/fib_trie").read_text()),
        proxy_uid=options.proxy_uid,
        proxy_gid=options.proxy_gid,
        outbound_port=options.outbound_port,
        inbound_port=options.inbound_port,
        dns_port=options.dns_port,
        capture_dns=options.capture_dns,
        fail_closed=options.fail_closed,
        outbound_excluded=options.exclude_outbound,
        inbound_excluded=options.exclude_inbound,
    )


def _wait(port: int, patience_s: float) -> int:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(_POLL_S)
        else:
            return 0
    print(f"no eBPF loader answers on 127.0.0.1:{port} after {patience_s:g} s; see its log", file=sys.stderr)
    return 1


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main(argv: list[str]) -> int:
    """Until TERM or INT."""
    options = _arguments(argv)
    if options.wait is not None:
        return _wait(options.page, options.wait)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        page = loader.PageServer(options.page)  # first: a second loader of one pod must not get as far as attaching
        interception = loader.Interception(options.programs, options.cgroup2, _settings(options))
    except (libbpf.Refused, OSError, ValueError) as error:
        print(f"interception by eBPF is not possible here: {error}", file=sys.stderr)
        return _NOT_ALLOWED
    if not options.check:
        page.open(interception)
        print("ready", flush=True)
        page.serve_forever(poll_interval=loader.ASLEEP_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
