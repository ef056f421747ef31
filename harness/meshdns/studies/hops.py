"""Notebook 03: what one traced request shows, as tables, counts and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from tabulate import tabulate

from meshdns import store
from meshdns.analysis import absent, provenance
from meshdns.analysis.text import ABSENT
from meshdns.core import units
from meshdns.core.world import World
from meshdns.studies.transfers import NOT_RECORDED, SERVER, SERVER_SIDECAR, Entry, Hop, Kind, Path, Pod, read

MODE1, MODE2 = "mode1", "mode2-agent"


def traces(runs: store.Runs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Run and trace, of every arm that each run traced."""
    for header in runs.headers:
        for trace in provenance.branch(header.facts, "traces").values():
            yield header.name, trace


def paths(runs: store.Runs) -> dict[str, Path]:
    """Arm -> its traced request, of the last run that has one."""
    return {path.arm: path for path in (read(trace, runs.world) for _, trace in traces(runs))}


def table(found: Mapping[str, Path], *arms: str) -> pd.DataFrame:
    """A row per hop of these arms, in order."""
    rows = [{"arm": arm} | line for arm in arms if arm in found for line in _lines(found[arm])]
    whole = absent.knowing(pd.DataFrame(rows, columns=["arm", *_HEADS]), (absent.TRACES,))
    others = [arm for arm in found if arm not in arms]
    return absent.leaving(whole, others, "What each part saw of their requests is listed with that of all arms.")


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
           "names not found", "exchanges each", "exchanges of the name found",
           "hops", "hops between pods", "packets"]  # fmt: skip


def totals(path: Path) -> dict[str, int]:
    """Hops and packets by kind; `leaving`: not over a pod's loopback. The sidecar's own lookups are not counted."""
    found: list[int] = []
    kinds: tuple[Kind, ...] = ("DNS", "TCP")
    for hops in map(path.of, kinds):
        found += [len(hops), sum(not hop.inside for hop in hops), sum(hop.packets for hop in hops)]
    address = path.request["address"]
    right = [each for each in path.questions() if address and address in each[0].answer.split(", ")]
    wrong = [each for each in path.questions() if each not in right]
    dns_hops, dns_leaving, dns_packets, connections, leaving, tcp_packets = found
    found += [len(wrong), max(map(len, wrong), default=0), max(map(len, right), default=0)]
    found += [dns_hops + connections, dns_leaving + leaving, dns_packets + tcp_packets]
    return dict(zip(_COUNTS, found, strict=True))


def counts(runs: store.Runs) -> pd.DataFrame:
    """A row per run and arm: how its traced request ended, hops and packets by kind, DNS exchanges by question."""
    rows = []
    for run, trace in traces(runs):
        path = read(trace, runs.world)
        rows.append({"run": run, "arm": path.arm, "outcome": path.request["outcome"]} | totals(path))
    return absent.knowing(pd.DataFrame(rows, columns=["run", "arm", "outcome", *_COUNTS]), (absent.TRACES,))


# --- what every part saw ---


def seen(found: Mapping[str, Path]) -> pd.DataFrame:
    """A row per arm: its traced request's hops and packets, and what each part saw of it."""
    rows = [{"arm": arm} | _seen(path) for arm, path in found.items()]
    return absent.knowing(pd.DataFrame(rows, columns=["arm", *_SEEN]), (absent.TRACES,))


_SEEN = ["hops", "between pods", "packets", "DNS questions", "rules that moved", "conntrack, client's pod",
         "conntrack, server's pod", "Envoy listener", "filter chain", "cluster", "rewritten addresses"]  # fmt: skip


def _seen(path: Path) -> dict[str, object]:
    total, ends = totals(path), _ends_of(path)
    client, server = ends["client"], ends.get("server")
    known = [
        *(total[name] for name in ("hops", "hops between pods", "packets")),
        "; ".join(_asked(each) for each in path.questions()) or ABSENT,
        _each(ends, lambda pod: _rules(pod.rules)),
        _entries(client.entries),
        _entries(server.entries) if server else ABSENT,
        _each(ends, lambda pod: pod.taken.listener),
        _each(ends, lambda pod: pod.taken.chain),
        _each(ends, lambda pod: pod.taken.cluster),
        "; ".join(_rewrites(path)) or "none",
    ]
    return dict(zip(_SEEN, known, strict=True))


def _ends_of(path: Path) -> dict[str, Pod]:
    """The pods of the client and of the server that answered."""
    names = {"client": path.pod, "server": path.served}
    return {end: path.pods[pod] for end, pod in names.items() if pod in path.pods}


def _each(ends: Mapping[str, Pod], said: Callable[[Pod], str]) -> str:
    """What is known at either end."""
    return "; ".join(f"{end}: {words}" for end, pod in ends.items() if (words := said(pod))) or ABSENT


def _asked(question: Sequence[Hop]) -> str:
    return f"{question[0].said.removesuffix('?')}: {question[0].answer or question[0].ending}"


def _rules(moved: Mapping[str, float] | None) -> str:
    if moved is None:
        return NOT_RECORDED
    return ", ".join(f"{name} {count:g}" for name, count in sorted(moved.items())) or "none"


def _entries(found: Sequence[Entry] | None) -> str:
    if found is None:
        return NOT_RECORDED
    return "; ".join(f"{each.protocol} {each.ends}" for each in found) or "none"


def _rewrites(path: Path) -> list[str]:
    """Addresses before and after, by whatever rewrote them: rules leave an entry, programs and sockets do not."""
    of_hops = [f"{hop.asked} → {hop.reached}" for hop in path.hops if not hop.own and hop.asked != hop.reached]
    entries = [each for pod in _ends_of(path).values() for each in pod.entries or ()]
    return list(dict.fromkeys([*of_hops, *(each.ends for each in entries if each.rewritten)]))


# --- sentences ---


def answer(found: Mapping[str, Path]) -> str:
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
    return f"{each['hops']} ({each['hops between pods']} from pod to pod, {each['packets']} packets)"


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


def text(trace: Mapping[str, Any], world: World) -> str:
    """What `meshdns trace` prints."""
    path = read(trace, world)
    request = path.request
    served = f", {request['status']} from {request['replica'] or 'an unnamed server'}" if request["status"] else ""
    answered = f", told {request['address']}" if request["address"] else ", told no address"
    lines = [f"GET {path.url} from {path.pod}: {request['outcome']}{served}{answered}", _phases(request), ""]
    rows = [list(line.values()) for line in _lines(path)]
    lines += [tabulate(rows, _HEADS, tablefmt="plain", disable_numparse=True), ""]
    total = totals(path)
    lines.append(f"in all     {_amount(total)}; {total['DNS packets']} + {total['TCP packets']} packets")
    for pod, known in path.pods.items():
        if known.rules:
            lines.append(f"rules      {pod}: {_rules(known.rules)}")
    lines += [f"envoy      {pod}: {known.taken}" for pod, known in path.pods.items() if str(known.taken)]
    for pod, known in path.pods.items():
        lines += [f"conntrack  {pod}: {_tracked(each)}" for each in known.entries or ()]
    return "\n".join(lines)


def _tracked(each: Entry) -> str:
    zone = f" (zone {each.zone})" if each.zone else ""
    return f"{each.protocol} {each.source}: {each.ends}{zone}"


_INSTANTS = ("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")
_PHASES = ("dns", "connect", "tls", "first byte", "transfer")


def _phases(request: Mapping[str, Any]) -> str:
    instants = [int(request[name]) for name in _INSTANTS]
    spans = [later - earlier for earlier, later in pairwise(instants)]
    said = [f"{name} {units.duration(ns, 'µs')}" for name, ns in zip(_PHASES, spans, strict=True) if ns]
    return ", ".join([*said, f"total {units.duration(instants[-1] - instants[0], 'µs')}"])
