"""A trial as the agent's job, and the agent's answer as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns.core import resolver
from meshdns.core.world import Nets, World
from meshdns.measure import factors
from meshdns.measure.factors.factor import Job
from meshdns.measure.plan import Trial
from meshdns.store import samples

# Beyond this the agent itself stops a load: so many times the expected duration, and a little more.
SLACK_S = 5.0
OPEN_SLOWER, CLOSED_SLOWER = 2, 20  # an open loop keeps its rate; a closed one is as slow as the machine
_FAMILIES = {"A": "inet", "AAAA": "inet6", "A+AAAA": "unspec"}


def job(trial: Trial, world: World, nets: Nets, seed: int) -> dict[str, Any]:
    """The agent's job for one trial: what its factors make of it, in the agent's words."""
    cell = trial.cell
    start = {
        "count": trial.count,
        "warmup": trial.warmup,
        "timeout_ms": trial.timeout_ms,
        "duration_limit_s": trial.seconds(world) * (OPEN_SLOWER if cell.rate_hz else CLOSED_SLOWER) + SLACK_S,
    }
    made = factors.job(Job(start), cell, world, nets)
    fields = {**made.fields, "arrival": {**made.fields["arrival"], "seed": seed}}
    if cell.lookup == "getaddrinfo":
        fields |= {"name": made.name, "family": _FAMILIES[cell.qtype]}
    elif cell.lookup == "wire":
        wire = resolver.wire(made.name, cell.qtype, cell.ndots, world.search)
        fields |= {"wire": wire, "resolver": [made.server, 53]}
    if cell.kind == "request":
        lines = (f"GET {made.path} HTTP/1.1", *made.head, "", "") if made.path else ()
        fields["request"] = "\r\n".join(lines)
    return fields


def table(index: int, header: Mapping[str, Any], body: bytes) -> pa.Table:
    """The agent's columns as samples of cell number `index`."""
    rows, offset = int(header["rows"]), 0
    columns: dict[str, Any] = {}
    for name, code in header["columns"]:
        kind = np.dtype(f"<i{8 if code == 'q' else 4}")
        columns[name] = np.frombuffer(body, kind, rows, offset)
        offset += rows * kind.itemsize
    for name, texts in header["strings"].items():
        columns[name] = pa.DictionaryArray.from_arrays(
            pa.array(columns[name], pa.int32()), pa.array(texts, pa.string())
        )
    unseen = np.full(rows, -1, np.int64)
    columns |= {"cell": np.full(rows, index, np.int16), "seq": np.arange(rows, dtype=np.int32)}
    return samples.table({**columns, "wire_dns_ns": unseen, "wire_total_ns": unseen})
