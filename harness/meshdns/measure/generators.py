"""Other load generators on the same path: h2load for HTTP, dnsperf for DNS, each run inside the client container."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns.core import errors
from meshdns.core.world import World
from meshdns.lab.place import Place
from meshdns.measure.factors.backend import service_of
from meshdns.measure.plan import Trial
from meshdns.store import samples

TIMEOUT_S = 60
_QUERY = re.compile(r"^> (\w+) \S+ \w+ ([\d.]+)", re.MULTILINE)
_RUN_TIME = re.compile(r"Run time \(s\):\s+([\d.]+)")
_RCODES = {"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3}


def measure(index: int, trial: Trial, place: Place) -> tuple[pa.Table, dict[str, Any]]:
    """The load generator's own samples, and what Little's law needs. Raises TestbedError."""
    app = f"{place.world.arms[trial.cell.arm].pod}-app"

    def run(script: str) -> str:
        return place.exec(app, ["sh", "-ec", script], timeout_s=TIMEOUT_S)

    tool = _h2load if trial.cell.tool == "h2load" else _dnsperf
    return tool(index, trial, place.world, run)


def _h2load(index: int, trial: Trial, world: World, run: Callable[[str], str]) -> tuple[pa.Table, dict[str, Any]]:
    """h2load's request log: start (µs since the epoch), status, duration (µs)."""
    cell = trial.cell
    url = f"http://{service_of(cell, world).cluster_ip}/bytes/{cell.body_bytes}"
    total = trial.warmup + trial.count
    log = "/tmp/h2load.log"  # noqa: S108  the container's own tmpfs
    script = (
        f"rm -f {log}; h2load --h1 -t 1 -c {cell.concurrency} -n {total} --log-file={log} {url} >/dev/null; cat {log}"
    )
    rows = np.array([line.split("\t") for line in run(script).splitlines()], dtype=np.int64)
    rows = rows[np.argsort(rows[:, 0])][trial.warmup :]
    start_ns, duration_ns = rows[:, 0] * 1000, rows[:, 2] * 1000
    outcome = np.where(rows[:, 1] == 200, "ok", "http_error")
    facts = {"run_time_s": float((start_ns[-1] + duration_ns[-1] - start_ns[0]) / 1e9), "completed": len(rows)}
    return _table(index, start_ns, duration_ns, outcome, status=rows[:, 1], rcode=np.full(len(rows), -1)), facts


def _dnsperf(index: int, trial: Trial, world: World, run: Callable[[str], str]) -> tuple[pa.Table, dict[str, Any]]:
    """dnsperf -v: rcode and duration per query, and the run time; it stamps no instants, so they are put end to end."""
    name, total = f"{service_of(trial.cell, world).host}. {trial.cell.qtype}", trial.warmup + trial.count
    questions = "/tmp/dnsperf.txt"  # noqa: S108  the container's own tmpfs
    at_once = trial.cell.concurrency
    server = world.dns_address(world.arms[trial.cell.arm])
    ask = f"dnsperf -s {server} -d {questions} -n 1 -T 1 -c {at_once} -q {at_once} -v"
    said = run(f"yes '{name}' | head -n {total} > {questions}; {ask}")
    found = _QUERY.findall(said)
    run_time = _RUN_TIME.search(said)
    if not found or run_time is None:
        raise errors.TestbedError("dnsperf reported no query", place=trial.cell.arm)
    facts = {"run_time_s": float(run_time[1]), "completed": len(found)}
    kept = found[trial.warmup :]
    duration_ns = np.array([float(seconds) * 1e9 for _, seconds in kept]).astype(np.int64)
    start_ns = np.concatenate(([0], np.cumsum(duration_ns)[:-1]))
    rcode = np.array([_RCODES.get(text, 2) for text, _ in kept])
    return _table(
        index, start_ns, duration_ns, np.full(len(kept), "ok"), status=np.zeros(len(kept)), rcode=rcode
    ), facts


def _table(index: int, start_ns: Any, duration_ns: Any, outcome: Any, *, status: Any, rcode: Any) -> pa.Table:
    rows = len(start_ns)
    end_ns, nothing = start_ns + duration_ns, np.zeros(rows, np.int64)
    http = bool(np.any(status))
    before = start_ns if http else end_ns  # HTTP: all of it is waiting for the reply; DNS: all of it is the lookup
    return samples.table(
        {
            "cell": np.full(rows, index), "seq": np.arange(rows), "due_ns": start_ns, "start_ns": start_ns,
            "dns_ns": before, "connect_ns": before, "tls_ns": before, "first_byte_ns": end_ns, "end_ns": end_ns,
            "outcome": list(outcome), "rcode": rcode, "status": status, "queries": nothing if http else nothing + 1,
            "address": [""] * rows, "replica": [""] * rows, "bytes": nothing, "local_port": nothing,
            "wire_dns_ns": nothing - 1, "wire_total_ns": nothing - 1,
        }
    )  # fmt: skip
