"""What a name resolves to, how fast, and how many queries that costs: the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, looks, stats, text
from meshdns.core import units
from meshdns.studies.names import conformance, tables
from meshdns.studies.names.tables import BASE, MODE1, MODE2, MODE2_ENVOY, NAME, TWIN, aaaa

WORDS = text.Words(
    headings={
        "qtype": "record type",
        "mode2_minus_plain": "mode 2 minus plain",
        "at_cluster_dns": "at cluster DNS",
        "client_per_lookup": "client, per lookup",
        "cluster_dns_per_lookup": "cluster DNS, per lookup",
        "agent": "Istio's agent",
    },
    values={"agree": {False: "NO"}},
    left_out=f"Delays are compared between {BASE} and {MODE2}.",
)


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    named = ("fqdn", "external")
    inside, outside = (
        break_even_answer(tables.delays(runs, kind), tables.break_even(runs, kind), kind) for kind in named
    )
    counted = [queries_answer(tables.queries(runs)), aaaa_answer(tables.return_codes(runs)), conformance_answer(runs)]
    return [answer(runs), inside, external_answer(tables.by_name(runs)), outside, *counted]


def answer(runs: store.Runs) -> str:
    """How fast each arm answers a name of the cluster, beside `plain`."""
    rows = {row["arm"]: row for row in tables.by_arm(runs).to_dict("records")}
    if BASE not in rows:
        return "No valid lookups without a mesh were measured, so there is nothing to compare with."
    base = rows[BASE]
    opening = f"Without a mesh a cluster name is answered in {text.interval(base['p50'])}"
    order = [arm for arm in dict.fromkeys([*_LABELS, *rows]) if arm in rows.keys() - {BASE, TWIN}]
    said = [_arm_sentence(arm, rows[arm]) for arm in order]
    said.insert(1, f"{opening} (p50, {text.blocks(base['blocks'])}).")  # behind what is compared with it
    return " ".join(said)


_LABELS = {MODE2: "Mode 2", MODE2_ENVOY: "Mode 2 by Envoy's own DNS filter", MODE1: "Mode 1"}


def _arm_sentence(arm: str, row: dict[Any, Any]) -> str:
    opening = f"{_LABELS.get(arm, arm)} answers a cluster name in {text.interval(row['p50'])}"
    difference, verdict = row["p50_against_plain"], row["reading"]
    if verdict in text.CLEAR:
        return f"{opening}, {text.size(difference)} than without a mesh ({text.blocks(difference.absolute.n)})."
    return f"{opening}: the difference from no mesh is {verdict}."


def queries_answer(table: pd.DataFrame) -> str:
    """Whether the three counts agree, and what mode 2 keeps from the cluster DNS."""
    total, wrong = len(table), int((table["residual"] != 0).sum())
    agree = f"Client, DNS proxy and cluster DNS counted the same queries in all {total} combinations."
    if wrong:
        agree = f"The counts of client, DNS proxy and cluster DNS disagree in {wrong} of {total} combinations."
    return " ".join([agree, *_per_lookup(table)])


def _per_lookup(table: pd.DataFrame) -> list[str]:
    """What reaches the cluster DNS in each arm, as a mean over the kinds of lookup that all arms made.

    Each kind counts alike: some arms make one kind more often, because another plan asks it of them too.
    """
    asked = table[(table["lookups"] > 0) & (table["arm"] != TWIN)]
    whole = asked.pivot_table(index=NAME, columns="arm", values="cluster_dns_per_lookup", observed=True).dropna()
    if whole.empty:
        return []
    means = text.listed([f"{units.number(whole[arm].mean())} in {arm}" for arm in looks.of(table).held(whole.columns)])
    kinds = f"the {len(whole)} kinds of lookup" if len(whole) > 1 else "the one kind of lookup"
    return [f"Queries that reach the cluster DNS per lookup, as a mean over {kinds} that all arms made: {means}."]


def aaaa_answer(codes: pd.DataFrame) -> str:
    """Whether a name without that record type is answered alike."""
    plain = aaaa(codes, BASE)
    seen = looks.of(codes)
    proxied = [arm for arm in seen.held(codes["arm"]) if seen.pod(arm).dns_proxy] if len(codes) else []
    others = {arm: answer for arm in proxied if (answer := aaaa(codes, arm))}
    if not plain or not others:
        return "AAAA queries for an A-only name were not measured with and without mode 2."
    if set(others.values()) == {plain}:
        return f"An AAAA query for an A-only name gets {plain} with and without mode 2."
    said = " and ".join(f"{answer} in {arm}" for arm, answer in others.items())
    return f"An AAAA query for an A-only name gets {plain} without a mesh, {said}."


def break_even_answer(table: pd.DataFrame, found: stats.BreakEven | None, name_kind: str = "fqdn") -> str:
    """At which measured delays of the cluster DNS mode 2 is ahead, by the readings of the table of delays.

    The line through the delays adds from where, only where it carries that.
    """
    name = "a cluster name" if name_kind == "fqdn" else "an external name"
    rows = table[table["blocks"] > 0].to_dict("records")
    if not rows:
        return f"No delay sweep was measured for {name}."
    by_reading = text.grouped((row["reading"], row["delay_ms"]) for row in rows)
    known = {"less": "sooner than plain", "more": "later than plain"}
    told = [f"{known[each]} at {_delayed(by_reading[each])}" for each in known if each in by_reading]
    rest = [f"at {_delayed(at)} the difference is {each}" for each, at in by_reading.items() if each not in known]
    opening = f"mode 2 answers {name} {text.listed(told)}" if told else f"for {name} {rest.pop(0)}"
    said = f"With delays added to the answers of the cluster DNS, {'; '.join([opening, *rest])}"
    if (delay := tables.crossing(table, found)) is not None:
        span = f"{units.number(delay.estimate)} ms [{units.number(delay.low)}, {units.number(delay.high)}]"
        said += f"; by the line through all delays both cost the same at {span}"
    first = rows[0]
    levels = f"it takes {text.interval(first[MODE2])}, plain {text.interval(first[BASE])}"
    said += f". At {_delayed([first['delay_ms']])} {levels}"
    return f"{said} ({text.blocks(min(row['blocks'] for row in rows))})."


def _delayed(delays: Sequence[float]) -> str:
    return f"{text.listed([f'{each:g}' for each in delays])} ms"


def external_answer(table: pd.DataFrame) -> str:
    """What mode 2 makes of names that its proxy does not know, levels first; "" if that was not measured."""
    said = [
        f"{_ASKED_BY[row['lookup']]} ({row['qtype']}, ndots {row['ndots']}), {text.interval(base)} without a mesh and "
        f"{text.interval(row['p50'])} in mode 2 ({_told(row)})"
        for row in table.to_dict("records")
        if row["arm"] == MODE2 and row["name_kind"] == "external" and row["qtype"] != "AAAA" and row["p50"].n
        for base in [_level(table, row, BASE)]
        if base is not None
    ]
    return f"An external name takes, {'; '.join(said)}." if said else ""


_ASKED_BY = {"wire": "asked straight on the socket", "getaddrinfo": "through the C library"}


def _told(row: dict[Any, Any]) -> str:
    read = str(row["reading"])
    return text.size(row["p50_against_plain"]) if read in text.CLEAR else f"the difference is {read}"


def _level(table: pd.DataFrame, row: dict[Any, Any], arm: str) -> stats.Interval | None:
    """The p50 of this kind of lookup in another arm."""
    same = cells.rows(table, **{name: row[name] for name in NAME}, arm=arm)
    return same[0]["p50"] if same and same[0]["p50"].n else None


def conformance_answer(runs: store.Runs) -> str:
    """How many of the behaviours of Istio's agent each proxy shows."""
    total, shown = conformance.agreeing(runs)
    if not shown:
        return "How the DNS proxies differ from Istio's agent was not asked in these runs."
    said = text.listed([f"{arm} has {count}" for arm, count in shown.items()])
    return f"Of {total} behaviours of Istio's agent {said}; the table of behaviours lists the others."
