"""How fast traffic follows a change of endpoints, and what becomes of it until then: the numbers.

A cell is one change in the middle of a load at a constant rate (`load`); the frames hold results over blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, provenance, text
from meshdns.core import errors, units
from meshdns.core.world import World
from meshdns.studies.change import load as loads
from meshdns.studies.change.load import Change, Load, Stay
from meshdns.studies.change.spells import Mean, Part, Spell

CHANGE, GONE, UNNOTICED = EXPERIMENTS = ("change", "gone", "unnoticed")
NEW, KEPT = CONNECTIONS = ("new", "keepalive")
CHANGES = ("up", "down", "replace", "unready", "crash")  # of a replica, in the order in which they are read
ALIVE = "unready"  # what is removed lives on, so that it can be kept
# How a sidecar knows the endpoints of what is called.
EDS, ORIGINAL_DST, STRICT_DNS, STRICT_DNS_30 = WAYS = (
    "EDS", "ORIGINAL_DST", "STRICT_DNS", "STRICT_DNS, TTL 30 s",
)  # fmt: skip
_SLOW = "shop-dns-30"  # whose records live for 30 s, the others' for 5
BAR_NS = 300 * units.NS_PER_MS  # what EDS may add to the probe period until a ready replica is asked first (p50)
JUDGED = "up"  # by that bar: nothing but readiness changes
BAR_HZ, BAR_S = 500.0, 60.0  # a change goes unnoticed if no request fails at such a rate for so long
MET = "met"
BIN_NS = 200 * units.NS_PER_MS  # of the timeline
SHARES = ("others", "removed", "added", "failed")
LEVELS = ["change", "backend", "arm", "connection"]
Row = dict[str, Any]
_SPELLS = {
    "followed": Spell, "added": Spell, "left": Spell, "errors": Mean, "failing": Mean, "over_probe": Spell,
    "took": Spell,
}  # fmt: skip


def endpoints(world: World, backend: str, *, sidecar: bool) -> str:
    """How the endpoints of this backend are known, by a sidecar or by a client without one."""
    service = world.backends.get(backend)
    if service is None:
        return backend
    if not sidecar:
        return "ClusterIP" if service.cluster_ip else "client's DNS"
    if service.external:
        return STRICT_DNS_30 if backend == _SLOW else STRICT_DNS
    return EDS if service.cluster_ip else ORIGINAL_DST


# --- cells ---


def _loads(runs: store.Runs, chosen: pd.DataFrame) -> Iterator[tuple[Row, Load, Change]]:
    """The cells in which a change was made while the load ran, with their requests."""
    if chosen.empty:
        return
    names = list(Load.__dataclass_fields__)
    there = runs.samples["experiment"].isin(chosen["experiment"].unique())
    near = runs.samples.loc[there, [*cells.KEY, *names]]
    keys = cells.keys(near, runs.headers)
    order = np.lexsort((near["start_ns"].to_numpy(), keys))
    keys = keys[order]
    columns = [np.asarray(near[name])[order] for name in names]
    for row in chosen.to_dict("records"):
        change = Change.of(row["agent"])
        begin, end = np.searchsorted(keys, (row["key"], row["key"] + 1))
        load = Load(*(each[begin:end] for each in columns))
        if change is not None and change.within(load):
            yield {str(name): value for name, value in row.items()}, load, change


def _per_cell(
    runs: store.Runs, of: Callable[[Row, Load, Change], Row], experiment: str = CHANGE, **levels: Any
) -> pd.DataFrame:
    """The cells of the experiment at these levels, with what `of` says of each."""
    chosen = cells.select(runs, experiment, **levels)
    return pd.DataFrame([row | of(row, load, change) for row, load, change in _loads(runs, chosen)])


def _levels(found: pd.DataFrame, runs: store.Runs) -> Iterator[tuple[Row, pd.DataFrame]]:
    """The levels that were measured, in the order of the page, each with its cells."""
    seen = looks.of_runs(runs)

    def place(level: tuple[str, ...]) -> list[tuple[int, str]]:
        change, backend, arm, connection = level
        way = looks.place(WAYS, endpoints(runs.world, backend, sidecar=True))
        known = looks.place(CHANGES, change), way, looks.place(seen.arms, arm), looks.place(CONNECTIONS, connection)
        return [*zip(known, level, strict=True)]

    groups = found.groupby(LEVELS, observed=True) if len(found) else ()
    parts = {tuple(map(str, level)): part for level, part in groups}
    for level in sorted(parts, key=place):
        way = endpoints(runs.world, level[1], sidecar=seen.pod(level[2]).sidecar)
        row: Row = {"endpoints": way, "blocks": cells.blocks_of(parts[level])}
        yield dict(zip(LEVELS, level, strict=True)) | row, parts[level]


def _by_block(mine: pd.DataFrame, name: str) -> cells.Values:
    """That duration; averaged within a block should it have several cells."""
    found: cells.Values = mine.groupby(cells.BLOCK, observed=True)[name].mean().dropna().to_numpy(dtype=float)
    return found


def rows(table: pd.DataFrame, **levels: str) -> list[Row]:
    """The rows at these levels."""
    for name, level in levels.items():
        table = table[table[name] == level]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _among(name: str, value: str, known: Sequence[str], measured: pd.Series[Any]) -> None:
    """Raises InputError for a level that nobody has measured or can have, rather than show that nobody did."""
    levels = dict.fromkeys([*known, *map(str, measured)])
    if value not in levels:
        raise errors.InputError(f"{name} is {value!r}", place="parameters", step=f"choose from {', '.join(levels)}")


# --- until traffic has followed ---


def _timed(row: Row, load: Load, change: Change) -> Row:
    followed_ns, added_ns = loads.until_followed(load, change), loads.until_added(load, change)
    rate_hz = float(row["rate_hz"])
    return {
        "followed": followed_ns,
        "failed": int(loads.failed_after(load, change).sum()),
        "after": int((load.end_ns >= change.at_ns).sum()),
        "added": added_ns,
        "left": loads.until_left(load, change),
        "errors": loads.error_ns(load, change, rate_hz),
        "failing": loads.failing_ns(load, change, rate_hz),
        "over_probe": (added_ns if change.added else followed_ns) - change.probe_ns,
        "took": float(change.done_ns - change.at_ns),
        "probe_s": change.probe_ns / units.NS_PER_S,
        "rest_s": _rest_s(load, change),
    }


def _rest_s(load: Load, change: Change) -> float:
    """How long the load went on after the change."""
    return float(load.start_ns[-1] - change.at_ns) / units.NS_PER_S


@cells.once
def followed(runs: store.Runs) -> pd.DataFrame:
    """A row per change, backend, arm and connection: how long until traffic had followed.

    `blocks` are those whose load the change concerned; `after` are all requests that ended after it.
    """
    made = []
    for row, mine in _levels(_per_cell(runs, _timed), runs):
        spells = {name: kind(_by_block(mine, name)) for name, kind in _SPELLS.items()}
        means = {f"{name}_mean": spells[name].mean for name in ("followed", "over_probe")}
        sums = {name: int(mine[name].sum()) for name in ("failed", "after")}
        seconds = {"probe_s": float(mine["probe_s"].median()), "rest_s": float(mine["rest_s"].min())}
        made.append(row | {"blocks": spells["followed"].n} | spells | means | sums | seconds)
    columns = [*LEVELS, "endpoints", "blocks", *_SPELLS, "followed_mean", "over_probe_mean"]
    return absent.of(pd.DataFrame(made, columns=[*columns, "failed", "after", "probe_s", "rest_s"]), runs, CHANGE)


def on(found: pd.DataFrame, connection: str = NEW) -> pd.DataFrame:
    """The rows of these connections. Raises InputError."""
    _among("connection", connection, CONNECTIONS, found["connection"])
    return found[found["connection"] == connection]


def bar(found: pd.DataFrame) -> pd.DataFrame:
    """The rows where endpoints are pushed to the sidecar, with the bar and its verdict where it judges.

    What is beyond the probe period is timed to the first request on an added replica, else until traffic had followed;
    only readiness is judged.
    """
    pushed = found[(found["endpoints"] == EDS) & (found["blocks"] > 0)]
    judged = [row["change"] == JUDGED for row in rows(pushed)]
    verdicts = [_judged(row) if its else None for row, its in zip(rows(pushed), judged, strict=True)]
    bars = np.where(judged, BAR_NS / units.NS_PER_S, np.nan)
    return pushed.assign(bar_s=bars, verdict=np.array(verdicts, dtype=object))


def _judged(row: Row) -> str:
    """A change falls anywhere between two probes, so that waiting for one took nothing or a whole period.

    Only what holds for both is a verdict: met with the whole wait counted, or missed without any of it.
    """
    if row["over_probe"].p50 >= BAR_NS:
        return gates.MISSED
    return MET if row["added"].p50 < BAR_NS else gates.UNKNOWN


@cells.once
def kept(runs: store.Runs) -> pd.DataFrame:
    """A row per change that removes, backend and arm: connections kept to removed replicas, summed over blocks.

    `connections` are those before the change, `stayed` those of them that were kept until the load ended.
    """

    def counted(_: Row, load: Load, change: Change) -> Row:
        return dataclasses.asdict(loads.stay(load, change)) | {"removed": len(change.removed)}

    sums = [each.name for each in dataclasses.fields(Stay)]
    made = [
        row | {name: int(mine[name].sum()) for name in sums}
        for row, mine in _levels(_per_cell(runs, counted), runs)
        if row["connection"] == KEPT and mine["removed"].any()
    ]
    return absent.of(pd.DataFrame(made, columns=[*LEVELS, "endpoints", "blocks", *sums]), runs, CHANGE)


def outcomes(runs: store.Runs) -> pd.DataFrame:
    """A row where requests failed: how all those that ended after the change ended, summed over blocks."""
    made = []
    for row, mine in _levels(_per_cell(runs, lambda _, *cell: {"kinds": loads.kinds(*cell)}), runs):
        counted = pd.DataFrame(list(mine["kinds"])).sum().astype(int).to_dict()
        if set(counted) - {"ok"}:
            made.append(row | {"requests": sum(counted.values())} | counted)
    front, sums = ["change", "arm", "endpoints", "connection"], ["requests", "ok"]
    whole = pd.DataFrame(made, columns=None if made else [*LEVELS, "endpoints", "blocks", *sums])
    counts = [*sums, *sorted({*map(str, whole)} - {*LEVELS, "endpoints", "blocks", *sums})]
    return absent.of(whole[front].join(whole[counts].fillna(0).astype(int)), runs, CHANGE)


def timeline(runs: store.Runs, change: str, connection: str = NEW) -> pd.DataFrame:
    """A row per backend, arm and bin of 200 ms: who served the requests that started in it, as shares of them.

    Raises InputError.
    """
    measured = cells.select(runs, CHANGE)
    _among("connection", connection, CONNECTIONS, measured["connection"])
    _among("change", change, CHANGES, measured["change"])

    def who(_: Row, load: Load, done: Change) -> Row:
        removed, added = load.served_by(done.removed), load.served_by(done.added)
        flags = {"others": load.ok & ~removed & ~added, "removed": removed, "added": added, "failed": ~load.ok}
        return {"seen": pd.DataFrame({"from_ns": (load.start_ns - done.at_ns) // BIN_NS * BIN_NS} | flags)}

    made = []
    for row, mine in _levels(_per_cell(runs, who, change=change, connection=connection), runs):
        bins = pd.concat([*mine["seen"]]).groupby("from_ns")
        shares = bins[[*SHARES]].mean().assign(requests=bins.size(), **{name: row[name] for name in _WHO})
        made.append(shares.reset_index())
    columns = [*_WHO, "from_ns", "requests", *SHARES]
    whole = pd.concat(made, ignore_index=True) if made else pd.DataFrame()
    return absent.of(whole.reindex(columns=columns), runs, CHANGE)


_WHO = ["backend", "arm", "endpoints"]


# --- names that are gone, and what nobody should notice ---


@cells.once
def gone(runs: store.Runs) -> pd.DataFrame:
    """A row per resolver of the sidecar: what was served before the record was removed, after, and since failing."""

    def counted(_: Row, load: Load, change: Change) -> Row:
        until_ns, after = loads.until_failing(load, change), load.start_ns >= change.at_ns
        each = ~after, after, load.start_ns >= change.at_ns + until_ns
        counts = (np.array([np.sum(mine & load.ok), np.sum(mine)]) for mine in each)
        return dict(zip(spans, counts, strict=True)) | {"until_failing": until_ns, "rest_s": _rest_s(load, change)}

    spans = ("served_before", "served_after", "served_since")
    found, made, seen = _per_cell(runs, counted, GONE), [], looks.of_runs(runs)
    arms = seen.held(found["arm"]) if len(found) else []
    for arm, resolver in looks.apart({arm: seen.pod(arm).resolver for arm in arms}).items():
        mine = found[found["arm"] == arm]
        failing = Spell(_by_block(mine, "until_failing"))
        row = {"resolver": resolver, "arm": arm, "blocks": cells.blocks_of(mine), "rest_s": float(mine["rest_s"].min())}
        parts = {name: Part(*np.sum(mine[name].to_list(), axis=0).tolist()) for name in spans}
        made.append(row | parts | {"until_failing": failing, "until_failing_mean": failing.mean})
    columns = ["resolver", "arm", "blocks", *spans, "until_failing", "until_failing_mean", "rest_s"]
    return absent.of(pd.DataFrame(made, columns=columns), runs, GONE)


@cells.once
def unnoticed(runs: store.Runs) -> pd.DataFrame:
    """A row per change that nobody should notice and arm: requests after it, and those of them that failed.

    `longest_s` is the most that one load was watched after the change, `mutual_tls` what replicas counted of new
    connections meanwhile; NaN where they come and go, so that nobody counts.
    """

    def lost(row: Row, load: Load, change: Change) -> Row:
        return {
            "seconds": _rest_s(load, change),
            "requests": int((load.start_ns >= change.at_ns).sum()),
            "failed": int(loads.failed_after(load, change).sum()),
            "mutual_tls": float(row["agent"]["change"].get("mutual_tls", np.nan)),
        }

    made, sums = [], ["requests", "failed"]
    for level, found in _levels(_per_cell(runs, lost, UNNOTICED), runs):
        for rate_hz, mine in found.groupby("rate_hz"):
            row: Row = level | {"rate_hz": rate_hz} | {name: int(mine[name].sum()) for name in sums}
            row |= {"watched_s": round(mine["seconds"].sum()), "longest_s": float(mine["seconds"].max())}
            row |= {"mutual_tls": mine["mutual_tls"].sum(min_count=1)}
            made.append(row | {"verdict": quiet(row)})
    columns = ["change", "arm", "rate_hz", "watched_s", "longest_s", *sums, "mutual_tls", "verdict"]
    return absent.of(pd.DataFrame(made, columns=columns), runs, UNNOTICED)


def quiet(row: Row) -> str | None:
    """Whether it went unnoticed; new certificates are tried by new connections only. None if that is not known."""
    if row["failed"]:
        return gates.MISSED
    tried = row["change"] != "rotate" or row["mutual_tls"] > 0
    return MET if row["rate_hz"] >= BAR_HZ and row["longest_s"] >= BAR_S and tried else None


# --- whether the data can carry it ---


def checks(runs: store.Runs) -> text.Shown:
    """A row per experiment that was measured: cells, requests, failures before the change. Raises ReportError."""
    there = [name for name in EXPERIMENTS if (runs.cells["experiment"] == name).any()]
    return provenance.judged(runs, [_check(runs, name) for name in there], _problem)


def _check(runs: store.Runs, experiment: str) -> Row:
    def counted(_: Row, load: Load, change: Change) -> Row:
        early = load.end_ns < change.at_ns
        return {
            "requests": len(load.ok),
            "failed_before": int((~load.ok & early).sum()),
            "added_before": int((load.served_by(change.added) & early).sum()),
            "took": float(change.done_ns - change.at_ns),
            "lag": float(np.quantile(load.start_ns - load.due_ns, 0.99)),
        }

    every = runs.cells[runs.cells["experiment"] == experiment]
    found = _per_cell(runs, counted, experiment).reindex(columns=["requests", "failed_before", "added_before", "took",
                                                                  "lag", *cells.BLOCK])  # fmt: skip
    return {
        "experiment": experiment,
        "blocks": cells.blocks_of(found),
        "cells": len(every),
        "invalid_or_without_change": len(every) - len(found),
        **{name: int(found[name].sum()) for name in ("requests", "failed_before", "added_before")},
        "made_within": Spell(found["took"].to_numpy(dtype=float)),
        "send_lag_us": units.number(float(found["lag"].median()) / units.NS_PER_US),
    }


def _problem(row: Row) -> str:
    if row["invalid_or_without_change"] > provenance.MAX_INVALID * row["cells"]:
        return f": {row['invalid_or_without_change']} of {row['cells']} cells are invalid or tell of no change"
    if row["blocks"] < provenance.MIN_BLOCKS and row["experiment"] != UNNOTICED:  # a count, not an average
        return f" has {row['blocks']} block(s), an interval needs {provenance.MIN_BLOCKS}"
    if row["failed_before"] > provenance.MAX_FAILED * row["requests"]:
        return f": {row['failed_before']} of {row['requests']} requests failed before the change"
    if row["added_before"]:
        return f": {row['added_before']} requests were served by a replica that was yet to be added"
    return ""
