"""Every claim has its row."""

from __future__ import annotations

import pytest

import measured
from drawn import drawn, labels, strictly
from meshdns import store
from meshdns.studies import verdict
from meshdns.studies.claims import answer, figures, tables

__all__ = ["strictly"]  # around every test


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def test_every_claim_has_a_row_and_only_what_was_measured_a_verdict(usual: store.Runs) -> None:
    found = tables.verdicts(usual)
    assert [each.claim for each in found] == [f"C{n}" for n in range(1, 18)]
    by_claim = {each.claim: each.verdict for each in found}
    unmeasured = {"C1", "C3", "C5", "C8", "C9", "C10", "C11", "C12", "C14", "C15", "C17"}
    assert {claim for claim, said in by_claim.items() if said == verdict.UNMEASURED} == unmeasured
    assert all(bool(each.numbers) == bool(each.notebook) == (each.verdict != verdict.UNMEASURED) for each in found)
    assert answer.answer(found).startswith("3 of 17 claims have a verdict")
    assert len(tables.table(found, usual)) == 17


def test_the_figure_has_a_row_per_claim(usual: store.Runs) -> None:
    ax = drawn(figures.verdicts(tables.table(tables.verdicts(usual), usual)))
    assert labels(ax) == list(verdict.TEXTS)
