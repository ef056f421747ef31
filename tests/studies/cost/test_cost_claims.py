"""What a mode costs, by data that supports each claim and data that says the opposite."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import measured
from measured import World
from meshdns import store
from meshdns.analysis import stats
from meshdns.studies import verdict
from meshdns.studies.cost import claims
from meshdns.studies.cost import tables as requests


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def difference(us: float, spread: float = 1.0) -> stats.Difference:
    pairs = [us - spread, us, us + spread, us]
    return stats.paired([500_000.0] * 4, [500_000.0 + 1_000 * each for each in pairs])


FLOOR = stats.noise_floor([500_000.0] * 4, [505_000.0, 495_000.0, 504_000.0, 496_000.0])


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (difference(60), verdict.DEPENDS),  # not where endpoints are told
        (difference(3), verdict.UNDECIDED),  # below what equal arms show
        (difference(0), verdict.UNDECIDED),
        (difference(-60), verdict.UNDECIDED),  # faster once does not mean never slower
        (None, verdict.UNMEASURED),
    ],
)
def test_resolving_costs_only_what_is_above_the_noise(found: stats.Difference | None, verdict: str) -> None:
    assert claims.resolving_cost(found, FLOOR).verdict == verdict


def test_resolving_cost_follows_the_runs(usual: store.Runs, tmp_path: Path) -> None:
    assert {each.claim: each.verdict for each in claims.verdicts(usual)}["C6"] == verdict.UNDECIDED
    slow = claims.verdicts(measured.runs(tmp_path, World(resolving=80.0)))
    assert {each.claim: each.verdict for each in slow}["C6"] == verdict.DEPENDS


def changes(us: float | None, reading: str) -> pd.DataFrame:
    rows = (
        []
        if us is None
        else [{"change": requests.change(requests.MODE1, requests.MODE2), "p50": difference(us), "reading": reading}]
    )
    return pd.DataFrame(rows, columns=["change", "p50", "reading"])


@pytest.mark.parametrize(
    ("new", "kept", "verdict", "phrase"),
    [
        (
            (-90, "less"),
            (0, "not resolved (-1 to +1 µs)"),
            verdict.UNDECIDED,
            "on kept ones the difference is not resolved",
        ),
        ((-90, "less"), (50, "more"), verdict.DEPENDS, "slower on kept ones"),
        ((-90, "less"), (-50, "less"), verdict.DEPENDS, "new and kept alive"),
        ((-90, "less"), (None, ""), verdict.UNDECIDED, "kept ones are not measured"),
        ((90, "more"), (0, "not resolved"), verdict.REFUTED, "slower one"),
        ((0, "not resolved (-1 to +1 µs)"), (0, "not resolved"), verdict.UNDECIDED, "connections: not resolved"),
        ((None, ""), (0, "not resolved"), verdict.UNMEASURED, "both modes"),
    ],
)
def test_choice_weighs_performance_and_nothing_else(
    new: tuple[float | None, str], kept: tuple[float | None, str], verdict: str, phrase: str
) -> None:
    found = claims.choice(changes(*new), changes(*kept))
    assert found.verdict == verdict
    assert phrase in found.because
