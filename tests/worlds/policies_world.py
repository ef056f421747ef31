"""Runs about what passing a sidecar buys, in a world that keeps or breaks its promises as a test chooses.

Requests are drawn: a replica is chosen, the fault strikes or not, and where a sidecar has a policy it does its work.
Counters follow from what was drawn, the warm-up included. Cells are those of the plan below.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from measured import block_of
from meshdns import store
from meshdns.measure import plan
from meshdns.measure.cell import Cell
from meshdns.store import samples
from shipped import WORLD

PLAN = """
name = "policies"
seed = 1
blocks = 8

[[experiment]]
name = "faults"
kind = "request"
arm = ["plain", "mode1", "mode2-agent"]
backend = "shop"
connection = "new"
arrival = "closed"
fault = ["fail30", "slow"]
count = 120
warmup = 10

[[experiment]]
name = "faults-retries"
series = "faults"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "shop"
connection = "new"
arrival = "closed"
fault = "fail30"
policy = ["retries", "outlier"]
count = 120
warmup = 10

[[experiment]]
name = "faults-timeouts"
series = "faults"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "shop"
connection = "new"
arrival = "closed"
fault = "slow"
policy = "timeouts"
count = 120
warmup = 10

[[experiment]]
name = "faults-dead"
series = "faults"
kind = "request"
arm = ["plain", "mode1", "mode2-agent"]
backend = "shop-dead"
connection = "new"
arrival = "closed"
fault = "dead"
count = 120
warmup = 10

[[experiment]]
name = "faults-overload"
series = "faults"
kind = "request"
arm = ["plain", "mode1", "mode2-agent"]
backend = "shop"
connection = "new"
rate_hz = 450.0
fault = "overload"
count = 120
warmup = 10

[[experiment]]
name = "faults-breaker"
series = "faults"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "shop"
connection = "new"
rate_hz = 450.0
fault = "overload"
policy = "breaker"
count = 120
warmup = 10

[[experiment]]
name = "split"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "shop"
connection = "new"
arrival = "closed"
policy = "split"
count = 300
warmup = 10

[[experiment]]
name = "split-plain"
series = "split"
kind = "request"
arm = "plain"
backend = "shop"
connection = "new"
arrival = "closed"
count = 300
warmup = 10

[[experiment]]
name = "mtls"
kind = "request"
arm = ["plain", "mode1", "mode2-agent"]
backend = "shop"
connection = "new"
arrival = "closed"
policy = ["strict", "permissive", "disable"]
count = 20
warmup = 5

[[experiment]]
name = "deny"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "shop"
connection = "keepalive"
rate_hz = 100.0
concurrency = [2, 8, 32]
change = "deny"
count = 640
warmup = 0

[[experiment]]
name = "external"
kind = "request"
arm = ["plain", "mode1", "mode2-agent"]
backend = ["api", "postgres", "redis"]
connection = "new"
arrival = "closed"
count = 30
warmup = 5
"""
ARMS = ("plain", "mode1", "mode2-agent")
MODES = ARMS[1:]
REPLICAS = ("shop-1", "shop-2", "shop-3")
REAL = {"api": "198.19.0.80", "postgres": "198.19.0.81", "redis": "198.19.0.82"}
VIRTUAL = {name: WORLD.backends[name].virtual_ip for name in REAL}
_USUAL = Cell("", "")
TRIES = {"none": 3, "retries": 4, "timeouts": 3}  # a sidecar alone tries connections again


@dataclass(frozen=True)
class World:
    """What is true; durations in microseconds."""

    fails: float = 0.3  # of shop-1's requests, under fail30
    slow_us: float = 100_000.0
    overload: float = 0.35  # of requests, answered with 503
    retried: bool = True  # a policy is heeded
    everywhere: bool = False  # also by clients without a sidecar
    weight: float = 0.10  # of v2
    plain_replicas: tuple[str, ...] = REPLICAS  # where ClusterIP leads to
    guarded: bool = True  # strict means strict
    reused: bool = False  # sidecars use connections again that stood before
    first: dict[str, str] = field(default_factory=lambda: {"mode1": "postgres"})  # takes all on the shared port
    api: float = 1.0  # share of the requests that sidecars serve
    around: bool = False  # sidecars pass the external name on as an unknown address
    late: float = 1.0  # requests on a connection that are served after every sidecar has accepted a policy that denies
    denied: bool = True  # such a policy is in force some time
    accepted: float = 0.4  # share of the load until every sidecar has accepted it
    told: bool = True  # cells tell of their change
    invalid: float = 0.0  # share of cells


def runs(root: Path, world: World | None = None, blocks: int = 8, seed: int = 2) -> store.Runs:
    """Stored and loaded again."""
    return store.load(build(root, world, blocks, seed))


def build(
    root: Path, world: World | None = None, blocks: int = 8, seed: int = 2, asked: plan.Plan | None = None
) -> Path:
    """The finished folder of a run of the plan above, or of another."""
    world = world or World()
    asked = dataclasses.replace(asked or plan.parse(PLAN, "policies_world", WORLD), blocks=blocks)
    experiments = tuple(dataclasses.replace(each, every=1) for each in asked.experiments)
    asked = dataclasses.replace(asked, experiments=experiments)
    header = store.RunHeader(f"policies-{seed}", asked.to_json(), seed, "2026-01-01T00:00:00Z", blocks, {})
    writer = store.create(root, header, asked.world)
    for block in range(blocks):
        made = [_cell(world, trial, n, block, seed) for n, trial in enumerate(asked.block(block))]
        writer.write_block(
            block, block_of([each for each, _ in made]), [record for _, record in made], "2026-01-01T00:00:00Z"
        )
    return writer.finish("2026-01-01T00:08:00Z")


@dataclass
class _Request:
    """What became of one."""

    outcome: str = "ok"
    status: int = 200
    replica: str = ""
    address: str = "10.96.1.30"
    us: float = 700.0


def _cell(
    world: World, trial: plan.Trial, index: int, block: int, seed: int
) -> tuple[dict[str, Any], samples.CellRecord]:
    cell = trial.cell
    told = {name: level for name, level in vars(cell).items() if level != getattr(_USUAL, name)}
    rng = np.random.default_rng([seed, block, zlib.crc32(repr(told).encode())])  # a factor more changes nothing
    if cell.change != "none":
        return _denying(world, trial, index, (block + 1) * 10**12 + index * 10**10, rng)
    counters: Counter[str] = Counter()
    made = [_request(world, cell, rng, counters) for _ in range(trial.count + trial.warmup)]
    if world.reused:
        counters.pop("servers/mtls_cx", None)
    begin_ns = (block + 1) * 10**12 + index * 10**10
    columns = _columns(made[trial.warmup :], index, begin_ns, rng)
    return columns, _record(world, trial, (index, begin_ns), counters, rng)


def _record(
    world: World,
    trial: plan.Trial,
    place: tuple[int, int],
    counters: Counter[str],
    rng: np.random.Generator,
    **agent: Any,
) -> samples.CellRecord:
    index, begin_ns = place
    valid = bool(rng.random() >= world.invalid)
    return samples.CellRecord(
        index,
        dict(vars(trial.cell)),
        valid,
        [] if valid else ["load not offered: made so"],
        trial.count,
        begin_ns,
        1.0,
        {name: float(count) for name, count in counters.items() if count},
        agent=agent,
    )


def _denying(
    world: World, trial: plan.Trial, index: int, begin_ns: int, rng: np.random.Generator
) -> tuple[dict[str, Any], samples.CellRecord]:
    """A policy that denies comes a quarter into the load; each connection of it makes one request after the other."""
    n, open_ = trial.count, trial.cell.concurrency
    columns = _columns([_Request(replica="shop-1") for _ in range(n)], index, begin_ns, rng, open_)
    start_ns, end_ns = columns["start_ns"], columns["end_ns"]
    at_ns, done_ns = (begin_ns + int(share * (end_ns.max() - begin_ns)) for share in (0.25, world.accepted))
    for port in np.unique(columns["local_port"]) if world.denied else ():
        after = np.flatnonzero((columns["local_port"] == port) & (start_ns > done_ns))
        refused = after[int(world.late + rng.random()) :]
        columns["outcome"][refused], columns["replica"][refused], columns["status"][refused] = "http_error", "", 403
    change = {"at_ns": at_ns, "done_ns": done_ns, "added": [], "removed": [], "pooled": open_}
    told = {"change": change} if world.told else {}
    return columns, _record(world, trial, (index, begin_ns), Counter(), rng, **told)


def _columns(
    made: list[_Request], index: int, begin_ns: int, rng: np.random.Generator, open_: int = 1
) -> dict[str, Any]:
    n = len(made)
    total = (np.array([each.us for each in made]) * rng.lognormal(0, 0.05, n) * 1_000).astype(np.int64)
    start = np.zeros(n, np.int64)
    for one in range(open_):
        mine = total[one::open_] + 300
        start[one::open_] = begin_ns + np.cumsum(mine) - mine
    end = start + total
    return {
        "cell": np.full(n, index),
        "seq": np.arange(n),
        "due_ns": start,
        "start_ns": start,
        "dns_ns": start,
        "connect_ns": start,
        "tls_ns": start,
        "first_byte_ns": end,
        "end_ns": end,
        **{
            name: np.array([getattr(each, name) for each in made], object) for name in ("outcome", "address", "replica")
        },
        "rcode": np.zeros(n, np.int8),
        "status": np.array([each.status for each in made]),
        "queries": np.ones(n, np.int16),
        "bytes": np.zeros(n, np.int32),
        "local_port": 40_000 + np.arange(n) % open_,
        "wire_dns_ns": np.full(n, -1),
        "wire_total_ns": np.full(n, -1),
    }


def _request(world: World, cell: Cell, rng: np.random.Generator, counters: Counter[str]) -> _Request:
    sidecar = WORLD.arms[cell.arm].sidecar
    if cell.backend in REAL:
        return _outside(world, cell, rng, counters)
    if cell.experiment == "mtls" and not _let_in(world, cell, counters):
        return _Request("reset", 0)
    if not sidecar and not world.everywhere:
        return _tried(world, cell, rng, counters, world.plain_replicas)
    counters["pod/envoy/cluster_rq"] += sidecar
    if cell.fault == "overload" and cell.policy == "breaker" and world.retried and rng.random() < 0.3:
        counters["pod/envoy/breaker_overflow"] += 1
        return _Request("http_error", 503)
    return _through(world, cell, rng, counters)


def _through(world: World, cell: Cell, rng: np.random.Generator, counters: Counter[str]) -> _Request:
    """A sidecar's tries, as its policy has them."""
    among = REPLICAS
    if cell.policy == "split":
        among = ("shop-3",) if rng.random() < world.weight else ("shop-1", "shop-2")
    if cell.policy == "outlier" and world.retried and counters["servers/nginx_rq"] > 20:
        counters["pod/envoy/ejections"] = max(counters["pod/envoy/ejections"], 1)
        among = ("shop-2", "shop-3")
    spent, found = 0.0, _Request()
    for attempt in range(TRIES.get(cell.policy, 3) if world.retried else 1):
        counters["pod/envoy/retries"] += attempt > 0
        counters["pod/envoy/tries"] += 1
        found = _tried(world, cell, rng, counters, among)
        late = world.retried and cell.policy == "timeouts" and found.us > 25_000
        counters["pod/envoy/per_try_timeout"] += late
        again = late or found.outcome == "connect_error" or (found.status == 503 and cell.policy == "retries")
        spent += min(found.us, 25_000.0) if late else found.us
        if not again:
            counters["pod/envoy/retry_success"] += attempt > 0
            break
        among = tuple(each for each in among if each != found.replica)
    return dataclasses.replace(found, us=spent)


def _tried(
    world: World, cell: Cell, rng: np.random.Generator, counters: Counter[str], among: tuple[str, ...]
) -> _Request:
    """One try on one replica."""
    dead = cell.fault == "dead" and rng.random() < 1 / (len(among) + 1)
    if dead:
        return _Request("connect_error", 0)
    replica = among[int(rng.integers(len(among)))]
    counters["servers/nginx_rq"] += 1
    if cell.fault == "overload" and rng.random() < world.overload:
        return _Request("http_error", 503, replica, us=900_000.0)
    failed = cell.fault == "fail30" and replica == "shop-1" and rng.random() < world.fails
    slow = world.slow_us if cell.fault == "slow" and replica == "shop-1" else 0.0
    return _Request("http_error" if failed else "ok", 503 if failed else 200, replica, us=700.0 + slow)


def _let_in(world: World, cell: Cell, counters: Counter[str]) -> bool:
    """Whether the servers' sidecars take the connection."""
    encrypted = WORLD.arms[cell.arm].sidecar and cell.policy != "disable"
    counters["servers/mtls_cx"] += encrypted
    if encrypted or cell.policy != "strict" or not world.guarded:
        return True
    counters["servers/no_chain"] += 1
    return False


def _outside(world: World, cell: Cell, rng: np.random.Generator, counters: Counter[str]) -> _Request:
    """A service of the world."""
    client, name = WORLD.arms[cell.arm], cell.backend
    address = VIRTUAL[name] if client.dns_proxy else REAL[name]
    if name == "api":
        counters["pod/envoy/passthrough_cx"] += client.sidecar and world.around
        counters["pod/envoy/cluster_rq"] += client.sidecar and not world.around
        served = not client.sidecar or rng.random() < world.api
        return _Request("ok" if served else "http_error", 200 if served else 503, "world-web" * served, address)
    counters["pod/envoy/cluster_cx"] += client.sidecar
    server = world.first.get(cell.arm, name)
    return _Request("ok" if server == name else "bad_answer", 0, server, address)
