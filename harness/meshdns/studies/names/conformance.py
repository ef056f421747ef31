"""How the DNS proxies of mode 2 answer what Istio's agent is known to answer.

The rows are those of the conformance suite, asked at the start of the run from inside each pod, as an application asks.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, text

SAME = "the same"

Row = dict[str, Any]


def _rows(runs: store.Runs) -> dict[str, dict[str, Row]]:
    """Arm -> case -> row, each arm as the last run answered that asked it: not every plan has every arm."""
    found: dict[str, dict[str, Row]] = {}
    for header in sorted(runs.headers, key=lambda header: header.created):
        for arm, rows in (header.facts.get("conformance") or {}).items():
            found[arm] = {row["id"]: row for row in rows}
    return found


def _cases(found: dict[str, dict[str, Row]]) -> dict[str, Row]:
    """Every case that some arm was asked, in the order of the suite."""
    return {case: row for rows in found.values() for case, row in rows.items()}


def differences(runs: store.Runs) -> pd.DataFrame:
    """A row per behaviour in which some proxy differs from Istio's agent, a column per proxy."""
    found = _rows(runs)
    table = [
        {"topic": row["topic"], "question": row["question"], "agent": row["expected"]}
        | {arm: _seen(rows.get(case)) for arm, rows in found.items()}
        for case, row in _cases(found).items()
        if not all(rows.get(case, row)["agrees"] for rows in found.values())
    ]
    names = () if found else (absent.CONFORMANCE,)
    return absent.knowing(pd.DataFrame(table, columns=["topic", "question", "agent", *found]), names)


def _seen(row: Row | None) -> str:
    if row is None:
        return text.ABSENT
    return SAME if row["agrees"] else str(row["observed"])


def agreeing(runs: store.Runs) -> tuple[int, dict[str, int]]:
    """How many behaviours were asked for, and how many of them each proxy shows."""
    found = _rows(runs)
    return len(_cases(found)), {arm: sum(row["agrees"] for row in rows.values()) for arm, rows in found.items()}
