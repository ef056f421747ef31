"""Claims about which way the traffic takes: C1 to C5, C7, C8, C10."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, text
from meshdns.studies.cost import tables as cost
from meshdns.studies.names import tables as names
from meshdns.studies.path.answer import MEASURE, condition, end, meaning, named, redirected, share
from meshdns.studies.path.tables import ANSWERS, GUARDED, KNOWING, OUTCOMES, UNGUARDED, Row, counts, matrix
from meshdns.studies.verdict import (
    COST,
    DEPENDS,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    WAY,
    Verdict,
    counted_at,
    counted_in,
    unmeasured,
)

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
    row = without[0]
    if row["direct"] == row["requests"]:
        return Verdict("C1", SUPPORTED, "every call went to the server past the sidecar", numbers, WAY)
    if row["proxied"]:
        return Verdict("C1", REFUTED, "calls passed the proxy although nothing intercepted them", numbers, WAY)
    return Verdict("C1", UNDECIDED, "not every call was served, so the way of some is not known", numbers, WAY)


def interception(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C2: names resolved in several ways and answered with several addresses; whose connections are redirected."""
    sums = {arm: counted for arm in (names.MODE1, *names.PROXIED) if (counted := counted_in(path, arm))}
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
    notebook = WAY if away else COST
    if uneven:
        because = "the share of connections redirected is not the same for all ways to resolve"
        return Verdict("C2", REFUTED, because, ", ".join(numbers), notebook)
    if away and home and redirected(home) != sum(row["requests"] for row in home):
        because = "on the address, not on how it was resolved: all are intercepted but those of the pod itself"
        return Verdict("C2", DEPENDS, because, ", ".join(numbers), WAY)
    if away:
        return Verdict("C2", SUPPORTED, "every answer was intercepted alike", ", ".join(numbers), WAY)
    if not {names.MODE1} < set(sums):
        return unmeasured("C2", "needs requests in both modes")
    because = "both ways to resolve were intercepted alike, but only ClusterIP and virtual IP answers were tried"
    return Verdict("C2", UNDECIDED, because, ", ".join(numbers), COST)


def loop(matrix: pd.DataFrame) -> Verdict:
    """C3: answered with the sidecar's own address and port, with the guard that Istio configures and without."""
    found = cells.rows(matrix, to_sidecar=True, sidecar="up", intercepted=True)
    if not found:
        return unmeasured("C3", _NO_MATRIX)
    numbers = "; ".join(
        f"{named(row)}: {row['outcome']}" + (f", ended {end(row)}" if row["looped"] else "") for row in found
    )
    if any(row["passed_through"] > row["requests"] for row in found if row["looped"]):
        held = any(row["at_guard"] for row in found)
        because = "the sidecar connected to itself again and again" + (
            " where it has no guard; with the guard the first connection is the last" if held else ""
        )
        return Verdict("C3", SUPPORTED, because, numbers, WAY)
    if any(row["arm"] == UNGUARDED for row in found):
        return Verdict("C3", REFUTED, "no sidecar connected to itself, not even without its guard", numbers, WAY)
    return Verdict("C3", UNDECIDED, "with the guard none; without it not measured", numbers, WAY)


def without_sidecar(matrix: pd.DataFrame) -> Verdict:
    """C5: mode 1's own answer, the ClusterIP, with a sidecar that is down."""
    kept, open_ = (
        cells.rows(matrix, answer="clusterip", arm=GUARDED, intercepted=on, sidecar="down") for on in (True, False)
    )
    if not kept or not open_:
        return unmeasured("C5", _NO_MATRIX)
    numbers = f"sidecar down, captured: {_outcomes(kept)}; not captured: {_outcomes(open_)}"
    direct = [row["direct"] == row["requests"] for row in (kept[0], open_[0])]
    rest = "strict mode is not measured"
    if all(direct):
        return Verdict("C5", SUPPORTED, f"calls went direct with the sidecar down; {rest}", numbers, WAY)
    if direct[1] and not kept[0]["direct"]:
        because = (
            f"on the rules: they outlive the sidecar, and only where they are taken away too do calls go direct; {rest}"
        )
        return Verdict("C5", DEPENDS, because, numbers, WAY)
    if not kept[0]["direct"] and not open_[0]["direct"]:
        return Verdict("C5", REFUTED, f"no call went direct with the sidecar down; {rest}", numbers, WAY)
    return Verdict("C5", UNDECIDED, f"only some calls went direct; {rest}", numbers, WAY)


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
    columns = ["exchanges_found", "connections"]
    columns += ["exchanges_each"] * bool(pairs["names_not_found_x"].all() and pairs["names_not_found_y"].all())
    saved = [pairs[f"{name}_x"] - pairs[f"{name}_y"] for name in columns]
    if any(each.nunique() > 1 for each in saved):
        return Verdict("C8", UNDECIDED, "the runs do not agree on what is saved", numbers, WAY)
    fewer = [int(each.iloc[0]) for each in saved]
    if min(fewer) > 0:
        return Verdict("C8", SUPPORTED, "fewer exchanges for the name and fewer connections", numbers, WAY)
    if max(fewer) <= 0:
        return Verdict("C8", REFUTED, "neither a DNS exchange nor a connection is saved", numbers, WAY)
    whats = (
        "DNS exchanges for a name that is found",
        "connections of the request",
        "exchanges for each name that is not",
    )
    told = [f"{what} {_change_of(n)}" for what, n in zip(whats, fewer, strict=False)]
    return Verdict("C8", DEPENDS, f"on which hops are meant: {', '.join(told)}", numbers, WAY)


def _change_of(fewer: int) -> str:
    return "as many" if not fewer else f"{abs(fewer)} {'fewer' if fewer > 0 else 'more'}"


_VIRTUAL = ("loopback", "virtual", "service-entry")  # what C10 names


def virtual_answers(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C10: whether each kind of address leads to what mode 2's sidecar knows by it, and what mode 2 does answer.

    127.0.0.1 is tried with mode 1's sidecar where mode 2's was not: neither knows anything by that address.
    """
    tried = {each: _captured(matrix, each) for each in _VIRTUAL}
    if not tried["loopback"]:
        return unmeasured("C10", _NO_MATRIX)
    sums = counted_in(path, names.MODE2) or counted_in(path, names.MODE2_ENVOY)
    numbers = f"captured, sidecar up: {_outcomes([row for row in tried.values() if row])}"
    numbers += f"; {share([tried['loopback']])} to 127.0.0.1 redirected"
    numbers += (
        f"; mode 2 answered a virtual IP {sums['answered_virtual_ip']} of {sums['answers']} times" if sums else ""
    )
    lacking = [meaning(each) for each, row in tried.items() if not row]
    if lacking:
        return Verdict("C10", UNDECIDED, f"not tried with mode 2's sidecar: {text.listed(lacking)}", numbers, WAY)
    mixed = [each for each, row in tried.items() if row and 0 < row["proxied"] < row["requests"]]
    if mixed:
        because = f"only some calls to {meaning(mixed[0])} passed the sidecar"
        return Verdict("C10", UNDECIDED, because, numbers, WAY)
    led = [meaning(each) for each, row in tried.items() if row and row["proxied"]]
    astray = [meaning(each) for each, row in tried.items() if row and not row["proxied"]]
    if not led or (sums and not sums["answered_virtual_ip"]):
        because = "no such address leads to the service" if not led else "mode 2 answered no virtual IP"
        return Verdict("C10", REFUTED, because, numbers, WAY)
    if not astray:
        return Verdict("C10", SUPPORTED, "each of these addresses leads to the service", numbers, WAY)
    because = f"on the address: {text.listed(led)} lead to the service by the sidecar, {text.listed(astray)} does not"
    return Verdict("C10", DEPENDS, because, numbers, WAY)


def _captured(matrix: pd.DataFrame, answer: str) -> Row | None:
    """The cell of mode 2's sidecar, captured and up; for 127.0.0.1 that of mode 1's if there is none."""
    arms = (KNOWING, *[GUARDED] * (answer == "loopback"))
    found = [row for arm in arms for row in cells.rows(matrix, answer=answer, arm=arm, intercepted=True, sidecar="up")]
    return found[0] if found else None


def mode1_path(path: pd.DataFrame, resolved: cost.Resolutions) -> Verdict:
    """C4: each part of the path counted what the client made; ClusterIP Services and resolved ServiceEntries apart."""
    row, entry = counted_at(path, *cost.MODE1), counted_at(path, *cost.RESOLVED)
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
    if broken := [what for what, (counted, made) in parts.items() if counted != made]:
        return Verdict("C4", REFUTED, f"not every call was {' or '.join(broken)}", numbers, COST)
    told = "a ClusterIP Service takes this path but for the second resolution: the sidecar is told its endpoints (EDS)"
    if entry is None or not resolved.queries:
        because = f"{told}; a ServiceEntry that it resolves was not measured"
        return Verdict("C4", UNDECIDED, because, numbers, COST)
    if entry["in_sidecar"] != entry["requests"]:
        return Verdict("C4", REFUTED, "not every call to the ServiceEntry was forwarded by the sidecar", numbers, COST)
    because = f"on the kind of service: {told}; a ServiceEntry with resolution DNS it resolves again"
    return Verdict("C4", DEPENDS, because, numbers, COST)


def mode2_path(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C7: answers, queries and connections of mode 2 all stay in the pod up to the sidecar, by either DNS proxy.

    Where the answer matrix was measured, mode 2's sidecar must also serve what is captured at a virtual IP.
    """
    found = {arm: sums for arm in reversed(names.PROXIED) if (sums := counted_in(path, arm))}
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
