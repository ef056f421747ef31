"""A complete run folder with plausible numbers, for tests of tables, claims and notebooks: `build(root)`.

All arms and experiments, log-normal phases with noise shared by a block, and counters that agree with the requests.

Data dictionary of CellRecord.counters (differences after minus before; 0 where nothing passed):
    pod/rule/dns_client         packets to port 53 sent by processes of the client pod that are not the proxy
    pod/rule/dns_proxy          the same, sent by the proxy (uid 1337)
    pod/rule/redirect_tcp       connections redirected to the proxy's 15001
    pod/rule/redirect_dns_udp   queries redirected to the proxy's 15053
    pod/rule/clusterip          connections translated from a ClusterIP to a pod (kube-proxy style)
    pod/dnsproxy/queries            queries that Envoy's dns_filter received (downstream_rx_queries)
    pod/dnsproxy/forwarded      those of them that it forwarded to the cluster DNS
    pod/envoy/listener_cx       connections that Envoy's outbound listener accepted
    pod/envoy/cluster_rq        requests that Envoy sent to upstream clusters
    pod/conntrack/entries       connection-tracking entries added
    dnsdist/from_pod            queries of this pod that reached the cluster DNS
    coredns/queries             all queries that CoreDNS received
    servers/envoy_rq            requests that the server pods' Envoys received
    servers/nginx_rq            requests that the nginx replicas answered
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns import store
from meshdns.measure.cell import Cell
from meshdns.store import samples
from shipped import WORLD

NAME = "synthetic-20260101T000000Z-5eed"
ARMS = ("ip", "plain", "plain-aa", "mode1", "mode2-envoy")
MESHED = ("mode1", "mode2-envoy")
NAMED = ARMS[1:]
DNS_US = {"ip": 0.0, "plain": 210.0, "plain-aa": 210.0, "mode1": 214.0, "mode2-envoy": 130.0, "null": 60.0}
TCP_US = {"ip": 60.0, "plain": 66.0, "plain-aa": 66.0, "mode1": 75.0, "mode2-envoy": 75.0, "null": 50.0}
HTTP_US = {"ip": 150.0, "plain": 150.0, "plain-aa": 150.0, "mode1": 420.0, "mode2-envoy": 425.0, "null": 40.0}
MESHED_BACKEND_US = 180.0  # the server's sidecar
SPREAD = 0.18  # sigma of log latency inside a cell
BLOCK_SPREAD = 0.03  # sigma of what all cells of a block share
CELL_SPREAD = 0.006  # sigma of what is left in a paired difference
SEARCH_DOMAINS = 3
COUNTERS = (
    *(f"pod/rule/{rule}" for rule in ("dns_client", "dns_proxy", "redirect_tcp", "redirect_dns_udp", "clusterip")),
    *(f"pod/envoy/{counter}" for counter in ("dns_rx", "dns_external", "listener_cx", "cluster_rq")),
    *("pod/conntrack/entries", "dnsdist/from_pod", "coredns/queries"),
    *("servers/envoy_rq", "servers/nginx_rq"),
)


@dataclass(frozen=True)
class SyntheticCell(Cell):
    """A cell of the plan, and how many queries its lookup takes."""

    arrival: str = "closed"

    @property
    def queries(self) -> int:
        """DNS queries of one resolution: candidates of the search list times record types."""
        if self.lookup == "none" or self.arm == "null":
            return 0
        searched = self.lookup == "getaddrinfo" and self.ndots == 5 and self.name_kind in ("external", "absent")
        return (SEARCH_DOMAINS + 1 if searched else 1) * (2 if self.qtype == "A+AAAA" else 1)


def cells() -> list[SyntheticCell]:
    """All cells of a block in a fixed order."""
    lookup = SyntheticCell("lookup", "plain", lookup="wire")
    libc = replace(lookup, lookup="getaddrinfo", qtype="A+AAAA")
    request = SyntheticCell("request", "ip", "plain", "request", connection="new", body_bytes=1024)
    null = SyntheticCell("card-ladder", "null", kind="request", lookup="none", name_kind="none", qtype="none")
    kinds = ("fqdn", "short", "external", "absent")
    out = [replace(each, arm=arm) for arm in NAMED for each in (lookup, libc)]
    out += [
        replace(libc, experiment="names", arm=arm, name_kind=kind, ndots=ndots)
        for arm in ("plain", *MESHED)
        for kind in kinds
        for ndots in (5, 1)
    ]
    out += [replace(lookup, experiment="names", arm=arm, qtype=q) for arm in ("plain", *MESHED) for q in ("A", "AAAA")]
    requests = [_as_ip(replace(request, arm=arm, backend=backend)) for arm in ARMS for backend in ("plain", "meshed")]
    requests += [replace(request, arm=arm, backend="resolved") for arm in MESHED]
    out += requests
    out += [
        replace(each, experiment="keepalive", connection="keepalive", lookup="none", name_kind="none", qtype="none")
        for each in requests
        if each.backend == "plain"
    ]
    out += [
        replace(request, experiment="delay", arm=arm, dns_delay_ms=delay)
        for arm in ("plain", *MESHED)
        for delay in (0.0, 1.0, 2.0, 5.0, 10.0)
    ]
    out += [replace(lookup, experiment="card-wire"), replace(request, experiment="card-wire", arm="plain")]
    out += [replace(null, null_delay_us=delay) for delay in (0.0, 50.0, 100.0, 200.0, 500.0, 1000.0)]
    out += [
        replace(null, experiment="card-ruler", connection="keepalive", tool=tool)
        for tool in ("agent", "dnsperf", "h2load")
    ]
    out += [
        replace(null, experiment="card-ruler", kind="lookup", lookup="wire", tool=tool) for tool in ("agent", "dnsperf")
    ]
    out += [replace(null, experiment="card-rate", concurrency=4)]
    out += [
        replace(null, experiment="card-lag", arrival=a, rate_hz=r)
        for a in ("constant", "poisson")
        for r in (100.0, 500.0)
    ]
    return out


def build(root: Path, blocks: int = 8, samples_per_cell: int = 100, seed: int = 1, name: str = NAME) -> Path:
    """The finished run folder <root>/<name>."""
    writer = partial(root, blocks, blocks, samples_per_cell=samples_per_cell, seed=seed, name=name)
    return writer.finish("2026-01-01T00:08:00Z")


def partial(
    root: Path, blocks: int, written: int, *, samples_per_cell: int = 100, seed: int = 1, name: str = NAME
) -> store.RunWriter:
    """The same run with only the first `written` blocks, unfinished."""
    header = store.RunHeader(name, {"name": "synthetic"}, seed, "2026-01-01T00:00:00Z", blocks, _facts())
    writer = store.create(root, header, WORLD)
    writer.log("synthetic")
    for block in range(written):
        table, records = make_block(block, samples_per_cell, seed)
        writer.write_block(block, table, records, f"2026-01-01T00:{block:02d}:00Z")
    return writer


def make_block(block: int, samples_per_cell: int = 100, seed: int = 1) -> tuple[pa.Table, list[samples.CellRecord]]:
    """Samples and records of one block, the cells in random order, the same for the same seed."""
    rng = np.random.default_rng([seed, block])
    planned = cells()
    shared = rng.lognormal(0, BLOCK_SPREAD)
    begin_ns, tables, records = (block + 1) * 60 * 10**9, [], []
    for index, at in enumerate(rng.permutation(len(planned))):
        cell = planned[at]
        count = samples_per_cell if cell.tool == "agent" else 0  # other load generators report only a summary
        table, wall_ns = _samples(cell, index, count, begin_ns, noise=shared * rng.lognormal(0, CELL_SPREAD), rng=rng)
        tables.append(table)
        records.append(_record(cell, index, samples_per_cell, begin_ns, wall_ns=wall_ns, rng=rng))
        begin_ns += wall_ns + 10**7
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks(), records


def _as_ip(cell: SyntheticCell) -> SyntheticCell:
    return replace(cell, lookup="none", name_kind="none", qtype="none") if cell.arm == "ip" else cell


def _forwarded(cell: SyntheticCell) -> int:
    """Queries of one resolution that reach the cluster DNS."""
    return 0 if cell.arm == "mode2-envoy" and cell.name_kind in ("fqdn", "short") else cell.queries


def _samples(
    cell: SyntheticCell, index: int, n: int, begin_ns: int, *, noise: float, rng: np.random.Generator
) -> tuple[pa.Table, int]:
    def phase_ns(microseconds: float, fixed_us: float = 0.0) -> np.ndarray[Any, np.dtype[np.int64]]:
        noisy = microseconds * noise * rng.lognormal(0, SPREAD, n) + fixed_us
        return (noisy * 1_000).astype(np.int64)

    is_request, new = cell.kind == "request", cell.connection == "new"
    rounds = cell.queries / (2 if cell.qtype == "A+AAAA" else 1)  # both types are asked at once
    delayed_us = cell.dns_delay_ms * 1_000 * (_forwarded(cell) > 0)
    dns_us = DNS_US[cell.arm] * (1.25 if cell.lookup == "getaddrinfo" else 1.0)
    dns_ns = phase_ns(dns_us * rounds if cell.arm != "null" else DNS_US["null"] * (not is_request), delayed_us)
    tcp_ns = phase_ns(TCP_US[cell.arm] * (is_request and new))
    http_us = HTTP_US[cell.arm] + MESHED_BACKEND_US * (cell.backend != "plain" and cell.arm in MESHED)
    http_ns = phase_ns(http_us * is_request, cell.null_delay_us * is_request)
    total_ns = dns_ns + tcp_ns + http_ns
    start, due = _starts(cell, n, begin_ns, total_ns, rng)
    dns, connect = start + dns_ns, start + dns_ns + tcp_ns
    end = start + total_ns
    first_byte = connect + http_ns * 9 // 10
    on_wire = cell.experiment == "card-wire"
    replicas = rng.integers(0, 3, n).astype(np.int32) if is_request else np.zeros(n, np.int32)
    unanswered = cell.name_kind == "absent" or cell.lookup == "none" or cell.qtype == "AAAA"
    table = samples.table(
        {
            "cell": np.full(n, index),
            "seq": np.arange(n),
            "due_ns": due,
            "start_ns": start,
            "dns_ns": dns,
            "connect_ns": connect,
            "tls_ns": connect,
            "first_byte_ns": first_byte if is_request else end,
            "end_ns": end,
            "outcome": _constant("ok", n),
            "rcode": np.full(n, -1 if cell.lookup == "none" else 3 * (cell.name_kind == "absent")),
            "status": np.full(n, 200 * is_request),
            "queries": np.full(n, -1 if cell.lookup == "getaddrinfo" else cell.queries),
            "address": _constant("" if unanswered else _address(cell), n),
            "replica": pa.DictionaryArray.from_arrays(replicas, ["web-1", "web-2", "web-3"] if is_request else [""]),
            "bytes": np.full(n, cell.body_bytes * is_request),
            "local_port": 32_768 + np.arange(n) % 28_000,
            "wire_dns_ns": np.maximum(dns_ns - 4_000, 0) if on_wire else np.full(n, -1),
            "wire_total_ns": np.maximum(total_ns - 9_000, 0) if on_wire else np.full(n, -1),
        }
    )
    return table, int(end.max() - begin_ns) if n else 10**9


def _starts(
    cell: SyntheticCell, n: int, begin_ns: int, total_ns: np.ndarray[Any, Any], rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Actual and due instants: back to back on each worker, or by the clock with a small lag."""
    if cell.rate_hz:
        gaps = rng.exponential(1, n) if cell.arrival == "poisson" else np.ones(n)
        due = begin_ns + (np.cumsum(gaps) / cell.rate_hz * 1e9).astype(np.int64)
        return due + rng.lognormal(np.log(3_000), 0.5, n).astype(np.int64), due
    start = np.zeros(n, np.int64)
    for worker in range(cell.concurrency):
        mine = total_ns[worker :: cell.concurrency]
        start[worker :: cell.concurrency] = begin_ns + np.cumsum(mine + 300) - (mine + 300)  # 0.3 µs between requests
    return start, start


def _constant(text: str, n: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [text])


def _address(cell: SyntheticCell) -> str:
    if cell.name_kind == "external":
        return "203.0.113.10"
    return "240.240.0.7" if cell.arm == "mode2-envoy" else "10.96.0.7"


def _record(
    cell: SyntheticCell, index: int, n: int, begin_ns: int, *, wall_ns: int, rng: np.random.Generator
) -> samples.CellRecord:
    meshed_us = 260.0 if cell.kind == "request" else 25.0
    cpu_us = {"client": 90.0 * n, "coredns": 32.0 * n * _forwarded(cell)}
    cpu_us |= {"envoy": meshed_us * n} if cell.arm in MESHED else {}
    tool = (
        {}
        if cell.tool == "agent"
        else {"summary": {"p50_us": 41.0 * float(rng.lognormal(0, 0.01)), "rate_hz": 24_000.0}}
    )
    return samples.CellRecord(
        cell=index,
        parameters=dict(vars(cell)),
        valid=True,
        reasons=[],
        offered=n,
        started_ns=begin_ns,
        wall_s=wall_ns / 1e9,
        counters=_counters(cell, n, int(rng.integers(0, 3))),
        cpu_us={name: float(spent * rng.lognormal(0, 0.02)) for name, spent in cpu_us.items()},
        memory_bytes=dict.fromkeys(cpu_us, 30000000),
        agent={"pauses": 0, "spin_hz": 9.5e6, **tool},
    )


def _counters(cell: SyntheticCell, n: int, from_other: int) -> dict[str, int | float]:
    lookups, forwarded = n * cell.queries, n * _forwarded(cell)
    requests = n * (cell.kind == "request" and cell.arm != "null")
    connections = requests if cell.connection == "new" else min(requests, cell.concurrency)
    meshed, mode2 = cell.arm in MESHED, cell.arm == "mode2-envoy"
    counters = dict.fromkeys(COUNTERS, 0) | {
        "pod/rule/dns_client": lookups,
        "pod/rule/dns_proxy": forwarded * mode2,
        "pod/rule/redirect_tcp": connections * meshed,
        "pod/rule/redirect_dns_udp": lookups * mode2,
        "pod/rule/clusterip": connections * (cell.arm in ("plain", "plain-aa")),
        "pod/dnsproxy/queries": lookups * mode2,
        "pod/dnsproxy/forwarded": forwarded * mode2,
        "pod/envoy/listener_cx": connections * meshed,
        "pod/envoy/cluster_rq": requests * meshed,
        "pod/conntrack/entries": lookups + connections,
        "dnsdist/from_pod": forwarded,
        "coredns/queries": forwarded + from_other,
        "servers/envoy_rq": requests * (cell.backend in ("meshed", "resolved")),
        "servers/nginx_rq": requests,
    }
    return dict(counters)


def _facts() -> dict[str, Any]:
    return {
        "versions": {"meshdns": "0.1.0", "envoy": "1.40.0", "coredns": "1.14.3"},
        "host": {"kernel": "6.1.0", "cpu": "synthetic", "cpus": 2},
        "commit": "synthetic",
    }
