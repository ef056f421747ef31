"""Notebook 04: what a ServiceEntry does for names outside the mesh.

`api` is HTTP and can be told by its Host header. `postgres` and `redis` are TCP on one port: where both names are
answered with their real addresses a sidecar knows them by the port alone, where each has a virtual address it can tell
them apart. A connection reached the right server if that is who answered it.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, shares, text
from meshdns.core.world import World
from meshdns.studies import policies

API, TCP = "api", ("postgres", "redis")
BACKENDS = (API, *TCP)
REAL, VIRTUAL = "real", "virtual"
_LEVEL = ["backend", "arm"]
_TABLE = [
    "row", *_LEVEL, "blocks", "connections", "answered", "addresses", "right", "wrong", "none", "right share",
    "answered by", "requests made", "in the sidecar", "passed through", "values", "service",
    "captured",
]  # fmt: skip


def table(runs: store.Runs) -> pd.DataFrame:
    """A row per external service and client: the address that its name has, and which server its connections reached.

    The right share is an interval over blocks; the sidecar's own counts are sums with the warm-up.
    """
    chosen = cells.select(runs, policies.EXTERNAL)
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=_TABLE), runs, policies.EXTERNAL)
    tried = _tried(runs, chosen)
    chosen = chosen.assign(
        made=cells.asked(runs, chosen),
        inside=_inside(chosen),
        past=cells.counter(chosen, "pod/envoy/passthrough_cx"),
    )
    rows = []
    for backend in BACKENDS:
        for arm in looks.of_runs(runs).held(chosen["arm"]):
            cells_of = chosen[(chosen["backend"] == backend) & (chosen["arm"] == arm)]
            requests = tried[(tried["backend"] == backend) & (tried["arm"] == arm)]
            if len(requests):
                rows.append(_row(runs.world, backend, arm, cells_of, requests))
    return absent.of(pd.DataFrame(rows, columns=_TABLE), runs, policies.EXTERNAL)


def _tried(runs: store.Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """A row per connection: who was asked for, what address that had, who answered."""
    parts = []
    for failed in (False, True):
        rows, position = cells.requests_of(runs, chosen, failed=failed)
        levels = chosen[[*_LEVEL, *cells.BLOCK]].iloc[position].reset_index(drop=True)
        parts.append(
            levels.assign(
                address=rows["address"].astype(str).to_numpy(), replica=rows["replica"].astype(str).to_numpy(),
                ok=not failed,
            )
        )  # fmt: skip
    found = pd.concat(parts, ignore_index=True)
    named = found["replica"] == found["backend"]
    other = found["replica"].isin(TCP) & ~named
    right = named.where(found["backend"] != API, found["ok"] & ~other)
    return found.assign(right=right, wrong=~right & other)


def _inside(chosen: pd.DataFrame) -> cells.Values:
    """What the sidecar sent by what it knows of services: HTTP requests, connections of other TCP."""
    requests, connections = (cells.counter(chosen, f"pod/envoy/{name}") for name in ("cluster_rq", "cluster_cx"))
    return np.asarray(np.where(chosen["backend"] == API, requests, connections), dtype=float)


def _row(world: World, backend: str, arm: str, cells_of: pd.DataFrame, requests: pd.DataFrame) -> dict[str, Any]:
    per_block = requests.groupby(cells.BLOCK, observed=True)["right"].agg(["sum", "size"])
    answered = [each for each in requests["address"].unique() if each]
    right, wrong = int(requests["right"].sum()), int(requests["wrong"].sum())
    by = requests.loc[requests["replica"] != "", "replica"].value_counts()
    return {
        "row": f"{backend} ({'HTTP' if backend == API else f'TCP, port {world.backends[backend].ports[0]}'})",
        "backend": backend,
        "arm": arm,
        "service": world.backends[backend],
        "captured": looks.Looks(world.arms).pod(arm).sidecar,
        "blocks": len(per_block),
        "connections": len(requests),
        "answered": " and ".join(dict.fromkeys(kind(each, world) for each in answered)) or text.ABSENT,
        "addresses": ", ".join(sorted(answered)) or text.ABSENT,
        "right": right,
        "wrong": wrong,
        "none": len(requests) - right - wrong,
        "right share": shares.interval(per_block["sum"], per_block["size"]),
        "answered by": ", ".join(f"{name} {count}" for name, count in by.items()) or text.ABSENT,
        "requests made": int(cells_of["made"].sum()),
        "in the sidecar": int(cells_of["inside"].sum()),
        "passed through": int(cells_of["past"].sum()),
        "values": (per_block["sum"] / per_block["size"]).to_numpy(dtype=float),
    }


def kind(address: str, world: World) -> str:
    """Whether the address is one that only sidecars know."""
    return VIRTUAL if ipaddress.ip_address(address) in ipaddress.ip_network(world.virtual_ips) else REAL


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """For people."""
    out = policies.in_percent(found.drop(columns=["row", "values", "service", "captured"]))
    for name in ("in the sidecar", "passed through"):
        out[name] = [
            str(count) if has else text.ABSENT for count, has in zip(out[name], found["captured"], strict=True)
        ]
    return out


def rows(found: pd.DataFrame, *backends: str, captured: bool | None = None) -> list[dict[Any, Any]]:
    """The rows of these services, of all clients or only of those with a sidecar or without."""
    chosen = found[found["backend"].isin(backends)].to_dict("records")
    return [row for row in chosen if captured is None or bool(row["captured"]) == captured]


def through(row: dict[Any, Any]) -> bool:
    """Whether every request went through the sidecar by what it knows of the service, and was served."""
    return bool(row["right"] == row["connections"] and row["in the sidecar"] >= row["requests made"])


def answer(found: pd.DataFrame) -> str:
    """Which address the external name has, and which server each service's connections reach; "" if not measured."""
    return " ".join(each for each in (_http(rows(found, API)), _tcp(rows(found, *TCP))) if each)


def _http(found: list[dict[Any, Any]]) -> str:
    if not found:
        return ""
    by_kind: dict[str, list[str]] = {}
    for row in found:
        by_kind.setdefault(row["answered"], []).append(row["arm"])
    said = [f"with a {each} address in {text.listed(arms)}" for each, arms in by_kind.items()]
    served = [f"{shares.percent(row['right share'])} in {row['arm']}" for row in found]
    sidecars = [row for row in found if row["captured"]]
    took = [f"{row['in the sidecar']} of {row['requests made']} in {row['arm']}" for row in sidecars]
    rest = f"; through the sidecar's route for it went {text.listed(took)}" if took else ""
    return (
        f"{found[0]['service'].host} is answered {text.listed(said)}; of its requests {text.listed(served)} were "
        f"served{rest}."
    )


def _tcp(found: list[dict[Any, Any]]) -> str:
    if not found:
        return ""
    said = []
    for arm in dict.fromkeys(row["arm"] for row in found):
        told = [f"{row['backend']} {_reached(row)}" for row in found if row["arm"] == arm]
        said.append(f"in {arm} {text.listed(told)}")
    services = f"Of connections to two TCP services on port {found[0]['service'].ports[0]} the right server answered"
    return f"{services}: {'; '.join(said)}."


def _reached(row: dict[Any, Any]) -> str:
    """`0.0 % [0.0, 1.6] (240 of 240 went to another server)`."""
    wrong = f" ({row['wrong']} of {row['connections']} went to another server)" if row["wrong"] else ""
    return f"{shares.percent(row['right share'])}{wrong}"
