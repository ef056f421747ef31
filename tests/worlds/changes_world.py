"""Runs in which endpoints change under a load, in a world that follows as fast as a test chooses.

A replica that has ended refuses; one that is unready serves on. Until a way to know endpoints has followed, requests go
to those of before; a kept connection stays with its replica where the way says so.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from measured import block_of
from meshdns import store
from meshdns.measure import plan
from meshdns.measure.cell import Cell
from meshdns.measure.load import CHANGE_AT_S
from meshdns.store import samples
from shipped import WORLD

BEFORE = ("shop-1", "shop-2", "shop-3")
MODES = ("mode1", "mode2-agent")
WAYS = {"shop": "EDS", "shop-dns": "STRICT_DNS"}
UNKEPT = "cluster DNS, no cache"
NAMES = {"plain-cache": "cluster DNS, cache 30 s", "mode2-agent": "name table"}  # others: UNKEPT
# change: added, removed, s until the removed one ends
CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], float]] = {
    "up": (("shop-4",), (), math.inf),
    "down": ((), ("shop-1",), 2.0),
    "replace": (("shop-4",), ("shop-1",), 0.0),
    "unready": ((), ("shop-1",), math.inf),
    "crash": ((), ("shop-1",), 0.0),
    "unrelated": ((), (), math.inf),
    "istiod": ((), (), math.inf),
}
AT, SECONDS, TOOK_NS, OPEN = 0.25, 8.0, 30_000_000, 6  # AT: share of the load before the change


@dataclass(frozen=True)
class World:
    """What is true; s from the change."""

    follows: dict[str, float] = field(
        default_factory=lambda: {
            "EDS": 0.6,
            "name table": 0.9,
            UNKEPT: 0.7,
            "cluster DNS, cache 30 s": 4.0,
            "STRICT_DNS": 3.0,
            "ClusterIP": math.inf,
        }
    )
    gathers: dict[str, dict[str, float]] = field(  # debounce -> way -> s, where it is not the above
        default_factory=lambda: {
            "1ms": {"EDS": 0.3, "name table": 0.4},
            "1s": {"EDS": 2.0, "name table": 2.2},
            "endpoints-at-once": {"EDS": 0.2},
        }
    )
    sticks: tuple[str, ...] = (  # what is kept stays with its replica
        "name table", UNKEPT, "cluster DNS, cache 30 s", "ClusterIP",
    )  # fmt: skip
    unreached: tuple[str, ...] = ()  # what is added gets nothing
    refused: tuple[str, int] = ("connect_error", 0)  # outcome and status of a request to a replica that has ended
    retried: bool = False  # such a request goes to another replica at once
    broken_before: int = 0  # requests per cell that fail before the change
    early: bool = False  # what is added serves already before
    told: bool = True  # cells tell of their change
    invalid: float = 0.0  # share of cells
    noise: float = 0.02  # of how fast is followed
    rate_hz: float = 100.0


def runs(root: Path, world: World | None = None, blocks: int = 4, seed: int = 1) -> store.Runs:
    """Stored and loaded again."""
    return store.load(build(root, world, blocks, seed))


def build(
    root: Path,
    world: World | None = None,
    blocks: int = 4,
    seed: int = 1,
    name: str = "",
    *,
    asked: plan.Plan | None = None,
) -> Path:
    """The finished folder of a run of the shipped plan `name`, of another, or of one with every change in every arm."""
    world = world or World()
    made = dataclasses.replace(asked or (plan.find(name, WORLD) if name else _plan(world)), blocks=blocks)
    header = store.RunHeader(f"change-{seed}", made.to_json(), seed, "2026-01-01T00:00:00Z", blocks, {})
    writer = store.create(root, header, made.world)
    for block in range(blocks):
        begin_ns = (block + 1) * 10**15
        cells, records = [], []
        trials = [(cell, each.count) for each in made.experiments for cell in each.cells() if cell.change != "none"]
        for n, (cell, count) in enumerate(trials):
            rng = np.random.default_rng([seed, block, zlib.crc32(repr(cell).encode())])
            columns, record = _cell(world, (cell, count), n, begin_ns + n * 10**11, rng)
            cells.append(columns)
            records.append(record)
        writer.write_block(block, block_of(cells), records, "2026-01-01T00:00:00Z")
    return writer.finish("2026-01-01T01:00:00Z")


def _plan(world: World) -> plan.Plan:
    usual: dict[str, Any] = {
        "kind": "request",
        "rate_hz": (world.rate_hz,),
        "count": round(SECONDS * world.rate_hz),
        "warmup": 0,
    }
    meshed = plan.Experiment(
        "change-meshed",
        arm=MODES,
        backend=("shop", "shop-headless", "shop-dns"),
        connection=("new", "keepalive"),
        change=tuple(name for name, (*moved, _) in CHANGES.items() if any(moved)),
        series="change",
        **usual,
    )
    plain = dataclasses.replace(meshed, name="change-plain", arm=("plain",), backend=("shop", "shop-headless"))
    cached = dataclasses.replace(plain, name="change-cached", arm=("plain-cache",), backend=("shop-headless",))
    gathered = dataclasses.replace(
        meshed,
        name="gathered",
        arm=("mode2-agent",),
        backend=("shop", "shop-headless"),
        connection=("new",),
        change=("up",),
        debounce=("100ms", *world.gathers),
        series="",
    )
    return plan.Plan("change", "", 1, 1, (meshed, plain, cached, gathered), WORLD)


@dataclass
class _Requests:
    """The columns that differ between requests, as they are decided."""

    at_s: Any  # start, from the change
    replica: Any
    port: Any
    outcome: Any
    status: Any


def _cell(
    world: World, trial: tuple[Cell, int], index: int, begin_ns: int, rng: np.random.Generator
) -> tuple[dict[str, Any], samples.CellRecord]:
    cell, n = trial
    at_ns = begin_ns + round(min(AT * n / cell.rate_hz, CHANGE_AT_S) * 1e9)
    due = begin_ns + (np.arange(n) / cell.rate_hz * 1e9).astype(np.int64)
    start = due + rng.integers(1_000, 5_000, n)
    added, removed, _ = CHANGES[cell.change]
    at_s = (start - at_ns) / 1e9
    port = 20_000 + np.arange(n) if cell.connection == "new" else 50_000 + np.arange(n) % OPEN
    made = _Requests(at_s, np.full(n, "", object), port, np.full(n, "ok", object), np.full(n, 200))
    _served(world, cell, made, rng)
    if world.early and added:
        made.replica[:5] = added[0]
    _fail(made, np.arange(n) < world.broken_before, "timeout", 0)
    took = rng.integers(500_000, 1_500_000, n)
    ok = made.outcome == "ok"
    columns = {
        "cell": np.full(n, index),
        "seq": np.arange(n),
        "due_ns": due,
        "start_ns": start,
        **{name: start + took * part // 10 for part, name in enumerate(samples.INSTANTS[1:-1], 1)},
        "end_ns": start + took,
        "outcome": made.outcome,
        "rcode": np.zeros(n),
        "status": made.status,
        "queries": np.ones(n),
        "address": np.full(n, "10.96.1.30", object),
        "replica": made.replica,
        "bytes": np.zeros(n),
        "local_port": made.port,
        "wire_dns_ns": np.full(n, -1),
        "wire_total_ns": np.full(n, -1),
    }
    told = {
        "at_ns": at_ns,
        "done_ns": at_ns + TOOK_NS,
        "added": list(added),
        "removed": list(removed),
    }
    valid = bool(rng.random() >= world.invalid)
    record = samples.CellRecord(
        index,
        dict(vars(cell)),
        valid,
        [] if valid else ["load not offered: made so"],
        n,
        begin_ns,
        n / cell.rate_hz,
        {"servers/nginx_rq": int(ok.sum())},
        agent={"change": told} if world.told else {},
    )
    return columns, record


def _served(world: World, cell: Cell, made: _Requests, rng: np.random.Generator) -> None:
    """Who serves each request, and which fail."""
    added, removed, ends_s = CHANGES[cell.change]
    way = "ClusterIP" if (cell.arm, cell.backend) == ("plain", "shop") else WAYS.get(cell.backend)
    way = way or NAMES.get(cell.arm, UNKEPT)
    follows_s = world.gathers.get(cell.debounce, {}).get(way, world.follows[way]) * rng.lognormal(0, world.noise)
    n = len(made.at_s)
    later = [each for each in BEFORE if each not in removed]
    later += [] if way in world.unreached else list(added)
    # Evenly within any six requests, as a balancer would, but not by turns: connections take turns too.
    turn = rng.permuted(np.tile(np.arange(6), (n // 6 + 1, 1)), axis=1).ravel()[:n]
    chosen = np.where(made.at_s < follows_s, np.array(BEFORE)[turn % 3], np.array(later)[turn % len(later)]).astype(
        object
    )
    if cell.connection == "keepalive" and way in world.sticks:
        _stick(made, chosen, removed, ends_s)
    made.replica[:] = chosen
    dead = np.isin(chosen, removed) & (made.at_s >= ends_s)
    if world.retried:
        made.replica[dead] = "shop-2"
    else:
        _fail(made, dead, *world.refused)


def _stick(made: _Requests, chosen: Any, removed: tuple[str, ...], ends_s: float) -> None:
    """Each connection keeps the replica of its first request; what has ended makes the client open another."""
    for one in range(OPEN):
        mine = np.arange(one, len(chosen), OPEN)
        first = BEFORE[one % 3]
        if first not in removed or math.isinf(ends_s):
            chosen[mine] = first
            continue
        chosen[mine[made.at_s[mine] < ends_s]] = first
        after = mine[made.at_s[mine] >= ends_s]
        alive = after[1:][~np.isin(chosen[after[1:]], removed)]
        if len(after):
            chosen[after[0]] = first  # finds its connection reset
        if len(alive):
            chosen[after[after > alive[0]]] = chosen[alive[0]]
            made.port[after[after >= alive[0]]] += 1_000


def _fail(made: _Requests, which: Any, outcome: str, status: int) -> None:
    made.outcome[which], made.status[which], made.replica[which] = outcome, status, ""
