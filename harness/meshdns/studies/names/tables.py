"""What a name resolves to, how fast, and how many queries that costs: the numbers.

Latency is counted from the due time. Arms are compared with `plain` in the same block; what `plain` and its twin
`plain-aa` differ by is the noise floor.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import absent, cells, looks, stats, text

# Arms that sentences and claims compare; tables have every arm. Mode 2 is what Istio does: its agent's proxy.
BASE, TWIN, MODE1, MODE2_ENVOY, MODE2 = "plain", "plain-aa", "mode1", "mode2-envoy", "mode2-agent"
PROXIED = (MODE2_ENVOY, MODE2)
LOOKUP, NAMES, DELAY = EXPERIMENTS = ("lookup", "names", "delay")
NAME = ["lookup", "name_kind", "qtype", "ndots"]
RCODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
COUNTERS = {  # of queries: sent by the client, received by the DNS proxy, sent on by it, received by the cluster DNS
    "at_client": "pod/rule/dns_client",
    "at_proxy": "pod/dnsproxy/queries",
    "by_proxy": "pod/rule/dns_proxy",
    "at_cluster_dns": "dnsdist/from_pod",
}


@cells.once
def by_arm(runs: store.Runs) -> pd.DataFrame:
    """A row per arm: p50, p90, p99 and the difference of p50 from `plain`."""
    chosen = cells.select(runs, LOOKUP)
    medians = cells.medians(runs, chosen, ["arm"])
    tails = {p: cells.matrix(cells.per_cell(runs, chosen, "from_due", p), ["arm"]) for p in (0.9, 0.99)}
    over_all = {p: cells.pooled(runs, chosen, "arm", "from_due", p) for p in tails}
    floor = cells.noise_floor(medians, BASE, TWIN)
    rows = []
    for arm in looks.of_runs(runs).held(medians.columns):
        difference = None if arm == BASE else cells.paired(medians, BASE, arm)
        rows.append(
            {
                "arm": arm,
                "blocks": len(cells.column(medians, arm)),
                "p50": cells.interval(medians, arm),
                "p90": tail(cells.interval(tails[0.9], arm), over_all[0.9].get(arm)),
                "p99": tail(cells.interval(tails[0.99], arm), over_all[0.99].get(arm)),
                "p50_against_plain": difference,
                "reading": _against_base(arm, difference, floor),
                "values": cells.column(medians, arm),
            }
        )
    return absent.of(pd.DataFrame(rows), runs, LOOKUP)


def _against_base(arm: str, found: stats.Difference | None, noise: stats.NoiseFloor | None) -> str:
    if arm == BASE:
        return text.BASELINE
    return text.TWIN if arm == TWIN else text.reading(found, noise)


def tail(within: stats.Interval, over_all_ns: float | None) -> stats.Interval | stats.Pooled:
    """The tail over blocks where each block has enough samples, else over all requests, which has no interval."""
    return within if within.n else stats.Pooled(np.nan if over_all_ns is None else over_all_ns)


def floor(runs: store.Runs) -> stats.NoiseFloor | None:
    """What equal arms differ by at p50."""
    return cells.noise_floor(cells.medians(runs, cells.select(runs, LOOKUP), ["arm"]), BASE, TWIN)


@cells.once
def by_name(runs: store.Runs) -> pd.DataFrame:
    """A row per kind of lookup, name, record type, ndots and arm: p50 and the difference from `plain`."""
    medians = cells.medians(runs, cells.select(runs, NAMES), [*NAME, "arm"])
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
                "p50_against_plain": against,
                "reading": _against_base(arm, against, noise),
                "values": cells.column(medians, level),
            }
        )
    return _ordered(absent.of(pd.DataFrame(rows), runs, NAMES))


def queries(runs: store.Runs) -> pd.DataFrame:
    """Queries counted at client, DNS proxy and cluster DNS: exact sums over all valid cells, and what is left over."""
    chosen = cells.select(runs, LOOKUP, NAMES, kind="lookup", tool="agent")
    seen = looks.of_runs(runs)
    counted = chosen.assign(
        lookups=cells.asked(runs, chosen),
        **{name: cells.counter(chosen, counter) for name, counter in COUNTERS.items()},
    )
    # A node's own name server stands in the place of a proxy, and says itself what it asked the cluster DNS for.
    by_node = np.array([runs.world.asks_node(seen.pod(str(arm))) for arm in chosen["arm"]], dtype=bool)
    counted["by_proxy"] = np.where(by_node, cells.counter(chosen, "pod/dnsproxy/forwarded"), counted["by_proxy"])
    table = counted.groupby([*NAME, "arm"], observed=True)[["lookups", *COUNTERS]].sum().astype(int).reset_index()
    pods = [seen.pod(str(arm)) for arm in table["arm"]]
    proxied = np.array([pod.dns_proxy or runs.world.asks_node(pod) for pod in pods], dtype=bool)
    left_over = disagreement({name: table[name].to_numpy(dtype=float) for name in COUNTERS}, proxied).astype(int)
    table["at_proxy"] = [int(n) if there else None for n, there in zip(table["at_proxy"], proxied, strict=True)]
    for asked in ("client", "cluster_dns"):
        table[f"{asked}_per_lookup"] = table[f"at_{asked}"] / table["lookups"].clip(lower=1)
    return _ordered(absent.of(table.assign(residual=left_over, agree=left_over == 0), runs, LOOKUP, NAMES))


def disagreement(counts: Mapping[str, cells.Values], proxied: NDArray[np.bool_]) -> cells.Values:
    """By how many queries counts differ at the cluster DNS and, where there is one (`proxied`), at the DNS proxy."""
    client, proxy, upstream, cluster = (counts[name] for name in COUNTERS)
    at_cluster = np.abs(cluster - upstream - np.where(proxied, 0, client))
    return np.asarray(at_cluster + np.where(proxied, np.abs(proxy - client), 0), dtype=float)


def return_codes(runs: store.Runs) -> pd.DataFrame:
    """What wire lookups were answered, in requests: per name, record type and arm."""
    chosen = cells.select(runs, NAMES, lookup="wire")
    rows, position = cells.requests_of(runs, chosen)
    codes, has_address = rows["rcode"].to_numpy(), (rows["address"] != "").to_numpy()
    named = np.array([RCODES.get(code, f"rcode {code}") for code in range(-1, 24)], dtype=object)[codes.astype(int) + 1]
    answers = np.where(codes == 0, np.where(has_address, "address", "NODATA"), named)
    levels = chosen[["name_kind", "qtype", "arm"]].iloc[position].reset_index(drop=True)
    counted = levels.assign(answer=answers).value_counts(["name_kind", "qtype", "arm", "answer"])
    table = counted.unstack(fill_value=0).reset_index().rename_axis(columns=None)
    return _ordered(absent.of(table, runs, NAMES))


def aaaa(codes: pd.DataFrame, arm: str) -> str:
    """What an AAAA query for a name of the cluster that has only an A record mostly gets in this arm; "" if unknown."""
    rows = codes[(codes["name_kind"] == "fqdn") & (codes["qtype"] == "AAAA") & (codes["arm"] == arm)]
    answers = rows.drop(columns=["name_kind", "qtype", "arm"]).sum()
    return str(answers.idxmax()) if len(rows) and answers.sum() else ""


def delays(runs: store.Runs, name_kind: str = "fqdn") -> pd.DataFrame:
    """A row per delay of the cluster DNS's answers: p50 of both arms, mode 2 minus plain, and how that reads."""
    medians, rows = _delay_medians(runs, name_kind), []
    delays = sorted({level[0] for level in medians.columns})
    # Of the delays at which the twin was measured the largest: an added delay adds noise of its own.
    floors = [cells.noise_floor(medians, (delay, BASE), (delay, TWIN)) for delay in delays]
    noise = max((each for each in floors if each is not None), key=lambda each: each.absolute, default=None)
    for delay in delays:
        both = [(delay, BASE), (delay, MODE2)]
        pair, found = medians.reindex(columns=both).dropna(), cells.paired(medians, *both)
        rows.append(
            {
                "delay_ms": float(delay),
                "blocks": len(pair),
                BASE: cells.interval(medians, both[0]),
                MODE2: cells.interval(medians, both[1]),
                "mode2_minus_plain": found,
                "reading": text.reading(found, noise),
                "values": (pair.iloc[:, 1] - pair.iloc[:, 0]).to_numpy(dtype=float),
            }
        )
    columns = ["delay_ms", "blocks", BASE, MODE2, "mode2_minus_plain", "reading", "values"]
    table = absent.of(pd.DataFrame(rows, columns=columns), runs, DELAY)
    held = looks.of_runs(runs).held(cells.select(runs, DELAY, name_kind=name_kind)["arm"])
    return absent.leaving(table, [arm for arm in held if arm not in (BASE, TWIN, MODE2)])


def break_even(runs: store.Runs, name_kind: str = "fqdn") -> stats.BreakEven | None:
    """The delay (ms) at which mode 2 costs what plain costs; None without two delays in a block."""
    medians = _delay_medians(runs, name_kind)
    pairs = delays(runs, name_kind).set_index("delay_ms")["blocks"]
    found = sorted(pairs.index[pairs >= pairs.max() / 2])  # one bad delay must not cost the blocks of all others
    whole = medians.reindex(columns=[(delay, arm) for delay in found for arm in (BASE, MODE2)]).dropna()
    if len(found) < 2 or not len(whole):
        return None
    values = whole.to_numpy(dtype=float)
    return stats.break_even(np.array(found, dtype=float), values[:, 1::2] - values[:, 0::2])


def _delay_medians(runs: store.Runs, name_kind: str) -> pd.DataFrame:
    return cells.medians(runs, cells.select(runs, DELAY, name_kind=name_kind), ["dns_delay_ms", "arm"])


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order in which people think of names, not of the alphabet."""
    if table.empty:
        return table
    orders: dict[str, Iterable[Hashable]] = {
        "lookup": ("wire", "getaddrinfo"),
        "name_kind": ("fqdn", "short", "external", "absent"),
        "qtype": ("A", "AAAA", "A+AAAA"),
        "ndots": sorted(set(table.get("ndots", ())), reverse=True),
        "arm": looks.of(table).held(table["arm"]),
    }
    return looks.ordered(table, {name: order for name, order in orders.items() if name in table})


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
        (row["reading"], before if row["delay_ms"] < found.delay.low else after)
        for row in rows
        if not found.delay.holds(row["delay_ms"])
    ]
    both_sides = {expected for _, expected in outside} == {before, after}
    return found.delay if both_sides and all(read == expected for read, expected in outside) else None


def fits(table: pd.DataFrame, line: stats.Line) -> bool:
    """Whether every delay measured lies on the line within the interval of its own difference."""
    rows = [row["mode2_minus_plain"].absolute for row in table[table["blocks"] > 0].to_dict("records")]
    if len(rows) != len(line.residuals):
        return False  # a delay that has too few pairs for the line says nothing of it
    off = zip(line.residuals, rows, strict=True)
    return all(abs(residual) <= each.half_width for residual, each in off)
