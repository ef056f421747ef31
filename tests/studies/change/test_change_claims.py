"""C14 on tables that support it and on tables that say the opposite."""

from __future__ import annotations

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.studies import verdict
from meshdns.studies.change import claims, tables
from meshdns.studies.change.spells import Spell

S = 10**9


def with_(found: pd.DataFrame, seconds: float, **levels: str) -> pd.DataFrame:
    """The same rows, but for those at these levels, which were followed after so long."""
    hit = np.logical_and.reduce([found[name] == level for name, level in levels.items()])
    changed = [
        Spell(np.full(4, seconds * S)) if mine else spell for spell, mine in zip(found["followed"], hit, strict=True)
    ]
    return found.assign(followed=changed)


def test_the_claim_is_decided_by_what_follows(usual: store.Runs) -> None:
    table = tables.followed(usual)
    found = claims.learnt(table)
    assert (found.verdict, found.notebook) == (verdict.DEPENDS, verdict.FOLLOWING)
    assert "kept ones stay" in found.because
    assert "Service (EDS): 30 of 30 changes followed, at p50 in 6" in found.numbers
    assert "headless, kept alive: 6 of 15 changes followed" in found.numbers
    every = with_(table, 1.0, endpoints="ORIGINAL_DST")
    assert claims.learnt(every).verdict == verdict.SUPPORTED
    late = with_(table, np.inf, endpoints="ORIGINAL_DST", connection="new", change="up")
    assert claims.learnt(late).verdict == verdict.DEPENDS
    assert "not even all new ones" in claims.learnt(late).because
    assert claims.learnt(with_(table, np.inf, endpoints="EDS", change="up")).verdict == verdict.UNDECIDED
    nothing = with_(with_(table, np.inf, endpoints="EDS"), np.inf, endpoints="ORIGINAL_DST")
    assert claims.learnt(nothing).verdict == verdict.REFUTED
    assert claims.learnt(table[table["endpoints"] != "EDS"]).verdict == verdict.UNDECIDED
    assert claims.learnt(table[table["arm"] == "plain"]).verdict == verdict.UNMEASURED


def test_the_claim_is_decided_where_it_was_measured(usual: store.Runs, other: store.Runs) -> None:
    for runs, expected in ((usual, verdict.DEPENDS), (other, verdict.UNMEASURED)):
        assert {each.claim: each.verdict for each in claims.verdicts(runs)} == {"C14": expected}
