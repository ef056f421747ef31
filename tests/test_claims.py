"""Each verdict is shown data that supports it and data that says the opposite."""

from __future__ import annotations

from pathlib import Path

import measured
import pandas as pd
import pytest
from measured import World

from harness import claims, stats, store
from harness.tables import lookups, requests


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def difference(us: float, spread: float = 1.0) -> stats.Difference:
    pairs = [us - spread, us, us + spread, us]
    return stats.paired([500_000.0] * 4, [500_000.0 + 1_000 * each for each in pairs])


FLOOR = stats.noise_floor([500_000.0] * 4, [505_000.0, 495_000.0, 504_000.0, 496_000.0])
SEEN, UNSEEN = requests.Resolutions(9, 20, 40.0), requests.Resolutions(0, 0, 40.0)


def test_every_claim_has_a_row_and_only_what_was_measured_a_verdict(usual: store.Runs) -> None:
    found = claims.verdicts(usual)
    assert [each.claim for each in found] == [f"C{n}" for n in range(1, 18)]
    by_claim = {each.claim: each.verdict for each in found}
    unmeasured = {"C1", "C3", "C5", "C8", "C9", "C10", "C11", "C12", "C14", "C15", "C17"}
    assert {claim for claim, verdict in by_claim.items() if verdict == claims.UNMEASURED} == unmeasured
    assert all(bool(each.numbers) == bool(each.notebook) == (each.verdict != claims.UNMEASURED) for each in found)
    assert claims.answer(found).startswith("4 of 17 claims have a verdict")
    assert len(claims.table(found)) == 17


def test_interception_is_refuted_by_connections_that_were_not_redirected(usual: store.Runs, tmp_path: Path) -> None:
    assert claims.interception(requests.path(usual)).verdict == claims.UNDECIDED
    lost = requests.path(measured.runs(tmp_path, World(lost_redirects=1)))
    assert claims.interception(lost).verdict == claims.REFUTED
    assert claims.mode1_path(lost, SEEN).verdict == claims.REFUTED
    assert claims.mode2_path(lost).verdict == claims.REFUTED
    assert claims.interception(lost[lost["arm"] != "mode1"]).verdict == claims.UNMEASURED


def test_mode1_path_needs_a_second_resolution_that_was_seen(usual: store.Runs) -> None:
    path = requests.path(usual)
    assert claims.mode1_path(path, SEEN).verdict == claims.DEPENDS
    assert claims.mode1_path(path, UNSEEN).verdict == claims.UNDECIDED
    assert claims.mode1_path(path[path["backend"] != "static"], SEEN).verdict == claims.SUPPORTED
    other = path.assign(**{"answered ClusterIP": 0})
    assert claims.mode1_path(other, SEEN).verdict == claims.REFUTED
    assert claims.mode1_path(path[path["arm"] != "mode1"], SEEN).verdict == claims.UNMEASURED


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (difference(60), claims.SUPPORTED),
        (difference(3), claims.UNDECIDED),  # below what equal arms show
        (difference(0), claims.UNDECIDED),
        (difference(-60), claims.UNDECIDED),  # faster once does not mean never slower
        (None, claims.UNMEASURED),
    ],
)
def test_resolving_costs_only_what_is_above_the_noise(found: stats.Difference | None, verdict: str) -> None:
    assert claims.resolving_cost(found, FLOOR).verdict == verdict


def test_resolving_cost_follows_the_runs(usual: store.Runs, tmp_path: Path) -> None:
    assert {each.claim: each.verdict for each in claims.verdicts(usual)}["C6"] == claims.UNDECIDED
    slow = claims.verdicts(measured.runs(tmp_path, World(strict_dns=80.0)))
    assert {each.claim: each.verdict for each in slow}["C6"] == claims.SUPPORTED


def test_mode2_path_is_refuted_by_what_leaves_the_pod(usual: store.Runs) -> None:
    path = requests.path(usual)
    assert claims.mode2_path(path).verdict == claims.SUPPORTED
    for name in ("answered virtual IP", "at DNS proxy"):
        assert claims.mode2_path(path.assign(**{name: 1})).verdict == claims.REFUTED
    assert claims.mode2_path(path.assign(forwarded=5)).verdict == claims.REFUTED
    assert claims.mode2_path(path[path["arm"] == "plain"]).verdict == claims.UNMEASURED


def changes(us: float | None, reading: str) -> pd.DataFrame:
    rows = (
        []
        if us is None
        else [{"change": "mode 2 for mode 1, both sidecars", "p50": difference(us), "reading": reading}]
    )
    return pd.DataFrame(rows, columns=["change", "p50", "reading"])


@pytest.mark.parametrize(
    ("new", "kept", "verdict", "phrase"),
    [
        ((-90, "less"), (0, "no difference larger than 1 µs seen"), claims.DEPENDS, "on the connection"),
        ((-90, "less"), (50, "more"), claims.DEPENDS, "kept alive: slower"),
        ((-90, "less"), (-50, "less"), claims.DEPENDS, "new and kept alive"),
        ((-90, "less"), (None, ""), claims.UNDECIDED, "kept ones are not measured"),
        ((90, "more"), (0, "no difference"), claims.REFUTED, "slower one"),
        ((0, "no difference larger than 1 µs seen"), (0, "no difference"), claims.UNDECIDED, "no difference"),
        ((None, ""), (0, "no difference"), claims.UNMEASURED, "both modes"),
    ],
)
def test_choice_weighs_performance_and_nothing_else(
    new: tuple[float | None, str], kept: tuple[float | None, str], verdict: str, phrase: str
) -> None:
    found = claims.choice(changes(*new), changes(*kept))
    assert found.verdict == verdict
    assert phrase in found.because


def test_applications_can_tell_by_a_different_answer(usual: store.Runs, tmp_path: Path) -> None:
    path = requests.path(usual)
    found = claims.transparency(lookups.return_codes(usual), path)
    assert found.verdict == claims.DEPENDS
    assert "mode2-envoy NXDOMAIN" in found.numbers
    alike = measured.runs(tmp_path, World(aaaa_rcode=0))
    assert claims.transparency(lookups.return_codes(alike), path).verdict == claims.UNDECIDED
    codes = lookups.return_codes(usual)
    assert claims.transparency(codes[codes["qtype"] == "A"], path).verdict == claims.UNMEASURED
