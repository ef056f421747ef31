"""The claim that applications cannot tell: C16."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshdns import store
from meshdns.studies.cost.tables import path
from meshdns.studies.names.tables import BASE, EXPERIMENTS, MODE1, PROXIED, TWIN, aaaa, return_codes
from meshdns.studies.verdict import DEPENDS, NAMES, UNDECIDED, Verdict, unmeasured

# Experiments whose arms are compared by name -> those that claims are judged by.
JUDGED = dict.fromkeys(EXPERIMENTS, (BASE, TWIN, MODE1, *PROXIED))


def verdicts(runs: store.Runs) -> Iterator[Verdict]:
    """What these runs say of it."""
    yield transparency(return_codes(runs), path(runs))


def transparency(codes: pd.DataFrame, counted: pd.DataFrame) -> Verdict:
    """C16: the same program ran in every arm; whether it could tell is asked by AAAA for an A-only name."""
    plain = aaaa(codes, BASE) if len(codes) else ""
    modes = {arm: aaaa(codes, arm) for arm in (MODE1, *PROXIED)} if len(codes) else {}
    told = {arm: answer for arm, answer in modes.items() if answer and answer != plain}
    if not plain or not any(modes.values()):
        return unmeasured("C16", "needs AAAA lookups with and without a mesh")
    answers = ", ".join(f"{arm} {answer}" for arm, answer in {BASE: plain, **modes}.items() if answer)
    numbers = f"AAAA for an A-only name: {answers}; {int(counted['answers'].sum())} requests by the same program in "
    numbers += "all arms"
    if told:
        because = "on what they look at: requests succeed unchanged, but an AAAA query is answered differently in "
        return Verdict("C16", DEPENDS, because + " and ".join(told), numbers, NAMES)
    because = "the one program tried needs no change and sees no difference; others follow"
    return Verdict("C16", UNDECIDED, because, numbers, NAMES)
