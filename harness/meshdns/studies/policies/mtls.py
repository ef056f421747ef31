"""Who is served when the servers want mutual TLS, and what comes to them encrypted.

The servers' policy says what comes in: only mutual TLS (strict), both (permissive), only plain text (disable). Whether
a request was encrypted and what refused it is counted by the servers' own sidecars, warm-up included.
"""

from __future__ import annotations

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells
from meshdns.studies.policies.tables import MTLS, Row, counted, parts

SERVED, SOME, REFUSED, LOST = "served", "some", "refused", "lost"
_COUNTED = {
    "at_application": "servers/nginx_rq",
    "closed_without_chain": "servers/no_chain",
    "mtls_connections": "servers/mtls_cx",
}


@cells.once
def table(runs: store.Runs) -> pd.DataFrame:
    """A row per policy of the servers and client: the outcome and the counts behind it."""
    chosen = counted(runs, cells.select(runs, MTLS))
    chosen = chosen.assign(**{name: cells.counter(chosen, key) for name, key in _COUNTED.items()})
    bad, position = cells.requests_of(runs, chosen, failed=True)
    by = ["policy", "arm"]
    failed = chosen[by].iloc[position].assign(outcome=bad["outcome"].astype(str).to_numpy())
    rows = []
    for level, mine in parts(runs, chosen, *by):
        failures = failed[(failed[by] == [*level.values()]).all(axis=1)]["outcome"].value_counts().to_dict()
        requests, served = int(mine["n"].sum()), int(mine["hits"].sum())
        row: Row = {"blocks": cells.blocks_of(mine), "requests": requests, "served": served, "failed_as": failures}
        row |= {name: int(mine[name].sum()) for name in _COUNTED}
        row |= {"blocks_with_mtls": cells.blocks_of(mine[mine["mtls_connections"] > 0])}
        some = SERVED if served == requests else SOME
        rows.append(
            level | row | {"outcome": some if served else LOST if failures == {"timeout": requests} else REFUSED}
        )
    return absent.of(pd.DataFrame(rows, columns=_TABLE), runs, MTLS)


_TABLE = [
    "policy", "arm", "blocks", "requests", "served", "outcome", "failed_as", *_COUNTED, "blocks_with_mtls",
]  # fmt: skip
