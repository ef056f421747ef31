"""How the claims stand: the words."""

from __future__ import annotations

from collections.abc import Sequence

from meshdns.analysis import text
from meshdns.studies.verdict import DEPENDS, REFUTED, SUPPORTED, UNDECIDED, UNMEASURED, Verdict

WORDS = text.Words(left_out="Claims are judged by the arms that stand for the two modes.")


def answer(found: Sequence[Verdict]) -> str:
    """How the claims stand."""
    by_verdict = {
        name: [each.claim for each in found if each.verdict == name]
        for name in (SUPPORTED, DEPENDS, REFUTED, UNDECIDED, UNMEASURED)
    }
    decided = len(by_verdict[SUPPORTED]) + len(by_verdict[DEPENDS]) + len(by_verdict[REFUTED])
    said = [
        f"{len(claims)} {name} ({', '.join(claims)})"
        for name, claims in by_verdict.items()
        if claims and name != UNMEASURED
    ]
    left = len(by_verdict[UNMEASURED])
    tail = f"{left} {'is' if left == 1 else 'are'} not yet measured"
    return (
        f"{decided} of {len(found)} claims {'has' if decided == 1 else 'have'} a verdict: {'; '.join([*said, tail])}."
        if said
        else f"None of {len(found)} claims is measured yet."
    )
