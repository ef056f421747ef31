"""What a request costs, phase by phase: the words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import stats, text
from meshdns.core import units
from meshdns.studies.cost.tables import CHANGES, KEPT, MODE1, MODE2, PLAIN, Level, change, changes, label, sizes

_MODES = {"mode 1": MODE1, "mode 2": MODE2}
_CLIENT_ONLY = ("mode1", "plain"), ("mode2-agent", "plain")
_STEPS = {
    ("ip", "plain"): "pod address, no DNS, no mesh",
    ("plain", "plain"): "name and ClusterIP, no mesh",
    ("plain-aa", "plain"): "the same again (A/A)",
    ("plain", "meshed"): "sidecar at the server",
    ("mode1", "plain"): "mode 1, sidecar at the client",
    ("mode1", "meshed"): "mode 1, both sidecars",
    ("mode1", "resolved"): "mode 1, a ServiceEntry that the sidecar resolves",
    ("mode2-envoy", "plain"): "mode 2 by Envoy's DNS filter, sidecar at the client",
    ("mode2-envoy", "meshed"): "mode 2 by Envoy's DNS filter, both sidecars",
    (
        "mode2-envoy",
        "resolved",
    ): "mode 2 by Envoy's DNS filter, a ServiceEntry that the sidecar resolves",
    ("mode2-agent", "plain"): "mode 2 by Istio's agent, sidecar at the client",
    ("mode2-agent", "meshed"): "mode 2 by Istio's agent, both sidecars",
    ("mode2-agent", "resolved"): "mode 2 by Istio's agent, a ServiceEntry that the sidecar resolves",
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
    return [answer(runs), sizes_answer(sizes(runs))]


def answer(runs: store.Runs) -> str:
    """What the whole mesh costs a request in either mode, new connection and kept alive."""
    table = changes(runs)
    said = [_whole(table, "mode 2"), _whole(table, "mode 1"), _modes(table)]
    if KEPT in set(runs.cells["experiment"]):
        said.append(_kept(changes(runs, KEPT)))
    return " ".join(each for each in said if each) or "No change of one thing was measured in a valid block."


def _row(table: pd.DataFrame, a: Level, b: Level) -> dict[Any, Any] | None:
    found = table[table["change"] == change(a, b)].to_dict("records") if len(table) else []
    return found[0] if found else None


def _whole(table: pd.DataFrame, mode: str) -> str:
    row = _row(table, PLAIN, _MODES[mode])
    if row is None:
        return ""
    return f"With both sidecars in {mode} a request on a new connection {_costs(row, 'without a mesh', 'no mesh')}."


def _modes(table: pd.DataFrame) -> str:
    row = _row(table, MODE1, MODE2)
    return "" if row is None else f"A request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}."


def _kept(table: pd.DataFrame) -> str:
    """The price of the mesh where connections are kept, and what the modes differ by there."""
    said = [
        f"On a connection kept alive a request with both sidecars in {mode} {_costs(row, 'without a mesh', 'no mesh')}."
        for mode, step in _MODES.items()
        if (row := _row(table, PLAIN, step)) is not None
    ]
    row = _row(table, MODE1, MODE2) or _row(table, *_CLIENT_ONLY)
    if row is not None:
        said.append(f"On a connection kept alive a request in mode 2 {_costs(row, 'in mode 1', 'mode 1')}.")
    return " ".join(said)


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
    said = [f"{_sized(row)} on {row['step']} {text.interval(row['p50'])}" for row in table.to_dict("records")]
    return f"Requests of other sizes (p50): {', '.join(said)}."


def _sized(row: dict[Any, Any]) -> str:
    size = f"{row['body_kb']:.0f} kB"
    return f"{size} through TLS" if row["tls"] else size
