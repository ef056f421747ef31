"""Claims about what a governed mesh does: C11, C12, C14, C15, C17."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from meshdns.analysis import shares, stats, text
from meshdns.core import units
from meshdns.studies import changes, external, governed, mtls, policies
from meshdns.studies.claims.verdict import (
    BUYS,
    DEPENDS,
    FOLLOWING,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Rows,
    Verdict,
    unmeasured,
)


def learnt(found: pd.DataFrame) -> Verdict:
    """C14: whether traffic followed each change, with endpoints pushed to the sidecar and with headless Services."""
    kinds = {
        "Service (EDS)": changes.of(found, endpoints=changes.EDS),
        "headless, new connections": changes.of(found, endpoints=changes.ORIGINAL_DST, connection=changes.NEW),
        "headless, kept alive": changes.of(found, endpoints=changes.ORIGINAL_DST, connection=changes.KEPT),
    }
    kept_up = {
        name: [np.isfinite(row["followed"].p50) for row in rows if row["followed"].n] for name, rows in kinds.items()
    }
    pushed, fresh, kept = kept_up.values()
    if not pushed and not fresh and not kept:
        return unmeasured("C14", "needs endpoints that change under load; `meshdns report --plan change`")
    numbers = "; ".join(_kept_up(name, kinds[name]) for name, each in kept_up.items() if each)
    if not any([*pushed, *fresh, *kept]):
        return Verdict("C14", REFUTED, "traffic followed no change while the load lasted", numbers, FOLLOWING)
    if not pushed or not fresh or not kept:
        lacking = " and ".join(name for name, each in kept_up.items() if not each)
        return Verdict("C14", UNDECIDED, f"not measured: {lacking}", numbers, FOLLOWING)
    if not all(pushed):
        because = "not every change was followed even where endpoints are pushed to the sidecar"
        return Verdict("C14", UNDECIDED, because, numbers, FOLLOWING)
    if all(fresh) and all(kept):
        because = "at p50 traffic followed every change, on new connections and on kept ones"
        return Verdict("C14", SUPPORTED, because, numbers, FOLLOWING)
    stay = "new ones follow the name and kept ones stay until they break"
    name = stay if all(fresh) else "not even all new ones follow in time"
    because = "on the Service: endpoints are pushed to the sidecar, which at p50 follows every change"
    because += f"; to a headless one it goes where the client's lookup led, so {name}"
    return Verdict("C14", DEPENDS, because, numbers, FOLLOWING)


def _kept_up(name: str, rows: list[dict[str, Any]]) -> str:
    """`headless, kept alive: 4 of 10 changes followed, at p50 in 2.05 s at most (mean 2.05 ± 0.01 s, 8 blocks)`."""
    known = [row["followed"] for row in rows if row["followed"].n]
    timely = [spell for spell in known if np.isfinite(spell.p50)]
    said = f"{name}: {len(timely)} of {len(known)} changes followed"
    if not timely:
        return said
    slowest = max(timely, key=lambda spell: float(spell.p50))
    said += f", at p50 in {units.duration(slowest.p50)} at most ({changes.spread(slowest)})"
    hidden = changes.unended(rows)
    return f"{said}, {hidden}" if hidden else said


def external_name(found: pd.DataFrame) -> Verdict:
    """C11: whether sidecars send api.example.com by what the ServiceEntry says; TCP services on one port as well."""
    named = external.rows(found, external.API, captured=True)
    if not named:
        return unmeasured("C11", f"needs calls of an external name through a sidecar; {policies.PLAN}")
    numbers = "; ".join(
        f"{row['arm']} {row['right']} of {row['connections']} served, {row['in the sidecar']} of "
        f"{row['requests made']} by the sidecar's own route, answered a {row['answered']} address"
        for row in named
    )
    broken = [row["arm"] for row in named if not external.through(row)]
    if len(broken) == len(named):
        return Verdict("C11", REFUTED, "in no mode did the sidecar send all requests by its own route", numbers, BUYS)
    if broken:
        because = f"on the mode: not all requests were sent by the sidecar's own route in {text.listed(broken)}"
        return Verdict("C11", DEPENDS, because, numbers, BUYS)
    streams = external.rows(found, *external.TCP, captured=True)
    wrong = [row for row in streams if row["right"] < row["connections"]]
    if streams:
        counted = [f"{row['backend']} in {row['arm']} {row['right']} of {row['connections']}" for row in streams]
        numbers += f"; TCP connections that the right server answered: {', '.join(counted)}"
    if wrong:
        where = text.listed(dict.fromkeys(f"{row['backend']} in {row['arm']}" for row in wrong))
        because = f"on protocol and mode: HTTP works, but of TCP services on one port not all are told apart: {where}"
        return Verdict("C11", DEPENDS, because, numbers, BUYS)
    both = " and so do TCP services on one port" if streams else "; TCP services are not measured"
    return Verdict("C11", SUPPORTED, f"every request takes the sidecar's own route{both}", numbers, BUYS)


def strict_mtls(matrix: pd.DataFrame) -> Verdict:
    """C12: clients with and without a sidecar, where servers want mutual TLS and where they take both."""
    asked = {
        "strict, no sidecar": mtls.rows(matrix, mtls.STRICT, policies.PLAIN),
        "strict, sidecar": mtls.rows(matrix, mtls.STRICT, *policies.modes(matrix)),
        "permissive, no sidecar": mtls.rows(matrix, mtls.PERMISSIVE, policies.PLAIN),
    }
    if not all(asked.values()):
        return unmeasured("C12", f"needs strict and permissive servers and clients of both kinds; {policies.PLAN}")
    numbers = "; ".join(f"{name}: {_served(rows)}" for name, rows in asked.items())
    let_in = sum(row["served"] for row in asked["strict, no sidecar"])
    meshed, direct = ({row["outcome"] for row in asked[name]} for name in list(asked)[1:])
    rest = "what happens to an answer that no sidecar recognises is not measured"
    if let_in:
        return Verdict("C12", REFUTED, "strict servers served a client without a sidecar", numbers, BUYS)
    if direct <= {mtls.REFUSED, mtls.LOST}:
        return Verdict("C12", REFUTED, "permissive servers refused a client without a sidecar", numbers, BUYS)
    if meshed != {mtls.SERVED} or direct != {mtls.SERVED}:
        return Verdict("C12", UNDECIDED, f"not every call of a kind had the same outcome; {rest}", numbers, BUYS)
    if not all(row["closed without a chain"] for row in asked["strict, no sidecar"]):
        return Verdict("C12", UNDECIDED, "refused, but not seen to be by the server's sidecar", numbers, BUYS)
    because = f"strict servers serve only clients with a sidecar, permissive ones direct calls too; {rest}"
    return Verdict("C12", SUPPORTED, because, numbers, BUYS)


def _served(rows: Rows) -> str:
    return ", ".join(
        f"{row['served']} of {row['requests']} served in {row['arm']} ({row['closed without a chain']} connections "
        f"closed, {row['mutual TLS connections']} mutual TLS)"
        for row in rows
    )


def one_model(found: pd.DataFrame) -> Verdict:
    """C15: what one control plane told DNS proxies, cluster DNS and sidecars, name by name."""
    if found.empty:
        return unmeasured("C15", f"needs a control plane that feeds DNS and sidecars; {policies.PLAN}")
    agree = found[found["agree"] == "yes"]
    whole, runs = found["name"].nunique(), found["run"].nunique()
    astray = found[found["agree"] != "yes"]["name"].nunique()
    virtual = found[found["address"] == external.VIRTUAL]["name"].nunique()
    looked = text.listed([str(each) for each in sorted(set(found["sidecars"]))], "or")
    numbers = f"{whole - astray} of {whole} names agree{f' in {runs} runs' if runs > 1 else ''}; {virtual} have a "
    numbers += f"virtual address, which was looked for in {looked} sidecars"
    wrong = found[found["agree"] == "NO"]
    if len(wrong):
        first = wrong.iloc[0]
        because = f"names and policy do not agree: {first['name']} ({first['lacking']})"
        return Verdict("C15", REFUTED, because, numbers, BUYS)
    if len(agree) < len(found):
        return Verdict("C15", UNDECIDED, f"not all could be compared: {governed.UNKNOWN}", numbers, BUYS)
    because = "from one model, each name has what traffic to its address needs, and both DNS servers answer alike"
    return Verdict("C15", SUPPORTED, because, numbers, BUYS)


# What is seen of a policy in the sidecar's counters.
_WORK = {
    "retries": ("retries", "retries"),
    "time-outs": ("timeouts", "time-outs"),
    "circuit breaking": ("breaker", "breaker overflows"),
    "outlier ejection": ("outlier", "ejections"),
}


def passing(found: pd.DataFrame, answered: pd.DataFrame, divided: pd.DataFrame) -> Verdict:
    """C17: which policies act on traffic that passes a sidecar, and what of it there is without one."""
    meshed = found[found["arm"].isin(policies.modes(found))].to_dict("records")
    works, numbers = _works(meshed), [_gain(meshed)]
    for name, (policy, event) in _WORK.items():
        if mine := [row for row in meshed if row["policy"] == policy]:
            count, asked = sum(int(row[event]) for row in mine), sum(row["requests"] for row in mine)
            numbers.append(f"{name} {count} times in {asked} requests")
    split = divided[(divided["policy"] == policies.SPLIT) & divided["arm"].isin(policies.modes(divided))].to_dict(
        "records"
    )
    known = [row["10 % inside"] for row in split if row["10 % inside"] in ("yes", "NO")]
    works |= {"traffic split": all(inside == "yes" for inside in known)} if known else {}
    numbers += [f"split {shares.percent(row['share of v2'])} in {row['arm']}" for row in split]
    if not works:
        return unmeasured("C17", f"needs policies for faulty replicas; {policies.PLAN}")
    outside, told = _without(found, answered, divided)
    said = "; ".join(each for each in [*numbers, *told] if each)
    acting, idle = ([name for name, acts in works.items() if acts == kind] for kind in (True, False))
    if not acting:
        return Verdict("C17", REFUTED, "no policy acted even on traffic that passes a sidecar", said, BUYS)
    if same := [name for name in outside if name in works]:
        because = f"without a sidecar there was {text.listed(same)} too"
        return Verdict("C17", REFUTED, because, said, BUYS)
    if idle:
        because = f"on the policy: {text.listed(acting)} acted, {text.listed(idle)} did not"
        return Verdict("C17", DEPENDS, because, said, BUYS)
    if outside:
        because = (
            f"on what is meant: {text.listed(acting)} act only in a sidecar, but connections to a ClusterIP are "
            "spread over the replicas without one"
        )
        return Verdict("C17", DEPENDS, because, said, BUYS)
    return Verdict("C17", SUPPORTED, f"{text.listed(acting)} were seen only in a sidecar", said, BUYS)


def _works(meshed: Rows) -> dict[str, bool]:
    """Whether each policy that was in force was seen to act; retries must also serve more requests."""
    found = {}
    for name, (policy, event) in _WORK.items():
        if mine := [row for row in meshed if row["policy"] == policy]:
            served = policy != "retries" or any(row["reading"] == "more" and _added(row).low > 0 for row in mine)
            found[name] = served and any(row[event] for row in mine)
    return found


def _gain(meshed: Rows) -> str:
    """The gain in served requests of the policy that adds most to a sidecar without one, where that was measured."""
    known = [row for row in meshed if row["policy"] != policies.NONE and row[policies.AGAINST] is not None]
    if not known:
        return ""
    best = max(known, key=lambda row: float(_added(row).estimate))
    gain = shares.points(best[policies.AGAINST])
    alone = "" if best[policies.ALONE] is None else f" and {shares.points(best[policies.ALONE])} against no policy"
    return f"{best['row']}: {gain} served in {best['arm']} against no mesh{alone} ({text.blocks(best['blocks'])})"


def _added(row: dict[Any, Any]) -> stats.Interval:
    """What a policy adds to what its sidecar serves without one; else to what is served without a mesh."""
    found: stats.Interval = row[policies.AGAINST] if row[policies.ALONE] is None else row[policies.ALONE]
    return found


def _without(found: pd.DataFrame, answered: pd.DataFrame, divided: pd.DataFrame) -> tuple[list[str], list[str]]:
    """What a client without a sidecar has of all this, and the numbers that tell it."""
    plain = found[found["arm"] == policies.PLAIN]
    outside, numbers = [], []
    if any(each.low > policies.ONCE for each in plain["arrived"] if each.n > 1):
        outside.append("retries")
    divided = divided[divided["arm"] == policies.PLAIN]
    if (divided["10 % inside"] == "yes").any():
        outside.append("traffic split")
    numbers += [f"{shares.percent(row)} to v2 in plain" for row in divided["share of v2"]]
    spread = [each.estimate for row in _spread(answered) for each in row]
    if spread and min(spread) > policies.EVEN * max(spread):
        outside.append("load balancing")
    numbers += [f"each replica {100 * min(spread):.0f} to {100 * max(spread):.0f} % in plain"] if spread else []
    return outside, numbers


def _spread(answered: pd.DataFrame) -> list[list[stats.Interval]]:
    """The replicas' shares in the answers to clients without a sidecar, a list per fault."""
    rows = answered[answered["arm"] == policies.PLAIN].to_dict("records")
    return [[each for each in row.values() if isinstance(each, stats.Interval) and each.n] for row in rows]
