"""How the DNS proxies differ from Istio's agent, put together from the runs that asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import text
from meshdns.studies.names import answer, conformance
from shipped import WORLD

SAMPLE = Path(__file__).parents[3] / "data" / "sample"


def row(case: str, observed: str) -> dict[str, Any]:
    said = {"id": case, "topic": "header", "question": case, "expected": "yes", "observed": observed}
    return said | {"agrees": observed == "yes"}


def runs(*asked: tuple[str, dict[str, list[dict[str, Any]]]]) -> store.Runs:
    """Runs by the time they were made, in the order of their names."""
    headers = [
        store.RunHeader(f"run-{n}", {}, 1, created, 1, {"conformance": rows}) for n, (created, rows) in enumerate(asked)
    ]
    return store.Runs(pd.DataFrame(), pd.DataFrame(), headers, [], WORLD)


def test_each_proxy_is_shown_as_the_last_run_that_asked_it_saw_it() -> None:
    later = {"mode2-agent": [row("ra", "no"), row("aa", "yes"), row("new", "no")]}
    both = {"mode2-envoy": [row("ra", "yes"), row("aa", "never")], "mode2-agent": [row("ra", "stale"), row("aa", "no")]}
    # By name the later one comes first; and a run of a plan without mode 2 asked none.
    measured = runs(("2026-01-02T00:00:00Z", later), ("2026-01-01T00:00:00Z", both), ("2026-01-03T00:00:00Z", {}))
    table = conformance.differences(measured).set_index("question")
    assert table["mode2-agent"].to_dict() == {"ra": "no", "aa": conformance.SAME, "new": "no"}
    assert table["mode2-envoy"].to_dict() == {"ra": conformance.SAME, "aa": "never", "new": text.ABSENT}
    assert "Of 3 behaviours" in answer.conformance_answer(measured)
    assert "mode2-envoy has 1 and mode2-agent has 1" in answer.conformance_answer(measured)


def test_the_sample_shows_both_proxies() -> None:
    table = conformance.differences(store.load(SAMPLE))
    assert {"mode2-agent", "mode2-envoy"} <= set(table.columns)
    assert (table[["mode2-agent", "mode2-envoy"]] != text.ABSENT).all(axis=None)


def test_runs_that_did_not_ask_say_so() -> None:
    assert conformance.differences(runs()).empty
    assert "not asked" in answer.conformance_answer(runs())
