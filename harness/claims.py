"""Notebook 00: tables in, verdicts out.

A claim is supported or refuted only by what was measured for it; `depends` names on what; `undecided` was looked at
without an end; everything else is not yet measured. Each verdict function sees tables, so that opposite data shows the
opposite verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from harness import stats, store, units
from harness.tables import answers, hops, lookups, requests, text

SUPPORTED: Literal["supported"] = "supported"
REFUTED: Literal["refuted"] = "refuted"
DEPENDS: Literal["depends"] = "depends"
UNDECIDED: Literal["undecided"] = "undecided"
UNMEASURED: Literal["not yet measured"] = "not yet measured"

NAMES, COST, WAY = "01-name-resolution", "02-request-cost", "03-traffic-path"  # notebooks
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
            mode2_path(path),
            hops_saved(hops.counts(runs)),
            virtual_answers(path, matrix),
            choice(requests.changes(runs), requests.changes(runs, "keepalive")),
            transparency(codes, path),
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
    """C8: DNS exchanges and connections of one traced request, in mode 1 and in mode 2 of the same run."""
    served = counts[counts["outcome"] == "ok"]
    pairs = served[served["arm"] == hops.MODE1].merge(served[served["arm"] == hops.MODE2], on="run")
    if pairs.empty:
        return _unmeasured("C8", "needs a traced request in both modes")
    each = served[served["run"] == pairs["run"].iloc[-1]]
    numbers = "; ".join(
        f"{row['arm']} {row['DNS exchanges']} DNS exchanges ({row['DNS leaving']} leaving a pod), "
        f"{row['connections']} connections ({row['connections leaving']} leaving), "
        f"{row['DNS packets']} + {row['TCP packets']} packets"
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


def virtual_answers(path: pd.DataFrame, matrix: pd.DataFrame) -> Verdict:
    """C10: whether 127.0.0.1 could serve as a virtual IP, and what mode 2 does answer."""
    tried = answers.rows(matrix, "loopback", arm=answers.GUARDED, intercepted=True, sidecar="up")
    if not tried:
        return _unmeasured("C10", _NO_MATRIX)
    sums = _rows(path, lookups.MODE2) or _rows(path, lookups.MODE2_ENVOY)
    numbers = f"{answers.share(tried)} to 127.0.0.1 redirected: {_outcomes(tried)}"
    numbers += (
        f"; mode 2 answered a virtual IP {sums['answered virtual IP']} of {sums['answers']} times" if sums else ""
    )
    rest = "ServiceEntry addresses are not measured"
    if tried[0]["proxied"] == tried[0]["requests"]:
        return Verdict(
            "C10", UNDECIDED, f"127.0.0.1 leads to the sidecar, so it could be answered; {rest}", numbers, WAY
        )
    if answers.redirected(tried):
        return Verdict("C10", UNDECIDED, f"some connections to 127.0.0.1 were intercepted; {rest}", numbers, WAY)
    if sums and not sums["answered virtual IP"]:
        because = f"127.0.0.1 is never intercepted, and mode 2 answered no virtual IP; {rest}"
        return Verdict("C10", REFUTED, because, numbers, WAY)
    if not sums:
        because = f"127.0.0.1 cannot be one, as it is never intercepted; virtual IPs were not asked for here; {rest}"
        return Verdict("C10", UNDECIDED, because, numbers, WAY)
    because = f"on the address: virtual IPs are answered, but 127.0.0.1 cannot be one: it is never intercepted; {rest}"
    return Verdict("C10", DEPENDS, because, numbers, WAY)


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


def mode2_path(path: pd.DataFrame) -> Verdict:
    """C7: answers, queries and connections of mode 2 all stay in the pod up to the sidecar, by either DNS proxy."""
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
    if broken:
        return Verdict("C7", REFUTED, f"not every call was {' or '.join(broken)}", "; ".join(numbers), COST)
    because = "for names the sidecar knows, every query and connection ended in it"
    return Verdict("C7", SUPPORTED, because, "; ".join(numbers), COST)


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
