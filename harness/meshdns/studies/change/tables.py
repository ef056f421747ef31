"""How fast traffic follows a change of endpoints, and what becomes of it until then: the numbers.

A cell is one change in the middle of a load at a constant rate (`load`); the frames hold results over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, provenance, text
from meshdns.core import errors, units
from meshdns.studies.change import load as loads
from meshdns.studies.change import ways
from meshdns.studies.change.load import Change, Load, Row
from meshdns.studies.change.spells import Mean, Spell

CHANGE, GATHERED, UNNOTICED = EXPERIMENTS = ("change", "gathered", "unnoticed")
NEW, KEPT = CONNECTIONS = ("new", "keepalive")
CHANGES = ("up", "down", "replace", "unready", "crash")  # of a replica, in the order in which they are read
TOLD = ("up", "down", "unready")  # at once; before the others are told, a replica has ended, which takes a while
ALIVE = "unready"  # what is removed lives on, so that it can be kept
DEBOUNCES = ("1ms", "100ms", "1s", "endpoints-at-once")  # of istiod, in the order in which they are read
BAR_HZ, BAR_S = 500.0, 60.0  # a change goes unnoticed if no request fails at such a rate for so long
MET = "met"
BIN_NS = 200 * units.NS_PER_MS  # of the timeline
SHARES = ("others", "removed", "added", "failed")
LEVELS = ["change", "backend", "arm", "connection"]
_SPELLS = {
    "followed": Spell, "added": Spell, "left": Spell, "took": Spell, "errors": Mean, "failing": Mean,
}  # fmt: skip


# --- cells ---


def _per_cell(
    runs: store.Runs, of: Callable[[Row, Load, Change], Row], experiment: str = CHANGE, **levels: Any
) -> pd.DataFrame:
    """The cells of the experiment at these levels, with what `of` says of each."""
    chosen = cells.select(runs, experiment, **levels)
    return pd.DataFrame([row | of(row, load, change) for row, load, change in loads.made(runs, chosen)])


def _levels(found: pd.DataFrame, runs: store.Runs) -> Iterator[tuple[Row, pd.DataFrame]]:
    """The levels that were measured, in the order of the page, each with its cells."""
    seen = looks.of_runs(runs)

    def place(level: tuple[str, ...]) -> list[tuple[int, str]]:
        change, backend, arm, connection = level
        service = runs.world.backends.get(backend)
        kind = 2 * service.external + (not service.cluster_ip) if service else 4  # told, headless, resolved, others
        known = looks.place(CHANGES, change), kind, looks.place(seen.arms, arm), looks.place(CONNECTIONS, connection)
        return [*zip(known, level, strict=True)]

    groups = found.groupby(LEVELS, observed=True) if len(found) else ()
    parts = {tuple(map(str, level)): part for level, part in groups}
    for level in sorted(parts, key=place):
        client = seen.pod(level[2])
        known: Row = {"endpoints": ways.endpoints(runs.world, level[1], client), "sidecar": client.sidecar}
        row: Row = dict(zip(LEVELS, level, strict=True)) | known
        yield row | {"blocks": cells.blocks_of(parts[level])}, parts[level]


def _among(name: str, value: str, known: Sequence[str], measured: pd.Series[Any]) -> None:
    """Raises InputError for a level that nobody has measured or can have, rather than show that nobody did."""
    levels = dict.fromkeys([*known, *map(str, measured)])
    if value not in levels:
        raise errors.InputError(f"{name} is {value!r}", place="parameters", step=f"choose from {', '.join(levels)}")


# --- until traffic has followed ---


def _timed(row: Row, load: Load, change: Change) -> Row:
    rate_hz = float(row["rate_hz"])
    return {
        "followed": loads.until_followed(load, change),
        "added": loads.until_added(load, change),
        "left": loads.until_left(load, change),
        "took": float(change.done_ns - change.at_ns),
        "errors": loads.error_ns(load, change, rate_hz),
        "failing": loads.failing_ns(load, change, rate_hz),
        "failed": int(loads.failed_after(load, change).sum()),
        "after": int((load.end_ns >= change.at_ns).sum()),
        "rest_s": change.rest_s(load),
    }


def _in_blocks(mine: pd.DataFrame) -> Row:
    """What the blocks have; only those count whose load the change concerned."""
    blocks = mine.groupby(cells.BLOCK, observed=True)[[*_SPELLS]].mean()
    spells = {name: kind(blocks[name].dropna().to_numpy(dtype=float)) for name, kind in _SPELLS.items()}
    followed = spells["followed"]
    known = {"blocks": followed.n, "followed_mean": followed.mean, "rest_s": float(mine["rest_s"].min())}
    return spells | known | {name: int(mine[name].sum()) for name in ("failed", "after")}


_COLUMNS = [*LEVELS, "endpoints", "sidecar", "blocks", *_SPELLS, "followed_mean", "rest_s", "failed", "after"]


@cells.once
def followed(runs: store.Runs) -> pd.DataFrame:
    """A row per change, backend, arm and connection: how long until traffic had followed.

    `blocks` are those whose load the change concerned; `after` are all requests that ended after it.
    """
    made = [row | _in_blocks(mine) for row, mine in _levels(_per_cell(runs, _timed), runs)]
    return absent.of(pd.DataFrame(made, columns=_COLUMNS), runs, CHANGE)


@cells.once
def gathered(runs: store.Runs) -> pd.DataFrame:
    """The same by istiod's debounce, a row per debounce and backend."""
    made = [
        row | {"debounce": str(debounce)} | _in_blocks(mine)
        for row, found in _levels(_per_cell(runs, _timed, GATHERED), runs)
        for debounce, mine in found.groupby("debounce", observed=True)
    ]
    made.sort(key=lambda row: looks.place(DEBOUNCES, row["debounce"]))
    return absent.of(pd.DataFrame(made, columns=["debounce", *_COLUMNS]), runs, GATHERED)


def on(found: pd.DataFrame, connection: str = NEW) -> pd.DataFrame:
    """The rows of these connections. Raises InputError."""
    _among("connection", connection, CONNECTIONS, found["connection"])
    return found[found["connection"] == connection]


@cells.once
def kept(runs: store.Runs) -> pd.DataFrame:
    """A row per change that removes, backend and arm: connections kept to removed replicas, summed over blocks.

    `connections` are those before the change, `stayed` those of them that were kept until the load ended.
    """

    def counted(_: Row, load: Load, change: Change) -> Row:
        return loads.stay(load, change) | {"removed": len(change.removed)}

    sums = ["connections", "stayed", "requests_on_them"]
    made = [
        row | {name: int(mine[name].sum()) for name in sums}
        for row, mine in _levels(_per_cell(runs, counted), runs)
        if row["connection"] == KEPT and mine["removed"].any()
    ]
    return absent.of(pd.DataFrame(made, columns=[*LEVELS, "endpoints", "blocks", *sums]), runs, CHANGE)


def outcomes(runs: store.Runs) -> pd.DataFrame:
    """A row where requests failed: how all those that ended after the change ended, summed over blocks."""
    made, front, sums = [], ["change", "arm", "endpoints", "connection"], ["requests", "ok"]
    for row, mine in _levels(_per_cell(runs, lambda _, *cell: {"kinds": loads.kinds(*cell)}), runs):
        counted = pd.DataFrame(list(mine["kinds"])).sum().astype(int).to_dict()
        if set(counted) - {"ok"}:
            made.append({name: row[name] for name in front} | {"requests": sum(counted.values())} | counted)
    whole = pd.DataFrame(made, columns=None if made else [*front, *sums])
    counts = [*sums, *sorted({*map(str, whole)} - {*front, *sums})]
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


# --- what nobody should notice ---


@cells.once
def unnoticed(runs: store.Runs) -> pd.DataFrame:
    """A row per change that nobody should notice and arm: requests after it, and those of them that failed.

    `longest_s` is the most that one load was watched after the change.
    """

    def lost(_: Row, load: Load, change: Change) -> Row:
        return {
            "seconds": change.rest_s(load),
            "requests": int((load.start_ns >= change.at_ns).sum()),
            "failed": int(loads.failed_after(load, change).sum()),
        }

    made, sums = [], ["requests", "failed"]
    for level, found in _levels(_per_cell(runs, lost, UNNOTICED), runs):
        for rate_hz, mine in found.groupby("rate_hz"):
            row: Row = level | {"rate_hz": rate_hz} | {name: int(mine[name].sum()) for name in sums}
            row |= {"watched_s": round(mine["seconds"].sum()), "longest_s": float(mine["seconds"].max())}
            made.append(row | {"verdict": quiet(row)})
    columns = ["change", "arm", "rate_hz", "watched_s", "longest_s", *sums, "verdict"]
    return absent.of(pd.DataFrame(made, columns=columns), runs, UNNOTICED)


def quiet(row: Row) -> str | None:
    """Whether it went unnoticed. None if that is not known."""
    if row["failed"]:
        return gates.MISSED
    return MET if row["rate_hz"] >= BAR_HZ and row["longest_s"] >= BAR_S else None


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

    found = _per_cell(runs, counted, experiment).reindex(columns=["requests", "failed_before", "added_before", "took",
                                                                  "lag", *cells.BLOCK])  # fmt: skip
    row = provenance.counted(runs, experiment, found)
    return {
        **{"invalid_or_without_change" if name == "invalid_cells" else name: value for name, value in row.items()},
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
