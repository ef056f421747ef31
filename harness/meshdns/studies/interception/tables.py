"""What captures a connection, and whether that matters to it: the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, stats, text
from meshdns.core import units
from meshdns.studies.cost import tables as cost
from meshdns.studies.interception import mechanisms
from meshdns.studies.interception.mechanisms import BASE, EXPERIMENTS, MEASURES, SWEEPS, TIMED, Measure, compared

Row = dict[str, Any]
AGAINST, ADDED = "p50_against_iptables", "p50_against_no_rules"


@dataclass(frozen=True)
class Amount:
    """An interval that is not read as a time in µs."""

    of: stats.Interval
    unit: Literal["", "ns", "%"] = ""

    def __str__(self) -> str:
        """`+20 ± 40 ns`, `+50 % [48, 52]`, `552 ± 12`."""
        if self.unit == "%" or not self.of.n:
            return text.percent(self.of)
        if self.unit == "ns":
            return units.interval(self.of, "ns", signed=True)
        return f"{units.number(self.of.estimate)} ± {units.number(self.of.half_width)}"


def floor(runs: store.Runs, measure: Measure, what: str = "from_due") -> stats.NoiseFloor | None:
    """What equal arms differ by at p50, when they do what this measure times."""
    return cells.noise_floor(cells.medians(runs, measure.equal(runs), ["arm"], what), *mechanisms.EQUAL)


def _compared(values: pd.DataFrame, a: Any, b: Any, noise: stats.NoiseFloor | None, column: str) -> Row:
    """The part of a row that says what b has over a; empty if no block has both."""
    found = cells.paired(values, a, b)
    if found is None:
        return {}
    pair = values[[a, b]].dropna().to_numpy(dtype=float)
    return {
        column: found,
        "blocks": found.absolute.n,
        "noise_floor_us": np.nan if noise is None else noise.absolute / units.NS_PER_US,
        "reading": text.reading(found, noise),
        "values": pair[:, 1] - pair[:, 0],
    }


def levels(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism, and one without a mesh: p50 of every measure."""
    rows = []
    medians = {measure: cells.medians(runs, measure.cells(runs), [measure.by]) for measure in MEASURES}
    for mechanism in mechanisms.held(runs):
        found = {each.name: cells.interval(values, each.of(mechanism)) for each, values in medians.items()}
        if any(each.n for each in found.values()):
            rows.append({"mechanism": mechanism.name} | found)
    return absent.of(pd.DataFrame(rows), runs, *TIMED)


@cells.once
def differences(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: p50 against iptables in the same block, and how that reads."""
    rows = [row for measure in MEASURES for row in _against(runs, measure)]
    return absent.of(pd.DataFrame(rows), runs, *TIMED)


def _against(runs: store.Runs, measure: Measure, what: str = "from_due") -> Iterable[Row]:
    values, noise = cells.medians(runs, measure.cells(runs), [measure.by], what), floor(runs, measure, what)
    for each in compared(runs)[1:]:
        if found := _compared(values, measure.of(BASE), measure.of(each), noise, AGAINST):
            yield {"measure": measure.name, "mechanism": each.name, "arm": each.arm} | found


def phases(runs: store.Runs) -> pd.DataFrame:
    """A row per phase of a new connection and mechanism; medians of phases do not add up to that of the whole."""
    rows = [
        {"measure": measure.name, "phase": phase} | row
        for measure in MEASURES
        for phase in measure.phases
        for row in _against(runs, measure, phase)
    ]
    return absent.of(pd.DataFrame(rows), runs, *(measure.experiment for measure in MEASURES if measure.phases))


# --- extra rules ---


@cells.once
def rules(runs: store.Runs) -> pd.DataFrame:
    """A row per measure, number of extra rules that match nothing, and mechanism: p50 against none in that block."""
    rows: list[Row] = []
    for experiment, measure in SWEEPS.items():
        values, noise = _sweep(runs, experiment), floor(runs, measure)
        for count in sorted({int(count) for _, count in map(tuple, values.columns)} - {0}):
            for each in compared(runs):
                found = _compared(values, (each.arm, 0), (each.arm, count), noise, ADDED)
                row = {"measure": measure.name, "extra_rules": count, "mechanism": each.name, "arm": each.arm}
                rows += [row | found] if found else []
    return absent.of(pd.DataFrame(rows), runs, *SWEEPS)


def _sweep(runs: store.Runs, experiment: str) -> pd.DataFrame:
    return cells.medians(runs, cells.select(runs, experiment), ["arm", "extra_rules"])


@cells.once
def slopes(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: what each extra rule adds to p50, beside what the kernel's design predicts.

    nat is asked once a flow, so that its rules should cost a connection that is kept alive nothing; mangle is asked for
    each packet. The reading is that of the most rules against none, if the slope through all numbers agrees.
    """
    rows: list[Row] = []
    for experiment, measure in SWEEPS.items():
        values, noise = _sweep(runs, experiment), floor(runs, measure)
        for each in compared(runs):
            counts = sorted(int(count) for arm, count in map(tuple, values.columns) if arm == each.arm)
            whole = values[[(each.arm, count) for count in counts]].dropna() if counts else values
            if len(counts) < 2 or counts[0] or whole.empty:
                continue
            slope = stats.slope_intercept(counts, whole).slope
            reading = text.reading(cells.paired(whole, (each.arm, 0), (each.arm, counts[-1])), noise)
            if reading in text.CLEAR and slope.holds(0.0):
                reading = f"{text.UNRESOLVED} ({units.span(slope)} per rule)"
            expected = mechanisms.more_expected(each, measure)
            # One that is not told says neither that there is an effect nor that none is.
            decided = reading in text.CLEAR and expected is not None
            rows.append(
                {
                    "measure": measure.name,
                    "mechanism": each.name,
                    "asked": each.asked,
                    "extra_rules": ", ".join(map(str, counts)),
                    "blocks": slope.n,
                    "per_rule": Amount(slope, "ns"),
                    "reading": reading,
                    "more_expected": expected,
                    "as_expected": expected and reading == "more" if decided else None,
                }
            )
    return absent.of(pd.DataFrame(rows), runs, *SWEEPS)


# --- what it takes, and what counted it ---


@cells.once
def cpu(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: CPU time per request in each kind of container (intervals in ns).

    The client waits in a spin, so that its own time is that of the request; the reading is of all others together.
    """
    rows: list[Row] = []
    for measure in MEASURES:
        spent = cost.spent_by(runs, measure.cells(runs), [measure.by])
        others, _ = spent["without_client"], spent.pop("total")
        equal = cost.spent_by(runs, measure.equal(runs), ["arm"])["without_client"]
        noise = cells.noise_floor(equal, *mechanisms.EQUAL)
        for each in compared(runs):
            level = measure.of(each)
            if not len(cells.column(others, level)):
                continue
            found = None if each is BASE else cells.paired(others, measure.of(BASE), level)
            rows.append(
                {"measure": measure.name, "mechanism": each.name, "blocks": len(cells.column(others, level))}
                | {name: cells.interval(values, level) for name, values in spent.items()}
                | {"against_iptables": found}
                | {"reading": text.BASELINE if each is BASE else text.reading(found, noise)}
            )
    idle = [name for name in cost.ROLES if not any(row[name].estimate > 0 for row in rows)]
    return absent.of(pd.DataFrame(rows).drop(columns=idle, errors="ignore"), runs, *TIMED)


def _made(chosen: pd.DataFrame, name: str) -> cells.Values:
    """The load agent's own count, with its warm-up."""
    warm = [each.get("warmup", {}) for each in chosen["agent"]]
    counts = zip(chosen["agent"], warm, strict=True)
    return np.array([float(sum(part.get(name, 0) for part in both)) for both in counts], dtype=float)


@dataclass(frozen=True)
class Count:
    """A counter and what it must equal."""

    name: str
    counter: str
    own: str  # the load agent's own count of the same; "": requests asked for
    inbound: bool = False
    flows: bool = False  # counts flows: a source port that comes again within conntrack's memory is none


COUNTS = (
    Count("connections_redirected", "pod/rule/redirect_tcp", "connections_opened"),
    Count("dns_flows_redirected", "pod/rule/redirect_dns_udp", "queries_sent", flows=True),
    Count("at_dns_proxy", "pod/dnsproxy/queries", "queries_sent"),
    Count("at_server_sidecar", "servers/envoy_rq", "", inbound=True),
)


def counts(runs: store.Runs) -> pd.DataFrame:
    """A row per counter and mechanism: its sum beside the client's own, over all cells, also those found invalid."""
    rows: list[Row] = []
    every = runs.cells[runs.cells["experiment"].isin(EXPERIMENTS)]
    for count in COUNTS:
        for each in compared(runs):
            by, level = ("backend", each.backend) if count.inbound else ("arm", each.arm)
            chosen = every[every[by] == level]
            if chosen.empty:
                continue
            own = _made(chosen, count.own) if count.own else cells.asked(runs, chosen)
            counted = cells.counter(chosen, count.counter)
            # A single query may well use a port that conntrack remembers; that twenty do is no chance.
            wrong = (counted > own) | ((counted == 0) & (own >= 20)) if count.flows else counted != own
            differing = int(wrong.sum())
            rows.append(
                {
                    "counted": count.name,
                    "mechanism": each.name,
                    "cells": len(chosen),
                    "invalid_cells": int((~chosen["valid"].astype(bool)).sum()),
                    "by_client": int(own.sum()),
                    "by_counter": int(counted.sum()),
                    "cells_that_differ": differing,
                    "agree": not differing,
                }
            )
    return absent.of(pd.DataFrame(rows), runs, *EXPERIMENTS)


def entries(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism: entries of connection tracking in the client's pod after the cells, and against iptables.

    A level, not a count: entries live on after what made them, so it holds those of earlier cells of the pod too.
    """
    rows: list[Row] = []
    outbound = [measure for measure in MEASURES if not measure.twins]
    left: dict[Measure, pd.DataFrame] = {}
    for measure in outbound:
        chosen = measure.cells(runs)
        left[measure] = cells.matrix(chosen.assign(value=cells.counter(chosen, "pod/conntrack/entries")), ["arm"])
    for each in mechanisms.held(runs):
        row: Row = {"mechanism": each.name}
        for measure, values in left.items():
            against = cells.paired(values, BASE.arm, each.arm) if each is not BASE else None
            row[f"after_{measure.name}"] = Amount(cells.interval(values, each.arm))
            row[f"{measure.name}_against_iptables"] = against and Amount(against.relative, "%")
        if any(len(cells.column(values, each.arm)) for values in left.values()):
            rows.append(row)
    return absent.of(pd.DataFrame(rows), runs, *(measure.experiment for measure in outbound))


def availability(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism: blocks with valid cells, outbound and inbound, and why there are none."""
    chosen = cells.select(runs, *EXPERIMENTS)
    rows = [
        {
            "mechanism": each.name,
            "outbound_blocks": cells.blocks_of(chosen[chosen["arm"] == each.arm]),
            "inbound_blocks": cells.blocks_of(chosen[chosen["backend"] == each.backend]),
            "refused": mechanisms.refusal(runs, each) or None,
        }
        for each in compared(runs)
    ]
    return pd.DataFrame(rows)


def too_few(runs: store.Runs, measure: Measure) -> bool:
    """Whether it was measured, but in no cell with enough requests for a quantile."""
    chosen = measure.cells(runs)
    return bool(len(chosen)) and cells.medians(runs, chosen, [measure.by]).empty
