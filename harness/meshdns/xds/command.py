"""`python -m meshdns.xds`: options checked, parts put together, run until a signal."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import ipaddress
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from meshdns.core import errors
from meshdns.istio import records, registry
from meshdns.istio.registry import Registry
from meshdns.xds import authority, node, probes, server, status, watch
from meshdns.xds.announcements import Sinks
from meshdns.xds.authority import Certificates
from meshdns.xds.compile import Compiler
from meshdns.xds.namefiles import NameFiles
from meshdns.xds.nameserver import CHECK_S, NameServer, Target, key
from meshdns.xds.state import Compiled, State

DESCRIPTION = "tell sidecars, DNS proxies and the cluster DNS what the YAML of a folder says"
LISTEN = "0.0.0.0:15010"  # Istio's port for plain-text xDS; sidecars come from other pods
STATUS = "0.0.0.0:15014"  # Istio's monitoring port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option."""
    add = parser.add_argument
    add("--mesh", type=Path, required=True, metavar="FOLDER", help="the YAML; a change is in force within 0.4 s")
    add("--listen", default=LISTEN, metavar="ADDR:PORT", help=f"for sidecars: gRPC, plain text (default: {LISTEN})")
    add("--status", default=STATUS, metavar="ADDR:PORT", help=f"for people: /status, /ready (default: {STATUS})")
    add("--state", type=Path, metavar="FOLDER", help="keeps the authority's key and virtual IPs (default: in memory)")
    add("--names", type=Path, action="append", default=[], metavar="FOLDER",
        help="where a DNS proxy looks for names.json; may be repeated")  # fmt: skip
    more = parser.add_argument_group("cluster DNS")
    add = more.add_argument
    add("--dns", metavar="ADDR:PORT", help="a server that takes dynamic updates for the cluster's zone")
    add("--dns-key", type=Path, metavar="FILE", help="the key for it, as tsig-keygen prints it")
    add("--dns-keep", action="append", default=[], metavar="PATTERN",
        help="names (with final dot) that are not the control plane's, e.g. 'answer-*'; may be repeated")  # fmt: skip
    add("--dns-check-s", type=_seconds, default=CHECK_S, metavar="S",
        help=f"between two looks at the zone's serial; 0: none (default: {CHECK_S:g})")  # fmt: skip
    add("--dns-ttl-s", type=_count, default=records.TTL_S, metavar="S",
        help="time to live of the records (default: %(default)d)")  # fmt: skip
    more = parser.add_argument_group("readiness")
    add = more.add_argument
    add("--probe", default="tcp", metavar="PROBE", help="none, tcp[:PORT] or http[:PORT][/PATH] (default: tcp)")
    add("--probe-period-s", type=_positive, default=probes.PERIOD_S, metavar="S", help="(default: %(default)g)")
    add("--probe-timeout-s", type=_positive, default=probes.TIMEOUT_S, metavar="S", help="(default: %(default)g)")
    add("--probe-failures", type=_count, default=probes.FAILURES, metavar="N",
        help="in a row, until a pod is not ready (default: %(default)d)")  # fmt: skip
    more = parser.add_argument_group("certificates")
    add = more.add_argument
    add("--certificate-life-s", type=_positive, default=authority.LIFE_S, metavar="S", help="(default: %(default)g)")
    add("--rotate-at", type=_share, default=authority.ROTATE_AT, metavar="SHARE",
        help="of its life, when a certificate is replaced (default: %(default)g)")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and serve; the exit code."""
    parser = argparse.ArgumentParser(prog="control-plane", description=DESCRIPTION)
    add_arguments(parser)
    try:
        asyncio.run(serve(parser.parse_args(arguments)))
    except errors.MeshdnsError as error:
        _say(str(error))
        return error.exit_code
    return 0


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT, with new certificates at SIGUSR1; MeshdnsError for what keeps it from starting."""
    plane, dns = _parts(options)
    jobs = [dns.run()] if dns else []
    folder = watch.Folder(options.mesh, plane.loaded, _told(plane.failed))
    host, port = _address("--status", options.status)
    page = await status.serve(host, port, plane.to_json, lambda: plane.ready)
    listening = await plane.server.start(options.listen)
    print(f"{options.listen.rpartition(':')[0]}:{listening}", f"{host}:{page.sockets[0].getsockname()[1]}",
          sep="\n", flush=True)  # fmt: skip
    tasks = [asyncio.create_task(job) for job in (folder.run(), plane.run(), *jobs)]
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, plane.rotate)
    stop = asyncio.create_task(_signal())
    try:
        done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in (stop, *tasks):
            one.cancel()
        await asyncio.gather(stop, *tasks, return_exceptions=True)
        page.close()


def _parts(options: argparse.Namespace) -> tuple[State, NameServer | None]:
    probe = probes.parse(options.probe)
    if probe:
        probe = dataclasses.replace(probe, period_s=options.probe_period_s, timeout_s=options.probe_timeout_s,
                                    failures=options.probe_failures)  # fmt: skip
    _address("--listen", options.listen)
    dns = None
    if options.dns:
        host, port = _address("--dns", options.dns)
        signed = key(options.dns_key) if options.dns_key else None
        dns = NameServer(Target(host, port, signed, keep=tuple(options.dns_keep)), _say, options.dns_check_s)
    signer = authority.open_or_make(options.state, time.time())
    certificates = Certificates(signer, options.certificate_life_s, options.rotate_at)
    plane = State(compiler, identify, certificates, Sinks(NameFiles(options.names), dns, options.dns_ttl_s),
                  folder=options.state, probe=probe)  # fmt: skip
    return plane, dns


def compiler(model: Registry) -> Callable[[server.Node], Compiled]:
    """What one model makes of each sidecar."""
    made = Compiler(model)

    def compile_one(told: server.Node) -> Compiled:
        who = node.parse(told.metadata)
        return Compiled(made.snapshot(who), 2 if who.dns_proxy else 1, made.outbound(who).conflicts)

    return compile_one


def identify(model: Registry, told: server.Node) -> str:
    """The SPIFFE name of the pod that the sidecar says it belongs to; empty if there is no such pod."""
    who = node.parse(told.metadata)
    found = (pod for pod in model.workloads if (pod.meta.namespace, pod.meta.name) == (who.namespace, who.pod))
    return next((registry.identity(pod.meta.namespace, pod.service_account) for pod in found), "")


async def _signal() -> None:
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    await done.wait()


def _told(failed: Callable[[str], None]) -> Callable[[str], None]:
    """What is wrong is said here too."""

    def tell(reason: str) -> None:
        _say(f"{reason}\ncontrol-plane: what was in force stays")
        failed(reason)

    return tell


def _say(line: str) -> None:
    print(f"control-plane: {line}", file=sys.stderr, flush=True)


def _address(option: str, text: str) -> tuple[str, int]:
    """ADDR:PORT or [ADDR]:PORT."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        if not (port.isascii() and port.isdigit() and int(port) <= 65_535) or (address.version == 6) != ("[" in host):
            raise ValueError
    except ValueError:
        raise errors.InputError("this is not ADDR:PORT", place=f"{option} {text}",
                                step="e.g. 127.0.0.1:15010 or [::1]:15010") from None  # fmt: skip
    return str(address), int(port)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time; give 0 or more")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time; give more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a count; give 1 or more")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; give more than 0 and less than 1")
    return value
