"""Notebook 08: what captures a connection, and whether that matters to it.

Four mechanisms do the same work for mode 2 with the agent's DNS. iptables, Istio's default, is the one that the others
are compared with, in the same block; what `plain` and its twin differ by is the noise floor. What comes in is captured
in the same four ways at a server, called by a client without a sidecar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, looks, provenance, stats, text
from meshdns.core import units
from meshdns.core.world import Pod
from meshdns.studies import requests

FLOW, PACKET = "each flow", "each packet"


@dataclass(frozen=True)
class Mechanism:
    """A way to capture, and where the plan has it."""

    arm: str  # captures what goes out
    backend: str  # captures what comes in
    name: str
    asked: str  # when the kernel asks the table in which the extra rules stand: nat once a flow, mangle always


@dataclass(frozen=True)
class Measure:
    """What is timed."""

    name: str
    said: str  # in a sentence
    experiment: str
    connection: str
    twins: str = ""  # the experiment whose equal arms give the noise floor, where this one has none
    phases: tuple[str, ...] = ()  # those that take time

    @property
    def by(self) -> str:
        """The factor that names the mechanism."""
        return "backend" if self.twins else "arm"

    def of(self, mechanism: Mechanism) -> str:
        """The mechanism's level of that factor."""
        return mechanism.backend if self.twins else mechanism.arm


BASE = Mechanism("mode2-agent", "in-iptables", "iptables", FLOW)
SHIPPED = (
    BASE,
    Mechanism("nftables", "in-nftables", "nftables", FLOW),
    Mechanism("tproxy", "in-tproxy", "TPROXY", PACKET),
    Mechanism("ebpf", "in-ebpf", "eBPF", FLOW),
)
PLAIN, TWIN = "plain", "plain-aa"
UNMESHED = Mechanism(PLAIN, "", "nothing (plain)", "")
NEW = Measure("new connection", "a request on a new connection", "capture", "new", "", ("dns", "connect", "first byte"))
KEPT = Measure("kept alive", "a request on a connection kept alive", "capture-keepalive", "keepalive")
LOOKUP = Measure("UDP lookup", "a UDP lookup", "capture-lookup", "none")
IN_NEW = Measure(
    "inbound, new", "an incoming request on a new connection", "inbound", "new", NEW.experiment,
    ("connect", "first byte"),
)  # fmt: skip
IN_KEPT = Measure("inbound, kept", "an incoming request on a kept connection", "inbound", "keepalive", KEPT.experiment)
MEASURES = (NEW, KEPT, LOOKUP, IN_NEW, IN_KEPT)
_TIMED = tuple(dict.fromkeys(measure.experiment for measure in MEASURES))
SWEEPS = {"rules": NEW, "rules-keepalive": KEPT, "rules-lookup": LOOKUP}
AGAINST = "p50 against iptables"
ADDED = "p50 against no extra rules"


def experiments(runs: store.Runs) -> list[str]:
    """Those of this notebook that the runs hold."""
    there = set(runs.cells["experiment"])
    wanted = dict.fromkeys([*(measure.experiment for measure in MEASURES), *SWEEPS])
    return [name for name in wanted if name in there]


def compared(runs: store.Runs) -> tuple[Mechanism, ...]:
    """The mechanisms: iptables first, and after those that everybody knows any other arm or server that was measured
    here, by its own name."""
    return tuple(each for each in _held(runs) if each.asked)


def _held(runs: store.Runs) -> tuple[Mechanism, ...]:
    """All of these, and before them what captures nothing."""
    chosen = runs.cells[runs.cells["experiment"].isin(experiments(runs))]
    known = {PLAIN, TWIN, *(each.arm for each in SHIPPED), *(each.backend for each in SHIPPED)}
    seen = looks.of_runs(runs)
    clients = [seen.pod(arm) for arm in seen.held(chosen["arm"]) if arm not in known]
    bare = [Mechanism(each.arm, "", f"nothing ({each.arm})", "") for each in clients if not _captures(each)]
    own = [Mechanism(each.arm, "", each.arm, _asked(each)) for each in clients if _captures(each)]
    inbound = chosen.loc[chosen["experiment"].isin(each.experiment for each in MEASURES if each.twins), "backend"]
    for name in sorted(set(inbound) - known):
        servers = (pod for pod in runs.world.pods if pod.backend == name)
        own += [Mechanism(name, name, name, next((_asked(each) for each in servers), FLOW))]
    return (UNMESHED, *bare, *SHIPPED, *own)


def _captures(client: Pod) -> bool:
    return client.sidecar or client.dns_proxy


def _asked(pod: Pod) -> str:
    return PACKET if pod.mechanism == "tproxy" else FLOW


def _cells(runs: store.Runs, measure: Measure) -> pd.DataFrame:
    return cells.select(runs, measure.experiment, connection=measure.connection)


def _medians(runs: store.Runs, chosen: pd.DataFrame, by: Sequence[str], what: str = "from due") -> pd.DataFrame:
    return cells.matrix(cells.per_cell(runs, chosen, what), by) if len(chosen) else pd.DataFrame()


def floor(runs: store.Runs, measure: Measure, what: str = "from due") -> stats.NoiseFloor | None:
    """What equal arms differ by at p50, when they do what this measure times."""
    chosen = cells.select(runs, measure.twins or measure.experiment)
    return cells.noise_floor(_medians(runs, chosen, ["arm"], what), PLAIN, TWIN)


def _compared(values: pd.DataFrame, a: Any, b: Any, noise: stats.NoiseFloor | None, column: str) -> dict[str, Any]:
    """The part of a row that says what b has over a; empty if no block has both."""
    found = cells.paired(values, a, b)
    if found is None:
        return {}
    pair = values[[a, b]].dropna().to_numpy(dtype=float)
    return {
        "blocks": found.absolute.n,
        column: found,
        "noise floor, µs": np.nan if noise is None else noise.absolute / units.NS_PER_US,
        "reading": text.reading(found, noise),
        "values": pair[:, 1] - pair[:, 0],
    }


_COMPARED = ["blocks", "noise floor, µs", "reading", "values"]


def levels(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism, and one without a mesh: p50 of every measure."""
    rows: list[dict[str, Any]] = []
    medians = {measure: _medians(runs, _cells(runs, measure), [measure.by]) for measure in MEASURES}
    for mechanism in _held(runs):
        found = {each.name: cells.interval(values, each.of(mechanism)) for each, values in medians.items()}
        if any(each.n for each in found.values()):
            rows.append({"captured by": mechanism.name} | found)
    return absent.of(pd.DataFrame(rows, columns=["captured by", *(each.name for each in MEASURES)]), runs, *_TIMED)


@cells.once
def differences(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: p50 against iptables in the same block, and how that reads."""
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        values, noise = _medians(runs, _cells(runs, measure), [measure.by]), floor(runs, measure)
        for mechanism in compared(runs)[1:]:
            found = _compared(values, measure.of(BASE), measure.of(mechanism), noise, AGAINST)
            if found:
                rows.append({"measure": measure.name, "mechanism": mechanism.name, "arm": mechanism.arm} | found)
    return absent.of(pd.DataFrame(rows, columns=["measure", "mechanism", "arm", AGAINST, *_COMPARED]), runs, *_TIMED)


def phases(runs: store.Runs) -> pd.DataFrame:
    """A row per phase of a new connection and mechanism; medians of phases do not add up to that of the whole."""
    rows: list[dict[str, Any]] = []
    for measure in (NEW, IN_NEW):
        chosen = _cells(runs, measure)
        for phase in measure.phases:
            values, noise = _medians(runs, chosen, [measure.by], phase), floor(runs, measure, phase)
            for mechanism in compared(runs)[1:]:
                found = _compared(values, measure.of(BASE), measure.of(mechanism), noise, AGAINST)
                if found:
                    rows.append({"measure": measure.name, "phase": phase, "mechanism": mechanism.name} | found)
    table = pd.DataFrame(rows, columns=["measure", "phase", "mechanism", AGAINST, *_COMPARED])
    return absent.of(table, runs, NEW.experiment, IN_NEW.experiment)


# --- extra rules ---


def _counts(values: pd.DataFrame, mechanism: Mechanism) -> list[int]:
    """How many extra rules the mechanism was measured with."""
    return sorted(int(count) for arm, count in map(tuple, values.columns) if arm == mechanism.arm)


@cells.once
def rules(runs: store.Runs) -> pd.DataFrame:
    """A row per measure, number of extra rules that match nothing, and mechanism: p50 against none in that block."""
    rows: list[dict[str, Any]] = []
    for experiment, measure in SWEEPS.items():
        values, noise = _sweep(runs, experiment), floor(runs, measure)
        for count in sorted({int(count) for _, count in map(tuple, values.columns)} - {0}):
            for mechanism in compared(runs):
                found = _compared(values, (mechanism.arm, 0), (mechanism.arm, count), noise, ADDED)
                row = {"measure": f"{measure.name}, {count} rules", "mechanism": mechanism.name, "arm": mechanism.arm}
                rows += [row | found] if found else []
    return absent.of(pd.DataFrame(rows, columns=["measure", "mechanism", "arm", ADDED, *_COMPARED]), runs, *SWEEPS)


def _sweep(runs: store.Runs, experiment: str) -> pd.DataFrame:
    return _medians(runs, cells.select(runs, experiment), ["arm", "extra_rules"])


@cells.once
def slopes(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: what each extra rule adds to p50, beside what the kernel's design predicts.

    nat is asked once a flow, so that its rules should cost a connection that is kept alive nothing; mangle is asked for
    each packet. The reading is that of the most rules against none, if the slope through all numbers agrees.
    """
    rows: list[dict[str, Any]] = []
    for experiment, measure in SWEEPS.items():
        values, noise = _sweep(runs, experiment), floor(runs, measure)
        for mechanism in compared(runs):
            counts = _counts(values, mechanism)
            if len(counts) < 2 or counts[0]:
                continue
            whole = values[[(mechanism.arm, count) for count in counts]].dropna()
            if whole.empty:
                continue
            line = stats.slope_intercept(counts, whole)
            most = cells.paired(whole, (mechanism.arm, 0), (mechanism.arm, counts[-1]))
            reading = _slope_reading(line.slope, text.reading(most, noise))
            expected = measure is not KEPT or mechanism.asked == PACKET
            rows.append(
                {
                    "measure": measure.name,
                    "mechanism": mechanism.name,
                    "rules are asked": mechanism.asked,
                    "extra rules": ", ".join(map(str, counts)),
                    "blocks": line.slope.n,
                    "per rule": units.interval(line.slope, "ns", signed=True),
                    "reading": reading,
                    "expected": "more" if expected else "no effect",
                    "as expected": _as_expected(reading, expected=expected),
                }
            )
    return absent.of(pd.DataFrame(rows, columns=_SLOPE), runs, *SWEEPS)


_SLOPE = [
    "measure", "mechanism", "rules are asked", "extra rules", "blocks", "per rule", "reading", "expected",
    "as expected",
]  # fmt: skip


def _slope_reading(slope: stats.Interval, most: str) -> str:
    if most in text.CLEAR and slope.low <= 0 <= slope.high:
        return f"{text.UNRESOLVED} ({units.span(slope)} per rule)"
    return most


def _as_expected(reading: str, *, expected: bool) -> str:
    """Only a difference that is told decides: one that is not says neither that there is an effect nor that none is."""
    if reading not in text.CLEAR:
        return text.ABSENT
    return "yes" if expected and reading == "more" else "NO"


# --- what it takes, and what counted it ---


@cells.once
def cpu(runs: store.Runs) -> pd.DataFrame:
    """A row per measure and mechanism: CPU time per request in each kind of container (intervals in ns).

    The client waits in a spin, so that its own time is that of the request; the reading is of all others together.
    """
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        chosen = _cells(runs, measure)
        spent = _spent(runs, chosen)
        whole = {name: _by(chosen, spent[name], measure.by) for name in requests.ROLES}
        others = _by(chosen, spent[list(requests.BEHIND_CLIENT)].sum(axis=1), measure.by)
        noise = _cpu_floor(runs, measure)
        for mechanism in compared(runs):
            level = measure.of(mechanism)
            if not len(cells.column(others, level)):
                continue
            found = None if mechanism is BASE else cells.paired(others, measure.of(BASE), level)
            rows.append(
                {"measure": measure.name, "mechanism": mechanism.name, "blocks": len(cells.column(others, level))}
                | {name: cells.interval(values, level) for name, values in whole.items()}
                | {"without client": cells.interval(others, level), "against iptables": found}
                | {"reading": "the baseline" if mechanism is BASE else text.reading(found, noise)}
            )
    idle = [name for name in requests.ROLES if not any(row[name].estimate > 0 for row in rows)]
    columns = ["measure", "mechanism", "blocks", *requests.ROLES, "without client", "against iptables", "reading"]
    return absent.of(pd.DataFrame(rows, columns=columns).drop(columns=idle), runs, *_TIMED)


def _cpu_floor(runs: store.Runs, measure: Measure) -> stats.NoiseFloor | None:
    chosen = cells.select(runs, measure.twins or measure.experiment)
    others = _spent(runs, chosen)[list(requests.BEHIND_CLIENT)].sum(axis=1)
    return cells.noise_floor(_by(chosen, others, "arm"), PLAIN, TWIN)


def _by(chosen: pd.DataFrame, values: pd.Series[float], by: str) -> pd.DataFrame:
    return cells.matrix(chosen.assign(value=values.to_numpy()), [by]) if len(chosen) else pd.DataFrame()


def _spent(runs: store.Runs, chosen: pd.DataFrame) -> pd.DataFrame:
    """ns per request and role, a row per cell."""
    spent, seen = np.zeros((len(chosen), len(requests.ROLES))), looks.of_runs(runs)
    places = zip(chosen["arm"], chosen["backend"], chosen["cpu_us"], strict=True)
    for row, (arm, backend, used) in enumerate(places):
        for service, us in used.items():
            if role := requests.role((str(arm), str(backend)), service, seen):
                spent[row, requests.ROLES.index(role)] += units.us_to_ns(float(us))
    share = np.maximum(cells.asked(runs, chosen), 1)[:, None]
    return pd.DataFrame(spent / share, columns=list(requests.ROLES))


def _made(name: str) -> Callable[[pd.DataFrame], cells.Values]:
    """The load agent's own count, with its warm-up."""
    return lambda rows: np.array(
        [float(each.get(name, 0)) + float(each.get("warmup", {}).get(name, 0)) for each in rows["agent"]], dtype=float
    )


@dataclass(frozen=True)
class Count:
    """A counter and what it must equal."""

    what: str
    counter: str
    own: str  # the load agent's own count of the same; "": requests asked for
    inbound: bool = False
    flows: bool = False  # counts flows: a source port that comes again within conntrack's memory is none


COUNTS = (
    Count("connections redirected", "pod/rule/redirect_tcp", "connections_opened"),
    Count("DNS flows redirected", "pod/rule/redirect_dns_udp", "queries_sent", flows=True),
    Count("queries at the DNS proxy", "pod/dnsproxy/queries", "queries_sent"),
    Count("requests at the server's sidecar", "servers/envoy_rq", "", inbound=True),
)


def counts(runs: store.Runs) -> pd.DataFrame:
    """A row per counter and mechanism: its sum beside the client's own, over all cells, also those found invalid."""
    rows: list[dict[str, Any]] = []
    every = runs.cells[runs.cells["experiment"].isin(experiments(runs))]
    for count in COUNTS:
        for mechanism in compared(runs):
            by, level = ("backend", mechanism.backend) if count.inbound else ("arm", mechanism.arm)
            chosen = every[every[by] == level]
            if chosen.empty:
                continue
            own = _made(count.own)(chosen) if count.own else cells.asked(runs, chosen)
            counted = cells.counter(chosen, count.counter)
            rows.append(
                {
                    "counted": count.what,
                    "mechanism": mechanism.name,
                    "cells": len(chosen),
                    "invalid cells": int((~chosen["valid"].astype(bool)).sum()),
                    "by the client": int(own.sum()),
                    "by the counter": int(counted.sum()),
                    "cells that differ": _differing(own, counted, flows=count.flows),
                }
            )
    table = pd.DataFrame(rows, columns=_COUNTED)
    table = table.assign(agree=np.where(table["cells that differ"] == 0, "yes", "NO"))
    return absent.of(table, runs, *_TIMED, *SWEEPS)


_COUNTED = ["counted", "mechanism", "cells", "invalid cells", "by the client", "by the counter", "cells that differ"]


def _differing(own: cells.Values, counted: cells.Values, *, flows: bool) -> int:
    # A single query may well use a port that conntrack remembers; that twenty do is no chance.
    wrong = (counted > own) | ((counted == 0) & (own >= 20)) if flows else counted != own
    return int(wrong.sum())


def entries(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism: entries of connection tracking in the client's pod after the cells, and against iptables.

    A level, not a count: entries live on after what made them, so it holds those of earlier cells of the pod too.
    """
    rows: list[dict[str, Any]] = []
    outbound = [measure for measure in MEASURES if not measure.twins]
    left = {measure: _entries(_cells(runs, measure)) for measure in outbound}
    for mechanism in _held(runs):
        row: dict[str, Any] = {}
        for measure, values in left.items():
            found = cells.interval(values, mechanism.arm)
            against = cells.paired(values, BASE.arm, mechanism.arm) if mechanism is not BASE else None
            row[f"after {measure.name}"] = _number(found)
            row[f"{measure.name}, against iptables"] = against and text.percent(against.relative)
        if any(len(cells.column(values, mechanism.arm)) for values in left.values()):
            rows.append({"captured by": mechanism.name} | row)
    return absent.of(pd.DataFrame(rows), runs, *(measure.experiment for measure in outbound))


def _entries(chosen: pd.DataFrame) -> pd.DataFrame:
    found = chosen.assign(value=cells.counter(chosen, "pod/conntrack/entries"))
    return cells.matrix(found, ["arm"]) if len(found) else pd.DataFrame()


def _number(each: stats.Interval) -> str:
    """`552 ± 12`: what has no unit."""
    return text.ABSENT if not each.n else f"{units.number(each.estimate)} ± {units.number(each.half_width)}"


# --- what could be measured ---


def availability(runs: store.Runs) -> pd.DataFrame:
    """A row per mechanism: blocks with valid cells, outbound and inbound, and why there are none."""
    chosen = cells.select(runs, *experiments(runs)) if experiments(runs) else runs.cells[:0]
    rows = [
        {
            "mechanism": mechanism.name,
            "outbound, blocks": cells.blocks_of(chosen[chosen["arm"] == mechanism.arm]),
            "inbound, blocks": cells.blocks_of(chosen[chosen["backend"] == mechanism.backend]),
            "refused": refusal(runs, mechanism) or text.ABSENT,
        }
        for mechanism in compared(runs)
    ]
    return pd.DataFrame(rows)


def refusal(runs: store.Runs, mechanism: Mechanism) -> str:
    """Why this machine does not allow it, in the loader's words; "" if it does."""
    reasons = [provenance.branch(header.facts, "refused") for header in runs.headers]
    found = [each.get(mechanism.arm) or each.get(mechanism.backend) for each in reasons]
    return "; ".join(dict.fromkeys(str(each) for each in found if each))


# --- sentences ---


def answer(runs: store.Runs) -> str:
    """Whether the mechanisms differ, measure by measure, and what was not measured."""
    if not experiments(runs):
        return "This run did not compare ways to capture a connection; `meshdns report --plan interception` does."
    table = differences(runs)
    if table.empty:
        return " ".join(
            ["No valid block has iptables and another mechanism: nothing can be compared.", *_lacking(runs)]
        )
    details = [said for measure in MEASURES if (said := _of(measure, table))]
    return " ".join([_headline(table), *_lacking(runs)]) + "\n\n" + " ".join(details)


def _headline(table: pd.DataFrame) -> str:
    clear = table[table["reading"].isin(text.CLEAR)].to_dict("records")
    if not clear:
        return "What the mechanisms differ by is not resolved for any measure."
    said = {measure.name: measure.said for measure in MEASURES}
    matters = text.listed(list(dict.fromkeys(said[row["measure"]] for row in clear)))
    most = max(clear, key=lambda row: abs(row[AGAINST].relative.estimate))
    of = f"{said[most['measure']]} with {most['mechanism']}"
    return f"It matters to {matters}; the largest difference that is resolved is {text.size(most[AGAINST])}, of {of}."


def _of(measure: Measure, table: pd.DataFrame) -> str:
    rows = table[table["measure"] == measure.name].to_dict("records")
    if not rows:
        return ""
    blocks = max(row["blocks"] for row in rows)
    opening = measure.said[0].upper() + measure.said[1:]
    if blocks < 2:
        return f"{opening} was measured in one block, which gives no interval."
    told = text.listed([f"{_size(row)} with {row['mechanism']}" for row in rows])
    return f"{opening}, against iptables: {told} (p50, {text.blocks(blocks)})."


def _size(row: dict[Any, Any]) -> str:
    found: stats.Difference = row[AGAINST]
    if row["reading"] not in text.CLEAR:
        return str(row["reading"])
    return f"{text.size(found)} ({text.interval(found.absolute, signed=True)})"


def _lacking(runs: store.Runs) -> list[str]:
    said = []
    for mechanism in compared(runs):
        if reason := refusal(runs, mechanism):
            said.append(f"{mechanism.name} was refused on this machine ({reason}).")
        elif cells.select(runs, arm=mechanism.arm).empty:
            said.append(f"{mechanism.name} was not measured in a valid cell.")
    few = [measure.said for measure in MEASURES if _too_few(runs, measure)]
    return [*said, f"Cells of {text.listed(few)} hold too few requests to tell a p50."] if few else said


def _too_few(runs: store.Runs, measure: Measure) -> bool:
    """Whether it was measured, but in no cell with enough requests for a quantile."""
    chosen = _cells(runs, measure)
    return bool(len(chosen)) and _medians(runs, chosen, [measure.by]).empty


def rules_answer(runs: store.Runs) -> str:
    """What each extra rule adds, and whether that is what the kernel's design predicts; "" if nothing was measured."""
    table = slopes(runs)
    if table.empty:
        return ""
    said = [_added(measure, table) for measure in SWEEPS.values()]
    kept = table[(table["measure"] == KEPT.name) & (table["reading"].isin(text.CLEAR))]
    rule = (
        "Rules that are asked once a flow should cost a kept connection nothing, rules asked for each packet something"
    )
    if kept.empty:
        said.append(f"{rule}: these blocks decide it for no mechanism.")
    else:
        right, wrong = (text.listed(list(kept["mechanism"][kept["as expected"] == each])) for each in ("yes", "NO"))
        rest = text.listed(
            [each for each in table["mechanism"][table["measure"] == KEPT.name] if each not in set(kept["mechanism"])]
        )
        told = [f"it is so with {right}"] * bool(right) + [f"it is not so with {wrong}"] * bool(wrong)
        said.append(f"{rule}: {'; '.join([*told, *[f'not resolved with {rest}'] * bool(rest)])}.")
    return " ".join(each for each in said if each)


def _added(measure: Measure, table: pd.DataFrame) -> str:
    rows = table[table["measure"] == measure.name].to_dict("records")
    if not rows:
        return ""
    clear = [f"{row['per rule'].lstrip('+')} with {row['mechanism']}" for row in rows if row["reading"] in text.CLEAR]
    quiet = [row["mechanism"] for row in rows if row["reading"] not in text.CLEAR]
    opening = f"What each extra rule that matches nothing adds to {measure.said} is"
    if not clear:
        return f"{opening} not resolved."
    rest = f"; with {text.listed(quiet)} it is not resolved" if quiet else ""
    return f"{opening} {text.listed(clear)}{rest}."


def counts_answer(runs: store.Runs) -> str:
    """Whether the counters of each mechanism agree with the client; "" if there is nothing to count."""
    table = counts(runs)
    if table.empty:
        return ""
    wrong = list(dict.fromkeys(table[table["agree"] != "yes"]["mechanism"]))
    if wrong:
        return f"Counters disagree with the client's own counts with {text.listed(wrong)}."
    return "The counters of every mechanism agree with the client's own counts in every cell."
