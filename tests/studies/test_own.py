"""Experiments that no notebook asks for, on the index."""

from __future__ import annotations

from pathlib import Path

import measured
from meshdns import store
from meshdns.measure import plan
from meshdns.report import index
from meshdns.studies import own
from shipped import WORLD

OWN = """
name = "own"
seed = 1
blocks = 3

[[experiment]]
name = "mine-too"
kind = "request"
arm = ["answers", "plain"]
backend = "plain"
connection = "new"
arrival = "closed"

[[experiment]]
name = "mine"
arrival = "closed"
arm = "mode1"
qtype = ["A", "AAAA"]

[[experiment]]
name = "lookup"
arrival = "closed"
arm = ["plain", "mode1"]
"""


def test_experiments_of_ones_own_are_levels_on_the_index(tmp_path: Path) -> None:
    asked = plan.parse(OWN, "own", WORLD)
    runs = store.load(measured.build(tmp_path, blocks=3, asked=asked))
    assert own.experiments(runs) == ["mine", "mine-too"]
    table = own.levels(runs)
    assert table[["experiment", "arm", "factors"]].to_numpy().tolist() == [
        ["mine", "mode1", "qtype A"], ["mine", "mode1", "qtype AAAA"],
        ["mine-too", "plain", "–"], ["mine-too", "answers", "–"],
    ]  # fmt: skip
    assert all(each.n == 3 for each in table["p50"])
    page = index.document([], runs)
    assert "asked by no page" in page
    assert "mine-too" in page
    assert "asked by no page" not in index.document([], store.load(measured.build(tmp_path / "usual", blocks=2)))
