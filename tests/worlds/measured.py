"""Runs as a shipped plan would give them, in a world whose costs and faults a test chooses.

The plan's own cells, log-normal phases that share a block's noise, counters that agree with the requests. Where a World
says otherwise (slower mode 2, lost redirects, an AAAA answered alike) the data say otherwise.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns import store
from meshdns.core.world import Nets
from meshdns.lab import parts
from meshdns.measure import plan
from meshdns.measure.cell import Cell
from meshdns.store import samples
from shipped import WORLD

ARMS = ("ip", "plain", "plain-aa", "mode1", "mode2-envoy", "mode2-agent")


@dataclass(frozen=True)
class World:
    """What is true; durations in microseconds."""

    dns: dict[str, float] = field(
        default_factory=lambda: {
            "plain": 210.0,
            "plain-aa": 210.0,
            "mode1": 212.0,
            "mode2-envoy": 90.0,
            "mode2-agent": 60.0,
            "nftables": 60.0,
            "tproxy": 60.0,
            "ebpf": 50.0,
            "answers": 212.0,
            "unguarded": 212.0,
            "answers-mode2": 212.0,
            "null": 40.0,
        }
    )
    forwarding: float = 200.0  # what mode 2 adds to a query that it passes on
    sidecar: float = 260.0  # at the client, per request
    server_sidecar: float = 180.0
    resolving: float = 0.0  # what a ServiceEntry that the sidecar resolves adds to a request in mode 1
    delayed_arms: tuple[str, ...] = ("plain", "plain-aa", "mode1")  # those whose answers the delay reaches
    aaaa_rcode: int = 3  # of Envoy's filter for an A-only name
    capture: dict[str, float] = field(default_factory=dict)  # what an arm's mechanism adds to a new connection
    per_rule: float = 0.0  # what an extra rule adds to it
    lost_redirects: int = 0  # per cell of a sidecar
    lost_queries: int = 0  # per cell, between the client and the cluster DNS
    resolutions: int = 1  # of the sidecar's own, per cell that calls a ServiceEntry which it resolves
    slope: float = 1.0  # of the agent's time by the true one
    bias: float = 6.0  # of the agent's stamps against the wire
    invalid: float = 0.0  # share of cells
    noise: float = 0.006  # of a cell
    spread: float = 0.15  # of a request


def runs(root: Path, world: World | None = None, blocks: int = 8, seed: int = 1, name: str = "quick") -> store.Runs:
    """Stored and loaded again, as everything real is."""
    return store.load(build(root, world, blocks, seed, name))


def build(
    root: Path,
    world: World | None = None,
    blocks: int = 8,
    seed: int = 1,
    name: str = "quick",
    *,
    asked: plan.Plan | None = None,
) -> Path:
    """The finished folder of a run of the shipped plan `name`, or of another."""
    asked = asked or plan.find(name, WORLD)
    # Every experiment in every block: fewer blocks give the same intervals.
    experiments = tuple(dataclasses.replace(each, every=1) for each in asked.experiments)
    asked = dataclasses.replace(asked, blocks=blocks, experiments=experiments)
    header = store.RunHeader(f"{name}-{seed}", asked.to_json(), seed, "2026-01-01T00:00:00Z", blocks, _facts())
    writer = store.create(root, header, asked.world)
    for block in range(blocks):
        rng = np.random.default_rng([seed, block])
        trials = asked.block(block)
        shared, begin_ns = rng.lognormal(0, 0.05), (block + 1) * 10**12
        made = [
            _cell(world or World(), trial, (n, begin_ns + n * 10**10), shared, _rng(seed, block, trial.cell))
            for n, trial in enumerate(trials)
        ]
        table = block_of([each for each, _ in made])
        writer.write_block(block, table, [record for _, record in made], "2026-01-01T00:00:00Z")
    return writer.finish("2026-01-01T00:08:00Z")


def block_of(cells: list[dict[str, Any]]) -> pa.Table:
    """The cells' columns one after the other: a table for each of them would take most of the time."""
    columns = {name: np.concatenate([each[name] for each in cells]) for name in cells[0]}
    words = {name: pa.array(values).dictionary_encode() for name, values in columns.items() if values.dtype == object}
    return samples.table(columns | words)


def _rng(seed: int, block: int, cell: Cell) -> np.random.Generator:
    """Chance of this cell alone: an experiment more in the plan, or a factor that it leaves alone, changes nothing."""
    levels = {each.name: getattr(cell, each.name) for each in dataclasses.fields(cell)}
    told = {each.name: levels[each.name] for each in dataclasses.fields(cell) if levels[each.name] != each.default}
    return np.random.default_rng([seed, block, zlib.crc32(repr(told).encode())])


def _cell(
    world: World, trial: plan.Trial, place: tuple[int, int], shared: float, rng: np.random.Generator
) -> tuple[dict[str, Any], samples.CellRecord]:
    cell, n = trial.cell, trial.count
    index, begin_ns = place
    noise = shared * rng.lognormal(0, world.noise)

    def phase(us: float, fixed_us: float = 0.0) -> Any:
        return ((us * noise * rng.lognormal(0, world.spread, n) + fixed_us) * 1_000).astype(np.int64)

    request = cell.kind == "request"
    dns, tcp, http = (
        phase(*_dns(world, cell)),
        phase(_connect(world, cell) * (cell.connection == "new") * request),
        phase(_http(world, cell)),
    )
    total = dns + tcp + http
    start, due = _starts(cell, total, begin_ns, rng)
    end = start + total
    known = cell.experiment in ("card-wire", "card-ladder")
    biased = int(world.bias * 1_000)
    bent = world.slope if cell.arm == "null" else 1.0  # the agent's microseconds against the wire's
    text = {"outcome": "ok", "address": _address(cell), "replica": "web-1" if request else ""}
    columns = {
        "cell": np.full(n, index),
        "seq": np.arange(n),
        "due_ns": due,
        "start_ns": start,
        "dns_ns": start + dns,
        "connect_ns": start + dns + tcp,
        "tls_ns": start + dns + tcp,
        "first_byte_ns": start + dns + tcp + http * 9 // 10,
        "end_ns": end,
        **{name: np.full(n, value, object) for name, value in text.items()},
        "rcode": np.full(n, _rcode(world, cell)),
        "status": np.full(n, 200 * request),
        "queries": np.full(n, -1 if cell.lookup == "getaddrinfo" else _queries(cell)),
        "bytes": np.full(n, cell.body_bytes * request),
        "local_port": np.full(n, 40_000),
        "wire_dns_ns": np.maximum((dns - biased) / bent, 0).astype(np.int64) if known else np.full(n, -1),
        "wire_total_ns": np.maximum((total - biased) / bent, 0).astype(np.int64) if known else np.full(n, -1),
    }
    valid = bool(rng.random() >= world.invalid)
    record = samples.CellRecord(
        index,
        dict(vars(cell)),
        valid,
        [] if valid else ["load not offered: made so"],
        n,
        begin_ns,
        float(end.max() - begin_ns) / 1e9,
        _counters(world, trial),
        _cpu(cell, n + trial.warmup, rng),
        dict.fromkeys(_cpu(cell, 1, rng), 30_000_000),
        {
            "wall_ns": int(end.max() - start.min()),
            "run_time_s": float(total.sum()) / 1e9,
        }
        if cell.tool == "agent"
        else {"run_time_s": float(total.sum()) / 1e9, "completed": n},
    )
    return columns, record


def _queries(cell: Cell) -> int:
    if cell.lookup == "none" or cell.connection == "keepalive":
        return 0
    searched = cell.name_kind in ("external", "absent") and cell.ndots == 5
    return (4 if searched else 1) * (2 if cell.qtype == "A+AAAA" else 1)


def _forwarded(cell: Cell) -> bool:
    return not _mode2(cell) or cell.name_kind in ("external", "absent")


def _mode2(cell: Cell) -> bool:
    return cell.arm != "null" and WORLD.arms[cell.arm].dns_proxy


def _sidecar(cell: Cell) -> bool:
    return cell.arm != "null" and WORLD.arms[cell.arm].sidecar


def _dns(world: World, cell: Cell) -> tuple[float, float]:
    if cell.arm == "null":
        return world.dns["null"], world.slope * cell.null_delay_us
    if not _queries(cell):
        return (50.0, 0.0) if cell.kind == "lookup" else (0.0, 0.0)
    forwarding = world.forwarding if _mode2(cell) and _forwarded(cell) else 0.0
    reached = cell.arm in world.delayed_arms or forwarding > 0
    rounds = _queries(cell) / (2 if cell.qtype == "A+AAAA" else 1)
    return (world.dns[cell.arm] + forwarding) * rounds, 1_000 * cell.dns_delay_ms * reached


def _connect(world: World, cell: Cell) -> float:
    return 60.0 + world.capture.get(cell.arm, world.capture.get(cell.backend, 0.0)) + world.per_rule * cell.extra_rules


def _http(world: World, cell: Cell) -> float:
    if cell.kind == "lookup":
        return 0.0
    client = world.sidecar if _sidecar(cell) else 0.0
    server = world.server_sidecar if WORLD.backends[cell.backend].meshed else 0.0
    again = world.resolving if cell.arm == "mode1" and cell.backend == "resolved" else 0.0
    return 150.0 + client + server + again


def _starts(cell: Cell, total: Any, begin_ns: int, rng: np.random.Generator) -> tuple[Any, Any]:
    n = len(total)
    if cell.rate_hz:
        due = begin_ns + (np.cumsum(rng.exponential(1, n)) / cell.rate_hz * 1e9).astype(np.int64)
        return due + rng.lognormal(np.log(3_000), 0.5, n).astype(np.int64), due
    start = np.zeros(n, np.int64)
    for worker in range(cell.concurrency):
        mine = total[worker :: cell.concurrency]
        start[worker :: cell.concurrency] = begin_ns + np.cumsum(mine + 300) - (mine + 300)
    return start, start


def _rcode(world: World, cell: Cell) -> int:
    if not _queries(cell):
        return -1
    if cell.name_kind == "absent":
        return 3
    return world.aaaa_rcode if cell.qtype == "AAAA" and cell.arm == "mode2-envoy" and not _forwarded(cell) else 0


def _address(cell: Cell) -> str:
    if cell.name_kind == "absent" or cell.qtype == "AAAA" or not _queries(cell):
        return ""
    if cell.name_kind == "external":
        return "198.19.0.80"
    service = WORLD.backends.get(cell.backend, WORLD.backends["meshed"])
    if cell.answer != "none":
        return WORLD.answers[cell.answer].of(Nets(), WORLD.arms[cell.arm])
    return WORLD.answered(Nets(), service, in_pod=_mode2(cell))


def _counters(world: World, trial: plan.Trial) -> dict[str, float]:
    cell, made = trial.cell, trial.count + trial.warmup
    if cell.arm == "null":
        return {}
    sidecar, mode2, request = _sidecar(cell), _mode2(cell), cell.kind == "request"
    client = made * _queries(cell)
    own = world.resolutions if cell.backend == "resolved" else 0
    passed_on = client if mode2 and _forwarded(cell) else 0
    connections = made if cell.connection == "new" else 1
    found = {
        "pod/rule/dns_client": client,
        "pod/rule/dns_proxy": passed_on + own,
        "dnsdist/from_pod": passed_on + own + (0 if mode2 else client) - world.lost_queries * (client > 0),
    }
    if sidecar:
        found |= {"pod/rule/redirect_tcp": (connections - world.lost_redirects) * request}
        found |= {"pod/envoy/cluster_rq": made * request, "pod/envoy/cluster_resolutions": own}
    if mode2:
        found |= {"pod/dnsproxy/queries": client, "pod/dnsproxy/forwarded": passed_on}
    if request:
        found |= {"servers/nginx_rq": made}
    return {name: float(value) for name, value in found.items()}


def _cpu(cell: Cell, made: int, rng: np.random.Generator) -> dict[str, float]:
    if cell.arm == "null":
        return {}
    pod = f"client-{cell.arm}"
    spent = {f"{pod}-app": 90.0, "dns-coredns": 25.0 * _forwarded(cell)}
    spent |= {parts.sidecar(WORLD.arms[cell.arm]): 250.0} if _sidecar(cell) else {}
    if cell.kind == "request":
        service = WORLD.backends[cell.backend]
        first = next(iter(service.replicas))
        pair = (f"{first}-app", parts.sidecar(WORLD.named(first))) if service.meshed else (first,)
        spent |= dict.fromkeys(pair, 60.0)
    return {name: made * us * float(rng.lognormal(0, 0.03)) for name, us in spent.items()}


def _facts() -> dict[str, Any]:
    judged = {
        "resolution_ns": 1.0, "cost_p50_ns": 60, "cost_p99_ns": 90, "gaps_over_50us": 1, "gap_share": 8e-5,
        "longest_gap_ns": 80_000, "backwards": 0,
    }  # fmt: skip
    return {
        "clock": dict.fromkeys(ARMS[1:], judged),
        "machine": {"cpu": "made up", "cpus": 2, "kernel": "6.1", "governor": "performance", "clocksource": "tsc",
                    "steal_share": 0.001, "machine_id_hash": "abc"},
        "versions": {"meshdns": "0.1.0", "commit": "0123456789ab", "envoy": "1.40.0"},
    }  # fmt: skip
