"""What a request costs, phase by phase and container by container, step by step up the ladder: the numbers.

A step is an arm with a backend. Each change compares two steps that differ in one thing, in the same block. Medians of
phases do not add up to the median of the total; means do, so the ledger shows means.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, provenance, stats, text
from meshdns.core import units
from meshdns.core.world import World
from meshdns.studies.names.tables import tail

Level = tuple[str, str]
STEP = ["arm", "backend"]

# In this order, and after them any other in the order of the world.
LADDER: tuple[Level, ...] = (
    ("ip", "plain"),
    ("plain", "plain"),
    ("plain-aa", "plain"),
    ("plain", "meshed"),
    *itertools.product(("mode1", "mode2-envoy", "mode2-agent"), ("plain", "meshed", "resolved")),
)
PLAIN, TWIN, MODE1, MODE2 = ("plain", "plain"), ("plain-aa", "plain"), ("mode1", "meshed"), ("mode2-agent", "meshed")
RESOLVED, MODE2_ENVOY = ("mode1", "resolved"), ("mode2-envoy", "meshed")
RESOLVED_MODE2 = ("mode2-agent", "resolved")
CLIENT_ONLY = ("mode1", "plain"), ("mode2-agent", "plain")  # what the modes differ by without a sidecar at the server

CHANGES: tuple[tuple[Level, Level], ...] = (
    (PLAIN, TWIN),
    (("ip", "plain"), PLAIN),
    (PLAIN, ("plain", "meshed")),
    (PLAIN, ("mode1", "plain")),
    (("plain", "meshed"), MODE1),
    (MODE1, RESOLVED),
    CLIENT_ONLY,
    (MODE1, MODE2),
    (RESOLVED, RESOLVED_MODE2),
    (MODE2, MODE2_ENVOY),
    (PLAIN, MODE1),
    (PLAIN, MODE2),
)

# What a container does in a cell, by what is written after the name of its pod.
_OF_CLIENT = {"-app": "client_app", "-istio-proxy": "client_sidecar"}
_OF_SERVER = {"-istio-proxy": "server_sidecar", "-app": "server", "": "server"}
# Of a cluster DNS the parts themselves, of which these are known, in this order.
ROLES = (*_OF_CLIENT.values(), "server_sidecar", "server", "coredns", "dnsdist")
CLIENT = ROLES[0]  # it waits in a spin, and would dwarf the others

REQUEST, KEPT, OPEN = "request", "keepalive", "open"
SIZED = ("tls", "body")  # experiments whose requests differ in TLS or body size
EXPERIMENTS = (REQUEST, KEPT, OPEN, *SIZED)
USUAL_BYTES = 1024  # of all others


def label(level: Level) -> str:
    """As figures and tables name the step; where only one backend makes sense it is left out."""
    arm, backend = level
    return arm if arm in ("ip", TWIN[0]) else f"{arm} → {backend}"


def change(a: Level, b: Level) -> str:
    """What the step from a to b is called."""
    return f"{label(b)} against {label(a)}"


def _medians(runs: store.Runs, experiment: str) -> pd.DataFrame:
    return cells.medians(runs, cells.select(runs, experiment), STEP)


def _steps(levels: Iterable[Sequence[object]], seen: looks.Looks) -> list[Level]:
    """The steps that were measured: the ladder, then any other in the order of the world."""
    measured = [(str(arm), str(backend)) for arm, backend in levels]
    return sorted(measured, key=lambda step: (looks.place(LADDER, step), looks.place(seen.arms, step[0]), *step))


def _compared(steps: Sequence[Level], seen: looks.Looks) -> list[tuple[Level, Level]]:
    """The changes of the ladder, and each further step against no mesh and against the arm that it is most like."""
    found = [*CHANGES]
    for step in (each for each in steps if each not in LADDER):
        pod = seen.pod(step[0])
        mode = {"agent": MODE2[0], "envoy": MODE2_ENVOY[0]}.get(pod.dns, MODE1[0]) if pod.sidecar else PLAIN[0]
        like = (mode, step[1])
        found += [(like, step)] * (step != like != PLAIN)
        found.append((PLAIN, step))
    return found


def ladder(runs: store.Runs) -> pd.DataFrame:
    """A row per step: p50, p90, p99 from the due time."""
    chosen = cells.select(runs, REQUEST)
    chosen = chosen.assign(step=chosen["arm"] + "/" + chosen["backend"])
    found = {p: cells.matrix(cells.per_cell(runs, chosen, "from_due", p), STEP) for p in cells.PROBABILITIES}
    over_all = {p: cells.pooled(runs, chosen, "step", "from_due", p) for p in (0.9, 0.99)}
    seen = looks.of_runs(runs)
    rows = [
        {
            "step": label(step),
            "meaning": label(step) if step in LADDER else f"{looks.words(seen.pod(step[0]))}, calls {step[1]}",
            "arm": step[0],
            "blocks": len(cells.column(found[0.5], step)),
            "p50": cells.interval(found[0.5], step),
            "p90": tail(cells.interval(found[0.9], step), over_all[0.9].get("/".join(step))),
            "p99": tail(cells.interval(found[0.99], step), over_all[0.99].get("/".join(step))),
            "values": cells.column(found[0.5], step),
        }
        for step in _steps(found[0.5].columns, seen)
    ]
    return absent.of(pd.DataFrame(rows), runs, REQUEST)


def phases(runs: store.Runs) -> pd.DataFrame:
    """A row per step: the mean of each phase and of the total (from start), which is their sum."""
    chosen = cells.select(runs, REQUEST)
    found = {
        phase: cells.matrix(cells.per_cell(runs, chosen, phase, cells.MEAN), STEP)
        for phase in [*cells.PHASES, "from_start"]
    }
    rows = []
    for step in _steps(found["from_start"].columns, looks.of_runs(runs)):
        means = {phase: cells.interval(values, step) for phase, values in found.items()}
        total = means.pop("from_start")
        left_over = total.estimate - sum(each.estimate for each in means.values())
        rows.append(
            {"step": label(step), "arm": step[0], "blocks": total.n}
            | means
            | {"total": total, "left_over_ns": round(left_over, 1) + 0.0}  # no -0
        )
    return absent.of(pd.DataFrame(rows), runs, REQUEST)


def floor(runs: store.Runs, experiment: str = REQUEST) -> stats.NoiseFloor | None:
    """What equal arms differ by at p50."""
    return cells.noise_floor(_medians(runs, experiment), PLAIN, TWIN)


def difference(runs: store.Runs, a: Level, b: Level) -> stats.Difference | None:
    """Step b minus step a at p50."""
    return cells.paired(_medians(runs, REQUEST), a, b)


def changes(runs: store.Runs, experiment: str = REQUEST) -> pd.DataFrame:
    """A row per change of one thing: the paired difference of p50 and how it reads."""
    medians = _medians(runs, experiment)
    noise = cells.noise_floor(medians, PLAIN, TWIN)
    rows, seen = [], looks.of_runs(runs)
    for a, b in _compared(_steps(medians.columns, seen), seen):
        found = cells.paired(medians, a, b)
        if found is None:
            continue
        pair = medians[[a, b]].dropna().to_numpy(dtype=float)
        rows.append(
            {
                "change": change(a, b),
                "from": label(a),
                "to": label(b),
                "arm": b[0],
                "blocks": found.absolute.n,
                "p50": found,
                "reading": text.TWIN if b == TWIN else text.reading(found, noise),
                "levels": np.array([cells.interval(medians, each) for each in (a, b)], dtype=object),
                "values": pair[:, 1] - pair[:, 0],
            }
        )
    return absent.of(pd.DataFrame(rows), runs, experiment)


def row_of(table: pd.DataFrame, *pairs: tuple[Level, Level]) -> dict[Any, Any] | None:
    """The row of the first of these changes that was measured."""
    rows = {row["change"]: row for row in table.to_dict("records")}
    return next((rows[change(*pair)] for pair in pairs if change(*pair) in rows), None)


def waits(runs: store.Runs) -> pd.DataFrame:
    """A row per step: requests of an open loop from their due time and from their start; the gap is the hidden wait."""
    chosen = cells.select(runs, OPEN)
    found = {
        "p50_from_due": cells.medians(runs, chosen, STEP),
        "p50_from_start": cells.medians(runs, chosen, STEP, "from_start"),
        "hidden_wait_p50": cells.medians(runs, chosen, STEP, "lag"),
        "hidden_wait_mean": cells.matrix(cells.per_cell(runs, chosen, "lag", cells.MEAN), STEP),
    }
    rows = [
        {"step": label(step)} | {name: cells.interval(values, step) for name, values in found.items()}
        for step in _steps(found["p50_from_due"].columns, looks.of_runs(runs))
    ]
    return absent.of(pd.DataFrame(rows), runs, OPEN)


def sizes(runs: store.Runs) -> pd.DataFrame:
    """A row per arm, backend, TLS and body size other than the usual: p50, and against the usual request of that step.

    Empty if the runs hold no such cell. Compared only with requests that arrived alike, in the same blocks.
    """
    chosen = cells.select(runs, *SIZED, REQUEST)
    by = [*STEP, "arrival", "tls", "body_bytes"]
    medians = cells.medians(runs, chosen, by)
    other = set(map(tuple, chosen[chosen["experiment"].isin(SIZED)][by].to_numpy()))
    rows = []
    steps = _steps({level[:2] for level in other}, looks.of_runs(runs))
    for step in (each for each in steps if each != TWIN):  # plain once more says nothing of sizes
        for level in sorted(each for each in other if each[:2] == step and each in medians.columns):
            usual = (*level[:3], False, USUAL_BYTES)
            found = cells.paired(medians, usual, level)
            noise = cells.noise_floor(medians, (*PLAIN, *usual[2:]), (*TWIN, *usual[2:]))
            rows.append(
                {
                    "step": label(step),
                    "arm": step[0],
                    "tls": bool(level[3]),
                    "body_kb": level[4] / 1024,
                    "blocks": len(cells.column(medians, level)),
                    "p50": cells.interval(medians, level),
                    "p50_against_usual": found,
                    "reading": text.reading(found, noise),
                    "values": cells.column(medians, level),
                }
            )
    return absent.of(pd.DataFrame(rows), runs, *SIZED)


def role(step: Level, service: str, world: World) -> str:
    """What the container does in a cell of that step; "" for one that is only there."""
    arm, backend = step
    client = looks.Looks(world.arms).pod(arm)
    servers = world.backends[backend].replicas if backend in world.backends else ()
    name_server = world.dns_pod(client)
    roles = {f"{client.pod}{ending}": name for ending, name in _OF_CLIENT.items()}
    roles |= {f"{server}{ending}": name for server in servers for ending, name in _OF_SERVER.items()}
    roles |= {f"{pod.pod}-{part}": "server" for pod in world.pods if pod.pod in servers for part in pod.parts}
    roles |= {f"{name_server.pod}-{part}": part for part in name_server.parts or (name_server.part,)}
    return roles.get(service, "")


def behind_client(table: pd.DataFrame) -> list[str]:
    """The columns of a table of CPU time that are roles, but for the client."""
    known = [*table.columns]
    return known[known.index(CLIENT) + 1 : known.index("without_client")] if known else []


def cpu(runs: store.Runs) -> pd.DataFrame:
    """A row per step: CPU time per request in each kind of container, and their sum (intervals in ns)."""
    chosen = cells.select(runs, REQUEST, tool="agent")
    found = spent_by(runs, chosen, STEP)
    rows = [
        {"step": label(step), "arm": step[0], "blocks": len(cells.column(found["total"], step))}
        | {name: cells.interval(values, step) for name, values in found.items()}
        for step in _steps(found["total"].columns, looks.of_runs(runs))
    ]
    return absent.of(pd.DataFrame(rows), runs, REQUEST)


def memory(runs: store.Runs) -> pd.DataFrame:
    """A row per container that takes part: memory at the end of the cells, median and largest, in MB."""
    chosen = cells.select(runs, REQUEST)
    rows = [
        (service, role(step, service, runs.world), size / 1e6)
        for step, sizes in zip(_levels(chosen), chosen["memory_bytes"], strict=True)
        for service, size in sizes.items()
    ]
    frame = pd.DataFrame([row for row in rows if row[1]], columns=["container", "role", "mb"])
    table = frame.groupby(["role", "container"])["mb"].agg(median_mb="median", largest_mb="max").reset_index()
    by = table["role"].map(lambda name: looks.place(ROLES, name))
    return absent.of(table.iloc[np.lexsort((table["container"], by))].reset_index(drop=True), runs, REQUEST)


def _levels(chosen: pd.DataFrame) -> list[Level]:
    return [(str(arm), str(backend)) for arm, backend in zip(chosen["arm"], chosen["backend"], strict=True)]


def spent(runs: store.Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """CPU time per request in each role, ns: a row per cell of `chosen`."""
    rows: list[dict[str, float]] = []
    for step, used in zip(_levels(chosen), chosen["cpu_us"], strict=True):
        rows.append(dict.fromkeys(ROLES, 0.0))
        for service, us in used.items():
            if found := role(step, service, runs.world):
                rows[-1][found] = rows[-1].get(found, 0.0) + float(us) * units.NS_PER_US
    columns = dict.fromkeys([*ROLES, *(name for row in rows for name in row)])
    return pd.DataFrame(rows, columns=[*columns]).fillna(0.0).div(np.maximum(cells.asked(runs, chosen), 1), axis=0)


def spent_by(runs: store.Runs, chosen: pd.DataFrame, by: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The same by role, without the client and in all: blocks by levels."""
    each = spent(runs, chosen)
    each = each.assign(without_client=each.drop(columns=CLIENT).sum(axis=1), total=each.sum(axis=1))
    return {str(name): cells.matrix(chosen.assign(value=each[name]), by) for name in each}


# What the path of a request looks like in counters; sums over valid cells.
_PATH = {
    "redirected": "pod/rule/redirect_tcp",
    "translated": "pod/rule/clusterip_tcp",
    "in_sidecar": "pod/envoy/cluster_rq",
    "at_server_sidecars": "servers/envoy_rq",
    "at_servers": "servers/nginx_rq",
    "client_queries": "pod/rule/dns_client",
    "at_dns_proxy": "pod/dnsproxy/queries",
    "forwarded": "pod/dnsproxy/forwarded",
    "own_queries": "pod/rule/dns_proxy",
    "re_resolutions": "pod/envoy/cluster_resolutions",
    "at_cluster_dns": "dnsdist/from_pod",
}


def path(runs: store.Runs) -> pd.DataFrame:
    """A row per step: requests, the class of the answered addresses, and what each part of the path counted."""
    chosen = cells.select(runs, REQUEST, connection="new", tool="agent")
    rows, position = cells.requests_of(runs, chosen)
    answered = rows["address"].astype(str)
    addresses, cluster_ips = set(answered), {each.cluster_ip for each in runs.world.services}
    kinds = {
        "answers": addresses,
        "answered_cluster_ip": addresses & cluster_ips,
        "answered_virtual_ip": {each for each in addresses if each and runs.world.is_virtual(each)},
    }
    sums = chosen.assign(
        requests=cells.asked(runs, chosen),
        **{name: np.bincount(position[answered.isin(of)], minlength=len(chosen)) for name, of in kinds.items()},
        **{name: cells.counter(chosen, key) for name, key in _PATH.items()},
    )
    table = sums.groupby(["arm", "backend"], observed=True)[["requests", *kinds, *_PATH]].sum().astype(int)
    return table.reindex(sorted(table.index, key=lambda step: looks.place(LADDER, step))).reset_index()


def counted_at(table: pd.DataFrame, step: Level) -> dict[Any, Any] | None:
    """The row of that step, if it was measured."""
    return next(iter(cells.rows(table, arm=step[0], backend=step[1])), None)


def counted_in(table: pd.DataFrame, arm: str) -> dict[str, int]:
    """Sums over the backends of an arm."""
    whole = table[table["arm"] == arm].drop(columns=STEP)
    return {str(name): int(total) for name, total in whole.sum().items()} if len(whole) else {}


@dataclass(frozen=True)
class Resolutions:
    """How often the sidecar of mode 1 resolved endpoints on its own account, whatever the experiment."""

    attempts: int  # by Envoy's count
    queries: int  # packets to port 53, by the rules' count
    span: str  # in which these were counted


def resolutions(runs: store.Runs) -> Resolutions:
    """It resolves by the clock, not by the request: as told at the end of the run, else over the cells of mode 1."""
    told = [provenance.branch(header.facts, "resolutions").get("mode1") for header in runs.headers]
    if all(told):
        attempts, queries = (int(sum(each[name] for each in told if each)) for name in ("attempts", "queries"))
        which = "the run" if len(told) == 1 else f"each of {len(told)} runs"
        return Resolutions(attempts, queries, f"from its start to the end of {which}")
    chosen = cells.select(runs, arm="mode1")
    attempts, queries = (int(cells.counter(chosen, _PATH[n]).sum()) for n in ("re_resolutions", "own_queries"))
    return Resolutions(attempts, queries, f"in {units.number(chosen['wall_s'].sum())} s of all mode 1 cells")
