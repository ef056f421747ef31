"""What the components counted: read before and after a trial, never during it, and subtracted.

Sources: rule counters and Envoy statistics of the client pod (its observer), statistics pages of servers and name
servers (one observer for all), CPU and memory from the containers' cgroups.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import errors, rendering
from harness.channel import Channel
from harness.mesh import topology
from harness.plan import Cell
from harness.testbed import Testbed

ASK_TIMEOUT_S = 30
Counts = dict[str, float]

# Envoy statistic -> our name; several may add up to one.
_ENVOY = {
    r"dns_filter\.mesh\.downstream_rx_queries": "dns_rx",
    r"dns_filter\.mesh\.external_a+_record_queries": "dns_external",
    r"http\.out_[\w-]+\.downstream_rq_completed": "listener_rq",
    r"cluster\.(web|web-static|legacy)-(http|tls)\.upstream_cx_total": "cluster_cx",
    r"cluster\.(web|web-static|legacy)-http\.upstream_rq_completed": "cluster_rq",
    r"cluster\.(web|web-static|legacy)-http\.update_attempt": "cluster_resolutions",
    r"cluster\.passthrough\.upstream_cx_total": "passthrough_cx",
    r"cluster\.blackhole\.upstream_cx_total": "blackhole_cx",
}
_ENVOY_FILTER = "|".join(f"^{pattern}$" for pattern in _ENVOY).replace("+", "%2B").replace("|", "%7C")
_INBOUND = "http.inbound.downstream_rq_completed"
_NGINX_REQUESTS = re.compile(r"server accepts handled requests\s+\d+ \d+ (\d+)")


@dataclass(frozen=True)
class Usage:
    """CPU time spent and memory held by one container."""

    cpu_us: float
    memory_bytes: int


class Reader:
    """Reads the counters of one run's testbed."""

    def __init__(self, testbed: Testbed, observers: Mapping[str, Channel]) -> None:
        """Resolves every container's cgroup once: reading one later is opening two files."""
        self._testbed, self._observers = testbed, observers
        self._dnsdist, self._bind = testbed.dnsdist_page(), testbed.bind_page()
        self._groups = {
            c.labels["com.docker.compose.service"]: _cgroup(c.attrs["State"]["Pid"])
            for c in testbed.containers()
            if c.status == "running" and not c.labels["com.docker.compose.service"].endswith("-observer")
        }

    def counts(self, cell: Cell) -> Counts:
        """All counters on this cell's path, as totals since the containers started."""
        if cell.arm == "null":
            return {}
        client = topology.ARMS[cell.arm]
        pod, shared = self._observers[client.pod], self._observers["observer"]
        servers = self._servers(cell)
        # Both are asked before either is awaited: they read at the same time.
        pod.send({"op": "snapshot", "rules": True, "pages": [_envoy_page()] if client.sidecar else []})
        shared.send({"op": "snapshot", "pages": [self._dnsdist, self._bind, *servers.values()]})
        inside, _ = pod.receive(ASK_TIMEOUT_S)
        outside, _ = shared.receive(ASK_TIMEOUT_S)
        found: Counts = {f"pod/rule/{name}": count for name, count in inside["rules"].items()}
        found["pod/conntrack/entries"] = inside["conntrack"]
        if client.sidecar:
            statistics = _envoy(_page(client.pod, inside["pages"][0]))
            found |= {f"pod/envoy/{name}": count for name, count in statistics.items()}
        return found | _outside(client.pod, ["dns-dnsdist", "dns-bind", *servers], outside["pages"])

    def _servers(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Statistics pages of the replicas behind the cell's backend."""
        if cell.backend == "none":
            return {}
        hosts = topology.BACKENDS[cell.backend].hosts
        prefix = "legacy" if cell.backend == "plain" else "web"
        pages: dict[str, dict[str, Any]] = {}
        for number, host in enumerate(hosts, 1):
            base = f"http://{self._testbed.nets.pod(host)}"
            pages[f"{prefix}-{number}/nginx"] = {"url": f"{base}:{topology.PORT_STATUS}/status"}
            if prefix == "web":
                stats = f"{base}:{topology.PORT_STATS}/stats?format=json&filter=^{_INBOUND}$"
                pages[f"{prefix}-{number}/envoy"] = {"url": stats}
        return pages

    def usage(self, cell: Cell) -> dict[str, Usage]:
        """CPU and memory of the containers on this cell's path."""
        return {service: group.read() for service, group in self._groups.items() if service in _on_path(cell)}


def _outside(pod: str, names: list[str], pages: list[str | None]) -> Counts:
    """Counters of name servers and replicas, from their pages."""
    bodies = {name: _page(name, body) for name, body in zip(names, pages, strict=True)}
    found = _dnsdist(json.loads(bodies.pop("dns-dnsdist")), pod) | _bind(json.loads(bodies.pop("dns-bind")))
    for name, body in bodies.items():
        key, count = _server(name, body)
        found[key] = found.get(key, 0) + count
    return found


def _on_path(cell: Cell) -> set[str]:
    """Compose services that a cell's traffic may pass."""
    if cell.arm == "null":
        return {"client-plain-app", "null-target"}
    pod = topology.ARMS[cell.arm].pod
    path = {f"{pod}-app", f"{pod}-envoy", "dns-dnsdist", "dns-bind", "world-dns"}
    if cell.backend == "plain":
        return path | {f"legacy-{n}" for n in (1, 2, 3)}
    if cell.backend != "none":
        path |= {f"web-{n}-{part}" for n in (1, 2, 3) for part in ("app", "envoy")}
    return path


def difference(cell: Cell, before: Counts, after: Counts) -> Counts:
    """after - before; conntrack entries are a level, not a count, and stay as they are after the trial."""
    result = {key: after[key] - before.get(key, 0) for key in after}
    if "pod/conntrack/entries" in after:
        result["pod/conntrack/entries"] = after["pod/conntrack/entries"]
    if "servers/nginx_rq" in result:  # each replica has also counted our own question
        result["servers/nginx_rq"] -= len(topology.BACKENDS[cell.backend].hosts)
    return result


def _page(place: str, body: str | None) -> str:
    if body is None:
        raise errors.TestbedError("the statistics page does not answer", place=place, step="see `meshdns status`")
    return body


def _envoy_page() -> dict[str, Any]:
    return {"url": f"http://127.0.0.1:{topology.PORT_ADMIN}/stats?format=json&filter={_ENVOY_FILTER}"}


def _envoy(body: str) -> Counts:
    found: Counts = {}
    for stat in json.loads(body)["stats"]:
        for pattern, name in _ENVOY.items():
            if "value" in stat and re.fullmatch(pattern, stat["name"]):
                found[name] = found.get(name, 0) + stat["value"]
    return found


def _dnsdist(page: dict[str, Any], pod: str) -> Counts:
    matches = {rule["name"]: rule["matches"] for rule in page["rules"]}
    total = sum(matches[rendering.pod_rule(client.pod)] for client in topology.CLIENTS)
    return {"dnsdist/from_pod": matches[rendering.pod_rule(pod)], "dnsdist/queries": total}


def _bind(page: dict[str, Any]) -> Counts:
    return {"bind/queries": page["opcodes"]["QUERY"]}


def _server(name: str, body: str) -> tuple[str, float]:
    if name.endswith("/envoy"):
        return "servers/envoy_rq", sum(s["value"] for s in json.loads(body)["stats"] if s.get("name") == _INBOUND)
    match = _NGINX_REQUESTS.search(body)
    return "servers/nginx_rq", float(match[1]) if match else 0.0


@dataclass(frozen=True)
class _Group:
    """Files of one container's cgroup; v1 and v2 spell them differently."""

    cpu: Path
    memory: Path
    version: int

    def read(self) -> Usage:
        try:
            memory = int(self.memory.read_text())
            if self.version == 1:
                return Usage(int(self.cpu.read_text()) / 1000, memory)  # cpuacct.usage: nanoseconds
            fields = dict(line.split() for line in self.cpu.read_text().splitlines())
            return Usage(float(fields["usage_usec"]), memory)
        except OSError as error:
            raise errors.TestbedError(f"its cgroup is gone ({error.strerror})", place=str(self.cpu.parent)) from None


def _cgroup(pid: int) -> _Group:
    """The cgroup of a process, from the kernel's own list (cgroups(7))."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        raise errors.TestbedError(
            "the containers' processes are not visible here", place="/proc", step="run meshdns on the engine's machine"
        ) from None
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    if "cpuacct" in paths:
        cpu = root / "cpuacct" / paths["cpuacct"].lstrip("/") / "cpuacct.usage"
        return _Group(cpu, root / "memory" / paths["memory"].lstrip("/") / "memory.usage_in_bytes", 1)
    base = root / paths[""].lstrip("/")
    return _Group(base / "cpu.stat", base / "memory.current", 2)
