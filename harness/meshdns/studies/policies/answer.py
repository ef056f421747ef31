"""What passing the sidecar buys: the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, gates, looks, text
from meshdns.core import units
from meshdns.studies.policies import deny, external, mtls, tables
from meshdns.studies.policies.tables import NONE, PLAIN, PROMISED, TCP, Row, Rows, meshed, modes

PLAN = "`meshdns report --plan policies`"
WORDS = text.Words(
    headings={
        "attempts": "tries per request",
        "arrived": "at a replica per request",
        "time_outs": "time-outs",
        "promised": f"{100 * PROMISED:.0f} % inside",
        "at_application": "at the application",
        "closed_without_chain": "closed without a chain",
        "mtls_connections": "mutual TLS connections",
        "blocks_with_mtls": "blocks with mutual TLS",
        "in_sidecar": "in the sidecar",
        "late": "served late",
        "late_p50": "served late, p50",
        "connections": "callers",
        "per_connection": "late per kept connection",
        "accepted": "accepted after",
        "first_refused": "first refused after",
        "last_served": "last served after",
        "since_refusal": "served since the first refusal",
        "blocks_refused": "blocks with refusals",
        "pooled": "kept between sidecars",
    },
    values={
        "fault": {NONE: "no fault", "fail30": "503s", "slow": "slow replica", "dead": "dead address"},
        "policy": {NONE: "no policy"},
        "promised": {tables.INSIDE: "yes", tables.OUTSIDE: "NO"},
        "outcome": {mtls.SOME: "some served"},
    },
)
OUTCOMES = [
    "fault", "policy", "arm", "blocks", "requests", "served", "against_plain", "reading", "against_no_policy",
    "attempts", "arrived", *tables.EVENTS,
]  # fmt: skip
LATENCIES = ["fault", "policy", "arm", "served", "p50", "p90", "p99", "p90_against_plain"]
DENIED = [
    "arm", "connections", "pooled", "blocks", "late", "late_p50", "per_connection", "reading", "accepted",
    "first_refused", "last_served", "since_refusal", "refused", "blocks_refused",
]  # fmt: skip
EXTERNAL = [
    "backend", "arm", "blocks", "connections", "answered", "addresses", "right", "wrong", "none", "right_share",
    "answered_by", "requests_made", "in_sidecar", "passed_through",
]  # fmt: skip
_FAULTS = {
    "fail30": "one replica answering 503 to 30 % of its requests",
    "slow": "one replica taking 100 ms more",
    "dead": "one address of four dead",
    "overload": "more requests than the replicas may serve",
}


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    said = [answer(tables.faults(runs)), split_answer(tables.split(runs)), mtls_answer(mtls.table(runs))]
    return [*said, deny_answer(deny.table(runs)), external_answer(external.table(runs))]


def _wrong(fault: str) -> str:
    return _FAULTS.get(fault) or str(WORDS.value("fault", fault))


# --- faults ---


def answer(table: pd.DataFrame) -> str:
    """What a sidecar and its policies buy against each fault."""
    if table.empty:
        return f"What passing a sidecar buys was not measured in these runs; {PLAN} measures it."
    each = [_of(table[table["fault"] == fault]) for fault in dict.fromkeys(table["fault"])]
    return "\n".join([_headline(meshed(table)), "", *(f"- {said}" for said in each if said)])


def _headline(rows: Rows) -> str:
    """The largest gain, of those that all modes measured agree on: with many rows one alone may differ by chance."""
    by_level = text.grouped(((row["fault"], row["policy"]), row) for row in rows)
    clear = [level for level, found in by_level.items() if {row["reading"] for row in found} == {"more"}]
    if not clear:
        return "No policy was seen to serve more requests in every mode than are served without a mesh."
    best = max((row for level in clear for row in by_level[level]), key=_gain)
    alone = [_wrong(fault) for fault, policy in clear if policy == NONE]
    return (
        f"Passing the sidecar buys most against {_wrong(best['fault'])}: {str(best['against_plain']).lstrip('+')} more "
        f"requests are served with {_with(best['policy'])} in {best['arm']} than without a mesh. A sidecar without a "
        f"policy is seen to serve more against {text.listed(alone, 'or') if alone else 'none of the faults'}."
    )


def _gain(row: Row) -> float:
    return float(row["against_plain"].estimate)


def _with(policy: str) -> str:
    return "a sidecar and no policy" if policy == NONE else policy


def _of(table: pd.DataFrame) -> str:
    """One fault: how many are served without a mesh and by which policy more or fewer, and p90 where it is shorter."""
    base = table[(table["arm"] == PLAIN) & (table["policy"] == NONE)].to_dict("records")
    rows = [row for row in meshed(table) if row["against_plain"] is not None]
    if not base or not rows:
        return ""
    said = _wrong(base[0]["fault"])
    opening = f"{said[0].upper()}{said[1:]}: {base[0]['served']} of requests are served without a mesh"
    return "; ".join([opening, *_served(rows), *_shorter(rows, base[0])]) + "."


def _served(rows: Rows) -> list[str]:
    """The policy that serves most, and those that serve clearly fewer."""
    best = _best([row for row in rows if row["reading"] == "more"], _gain, rows)
    fewer = dict.fromkeys(row["policy"] for row in rows if row["reading"] == "fewer")
    said = [_each(best, "served", str)] if best else []
    said += [f"fewer {_each([row for row in rows if row['policy'] == policy], 'served', str)}" for policy in fewer]
    known = [row for row in rows if row["against_plain"].n > 1]
    if said or not known:
        return said or ["one block does not tell what a sidecar changes"]
    widest = max((row["against_plain"] for row in known), key=lambda each: float(each.half_width))
    what = "a sidecar" if {row["policy"] for row in known} == {NONE} else "a policy"
    return [f"what {what} changes is {text.UNRESOLVED} ({widest.span} at the widest)"]


def _shorter(rows: Rows, plain: Row) -> list[str]:
    """The policy under which p90 is shortest, if it is clearly shorter than without a mesh."""
    timed = [row for row in rows if row["p90_against_plain"] is not None]

    def gain(row: Row) -> float:
        return -float(row["p90_against_plain"].absolute.estimate)

    quick = _best([row for row in timed if row["p90_against_plain"].clear and gain(row) > 0], gain, timed)
    before = f"p90 of those served is {text.interval(plain['p90'])} without a mesh"
    return [f"{before}, {_each(quick, 'p90', text.interval)}"] if quick else []


def _best(clear: Rows, gain: Callable[[Row], float], rows: Rows) -> Rows:
    """All rows of that policy, of those with a clear gain, under which arms gain most on average."""
    order = dict.fromkeys(row["policy"] for row in clear)  # of equals the first, which is none at all if it is there
    found = ([row for row in rows if row["policy"] == policy] for policy in order)
    return max(found, key=lambda mine: float(np.mean([gain(row) for row in mine])), default=[])


def _each(rows: Rows, column: str, said: Callable[[Any], str]) -> str:
    """`with retries 99.9 % [99.7, 100.0] in mode1 and …`."""
    return f"with {_with(rows[0]['policy'])} " + text.listed(f"{said(row[column])} in {row['arm']}" for row in rows)


# --- traffic split ---


def split_answer(table: pd.DataFrame) -> str:
    """What share v2 got; "" if nothing was measured."""
    if table.empty:
        return ""
    divides = (table["policy"] == tables.SPLIT) & table["arm"].isin(modes(table))
    said, rest = (
        text.listed(f"{row['share_of_v2']} in {row['arm']}" for row in table[its].to_dict("records"))
        for its in (divides, ~divides)
    )
    promised = f"{100 * PROMISED:.0f} %"
    if not said:
        return f"A split of the traffic ({promised} to v2) was not measured where it is in force."
    inside, outside, vague = (
        text.listed(table["arm"][divides & (table["promised"] == each)])
        for each in (tables.INSIDE, tables.OUTSIDE, gates.UNKNOWN)
    )
    if inside or outside:
        tail = f"the promised {promised} lies inside the interval in {inside or 'no arm'}"
        tail += f" and outside it in {outside}" if outside else ""
        tail += f"; in {vague} the interval holds an even third too" if vague else ""
    else:
        why = f"the interval in {vague} holds an even third too and" if vague else "one block"
        tail = f"{why} does not tell whether that is the promised {promised}"
    tail += f". Without a sidecar that divides v2 gets {rest}" if rest else ""
    return f"Of traffic split 90/10, v2 got {said}: {tail}."


# --- mutual TLS ---


def fate(row: Row) -> tuple[str, str]:
    """What became of the calls, and what came in encrypted of what was served and what refused the rest."""
    means = []
    if row["served"]:
        seen = row["blocks_with_mtls"]
        some = f"mutual TLS in {seen} of {row['blocks']} blocks" if seen else "no TLS handshake"
        means.append("mutual TLS" if seen == row["blocks"] else some)
    if row["served"] < row["requests"]:
        means.append("by the server's sidecar" if row["closed_without_chain"] else "not by the server's sidecar")
    some = f"{row['served']} of {row['requests']} served"
    return some if row["outcome"] == mtls.SOME else row["outcome"], ", ".join(means)


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """A row per client, a column per policy: what became of the calls."""
    seen = looks.of(table)
    labels = {arm: looks.words(seen.pod(arm)) for arm in seen.held(table["arm"])}
    several = [*labels.values()]
    clients = {arm: said if several.count(said) == 1 else f"{said} ({arm})" for arm, said in labels.items()}
    policies = list(dict.fromkeys([*tables.WANTED, *table["policy"]]))
    found = pd.DataFrame(text.ABSENT, index=list(clients.values()), columns=policies)
    for row in table.to_dict("records"):
        found.loc[clients[row["arm"]], row["policy"]] = "\n".join(fate(row))
    return absent.knowing(found, absent.known(table))


def mtls_answer(table: pd.DataFrame) -> str:
    """Who was served under each policy; "" if nothing was measured."""
    said = []
    for policy, rows in text.grouped((row["policy"], row) for row in table.to_dict("records")).items():
        fates = [("{0} ({1})" if row["served"] else "{0} {1}").format(*fate(row)) for row in rows]
        by_fate = text.grouped(zip(fates, (row["arm"] for row in rows), strict=True))
        each = "; ".join(f"{text.listed(arms)} {word}" for word, arms in by_fate.items())
        said.append(f"Where servers have mutual TLS {policy}: {each}.")
    return " ".join(said)


# --- a policy that denies ---

_LATE = {
    deny.ONE_EACH: "one for each connection",
    deny.FEWER: "fewer than one for each connection",
    deny.MORE: "more than one for each connection",
    gates.UNKNOWN: "one for each connection, give or take one",
    deny.ONE_BLOCK: "the count of one block, which has no interval",
}


def deny_answer(found: pd.DataFrame) -> str:
    """How many requests were served after a policy that denies was in force; "" if that was not measured."""
    if found.empty:
        return (
            "" if absent.known(found) else "No load went on after a policy that denies was accepted by every sidecar."
        )
    rows = [{**row, "kept": f"{row['pooled'].estimate:.3g}"} for row in found.to_dict("records")]
    opening = "Of requests that started after every sidecar had accepted a policy that denies, so many were served"
    late = f"{opening}: {_by_arm(rows, '{late} on {kept}')} connections kept between sidecars."
    by_reading = text.grouped((row["reading"], row) for row in rows)
    # Where it is one on each connection, and where not.
    each = text.listed(f"{_LATE[reading]} ({_by_arm(mine, '{kept}')})" for reading, mine in by_reading.items())
    return f"{late} That is {each}. {_refusals(found)}"


def _by_arm(rows: Rows, said: str) -> str:
    """`in mode1 2.00 ± 0.10 on 2 and 8.1 ± 0.3 on 8; in …`."""
    by_arm = text.grouped((row["arm"], said.format(**row)) for row in rows)
    return "; ".join(f"in {arm} {text.listed(each)}" for arm, each in by_arm.items())


def _refusals(found: pd.DataFrame) -> str:
    """When the first refusal came and when the last answer with success, over the rows."""
    seen = found[found["blocks_refused"] > 0]
    if seen.empty:
        return "Nobody was refused before the load ended."
    first, last = (
        _range([each.estimate for each in seen[name]], units.duration) for name in ("first_refused", "last_served")
    )
    since = _range([each.estimate for each in seen["since_refusal"]], units.number)
    return (
        f"The first refusal came {first} after the API server was told, the last answer with success {last}; of "
        f"requests that started after that first refusal {since} were served."
    )


def _range(values: Sequence[float], said: Callable[[float], str]) -> str:
    """`119 ms to 131 ms`, or one of both where they read alike."""
    return " to ".join(dict.fromkeys((said(min(values)), said(max(values)))))


# --- names from outside ---


def external_answer(found: pd.DataFrame) -> str:
    """Which address an external name has, and which server each service's connections reach; "" if not measured."""
    streams = found["backend"].isin(TCP)
    parts = [_http(mine) for _, mine in found[~streams].groupby("backend", sort=False)]
    return " ".join([*parts, *([_tcp(found[streams])] if streams.any() else [])])


def _http(found: pd.DataFrame) -> str:
    rows = found.to_dict("records")
    by_kind = text.grouped((" and ".join(row["answered"]) or "unknown", row["arm"]) for row in rows)
    said = text.listed(f"with a {each} address in {text.listed(arms)}" for each, arms in by_kind.items())
    served = text.listed(f"{row['right_share']} in {row['arm']}" for row in rows)
    took = [
        f"{row['in_sidecar']} of {row['requests_made']} in {row['arm']}"
        for row in external.meshed(found, *found["backend"])
    ]
    rest = f"; through the sidecar's route for it went {text.listed(took)}" if took else ""
    return f"{rows[0]['host']} is answered {said}; of its requests {served} were served{rest}."


def _tcp(found: pd.DataFrame) -> str:
    rows: Rows = found.to_dict("records")
    for row in rows:
        row["astray"] = f" ({row['wrong']} of {row['connections']} went to another server)" if row["wrong"] else ""
    said = _by_arm(rows, "{backend} {right_share}{astray}")
    ports = text.listed(f"{port:g}" for port in dict.fromkeys(found["port"]))
    return f"Of connections to TCP services on port {ports} the right server answered: {said}."
