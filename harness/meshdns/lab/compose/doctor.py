"""What this machine has, what it lacks, and the one command that mends each.

Looks only: nothing is installed, started or changed, and nothing is judged that would merely be nicer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meshdns.core import errors, paths
from meshdns.core.world import Nets
from meshdns.lab import locks
from meshdns.lab import world as worlds
from meshdns.lab.compose import debian, engine, sdk, testbed

State = Literal["ok", "missing", "warn"]

# As the README has them.
_DISK_BYTES = 6 * 10**9  # images 1.2 GB, their build cache 2.5 GB, virtual environment 1.1 GB, and runs
_MEMORY_BYTES = 2 * 10**9  # containers half a GiB, two notebook kernels of some 600 MB at most
_CPUS = 2  # on one, the client and the proxies it measures would take turns
_LAB_PORT = 8888
_STEAL_SHARE = 0.01  # above it a p99 may be the neighbour's
_STEADY_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")  # read without a system call


@dataclass(frozen=True)
class Finding:
    """One thing about the machine."""

    name: str
    state: State  # missing: the testbed cannot run; warn: it can, but mind the numbers
    detail: str
    mend: str = ""  # the one command, or what to change


def examine(nets: Nets, project: str) -> list[Finding]:
    """All findings, in the order in which they matter; `nets` are the networks that testbed `project` would take."""
    here = engine.look()
    return [
        _python(),
        *_engine(here),
        _measuring(),
        *([_images(), *_subnets(nets, project)] if here.server else []),
        *([] if paths.INSTALLED else [_port(_LAB_PORT)]),  # which `make lab` asks for
        _disk(),
        _memory(here),
        _cpus(here),
        _kernel(here),
        _clock(),
        _governor(),
        _steal(),
        _chromium(),
    ]


def table(findings: list[Finding]) -> str:
    """A plain table; each finding that is not ok is followed by what mends it."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:<{width}}  {finding.state:<7}  {finding.detail}")
        if finding.mend:
            lines.append(f"{'':<{width}}  {'':<7}  -> {finding.mend}")
    return "\n".join(lines)


def _python() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("python", "ok", version)
    return Finding(
        "python", "missing", f"{version}; 3.11 to 3.13 are supported", "rm -r .venv; make report PYTHON=python3.12"
    )


def _engine(here: engine.Engine) -> Iterator[Finding]:
    found = {problem.place: problem for problem in engine.problems(here)}
    details = {
        "engine": f"{here.server}, client {here.client}, storage {here.storage}",
        "compose": here.compose,
        "buildx": here.buildx,
    }
    for name, detail in details.items():
        problem = found.get(name)
        if problem:
            yield Finding(name, "missing", problem.fact, problem.step.removeprefix("run: "))
        elif here.client and detail:  # without a docker command there is nothing to have plugins
            yield Finding(name, "ok", detail)
    if here.server:
        yield _cgroup(here)


def _cgroup(here: engine.Engine) -> Finding:
    effects = {"cpuset": "the client shares its CPU with what it measures", "memory": "no memory is recorded"}
    lacks = [name for name in effects if name not in here.controllers]
    words = ["rootless: rule counters may be out of reach"] if here.rootless else []
    words += [f"no {name}: {effects[name]}" for name in lacks]
    mend = ""
    if lacks and here.rootless:  # systemd gives its users memory and pids only
        mend = "put Delegate=cpu cpuset io memory pids into user@.service"
    elif lacks:  # Raspberry Pi OS starts so
        mend = f"boot with {' '.join(f'cgroup_enable={name}' for name in lacks)}"
    return Finding("cgroup", "warn" if words else "ok", "; ".join([f"v{here.cgroup}", *words]), mend)


def _images() -> Finding:
    missing = engine.missing_images()
    if lacks := [each for each in missing if each in testbed.images_of(worlds.shipped(), ())]:
        return Finding("images", "missing", f"not built: {' '.join(lacks)}", "meshdns engine")
    return Finding(
        "images", "ok", "; built when needed: ".join(filter(None, ["built from this source tree", " ".join(missing)]))
    )


def _measuring() -> Finding:
    try:
        who = locks.machine().holder()
    except errors.EnvironmentProblem as problem:
        return Finding("measuring", "warn", f"{problem.place} {problem.fact}", problem.step)
    if who:
        return Finding("measuring", "warn", f"by {who}", "wait for it: whatever else runs here shows in its numbers")
    return Finding("measuring", "ok", "nobody does now")


def _networks(project: str) -> list[tuple[str, str]]:
    """(who holds it, network) of docker's networks and the host's routes, but for the testbed's own."""
    taken, bridges = list[tuple[str, str]](), set[str]()
    listing: list[Mapping[str, Any]] = []
    with contextlib.suppress(errors.MeshdnsError), sdk.asked():  # an engine that dies meanwhile has none
        listing = sdk.client().api.networks()
    for network in listing:
        configured = (network.get("IPAM") or {}).get("Config") or []
        subnets = [one["Subnet"] for one in configured if "." in one.get("Subnet", "")]  # IPv6 is in nobody's way
        bridges.update(subnets)
        if (network.get("Labels") or {}).get("com.docker.compose.project") != project:
            taken += [(f"the docker network {network['Name']}", subnet) for subnet in subnets]
    return taken + [("a route of this host", route) for route in host_routes() if route not in bridges]


def host_routes(path: Path = Path("/proc/net/route")) -> list[str]:
    """The host's IPv4 routes but for the default one."""
    routes = []
    for line in path.read_text().splitlines()[1:] if path.exists() else []:
        words = line.split()
        # The kernel prints addresses as host-order hex of network-order bytes.
        target, mask = (ipaddress.IPv4Address(int(words[n], 16).to_bytes(4, sys.byteorder)) for n in (1, 7))
        if int(mask):
            routes.append(str(ipaddress.IPv4Network(f"{target}/{mask}")))
    return routes


def _subnets(nets: Nets, project: str) -> list[Finding]:
    if problem := nets.problem():
        mend = "export MESHDNS_PODS=198.18.7 MESHDNS_WORLD=198.19.7"
        return [Finding("subnets", "missing", problem, mend)]
    taken = _networks(project)
    return [_subnet(subnet, taken) for subnet in nets.cidrs()]


def _subnet(subnet: str, taken: list[tuple[str, str]]) -> Finding:
    wanted = ipaddress.ip_network(subnet)
    for who, network in taken:
        if wanted.overlaps(ipaddress.ip_network(network)):
            mend = f"docker network rm {who.split()[-1]}" if "docker" in who else f"ip route del {network}"
            return Finding(f"subnet {subnet}", "missing", f"{who} holds {network}", mend)
    return Finding(f"subnet {subnet}", "ok", "free or ours")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as problem:
            return Finding(f"port {port}", "warn", problem.strerror or str(problem), f"make lab PORT={port + 1}")
    return Finding(f"port {port}", "ok", "free for JupyterLab")


def _disk() -> Finding:
    free = shutil.disk_usage(paths.HOME).free
    detail = f"{free / 1e9:.0f} GB free"
    if free >= _DISK_BYTES:
        return Finding("disk", "ok", detail)
    return Finding("disk", "warn", f"{detail}, {_DISK_BYTES / 1e9:.0f} GB are used", "free some space")


def _memory(here: engine.Engine) -> Finding:
    available = re.search(r"MemAvailable:\s+(\d+) kB", paths.text("/proc/meminfo"))
    free = (
        int(available[1]) * 1024 if available else here.memory_bytes
    )  # no /proc: the engine runs in a machine of its own
    detail = f"{free / 1e9:.1f} GB free"
    if free >= _MEMORY_BYTES:
        return Finding("memory", "ok", detail)
    return Finding("memory", "warn", f"{detail}, {_MEMORY_BYTES / 1e9:.0f} GB are used", "give the engine more memory")


def _cpus(here: engine.Engine) -> Finding:
    count = here.cpus or os.cpu_count() or 1
    if count >= _CPUS:
        return Finding("cpus", "ok", str(count))
    return Finding("cpus", "warn", f"{count}: client and proxies take turns", f"give the engine {_CPUS} CPUs")


def _kernel(here: engine.Engine) -> Finding:
    # Whether rules can be loaded is only known inside a container: the init containers say so themselves.
    return Finding("kernel", "ok", here.kernel or platform.release())


def _clock() -> Finding:
    source = paths.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not source or source in _STEADY_CLOCKS:
        return Finding("clock", "ok", source or "not told by this system")
    return Finding("clock", "warn", f"{source}: reading it costs microseconds", "boot with clocksource=tsc")


def _governor() -> Finding:
    governor = paths.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor in ("", "performance"):
        return Finding("cpu governor", "ok", governor or "none: frequency is not ours to set")
    mend = "sudo cpupower frequency-set -g performance"
    return Finding("cpu governor", "warn", f"{governor}: the clock rate follows the load", mend)


def _steal() -> Finding:
    """Since boot: CPU time that the hypervisor gave to others."""
    words = paths.text("/proc/stat").partition("\n")[0].split()[1:9]
    if len(words) < 8:
        return Finding("steal", "ok", "not told by this system")
    share = int(words[7]) / max(sum(map(int, words)), 1)
    if share < _STEAL_SHARE:
        return Finding("steal", "ok", f"{share:.2%} since boot")
    return Finding("steal", "warn", f"{share:.1%} since boot: tails may be a neighbour's", "use a quieter machine")


def _chromium() -> Finding:
    browser = engine.find_browser()
    if browser:
        return Finding("chromium", "ok", str(browser.chromium))
    mend = engine.browser_step(debian.distribution())
    return Finding("chromium", "warn", "absent: only the browser tests need it", mend)
