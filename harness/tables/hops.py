"""Notebook 03: what one traced request shows, as tables, counts and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness import store, units
from harness.tables import provenance
from harness.tables.text import ABSENT
from harness.tables.transfers import SERVER, SERVER_SIDECAR, Kind, Path, Translation, read

MODE1, MODE2 = "mode1", "mode2-agent"


def traces(runs: store.Runs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Run and trace, of every arm that each run traced."""
    for header in runs.headers:
        for trace in provenance.branch(header.facts, "traces").values():
            yield header.name, trace


def paths(runs: store.Runs) -> dict[str, Path]:
    """Arm -> its traced request, of the last run that has one."""
    return {path.arm: path for path in (read(trace) for _, trace in traces(runs))}


def table(found: Mapping[str, Path], *arms: str) -> pd.DataFrame:
    """A row per hop of these arms, in order."""
    rows = [{"arm": arm} | line for arm in arms if arm in found for line in _lines(found[arm])]
    return pd.DataFrame(rows, columns=["arm", *_HEADS])


_HEADS = ["#", "times", "kind", "from", "to", "where", "asked for", "reached", "packets", "bytes", "said", "answer",
          "taken by"]  # fmt: skip


def _lines(path: Path) -> Iterator[dict[str, object]]:
    for number, row in enumerate(path.rows(), 1):
        hop = row.hop
        yield {
            "#": number,
            "times": row.times,
            "kind": hop.kind,
            "from": f"{hop.source}{' (own)' if hop.own else ''}",
            "to": f"{hop.target} ({hop.pods[1]})" if hop.target in (SERVER, SERVER_SIDECAR) else hop.target,
            "where": f"inside {hop.pods[0]}" if hop.inside else f"leaves {hop.pods[0]}",
            "asked for": hop.asked,
            "reached": hop.reached if hop.reached != hop.asked else "the same",
            "packets": hop.packets,
            "bytes": hop.size,
            "said": hop.said or ABSENT,
            "answer": hop.answer or hop.ending,
            "taken by": f"{hop.taken}{', connection kept' if hop.kept else ''}".lstrip(", ") or ABSENT,
        }


_COUNTS = ["DNS exchanges", "DNS leaving", "DNS packets", "connections", "connections leaving", "TCP packets",
           "names not found", "exchanges each", "exchanges of the name found"]  # fmt: skip


def totals(path: Path) -> dict[str, int]:
    """Hops and packets by kind; `leaving`: not over a pod's loopback. The sidecar's own lookups are not counted."""
    found: list[int] = []
    kinds: tuple[Kind, ...] = ("DNS", "TCP")
    for hops in map(path.of, kinds):
        found += [len(hops), sum(not hop.inside for hop in hops), sum(hop.packets for hop in hops)]
    address = path.request["address"]
    right = [each for each in path.questions() if address and address in each[0].answer.split(", ")]
    wrong = [each for each in path.questions() if each not in right]
    found += [len(wrong), max(map(len, wrong), default=0), max(map(len, right), default=0)]
    return dict(zip(_COUNTS, found, strict=True))


def counts(runs: store.Runs) -> pd.DataFrame:
    """A row per run and arm: how its traced request ended, hops and packets by kind, DNS exchanges by question."""
    rows = []
    for run, trace in traces(runs):
        path = read(trace)
        rows.append({"run": run, "arm": path.arm, "outcome": path.request["outcome"]} | totals(path))
    return pd.DataFrame(rows, columns=["run", "arm", "outcome", *_COUNTS])


# --- sentences ---


def answer(found: Mapping[str, Path]) -> str:
    """What mode 2 saves of a request's way, and what it does not."""
    if MODE1 not in found or MODE2 not in found:
        return (
            "The way of a request was not traced in both modes in these runs; "
            "`meshdns report --plan quick` traces one in each arm."
        )
    one, two = found[MODE1], found[MODE2]
    return (
        f"For one request mode 1 made {_amount(totals(one))}; mode 2 made {_amount(totals(two))}. "
        f"{_searched(totals(one), totals(two))}{_ends(one, two)}"
    )


def _amount(each: Mapping[str, int]) -> str:
    return (
        f"{_several(each['DNS exchanges'], 'DNS exchange')} ({each['DNS leaving']} leaving a pod) and used "
        f"{_several(each['connections'], 'connection')} ({each['connections leaving']} leaving)"
    )


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _searched(one: Mapping[str, int], two: Mapping[str, int]) -> str:
    """The name that is found, and those of the search list before it."""
    said = [f"The name itself took {one['exchanges of the name found']} and {two['exchanges of the name found']}"]
    if one["names not found"] or two["names not found"]:
        said.append(
            f"each one of the search list that does not exist {one['exchanges each']} and {two['exchanges each']}"
        )
    return ", ".join(said) + ". "


def _ends(one: Path, two: Path) -> str:
    """Where the application's connection was to go, and where it went."""
    first, second = (next((hop for hop in path.of("TCP")), None) for path in (one, two))
    if first is None or second is None:
        return "Not in both a connection was made."
    asked = f"The application asked for {first.asked} in mode 1 and for {second.asked} in mode 2"
    if first.reached == second.reached:
        return f"{asked}, and both connections ended at {first.reached}."
    return f"{asked}; they ended at {first.reached} and {second.reached}."


def text(trace: Mapping[str, Any]) -> str:
    """What `meshdns trace` prints."""
    path = read(trace)
    request = path.request
    served = f", {request['status']} from {request['replica'] or 'an unnamed server'}" if request["status"] else ""
    answered = f", told {request['address']}" if request["address"] else ", told no address"
    lines = [f"GET {path.url} from {path.pod}: {request['outcome']}{served}{answered}", _phases(request), ""]
    rows = [list(line.values()) for line in _lines(path)]
    lines += [tabulate(rows, _HEADS, tablefmt="plain", disable_numparse=True), ""]
    total = totals(path)
    lines.append(f"in all     {_amount(total)}; {total['DNS packets']} + {total['TCP packets']} packets")
    moved = ", ".join(f"{name} {count:g}" for name, count in sorted(path.rules.items()))
    lines.append(f"rules      {moved or 'none moved'}")
    lines += [f"envoy      {pod}: {taken}" for pod, taken in path.taken.items()]
    lines += [f"conntrack  {_translated(each)}" for each in path.translations]
    return "\n".join(lines)


def _translated(each: Translation) -> str:
    zone = f" (zone {each.zone})" if each.zone else ""
    return f"{each.protocol} {each.source}: {each.asked} → {each.reached}{zone}"


_INSTANTS = ("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")
_PHASES = ("dns", "connect", "tls", "first byte", "transfer")


def _phases(request: Mapping[str, Any]) -> str:
    instants = [int(request[name]) for name in _INSTANTS]
    spans = [later - earlier for earlier, later in pairwise(instants)]
    said = [f"{name} {units.duration(ns, 'µs')}" for name, ns in zip(_PHASES, spans, strict=True) if ns]
    return ", ".join([*said, f"total {units.duration(instants[-1] - instants[0], 'µs')}"])
