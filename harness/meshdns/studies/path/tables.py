"""Which way a request takes: traced requests hop by hop, and what becomes of requests whose name is answered otherwise.

Outcomes come from real requests and from what counted them: `proxied` and `direct` were served, through the client's
sidecar or past it; `looped` reached the sidecar's own port, so that it was to connect to itself; `refused` was told so;
`lost` was told nothing until its time was over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, provenance
from meshdns.core.world import Pod as Client
from meshdns.interception.conventions import ISTIO
from meshdns.studies.path.hops import Path, read
from meshdns.studies.path.pods import Pod

Row = dict[Any, Any]
# Arms that sentences and claims tell of: mode 1's sidecar, with its loop guard and without; that which knows virtual
# IPs, as mode 2's does.
GUARDED, UNGUARDED, KNOWING = "answers", "unguarded", "answers-mode2"
ANSWERS = "answers"
EXPERIMENTS = (ANSWERS,)


# --- traced requests ---

HOP = ("kind", "source", "own", "pod", "target", "target_pod", "inside", "asked", "rewritten", "packets", "bytes",
       "said", "answer", "taken", "kept")  # fmt: skip
_DNS, _TCP = ("dns_exchanges", "dns_leaving", "dns_packets"), ("connections", "connections_leaving", "tcp_packets")


def traces(runs: store.Runs) -> Iterator[tuple[str, Path]]:
    """Run and traced request, of every arm that each run traced."""
    for header in runs.headers:
        for trace in provenance.branch(header.facts, "traces").values():
            yield header.name, read(trace, runs.world)


def paths(runs: store.Runs) -> dict[str, Path]:
    """Arm -> its traced request, of the last run that has one."""
    return {path.arm: path for _, path in traces(runs)}


def hops(found: Mapping[str, Path], *arms: str) -> pd.DataFrame:
    """A row per hop of these arms, in order."""
    rows = [
        {"arm": arm, "number": number, "times": row.times} | {name: getattr(row.hop, name) for name in HOP}
        for arm in arms
        if arm in found
        for number, row in enumerate(found[arm].rows(), 1)
    ]
    whole = absent.knowing(pd.DataFrame(rows), (absent.TRACES,))
    return absent.leaving(whole, [arm for arm in found if arm not in arms])


def totals(path: Path) -> dict[str, int]:
    """Hops and packets by kind; `leaving`: not over a pod's loopback. The sidecar's own lookups are not counted."""
    found: dict[str, int] = {}
    for hops, names in ((path.of("DNS"), _DNS), (path.of("TCP"), _TCP)):
        counted = len(hops), sum(not hop.inside for hop in hops), sum(hop.packets for hop in hops)
        found |= dict(zip(names, counted, strict=True))
    address = path.request["address"]
    right = [each for each in path.questions() if address and address in each[0].answer.split(", ")]
    wrong = [each for each in path.questions() if each not in right]
    found |= {"names_not_found": len(wrong), "exchanges_each": max(map(len, wrong), default=0)}
    found["exchanges_found"] = max(map(len, right), default=0)
    both = zip(("hops", "between_pods", "packets"), _DNS, _TCP, strict=True)
    return found | {name: found[dns] + found[tcp] for name, dns, tcp in both}


def counts(runs: store.Runs) -> pd.DataFrame:
    """A row per run and arm: how its traced request ended, hops and packets by kind, DNS exchanges by question."""
    rows = [
        {"run": run, "arm": path.arm, "outcome": path.request["outcome"]} | totals(path) for run, path in traces(runs)
    ]
    return absent.knowing(
        pd.DataFrame(rows, columns=[*rows[0]] if rows else ["run", "arm", "outcome"]), (absent.TRACES,)
    )


def seen(found: Mapping[str, Path]) -> pd.DataFrame:
    """A row per arm: its traced request's hops and packets, and what each part saw of it."""
    return absent.knowing(pd.DataFrame([{"arm": arm} | _seen(path) for arm, path in found.items()]), (absent.TRACES,))


def _seen(path: Path) -> Row:
    pods = {"client": path.pod, "server": path.served}  # of the server that answered
    total, ends = totals(path), {end: path.pods[pod] for end, pod in pods.items() if pod in path.pods}
    # Whatever rewrote addresses: rules leave an entry, programs and sockets do not.
    of_hops = [f"{hop.asked} → {hop.reached}" for hop in path.hops if not hop.own and hop.rewritten]
    of_entries = [each.ends for pod in ends.values() for each in pod.entries or () if each.rewritten]
    return {
        **{name: total[name] for name in ("hops", "between_pods", "packets")},
        "questions": "; ".join(f"{each[0].said.removesuffix('?')}: {each[0].answer}" for each in path.questions())
        or None,
        "rules": _each(ends, lambda pod: pod.moved),
        "conntrack_client": ends["client"].tracked,
        "conntrack_server": ends["server"].tracked if "server" in ends else None,
        "listener": _each(ends, lambda pod: pod.taken.listener),
        "filter_chain": _each(ends, lambda pod: pod.taken.chain),
        "cluster": _each(ends, lambda pod: pod.taken.cluster),
        "rewritten": "; ".join(dict.fromkeys([*of_hops, *of_entries])) or "none",
    }


def _each(ends: Mapping[str, Pod], said: Callable[[Pod], str]) -> str | None:
    """What is known at either end."""
    return "; ".join(f"{end}: {known}" for end, pod in ends.items() if (known := said(pod))) or None


# --- names that are answered otherwise ---

LEVELS = ["answer", "arm", "intercepted", "sidecar"]
OUTCOMES = ("proxied", "direct", "looped", "refused", "lost")
COUNTS = {  # by rules, sidecar and servers
    "redirected": "pod/rule/redirect_tcp",
    "translated": "pod/rule/clusterip_tcp",
    "at_sidecar": "pod/envoy/outbound_cx",
    "by_service": "pod/envoy/listener_rq",
    "forwarded": "pod/envoy/cluster_rq",
    "passed_through": "pod/envoy/passthrough_cx",
    "overflow": "pod/envoy/passthrough_overflow",
    "at_guard": "pod/envoy/blackhole_cx",
    "at_servers": "servers/nginx_rq",
}
_ESCAPED = ("pod/rule/escaped_clusterip", "pod/rule/escaped_vip", "pod/rule/escaped_unroutable")
_CLIENT = ["served", "told", "silent"]
_SUMS = ["requests", *_CLIENT, *COUNTS, "escaped"]
_SILENT = "timeout"  # the one way to fail that a client is not told


def matrix(runs: store.Runs) -> pd.DataFrame:
    """A row per answer and condition: requests by outcome, how they ended, and the counts behind it.

    `home`: the address is the asking pod's own; `to_sidecar`: and the port its sidecar's. `connections_each`: how
    many a request that looped caused at the sidecar.
    """
    chosen = cells.select(runs, ANSWERS)
    per_cell = chosen.assign(
        requests=cells.asked(runs, chosen),
        **_client(runs, chosen),
        **{name: cells.counter(chosen, key) for name, key in COUNTS.items()},
        escaped=sum((cells.counter(chosen, key) for key in _ESCAPED), np.zeros(len(chosen))),
    )
    per_cell = pd.concat([per_cell, _outcomes(per_cell)], axis=1)[[*LEVELS, *_SUMS, *OUTCOMES]]
    table, clients = per_cell.groupby(LEVELS, observed=True).sum().astype(int).reset_index(), looks.of_runs(runs)
    orders = (runs.world.answers, clients.held(table["arm"]), (True, False), ("up", "down"))
    table = looks.ordered(table, dict(zip(LEVELS, orders, strict=True)))
    rows = table.to_dict("records")
    table["mode"] = [mode(clients.pod(row["arm"])) for row in rows]
    home = {name: answer for name, answer in runs.world.answers.items() if answer.address.startswith(("127.", "{own}"))}
    table["home"] = table["answer"].isin(home)
    table["to_sidecar"] = [row["answer"] in home and home[row["answer"]].port == ISTIO.outbound_port for row in rows]
    table["outcome"] = [_outcome(row) for row in rows]
    table["ended"] = pd.Series(map(_ended, rows), dtype=object)
    each = [round((row["passed_through"] + row["at_guard"]) / max(row["requests"], 1)) for row in rows]
    table["connections_each"] = pd.Series(each, dtype=object).where(table["looped"] > 0, None)
    return absent.of(table, runs, ANSWERS)


def mode(client: Client) -> str:
    """Whose sidecar it is: that of mode 2 knows virtual IPs."""
    return "mode2" if client.virtual_ips or client.dns_proxy else "mode1"


def _client(runs: store.Runs, chosen: pd.DataFrame) -> Row:
    """Requests per cell that were served, told that they fail, and not told anything."""
    rows, position = cells.requests_of(runs, chosen, failed=None)
    good, silent = (rows["outcome"] == "ok").to_numpy(), (rows["outcome"] == _SILENT).to_numpy()
    served = good & (rows["status"] == 200).to_numpy()
    found = (served, ~served & ~silent, silent)
    return {name: np.bincount(position[each], minlength=len(chosen)) for name, each in zip(_CLIENT, found, strict=True)}


def _outcomes(per_cell: pd.DataFrame) -> pd.DataFrame:
    served = per_cell["served"]
    proxied = np.minimum(served, per_cell["forwarded"] + per_cell["passed_through"])
    # More connections from the sidecar than requests, or one that names its port: it was to connect to itself.
    to_itself = (per_cell["at_guard"] > 0) | (per_cell["passed_through"] > per_cell["requests"])
    failed = per_cell["told"] + per_cell["silent"]
    return pd.DataFrame(
        {
            "proxied": proxied,
            "direct": served - proxied,
            "looped": failed.where(to_itself, 0),
            "refused": per_cell["told"].where(~to_itself, 0),
            "lost": per_cell["silent"].where(~to_itself, 0),
        }
    )


def _outcome(row: Row) -> str:
    """The outcome, or how many of each."""
    found = {name: int(row[name]) for name in OUTCOMES if row[name]}
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "nothing"


def _ended(row: Row) -> str | None:
    """What ended a loop, or where a request that was not served came to its end."""
    if row["looped"]:
        by = {"guard": row["at_guard"], "circuit_breaker": row["overflow"], "client": row["silent"]}
        return next((who for who, count in by.items() if count), "sidecar")
    if not row["lost"] and not row["refused"]:
        return None
    if row["passed_through"] + row["by_service"]:
        return "behind_sidecar"
    if row["redirected"]:
        return "at_port"
    return "leaving_pod" if row["lost"] and row["escaped"] else "in_pod"


def checks(runs: store.Runs) -> pd.DataFrame:
    """How many cells are valid, which here means: offered, and answered with that address.

    A row even where none was measured. Raises ReportError if most cells are invalid.
    """
    chosen = cells.select(runs, ANSWERS)
    row = provenance.counted(runs, ANSWERS, chosen) | {"requests": int(cells.asked(runs, chosen).sum())}
    return provenance.judged(runs, [row], provenance.too_many_invalid)
