"""Notebook 00: tables in, verdicts out.

A claim is supported or refuted only by what was measured for it; `depends` names on what; `undecided` was looked at
without an end; everything else is not yet measured. Each verdict function sees tables, so that opposite data shows the
opposite verdict.

  verdict:         what is said of a claim
  way, cost, mesh: the verdict of each claim, by what it is about
"""

from __future__ import annotations

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks
from meshdns.studies import answers, changes, external, governed, hops, lookups, mtls, policies, requests
from meshdns.studies.claims.cost import choice, resolving_cost, transparency
from meshdns.studies.claims.mesh import external_name, learnt, one_model, passing, strict_mtls
from meshdns.studies.claims.verdict import (
    DEPENDS,
    REFUTED,
    SUPPORTED,
    TEXTS,
    UNDECIDED,
    UNMEASURED,
    WAY,
    Verdict,
    counted_at,
    unmeasured,
)
from meshdns.studies.claims.way import (
    bypass,
    hops_saved,
    interception,
    loop,
    mode1_path,
    mode2_path,
    virtual_answers,
    without_sidecar,
)

__all__ = [
    "DEPENDS",
    "REFUTED",
    "SUPPORTED",
    "TEXTS",
    "UNDECIDED",
    "UNMEASURED",
    "WAY",
    "Verdict",
    "answer",
    "bypass",
    "choice",
    "external_name",
    "hops_saved",
    "interception",
    "learnt",
    "loop",
    "mode1_path",
    "mode2_path",
    "one_model",
    "passing",
    "resolving_cost",
    "strict_mtls",
    "table",
    "transparency",
    "verdicts",
    "virtual_answers",
    "without_sidecar",
]


def verdicts(runs: store.Runs) -> list[Verdict]:
    """All claims, in order."""
    path = requests.path(runs)
    codes = lookups.return_codes(runs)
    matrix = answers.matrix(runs)
    decided = {
        each.claim: each
        for each in (
            bypass(matrix),
            interception(path, matrix),
            loop(matrix),
            mode1_path(path, requests.resolutions(runs)),
            without_sidecar(matrix),
            resolving_cost(
                requests.difference(runs, requests.STATIC, requests.MODE1),
                requests.floor(runs),
                counted_at(path, *requests.MODE1),
            ),
            mode2_path(path, matrix),
            hops_saved(hops.counts(runs)),
            virtual_answers(path, matrix),
            choice(requests.changes(runs), requests.changes(runs, "keepalive")),
            external_name(external.table(runs)),
            strict_mtls(mtls.matrix(runs)),
            learnt(changes.followed(runs)),
            one_model(governed.table(runs)),
            transparency(codes, path),
            passing(policies.faults(runs), policies.replicas(runs), policies.split(runs)),
        )
    }
    return [decided.get(claim, unmeasured(claim)) for claim in TEXTS]


# What is compared by the names of its arms.
_BY_NAME = ("lookup", "names", "delay", "request", "keepalive", answers.EXPERIMENT)
_NAMED = {*(step.arm for step in requests.LADDER), answers.GUARDED, answers.UNGUARDED, answers.MODE2}


def table(found: list[Verdict], runs: store.Runs) -> pd.DataFrame:
    """A row per claim."""
    held = looks.of_runs(runs).held(cells.select(runs, *_BY_NAME)["arm"])
    whole = pd.DataFrame(
        [
            {
                "claim": each.claim,
                "text": TEXTS[each.claim],
                "verdict": each.verdict,
                "because": each.because,
                "numbers": each.numbers,
                "notebook": each.notebook,
            }
            for each in found
        ]
    )
    others = [arm for arm in held if arm not in _NAMED]
    return absent.leaving(whole, others, "Claims are judged by the arms that stand for the two modes.")


def answer(found: list[Verdict]) -> str:
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
