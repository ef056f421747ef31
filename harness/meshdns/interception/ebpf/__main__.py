"""`python3 -m interception.ebpf`: the loader of one pod, the check whether it may, and the wait for it.

One line on standard output, `ready`, once interception is in force; then a page of counters until TERM. Exit codes:
0 after TERM, 2 bad arguments or options that the programs cannot honour, 3 the kernel or the engine does not allow it:
one line on standard error says why.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
from pathlib import Path

from .. import command
from ..options import Options
from ..refusal import Refusal
from . import libbpf, loader, settings

_NOT_ALLOWED = 3
_POLL_S = 0.02


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ebpf", description="Intercept one pod's traffic by eBPF until TERM.")
    add = parser.add_argument
    add("--programs", type=Path, default=Path("/usr/lib/meshdns/mesh.bpf.o"), help="the object file")
    add("--cgroup2", type=Path, default=Path("/cgroup2"), help="where the host's cgroup 2 tree is mounted")
    add("--page", type=settings.port, default=loader.PAGE_PORT, help="port of the page of counters, on loopback")
    add("--config", metavar="FILE", help="options as JSON, those of `rules`; - reads standard input (default: Istio's)")
    add("--fail-closed", action="store_true", help="drop inbound connections while no proxy listens")
    add("--check", action="store_true", help="end at once: whether it is allowed here")
    add("--wait", type=float, metavar="SECONDS", help="load nothing: end once the pod's loader is ready, 1 if never")
    return parser.parse_args(argv)


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


def main(argv: list[str]) -> int:
    """Until TERM or INT."""
    arguments = _arguments(argv)
    if arguments.wait is not None:
        return _wait(arguments.page, arguments.wait)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    try:
        options = command.read(arguments.config) if arguments.config else Options()
        what = settings.from_options(options)
    except Refusal as refusal:
        print(f"interception by eBPF: {refusal}", file=sys.stderr)
        return refusal.exit_code
    try:
        page = loader.PageServer(arguments.page)  # first: a second loader of one pod must not get as far as attaching
        interception = loader.Interception(
            arguments.programs, arguments.cgroup2, what, fail_closed=arguments.fail_closed
        )
    except (libbpf.Refused, OSError, ValueError) as error:
        print(f"interception by eBPF is not possible here: {error}", file=sys.stderr)
        return _NOT_ALLOWED
    if not arguments.check:
        page.open(interception)
        print("ready", flush=True)
        page.serve_forever(poll_interval=loader.ASLEEP_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
