"""Claims about which way the traffic takes: C1 to C5, C7, C8, C10."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, text
from meshdns.studies.cost import tables as cost
from meshdns.studies.names import tables as names
from meshdns.studies.path.answer import MEASURE, condition, end, meaning, named, redirected, share
from meshdns.studies.path.tables import ANSWERS, GUARDED, KNOWING, OUTCOMES, UNGUARDED, Row, counts, matrix
from meshdns.studies.verdict import COST, DEPENDS, REFUTED, SUPPORTED, UNDECIDED, WAY, Verdict, unmeasured

# Experiments whose arms are compared by name -> those that claims are judged by.
JUDGED = {ANSWERS: (GUARDED, UNGUARDED, KNOWING)}
_NO_MATRIX = f"needs names answered in other ways; {MEASURE}"


def verdicts(runs: store.Runs) -> Iterator[Verdict]:
    """What these runs say of them."""
    path, table = cost.path(runs), matrix(runs)
    yield bypass(table)
    yield interception(path, table)
    yield loop(table)
    yield mode1_path(path, cost.resolutions(runs))
    yield without_sidecar(table)
    yield mode2_path(path, table)
    yield hops_saved(counts(runs))
    yield virtual_answers(path, table)


def _outcomes(found: list[Row]) -> str:
    """`a pod's address 24 direct, a ClusterIP 24 direct`."""
    said = []
    for row in found:
        counted = " and ".join(f"{row[name]} {name}" for name in OUTCOMES if row[name])
        said.append(f"{meaning(row['answer'])} {counted}")
    return ", ".join(said)


def bypass(matrix: pd.DataFrame) -> Verdict:
    """C1: a pod's real address, with nothing that intercepts, while a sidecar stands by."""
    without = cells.rows(matrix, answer="pod", arm=GUARDED, intercepted=False, sidecar="up")
    beside = cells.rows(matrix, answer="pod", arm=GUARDED, intercepted=True, sidecar="up")
    if not without:
        return unmeasured("C1", _NO_MATRIX)
    numbers = f"without interception {_outcomes(without)}"
    numbers += f"; with it {_outcomes(beside)}" if beside else ""
    row, decided = without[0], partial(Verdict, "C1", numbers=numbers, notebook=WAY)
    if row["direct"] == row["requests"]:
        return decided(SUPPORTED, "every call went to the server past the sidecar")
    if row["proxied"]:
        return decided(REFUTED, "calls passed the proxy although nothing intercepted them")
    return decided(UNDECIDED, "not every call was served, so the way of some is not known")


def interception(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C2: names resolved in several ways and answered with several addresses; whose connections are redirected."""
    sums = {arm: counted for arm in (names.MODE1, *names.PROXIED) if (counted := cost.counted_in(path, arm))}
    numbers = [
        f"{each['redirected']} of {each['requests']} connections redirected in {arm}" for arm, each in sums.items()
    ]
    uneven = any(each["redirected"] != each["requests"] for each in sums.values())
    away = cells.rows(matrix, home=False, arm=GUARDED, intercepted=True, sidecar="up")
    home = cells.rows(matrix, home=True, arm=GUARDED, intercepted=True, sidecar="up")
    if away:
        numbers.append(f"{share(away)} to answers outside the pod")
        uneven |= any(row["redirected"] != row["requests"] for row in away)
    if home:
        numbers.append(f"{share(home)} to the pod itself")
    decided = partial(Verdict, "C2", numbers=", ".join(numbers), notebook=WAY if away else COST)
    if uneven:
        return decided(REFUTED, "the share of connections redirected is not the same for all ways to resolve")
    if away and home and redirected(home) != sum(row["requests"] for row in home):
        because = "on the address, not on how it was resolved: all are intercepted but those of the pod itself"
        return decided(DEPENDS, because)
    if away:
        return decided(SUPPORTED, "every answer was intercepted alike")
    if not {names.MODE1} < set(sums):
        return unmeasured("C2", "needs requests in both modes")
    because = "both ways to resolve were intercepted alike, but only ClusterIP and virtual IP answers were tried"
    return decided(UNDECIDED, because)


def loop(matrix: pd.DataFrame) -> Verdict:
    """C3: answered with the sidecar's own address and port, with the guard that Istio configures and without."""
    found = cells.rows(matrix, to_sidecar=True, sidecar="up", intercepted=True)
    if not found:
        return unmeasured("C3", _NO_MATRIX)
    numbers = "; ".join(
        f"{named(row)}: {row['outcome']}" + (f", ended {end(row)}" if row["looped"] else "") for row in found
    )
    decided = partial(Verdict, "C3", numbers=numbers, notebook=WAY)
    if any(row["passed_through"] > row["requests"] for row in found if row["looped"]):
        because = "the sidecar connected to itself again and again"
        if any(row["at_guard"] for row in found):
            because += " where it has no guard; with the guard the first connection is the last"
        return decided(SUPPORTED, because)
    if any(row["arm"] == UNGUARDED for row in found):
        return decided(REFUTED, "no sidecar connected to itself, not even without its guard")
    return decided(UNDECIDED, "with the guard none; without it not measured")


def without_sidecar(matrix: pd.DataFrame) -> Verdict:
    """C5: mode 1's own answer, the ClusterIP, with a sidecar that is down."""
    kept, open_ = (
        cells.rows(matrix, answer="clusterip", arm=GUARDED, intercepted=on, sidecar="down") for on in (True, False)
    )
    if not kept or not open_:
        return unmeasured("C5", _NO_MATRIX)
    numbers = f"sidecar down, captured: {_outcomes(kept)}; not captured: {_outcomes(open_)}"
    decided = partial(Verdict, "C5", numbers=numbers, notebook=WAY)
    direct = [row["direct"] == row["requests"] for row in (kept[0], open_[0])]
    rest = "strict mode is not measured"
    if all(direct):
        return decided(SUPPORTED, f"calls went direct with the sidecar down; {rest}")
    if direct[1] and not kept[0]["direct"]:
        because = "on the rules: they outlive the sidecar, and only where they are taken away too do calls go direct"
        return decided(DEPENDS, f"{because}; {rest}")
    if not kept[0]["direct"] and not open_[0]["direct"]:
        return decided(REFUTED, f"no call went direct with the sidecar down; {rest}")
    return decided(UNDECIDED, f"only some calls went direct; {rest}")


def hops_saved(counts: pd.DataFrame) -> Verdict:
    """C8: DNS exchanges and connections of one traced request, in mode 1 and in mode 2 of the same run.

    A hop is either of them. Packets are told and do not decide: how many a connection has depends on whether it stood.
    """
    served = counts[counts["outcome"] == "ok"]
    pairs = served[served["arm"] == names.MODE1].merge(served[served["arm"] == names.MODE2], on="run")
    if pairs.empty:
        return unmeasured("C8", "needs a traced request in both modes")
    each = served[served["run"] == pairs["run"].iloc[-1]]
    numbers = "; ".join(
        f"{row['arm']} {row['dns_exchanges']} DNS exchanges ({row['dns_leaving']} leaving a pod), "
        f"{row['connections']} connections ({row['connections_leaving']} leaving), "
        f"{row['dns_packets']} + {row['tcp_packets']} packets, {row['hops']} hops in all, "
        f"{row['between_pods']} of them between pods"
        for row in each.to_dict("records")
        if row["arm"] in (names.MODE1, *names.PROXIED)
    )
    meant = {
        "exchanges_found": "DNS exchanges for a name that is found",
        "connections": "connections of the request",
        "exchanges_each": "exchanges for each name that is not",
    }
    searched = pairs["names_not_found_x"].all() and pairs["names_not_found_y"].all()
    columns = [name for name in meant if searched or name != "exchanges_each"]
    saved = [pairs[f"{name}_x"] - pairs[f"{name}_y"] for name in columns]
    decided = partial(Verdict, "C8", numbers=numbers, notebook=WAY)
    if any(each.nunique() > 1 for each in saved):
        return decided(UNDECIDED, "the runs do not agree on what is saved")
    fewer = [int(each.iloc[0]) for each in saved]
    if min(fewer) > 0:
        return decided(SUPPORTED, "fewer exchanges for the name and fewer connections")
    if max(fewer) <= 0:
        return decided(REFUTED, "neither a DNS exchange nor a connection is saved")
    changes = ("as many" if not n else f"{abs(n)} {'fewer' if n > 0 else 'more'}" for n in fewer)
    told = [f"{meant[name]} {change}" for name, change in zip(columns, changes, strict=True)]
    return decided(DEPENDS, f"on which hops are meant: {', '.join(told)}")


_VIRTUAL = ("loopback", "virtual", "service-entry")  # what C10 names


def virtual_answers(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C10: whether each kind of address leads to what mode 2's sidecar knows by it, and what mode 2 does answer.

    127.0.0.1 is tried with mode 1's sidecar where mode 2's was not: neither knows anything by that address.
    """
    tried = {each: _captured(matrix, each) for each in _VIRTUAL}
    if not tried["loopback"]:
        return unmeasured("C10", _NO_MATRIX)
    sums = cost.counted_in(path, names.MODE2) or cost.counted_in(path, names.MODE2_ENVOY)
    numbers = f"captured, sidecar up: {_outcomes([row for row in tried.values() if row])}"
    numbers += f"; {share([tried['loopback']])} to 127.0.0.1 redirected"
    numbers += (
        f"; mode 2 answered a virtual IP {sums['answered_virtual_ip']} of {sums['answers']} times" if sums else ""
    )
    decided = partial(Verdict, "C10", numbers=numbers, notebook=WAY)
    if lacking := [meaning(each) for each, row in tried.items() if not row]:
        return decided(UNDECIDED, f"not tried with mode 2's sidecar: {text.listed(lacking)}")
    if mixed := [meaning(each) for each, row in tried.items() if row and 0 < row["proxied"] < row["requests"]]:
        return decided(UNDECIDED, f"only some calls to {mixed[0]} passed the sidecar")
    led = [meaning(each) for each, row in tried.items() if row and row["proxied"]]
    astray = [meaning(each) for each, row in tried.items() if row and not row["proxied"]]
    if not led or (sums and not sums["answered_virtual_ip"]):
        return decided(REFUTED, "mode 2 answered no virtual IP" if led else "no such address leads to the service")
    if not astray:
        return decided(SUPPORTED, "each of these addresses leads to the service")
    because = f"on the address: {text.listed(led)} lead to the service by the sidecar, {text.listed(astray)} does not"
    return decided(DEPENDS, because)


def _captured(matrix: pd.DataFrame, answer: str) -> Row | None:
    """The cell of mode 2's sidecar, captured and up; for 127.0.0.1 that of mode 1's if there is none."""
    arms = (KNOWING, *[GUARDED] * (answer == "loopback"))
    found = [row for arm in arms for row in cells.rows(matrix, answer=answer, arm=arm, intercepted=True, sidecar="up")]
    return found[0] if found else None


def mode1_path(path: pd.DataFrame, resolved: cost.Resolutions) -> Verdict:
    """C4: each part of the path counted what the client made; ClusterIP Services and resolved ServiceEntries apart."""
    row, entry = cost.counted_at(path, cost.MODE1), cost.counted_at(path, cost.RESOLVED)
    if row is None:
        return unmeasured("C4", "needs requests in mode 1 with both sidecars")
    parts = {
        "answered with the ClusterIP": (row["answered_cluster_ip"], row["answers"]),
        "redirected to the sidecar": (row["redirected"], row["requests"]),
        "forwarded by the sidecar": (row["in_sidecar"], row["requests"]),
    }
    numbers = "ClusterIP Service: " + ", ".join(f"{what} {n} of {made}" for what, (n, made) in parts.items())
    if entry is not None:
        numbers += f"; ServiceEntry: forwarded by the sidecar {entry['in_sidecar']} of {entry['requests']}"
    numbers += f"; the sidecar resolved {resolved.attempts} times, with {resolved.queries} queries, {resolved.span}"
    decided = partial(Verdict, "C4", numbers=numbers, notebook=COST)
    if broken := [what for what, (counted, made) in parts.items() if counted != made]:
        return decided(REFUTED, f"not every call was {' or '.join(broken)}")
    told = "a ClusterIP Service takes this path but for the second resolution: the sidecar is told its endpoints (EDS)"
    if entry is None or not resolved.queries:
        return decided(UNDECIDED, f"{told}; a ServiceEntry that it resolves was not measured")
    if entry["in_sidecar"] != entry["requests"]:
        return decided(REFUTED, "not every call to the ServiceEntry was forwarded by the sidecar")
    return decided(DEPENDS, f"on the kind of service: {told}; a ServiceEntry with resolution DNS it resolves again")


def mode2_path(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C7: answers, queries and connections of mode 2 all stay in the pod up to the sidecar, by either DNS proxy.

    Where the answer matrix was measured, mode 2's sidecar must also serve what is captured at a virtual IP.
    """
    found = {arm: sums for arm in reversed(names.PROXIED) if (sums := cost.counted_in(path, arm))}
    if not found:
        return unmeasured("C7", "needs requests in mode 2")
    numbers, broken = [], []
    for arm, sums in found.items():
        parts = {
            "answered with a virtual address": (
                sums["answered_cluster_ip"] + sums["answered_virtual_ip"],
                sums["answers"],
            ),
            "resolved by the sidecar": (sums["at_dns_proxy"], sums["client_queries"]),
            "redirected to the sidecar": (sums["redirected"], sums["requests"]),
        }
        counted = ", ".join(f"{what} {seen} of {made}" for what, (seen, made) in parts.items())
        allocated = f"{sums['answered_virtual_ip']} of them allocated by Istio, the others ClusterIPs"
        numbers.append(f"{arm}: {counted} ({allocated}), forwarded {sums['forwarded']}")
        broken += [f"{what} in {arm}" for what, (seen, made) in parts.items() if seen != made]
        broken += [f"kept inside the pod in {arm}"] * bool(sums["forwarded"])
    virtual = cells.rows(matrix, answer="virtual", arm=KNOWING)
    for row in virtual:
        where = condition(row["intercepted"], row["sidecar"])
        numbers.append(f"a virtual IP, {where}: {_outcomes([row])}")
        if row["intercepted"] and row["sidecar"] == "up" and row["proxied"] != row["requests"]:
            broken.append("served by the sidecar at a virtual IP")
    if broken:
        return Verdict("C7", REFUTED, f"not every call was {' or '.join(broken)}", "; ".join(numbers), COST)
    because = "for names the sidecar knows, every query and connection ended in it"
    because += ", and a virtual IP leads nowhere else" if virtual and not any(row["direct"] for row in virtual) else ""
    return Verdict("C7", SUPPORTED, because, "; ".join(numbers), WAY if virtual else COST)
