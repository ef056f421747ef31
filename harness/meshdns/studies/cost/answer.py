"""What a request costs, phase by phase: the words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import stats, text
from meshdns.core import units
from meshdns.studies.cost import tables
from meshdns.studies.cost.tables import CHANGES, CLIENT_ONLY, MODE1, MODE2, PLAIN, change, label, row_of

_MODES = {"mode 1": MODE1, "mode 2": MODE2}
_ARMS = {
    "mode1": "mode 1",
    "mode2-envoy": "mode 2 by Envoy's DNS filter",
    "mode2-agent": "mode 2 by Istio's agent",
}
_BACKENDS = {
    "plain": "sidecar at the client",
    "meshed": "both sidecars",
    "resolved": "a ServiceEntry that the sidecar resolves",
}
_STEPS = {
    ("ip", "plain"): "pod address, no DNS, no mesh",
    ("plain", "plain"): "name and ClusterIP, no mesh",
    ("plain-aa", "plain"): "the same again (A/A)",
    ("plain", "meshed"): "sidecar at the server",
    **{(arm, backend): f"{mode}, {what}" for arm, mode in _ARMS.items() for backend, what in _BACKENDS.items()},
}
_CHANGES = (  # in the order of CHANGES
    "nothing (A/A)",
    "name and ClusterIP",
    "sidecar at the server",
    "sidecar at the client, mode 1",
    "sidecar at the client too, mode 1",
    "a ServiceEntry that the sidecar resolves for a ClusterIP Service",
    "mode 2 for mode 1, client only",
    "mode 2 for mode 1, both sidecars",
    "mode 2 for mode 1, the ServiceEntry",
    "Envoy's DNS filter for Istio's agent",
    "whole mesh, mode 1",
    "whole mesh, mode 2",
)
_ROLES = {
    "client_app": "client app",
    "client_sidecar": "client sidecar",
    "server_sidecar": "server sidecar",
    "server": "server (nginx)",
}
WORDS = text.Words(
    headings={
        **_ROLES,
        "left_over_ns": "left over, ns",
        "tls": "TLS",
        "p50_against_usual": "p50 against 1 kB without TLS",
    },
    values={
        "meaning": {label(step): said for step, said in _STEPS.items()},
        "change": {change(*pair): said for pair, said in zip(CHANGES, _CHANGES, strict=True)},
        "role": _ROLES,
    },
)


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    return [answer(runs), sizes_answer(tables.sizes(runs))]


def answer(runs: store.Runs) -> str:
    """What the whole mesh costs a request in either mode, new connection and kept alive, and what the modes differ by
    there."""
    new, kept = tables.changes(runs), tables.changes(runs, tables.KEPT)
    said = []
    for mode in ("mode 2", "mode 1"):
        if row := row_of(new, (PLAIN, _MODES[mode])):
            told = _costs(row, "without a mesh", "no mesh")
            said.append(f"With both sidecars in {mode} a request on a new connection {told}.")
    if row := row_of(new, (MODE1, MODE2)):
        said.append(f"A request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}.")
    for mode, step in _MODES.items():
        if row := row_of(kept, (PLAIN, step)):
            told = _costs(row, "without a mesh", "no mesh")
            said.append(f"On a connection kept alive a request with both sidecars in {mode} {told}.")
    if row := row_of(kept, (MODE1, MODE2), CLIENT_ONLY):
        said.append(f"On a connection kept alive a request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}.")
    return " ".join(said) or "No change of one thing was measured in a valid block."


def _costs(row: dict[Any, Any], than: str, beside: str) -> str:
    """Levels first, then what they differ by, as the table reads it."""
    found: stats.Difference = row["p50"]
    blocks, reading = text.blocks(found.absolute.n), str(row["reading"])
    before, after = (text.interval(each) for each in row["levels"])
    levels = f"takes {after}, {than} {before}"
    if reading in text.CLEAR:
        longer = "longer" if reading == "more" else "shorter"
        amount = units.interval(text.turned(found.absolute, 1 if reading == "more" else -1))
        return f"{levels}: {amount} {longer}, {text.size(found)} (p50, {blocks})"
    if found.absolute.n < 2:
        return f"was compared with {beside} in one block, which gives no interval"
    return f"{levels}; the difference is {reading} (p50, {blocks})"


def sizes_answer(table: pd.DataFrame) -> str:
    """What larger bodies and TLS cost, by arm; or that it was not measured."""
    if table.empty:
        return "Bodies of other sizes and TLS were not measured; the plan `standard` holds them."
    said = [
        f"{row['body_kb']:.0f} kB{' through TLS' * row['tls']} on {row['step']} {text.interval(row['p50'])}"
        for row in table.to_dict("records")
    ]
    return f"Requests of other sizes (p50): {', '.join(said)}."
