"""Notebook 10: the instrument card. Each row is a value, the gate it must pass and the verdict.

green: passed; amber: off, but in a way that is stated and does not touch differences between arms; red: the numbers
that depend on it are not to be believed; missed: a bar that more measuring would meet; unknown: its interval is too
wide to tell on which side of the gate it is, or it would be held against a number of another load; stated: no gate, or
nothing to hold against it; not measured: no such cell.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import cells, gates, provenance, text
from meshdns.core import units
from meshdns.studies import consistency, requests, ruler

UNTOLD = {"not exposed", "unknown"}  # governors, where the machine tells of none


@cells.once
def card(runs: store.Runs) -> pd.DataFrame:
    """All lines of the card."""
    lines = [
        *ruler.clock(runs),
        *ruler.lag(runs),
        *ruler.bias(runs),
        *ruler.linearity(runs),
        *consistency.conservation(runs),
        *consistency.little(runs),
        *consistency.additivity(runs),
        *consistency.equal_arms(runs),
        *consistency.precision(runs),
        *ruler.headroom(runs),
        *ruler.rulers(runs),
        *observer(runs),
        *environment(runs),
        validity(runs),
    ]
    return pd.DataFrame([asdict(each) for each in lines])


def observer(runs: store.Runs) -> list[gates.Row]:
    """What capturing packets costs the captured."""
    chosen = cells.select(runs, "card-observe-on", "card-observe-off")
    found = cells.paired(
        cells.matrix(cells.per_cell(runs, chosen, "from due"), ["experiment"]), "card-observe-off", "card-observe-on"
    )
    if found is None:
        return [gates.missing("observer: packet capture")]
    closed = set(chosen["arrival"]) == {"closed"}
    floor = requests.floor(runs, "request" if closed else "open")  # of cells that are loaded alike
    said = f"{text.interval(found.absolute, signed=True)}, {text.percent(found.relative)}"
    return [
        gates.Row(
            "observer: packet capture",
            said,
            "none: capture is off in what is compared",
            gates.STATED,
            text.reading(found, floor),
        )
    ]


def environment(runs: store.Runs) -> list[gates.Row]:
    """The machine, before it is blamed: governor, steal time, one machine for all runs."""
    machines = [provenance.branch(header.facts, "machine") for header in runs.headers]
    known = [each for each in machines if each]
    if not known:
        return [gates.missing("environment")]
    # What one run does not tell, the others do not make up for.
    steal = float(np.max([gates.fact(each, "steal_share") for each in known]))
    governors = sorted({str(each.get("governor", "unknown")) for each in known})
    # Clones of an image have one id: the processor and kernel tell them apart where they can.
    identities = {
        tuple(str(each.get(name, "unknown")) for name in ("machine_id_hash", "cpu", "kernel")) for each in known
    }
    several = len(known) > 1  # one run is of one machine, whatever it says
    told = sorted(set(governors) - UNTOLD)
    sources = sorted({str(each.get("clocksource", "unknown")) for each in known})
    stolen = gates.UNMEASURED if math.isnan(steal) else gates.judge(steal <= 0.01, gates.AMBER)
    return [
        gates.Row(
            "environment: CPU",
            ", ".join(sorted({f"{each.get('cpus', '?')} × {each.get('cpu', 'unknown')}" for each in known})),
            "none",
            gates.STATED,
        ),
        gates.Row(
            "environment: governor",
            ", ".join(governors),
            "performance" if told else "none: the machine tells of none",
            gates.judge(told == ["performance"], gates.AMBER) if told else gates.STATED,
        ),
        gates.Row("environment: clock source", ", ".join(sources), "none", gates.STATED),
        gates.Row(
            "environment: steal time", text.ABSENT if math.isnan(steal) else units.percent(steal), "at most 1 %", stolen
        ),
        gates.Row(
            "environment: machines",
            str(len(identities)),
            "1" if several else "none: one run",
            gates.judge(len(identities) == 1, gates.AMBER) if several else gates.STATED,
            "the sizes of times and of differences do not carry over from one machine to another",
        ),
    ]


def validity(runs: store.Runs) -> gates.Row:
    """How many cells were left out."""
    left_out, total = int((~runs.cells["valid"].astype(bool)).sum()), len(runs.cells)
    share = left_out / max(total, 1)
    return gates.Row(
        "invalid cells",
        f"{left_out} of {total}",
        "at most 5 %, each with its reason",
        gates.judge(share <= 0.05, gates.AMBER),
    )


# --- sentences ---


def answer(table: pd.DataFrame) -> str:
    """Whether the ruler can be trusted, and where not."""
    counts = table["verdict"].value_counts()
    found = {each: [str(item) for item in table["item"][table["verdict"] == each]] for each in counts.index}
    red, unmeasured = found.get(gates.RED, []), len(found.get(gates.UNMEASURED, []))
    unknown = found.get(gates.UNKNOWN, [])
    gated = len(table) - int(counts.get(gates.STATED, 0)) - unmeasured
    head = f"{int(counts.get(gates.GREEN, 0))} of {gated} checks are green"
    opening = "As far as it can be told" if unknown else "Yes"
    said = [f"{opening}: {head}." if not red else f"Not everywhere: {head}, and red are {'; '.join(red)}."]
    labels = ((gates.AMBER, "With care"), (gates.MISSED, "Bars missed"), (gates.UNKNOWN, "Cannot be told"))
    for verdict, label in labels:
        if items := found.get(verdict):
            said.append(f"{label}: {'; '.join(items)}.")
    if unmeasured:
        said.append(f"Not measured: {unmeasured}.")
    return " ".join(said)
