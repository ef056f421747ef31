"""What was true while a run was measured: versions, machine, images, rules, proxy and name server configuration."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from meshdns import __version__
from meshdns.core import paths, process
from meshdns.interception.conventions import ISTIO
from meshdns.lab.compose import testbed
from meshdns.lab.compose.channel import Channel
from meshdns.lab.compose.testbed import Testbed

PACKAGES = ("pandas", "numpy", "scipy", "pyarrow", "docker", "dnspython", "papermill", "matplotlib", "seaborn")
ASK_TIMEOUT_S = 30
_VERSION_COMMANDS = {
    "envoy": ("client-mode1-envoy", "envoy --version"),
    "bind": ("dns-bind", "named -v"),
    "dnsdist": ("dns-dnsdist", "dnsdist --version"),
    "nginx": ("legacy-1", "nginx -v"),
    "client python": ("client-plain-app", "python3 --version"),
    "h2load": ("client-plain-app", "h2load --version"),
    "dnsperf": ("client-plain-app", "dpkg-query -W -f '${Version}' dnsperf"),
    "iptables": ("client-plain-observer", "iptables --version"),
}


def gather(bed: Testbed, observers: Mapping[str, Channel], arms: Collection[str]) -> dict[str, Any]:
    """The facts tree of `run.json`; `arms` are those that are asked."""
    client, mesh = testbed.cpu_sets()
    return {
        "machine": machine(),
        "engine": _engine(bed),
        "images": _images(bed),
        "versions": _versions(bed),
        "cpu_sets": {"client": client, "mesh": mesh},
        "networks": {"pods": bed.nets.pods, "world": bed.nets.world},
        "rules": {pod: channel.ask({"op": "loaded"}, ASK_TIMEOUT_S)[0]["text"] for pod, channel in observers.items()},
        "envoy": _config_dumps(bed, observers, arms),
        "envoy_servers": json.loads((bed.state / "web-1" / "envoy.json").read_text()),
        "dns": {path: _public(bed, path) for path in _DNS_FILES},
    }


_DNS_FILES = (
    "resolv.conf",
    "dns-bind/named.conf",
    "dns-bind/cluster.local.zone",
    "dns-dnsdist/dnsdist.conf",
    "world-dns/named.conf",
    "world-dns/example.com.zone",
)


def _public(bed: Testbed, path: str) -> str:
    """A configuration file without this testbed's passwords."""
    keys = bed.keys()
    return (
        (bed.state / path)
        .read_text()
        .replace(keys.console_key, "…")
        .replace(keys.web_password, "…")
        .replace(keys.update_key, "…")
    )


def _config_dumps(bed: Testbed, observers: Mapping[str, Channel], arms: Collection[str]) -> dict[str, Any]:
    """By pod, of these arms; of those configured alike the first."""
    alike: dict[object, str] = {}
    for client in bed.clients():
        if client.sidecar and client.arm in arms:
            how = client.dns, client.guarded, client.mechanism == "tproxy", client.governed, client.resolver
            alike.setdefault(how, client.pod)
    return {pod: _config_dump(observers[pod]) for pod in alike.values()}


def _config_dump(observer: Channel) -> Any:
    page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/config_dump"}
    body = observer.ask({"op": "snapshot", "pages": [page]}, ASK_TIMEOUT_S)[0]["pages"][0]
    if not body:
        return None
    dump = json.loads(body)
    for part in dump["configs"]:
        bootstrap = part.get("bootstrap", {})
        # Nine tenths of it list what this build could do, which its version says as well.
        bootstrap.get("node", {}).pop("extensions", None)
        bootstrap.pop("static_resources", None)  # the other parts list them again, as they are in force
    return dump


def machine() -> dict[str, Any]:
    """Kernel, CPU and clock of this machine; identities only as hashes, to tell machines and boots apart."""
    cpu = [line for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu[0].split(":", 1)[1].strip() if cpu else "",
        "cpus": len(cpu),
        "memory_kib": int(_text("/proc/meminfo").split()[1]),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not exposed",
        "clocksource": _text(clock),
        "steal_share": steal_share(),
        "conntrack_max": int(_text("/proc/sys/net/netfilter/nf_conntrack_max") or 0),
        "machine_id_hash": hashlib.sha256(_text("/etc/machine-id").encode()).hexdigest()[:12],
        "boot_id_hash": hashlib.sha256(_text("/proc/sys/kernel/random/boot_id").encode()).hexdigest()[:12],
    }


def steal_share() -> float:
    """CPU time taken by other guests of the host since boot, as a share of all (proc(5), /proc/stat)."""
    ticks = [int(field) for field in _text("/proc/stat").splitlines()[0].split()[1:9]]
    return ticks[7] / sum(ticks) if sum(ticks) else 0.0


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _engine(bed: Testbed) -> dict[str, Any]:
    info = bed.engine_facts()
    keys = ("ServerVersion", "Driver", "CgroupVersion", "CgroupDriver", "KernelVersion", "OperatingSystem")
    return {key: info.get(key, "") for key in keys}


def _images(bed: Testbed) -> dict[str, Any]:
    return {role: {"tag": bed.images[role], "id": found} for role, found in bed.image_ids().items()}


def _versions(bed: Testbed) -> dict[str, str]:
    found = {"meshdns": __version__, "python": platform.python_version(), "commit": paths.commit()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of the notebooks' extra
            found[name] = importlib.metadata.version(name)
    for name, (service, command) in _VERSION_COMMANDS.items():
        done = process.run("docker", "exec", bed.name(service), "sh", "-c", f"{command} 2>&1", timeout_s=20)
        found[name] = _version_in(done.out)
    return found


def _version_in(said: str) -> str:
    """The first thing in a program's answer that looks like a version."""
    match = re.search(r"\d+\.\d+(\.\d+)?[\w.+~-]*", said)
    return match[0] if match else said.strip()[:40]
