"""What was true while a run was measured: versions, machine, images, rules, proxy and name server configuration."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Collection
from typing import Any

from meshdns import __version__
from meshdns.ads.types import NDS, hosts
from meshdns.core import paths
from meshdns.core.world import Pod
from meshdns.interception import mechanisms
from meshdns.lab import observers, parts, recording
from meshdns.lab.channel import Channel
from meshdns.lab.parts.component import NameServer
from meshdns.lab.place import Place
from meshdns.measure import trace
from meshdns.measure.cell import Cell
from meshdns.measure.plan import Plan
from meshdns.measure.session import Session

PACKAGES = ("pandas", "numpy", "scipy", "pyarrow", "dnspython", "papermill", "matplotlib", "seaborn")
ASK_TIMEOUT_S = 30
CONFORMANCE_TIMEOUT_S = 60  # some fifty questions, most answered at once
_MODES = {"mode1", "mode2-agent"}  # traced whatever the plan asks: their paths are what the two modes are
TRACED = "http://{service}/bytes/1024"  # as a neighbour asks; both sidecars, where there are any


def gather(what: Plan, opened: Session) -> dict[str, Any]:
    """The facts tree of `run.json`: what was true before its first block."""
    place = opened.place
    cells = [cell for experiment in what.experiments for cell in experiment.cells()]
    arms = {cell.arm for cell in cells}
    known = {
        "machine": machine(),
        **place.facts(),
        "networks": {"pods": place.nets.pods, "world": place.nets.world},
        "plane": {"live": place.world.live, "recorded": "" if place.world.live else recording.read().istio},
        "rules": {pod: each.ask({"op": "loaded"}, ASK_TIMEOUT_S)[0]["text"] for pod, each in opened.observers.items()},
        "envoy": _config_dumps(opened, arms | _MODES),
        "envoy_servers": _server_sidecar(place),
        "names": _names(place, arms | _MODES),
        "dns": _name_servers(place),
    }
    known["versions"] = _versions(place) | known["versions"]
    known |= {
        "traces": _traces(opened, {cell.arm for cell in cells if cell.lookup != "none"}),
        "refused": opened.refused,
        "conformance": _conformance(place, arms),
    }
    # Last, when the machine has come to rest after the start of everything, as it is while blocks are measured.
    calm = "plain" if "plain" in place.world.arms else observers.clients(place)[0].arm
    clock = opened.agents.of(calm, 5).ask({"kind": "clock"}, ASK_TIMEOUT_S)[0]["clock"]  # it spins for a second
    return known | {"clock": {calm: clock}}


def resolutions(opened: Session) -> dict[str, Any]:
    """How often the sidecar of mode 1 has resolved endpoints since its start, by its own count and by the rules'."""
    if "mode1" not in opened.place.world.arms:
        return {}
    (counts,) = opened.reader.counts(Cell("closing", "mode1"))
    names = {"attempts": "pod/envoy/cluster_resolutions", "queries": "pod/rule/dns_proxy"}
    return {"mode1": {name: counts[key] for name, key in names.items()}}


def _traces(opened: Session, arms: Collection[str]) -> dict[str, Any]:
    """One request of each arm that resolves names, observed at every hop: arm -> trace."""
    world = opened.place.world
    url = TRACED.format(service=world.looked_up.name)
    wanted = {*arms, *_MODES} - {*world.answering, *opened.refused}
    traced = [each.arm for each in observers.clients(opened.place) if each.arm in wanted]
    return {
        arm: trace.observe(opened.place, opened.observers, opened.agents.of(arm, 5), arm, url).to_json()
        for arm in traced
    }


def _conformance(place: Place, arms: Collection[str]) -> dict[str, Any]:
    """How the DNS proxies of mode 2 answer the conformance suite, asked as an application asks: arm -> rows."""
    suite = ["python3", "-m", "dnsproxy.conformance", "--world", "/state/conformance.json", "--timeout-s", "1"]

    def asked(client: Pod) -> Any:
        command = [*suite, "--server", f"{place.world.dns_address(client)}:53"]
        return json.loads(place.exec(client.pod, command, timeout_s=CONFORMANCE_TIMEOUT_S, image="dnsproxy"))

    return {
        client.arm: asked(client)
        for client in observers.clients(place)
        if client.arm in arms and client.dns_proxy and client.mechanism == "iptables"
    }


def _name_servers(place: Place) -> dict[str, str]:
    """The usual resolv.conf and the name servers' configuration, without this testbed's passwords."""
    every = [at for each in parts.there(place).values() for at in each if isinstance(at.part, NameServer)]
    found = {path: place.read(path) for path in ("resolv.conf", *(path for at in every for path in at.part.files(at)))}
    kept = json.loads(place.read("secrets.json")).values()
    for secret in (text for each in kept for text in ([each] if isinstance(each, str) else each.values()) if text):
        found = {path: text.replace(secret, "…") for path, text in found.items()}
    return found


def _config_dumps(opened: Session, arms: Collection[str]) -> dict[str, Any]:
    """By pod, of these arms; of those configured alike the first."""
    alike: dict[object, str] = {}
    for client in observers.clients(opened.place):
        if client.sidecar and client.arm in arms:
            transparent = mechanisms.ALL[client.mechanism].transparent
            how = client.dns, client.guarded, transparent, client.virtual_ips
            alike.setdefault(how, client.pod)
    return {pod: _config_dump(opened.observers[pod]) for pod in alike.values()}


def _config_dump(observer: Channel) -> Any:
    dump = trace.page(observer, "config_dump")
    if dump is None:
        return None
    for part in dump["configs"]:
        bootstrap = part.get("bootstrap", {})
        # Nine tenths of it list what this build could do, which its version says as well.
        bootstrap.get("node", {}).pop("extensions", None)
        bootstrap.pop("static_resources", None)  # the other parts list them again, as they are in force
    return dump


def machine() -> dict[str, Any]:
    """Kernel, CPU and clock of this machine; identities only as hashes, to tell machines and boots apart."""
    cpu = [line for line in paths.text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu[0].split(":", 1)[1].strip() if cpu else "",
        "cpus": len(cpu),
        "memory_kib": int(paths.text("/proc/meminfo").split()[1]),
        "governor": paths.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not exposed",
        "clocksource": paths.text(clock),
        "steal_share": steal_share(),
        "conntrack_max": int(paths.text("/proc/sys/net/netfilter/nf_conntrack_max") or 0),
        "machine_id_hash": hashlib.sha256(paths.text("/etc/machine-id").encode()).hexdigest()[:12],
        "boot_id_hash": hashlib.sha256(paths.text("/proc/sys/kernel/random/boot_id").encode()).hexdigest()[:12],
    }


def steal_share() -> float:
    """CPU time taken by other guests of the host since boot, as a share of all (proc(5), /proc/stat)."""
    ticks = [int(field) for field in paths.text("/proc/stat").splitlines()[0].split()[1:9]]
    return ticks[7] / sum(ticks) if sum(ticks) else 0.0


def _names(place: Place, arms: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """What agents that answer names are told of them: pod -> host -> addresses."""
    every = (client for client in observers.clients(place) if client.sidecar and client.dns == "agent")
    asked = [client for client in every if client.arm in arms]
    if place.world.live:
        plane = place.plane()
        return {client.pod: plane.names(client) for client in asked}
    return {client.pod: hosts(json.loads(place.read(f"recorded/{client.pod}.json"))[NDS]) for client in asked}


def _server_sidecar(place: Place) -> dict[str, Any]:
    """What the first replica's sidecar is told of what was recorded; empty where there is none."""
    servers = (server for server in place.world.meshed if not place.world.live)
    found: dict[str, Any] = next((json.loads(place.read(f"recorded/{each.pod}.json")) for each in servers), {})
    return found


def _versions(place: Place) -> dict[str, str]:
    found = {"meshdns": __version__, "python": platform.python_version(), "commit": paths.commit()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of the notebooks' extra
            found[name] = importlib.metadata.version(name)
    every = [at for each in parts.there(place).values() for at in each]
    programs = {name: (at.service, command) for at in reversed(every) for name, command in at.part.versions.items()}
    for name, (service, program) in programs.items():  # each of the first that has it
        found[name] = _version_in(place.exec(service, ["sh", "-c", f"{program} 2>&1 || true"], timeout_s=20))
    return found


def _version_in(said: str) -> str:
    """The first thing in a program's answer that looks like a version."""
    match = re.search(r"\d+\.\d+(\.\d+)?[\w.+~-]*", said)
    return match[0] if match else said.strip()[:40]
