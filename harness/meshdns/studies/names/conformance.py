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


def differences(runs: store.Runs) -> pd.DataFrame:
    """A row per behaviour in which some proxy differs from Istio's agent, a column per proxy."""
    found, table = _rows(runs), []
    for case, row in {case: row for rows in found.values() for case, row in rows.items()}.items():
        asked = {arm: rows[case] for arm, rows in found.items() if case in rows}
        if not all(each["agrees"] for each in asked.values()):
            known = {arm: SAME if each["agrees"] else str(each["observed"]) for arm, each in asked.items()}
            known |= {"topic": row["topic"], "question": row["question"], "agent": row["expected"]}
            table.append(dict.fromkeys(found, text.ABSENT) | known)
    names = () if found else (absent.CONFORMANCE,)
    return absent.knowing(pd.DataFrame(table, columns=["topic", "question", "agent", *found]), names)


def agreeing(runs: store.Runs) -> tuple[int, dict[str, int]]:
    """How many behaviours were asked for, and how many of them each proxy shows."""
    found = _rows(runs)
    return len(set().union(*found.values())), {
        arm: sum(row["agrees"] for row in rows.values()) for arm, rows in found.items()
    }
