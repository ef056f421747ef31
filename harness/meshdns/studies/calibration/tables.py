"""The self-test of the load generator: what it found on this machine, in these runs, and whether that may be.

green: passed; amber: off, but in a way that is stated and does not touch differences between arms; red: the numbers
that depend on it are not to be believed; missed: a bar that more measuring would meet; unknown: its interval is too
wide to tell on which side of the gate it is, or it would be held against a number of another load; stated: no gate, or
nothing to hold against it; not measured: no such cell.
"""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import cells, provenance, text
from meshdns.analysis.gates import AMBER, STATED, UNMEASURED, Check, fact, judge
from meshdns.studies.calibration import conservation, generators
from meshdns.studies.cost import tables as cost

CAPTURED, UNCAPTURED = "card-observe-on", "card-observe-off"
LAG = "card-lag"
EXPERIMENTS = (
    generators.WIRE, CAPTURED, UNCAPTURED, generators.LADDER, LAG, generators.RATE, generators.OTHERS,
)  # fmt: skip
UNTOLD = {"not exposed", "unknown"}  # governors, where the machine tells of none
STEAL, INVALID = 0.01, 0.05  # shares that do no harm
_CHECKS = (
    generators.clock,
    generators.lag,
    generators.bias,
    generators.linearity,
    conservation.conservation,
    conservation.little,
    conservation.additivity,
    conservation.equal_arms,
    conservation.precision,
    generators.headroom,
    generators.others,
)


@cells.once
def checks(runs: store.Runs) -> pd.DataFrame:
    """A row per check: its verdict, and the numbers that it came from."""
    found = chain(*(check(runs) for check in (*_CHECKS, observer, environment, validity)))
    return pd.DataFrame([vars(each) for each in found])


def observer(runs: store.Runs) -> list[Check]:
    """What capturing packets costs the captured."""
    chosen = cells.select(runs, CAPTURED, UNCAPTURED)
    values = cells.matrix(cells.per_cell(runs, chosen, "from_due"), ["experiment"])
    found = cells.paired(values, UNCAPTURED, CAPTURED)
    if found is None:
        return [Check("observer")]
    closed = set(chosen["arrival"]) == {"closed"}
    floor = cost.floor(runs, cost.REQUEST if closed else cost.OPEN)  # of cells that are loaded alike
    return [Check("observer", STATED, {"found": found, "reading": text.reading(found, floor)})]


def environment(runs: store.Runs) -> list[Check]:
    """The machine, before it is blamed: governor, steal time, one machine for all runs."""
    known = [each for header in runs.headers if (each := provenance.branch(header.facts, "machine"))]
    if not known:
        return [Check("environment")]

    def told(*names: str) -> list[tuple[str, ...]]:
        return sorted({tuple(str(each.get(name, "unknown")) for name in names) for each in known})

    # What one run does not tell, the others do not make up for.
    steal = float(np.max([fact(each, "steal_share") for each in known]))
    governors = [name for (name,) in told("governor")]
    stolen = UNMEASURED if math.isnan(steal) else judge(steal <= STEAL, AMBER)
    named = [name for name in governors if name not in UNTOLD]
    # Clones of an image have one id: the processor and kernel tell them apart where they can.
    machines = len(told("machine_id_hash", "cpu", "kernel"))
    one = judge(machines == 1, AMBER) if len(known) > 1 else STATED  # one run is of one machine, whatever it says
    return [
        Check("cpu", STATED, {"cpus": told("cpus", "cpu")}),
        Check("governor", judge(named == ["performance"], AMBER) if named else STATED, {"governors": governors}),
        Check("clock_source", STATED, {"sources": [name for (name,) in told("clocksource")]}),
        Check("steal", stolen, {"share": steal, "limit_percent": 100 * STEAL}),
        Check("machines", one, {"machines": machines}),
    ]


def validity(runs: store.Runs) -> list[Check]:
    """How many cells were left out."""
    left_out, total = int((~runs.cells["valid"].astype(bool)).sum()), len(runs.cells)
    counted = {"cells": left_out, "total": total, "limit_percent": 100 * INVALID}
    return [Check("invalid", judge(left_out <= INVALID * total, AMBER), counted)]
