"""How the claims stand: the words."""

from __future__ import annotations

from collections.abc import Sequence

from meshdns.analysis import text
from meshdns.studies.verdict import DEPENDS, REFUTED, SUPPORTED, UNDECIDED, Verdict

DECIDED = (SUPPORTED, DEPENDS, REFUTED)
WORDS = text.Words(left_out="Claims are judged by the arms that stand for the two modes.")


def answer(found: Sequence[Verdict]) -> str:
    """How the claims stand."""
    claims = {name: [each.claim for each in found if each.verdict == name] for name in (*DECIDED, UNDECIDED)}
    said = [f"{len(each)} {name} ({', '.join(each)})" for name, each in claims.items() if each]
    if not said:
        return f"None of {len(found)} claims is measured yet."
    decided, left = sum(len(claims[name]) for name in DECIDED), len(found) - sum(map(len, claims.values()))
    said.append(f"{left} {'is' if left == 1 else 'are'} not yet measured")
    return f"{decided} of {len(found)} claims {'has' if decided == 1 else 'have'} a verdict: {'; '.join(said)}."
