"""Notebook 01: how the DNS proxies of mode 2 answer what Istio's agent is known to answer.

The rows are those of the conformance suite, asked at the start of the run from inside each pod, as an application asks.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness import store
from harness.tables import text

EXPECTED = "Istio's agent"
SAME = "the same"


def _rows(runs: store.Runs) -> dict[str, list[dict[str, Any]]]:
    """Arm -> rows, of the last run that asked."""
    asked = [header.facts["conformance"] for header in runs.headers if header.facts.get("conformance")]
    return dict(asked[-1]) if asked else {}


def differences(runs: store.Runs) -> pd.DataFrame:
    """A row per behaviour in which some proxy differs from Istio's agent, a column per proxy."""
    found = _rows(runs)
    columns = ["topic", "question", EXPECTED, *found]
    if not found:
        return pd.DataFrame(columns=columns)
    by_arm = {arm: {row["id"]: row for row in rows} for arm, rows in found.items()}
    first = next(iter(found.values()))
    table = [
        {"topic": row["topic"], "question": row["question"], EXPECTED: row["expected"]}
        | {arm: _seen(rows.get(row["id"])) for arm, rows in by_arm.items()}
        for row in first
        if not all(rows.get(row["id"], row)["agrees"] for rows in by_arm.values())
    ]
    return pd.DataFrame(table, columns=columns)


def _seen(row: dict[str, Any] | None) -> str:
    if row is None:
        return text.ABSENT
    return SAME if row["agrees"] else str(row["observed"])


def answer(runs: store.Runs) -> str:
    """How many of the behaviours each proxy shows."""
    found = _rows(runs)
    if not found:
        return "How the DNS proxies differ from Istio's agent was not asked in these runs."
    said = [f"{arm} {sum(row['agrees'] for row in rows)}" for arm, rows in found.items()]
    total = max(len(rows) for rows in found.values())
    return f"Of {total} behaviours of Istio's agent, {' and '.join(said)} are shown; the others are in the table below."
