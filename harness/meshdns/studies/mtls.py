"""Notebook 04: who is served when the servers want mutual TLS, and what comes to them encrypted.

The servers' policy says what comes in: only mutual TLS (strict), both (permissive), only plain text (disable). Whether
a request was encrypted and what refused it is counted by the servers' own sidecars, warm-up included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, text
from meshdns.store import samples
from meshdns.studies import policies

STRICT, PERMISSIVE, DISABLE = "strict", "permissive", "disable"
WANTED = (STRICT, PERMISSIVE, DISABLE)
SERVED, REFUSED, LOST = "served", "refused", "lost"
_COUNTED = {
    "at the application": "servers/nginx_rq",
    "closed without a chain": "servers/no_chain",
    "mutual TLS connections": "servers/mtls_cx",
}
_FAILURES = tuple(outcome for outcome in samples.OUTCOMES if outcome != "ok")
_MATRIX = [
    "policy", "arm", "blocks", "requests", "served", "silent", "outcome", "means", "failed as", *_COUNTED,
    "blocks with mutual TLS",
]  # fmt: skip


def matrix(runs: store.Runs) -> pd.DataFrame:
    """A row per policy of the servers and client: outcome in a word, by what, and the counts behind it."""
    chosen = cells.select(runs, policies.MTLS)
    if chosen.empty:
        return absent.of(pd.DataFrame(columns=_MATRIX), runs, policies.MTLS)
    chosen = policies.counted(runs, chosen)
    counts = {name: cells.counter(chosen, key) for name, key in _COUNTED.items()}
    chosen = chosen.assign(**_failures(runs, chosen), **counts)
    rows = []
    for policy in WANTED:
        for arm in looks.of_runs(runs).held(chosen["arm"]):
            found = chosen[(chosen["policy"] == policy) & (chosen["arm"] == arm)]
            if len(found):
                rows.append({"policy": policy, "arm": arm} | _row(found))
    return absent.of(pd.DataFrame(rows, columns=_MATRIX), runs, policies.MTLS)


def _failures(runs: store.Runs, chosen: pd.DataFrame) -> dict[str, cells.Values]:
    """Failed requests of each cell, by outcome."""
    bad, position = cells.requests_of(runs, chosen, failed=True)
    outcome = bad["outcome"].astype(str).to_numpy()
    return {name: np.bincount(position[outcome == name], minlength=len(chosen)).astype(float) for name in _FAILURES}


def _row(found: pd.DataFrame) -> dict[str, Any]:
    failed = {name: int(found[name].sum()) for name in _FAILURES if found[name].any()}
    row: dict[str, Any] = {
        "blocks": cells.blocks_of(found),
        "requests": int(found["n"].sum()),
        "served": int(found["hits"].sum()),
        "silent": failed.get("timeout", 0),
        "failed as": ", ".join(f"{count} {name}" for name, count in failed.items()) or text.ABSENT,
        **{name: int(found[name].sum()) for name in _COUNTED},
        "blocks with mutual TLS": cells.blocks_of(found[found["mutual TLS connections"] > 0]),
    }
    return row | {"outcome": _word(row), "means": _means(row)}


def _word(row: dict[str, Any]) -> str:
    if row["served"] == row["requests"]:
        return SERVED
    if row["served"]:
        return f"{row['served']} of {row['requests']} {SERVED}"
    return LOST if row["silent"] == row["requests"] else REFUSED


def _means(row: dict[str, Any]) -> str:
    """What came in encrypted of what was served, and what refused the rest."""
    said = [_encrypted(row)] if row["served"] else []
    if row["served"] < row["requests"]:
        said.append("by the server's sidecar" if row["closed without a chain"] else "not by the server's sidecar")
    return ", ".join(said)


def _encrypted(row: dict[str, Any]) -> str:
    if not row["blocks with mutual TLS"]:
        return "no TLS handshake"
    if row["blocks with mutual TLS"] == row["blocks"]:
        return "mutual TLS"
    return f"mutual TLS in {row['blocks with mutual TLS']} of {row['blocks']} blocks"


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """As people read it: a row per client, a column per policy, the outcome and what it means in words."""
    words: dict[str, dict[str, str]] = {policy: {} for policy in WANTED}
    seen = looks.of(table)
    clients = looks.apart({arm: looks.words(seen.pod(arm)) for arm in seen.held(table["arm"])})
    for row in table.to_dict("records"):
        words[row["policy"]][clients[row["arm"]]] = f"{row['outcome']}\n{row['means']}"
    found = pd.DataFrame(words, index=list(clients.values()), columns=list(WANTED)).fillna(text.ABSENT)
    return absent.knowing(found, absent.known(table))


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """For people: the counts."""
    return table.drop(columns=["silent", "means"])


def rows(table: pd.DataFrame, policy: str, *arms: str) -> list[dict[Any, Any]]:
    """The rows of this policy and these clients."""
    return table[(table["policy"] == policy) & table["arm"].isin(arms)].to_dict("records")


def answer(table: pd.DataFrame) -> str:
    """Who was served under each policy; "" if nothing was measured."""
    said = []
    for policy in WANTED:
        by_fate: dict[str, list[str]] = {}
        for row in rows(table, policy, *dict.fromkeys(table["arm"])):
            by_fate.setdefault(f"{row['outcome']} {_worded(row)}".strip(), []).append(row["arm"])
        if by_fate:
            fates = [f"{text.listed(arms)} {fate}" for fate, arms in by_fate.items()]
            said.append(f"Where servers have mutual TLS {policy}: {'; '.join(fates)}.")
    return " ".join(said)


def _worded(row: dict[Any, Any]) -> str:
    return f"({row['means']})" if row["served"] else str(row["means"])
