"""Notebook 02: what a request costs, phase by phase and container by container, step by step up the ladder.

A step is an arm with a backend. Each change compares two steps that differ in one thing, in the same block. Medians of
phases do not add up to the median of the total; means do, so the ledger shows means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, provenance, stats, text
from meshdns.core import units
from meshdns.studies import lookups

Level = tuple[str, str]  # arm, backend


@dataclass(frozen=True)
class Step:
    """A rung of the ladder."""

    arm: str
    backend: str
    meaning: str

    @property
    def level(self) -> Level:
        """As a column of a matrix."""
        return self.arm, self.backend

    @property
    def label(self) -> str:
        """As figures and tables name it; where only one backend makes sense it is left out."""
        return self.arm if self.arm in ("ip", "plain-aa") else f"{self.arm} → {self.backend}"


LADDER = (
    Step("ip", "plain", "pod address, no DNS, no mesh"),
    Step("plain", "plain", "name and ClusterIP, no mesh"),
    Step("plain-aa", "plain", "the same again (A/A)"),
    Step("plain", "meshed", "sidecar at the server"),
    Step("mode1", "plain", "mode 1, sidecar at the client"),
    Step("mode1", "static", "mode 1, both sidecars, endpoints known"),
    Step("mode1", "meshed", "mode 1, both sidecars"),
    Step("mode2-envoy", "plain", "mode 2 by Envoy's DNS filter, sidecar at the client"),
    Step("mode2-envoy", "meshed", "mode 2 by Envoy's DNS filter, both sidecars"),
    Step("mode2-agent", "plain", "mode 2 by the agent's proxy, sidecar at the client"),
    Step("mode2-agent", "meshed", "mode 2 by the agent's proxy, both sidecars"),
)
STEPS = {step.level: step for step in LADDER}
PLAIN, TWIN, MODE1, MODE2 = ("plain", "plain"), ("plain-aa", "plain"), ("mode1", "meshed"), ("mode2-agent", "meshed")
STATIC, MODE2_ENVOY = ("mode1", "static"), ("mode2-envoy", "meshed")


@dataclass(frozen=True)
class Change:
    """Two steps and what they differ in."""

    a: Level
    b: Level
    what: str


CHANGES = (
    Change(PLAIN, TWIN, "nothing (A/A)"),
    Change(("ip", "plain"), PLAIN, "name and ClusterIP"),
    Change(PLAIN, ("plain", "meshed"), "sidecar at the server"),
    Change(PLAIN, ("mode1", "plain"), "sidecar at the client, mode 1"),
    Change(("plain", "meshed"), MODE1, "sidecar at the client too, mode 1"),
    Change(STATIC, MODE1, "STRICT_DNS for known endpoints"),
    Change(("mode1", "plain"), ("mode2-agent", "plain"), "mode 2 for mode 1, client only"),
    Change(MODE1, MODE2, "mode 2 for mode 1, both sidecars"),
    Change(MODE2, MODE2_ENVOY, "Envoy's DNS filter for the agent's proxy"),
    Change(PLAIN, MODE1, "whole mesh, mode 1"),
    Change(PLAIN, MODE2, "whole mesh, mode 2"),
)

# Role <- Compose service; what matches nothing belongs to another pod, idle in this cell.
_ROLES = (
    ("client app", r"{client}-app"),
    ("client sidecar", r"{client}-envoy"),
    ("DNS proxy", r"{client}-dns"),
    ("server sidecar", r"{server}-envoy"),
    ("server (nginx)", r"{server}(-app)?"),
    ("dnsdist", r"dns-dnsdist"),
    ("bind", r"dns-bind"),
)
ROLES = tuple(role for role, _ in _ROLES)
BEHIND_CLIENT = ROLES[1:]  # the client waits in a spin, and would dwarf them


SIZED = ("tls", "body")  # experiments whose requests differ in TLS or body size
USUAL_BYTES = 1024  # of all others


def _medians(runs: store.Runs, experiment: str, statistic: float | str = 0.5) -> pd.DataFrame:
    chosen = cells.select(runs, experiment)
    return cells.matrix(cells.per_cell(runs, chosen, "from due", statistic), ["arm", "backend"])


def _steps(levels: Iterable[Sequence[object]], seen: looks.Looks) -> list[Step]:
    """The steps that were measured: the ladder, then any other in the order of the world."""
    measured = [(str(arm), str(backend)) for arm, backend in levels]
    further = [level for level in measured if level not in STEPS]
    order = seen.held(arm for arm, _ in further)
    further.sort(key=lambda level: (order.index(level[0]), level[1]))
    others = [Step(*level, f"{looks.words(seen.pod(level[0]))}, calls {level[1]}") for level in further]
    return [*(step for step in LADDER if step.level in measured), *others]


def _compared(steps: Sequence[Step], seen: looks.Looks) -> list[Change]:
    """The changes of the ladder, and each further step against no mesh and against the arm that it is most like."""
    found = [*CHANGES]
    for step in (each for each in steps if each.level not in STEPS):
        pod = seen.pod(step.arm)
        mode = {"agent": MODE2[0], "envoy": MODE2_ENVOY[0]}.get(pod.dns, MODE1[0]) if pod.sidecar else PLAIN[0]
        like = (mode, step.backend)
        found += [Change(like, step.level, f"{step.arm} for {mode}, {step.backend}")] * (step.level != like != PLAIN)
        found.append(Change(PLAIN, step.level, f"{step.label} for no mesh"))
    return found


def ladder(runs: store.Runs, experiment: str = "request") -> pd.DataFrame:
    """A row per step: p50, p90, p99 from the due time."""
    chosen = cells.select(runs, experiment)
    chosen = chosen.assign(step=chosen["arm"] + "/" + chosen["backend"])
    found = {p: cells.matrix(cells.per_cell(runs, chosen, "from due", p), ["arm", "backend"]) for p in (0.5, 0.9, 0.99)}
    over_all = {p: cells.pooled(runs, chosen, "step", "from due", p) for p in (0.9, 0.99)}
    rows: list[dict[str, Any]] = [
        {
            "step": step.label,
            "meaning": step.meaning,
            "arm": step.arm,
            "blocks": len(cells.column(found[0.5], step.level)),
            "p50": cells.interval(found[0.5], step.level),
            "p90": lookups.tail(cells.interval(found[0.9], step.level), over_all[0.9].get("/".join(step.level))),
            "p99": lookups.tail(cells.interval(found[0.99], step.level), over_all[0.99].get("/".join(step.level))),
            "values": cells.column(found[0.5], step.level),
        }
        for step in _steps(found[0.5].columns, looks.of_runs(runs))
    ]
    return absent.of(pd.DataFrame(rows), runs, experiment)


def phases(runs: store.Runs, experiment: str = "request") -> pd.DataFrame:
    """A row per step: the mean of each phase and of the total (from start), which is their sum."""
    chosen = cells.select(runs, experiment)
    found = {
        phase: cells.matrix(cells.per_cell(runs, chosen, phase, cells.MEAN), ["arm", "backend"])
        for phase in [*cells.PHASES, "from start"]
    }
    rows: list[dict[str, Any]] = []
    for step in _steps(found["from start"].columns, looks.of_runs(runs)):
        means = {phase: cells.interval(values, step.level) for phase, values in found.items()}
        total = means.pop("from start")
        left_over = total.estimate - sum(each.estimate for each in means.values())
        rows.append(
            {"step": step.label, "arm": step.arm, "blocks": total.n}
            | means
            | {"total": total, "left over, ns": round(left_over, 1) + 0.0}  # no -0
        )
    return absent.of(pd.DataFrame(rows), runs, experiment)


def floor(runs: store.Runs, experiment: str = "request") -> stats.NoiseFloor | None:
    """What equal arms differ by at p50."""
    return cells.noise_floor(_medians(runs, experiment), PLAIN, TWIN)


def difference(runs: store.Runs, a: Level, b: Level, experiment: str = "request") -> stats.Difference | None:
    """Step b minus step a at p50."""
    return cells.paired(_medians(runs, experiment), a, b)


def changes(runs: store.Runs, experiment: str = "request") -> pd.DataFrame:
    """A row per change of one thing: the paired difference of p50 and how it reads."""
    medians = _medians(runs, experiment)
    noise = cells.noise_floor(medians, PLAIN, TWIN)
    rows: list[dict[str, Any]] = []
    steps = _steps(medians.columns, looks.of_runs(runs))
    labels = {step.level: step.label for step in steps}
    for change in _compared(steps, looks.of_runs(runs)):
        found = cells.paired(medians, change.a, change.b)
        if found is None:
            continue
        pair = medians[[change.a, change.b]].dropna().to_numpy(dtype=float)
        rows.append(
            {
                "change": change.what,
                "from": labels[change.a],
                "to": labels[change.b],
                "arm": change.b[0],
                "blocks": found.absolute.n,
                "p50": found,
                "reading": text.TWIN if change.b == TWIN else text.reading(found, noise),
                "levels": np.array([cells.interval(medians, each) for each in (change.a, change.b)], dtype=object),
                "values": pair[:, 1] - pair[:, 0],
            }
        )
    return absent.of(pd.DataFrame(rows), runs, experiment)


def waits(runs: store.Runs, experiment: str = "open") -> pd.DataFrame:
    """A row per step: requests of an open loop from their due time and from their start; the gap is the hidden wait."""
    chosen = cells.select(runs, experiment)
    by = ["arm", "backend"]
    due, start, lag = (cells.matrix(cells.per_cell(runs, chosen, m), by) for m in ("from due", "from start", "lag"))
    mean = cells.matrix(cells.per_cell(runs, chosen, "lag", cells.MEAN), by)
    table = pd.DataFrame(
        [
            {
                "step": step.label,
                "p50 from due": cells.interval(due, step.level),
                "p50 from start": cells.interval(start, step.level),
                "hidden wait p50": cells.interval(lag, step.level),
                "hidden wait mean": cells.interval(mean, step.level),
            }
            for step in _steps(due.columns, looks.of_runs(runs))
        ]
    )
    return absent.of(table, runs, experiment)


def sizes(runs: store.Runs) -> pd.DataFrame:
    """A row per arm, backend, TLS and body size other than the usual: p50, and against the usual request of that step.

    Empty if the runs hold no such cell. Compared only with requests that arrived alike, in the same blocks.
    """
    columns = ["step", "arm", "TLS", "body, kB", "blocks", "p50", "p50 against 1 kB without TLS", "reading", "values"]
    chosen = cells.select(runs, *SIZED, "request")
    by = ["arm", "backend", "arrival", "tls", "body_bytes"]
    medians = cells.matrix(cells.per_cell(runs, chosen, "from due"), by)
    other = set(map(tuple, chosen[chosen["experiment"].isin(SIZED)][by].to_numpy()))
    rows: list[dict[str, Any]] = []
    steps = _steps({level[:2] for level in other}, looks.of_runs(runs))
    for step in (each for each in steps if each.level != TWIN):  # plain once more says nothing of sizes
        for level in sorted(each for each in other if each[:2] == step.level and each in medians.columns):
            usual = (*level[:3], False, USUAL_BYTES)
            found = cells.paired(medians, usual, level)
            noise = cells.noise_floor(medians, (*PLAIN, *usual[2:]), (*TWIN, *usual[2:]))
            rows.append(
                {
                    "step": step.label,
                    "arm": step.arm,
                    "TLS": "yes" if level[3] else "no",
                    "body, kB": level[4] / 1024,
                    "blocks": len(cells.column(medians, level)),
                    "p50": cells.interval(medians, level),
                    "p50 against 1 kB without TLS": found,
                    "reading": text.reading(found, noise),
                    "values": cells.column(medians, level),
                }
            )
    return absent.of(pd.DataFrame(rows, columns=columns), runs, *SIZED)


def sizes_answer(table: pd.DataFrame) -> str:
    """What larger bodies and TLS cost, by arm; or that it was not measured."""
    if table.empty:
        return "Bodies of other sizes and TLS were not measured; the plan `standard` holds them."
    said = [f"{_sized(row)} on {row['step']} {text.interval(row['p50'])}" for row in table.to_dict("records")]
    return f"Requests of other sizes (p50): {', '.join(said)}."


def _sized(row: dict[Any, Any]) -> str:
    size = f"{row['body, kB']:.0f} kB"
    return f"{size} through TLS" if row["TLS"] == "yes" else size


def role(step: Level, service: str, seen: looks.Looks) -> str:
    """What the container does in a cell of that step; "" for one that is only there."""
    arm, backend = step
    server = r"legacy-\d+" if backend == "plain" else r"web-\w+"
    forms = ((name, form.format(client=re.escape(seen.pod(arm).pod), server=server)) for name, form in _ROLES)
    return next((name for name, form in forms if re.fullmatch(form, service)), "")


def cpu(runs: store.Runs, experiment: str = "request") -> pd.DataFrame:
    """A row per step: CPU time per request in each kind of container, and their sum (intervals in ns)."""
    chosen = cells.select(runs, experiment, tool="agent")
    rows = _by_role(runs, chosen, "cpu_us")
    share = units.us_to_ns(1) / np.maximum(cells.asked(runs, chosen), 1)
    spent = rows.mul(share, axis=0)
    whole = {name: cells.matrix(chosen.assign(value=spent[name]), ["arm", "backend"]) for name in spent.columns}
    total = cells.matrix(chosen.assign(value=spent.sum(axis=1)), ["arm", "backend"])
    others = cells.matrix(chosen.assign(value=spent[list(BEHIND_CLIENT)].sum(axis=1)), ["arm", "backend"])
    table = pd.DataFrame(
        [
            {"step": step.label, "arm": step.arm, "blocks": len(cells.column(total, step.level))}
            | {name: cells.interval(values, step.level) for name, values in whole.items()}
            | {"without client": cells.interval(others, step.level), "total": cells.interval(total, step.level)}
            for step in _steps(total.columns, looks.of_runs(runs))
        ]
    )
    return absent.of(table, runs, experiment)


def memory(runs: store.Runs, experiment: str = "request") -> pd.DataFrame:
    """A row per container that takes part: memory at the end of the cells, median and largest, in MB."""
    chosen = cells.select(runs, experiment)
    seen = looks.of_runs(runs)
    rows = [
        (service, role(step, service, seen), size / 1e6)
        for step, sizes in zip(_levels(chosen), chosen["memory_bytes"], strict=True)
        for service, size in sizes.items()
        if role(step, service, seen)
    ]
    frame = pd.DataFrame(rows, columns=["container", "role", "MB"])
    table = frame.groupby(["role", "container"])["MB"].agg(["median", "max"]).reset_index()
    order = {name: rank for rank, name in enumerate(ROLES)}
    table = table.sort_values(
        ["role", "container"], key=lambda each: each.map(order).fillna(0) if each.name == "role" else each
    )
    table = table.rename(columns={"median": "median, MB", "max": "largest, MB"}).reset_index(drop=True)
    return absent.of(table, runs, experiment)


def _levels(chosen: pd.DataFrame) -> list[Level]:
    return [(str(arm), str(backend)) for arm, backend in zip(chosen["arm"], chosen["backend"], strict=True)]


def _by_role(runs: store.Runs, chosen: pd.DataFrame, field: str) -> pd.DataFrame:
    """Sums per role, a row per cell of `chosen`."""
    rows, seen = [], looks.of_runs(runs)
    for step, spent in zip(_levels(chosen), chosen[field], strict=True):
        sums = dict.fromkeys(ROLES, 0.0)
        for service, value in spent.items():
            if found := role(step, service, seen):
                sums[found] += float(value)
        rows.append(sums)
    return pd.DataFrame(rows, columns=list(ROLES))


# What the path of a request looks like in counters; sums over valid cells.
_PATH = {
    "redirected": "pod/rule/redirect_tcp",
    "translated": "pod/rule/clusterip_tcp",
    "in sidecar": "pod/envoy/cluster_rq",
    "at server sidecars": "servers/envoy_rq",
    "at servers": "servers/nginx_rq",
    "client queries": "pod/rule/dns_client",
    "at DNS proxy": "pod/dnsproxy/queries",
    "forwarded": "pod/dnsproxy/forwarded",
    "proxy's own queries": "pod/rule/dns_proxy",
    "re-resolutions": "pod/envoy/cluster_resolutions",
    "at cluster DNS": "dnsdist/from_pod",
}


def path(runs: store.Runs, experiments: Sequence[str] = ("request",)) -> pd.DataFrame:
    """A row per step: requests, the class of the answered addresses, and what each part of the path counted."""
    chosen = cells.select(runs, *experiments, connection="new", tool="agent")
    rows, position = cells.requests_of(runs, chosen)
    answered = rows["address"].astype(str)
    sums = chosen.assign(
        requests=cells.asked(runs, chosen),
        **{"seconds": chosen["wall_s"].astype(float)},
        **{name: cells.counter(chosen, key) for name, key in _PATH.items()},
        **{
            f"answered {what}": np.bincount(position[answered.str.startswith(prefix)], minlength=len(chosen))
            for what, prefix in (("ClusterIP", "10.96."), ("virtual IP", "240.240."))
        },
        answers=np.bincount(position, minlength=len(chosen)),
    )
    names = ["requests", "answers", "answered ClusterIP", "answered virtual IP", *_PATH, "seconds"]
    table = sums.groupby(["arm", "backend"], observed=True)[names].sum().reset_index()
    order = {step.level: rank for rank, step in enumerate(LADDER)}
    rank = [order.get(level, len(order)) for level in zip(table["arm"], table["backend"], strict=True)]
    whole = [name for name in names if name != "seconds"]
    return table.iloc[np.argsort(rank, kind="stable")].astype(dict.fromkeys(whole, int)).reset_index(drop=True)


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
    attempts, queries = (int(cells.counter(chosen, _PATH[n]).sum()) for n in ("re-resolutions", "proxy's own queries"))
    return Resolutions(attempts, queries, f"in {units.number(chosen['wall_s'].sum())} s of all mode 1 cells")


# --- sentences ---


def answer(runs: store.Runs) -> str:
    """What the whole mesh costs a request in either mode, new connection and kept alive."""
    table = changes(runs)
    said = [_whole(table, "mode 2"), _whole(table, "mode 1"), _modes(table)]
    if "keepalive" in set(runs.cells["experiment"]):
        said.append(_kept(changes(runs, "keepalive")))
    return " ".join(each for each in said if each) or "No change of one thing was measured in a valid block."


def _row(table: pd.DataFrame, what: str) -> dict[Any, Any] | None:
    found = table[table["change"] == what].to_dict("records") if len(table) else []
    return found[0] if found else None


def _whole(table: pd.DataFrame, mode: str) -> str:
    row = _row(table, f"whole mesh, {mode}")
    if row is None:
        return ""
    return f"With both sidecars in {mode} a request on a new connection {_costs(row, 'without a mesh', 'no mesh')}."


def _modes(table: pd.DataFrame) -> str:
    row = _row(table, "mode 2 for mode 1, both sidecars")
    return "" if row is None else f"A request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}."


def _kept(table: pd.DataFrame) -> str:
    """The price of the mesh where connections are kept, and what the modes differ by there."""
    said = [
        f"On a connection kept alive a request with both sidecars in {mode} {_costs(row, 'without a mesh', 'no mesh')}."
        for mode in ("mode 1", "mode 2")
        if (row := _row(table, f"whole mesh, {mode}")) is not None
    ]
    row = _row(table, "mode 2 for mode 1, both sidecars") or _row(table, "mode 2 for mode 1, client only")
    if row is not None:
        said.append(f"On a connection kept alive a request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}.")
    return " ".join(said)


def _costs(row: dict[Any, Any], than: str, beside: str) -> str:
    """Levels first, then what they differ by, as the table reads it."""
    found: stats.Difference = row["p50"]
    blocks, reading = text.blocks(found.absolute.n), str(row["reading"])
    before, after = (text.interval(each) for each in row["levels"])
    levels = f"takes {after}, {than} {before}"
    if reading in text.CLEAR:
        longer = "longer" if reading == "more" else "shorter"
        amount = units.interval(text.turned(found.absolute, 1 if reading == "more" else -1))
        return f"{levels}: {amount} {longer}, {text.size(found)} (p50, {blocks})"
    if found.absolute.n < 2:
        return f"was compared with {beside} in one block, which gives no interval"
    return f"{levels}; the difference is {reading} (p50, {blocks})"
