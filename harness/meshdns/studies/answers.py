"""Notebook 03: what becomes of a request, by the address that its name was answered with.

Outcomes come from real requests and from what counted them: `proxied` and `direct` were served, through the client's
sidecar or past it; `looped` reached the sidecar's own port, so that it was to connect to itself; `refused` was told so;
`lost` was told nothing until its time was over.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, provenance, text
from meshdns.core import errors
from meshdns.core.world import Pod

EXPERIMENT = "answers"
# Arms that sentences and claims tell of: mode 1's sidecar, with its loop guard and without; mode 2's.
GUARDED, UNGUARDED, MODE2 = "answers", "unguarded", "answers-mode2"
SIDECARS = ("mode 1", "mode 2")
OUTCOMES = ("proxied", "direct", "looped", "refused", "lost")
_WORDS = ["means", "mode"]  # of the levels
LEVELS = ["answer", "arm", "intercepted", "sidecar"]
MEANINGS = {
    "pod": "a pod's address",
    "clusterip": "a ClusterIP",
    "virtual": "a virtual IP",
    "service-entry": "a ServiceEntry's address",
    "loopback": "127.0.0.1",
    "own": "the asking pod's own address",
    "unroutable": "an address where nobody is",
    "loopback-sidecar": "the sidecar's port at 127.0.0.1",
    "own-sidecar": "the sidecar's port at the own address",
}
AWAY = ("pod", "clusterip", "virtual", "service-entry", "unroutable")  # addresses outside the asking pod
HOME = ("loopback", "own", "loopback-sidecar", "own-sidecar")  # the asking pod itself
TO_SIDECAR = ("loopback-sidecar", "own-sidecar")

# What each part counted.
_COUNTED = {
    "redirected": "pod/rule/redirect_tcp",
    "translated": "pod/rule/clusterip_tcp",
    "at 15001": "pod/envoy/outbound_cx",
    "by service": "pod/envoy/listener_rq",
    "forwarded": "pod/envoy/cluster_rq",
    "passed through": "pod/envoy/passthrough_cx",
    "overflow": "pod/envoy/passthrough_overflow",
    "at guard": "pod/envoy/blackhole_cx",
    "at servers": "servers/nginx_rq",
}
_ESCAPED = ("pod/rule/escaped_clusterip", "pod/rule/escaped_vip", "pod/rule/escaped_unroutable")
COUNTS = [*_COUNTED, "escaped"]
MEASURE = "`meshdns report --plan interception` measures them"


CONDITIONS = tuple((on, state) for on in (True, False) for state in ("up", "down"))


def condition(intercepted: object, sidecar: str) -> str:
    """As heads of columns have it."""
    return f"{'captured' if intercepted else 'not captured'}, sidecar {sidecar}"


def _meaning(answer: str, client: Pod) -> str:
    """The answered address in words, whether the sidecar's guard was left out, and the arm if it is none of ours."""
    own = "" if client.arm in (GUARDED, UNGUARDED, MODE2) else f", {client.arm}"
    return MEANINGS.get(answer, answer) + (", no guard" if not client.guarded else "") + own


def mode(client: Pod) -> str:
    """Whose sidecar it is: that of mode 2 knows virtual IPs."""
    return SIDECARS[client.virtual_ips or client.dns_proxy]


def matrix(runs: store.Runs) -> pd.DataFrame:
    """A row per answer and condition: requests by outcome, the outcome in a word, and the counts behind it."""
    chosen = cells.select(runs, EXPERIMENT)
    per_cell = chosen.assign(
        requests=cells.asked(runs, chosen),
        **_client(runs, chosen),
        **{name: cells.counter(chosen, key) for name, key in _COUNTED.items()},
        escaped=sum((cells.counter(chosen, key) for key in _ESCAPED), np.zeros(len(chosen))),
    )
    names = [*LEVELS, "requests", "200", *_CLIENT, *COUNTS, *OUTCOMES]
    per_cell = pd.concat([per_cell, _outcomes(per_cell)], axis=1)[names]
    table = per_cell.groupby(LEVELS, observed=True).sum().astype(int).reset_index()
    table = _ordered(runs, table)
    words = [_word(row) for row in table.to_dict("records")]
    stops = [_stopped(row) for row in table.to_dict("records")]
    seen = looks.of_runs(runs)
    means = [_meaning(answer, seen.pod(arm)) for answer, arm in zip(table["answer"], table["arm"], strict=True)]
    table = table.assign(outcome=words, stopped=stops, means=means, mode=[mode(seen.pod(arm)) for arm in table["arm"]])[
        [*LEVELS, *_WORDS, "outcome", "stopped", *names[len(LEVELS) :]]
    ]
    return absent.of(table, runs, EXPERIMENT)


# Ways for a request to fail, as the client tells them, by what they come to.
_CLIENT = {"told": ("connect_error", "reset", "http_error", "tls_error", "bad_answer", "dns_error"),
           "silent": ("timeout",)}  # fmt: skip


def _client(runs: store.Runs, chosen: pd.DataFrame) -> dict[str, Any]:
    """Requests per cell that were served, told that they fail, and not told anything."""
    rows, position = cells.requests_of(runs, chosen)
    bad, bad_position = cells.requests_of(runs, chosen, failed=True)

    def per_cell(where: Any) -> Any:
        return np.bincount(where, minlength=len(chosen))

    served = (rows["status"] == 200).to_numpy()
    failures = {
        name: per_cell(bad_position[bad["outcome"].isin(outcomes).to_numpy()]) for name, outcomes in _CLIENT.items()
    }
    failures["told"] = failures["told"] + per_cell(position[~served])
    return {"200": per_cell(position[served]), **failures}


def _outcomes(per_cell: pd.DataFrame) -> pd.DataFrame:
    """Requests of each cell by outcome."""
    served = per_cell["200"]
    proxied = np.minimum(served, per_cell["forwarded"] + per_cell["passed through"])
    # More connections from the sidecar than requests, or one that names its port: it was to connect to itself.
    to_itself = (per_cell["at guard"] > 0) | (per_cell["passed through"] > per_cell["requests"])
    failed = per_cell["told"] + per_cell["silent"]
    return pd.DataFrame(
        {
            "proxied": proxied,
            "direct": served - proxied,
            "looped": failed.where(to_itself, 0),
            "refused": per_cell["told"].where(~to_itself, 0),
            "lost": per_cell["silent"].where(~to_itself, 0),
        }
    )


def _ordered(runs: store.Runs, table: pd.DataFrame) -> pd.DataFrame:
    ranks: dict[str, list[Any]] = {
        "answer": list(runs.world.answers),
        "arm": looks.of_runs(runs).held(table["arm"]),
        "intercepted": [True, False],
        "sidecar": ["up", "down"],
    }
    keys = pd.DataFrame(
        {name: table[name].map(functools.partial(looks.place, levels)) for name, levels in ranks.items()}
    )
    return table.loc[pd.DataFrame(keys).sort_values(LEVELS).index].reset_index(drop=True)


def _word(row: dict[Any, Any]) -> str:
    """The outcome, or how many of each."""
    seen = {name: int(row[name]) for name in OUTCOMES if row[name]}
    if len(seen) == 1:
        return next(iter(seen))
    return ", ".join(f"{count} {name}" for name, count in seen.items()) or "nothing"


def _stopped(row: dict[Any, Any]) -> str:
    """What ended a loop, and where a request that was not served came to its end."""
    if row["looped"]:
        return f"{_ender(row)}, {connections(row)} each"
    if not row["lost"] and not row["refused"]:
        return ""
    if row["passed through"] + row["by service"]:
        return "behind the sidecar"
    if row["redirected"]:
        return "at the sidecar's port"
    return "leaving the pod" if row["lost"] and row["escaped"] else "in the pod"


def _ender(row: dict[Any, Any]) -> str:
    if row["at guard"]:
        return "by the guard"
    if row["overflow"]:
        return "by the circuit breaker"
    return "by the client's time-out" if row["silent"] else "by the sidecar"


def connections(row: dict[Any, Any]) -> str:
    """`1 connection`: how many each request caused at the sidecar."""
    made = (row["passed through"] + row["at guard"]) / max(row["requests"], 1)
    return f"{made:.0f} connection{'s' * (round(made) != 1)}"


def rows(table: pd.DataFrame, *answers: str, **levels: object) -> list[dict[Any, Any]]:
    """The rows of these answers at these levels."""
    found = table[table["answer"].isin(answers)]
    for name, level in levels.items():
        found = found[found[name] == level]
    return found.to_dict("records")


def grid(table: pd.DataFrame, sidecar: str = "mode 1") -> pd.DataFrame:
    """The matrix of a mode's sidecar as people read it: a row per answer, a column per condition, in words."""
    table = table[table["mode"] == sidecar]
    words: dict[str, dict[str, str]] = {condition(*each): {} for each in CONDITIONS}
    for row in table.to_dict("records"):
        found = f"{row['outcome']}\n{row['stopped']}".strip()
        words[condition(row["intercepted"], row["sidecar"])][row["means"]] = found
    index = list(dict.fromkeys(table["means"]))
    whole = pd.DataFrame(words, index=index, columns=list(words), dtype=object).fillna(text.ABSENT)
    return absent.knowing(whole, absent.known(table) or (EXPERIMENT,))


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """For people: the sidecar's mode, the answer and the condition in words, and the counts."""
    conditions = itertools.starmap(condition, zip(table["intercepted"], table["sidecar"], strict=True))
    front = pd.DataFrame({"sidecar of": table["mode"], "answer": table["means"], "condition": list(conditions)})
    whole = pd.concat([front, table.drop(columns=[*LEVELS, *_WORDS, *OUTCOMES])], axis=1)
    return absent.knowing(whole, absent.known(table))


def checks(runs: store.Runs) -> pd.DataFrame:
    """How many cells are valid, which here means: offered, and answered with that address.

    A row even where none was measured. Raises ReportError if most cells are invalid.
    """
    every = runs.cells[runs.cells["experiment"] == EXPERIMENT]
    chosen = cells.select(runs, EXPERIMENT)
    invalid = len(every) - len(chosen)
    if invalid > provenance.MAX_INVALID * len(every):
        fact = f"experiment {EXPERIMENT}: {invalid} of {len(every)} cells are invalid"
        place = ", ".join(header.name for header in runs.headers)
        raise errors.ReportError(fact, place=place, step="measure again")
    row = {"experiment": EXPERIMENT, "blocks": cells.blocks_of(chosen), "cells": len(every), "invalid cells": invalid}
    return provenance.reconciled(runs, pd.DataFrame([row | {"requests": int(cells.asked(runs, chosen).sum())}]))


# --- sentences ---


def answer(table: pd.DataFrame) -> str:
    """Whether the DNS answer decides the way."""
    if table.empty:
        return (
            f"What becomes of a request when its name is answered otherwise was not measured in these runs; {MEASURE}."
        )
    away, home = (rows(table, *kind, arm=GUARDED, intercepted=True, sidecar="up") for kind in (AWAY, HOME))
    without = rows(table, *AWAY, *HOME, arm=GUARDED, intercepted=False, sidecar="up")
    said = f"With interception {share(away)} to addresses outside the pod were redirected to the sidecar"
    said += f", and {share(home)} to the pod itself; without it {share(without)}."
    if all(each["redirected"] == each["requests"] for each in away) and not redirected([*home, *without]):
        said += " So interception decides, and the DNS answer only where it names the pod itself."
    said += f" Captured with mode 1's sidecar up: {_fates([*away, *home])}."
    return " ".join([said, *_known(table), *_loops(table)])


def _known(table: pd.DataFrame) -> list[str]:
    """What a sidecar that knows virtual IPs makes of the same answers."""
    found = rows(table, *AWAY, *HOME, arm=MODE2, intercepted=True, sidecar="up")
    if not found:
        return ["Mode 2's sidecar, which knows virtual IPs, was not tried."]
    return [f"With mode 2's, which knows virtual IPs: {_fates(found)}."]


def redirected(found: list[dict[Any, Any]]) -> int:
    """Connections that the rules sent to the sidecar."""
    return sum(int(row["redirected"]) for row in found)


def share(found: list[dict[Any, Any]]) -> str:
    """`24 of 24 connections`."""
    made = sum(int(row["requests"]) for row in found)
    return f"{redirected(found)} of {made} connection{'s' * (made != 1)}"


def _fates(found: list[dict[Any, Any]]) -> str:
    by_outcome: dict[str, list[str]] = {}
    for row in found:
        by_outcome.setdefault(str(row["outcome"]), []).append(MEANINGS.get(row["answer"], row["answer"]))
    return "; ".join(f"{outcome}: {text.listed(answers)}" for outcome, answers in by_outcome.items())


def _loops(table: pd.DataFrame) -> list[str]:
    """How loops were ended, with and without the guard."""
    ends: dict[str, list[str]] = {}
    for row in rows(table, *TO_SIDECAR, intercepted=True, sidecar="up"):
        if row["looped"]:
            ends.setdefault(row["stopped"], []).append(row["means"])
    return [f"A loop was ended {end}: {text.listed(begun)}." for end, begun in ends.items()]
