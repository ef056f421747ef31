"""A trial as the agent's job, and the agent's answer as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns.core import resolver
from meshdns.core.world import Nets, Service, World
from meshdns.lab import names
from meshdns.measure.cell import Cell
from meshdns.measure.factors import fault
from meshdns.measure.plan import Trial
from meshdns.store import samples

TLS_CERTIFICATE = "/tls/certificate/tls.crt"  # where the client container has it
# Beyond this the agent itself stops a load: so many times the expected duration, and a little more.
SLACK_S = 5.0
OPEN_SLOWER, CLOSED_SLOWER = 2, 20  # an open loop keeps its rate; a closed one is as slow as the machine
# A broken TLS record: the shortest question that both servers answer, each in its own words (an alert; -ERR).
TCP_PAYLOAD = "16030a0004ff000000"
TCP_ANSWERS = {"postgres": ["53", "4e", "1503"], "redis": ["2b504f4e47", "2d455252"]}
NULL_NAME = "d{delay:g}.null."  # the calibration target busy-waits for the microseconds its question names


def service_of(cell: Cell, world: World) -> Service:
    """The service a cell is about; lookups are of one."""
    return world.backends.get(cell.backend, world.looked_up)


def job(trial: Trial, world: World, nets: Nets, seed: int) -> dict[str, Any]:
    """The agent's job for one trial."""
    cell = trial.cell
    fields: dict[str, Any] = {
        "id": cell.experiment,
        "kind": cell.kind,
        "lookup": cell.lookup,
        "connection": "keepalive" if cell.connection == "keepalive" else "new",
        "arrival": {
            "process": cell.arrival,
            "rate_hz": cell.rate_hz,
            "seed": seed,
            "concurrency": cell.concurrency,
        },
        "count": trial.count,
        "warmup": trial.warmup,
        "timeout_ms": trial.timeout_ms,
        "duration_limit_s": trial.seconds(world) * (OPEN_SLOWER if cell.rate_hz else CLOSED_SLOWER) + SLACK_S,
        "wait": cell.wait,
        # An A-only name has no AAAA, an absent name no address: that is the answer, not a failure.
        "accept_nodata": cell.qtype == "AAAA",
        "accept_nxdomain": cell.name_kind == "absent" or cell.qtype == "AAAA",
    }
    return fields | _lookup(cell, world, nets) | (_request(cell, world, nets) if cell.kind == "request" else {})


def _lookup(cell: Cell, world: World, nets: Nets) -> dict[str, Any]:
    server = [world.dns_cluster_ip, 53]
    if cell.arm == "null":
        name, server = NULL_NAME.format(delay=cell.null_delay_us), [world.address(nets, "null-target"), 53]
    elif cell.answer != "none":
        name = f"{world.answer_name(cell.answer, world.arms[cell.arm])}."
    else:
        name = names.application_name(world, cell.name_kind, service_of(cell, world))
    if cell.lookup == "getaddrinfo" and cell.arm != "null":
        return {"name": name, "family": {"A": "inet", "AAAA": "inet6", "A+AAAA": "unspec"}[cell.qtype]}
    if cell.lookup == "wire" or cell.arm == "null":
        return {"wire": resolver.wire(name, cell.qtype, cell.ndots, world.search), "resolver": server}
    return {}


def _request(cell: Cell, world: World, nets: Nets) -> dict[str, Any]:
    service = service_of(cell, world)
    direct = cell.lookup == "none"  # the arm ip names a pod, and so the container's own port
    port = (service.target_ports if direct else service.ports)[cell.tls]
    if cell.answer != "none":
        port = world.answers[cell.answer].port
    if service.name in TCP_ANSWERS:
        tcp = {"payload": TCP_PAYLOAD, "answers": TCP_ANSWERS}
        return {"address": "", "port": service.ports[0], "request": "", "tls": None, "tcp": tcp}
    # A one-off request says so, as one-off clients do; the server then closes first and keeps the port's TIME_WAIT.
    close = "Connection: close\r\n" if cell.connection == "new" else ""
    path = f"{fault.of(cell.fault).path}/bytes/{cell.body_bytes}"
    head = f"GET {path} HTTP/1.1\r\nHost: {service.fqdn}\r\nUser-Agent: meshdns\r\n{close}\r\n"
    return {
        "address": nets.pod(service.hosts[0]) if direct else "",
        "port": port,
        "request": head,
        "tls": {"server_name": service.fqdn, "cafile": TLS_CERTIFICATE} if cell.tls else None,
    }


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
