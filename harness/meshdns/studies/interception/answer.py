"""What captures a connection, and whether that matters to it: the words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, stats, text
from meshdns.studies.cost import answer as cost
from meshdns.studies.interception import mechanisms, tables
from meshdns.studies.interception.mechanisms import MEASURES, Measure
from meshdns.studies.interception.tables import AGAINST

_MEASURES = {
    "new": "new connection", "kept": "kept alive", "lookup": "UDP lookup", "inbound_new": "inbound, new",
    "inbound_kept": "inbound, kept",
}  # fmt: skip
_SAID = {
    "new": "a request on a new connection",
    "kept": "a request on a connection kept alive",
    "lookup": "a UDP lookup",
    "inbound_new": "an incoming request on a new connection",
    "inbound_kept": "an incoming request on a kept connection",
}
WORDS = text.Words(
    headings={
        **cost.WORDS.headings,
        **_MEASURES,
        **{f"after_{name}": f"after {said}" for name, said in _MEASURES.items()},
        **{f"{name}_against_iptables": f"{said}, against iptables" for name, said in _MEASURES.items()},
        "p50_against_no_rules": "p50 against no extra rules", "asked": "rules are asked", "more_expected": "expected",
        "outbound_blocks": "outbound, blocks", "inbound_blocks": "inbound, blocks",
    },
    values={
        "measure": _MEASURES,
        "mechanism": {"plain": "nothing (plain)", "tproxy": "TPROXY", "ebpf": "eBPF"},
        "asked": {mechanisms.FLOW: "each flow", mechanisms.PACKET: "each packet"},
        "more_expected": {True: "more", False: "no effect"},
        "as_expected": {False: "NO"},
        "agree": {False: "NO"},
        "counted": {
            "dns_flows_redirected": "DNS flows redirected", "connections_redirected": "connections redirected",
            "at_dns_proxy": "queries at the DNS proxy", "at_server_sidecar": "requests at the server's sidecar",
        },
    },
)  # fmt: skip


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    return [answer(runs), rules_answer(tables.slopes(runs)), counts_answer(tables.counts(runs))]


def _name(mechanism: object) -> str:
    return str(WORDS.value("mechanism", mechanism))


def answer(runs: store.Runs) -> str:
    """Whether the mechanisms differ, measure by measure, and what was not measured."""
    if not mechanisms.experiments(runs):
        return "This run did not compare ways to capture a connection; `meshdns report --plan interception` does."
    table = tables.differences(runs)
    if table.empty:
        nothing = "No valid block has iptables and another mechanism: nothing can be compared."
        return " ".join([nothing, *_lacking(runs)])
    details = [said for measure in MEASURES if (said := _of(measure, table))]
    return " ".join([_headline(table), *_lacking(runs)]) + "\n\n" + " ".join(details)


def _headline(table: pd.DataFrame) -> str:
    clear = table[table["reading"].isin(text.CLEAR)].to_dict("records")
    if not clear:
        return "What the mechanisms differ by is not resolved for any measure."
    matters = text.listed(dict.fromkeys(_SAID[row["measure"]] for row in clear))
    most = max(clear, key=lambda row: abs(row[AGAINST].relative.estimate))
    of = f"{_SAID[most['measure']]} with {_name(most['mechanism'])}"
    return f"It matters to {matters}; the largest difference that is resolved is {text.size(most[AGAINST])}, of {of}."


def _of(measure: Measure, table: pd.DataFrame) -> str:
    rows = cells.rows(table, measure=measure.name)
    if not rows:
        return ""
    blocks, said = max(row["blocks"] for row in rows), _SAID[measure.name]
    opening = said[0].upper() + said[1:]
    if blocks < 2:
        return f"{opening} was measured in one block, which gives no interval."
    told = text.listed([f"{_size(row)} with {_name(row['mechanism'])}" for row in rows])
    return f"{opening}, against iptables: {told} (p50, {text.blocks(blocks)})."


def _size(row: dict[Any, Any]) -> str:
    found: stats.Difference = row[AGAINST]
    if row["reading"] not in text.CLEAR:
        return str(row["reading"])
    return f"{text.size(found)} ({text.interval(found.absolute, signed=True)})"


def _lacking(runs: store.Runs) -> list[str]:
    said = []
    for each in mechanisms.compared(runs):
        if reason := mechanisms.refusal(runs, each):
            said.append(f"{_name(each.name)} was refused on this machine ({reason}).")
        elif cells.select(runs, arm=each.arm).empty:
            said.append(f"{_name(each.name)} was not measured in a valid cell.")
    few = [_SAID[measure.name] for measure in MEASURES if tables.too_few(runs, measure)]
    return [*said, f"Cells of {text.listed(few)} hold too few requests to tell a p50."] if few else said


def rules_answer(table: pd.DataFrame) -> str:
    """What each extra rule adds, and whether that is what the kernel's design predicts; "" if nothing was measured."""
    if table.empty:
        return ""
    said = [_added(measure, table) for measure in mechanisms.SWEEPS.values()]
    kept = cells.rows(table, measure=mechanisms.KEPT.name)
    found = text.grouped((row["as_expected"], _name(row["mechanism"])) for row in kept)
    phrases = {True: "it is so with", False: "it is not so with", None: "not resolved with"}
    told = "; ".join(f"{said} {text.listed(found[each])}" for each, said in phrases.items() if each in found)
    rule = "Rules that are asked once a flow should cost a kept connection nothing, "
    rule += "rules asked for each packet something"
    decided = found.keys() & {True, False}
    said.append(f"{rule}: {told if decided else 'these blocks decide it for no mechanism'}.")
    return " ".join(each for each in said if each)


def _added(measure: Measure, table: pd.DataFrame) -> str:
    rows = cells.rows(table, measure=measure.name)
    if not rows:
        return ""
    told = [(_name(row["mechanism"]), str(row["per_rule"]).lstrip("+"), row["reading"] in text.CLEAR) for row in rows]
    clear = [f"{amount} with {name}" for name, amount, resolved in told if resolved]
    quiet = [name for name, _, resolved in told if not resolved]
    opening = f"What each extra rule that matches nothing adds to {_SAID[measure.name]} is"
    if not clear:
        return f"{opening} not resolved."
    rest = f"; with {text.listed(quiet)} it is not resolved" if quiet else ""
    return f"{opening} {text.listed(clear)}{rest}."


def counts_answer(table: pd.DataFrame) -> str:
    """Whether the counters of each mechanism agree with the client; "" if there is nothing to count."""
    if table.empty:
        return ""
    wrong = list(dict.fromkeys(map(_name, table["mechanism"][~table["agree"]])))
    if wrong:
        return f"Counters disagree with the client's own counts with {text.listed(wrong)}."
    return "The counters of every mechanism agree with the client's own counts in every cell."
