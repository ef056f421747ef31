"""Which way a request takes: the words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from tabulate import tabulate

from meshdns import store
from meshdns.analysis import absent, cells, text
from meshdns.core import units
from meshdns.core.world import World
from meshdns.studies.names.tables import MODE1, MODE2
from meshdns.studies.path import tables
from meshdns.studies.path.hops import Path, read
from meshdns.studies.path.tables import GUARDED, KNOWING, UNGUARDED, Row, totals

MEASURE = "`meshdns report --plan interception` measures them"
WORDS = text.Words(
    headings={
        "number": "#", "source": "from", "own": "own lookup", "target": "to", "target_pod": "its pod",
        "inside": "inside the pod", "asked": "asked for", "rewritten": "rewritten to", "taken": "taken by",
        "kept": "connection kept", "dns_exchanges": "DNS exchanges", "dns_leaving": "DNS leaving",
        "dns_packets": "DNS packets", "tcp_packets": "TCP packets", "exchanges_found": "exchanges of the name found",
        "questions": "DNS questions", "rules": "rules that moved", "conntrack_client": "conntrack, client's pod",
        "conntrack_server": "conntrack, server's pod", "listener": "Envoy listener", "mode": "sidecar of",
        "intercepted": "captured", "served": "200", "at_sidecar": "at 15001",
    },
    values={
        "mode": {"mode1": "mode 1", "mode2": "mode 2"},
        "answer": {
            "pod": "a pod's address", "clusterip": "a ClusterIP", "virtual": "a virtual IP",
            "service-entry": "a ServiceEntry's address", "loopback": "127.0.0.1",
            "own": "the asking pod's own address", "unroutable": "an address where nobody is",
            "loopback-sidecar": "the sidecar's port at 127.0.0.1",
            "own-sidecar": "the sidecar's port at the own address",
        },
        "ended": {
            "guard": "by the guard", "circuit_breaker": "by the circuit breaker", "client": "by the client's time-out",
            "sidecar": "by the sidecar", "behind_sidecar": "behind the sidecar", "at_port": "at the sidecar's port",
            "leaving_pod": "leaving the pod", "in_pod": "in the pod",
        },
    },
    left_out="What each part saw of their requests is listed with that of all arms.",
)  # fmt: skip
HOPS = ["number", "times", *tables.HOP]
MATRIX = ["mode", "answer", "arm", "intercepted", "sidecar", "outcome", "ended", "connections_each", "requests",
          "served", "told", "silent", "redirected", "translated", "at_sidecar", "by_service", "forwarded",
          "passed_through", "overflow", "at_guard", "at_servers", "escaped"]  # fmt: skip


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    return [modes(tables.paths(runs)), outcomes(tables.matrix(runs))]


# --- traced requests ---


def modes(found: Mapping[str, Path]) -> str:
    """What mode 2 saves of a request's way, and what it does not."""
    if MODE1 not in found or MODE2 not in found:
        return (
            "The way of a request was not traced in both modes in these runs; "
            "`meshdns report --plan quick` traces one in each arm."
        )
    one, two = found[MODE1], found[MODE2]
    first, second = totals(one), totals(two)
    saved = first["hops"] - second["hops"]
    verdict = f"saves {_several(saved, 'hop')}" if saved > 0 else f"costs {_several(-saved, 'hop')} more"
    return (
        f"Mode 2 {verdict if saved else 'takes as many hops as mode 1'}: for one request mode 1 took {_hops(first)}, "
        f"mode 2 {_hops(second)}. Mode 1 made {_amount(first)}; mode 2 made {_amount(second)}. "
        f"{_searched(first, second)}{_ends(one, two)}"
    )


def _hops(each: Mapping[str, int]) -> str:
    return f"{each['hops']} ({each['between_pods']} from pod to pod, {each['packets']} packets)"


def _amount(each: Mapping[str, int]) -> str:
    return (
        f"{_several(each['dns_exchanges'], 'DNS exchange')} ({each['dns_leaving']} leaving a pod) and used "
        f"{_several(each['connections'], 'connection')} ({each['connections_leaving']} leaving)"
    )


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _searched(one: Mapping[str, int], two: Mapping[str, int]) -> str:
    """The name that is found, and those of the search list before it."""
    said = f"The name itself took {one['exchanges_found']} and {two['exchanges_found']}"
    if one["names_not_found"] or two["names_not_found"]:
        said += f", each one of the search list that does not exist {one['exchanges_each']} and {two['exchanges_each']}"
    return f"{said}. "


def _ends(one: Path, two: Path) -> str:
    """Where the application's connection was to go, and where it went."""
    first, second = (next(iter(path.of("TCP")), None) for path in (one, two))
    if first is None or second is None:
        return "Not in both a connection was made."
    asked = f"The application asked for {first.asked} in mode 1 and for {second.asked} in mode 2"
    if first.reached == second.reached:
        return f"{asked}, and both connections ended at {first.reached}."
    return f"{asked}; they ended at {first.reached} and {second.reached}."


def traced(trace: Mapping[str, Any], world: World) -> str:
    """What `meshdns trace` prints."""
    path = read(trace, world)
    request = path.request
    served = f", {request['status']} from {request['replica'] or 'an unnamed server'}" if request["status"] else ""
    answered = f", told {request['address']}" if request["address"] else ", told no address"
    lines = [f"GET {path.url} from {path.pod}: {request['outcome']}{served}{answered}", _phases(request), ""]
    listed = text.shown(tables.hops({path.arm: path}, path.arm), WORDS, HOPS)
    if isinstance(listed, pd.DataFrame):
        lines += [tabulate(listed.to_numpy().tolist(), [*listed], tablefmt="plain", disable_numparse=True), ""]
    total = totals(path)
    lines.append(f"in all     {_amount(total)}; {total['dns_packets']} + {total['tcp_packets']} packets")
    lines += [f"rules      {pod}: {known.moved}" for pod, known in path.pods.items() if known.rules]
    lines += [f"envoy      {pod}: {known.taken}" for pod, known in path.pods.items() if str(known.taken)]
    for pod, known in path.pods.items():
        for each in known.entries or ():
            zone = f" (zone {each.zone})" if each.zone else ""
            lines.append(f"conntrack  {pod}: {each.protocol} {each.source}: {each.ends}{zone}")
    return "\n".join(lines)


def _phases(request: Mapping[str, Any]) -> str:
    spans = {name: request[later] - request[earlier] for name, (later, earlier) in cells.PHASES.items()}
    said = [f"{name.replace('_', ' ')} {units.duration(ns, 'µs')}" for name, ns in spans.items() if ns]
    return ", ".join([*said, f"total {units.duration(request['end_ns'] - request['start_ns'], 'µs')}"])


# --- names that are answered otherwise ---


def meaning(answer: str) -> str:
    """The answered address in words."""
    return str(WORDS.value("answer", answer))


def named(row: Row) -> str:
    """The same, and whether the sidecar's guard was left out, or the arm if it is none that sentences tell of."""
    known = {GUARDED: "", KNOWING: "", UNGUARDED: ", no guard"}
    return meaning(row["answer"]) + known.get(row["arm"], f", {row['arm']}")


def condition(intercepted: object, sidecar: object) -> str:
    """What was done to capture and sidecar."""
    return f"{'captured' if intercepted else 'not captured'}, sidecar {sidecar}"


def end(row: Row) -> str:
    """What ended a loop, or where a request that was not served came to its end; "" of what was served."""
    ended = str(WORDS.value("ended", row["ended"] or ""))
    return f"{ended}, {_several(row['connections_each'], 'connection')} each" if row["looped"] else ended


def grid(table: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Of that mode's sidecar a row per answer, a column per condition: the outcome, and below it what ended it."""
    heads = [condition(captured, state) for captured in (True, False) for state in ("up", "down")]
    words: dict[str, dict[str, str]] = {head: {} for head in heads}
    found = cells.rows(table, mode=mode)
    for row in found:
        head = condition(row["intercepted"], row["sidecar"])
        words.setdefault(head, {})[named(row)] = f"{row['outcome']}\n{end(row)}".strip()
    whole = pd.DataFrame(words, index=list(dict.fromkeys(map(named, found))), dtype=object).fillna(text.ABSENT)
    return absent.knowing(whole, absent.known(table) or [tables.ANSWERS])


def outcomes(table: pd.DataFrame) -> str:
    """Whether the DNS answer decides the way."""
    if table.empty:
        return (
            f"What becomes of a request when its name is answered otherwise was not measured in these runs; {MEASURE}."
        )
    usual = {"arm": GUARDED, "sidecar": "up"}
    away, home = (cells.rows(table, **usual, intercepted=True, home=each) for each in (False, True))
    without = cells.rows(table, **usual, intercepted=False)
    said = f"With interception {share(away)} to addresses outside the pod were redirected to the sidecar"
    said += f", and {share(home)} to the pod itself; without it {share(without)}."
    if all(each["redirected"] == each["requests"] for each in away) and not redirected([*home, *without]):
        said += " So interception decides, and the DNS answer only where it names the pod itself."
    said += f" Captured with mode 1's sidecar up: {_fates([*away, *home])}."
    return " ".join([said, _known(table), *_loops(table)])


def _known(table: pd.DataFrame) -> str:
    """What a sidecar that knows virtual IPs makes of the same answers."""
    found = cells.rows(table, arm=KNOWING, intercepted=True, sidecar="up")
    if not found:
        return "Mode 2's sidecar, which knows virtual IPs, was not tried."
    return f"With mode 2's, which knows virtual IPs: {_fates(found)}."


def redirected(found: list[Row]) -> int:
    """Connections that the rules sent to the sidecar."""
    return sum(int(row["redirected"]) for row in found)


def share(found: list[Row]) -> str:
    """`24 of 24 connections`."""
    return f"{redirected(found)} of {_several(sum(int(row['requests']) for row in found), 'connection')}"


def _fates(found: list[Row]) -> str:
    by_outcome = text.grouped((row["outcome"], meaning(row["answer"])) for row in found)
    return "; ".join(f"{outcome}: {text.listed(answers)}" for outcome, answers in by_outcome.items())


def _loops(table: pd.DataFrame) -> list[str]:
    """How loops were ended, with and without the guard."""
    tried = cells.rows(table, to_sidecar=True, intercepted=True, sidecar="up")
    ends = text.grouped((end(row), named(row)) for row in tried if row["looped"])
    return [f"A loop was ended {each}: {text.listed(begun)}." for each, begun in ends.items()]
