"""C14 on tables that support it and on tables that say the opposite."""

from __future__ import annotations

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.studies import verdict
from meshdns.studies.change import claims, tables
from meshdns.studies.change.spells import Spell

S = 10**9


HEADLESS = ("name table", "cluster DNS, no cache")  # through a sidecar


def with_(found: pd.DataFrame, seconds: float, *ways: str, **levels: str) -> pd.DataFrame:
    """The same rows, but for those of sidecars at these levels, which were followed after so long."""
    hit = found["endpoints"].isin(ways) & found["sidecar"]
    hit &= np.logical_and.reduce([found[name] == level for name, level in levels.items()], initial=True)
    changed = [
        Spell(np.full(4, seconds * S)) if mine else spell for spell, mine in zip(found["followed"], hit, strict=True)
    ]
    return found.assign(followed=changed)


def test_the_claim_is_decided_by_what_follows(usual: store.Runs) -> None:
    table = tables.followed(usual)
    found = claims.learnt(table)
    assert (found.verdict, found.notebook) == (verdict.DEPENDS, verdict.FOLLOWING)
    assert "kept ones stay" in found.because
    assert "Service (EDS): 20 of 20 changes followed, at p50 in 6" in found.numbers
    assert "headless, kept alive: 4 of 10 changes followed" in found.numbers
    every = with_(table, 1.0, *HEADLESS)
    assert claims.learnt(every).verdict == verdict.SUPPORTED
    late = with_(table, np.inf, *HEADLESS, connection="new", change="up")
    assert claims.learnt(late).verdict == verdict.DEPENDS
    assert "not even all new ones" in claims.learnt(late).because
    assert claims.learnt(with_(table, np.inf, "EDS", change="up")).verdict == verdict.UNDECIDED
    nothing = with_(table, np.inf, "EDS", *HEADLESS)
    assert claims.learnt(nothing).verdict == verdict.REFUTED
    assert claims.learnt(table[table["endpoints"] != "EDS"]).verdict == verdict.UNDECIDED
    assert claims.learnt(table[table["arm"] == "plain"]).verdict == verdict.UNMEASURED


def test_the_claim_is_decided_where_it_was_measured(usual: store.Runs, other: store.Runs) -> None:
    for runs, expected in ((usual, verdict.DEPENDS), (other, verdict.UNMEASURED)):
        assert {each.claim: each.verdict for each in claims.verdicts(runs)} == {"C14": expected}
