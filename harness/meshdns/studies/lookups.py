"""Notebook 01: what a name resolves to, how fast, and how many queries that costs.

Latency is counted from the due time. Arms are compared with `plain` in the same block; what `plain` and its twin
`plain-aa` differ by is the noise floor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import absent, cells, looks, stats, text
from meshdns.core import units

# Arms that sentences and claims compare; tables have every arm. Mode 2 is what Istio does: its agent's proxy.
BASE, TWIN, MODE1, MODE2_ENVOY, MODE2 = "plain", "plain-aa", "mode1", "mode2-envoy", "mode2-agent"
PROXIED = (MODE2_ENVOY, MODE2)
NAME = ["lookup", "name_kind", "qtype", "ndots"]
RCODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
COUNTERS = {  # of queries: sent by the client, received by the DNS proxy, sent on by it, received by the cluster DNS
    "client": "pod/rule/dns_client",
    "proxy": "pod/dnsproxy/queries",
    "upstream": "pod/rule/dns_proxy",
    "cluster": "dnsdist/from_pod",
}


@cells.once
def by_arm(runs: store.Runs) -> pd.DataFrame:
    """A row per arm: p50, p90, p99 and the difference of p50 from `plain`."""
    chosen = cells.select(runs, "lookup")
    medians = cells.matrix(cells.per_cell(runs, chosen, "from due"), ["arm"])
    tails = {p: cells.matrix(cells.per_cell(runs, chosen, "from due", p), ["arm"]) for p in (0.9, 0.99)}
    over_all = {p: cells.pooled(runs, chosen, "arm", "from due", p) for p in tails}
    floor = cells.noise_floor(medians, BASE, TWIN)
    rows: list[dict[str, Any]] = []
    for arm in looks.of_runs(runs).held(medians.columns):
        difference = None if arm == BASE else cells.paired(medians, BASE, arm)
        rows.append(
            {
                "arm": arm,
                "blocks": len(cells.column(medians, arm)),
                "p50": cells.interval(medians, arm),
                "p90": tail(cells.interval(tails[0.9], arm), over_all[0.9].get(arm)),
                "p99": tail(cells.interval(tails[0.99], arm), over_all[0.99].get(arm)),
                "p50 against plain": difference,
                "reading": _against_base(arm, difference, floor),
                "values": cells.column(medians, arm),
            }
        )
    return absent.of(pd.DataFrame(rows), runs, "lookup")


def _against_base(arm: str, found: stats.Difference | None, noise: stats.NoiseFloor | None) -> str:
    if arm == BASE:
        return "the baseline"
    return text.TWIN if arm == TWIN else text.reading(found, noise)


def tail(within: stats.Interval, over_all: float | None) -> str:
    """The tail over blocks where each block has enough samples, else over all requests, which has no interval."""
    if within.n:
        return text.microseconds(within)
    return text.ABSENT if over_all is None else f"{units.duration(over_all, 'µs')} (blocks pooled)"


def floor(runs: store.Runs, experiment: str = "lookup") -> stats.NoiseFloor | None:
    """What equal arms differ by at p50."""
    chosen = cells.select(runs, experiment)
    return cells.noise_floor(cells.matrix(cells.per_cell(runs, chosen, "from due"), ["arm"]), BASE, TWIN)


def difference(runs: store.Runs, a: str, b: str) -> stats.Difference | None:
    """Arm b minus arm a at p50 of the `lookup` experiment."""
    chosen = cells.select(runs, "lookup")
    return cells.paired(cells.matrix(cells.per_cell(runs, chosen, "from due"), ["arm"]), a, b)


@cells.once
def by_name(runs: store.Runs) -> pd.DataFrame:
    """A row per kind of lookup, name, record type, ndots and arm: p50 and the difference from `plain`."""
    measured = cells.per_cell(runs, cells.select(runs, "names"), "from due")
    medians = cells.matrix(measured, [*NAME, "arm"])
    rows: list[dict[str, Any]] = []
    for level in map(tuple, medians.columns):
        *name, arm = level
        against = None if arm == BASE else cells.paired(medians, (*name, BASE), level)
        noise = cells.noise_floor(medians, (*name, BASE), (*name, TWIN))
        rows.append(
            dict(zip([*NAME, "arm"], level, strict=True))
            | {
                "blocks": len(cells.column(medians, level)),
                "p50": cells.interval(medians, level),
                "p50 against plain": against,
                "reading": _against_base(arm, against, noise),
                "values": cells.column(medians, level),
            }
        )
    return _ordered(absent.of(pd.DataFrame(rows), runs, "names"))


def queries(runs: store.Runs, *experiments: str) -> pd.DataFrame:
    """Queries counted at client, DNS proxy and cluster DNS: exact sums over all valid cells, and what is left over."""
    chosen = cells.select(runs, *(experiments or ("lookup", "names")), kind="lookup", tool="agent")
    counted = chosen.assign(
        lookups=cells.asked(runs, chosen),
        **{name: cells.counter(chosen, counter) for name, counter in COUNTERS.items()},
    )
    sums = ["lookups", *COUNTERS]
    table = counted.groupby([*NAME, "arm"], observed=True)[sums].sum().astype(int).reset_index()
    seen = looks.of_runs(runs)
    proxied = np.array([seen.pod(str(arm)).dns_proxy for arm in table["arm"]], dtype=bool)
    counts = {name: table[name].to_numpy(dtype=float) for name in COUNTERS}
    left_over = disagreement(counts, proxied).astype(int)
    out = table.rename(
        columns={"client": "at client", "proxy": "at proxy", "upstream": "by proxy", "cluster": "at cluster DNS"}
    )
    out["at proxy"] = [str(n) if p else text.ABSENT for n, p in zip(out["at proxy"], proxied, strict=True)]
    out["client, per lookup"] = table["client"] / table["lookups"].clip(lower=1)
    out["cluster DNS, per lookup"] = table["cluster"] / table["lookups"].clip(lower=1)
    out["residual"] = left_over
    out["agree"] = np.where(left_over == 0, "yes", "NO")
    return _ordered(absent.of(out, runs, *(experiments or ("lookup", "names"))))


def disagreement(counts: Mapping[str, cells.Values], proxied: NDArray[np.bool_]) -> cells.Values:
    """By how many queries counts differ at the cluster DNS and, where there is one (`proxied`), at the DNS proxy."""
    at_cluster = np.abs(counts["cluster"] - counts["upstream"] - np.where(proxied, 0, counts["client"]))
    return np.asarray(at_cluster + np.where(proxied, np.abs(counts["proxy"] - counts["client"]), 0), dtype=float)


def return_codes(runs: store.Runs) -> pd.DataFrame:
    """What wire lookups were answered, in requests: per name, record type and arm."""
    chosen = cells.select(runs, "names", lookup="wire")
    rows, position = cells.requests_of(runs, chosen)
    codes, has_address = rows["rcode"].to_numpy(), (rows["address"] != "").to_numpy()
    named = np.array([RCODES.get(code, f"rcode {code}") for code in range(-1, 24)], dtype=object)[codes.astype(int) + 1]
    answers = np.where(codes == 0, np.where(has_address, "address", "NODATA"), named)
    levels = chosen[["name_kind", "qtype", "arm"]].iloc[position].reset_index(drop=True)
    counted = levels.assign(answer=answers).value_counts(["name_kind", "qtype", "arm", "answer"])
    table = counted.unstack(fill_value=0).reset_index().rename_axis(columns=None)
    return _ordered(absent.of(table, runs, "names"))


def aaaa(codes: pd.DataFrame, arm: str) -> str:
    """What an AAAA query for a name of the cluster that has only an A record mostly gets in this arm; "" if unknown."""
    rows = codes[(codes["name_kind"] == "fqdn") & (codes["qtype"] == "AAAA") & (codes["arm"] == arm)]
    answers = rows.drop(columns=["name_kind", "qtype", "arm"]).sum()
    return str(answers.idxmax()) if len(rows) and answers.sum() else ""


def delays(runs: store.Runs, name_kind: str = "fqdn") -> pd.DataFrame:
    """A row per delay of the cluster DNS's answers: p50 of both arms, mode 2 minus plain, and how that reads."""
    medians = _delay_medians(runs, name_kind)
    noise = _delay_floor(medians)
    rows: list[dict[str, Any]] = []
    for delay in sorted({level[0] for level in medians.columns}):
        both = [cells.interval(medians, (delay, arm)) for arm in (BASE, MODE2)]
        pair = medians.reindex(columns=[(delay, BASE), (delay, MODE2)]).dropna()
        found = cells.paired(medians, (delay, BASE), (delay, MODE2))
        rows.append(
            {
                "delay, ms": float(delay),
                "blocks": len(pair),
                BASE: both[0],
                MODE2: both[1],
                "mode 2 minus plain": found,
                "reading": text.reading(found, noise),
                "values": (pair.iloc[:, 1] - pair.iloc[:, 0]).to_numpy(dtype=float),
            }
        )
    columns = ["delay, ms", "blocks", BASE, MODE2, "mode 2 minus plain", "reading", "values"]
    table = absent.of(pd.DataFrame(rows, columns=columns), runs, "delay")
    held = looks.of_runs(runs).held(cells.select(runs, "delay", name_kind=name_kind)["arm"])
    others = [arm for arm in held if arm not in (BASE, TWIN, MODE2)]
    return absent.leaving(table, others, f"Delays are compared between {BASE} and {MODE2}.")


def break_even(runs: store.Runs, name_kind: str = "fqdn") -> stats.BreakEven | None:
    """The delay (ms) at which mode 2 costs what plain costs; None without two delays in a block."""
    medians = _delay_medians(runs, name_kind)
    pairs = delays(runs, name_kind).set_index("delay, ms")["blocks"]
    found = sorted(pairs.index[pairs >= pairs.max() / 2])  # one bad delay must not cost the blocks of all others
    whole = medians.reindex(columns=[(delay, arm) for delay in found for arm in (BASE, MODE2)]).dropna()
    if len(found) < 2 or not len(whole):
        return None
    values = whole.to_numpy(dtype=float)
    return stats.break_even(np.array(found, dtype=float), values[:, 1::2] - values[:, 0::2])


def _delay_floor(medians: pd.DataFrame) -> stats.NoiseFloor | None:
    """Of the delays at which the twin was measured, the largest: an added delay adds noise of its own."""
    delays = {level[0] for level in medians.columns}
    floors = [cells.noise_floor(medians, (delay, BASE), (delay, TWIN)) for delay in delays]
    return max((each for each in floors if each is not None), key=lambda each: each.absolute, default=None)


def _delay_medians(runs: store.Runs, name_kind: str) -> pd.DataFrame:
    chosen = cells.select(runs, "delay", name_kind=name_kind)
    return cells.matrix(cells.per_cell(runs, chosen, "from due"), ["dns_delay_ms", "arm"])


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order in which people think of names, not of the alphabet."""
    order = {
        "lookup": ["wire", "getaddrinfo"],
        "name_kind": ["fqdn", "short", "external", "absent"],
        "qtype": ["A", "AAAA", "A+AAAA"],
    }
    order["arm"] = looks.of(table).held(table["arm"]) if len(table) else []
    ranks = {
        name: table[name].map(functools.partial(looks.place, levels))
        for name, levels in order.items()
        if name in table.columns
    }
    if not ranks or table.empty:
        return table
    ndots = {"ndots": -table["ndots"]} if "ndots" in table.columns else {}
    keys = pd.DataFrame(ranks | ndots)[[name for name in [*NAME, "arm"] if name in ranks | ndots]]
    return table.loc[keys.sort_values(list(keys.columns), kind="stable").index].reset_index(drop=True)


# --- sentences ---


def answer(runs: store.Runs) -> str:
    """How fast each arm answers a name of the cluster, beside `plain`."""
    table = by_arm(runs)
    rows = {row["arm"]: row for row in table.to_dict("records")}
    if BASE not in rows:
        return "No valid lookups without a mesh were measured, so there is nothing to compare with."
    base = rows[BASE]
    opening = f"Without a mesh a cluster name is answered in {text.interval(base['p50'])}"
    said = [f"{opening} (p50, {text.blocks(base['blocks'])})."]
    order = dict.fromkeys([*(arm for arm in (MODE2, MODE2_ENVOY, MODE1) if arm in rows), *rows])
    said += [_arm_sentence(arm, rows[arm]) for arm in order if arm not in (BASE, TWIN)]
    return " ".join(reversed(said[:2])) + "".join(f" {each}" for each in said[2:])


def _arm_sentence(arm: str, row: dict[Any, Any]) -> str:
    label = {MODE1: "Mode 1", MODE2: "Mode 2", MODE2_ENVOY: "Mode 2 by Envoy's own DNS filter"}.get(arm, arm)
    opening = f"{label} answers a cluster name in {text.interval(row['p50'])}"
    difference, verdict = row["p50 against plain"], row["reading"]
    if verdict in text.CLEAR:
        return f"{opening}, {text.size(difference)} than without a mesh ({text.blocks(difference.absolute.n)})."
    return f"{opening}: the difference from no mesh is {verdict}."


def queries_answer(table: pd.DataFrame) -> str:
    """Whether the three counts agree, and what mode 2 keeps from the cluster DNS."""
    total, wrong = len(table), int((table["residual"] != 0).sum())
    agree = (
        f"Client, DNS proxy and cluster DNS counted the same queries in all {total} combinations"
        if not wrong
        else f"The counts of client, DNS proxy and cluster DNS disagree in {wrong} of {total} combinations"
    )
    return " ".join([f"{agree}.", *_per_lookup(table)])


def _per_lookup(table: pd.DataFrame) -> list[str]:
    """What reaches the cluster DNS in each arm, as a mean over the kinds of lookup that all arms made.

    Each kind counts alike: some arms make one kind more often, because another plan asks it of them too.
    """
    asked = table[(table["lookups"] > 0) & (table["arm"] != TWIN)]
    whole = asked.pivot_table(index=NAME, columns="arm", values="cluster DNS, per lookup", observed=True).dropna()
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
    by_reading: dict[str, list[float]] = {}
    for row in rows:
        by_reading.setdefault(str(row["reading"]), []).append(float(row["delay, ms"]))
    known = {"less": "sooner than plain", "more": "later than plain"}
    told = [f"{known[each]} at {_delayed(by_reading[each])}" for each in known if each in by_reading]
    rest = [f"at {_delayed(at)} the difference is {each}" for each, at in by_reading.items() if each not in known]
    said = "With delays added to the answers of the cluster DNS, "
    said += (
        f"mode 2 answers {name} " + "; ".join([text.listed(told), *rest]) if told else f"for {name} {'; '.join(rest)}"
    )
    if (delay := crossing(table, found)) is not None:
        span = f"{units.number(delay.estimate)} ms [{units.number(delay.low)}, {units.number(delay.high)}]"
        said += f"; by the line through all delays both cost the same at {span}"
    first = rows[0]
    levels = f"it takes {text.interval(first[MODE2])}, plain {text.interval(first[BASE])}"
    said += f". At {_delayed([first['delay, ms']])} {levels}"
    return f"{said} ({text.blocks(min(row['blocks'] for row in rows))})."


def _delayed(delays: Sequence[float]) -> str:
    return f"{text.listed([f'{each:g}' for each in delays])} ms"


def crossing(table: pd.DataFrame, found: stats.BreakEven | None) -> stats.Interval | None:
    """The delay at which both cost the same, where the data carry one; else None.

    It lies among the delays measured, each of which lies on the line within its own interval, and those on either side
    of it read as it says.
    """
    if found is None or found.delay is None or not found.measured or not fits(table, found.line):
        return None
    before, after = ("more", "less") if found.line.slope.estimate < 0 else ("less", "more")
    rows = table[table["blocks"] > 0].to_dict("records")
    outside = [
        (row["reading"], before if row["delay, ms"] < found.delay.low else after)
        for row in rows
        if not found.delay.holds(row["delay, ms"])
    ]
    both_sides = {expected for _, expected in outside} == {before, after}
    return found.delay if both_sides and all(read == expected for read, expected in outside) else None


def fits(table: pd.DataFrame, line: stats.Line) -> bool:
    """Whether every delay measured lies on the line within the interval of its own difference."""
    rows = [row["mode 2 minus plain"].absolute for row in table[table["blocks"] > 0].to_dict("records")]
    if len(rows) != len(line.residuals):
        return False  # a delay that has too few pairs for the line says nothing of it
    off = zip(line.residuals, rows, strict=True)
    return all(abs(residual) <= each.half_width for residual, each in off)


def external_answer(table: pd.DataFrame) -> str:
    """What mode 2 makes of names that its proxy does not know, levels first; "" if that was not measured."""
    said = [
        f"{_asked_by(row)} {text.interval(base)} without a mesh and {text.interval(row['p50'])} in mode 2 "
        f"({_told(row)})"
        for row in table.to_dict("records")
        if row["arm"] == MODE2 and row["name_kind"] == "external" and row["qtype"] != "AAAA" and row["p50"].n
        for base in [_level(table, row, BASE)]
        if base is not None
    ]
    return f"An external name takes, {'; '.join(said)}." if said else ""


def _asked_by(row: dict[Any, Any]) -> str:
    by = "asked straight on the socket" if row["lookup"] == "wire" else "through the C library"
    return f"{by} ({row['qtype']}, ndots {row['ndots']}),"


def _told(row: dict[Any, Any]) -> str:
    read = str(row["reading"])
    return text.size(row["p50 against plain"]) if read in text.CLEAR else f"the difference is {read}"


def _level(table: pd.DataFrame, row: dict[Any, Any], arm: str) -> stats.Interval | None:
    """The p50 of this kind of lookup in another arm."""
    same = (table[NAME] == [row[name] for name in NAME]).all(axis=1) & (table["arm"] == arm)
    found: list[stats.Interval] = list(table["p50"][same])
    return found[0] if found and found[0].n else None
