"""What the components counted: read before and after a trial, never during it but for `encrypted`, and subtracted.

Sources: rule counters and Envoy statistics of the client pod (its observer), statistics pages of servers and name
servers (one observer for all), CPU and memory from the place.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from meshdns.core import errors
from meshdns.core.world import Pod, Service, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import ports, readiness, rules
from meshdns.lab.names import DNSDIST_RULE
from meshdns.lab.observers import Observers
from meshdns.lab.place import Place, Usage
from meshdns.lab.plane import EFFECTS
from meshdns.measure.cell import Cell

ASK_TIMEOUT_S = 30
Counts = dict[str, float]

# Envoy statistic -> our name; several may add up to one. Its DNS filter counts alike whoever configures it.
_ENVOY = {
    r"dns_filter\.mesh\.downstream_rx_queries": "dnsproxy/queries",
    r"dns_filter\.mesh\.external_a+_record_queries": "dnsproxy/forwarded",
    r"listener\.0\.0\.0\.0_15001\.downstream_cx_total": "envoy/outbound_cx",
    r"http\.out_[\w-]+\.downstream_rq_completed": "envoy/listener_rq",
    r"cluster\.[\w-]+-(http|tls)\.upstream_cx_total": "envoy/cluster_cx",
    r"cluster\.[\w-]+-http\.upstream_rq_completed": "envoy/cluster_rq",
    r"cluster\.[\w-]+-http\.update_attempt": "envoy/cluster_resolutions",
    r"cluster\.passthrough\.upstream_cx_total": "envoy/passthrough_cx",
    r"cluster\.passthrough\.upstream_cx_overflow": "envoy/passthrough_overflow",
    r"tcp\.blackhole\.downstream_cx_total": "envoy/blackhole_cx",
}
# The same of a sidecar that the control plane configures: its clusters are named as Istio names them.
# The same again below `external` says who called, not something more.
_OUTBOUND = r"cluster\.outbound\|\d+\|\w*\|[\w.-]+(?<!\.external)(?<!\.internal)"
_GOVERNED = {
    r"listener\.0\.0\.0\.0_15001\.downstream_cx_total": "envoy/outbound_cx",
    rf"{_OUTBOUND}\.upstream_cx_total": "envoy/cluster_cx",
    rf"{_OUTBOUND}\.upstream_cx_connect_fail": "envoy/upstream_cx_fail",
    rf"{_OUTBOUND}\.upstream_rq_completed": "envoy/cluster_rq",
    # Sent, or not because no connection came about; what a breaker refuses is in neither. `completed` lacks what was
    # given up to be tried again.
    rf"{_OUTBOUND}\.upstream_rq_(total|pending_failure_eject)": "envoy/tries",
    rf"{_OUTBOUND}\.upstream_rq_retry": "envoy/retries",
    rf"{_OUTBOUND}\.upstream_rq_retry_success": "envoy/retry_success",
    rf"{_OUTBOUND}\.upstream_rq_(pending_overflow|active_overflow)": "envoy/breaker_overflow",
    rf"{_OUTBOUND}\.upstream_rq_timeout": "envoy/rq_timeout",
    rf"{_OUTBOUND}\.upstream_rq_per_try_timeout": "envoy/per_try_timeout",
    rf"{_OUTBOUND}\.outlier_detection\.ejections_enforced_total": "envoy/ejections",
    r"cluster\.passthrough\.upstream_cx_total": "envoy/passthrough_cx",
}
_FILTERS = {
    True: (
        r"^(cluster\.(outbound\|.*\.(upstream_|outlier_)|passthrough\.)|listener\.0\.0\.0\.0_15001\."
        r"|dns_filter\.mesh\.(downstream_rx|external_a))"
    ),
    False: "|".join(f"^{pattern}$" for pattern in _ENVOY),
}
_INBOUND = "http.inbound.downstream_rq_completed"
# What a governed replica's sidecar counts. Its nginx also counts the probes, so requests are those passed on to it,
# also those that the caller gave up before they were answered.
_SERVED = {
    "http.inbound.downstream_rq_completed": "servers/envoy_rq",
    "cluster.inbound.upstream_rq_total": "servers/nginx_rq",
    "listener.0.0.0.0_15006.no_filter_chain_match": "servers/no_chain",
    "listener.0.0.0.0_15006.ssl.handshake": "servers/mtls_cx",
}
_NGINX_REQUESTS = re.compile(r"server accepts handled requests\s+\d+ \d+ (\d+)")


class Reader:
    """Reads the counters of one place."""

    def __init__(self, place: Place, observers: Observers) -> None:
        """Asks for what everybody has used, since the first time takes longest."""
        self._place, self._observers, self._world = place, observers, place.world
        self._dnsdist, self._bind = readiness.dnsdist_page(place), readiness.bind_page(place)
        place.usage([part.service for part in place.parts()])

    def counts(self, *cells: Cell) -> list[Counts]:
        """For each cell all counters on its path, as totals since the containers started; all read at one moment."""
        measured = [cell for cell in cells if cell.arm != "null"]
        servers = {name: page for cell in measured for name, page in self._servers(cell).items()}
        pods = {self._world.arms[cell.arm].pod: cell for cell in measured}
        # Everybody is asked before anybody is awaited: they read at the same time.
        for pod, cell in pods.items():
            self._observers[pod].send(_question(cell, self._world))
        if measured:
            pages = [self._dnsdist, self._bind, *servers.values()]
            self._observers["observer"].send({"op": "snapshot", "pages": pages})
        inside = {pod: self._observers[pod].receive(ASK_TIMEOUT_S)[0] for pod in pods}
        outside: dict[str, str] = {}
        if measured:
            names = ["dns-dnsdist", "dns-bind", *servers]
            reply, _ = self._observers["observer"].receive(ASK_TIMEOUT_S)
            outside = {name: _page(name, body) for name, body in zip(names, reply["pages"], strict=True)}
        return [self._of(cell, inside, outside) if cell in measured else {} for cell in cells]

    def _of(self, cell: Cell, inside: Mapping[str, Any], outside: Mapping[str, str]) -> Counts:
        pod = self._world.arms[cell.arm].pod
        mine = {name: outside[name] for name in ("dns-dnsdist", "dns-bind", *self._servers(cell))}
        return _inside(cell, inside[pod], self._world) | _outside(pod, mine)

    def _servers(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """Statistics pages of the replicas behind the cell's backend."""
        service = self._world.backends.get(cell.backend)
        pages: dict[str, dict[str, Any]] = {}
        if service and service.governed:
            return self._governed(cell, service)
        for replica in service.replicas if service else ():
            base = f"http://{self._place.address(replica)}"
            pages[f"{replica}/nginx"] = {"url": f"{base}:{ISTIO.status_port}/status"}
            if service and service.meshed:
                stats = f"{base}:{ISTIO.stats_port}/stats?format=json&filter=^{_INBOUND}$"
                pages[f"{replica}/envoy"] = {"url": stats}
        return pages

    def _governed(self, cell: Cell, service: Service) -> dict[str, dict[str, Any]]:
        """The replicas' sidecars; none where replicas come and go."""
        if any(EFFECTS.get(cell.change, ())):
            return {}
        pattern = _quoted("|".join(f"^{re.escape(name)}$" for name in _SERVED))
        return {
            f"{replica}/governed": {
                "url": f"http://{self._place.address(replica)}:{ISTIO.stats_port}/stats?format=json&filter={pattern}"
            }
            for replica in service.replicas
            if self._world.named(replica).sidecar
        }

    def encrypted(self, cell: Cell) -> float:
        """Connections by mutual TLS that the governed replicas of the cell have taken so far; nothing else is read."""
        pages = self._servers(cell)
        reply, _ = self._observers["observer"].ask({"op": "snapshot", "pages": [*pages.values()]}, ASK_TIMEOUT_S)
        counts = (_server(name, _page(name, body)) for name, body in zip(pages, reply["pages"], strict=True))
        return sum(each["servers/mtls_cx"] for each in counts)

    def usage(self, cell: Cell) -> dict[str, Usage]:
        """CPU and memory of the containers on this cell's path; none where these come and go."""
        if cell.answer != "none" or self._world.is_governed(cell.backend):
            return {}
        return self._place.usage(sorted(_on_path(cell, self._world)))


def _question(cell: Cell, world: World) -> dict[str, Any]:
    client = world.arms[cell.arm]
    return {"op": "snapshot", "rules": rules.counters(client), "pages": list(_local_pages(cell, client).values())}


def _inside(cell: Cell, reply: Mapping[str, Any], world: World) -> Counts:
    """Counters of the client's own pod."""
    found: Counts = {f"pod/rule/{name}": count for name, count in reply["rules"].items()}
    found["pod/conntrack/entries"] = reply["conntrack"]
    for name, body in zip(_local_pages(cell, world.arms[cell.arm]), reply["pages"], strict=True):
        for key, count in _LOCAL[name](_page(f"client-{cell.arm} {name}", body)).items():
            found[f"pod/{key}"] = found.get(f"pod/{key}", 0) + count
    return found


def _outside(pod: str, bodies: dict[str, str]) -> Counts:
    """Counters of name servers and replicas, from their pages."""
    found = _dnsdist(json.loads(bodies.pop("dns-dnsdist")), pod) | _bind(json.loads(bodies.pop("dns-bind")))
    for name, body in bodies.items():
        for key, count in _server(name, body).items():
            found[key] = found.get(key, 0) + count
    return found


def _on_path(cell: Cell, world: World) -> set[str]:
    """Compose services that a cell's traffic may pass."""
    if cell.arm == "null":
        return {"client-plain-app", "null-target"}
    pod = world.arms[cell.arm].pod
    path = {f"{pod}-app", f"{pod}-envoy", f"{pod}-dns", "dns-dnsdist", "dns-bind", "world-dns"}
    service = world.backends.get(cell.backend)
    if service is None:
        return path
    parts = ("-app", "-envoy") if service.meshed else ("",)
    return path | {f"{replica}{part}" for replica in service.replicas for part in parts}


def difference(cell: Cell, before: Counts, after: Counts, world: World) -> Counts:
    """after - before, below zero where what counted is gone; conntrack entries are a level and stay as they are."""
    result = {key: after[key] - before.get(key, 0) for key in after}
    if "pod/conntrack/entries" in after:
        result["pod/conntrack/entries"] = after["pod/conntrack/entries"]
    # Each nginx has also counted our own question.
    if "servers/nginx_rq" in result and not world.is_governed(cell.backend):
        result["servers/nginx_rq"] -= len(world.backends[cell.backend].replicas)
    return result


def _page(place: str, body: str | None) -> str:
    if body is None:
        raise errors.TestbedError("the statistics page does not answer", place=place, step="see `meshdns status`")
    return body


def _local_pages(cell: Cell, client: Pod) -> dict[str, dict[str, Any]]:
    """What the pod's own proxies and its loader count, each a page on its loopback; none where they are taken down."""
    pages: dict[str, dict[str, Any]] = {}
    base = "http://127.0.0.1"
    if cell.sidecar != "up":
        return pages
    if client.sidecar:
        pages["envoy"] = {
            "url": f"{base}:{ISTIO.admin_port}/stats?format=json&filter={_quoted(_FILTERS[client.governed])}"
        }
    if client.dns == "agent":
        pages["dnsproxy"] = {"url": f"{base}:{ports.PORT_DNS_METRICS}/metrics"}
    if mechanisms.ALL[client.mechanism].programs:
        pages["loader"] = {"url": f"{base}:{ports.PORT_LOADER}/counters"}
    return pages


def _quoted(pattern: str) -> str:
    return urllib.parse.quote(pattern, safe="")


def _envoy(body: str) -> Counts:
    found: Counts = {}
    for stat in json.loads(body)["stats"]:
        for pattern, name in (_ENVOY | _GOVERNED).items():
            if "value" in stat and re.fullmatch(pattern, stat["name"]):
                found[name] = found.get(name, 0) + stat["value"]
    return found


def _dnsproxy(body: str) -> Counts:
    """Sums of the Prometheus counters of the DNS proxy: all queries, and those it asked upstream for."""
    found: Counts = {"dnsproxy/queries": 0, "dnsproxy/forwarded": 0}
    for line in body.splitlines():
        if line.startswith("dns_requests_total"):
            found["dnsproxy/queries"] += float(line.rsplit(" ", 1)[1])
        elif line.startswith("dns_upstream_requests_total"):
            found["dnsproxy/forwarded"] += float(line.rsplit(" ", 1)[1])
    return found


def _loader(body: str) -> Counts:
    """The programs count what rules count elsewhere, by the same names."""
    return {f"rule/{name}": count for name, count in json.loads(body)["counters"].items()}


_LOCAL: dict[str, Callable[[str], Counts]] = {"envoy": _envoy, "dnsproxy": _dnsproxy, "loader": _loader}


def _dnsdist(page: dict[str, Any], pod: str) -> Counts:
    matches = {rule["name"]: rule["matches"] for rule in page["rules"]}
    total = sum(count for name, count in matches.items() if name.startswith(DNSDIST_RULE))
    return {"dnsdist/from_pod": matches[f"{DNSDIST_RULE}{pod}"], "dnsdist/queries": total}


def _bind(page: dict[str, Any]) -> Counts:
    return {"bind/queries": page["opcodes"]["QUERY"]}


def _server(name: str, body: str) -> Counts:
    if name.endswith("/governed"):
        values = {stat["name"]: stat["value"] for stat in json.loads(body)["stats"] if "value" in stat}
        return {ours: values.get(theirs, 0) for theirs, ours in _SERVED.items()}
    if name.endswith("/envoy"):
        return {"servers/envoy_rq": sum(s["value"] for s in json.loads(body)["stats"] if s.get("name") == _INBOUND)}
    match = _NGINX_REQUESTS.search(body)
    return {"servers/nginx_rq": float(match[1]) if match else 0.0}
