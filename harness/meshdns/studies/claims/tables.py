"""How the claims stand: each study's verdicts in one table.

A claim is supported or refuted only by what was measured for it; `depends` names on what; `undecided` was looked at
without an end; everything else is not yet measured. Each verdict function sees tables, so that opposite data shows the
opposite verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from meshdns import store, studies
from meshdns.analysis import absent, cells, looks
from meshdns.studies.verdict import TEXTS, Verdict, unmeasured


def verdicts(runs: store.Runs) -> list[Verdict]:
    """All claims, in order."""
    decided = {each.claim: each for claims in studies.modules("claims") for each in claims.verdicts(runs)}
    return [decided.get(claim, unmeasured(claim)) for claim in TEXTS]


def table(found: Sequence[Verdict], runs: store.Runs) -> pd.DataFrame:
    """A row per claim; it leaves out the arms that claims could be judged by and are not."""
    rows = [dataclasses.asdict(each) | {"text": TEXTS[each.claim]} for each in found]
    columns = ["claim", "text", "verdict", "because", "numbers", "notebook"]
    by_arm = {
        name: arms for claims in studies.modules("claims") for name, arms in getattr(claims, "JUDGED", {}).items()
    }
    held = looks.of_runs(runs).held(cells.select(runs, *by_arm)["arm"])
    judged = {arm for arms in by_arm.values() for arm in arms}
    return absent.leaving(pd.DataFrame(rows, columns=columns), [arm for arm in held if arm not in judged])
