"""What was measured, by what, and whether it may be used.

`load` finds runs from the project's root and from its notebooks folder alike. `checks` raises ReportError when the data
cannot carry an answer, so that a report on it does not exist; what was merely left out is listed by `invalid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import cells, text
from meshdns.core import errors, paths

MIN_BLOCKS = 2  # one block has no interval
SELF_TEST = "card-"  # how its experiments are named; due now and then, they are judged check by check
MAX_INVALID = 0.5  # when most cells are invalid the rest are the lucky ones, not a sample
MAX_FAILED = 0.01  # more failures than this shift the quantiles of those that succeeded
# How a whole run reads in a table; the rest of the facts stays in run.json.
_FACTS = ("meshdns", "commit", "istio", "envoy", "coredns", "dnsdist", "nginx", "python")
_MACHINE = ("cpu", "cpus", "kernel")


def load(runs: str | Path) -> store.Runs:
    """All finished runs there."""
    return store.load(paths.locate(runs))


def table(runs: store.Runs) -> pd.DataFrame:
    """A row per run: what, when, with which versions, on which machine."""
    rows = []
    for header in runs.headers:
        versions, machine = branch(header.facts, "versions"), branch(header.facts, "machine")
        row = {"run": header.name, "finished": header.finished or "unfinished", "blocks": header.blocks}
        row |= {"seed": header.seed} | {name: str(versions.get(name, "unknown")) for name in _FACTS}
        rows.append(row | {name: str(machine.get(name, "unknown")) for name in _MACHINE})
    return pd.DataFrame(rows).set_index("run").T


def made_of(runs: store.Runs) -> text.Shown:
    """The same, and in what its sidecars are not Istio's."""
    measured = set(runs.cells["arm"])
    sidecars = [pod for pod in runs.world.pods if pod.sidecar and pod.arm in measured]
    said = [said for header in runs.headers if sidecars and (said := _apart(header.facts))]
    shown = text.Shown(table(runs))
    shown.words = " ".join(dict.fromkeys(said))
    return shown


def _apart(facts: dict[str, Any]) -> str:
    versions, plane = branch(facts, "versions"), branch(facts, "plane")
    if "istio" not in versions:
        return ""
    istio, envoy = str(versions["istio"]), versions.get("envoy", "of unknown version")
    development = " (development towards 1.31, not a release)" if istio.startswith("0.0.0-") else ""
    said = (
        f"Sidecars told by Istio are its agent {istio}{development} with istiod's configuration on upstream Envoy "
        f"{envoy}: without the filters of Istio's own Envoy for metadata exchange, ALPN and statistics, so that "
        "latencies are a lower bound for it. The testbed plays the node's part, without a kubelet."
    )
    if plane.get("live"):
        return said
    return (
        f"{said} What istiod answers was recorded, certificates come from a CA of the testbed with the same SPIFFE "
        "names, and the cluster's names from CoreDNS' plugin file in the place of kubernetes."
    )


def branch(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """That part of the facts; empty if nobody recorded it."""
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def invalid(runs: store.Runs) -> pd.DataFrame:
    """The cells that were left out, by experiment, arm and reason."""
    columns = ["experiment", "arm", "backend", "reason", "cells"]
    left_out = runs.cells[~runs.cells["valid"].astype(bool)].explode("reasons")
    if left_out.empty:
        return pd.DataFrame(columns=columns)
    left_out = left_out.assign(reason=left_out["reasons"].fillna("no reason recorded"))
    counted = left_out.groupby(columns[:-1], observed=True).size().rename("cells").reset_index()
    return counted.sort_values("cells", ascending=False, ignore_index=True)


def reconciled(runs: store.Runs, table: pd.DataFrame) -> text.Shown:
    """The table of these experiments, and how its cells add up with those of the runs."""
    checked = text.Shown(table.rename(columns=text.Words().heading))
    names = set(table["experiment"]) if len(table) else set()
    every = runs.cells
    mine, invalid = every["experiment"].isin(names), ~every["valid"].astype(bool)
    read = "This page reads the cells of these experiments" if names else "This page reads no cell of its own"
    checked.words = (
        f"{read}: {int(mine.sum())} of the {len(every)} of these runs, among them {int((mine & invalid).sum())} of the "
        f"{int(invalid.sum())} invalid ones, which are left out of every number."
    )
    return checked


def checks(runs: store.Runs, *experiments: str, planned: bool = False, also: Sequence[str] | None = ()) -> pd.DataFrame:
    """A row per experiment: blocks, cells, invalid ones, failures, send lag. Raises ReportError if one fails.

    `planned`: only those that some plan of these runs holds; of a plan of your own that may be none. `also`: read by
    the page too where they are there, but no condition for it; None: all that are there.
    """
    there = list(dict.fromkeys(runs.cells["experiment"]))
    if planned:
        experiments = tuple(name for name in experiments if name in there)
    more = [name for name in there if name not in experiments and (also is None or name in also)]
    found = [_check(runs, name) for name in experiments]
    return judged(runs, found, _problem, [_check(runs, name) for name in more])


def judged(
    runs: store.Runs,
    rows: Sequence[dict[str, Any]],
    problem: Callable[[dict[str, Any]], str],
    more: Sequence[dict[str, Any]] = (),
) -> text.Shown:
    """The rows of experiments, and `more` that are no condition. Raises ReportError for the first with a problem."""
    for row in rows:
        if said := problem(row):
            place = ", ".join(header.name for header in runs.headers)
            raise errors.ReportError(f"experiment {row['experiment']}{said}", place=place, step="measure again")
    return reconciled(runs, pd.DataFrame([*rows, *more]))


def counted(runs: store.Runs, experiment: str, good: pd.DataFrame) -> dict[str, Any]:
    """How a row of an experiment begins, of whose cells these are good."""
    every = int((runs.cells["experiment"] == experiment).sum())
    return {
        "experiment": experiment,
        "blocks": cells.blocks_of(good),
        "cells": every,
        "invalid_cells": every - len(good),
    }


def _check(runs: store.Runs, experiment: str) -> dict[str, Any]:
    chosen = cells.select(runs, experiment)
    good, position = cells.requests_of(runs, chosen)
    bad, _ = cells.requests_of(runs, chosen, failed=True)
    timed = chosen["rate_hz"].to_numpy(dtype=float)[position] > 0  # a closed loop is never late
    late = cells.MEASURES["lag"](good)[timed]
    lag = f"{np.quantile(late, 0.99) / 1_000:.1f}" if len(late) else text.ABSENT
    return counted(runs, experiment, chosen) | {
        "requests": len(good) + len(bad),
        "failed": len(bad),
        "of_those_offered": float((len(good) + len(bad)) / max(chosen["offered"].sum(), 1)),
        "send_lag_p99_us": lag,
    }


def _problem(row: dict[str, Any]) -> str:
    if not row["cells"]:
        return " was not measured"
    if said := lacking(row):
        return said
    if row["failed"] > MAX_FAILED * row["requests"]:
        return f": {row['failed']} of {row['requests']} requests failed in cells that count as valid"
    return ""


def lacking(row: dict[str, Any]) -> str:
    """What an experiment lacks of valid cells and of blocks, whatever became of its requests; "" if nothing."""
    if said := too_many_invalid(row):
        return said
    if row["blocks"] < MIN_BLOCKS and not row["experiment"].startswith(SELF_TEST):
        return f" has {row['blocks']} block(s), an interval needs {MIN_BLOCKS}"
    return ""


def too_many_invalid(row: dict[str, Any]) -> str:
    """What an experiment lacks of valid cells; "" if nothing."""
    few = row["invalid_cells"] <= MAX_INVALID * row["cells"]
    return "" if few else f": {row['invalid_cells']} of {row['cells']} cells are invalid"
