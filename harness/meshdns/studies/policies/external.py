"""What a ServiceEntry does for names outside the mesh.

An HTTP service can be told by its Host header. `postgres` and `redis` are TCP on one port: where both names are
answered with their real addresses a sidecar knows them by the port alone, where each has a virtual address it can tell
them apart. A connection reached the right server if that is who answered it.
"""

from __future__ import annotations

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, shares
from meshdns.core.world import World
from meshdns.studies.policies.tables import EXTERNAL, TCP, Row, Rows, parts

REAL, VIRTUAL = "real", "virtual"  # a virtual address is one that only sidecars know
SERVICE = ("backend", "protocol", "port")


@cells.once
def table(runs: store.Runs) -> pd.DataFrame:
    """A row per external service and client: the address that its name has, and which server its connections reached.

    The right share is an interval over blocks; the sidecar's own counts are sums with the warm-up.
    """
    chosen = cells.select(runs, EXTERNAL)
    chosen = chosen.assign(
        made=cells.asked(runs, chosen),
        requests=cells.counter(chosen, "pod/envoy/cluster_rq"),
        connections=cells.counter(chosen, "pod/envoy/cluster_cx"),
        past=cells.counter(chosen, "pod/envoy/passthrough_cx"),
    )
    tried, position = cells.requests_of(runs, chosen, failed=None)
    by, seen, rows = ["backend", "arm"], looks.of_runs(runs), []
    levels = chosen[[*by, *cells.BLOCK]].iloc[position].reset_index(drop=True)
    texts = {name: tried[name].astype(str).to_numpy() for name in ("address", "replica", "outcome")}
    for level, mine in parts(runs, levels.assign(**texts), *by):
        backend = level["backend"]
        of = chosen[(chosen[by] == [*level.values()]).all(axis=1)]
        service = runs.world.backends.get(backend)
        host, port = (service.host, service.ports[0]) if service else (backend, None)
        row: Row = {"host": host, "port": port, "protocol": "TCP" if backend in TCP else "HTTP"}
        row |= _answers(mine, backend, runs.world)
        row |= {"blocks": cells.blocks_of(mine), "requests_made": int(of["made"].sum())}
        if seen.pod(level["arm"]).sidecar:  # what it sent by what it knows of services
            row |= {"in_sidecar": int(of["connections" if backend in TCP else "requests"].sum())}
            row |= {"passed_through": int(of["past"].sum())}
        rows.append(level | row)
    return absent.of(pd.DataFrame(rows, columns=_TABLE), runs, EXTERNAL)


_TABLE = [
    *SERVICE, "arm", "host", "blocks", "connections", "answered", "addresses", "right", "wrong", "none", "right_share",
    "answered_by", "requests_made", "in_sidecar", "passed_through", "right_share_values",
]  # fmt: skip


def _answers(mine: pd.DataFrame, backend: str, world: World) -> Row:
    """Who answered the connections to a service, and at which addresses."""
    other = mine["replica"].isin(TCP) & (mine["replica"] != backend)
    right = mine["replica"] == backend if backend in TCP else (mine["outcome"] == "ok") & ~other
    per_block = right.groupby([mine[name] for name in cells.BLOCK], observed=True).agg(["sum", "size"])
    addresses = sorted({*mine["address"]} - {""})
    wrong = int((other & ~right).sum())
    return {
        "connections": len(mine),
        "answered": tuple(dict.fromkeys(VIRTUAL if world.is_virtual(each) else REAL for each in addresses)),
        "addresses": tuple(addresses),
        "right": int(right.sum()),
        "wrong": wrong,
        "none": len(mine) - int(right.sum()) - wrong,
        "right_share": shares.interval(per_block["sum"], per_block["size"]),
        "answered_by": mine["replica"][mine["replica"] != ""].value_counts().to_dict(),
        "right_share_values": (per_block["sum"] / per_block["size"]).to_numpy(dtype=float),
    }


def meshed(found: pd.DataFrame, *backends: str) -> Rows:
    """The rows of these services and of clients with a sidecar, which counts."""
    chosen = found[found["backend"].isin(backends) & found["in_sidecar"].notna()]
    return chosen.astype({"in_sidecar": int}).to_dict("records")


def through(row: Row) -> bool:
    """Whether every request went through the sidecar by what it knows of the service, and was served."""
    return bool(row["right"] == row["connections"] and row["in_sidecar"] >= row["requests_made"])
