"""Notebook 00: tables in, verdicts out.

A claim is supported or refuted only by what was measured for it; `depends` names on what; `undecided` was looked at
without an end; everything else is not yet measured. Each verdict function sees tables, so that opposite data shows the
opposite verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness import stats, store, units
from harness.tables import answers, changes, external, governed, hops, lookups, mtls, policies, requests, shares, text

SUPPORTED: Literal["supported"] = "supported"
REFUTED: Literal["refuted"] = "refuted"
DEPENDS: Literal["depends"] = "depends"
UNDECIDED: Literal["undecided"] = "undecided"
UNMEASURED: Literal["not yet measured"] = "not yet measured"

NAMES, COST, WAY = "01-name-resolution", "02-request-cost", "03-traffic-path"  # notebooks
BUYS, FOLLOWING = "04-what-the-sidecar-buys", "05-following-change"
TEXTS = {
    "C1": "Without interception, a DNS answer with the real address makes the call bypass the proxy.",
    "C2": "Interception is a network-layer act, independent of how the name was resolved.",
    "C3": "If DNS returns the sidecar's own address, a loop can result.",
    "C4": "In mode 1 the call goes ClusterIP → redirect to 15001 → the sidecar resolves again → endpoint.",
    "C5": "Mode 1 is compatible with non-mesh environments: if the sidecar fails, traffic can go direct (strict mode "
    "off).",
    "C6": "Mode 1 makes the sidecar resolve names, which may add latency.",
    "C7": "In mode 2 the name resolves inside the pod to a virtual address, and the connection is redirected to the "
    "local sidecar.",
    "C8": "Mode 2 saves network hops.",
    "C9": "Mode 2 depends on the sidecar's DNS, and is more complex: what fails with it?",
    "C10": "Istio's DNS proxying may answer with a virtual IP such as 127.0.0.1, or with ServiceEntry addresses.",
    "C11": "A ServiceEntry brings an external name (api.example.com) into the mesh, and the sidecar handles its "
    "resolution.",
    "C12": "Strict mTLS needs all traffic through sidecars and DNS answers that they recognise; permissive allows "
    "direct calls and real addresses.",
    "C13": "Choose mode 1 for compatibility and simplicity, mode 2 for performance and control.",
    "C14": "With headless Services and the Endpoints API the sidecar learns instance addresses dynamically.",
    "C15": "A control plane keeps DNS and traffic policy in one place.",
    "C16": "Applications need no change and cannot tell.",
    "C17": "Retries, circuit breaking, load balancing and monitoring work only for traffic that passes the sidecar.",
}


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one claim."""

    claim: str  # C1 to C17
    verdict: Literal["supported", "refuted", "depends", "undecided", "not yet measured"]
    because: str  # one sentence
    numbers: str  # counts, estimates, intervals
    notebook: str  # that shows them; "" if none does


def verdicts(runs: store.Runs) -> list[Verdict]:
    """All claims, in order."""
    path = requests.path(runs)
    codes = lookups.return_codes(runs)
    matrix = answers.matrix(runs)
    decided = {
        each.claim: each
        for each in (
            bypass(matrix),
            interception(path, matrix),
            loop(matrix),
            mode1_path(path, requests.resolutions(runs)),
            without_sidecar(matrix),
            resolving_cost(
                requests.difference(runs, requests.STATIC, requests.MODE1),
                requests.floor(runs),
                _row(path, *requests.MODE1),
            ),
            mode2_path(path, matrix),
            hops_saved(hops.counts(runs)),
            virtual_answers(path, matrix),
            choice(requests.changes(runs), requests.changes(runs, "keepalive")),
            external_name(external.table(runs)),
            strict_mtls(mtls.matrix(runs)),
            learnt(changes.followed(runs)),
            one_model(governed.table(runs)),
            transparency(codes, path),
            passing(policies.faults(runs), policies.replicas(runs), policies.split(runs)),
        )
    }
    return [decided.get(claim, _unmeasured(claim)) for claim in TEXTS]


def table(found: list[Verdict]) -> pd.DataFrame:
    """A row per claim."""
    return pd.DataFrame(
        [
            {
                "claim": each.claim,
                "text": TEXTS[each.claim],
                "verdict": each.verdict,
                "because": each.because,
                "numbers": each.numbers,
                "notebook": each.notebook,
            }
            for each in found
        ]
    )


def _unmeasured(claim: str, why: str = "no experiment of these runs decides it") -> Verdict:
    return Verdict(claim, UNMEASURED, why, "", "")


def _row(path: pd.DataFrame, arm: str, backend: str) -> dict[str, Any] | None:
    found = path[(path["arm"] == arm) & (path["backend"] == backend)]
    return {str(key): value for key, value in found.iloc[0].items()} if len(found) else None


def _rows(path: pd.DataFrame, arm: str) -> dict[str, int]:
    """Sums over the backends of an arm."""
    whole = path[path["arm"] == arm].drop(columns=["arm", "backend", "seconds"])
    return {str(name): int(total) for name, total in whole.sum().items()} if len(whole) else {}


Rows = list[dict[Any, Any]]
_NO_MATRIX = f"needs names answered in other ways; {answers.MEASURE}"


def _outcomes(found: Rows) -> str:
    """`a pod's address 24 direct, a ClusterIP 24 direct`."""
    said = []
    for row in found:
        counted = " and ".join(f"{row[name]} {name}" for name in answers.OUTCOMES if row[name])
        said.append(f"{answers.MEANINGS[row['answer']]} {counted}")
    return ", ".join(said)


def bypass(matrix: pd.DataFrame) -> Verdict:
    """C1: a pod's real address, with nothing that intercepts, while a sidecar stands by."""
    without = answers.rows(matrix, "pod", arm=answers.GUARDED, intercepted=False, sidecar="up")
    beside = answers.rows(matrix, "pod", arm=answers.GUARDED, intercepted=True, sidecar="up")
    if not without:
        return _unmeasured("C1", _NO_MATRIX)
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
    sums = {arm: rows for arm in ("mode1", *lookups.PROXIED) if (rows := _rows(path, arm))}
    numbers = [
        f"{each['redirected']} of {each['requests']} connections redirected in {arm}" for arm, each in sums.items()
    ]
    uneven = any(each["redirected"] != each["requests"] for each in sums.values())
    away = answers.rows(matrix, *answers.AWAY, arm=answers.GUARDED, intercepted=True, sidecar="up")
    home = answers.rows(matrix, *answers.HOME, arm=answers.GUARDED, intercepted=True, sidecar="up")
    if away:
        numbers.append(f"{answers.share(away)} to answers outside the pod")
        uneven |= any(row["redirected"] != row["requests"] for row in away)
    if home:
        numbers.append(f"{answers.share(home)} to the pod itself")
    notebook = WAY if away else COST
    if uneven:
        because = "the share of connections redirected is not the same for all ways to resolve"
        return Verdict("C2", REFUTED, because, ", ".join(numbers), notebook)
    if away and home and answers.redirected(home) != sum(row["requests"] for row in home):
        because = "on the address, not on how it was resolved: all are intercepted but those of the pod itself"
        return Verdict("C2", DEPENDS, because, ", ".join(numbers), WAY)
    if away:
        return Verdict("C2", SUPPORTED, "every answer was intercepted alike", ", ".join(numbers), WAY)
    if not {"mode1"} < set(sums):
        return _unmeasured("C2", "needs requests in both modes")
    because = "both ways to resolve were intercepted alike, but only ClusterIP and virtual IP answers were tried"
    return Verdict("C2", UNDECIDED, because, ", ".join(numbers), COST)


def loop(matrix: pd.DataFrame) -> Verdict:
    """C3: answered with the sidecar's own address and port, with the guard that Istio configures and without."""
    found = answers.rows(matrix, *answers.TO_SIDECAR, sidecar="up", intercepted=True)
    if not found:
        return _unmeasured("C3", _NO_MATRIX)
    numbers = "; ".join(
        f"{answers.meaning(row['answer'], row['arm'])}: {row['outcome']}"
        + (f", ended {row['stopped']}" if row["looped"] else "")
        for row in found
    )
    if any(row["passed through"] > row["requests"] for row in found if row["looped"]):
        held = any(row["at guard"] for row in found)
        because = "the sidecar connected to itself again and again" + (
            " where it has no guard; with the guard the first connection is the last" if held else ""
        )
        return Verdict("C3", SUPPORTED, because, numbers, WAY)
    if any(row["arm"] == answers.UNGUARDED for row in found):
        return Verdict("C3", REFUTED, "no sidecar connected to itself, not even without its guard", numbers, WAY)
    return Verdict("C3", UNDECIDED, "with the guard none; without it not measured", numbers, WAY)


def without_sidecar(matrix: pd.DataFrame) -> Verdict:
    """C5: mode 1's own answer, the ClusterIP, with a sidecar that is down."""
    kept, open_ = (
        answers.rows(matrix, "clusterip", arm=answers.GUARDED, intercepted=on, sidecar="down") for on in (True, False)
    )
    if not kept or not open_:
        return _unmeasured("C5", _NO_MATRIX)
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
    pairs = served[served["arm"] == hops.MODE1].merge(served[served["arm"] == hops.MODE2], on="run")
    if pairs.empty:
        return _unmeasured("C8", "needs a traced request in both modes")
    each = served[served["run"] == pairs["run"].iloc[-1]]
    numbers = "; ".join(
        f"{row['arm']} {row['DNS exchanges']} DNS exchanges ({row['DNS leaving']} leaving a pod), "
        f"{row['connections']} connections ({row['connections leaving']} leaving), "
        f"{row['DNS packets']} + {row['TCP packets']} packets, {row['hops']} hops in all, "
        f"{row['hops between pods']} of them between pods"
        for row in each.to_dict("records")
        if row["arm"] in (hops.MODE1, *lookups.PROXIED)
    )
    columns = ["exchanges of the name found", "connections"]
    columns += ["exchanges each"] * bool(pairs["names not found_x"].all() and pairs["names not found_y"].all())
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
        return _unmeasured("C10", _NO_MATRIX)
    sums = _rows(path, lookups.MODE2) or _rows(path, lookups.MODE2_ENVOY)
    numbers = f"captured, sidecar up: {_outcomes([row for row in tried.values() if row])}"
    numbers += f"; {answers.share([tried['loopback']])} to 127.0.0.1 redirected"
    numbers += (
        f"; mode 2 answered a virtual IP {sums['answered virtual IP']} of {sums['answers']} times" if sums else ""
    )
    lacking = [answers.MEANINGS[each] for each, row in tried.items() if not row]
    if lacking:
        return Verdict("C10", UNDECIDED, f"not tried with mode 2's sidecar: {text.listed(lacking)}", numbers, WAY)
    mixed = [each for each, row in tried.items() if row and 0 < row["proxied"] < row["requests"]]
    if mixed:
        because = f"only some calls to {answers.MEANINGS[mixed[0]]} passed the sidecar"
        return Verdict("C10", UNDECIDED, because, numbers, WAY)
    led = [answers.MEANINGS[each] for each, row in tried.items() if row and row["proxied"]]
    astray = [answers.MEANINGS[each] for each, row in tried.items() if row and not row["proxied"]]
    if not led or (sums and not sums["answered virtual IP"]):
        because = "no such address leads to the service" if not led else "mode 2 answered no virtual IP"
        return Verdict("C10", REFUTED, because, numbers, WAY)
    if not astray:
        return Verdict("C10", SUPPORTED, "each of these addresses leads to the service", numbers, WAY)
    because = f"on the address: {text.listed(led)} lead to the service by the sidecar, {text.listed(astray)} does not"
    return Verdict("C10", DEPENDS, because, numbers, WAY)


def _captured(matrix: pd.DataFrame, answer: str) -> dict[Any, Any] | None:
    """The cell of mode 2's sidecar, captured and up; for 127.0.0.1 that of mode 1's if there is none."""
    arms = (answers.MODE2, *[answers.GUARDED] * (answer == "loopback"))
    found = [row for arm in arms for row in answers.rows(matrix, answer, arm=arm, intercepted=True, sidecar="up")]
    return found[0] if found else None


def mode1_path(path: pd.DataFrame, resolved: requests.Resolutions) -> Verdict:
    """C4: each part of the path counted what the client made."""
    row = _row(path, *requests.MODE1)
    if row is None:
        return _unmeasured("C4", "needs requests in mode 1 with both sidecars")
    parts = {
        "answered with the ClusterIP": (row["answered ClusterIP"], row["answers"]),
        "redirected to the sidecar": (row["redirected"], row["requests"]),
        "forwarded by the sidecar": (row["in sidecar"], row["requests"]),
    }
    numbers = ", ".join(f"{what} {counted} of {made}" for what, (counted, made) in parts.items())
    numbers += f"; the sidecar resolved {resolved.attempts} times, with {resolved.queries} queries, {resolved.span}"
    if broken := [what for what, (counted, made) in parts.items() if counted != made]:
        return Verdict("C4", REFUTED, f"not every call was {' or '.join(broken)}", numbers, COST)
    if not resolved.queries:
        because = "the path up to the sidecar was counted, but no second resolution was seen"
        return Verdict("C4", UNDECIDED, because, numbers, COST)
    static = _row(path, *requests.STATIC)
    if static is not None and static["in sidecar"] == static["requests"]:
        because = "on how the sidecar knows endpoints: by STRICT_DNS it resolves again, given them it forwards without"
        return Verdict("C4", DEPENDS, because, numbers, COST)
    return Verdict(
        "C4", SUPPORTED, "each part of the path counted every call, and the sidecar resolved again", numbers, COST
    )


def resolving_cost(
    found: stats.Difference | None, floor: stats.NoiseFloor | None, row: dict[str, Any] | None = None
) -> Verdict:
    """C6: STRICT_DNS against endpoints that are known, same replicas."""
    if found is None or found.absolute.n < 2:
        return _unmeasured("C6", "needs mode 1 with both kinds of endpoints in two blocks")
    numbers = f"STRICT_DNS minus known endpoints {_both(found)} (p50, {text.blocks(found.absolute.n)})"
    if row is not None and row["requests"]:
        numbers += f"; {row['re-resolutions']} re-resolutions in {row['requests']} requests"
    reading = text.reading(found, floor)
    if reading == "more":
        return Verdict("C6", SUPPORTED, "requests take longer where the sidecar resolves the endpoints", numbers, COST)
    seen = "requests take even less" if reading == "less" else reading
    because = (
        f"in steady state {seen}, as the sidecar resolves in the background; a cold or slow cluster DNS is not measured"
    )
    return Verdict("C6", UNDECIDED, because, numbers, COST)


def mode2_path(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C7: answers, queries and connections of mode 2 all stay in the pod up to the sidecar, by either DNS proxy.

    Where the answer matrix was measured, mode 2's sidecar must also serve what is captured at a virtual IP.
    """
    found = {arm: sums for arm in reversed(lookups.PROXIED) if (sums := _rows(path, arm))}
    if not found:
        return _unmeasured("C7", "needs requests in mode 2")
    numbers, broken = [], []
    for arm, sums in found.items():
        parts = {
            "answered with a virtual IP": (sums["answered virtual IP"], sums["answers"]),
            "resolved by the sidecar": (sums["at DNS proxy"], sums["client queries"]),
            "redirected to the sidecar": (sums["redirected"], sums["requests"]),
        }
        counted = ", ".join(f"{what} {seen} of {made}" for what, (seen, made) in parts.items())
        numbers.append(f"{arm}: {counted}, forwarded {sums['forwarded']}")
        broken += [f"{what} in {arm}" for what, (seen, made) in parts.items() if seen != made]
        broken += [f"kept inside the pod in {arm}"] * bool(sums["forwarded"])
    cells = answers.rows(matrix, "virtual", arm=answers.MODE2)
    for row in cells:
        where = answers.condition(row["intercepted"], row["sidecar"])
        numbers.append(f"a virtual IP, {where}: {_outcomes([row])}")
        if row["intercepted"] and row["sidecar"] == "up" and row["proxied"] != row["requests"]:
            broken.append("served by the sidecar at a virtual IP")
    if broken:
        return Verdict("C7", REFUTED, f"not every call was {' or '.join(broken)}", "; ".join(numbers), COST)
    because = "for names the sidecar knows, every query and connection ended in it"
    because += ", and a virtual IP leads nowhere else" if cells and not any(row["direct"] for row in cells) else ""
    return Verdict("C7", SUPPORTED, because, "; ".join(numbers), WAY if cells else COST)


def choice(new: pd.DataFrame, kept: pd.DataFrame) -> Verdict:
    """C13: only the word performance is decided here, new connections and kept ones apart."""
    fresh, open_ = _change(new), _change(kept)
    if fresh is None:
        return _unmeasured("C13", "needs requests in both modes")
    found = fresh["p50"]
    numbers = f"mode 2 minus mode 1, new connection {_both(found)}"
    numbers += "" if open_ is None else f", kept alive {_both(open_['p50'])}"
    numbers += f" (p50, {text.blocks(found.absolute.n)})"
    rest = "compatibility, simplicity and control are not measured yet"
    if fresh["reading"] == "more":
        return Verdict("C13", REFUTED, f"mode 2 is the slower one on new connections; {rest}", numbers, COST)
    if fresh["reading"] != "less":
        return Verdict("C13", UNDECIDED, f"new connections: {fresh['reading']}; {rest}", numbers, COST)
    if open_ is None:
        because = f"mode 2 is faster on new connections; kept ones are not measured; {rest}"
        return Verdict("C13", UNDECIDED, because, numbers, COST)
    if open_["reading"] == "less":
        return Verdict(
            "C13", DEPENDS, f"on what is weighed: mode 2 is faster, new and kept alive; {rest}", numbers, COST
        )
    kept_alive = "slower" if open_["reading"] == "more" else open_["reading"]
    because = (
        f"on the connection: mode 2 is faster where every request resolves its name; kept alive: {kept_alive}; {rest}"
    )
    return Verdict("C13", DEPENDS, because, numbers, COST)


def _change(changes: pd.DataFrame) -> dict[Any, Any] | None:
    if changes.empty:
        return None
    for what in ("mode 2 for mode 1, both sidecars", "mode 2 for mode 1, client only"):
        if found := changes[changes["change"] == what].to_dict("records"):
            return found[0]
    return None


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
        return _unmeasured("C14", "needs endpoints that change under load; `meshdns report --plan change`")
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
        because = "traffic followed every change, on new connections and on kept ones"
        return Verdict("C14", SUPPORTED, because, numbers, FOLLOWING)
    stay = "new ones follow the name and kept ones stay until they break"
    name = stay if all(fresh) else "not even all new ones follow in time"
    because = "on the Service: endpoints are pushed to the sidecar, which follows every change"
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
    return f"{said}, at p50 in {units.duration(slowest.p50)} at most ({changes.spread(slowest)})"


def external_name(found: pd.DataFrame) -> Verdict:
    """C11: whether sidecars send api.example.com by what the ServiceEntry says; TCP services on one port as well."""
    named = external.rows(found, external.API, arms=policies.MODES)
    if not named:
        return _unmeasured("C11", f"needs calls of an external name through a sidecar; {policies.PLAN}")
    numbers = "; ".join(
        f"{row['arm']} {row['right']} of {row['connections']} served, {row['in the sidecar']} of "
        f"{row['requests made']} by the sidecar's own route, answered a {row['answered']} address"
        for row in named
    )
    broken = [row["arm"] for row in named if not external.through(row)]
    if len(broken) == len(named):
        return Verdict("C11", REFUTED, "in no mode did the sidecar send all requests by its own route", numbers, BUYS)
    if broken:
        because = f"on the mode: not all requests were sent by the sidecar's own route in {policies.listed(broken)}"
        return Verdict("C11", DEPENDS, because, numbers, BUYS)
    streams = external.rows(found, *external.TCP, arms=policies.MODES)
    wrong = [row for row in streams if row["right"] < row["connections"]]
    if streams:
        counted = [f"{row['backend']} in {row['arm']} {row['right']} of {row['connections']}" for row in streams]
        numbers += f"; TCP connections that the right server answered: {', '.join(counted)}"
    if wrong:
        where = policies.listed(dict.fromkeys(f"{row['backend']} in {row['arm']}" for row in wrong))
        because = f"on protocol and mode: HTTP works, but of TCP services on one port not all are told apart: {where}"
        return Verdict("C11", DEPENDS, because, numbers, BUYS)
    both = " and so do TCP services on one port" if streams else "; TCP services are not measured"
    return Verdict("C11", SUPPORTED, f"every request takes the sidecar's own route{both}", numbers, BUYS)


def strict_mtls(matrix: pd.DataFrame) -> Verdict:
    """C12: clients with and without a sidecar, where servers want mutual TLS and where they take both."""
    asked = {
        "strict, no sidecar": mtls.rows(matrix, mtls.STRICT, policies.PLAIN),
        "strict, sidecar": mtls.rows(matrix, mtls.STRICT, *policies.MODES),
        "permissive, no sidecar": mtls.rows(matrix, mtls.PERMISSIVE, policies.PLAIN),
    }
    if not all(asked.values()):
        return _unmeasured("C12", f"needs strict and permissive servers and clients of both kinds; {policies.PLAN}")
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
        return _unmeasured("C15", f"needs a control plane that feeds DNS and sidecars; {policies.PLAN}")
    agree = found[found["agree"] == "yes"]
    virtual = int((found["address"] == external.VIRTUAL).sum())
    numbers = f"{len(agree)} of {len(found)} names agree; {virtual} have a virtual address, which was looked for in "
    numbers += f"{int(found['sidecars'].max())} sidecars"
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
    meshed = [row for row in found.to_dict("records") if row["arm"] in policies.MODES]
    works, numbers = _works(meshed), [_gain(meshed)]
    for name, (policy, event) in _WORK.items():
        if mine := [row for row in meshed if row["policy"] == policy]:
            count, asked = sum(int(row[event]) for row in mine), sum(row["requests"] for row in mine)
            numbers.append(f"{name} {count} times in {asked} requests")
    split = divided[(divided["policy"] == policies.SPLIT) & divided["arm"].isin(policies.MODES)].to_dict("records")
    works |= {"traffic split": all(row["10 % inside"] == "yes" for row in split)} if split else {}
    numbers += [f"split {shares.percent(row['share of v2'])} in {row['arm']}" for row in split]
    if not works:
        return _unmeasured("C17", f"needs policies for faulty replicas; {policies.PLAN}")
    outside, told = _without(found, answered, divided)
    said = "; ".join(each for each in [*numbers, *told] if each)
    acting, idle = ([name for name, acts in works.items() if acts == kind] for kind in (True, False))
    if not acting:
        return Verdict("C17", REFUTED, "no policy acted even on traffic that passes a sidecar", said, BUYS)
    if same := [name for name in outside if name in works]:
        because = f"without a sidecar there was {policies.listed(same)} too"
        return Verdict("C17", REFUTED, because, said, BUYS)
    if idle:
        because = f"on the policy: {policies.listed(acting)} acted, {policies.listed(idle)} did not"
        return Verdict("C17", DEPENDS, because, said, BUYS)
    if outside:
        because = (
            f"on what is meant: {policies.listed(acting)} act only in a sidecar, but connections to a ClusterIP are "
            "spread over the replicas without one"
        )
        return Verdict("C17", DEPENDS, because, said, BUYS)
    return Verdict("C17", SUPPORTED, f"{policies.listed(acting)} were seen only in a sidecar", said, BUYS)


def _works(meshed: Rows) -> dict[str, bool]:
    """Whether each policy that was in force was seen to act; retries must also serve more requests."""
    found = {}
    for name, (policy, event) in _WORK.items():
        if mine := [row for row in meshed if row["policy"] == policy]:
            served = policy != "retries" or any(row["reading"] == "more" for row in mine)
            found[name] = served and any(row[event] for row in mine)
    return found


def _gain(meshed: Rows) -> str:
    """The largest gain in served requests under a policy."""
    known = [row for row in meshed if row["policy"] != policies.NONE and row[policies.AGAINST] is not None]
    if not known:
        return ""
    best = max(known, key=lambda row: float(row[policies.AGAINST].estimate))
    gain = shares.points(best[policies.AGAINST])
    return f"{best['row']}: {gain} served in {best['arm']} against no mesh ({text.blocks(best['blocks'])})"


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


def transparency(codes: pd.DataFrame, path: pd.DataFrame) -> Verdict:
    """C16: the same program ran in every arm; whether it could tell is asked by AAAA for an A-only name."""
    plain = lookups.aaaa(codes, "plain") if len(codes) else ""
    modes = {arm: lookups.aaaa(codes, arm) for arm in ("mode1", *lookups.PROXIED)} if len(codes) else {}
    told = {arm: answer for arm, answer in modes.items() if answer and answer != plain}
    if not plain or not any(modes.values()):
        return _unmeasured("C16", "needs AAAA lookups with and without a mesh")
    numbers = ", ".join(f"{arm} {answer}" for arm, answer in {"plain": plain, **modes}.items() if answer)
    numbers = (
        f"AAAA for an A-only name: {numbers}; {int(path['answers'].sum())} requests by the same program in all arms"
    )
    if told:
        arms = " and ".join(told)
        because = (
            f"on what they look at: requests succeed unchanged, but an AAAA query is answered differently in {arms}"
        )
        return Verdict("C16", DEPENDS, because, numbers, NAMES)
    return Verdict(
        "C16", UNDECIDED, "the one program tried needs no change and sees no difference; others follow", numbers, NAMES
    )


def _both(found: stats.Difference) -> str:
    return f"{units.interval(found.absolute, signed=True)}, {text.percent(found.relative)}"


def answer(found: list[Verdict]) -> str:
    """How the claims stand."""
    by_verdict = {
        name: [each.claim for each in found if each.verdict == name]
        for name in (SUPPORTED, DEPENDS, REFUTED, UNDECIDED, UNMEASURED)
    }
    decided = len(by_verdict[SUPPORTED]) + len(by_verdict[DEPENDS]) + len(by_verdict[REFUTED])
    said = [
        f"{len(claims)} {name} ({', '.join(claims)})"
        for name, claims in by_verdict.items()
        if claims and name != UNMEASURED
    ]
    tail = f"{len(by_verdict[UNMEASURED])} are not yet measured"
    return (
        f"{decided} of {len(found)} claims have a verdict: {'; '.join([*said, tail])}."
        if said
        else f"None of {len(found)} claims is measured yet."
    )
