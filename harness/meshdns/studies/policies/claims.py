"""C11, C12, C15 and C17: what sidecars do for external names, mutual TLS and policies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, stats, text
from meshdns.studies.policies import answer, external, mtls, tables, told
from meshdns.studies.policies.answer import PLAN
from meshdns.studies.policies.tables import HTTP, INSIDE, NONE, OUTSIDE, PLAIN, SPLIT, TCP, Row, Rows, meshed
from meshdns.studies.verdict import BUYS, DEPENDS, REFUTED, SUPPORTED, UNDECIDED, Verdict, unmeasured

ONCE = 1.01  # more requests at the replicas per request made than this are retries
EVEN = 0.5  # replicas whose shares differ by less than this factor share the load


def verdicts(runs: store.Runs) -> Iterator[Verdict]:
    """Of the four."""
    yield external_name(external.table(runs))
    yield strict_mtls(mtls.table(runs))
    yield one_plane(told.table(runs))
    yield passing(tables.faults(runs), tables.replicas(runs), tables.split(runs))


def external_name(found: pd.DataFrame) -> Verdict:
    """C11: whether sidecars send api.example.com by what the ServiceEntry says; TCP services on one port as well."""
    named, streams = external.meshed(found, HTTP), external.meshed(found, *TCP)
    if not named:
        return unmeasured("C11", f"needs calls of an external name through a sidecar; {PLAN}")
    numbers = "; ".join(
        f"{row['arm']} {row['right']} of {row['connections']} served, {row['in_sidecar']} of {row['requests_made']} by "
        f"the sidecar's own route, answered a {' and '.join(row['answered'])} address"
        for row in named
    )
    broken = [row["arm"] for row in named if not external.through(row)]
    if streams and not broken:
        counted = [f"{row['backend']} in {row['arm']} {row['right']} of {row['connections']}" for row in streams]
        numbers += f"; TCP connections that the right server answered: {', '.join(counted)}"
    decided = partial(Verdict, "C11", numbers=numbers, notebook=BUYS)
    if len(broken) == len(named):
        return decided(REFUTED, "in no mode did the sidecar send all requests by its own route")
    if broken:
        because = "on the mode: not all requests were sent by the sidecar's own route in "
        return decided(DEPENDS, because + text.listed(broken))
    if wrong := [f"{row['backend']} in {row['arm']}" for row in streams if row["right"] < row["connections"]]:
        because = "on protocol and mode: HTTP works, but of TCP services on one port not all are told apart: "
        return decided(DEPENDS, because + text.listed(wrong))
    both = " and so do TCP services on one port" if streams else "; TCP services are not measured"
    return decided(SUPPORTED, f"every request takes the sidecar's own route{both}")


def one_plane(found: pd.DataFrame) -> Verdict:
    """C15: whether the names that an agent was told lead somewhere in the same sidecar."""
    if found.empty:
        return unmeasured("C15", "needs a sidecar whose agent answers names, and its configuration")
    names, wrong = found["name"].nunique(), found[~found["agree"].astype(bool)]
    numbers = f"{names - wrong['name'].nunique()} of {names} names that the agent answers have a cluster and, at each "
    numbers += f"address, a listener ({text.listed(sorted(set(found['pod'])))})"
    decided = partial(Verdict, "C15", numbers=numbers, notebook=BUYS)
    if len(wrong):
        first = wrong.iloc[0]
        lacking = "; ".join(first["lacking"])
        return decided(REFUTED, f"names and policy do not fit: {first['name']} in {first['pod']} ({lacking})")
    because = "each name that istiod tells an agent has what traffic to its addresses needs, from the same istiod"
    return decided(SUPPORTED, because)


def strict_mtls(found: pd.DataFrame) -> Verdict:
    """C12: clients with and without a sidecar, where servers want mutual TLS and where they take both."""
    asked = {
        "strict, no sidecar": cells.rows(found, policy=tables.STRICT, arm=PLAIN),
        "strict, sidecar": [row for row in meshed(found) if row["policy"] == tables.STRICT],
        "permissive, no sidecar": cells.rows(found, policy=tables.PERMISSIVE, arm=PLAIN),
    }
    if not all(asked.values()):
        return unmeasured("C12", f"needs strict and permissive servers and clients of both kinds; {PLAN}")
    numbers = "; ".join(f"{name}: {_let_in(rows)}" for name, rows in asked.items())
    refused, *served = asked.values()
    through, direct = ({row["outcome"] for row in rows} for rows in served)
    rest = "what happens to an answer that no sidecar recognises is not measured"
    decided = partial(Verdict, "C12", numbers=numbers, notebook=BUYS)
    if any(row["served"] for row in refused):
        return decided(REFUTED, "strict servers served a client without a sidecar")
    if direct <= {mtls.REFUSED, mtls.LOST}:
        return decided(REFUTED, "permissive servers refused a client without a sidecar")
    if through | direct != {mtls.SERVED}:
        return decided(UNDECIDED, f"not every call of a kind had the same outcome; {rest}")
    if not all(row["closed_without_chain"] for row in refused):
        return decided(UNDECIDED, "refused, but not seen to be by the server's sidecar")
    because = "strict servers serve only clients with a sidecar, permissive ones direct calls too"
    return decided(SUPPORTED, f"{because}; {rest}")


def _let_in(rows: Rows) -> str:
    return ", ".join(
        f"{row['served']} of {row['requests']} served in {row['arm']} ({row['closed_without_chain']} connections "
        f"closed, {row['mtls_connections']} mutual TLS)"
        for row in rows
    )


# What is seen of a policy in the sidecar's counters.
_WORK = {
    "retries": ("retries", "retries"),
    "time-outs": ("timeouts", "time_outs"),
    "circuit breaking": ("breaker", "breaker_overflows"),
    "outlier ejection": ("outlier", "ejections"),
}


def passing(found: pd.DataFrame, answered: pd.DataFrame, divided: pd.DataFrame) -> Verdict:
    """C17: which policies act on traffic that passes a sidecar, and what of it there is without one."""
    rows = meshed(found)
    works, numbers = dict[str, bool](), [_gain(rows)]
    for name, (policy, event) in _WORK.items():
        if mine := [row for row in rows if row["policy"] == policy]:
            count, asked = (sum(int(row[each]) for row in mine) for each in (event, "requests"))
            # Retries must also serve more.
            served = policy != "retries" or any(row["reading"] == "more" and _added(row).low > 0 for row in mine)
            works[name] = served and count > 0
            numbers.append(f"{name} {count} times in {asked} requests")
    split = [row for row in meshed(divided) if row["policy"] == SPLIT]
    if known := [row["promised"] for row in split if row["promised"] in (INSIDE, OUTSIDE)]:
        works["traffic split"] = set(known) == {INSIDE}
    numbers += [f"split {row['share_of_v2']} in {row['arm']}" for row in split]
    if not works:
        return unmeasured("C17", f"needs policies for faulty replicas; {PLAN}")
    outside, counted = _without(found, answered, divided)
    decided = partial(Verdict, "C17", numbers="; ".join(filter(None, [*numbers, *counted])), notebook=BUYS)
    acting, idle = (text.listed(name for name, acts in works.items() if acts == kind) for kind in (True, False))
    if not acting:
        return decided(REFUTED, "no policy acted even on traffic that passes a sidecar")
    if same := [name for name in outside if name in works]:
        return decided(REFUTED, f"without a sidecar there was {text.listed(same)} too")
    if idle:
        return decided(DEPENDS, f"on the policy: {acting} acted, {idle} did not")
    if outside:
        because = f"on what is meant: {acting} act only in a sidecar, but connections to a ClusterIP are spread over "
        return decided(DEPENDS, because + "the replicas without one")
    return decided(SUPPORTED, f"{acting} were seen only in a sidecar")


def _gain(rows: Rows) -> str:
    """The gain in served requests of the policy that adds most to a sidecar without one, where that was measured."""
    known = [row for row in rows if row["policy"] != NONE and row["against_plain"] is not None]
    if not known:
        return ""
    best = max(known, key=lambda row: float(_added(row).estimate))
    what = ", ".join(str(answer.WORDS.value(each, best[each])) for each in ("fault", "policy"))
    alone = "" if best["against_no_policy"] is None else f" and {best['against_no_policy']} against no policy"
    gain = f"{best['against_plain']} served in {best['arm']} against no mesh{alone}"
    return f"{what}: {gain} ({text.blocks(best['blocks'])})"


def _added(row: Row) -> stats.Interval:
    """What a policy adds to what its sidecar serves without one; else to what is served without a mesh."""
    found: stats.Interval = row["against_plain"] if row["against_no_policy"] is None else row["against_no_policy"]
    return found


def _without(found: pd.DataFrame, answered: pd.DataFrame, divided: pd.DataFrame) -> tuple[list[str], list[str]]:
    """What a client without a sidecar has of all this, and the numbers that tell it."""
    plain, answered, divided = (table[table["arm"] == PLAIN] for table in (found, answered, divided))
    outside = ["retries"] if any(each.low > ONCE for each in plain["arrived"] if each.n > 1) else []
    outside += ["traffic split"] if (divided["promised"] == INSIDE).any() else []
    numbers = [f"{share} to v2 in {PLAIN}" for share in divided["share_of_v2"]]
    values: list[Any] = [*answered.to_numpy().ravel()]
    if spread := [each.estimate for each in values if isinstance(each, stats.Interval) and each.n]:
        least, most = min(spread), max(spread)
        outside += ["load balancing"] if least > EVEN * most else []
        numbers.append(f"each replica {100 * least:.0f} to {100 * most:.0f} % in {PLAIN}")
    return outside, numbers
