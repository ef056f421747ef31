"""Claims about what a mode costs: C6, C13."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import stats, text
from meshdns.studies.cost import tables
from meshdns.studies.cost.tables import KEPT, MODE1, MODE2, REQUEST, RESOLVED
from meshdns.studies.verdict import COST, DEPENDS, REFUTED, UNDECIDED, Verdict, both, unmeasured

# Experiments whose arms are compared by name -> those that claims are judged by.
JUDGED = dict.fromkeys((REQUEST, KEPT), tuple(arm for arm, _ in tables.LADDER))


def verdicts(runs: store.Runs) -> Iterator[Verdict]:
    """What these runs say of them."""
    found, path = tables.difference(runs, MODE1, RESOLVED), tables.path(runs)
    yield resolving_cost(found, tables.floor(runs), tables.counted_at(path, RESOLVED), tables.counted_at(path, MODE1))
    yield choice(tables.changes(runs), tables.changes(runs, KEPT))


def resolving_cost(
    found: stats.Difference | None,
    floor: stats.NoiseFloor | None,
    resolved: dict[str, Any] | None = None,
    pushed: dict[str, Any] | None = None,
) -> Verdict:
    """C6: a ServiceEntry whose name the sidecar resolves, against a ClusterIP Service whose endpoints it is told.

    The same replicas, so that nothing else differs but the listener.
    """
    if found is None or found.absolute.n < 2:
        return unmeasured("C6", "needs mode 1 with both kinds of endpoints in two blocks")
    numbers = f"ServiceEntry minus ClusterIP Service {both(found)} (p50, {text.blocks(found.absolute.n)})"
    for what, row in (("ServiceEntry", resolved), ("ClusterIP Service", pushed)):
        if row is not None and row["requests"]:
            numbers += f"; {what}: {row['re_resolutions']} resolutions in {row['requests']} requests"
    reading = text.reading(found, floor)
    decided = partial(Verdict, "C6", numbers=numbers, notebook=COST)
    rest = "the endpoints of a ClusterIP Service are told to the sidecar (EDS), which then resolves nothing"
    if reading == "more":
        because = "on the kind of service: requests take longer to a ServiceEntry that the sidecar resolves"
        return decided(DEPENDS, f"{because}; {rest}")
    seen = "requests take even less" if reading == "less" else f"the difference is {reading}"
    because = f"to a ServiceEntry that the sidecar resolves, in the background, {seen} in steady state"
    return decided(UNDECIDED, f"{because}; {rest}; a cold or slow cluster DNS is not measured")


def choice(new: pd.DataFrame, kept: pd.DataFrame) -> Verdict:
    """C13: only the word performance is decided here, new connections and kept ones apart."""
    fresh, open_ = (tables.row_of(table, (MODE1, MODE2), tables.CLIENT_ONLY) for table in (new, kept))
    if fresh is None:
        return unmeasured("C13", "needs requests in both modes")
    found = fresh["p50"]
    numbers = f"mode 2 minus mode 1, new connection {both(found)}"
    numbers += "" if open_ is None else f", kept alive {both(open_['p50'])}"
    numbers += f" (p50, {text.blocks(found.absolute.n)})"
    rest = "compatibility, simplicity and control are not measured yet"
    decided = partial(Verdict, "C13", numbers=numbers, notebook=COST)
    if fresh["reading"] == "more":
        return decided(REFUTED, f"mode 2 is the slower one on new connections; {rest}")
    if fresh["reading"] != "less":
        return decided(UNDECIDED, f"new connections: {fresh['reading']}; {rest}")
    if open_ is None or open_["reading"] not in text.CLEAR:
        alive = "kept ones are not measured"
        if open_ is not None:
            alive = f"on kept ones the difference is {open_['reading']}"
        return decided(UNDECIDED, f"mode 2 is faster on new connections; {alive}; {rest}")
    if open_["reading"] == "less":
        return decided(DEPENDS, f"on what is weighed: mode 2 is faster, new and kept alive; {rest}")
    because = "on the connection: mode 2 is faster where every request resolves its name, slower on kept ones"
    return decided(DEPENDS, f"{because}; {rest}")
