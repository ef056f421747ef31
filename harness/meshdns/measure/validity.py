"""Whether a trial measured what it says: load offered, answers right, path taken.

A trial that did not is kept, marked invalid with the reasons, and never averaged in. All counts are exact: the testbed
carries no other traffic, so the components must agree with the client to the packet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meshdns.core.world import Nets, World
from meshdns.lab import parts
from meshdns.lab.parts.component import ASKED, Made
from meshdns.measure.cell import Cell
from meshdns.measure.counters import on_path
from meshdns.measure.factors.arm import NULL
from meshdns.measure.plan import Trial
from meshdns.store.samples import CellRecord

LATE_NS = 10_000_000  # a request that starts this much after its due time was not offered when the plan said
LATE_SHARE = 0.01  # more late starts than this and the load is another one than planned
STOLEN_SHARE = 0.05  # a spinning agent that loses more than this of its CPU is not a clock
NOERROR, NXDOMAIN = 0, 3
Counts = Mapping[str, float]
_SHOWN = 3  # kinds of reasons that a summary names


def reasons(
    trial: Trial, table: pa.Table, counts: Counts, agent: Mapping[str, Any], *, world: World, nets: Nets
) -> list[str]:
    """Why the trial is not valid; empty if it is."""
    cell = trial.cell
    found = list(_offered(trial, table, agent))
    if world.is_live(cell.backend):  # what becomes of the requests is the question
        return found
    if cell.answer != "none":  # what becomes of the request is the question; only the lookup has a right answer
        return [*found, *_answered(cell, table, world, nets)]
    found += _answers(cell, table, world, nets)
    if cell.tool == "agent" and cell.arm != NULL:
        found += _path(trial, counts, agent, world)
    return found


def summary(records: Sequence[CellRecord]) -> str:
    """How many trials were not valid, and mostly why: a line for a person."""
    invalid = [each for each in records if not each.valid]
    line = f"{len(invalid)} of {len(records)} trials invalid ({round(100 * len(invalid) / len(records), 1):g} %)"
    if not invalid:
        return line
    kinds = Counter(kind for each in invalid for kind in sorted({_kind(reason) for reason in each.reasons}))
    [(arm, most)] = Counter(str(each.parameters["arm"]) for each in invalid).most_common(1)
    line += f", mostly: {', '.join(f'{kind} ({count})' for kind, count in kinds.most_common(_SHOWN))}"
    return f"{line}; {most} of them in arm {arm}" if 2 * most > len(invalid) else line


def _kind(reason: str) -> str:
    """A reason without what is of one trial only: counts, and what was wrong in place of the right."""
    text = re.sub(r"^\d+ of \d+ requests: ", "", reason)
    return text.partition(":")[0] if text.startswith("wrong ") else re.split(r":? (?:for )?-?\d", text)[0]


def _offered(trial: Trial, table: pa.Table, agent: Mapping[str, Any]) -> Iterator[str]:
    if table.num_rows != trial.count:
        yield f"load not offered: {table.num_rows} of {trial.count} requests were made"
    if not table.num_rows:
        return
    lag_ns = table.column("start_ns").to_numpy() - table.column("due_ns").to_numpy()
    late = int((lag_ns > LATE_NS).sum())
    if late > LATE_SHARE * table.num_rows:
        yield f"load not offered: {late} of {table.num_rows} requests started more than {LATE_NS // 10**6} ms late"
    if agent.get("wall_ns") and agent.get("gap_ns", 0) > STOLEN_SHARE * agent["wall_ns"]:
        yield f"the agent lost its CPU for {agent['gap_ns'] / agent['wall_ns']:.0%} of the time"


def _answers(cell: Cell, table: pa.Table, world: World, nets: Nets) -> Iterator[str]:
    failed = pc.value_counts(
        pc.filter(table.column("outcome"), pc.not_equal(table.column("outcome").cast(pa.string()), "ok"))
    )
    for entry in failed.to_pylist():
        yield f"{entry['counts']} of {table.num_rows} requests: {entry['values']}"
    if cell.tool != "agent" or cell.arm == NULL:
        return
    ok = table.filter(pc.equal(table.column("outcome").cast(pa.string()), "ok"))
    expected: dict[str, set[Any]] = {
        "address": _addresses(cell, world, nets),
        "rcode": _rcodes(cell),
        "status": {200} if cell.kind == "request" else {0},
        "replica": set(world.backends[cell.backend].replicas) if cell.kind == "request" else {""},
        "bytes": {cell.body_bytes} if cell.kind == "request" else {0},
    }
    for column, right in expected.items():
        seen = set(pc.unique(ok.column(column)).to_pylist())
        if wrong := sorted(map(str, seen - right)):
            yield f"wrong {column}: {', '.join(wrong[:3])}"


def _answered(cell: Cell, table: pa.Table, world: World, nets: Nets) -> Iterator[str]:
    right = world.answers[cell.answer].of(nets, world.arms[cell.arm])
    if wrong := set(pc.unique(table.column("address")).to_pylist()) - {right}:
        yield f"wrong address: {', '.join(sorted(map(str, wrong)))}, expected {right}"


def _addresses(cell: Cell, world: World, nets: Nets) -> set[str]:
    service = world.backends.get(cell.backend, world.looked_up)
    if cell.name_kind == "absent" or cell.qtype == "AAAA":
        return {""}
    if cell.name_kind == "external":
        return {world.address(nets, world.external_pod)}
    if cell.lookup == "none":
        return {nets.pod(service.hosts[0])}
    return {world.answered(nets, service, in_pod=world.arms[cell.arm].dns_proxy)}


def _rcodes(cell: Cell) -> set[int]:
    """Envoy's dns_filter answers NXDOMAIN for a known name without that type; the cluster DNS answers NODATA."""
    if cell.lookup in ("none", "getaddrinfo") or cell.connection == "keepalive":
        return {-1, NOERROR, NXDOMAIN} if cell.lookup == "getaddrinfo" else {-1, NOERROR}
    if cell.name_kind == "absent":
        return {NXDOMAIN}
    return {NOERROR, NXDOMAIN} if cell.qtype == "AAAA" else {NOERROR}


def _path(trial: Trial, counts: Counts, agent: Mapping[str, Any], world: World) -> Iterator[str]:
    """What must be equal, by the parts on the path, and is not."""
    cell, client = trial.cell, world.arms[trial.cell.arm]
    made = _made(trial, agent)
    if made.queries is None and counts.get(ASKED, 0) == 0:
        yield "getaddrinfo sent no DNS query"
    every = [at for pod in on_path(cell, world) for at in parts.of(world, Nets(), world.named(pod))]
    pairs = {what: pair for at in every for what, *pair in at.part.equal(at, client, counts, made)}
    for what, (counted, expected) in pairs.items():
        if counted != expected:  # to the packet: counters are whole numbers
            yield f"path not taken: {what}: {counted:.0f}, expected {expected:.0f}"


def _made(trial: Trial, agent: Mapping[str, Any]) -> Made:
    """By the agent's own count, with its warm-up."""
    cell, warm = trial.cell, agent.get("warmup", {})
    queries = None if cell.lookup == "getaddrinfo" else agent.get("queries_sent", 0) + warm.get("queries_sent", 0)
    return Made(
        requests=trial.count + trial.warmup if cell.kind == "request" else 0,
        connections=agent.get("connections_opened", 0) + warm.get("connections_opened", 0),
        queries=queries,
        by_name=cell.lookup != "none",
        tls=cell.tls,
    )
