"""C14: whether sidecars learn instances dynamically."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from meshdns import store
from meshdns.analysis import cells
from meshdns.core import units
from meshdns.studies.change import answer, tables, ways
from meshdns.studies.change.load import Row
from meshdns.studies.change.tables import KEPT, NEW
from meshdns.studies.verdict import DEPENDS, FOLLOWING, REFUTED, SUPPORTED, UNDECIDED, Verdict, unmeasured


def verdicts(runs: store.Runs) -> Iterator[Verdict]:
    """Of the one claim."""
    yield learnt(tables.followed(runs))


def learnt(found: pd.DataFrame) -> Verdict:
    """C14: whether traffic followed each change, with endpoints pushed to the sidecar and with headless Services."""
    headless = found[found["sidecar"].astype(bool) & found["endpoints"].map(ways.is_name).astype(bool)]
    kinds = {
        "Service (EDS)": cells.rows(found, endpoints=ways.EDS),
        "headless, new connections": cells.rows(headless, connection=NEW),
        "headless, kept alive": cells.rows(headless, connection=KEPT),
    }
    kinds = {name: [row for row in each if row["followed"].n] for name, each in kinds.items()}
    if not any(kinds.values()):
        return unmeasured("C14", f"needs endpoints that change under load; `{answer.PLAN}`")
    pushed, fresh, kept = ([not row["followed"].late for row in each] for each in kinds.values())
    numbers = "; ".join(_kept_up(name, each) for name, each in kinds.items() if each)
    decided = partial(Verdict, "C14", numbers=numbers, notebook=FOLLOWING)
    if not any([*pushed, *fresh, *kept]):
        return decided(REFUTED, "traffic followed no change while the load lasted")
    if lacking := [name for name, each in kinds.items() if not each]:
        return decided(UNDECIDED, f"not measured: {' and '.join(lacking)}")
    if not all(pushed):
        return decided(UNDECIDED, "not every change was followed even where endpoints are pushed to the sidecar")
    if all([*fresh, *kept]):
        return decided(SUPPORTED, "at p50 traffic followed every change, on new connections and on kept ones")
    stay = "new ones follow the name and kept ones stay until they break"
    so = stay if all(fresh) else "not even all new ones follow in time"
    because = "on the Service: endpoints are pushed to the sidecar, which at p50 follows every change; to a headless "
    because += f"one it goes where the client's lookup led, so {so}"
    return decided(DEPENDS, because)


def _kept_up(name: str, found: list[Row]) -> str:
    """`headless, kept alive: 4 of 10 changes followed, at p50 in 2.05 s at most (mean 2.05 ± 0.01 s, 8 blocks)`."""
    timely = [row["followed"] for row in found if not row["followed"].late]
    said = f"{name}: {len(timely)} of {len(found)} changes followed"
    if timely:
        slowest = max(timely, key=lambda spell: float(spell.p50))
        said += f", at p50 in {units.duration(slowest.p50)} at most ({answer.spread(slowest)})"
    return ", ".join(filter(None, [said, answer.unended(found)]))
