"""The self-test of the load generator: the words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import text
from meshdns.analysis.gates import AMBER, GREEN, MISSED, RED, STATED, UNKNOWN, UNMEASURED
from meshdns.core import units
from meshdns.studies.calibration.conservation import BLOCKS
from meshdns.studies.calibration.tables import checks

Values = Mapping[str, Any]
WORDS = text.Words(
    headings={
        "against_agent": "against agent, block",
        "littles_residual": "Little's residual",
        "generator": "load generator",
        **{f"blocks_{n}_us": f"{n} blocks, µs" for n in BLOCKS},
    }
)


class _Units(Formatter):
    """Fills a template: the format of a number is its unit, that of an interval the unit with a sign where it is one of
    a difference."""

    forms: Mapping[str, Callable[[Any], str]] = {
        "n": units.number,
        "ns": lambda value: units.duration(value, "ns"),
        "µs": lambda value: units.duration(value, "µs"),
        "time": units.duration,
        "/s": units.rate,
        "%": units.percent,
        "+%": lambda value: units.percent(value, signed=True),
        "±": lambda value: text.interval(value, signed=True),
        "± µs": text.microseconds,
        "+± µs": lambda value: units.interval(value, "µs", signed=True),
        "share": text.percent,
        "listed": ", ".join,
        "×": lambda pairs: ", ".join(f"{many} × {what}" for many, what in pairs),
    }

    def format_field(self, value: Any, format_spec: str) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return text.ABSENT
        return self.forms[format_spec](value) if format_spec in self.forms else super().format_field(value, format_spec)


_FILLED = _Units()


@dataclass(frozen=True)
class _Said:
    """Templates of a line, filled with what was found."""

    item: str
    measured: str = ""
    gate: str = ""
    note: str | Callable[[Values], str] = ""
    ungated: str = "none"  # the gate of what is only stated


def _lateness(values: Values) -> str:
    """Whether late starts come from the client's own work or from a CPU that was taken away."""
    if not values["over"]:
        return "{requests} requests, all cells"
    return (
        "{requests} requests, all cells; {over} over 1 ms late, {behind} of them within {behind_ns:µs} of another; the "
        "idle client lost its CPU for {stood_ns:time}"
    )


def _work(values: Values) -> str:
    works = ", ".join(f"{units.duration(float(each), 'µs')} ({name})" for name, each in values["works"].items())
    return f"{{steps}} steps; worst: {{where}}; W, the agent's own work between requests of plain: {works}"


def _planned(values: Values) -> str:
    if not (planned_hz := values["planned_hz"]):
        return ""
    return f"{units.number(values['rate'].estimate / planned_hz)} times the highest planned, {{planned_hz:/s}}"


def _laws(values: Values) -> str:
    """What Little's law says of both, in one way for both."""
    told = ", ".join(f"{who} {_FILLED.format('{0:+%}', each)}" for who, each in values["idle"].items())
    different = "; not both keep in flight what was asked, so that the p50s are of different loads"
    return f"Little's residual: {told}{'' if values['lawful'] else different}"


def _differing(what: str) -> _Said:
    return _Said(
        f"conservation: {what}",
        "{off} of {cells} cells differ, by {by:.0f} in all",
        "residual 0 in every cell, rejected ones too",
        lambda values: "{trusted} of them in cells that count" if values["off"] else "",
    )


_MATCHED = ("{share:%}", "at least {limit:%}", "of {requests} requests")
_BIAS = ("p50 {p50:+± µs}, p99 {p99:µs}", "p50 within {limit:µs}, interval too", "{requests} requests")
_GATE = "p99 under {limit:%} of the median latency at {gate_hz:/s}"
_NOISE_GATE = "zero inside the interval, which is within {limit:%}"
_OTHERS_GATE = "p50 within {limit:%} of the agent's, interval too; both keep Little's law"
_SAID = {
    "clock_step": _Said("clock: step", "{step:ns}", "at most {limit_us:g} µs"),
    "clock_cost": _Said("clock: cost of a reading, p50 / p99", "{p50:n} / {p99:n} ns", "p50 at most {limit_us:g} µs"),
    "clock_backwards": _Said("clock: steps backwards", "{steps:g}", "0"),
    "clock_stolen": _Said(
        "clock: time taken by others", "{share:%}", "at most {limit:%}",
        "gaps over 50 µs in a spin of one second before the first block, worst run; touches tails, not medians",
    ),
    "send_lag": _Said(
        "send lag: {kind}, {connection}, {arrival} {rate_hz:/s}",
        "p50 {p50:µs}, p99 {p99:µs}, median latency {latency:µs}", _GATE, _lateness, "none at this rate",
    ),
    "send_lag_gate": _Said("send lag at {gate_hz:/s}", "", _GATE),
    "dns_bias_matched": _Said("bias of the DNS phase: matched to packets", *_MATCHED),
    "dns_bias": _Said("bias of the DNS phase", *_BIAS),
    "total_bias_matched": _Said("bias of the request total: matched to packets", *_MATCHED),
    "total_bias": _Said("bias of the request total", *_BIAS),
    "linearity": _Said(
        "linearity: slope", "{slope.estimate:.4f} [{slope.low:.4f}, {slope.high:.4f}]",
        "slope in [{limits[0]}, {limits[1]}], interval too", lambda values: text.blocks(values["slope"].n),
    ),
    "linearity_intercept": _Said("linearity: intercept", "{intercept:± µs}", ungated="none: the round trip"),
    "linearity_residual": _Said("linearity: largest residual", "{residual:n} µs", "at most {limit:n} µs"),
    "conservation_dns": _differing("DNS queries"),
    "conservation_servers": _differing("requests at the servers"),
    "conservation_rejected": _Said(
        "conservation: cells rejected for it", "{refused} of {cells}", "at most {limit:%}",
        "counters that disagree with the client's own count; left out of every number",
    ),
    "little_closed": _Said(
        "Little's law, closed loop", "median {median:%}, worst {worst:+%}",
        "X·(R + W) = 1 within {limit:%} in every step, W at most {work:time}", _work,
    ),
    "little_open": _Said(
        "Little's law, open loop", "{residual:+%}", "residual under {limit:%}",
        "all {cells} cells together, without the first and last tenth of each; fails where work piles up",
    ),
    "additivity": _Said(
        "additivity: phases and total", "0 ns", "",
        "so the parts of a bar are the whole; that the whole is right is what the bias against packets says",
        "none: shared instants",
    ),
    "noise_floors": _Said("A/A: noise floor", "", _NOISE_GATE),
    "noise_floor": _Said(
        "A/A, {experiment}: noise floor", "floor {floor.absolute:time} ({floor.relative:%})", _NOISE_GATE,
        lambda values: f"plain-aa minus plain {{found:±}}, {text.blocks(values['found'].n)}",
    ),
    "false_positives": _Said(
        "A/A: false positives", "{clear} of {compared} comparisons differ, {expected:n} expected by chance",
        "at most {most}, as chance has it in 19 of 20 runs",
        "every kind of lookup, request and delay that both equal arms were asked",
    ),
    "precision": _Said(
        "precision of p50 differences: {experiment}", "widest {widest:%}, middle {middle:%}",
        "half-width at most {limit:%} of the slower p50",
        "{wide} of {pairs} pairs of arms wider; widest: {names[0]} and {names[1]}; of the faster p50 "
        "{most_of_faster:%} at most, middle {middle_of_faster:%}",
    ),
    "rate": _Said(
        "maximum rate, {kind}", "{rate.estimate:/s} [{rate.low:n}, {rate.high:n}]",
        "at least {limit:g} times any planned rate, interval too", _planned, "none: no rate is planned",
    ),
    "generator": _Said(
        "other load generators: {generator} ({kind})",
        "p50 {p50:± µs}, {against:share} against the agent", _OTHERS_GATE, _laws,
    ),
    "generators": _Said("other load generators", "", _OTHERS_GATE),
    "observer": _Said(
        "observer: packet capture", "{found.absolute:±}, {found.relative:share}", "", "{reading}",
        "none: capture is off in what is compared",
    ),
    "cpu": _Said("environment: CPU", "{cpus:×}"),
    "governor": _Said(
        "environment: governor", "{governors:listed}", "performance", ungated="none: the machine tells of none"
    ),
    "clock_source": _Said("environment: clock source", "{sources:listed}"),
    "steal": _Said("environment: steal time", "{share:%}", "at most {limit_percent:g} %"),
    "machines": _Said(
        "environment: machines", "{machines}", "1",
        "the sizes of times and of differences do not carry over from one machine to another", "none: one run",
    ),
    "invalid": _Said("invalid cells", "{cells} of {total}", "at most {limit_percent:g} %, each with its reason"),
}  # fmt: skip


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """The checks as people read them: what was measured, and the gate that it must pass."""
    rows = []
    for row in table.to_dict("records"):
        said, values, known = _SAID.get(row["item"], _Said(row["item"])), row["values"], row["verdict"] != UNMEASURED
        gate = said.ungated if row["verdict"] == STATED else said.gate
        note = said.note if isinstance(said.note, str) or not known else said.note(values)
        rows.append(
            {
                "item": _FILLED.vformat(said.item, (), values),
                "measured": _FILLED.vformat(said.measured, (), values) if known else text.ABSENT,
                "gate": _FILLED.vformat(gate, (), values),
                "verdict": row["verdict"],
                "note": _FILLED.vformat(str(note), (), values) if known else "",
            }
        )
    return pd.DataFrame(rows)


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    return [answer(lines(checks(runs)))]


def answer(table: pd.DataFrame) -> str:
    """Whether the load generator can be trusted, and where not."""
    counts = table["verdict"].value_counts()
    found = {each: [str(item) for item in table["item"][table["verdict"] == each]] for each in counts.index}
    red, unmeasured = found.get(RED, []), len(found.get(UNMEASURED, []))
    gated = len(table) - int(counts.get(STATED, 0)) - unmeasured
    head = f"{int(counts.get(GREEN, 0))} of {gated} checks are green"
    opening = "As far as it can be told" if UNKNOWN in found else "Yes"
    said = [f"{opening}: {head}." if not red else f"Not everywhere: {head}, and red are {'; '.join(red)}."]
    for verdict, label in ((AMBER, "With care"), (MISSED, "Bars missed"), (UNKNOWN, "Cannot be told")):
        if items := found.get(verdict):
            said.append(f"{label}: {'; '.join(items)}.")
    if unmeasured:
        said.append(f"Not measured: {unmeasured}.")
    return " ".join(said)
