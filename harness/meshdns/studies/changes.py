"""Notebook 05: how fast traffic follows a change of endpoints, and what becomes of it until then.

A cell is one change in the middle of a load at a constant rate. Load and Change are one cell, the functions on them
pure; the frames hold their results over blocks. What did not happen before the load ended is infinite, not absent: the
median over blocks can tell it, a mean cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meshdns import store
from meshdns.analysis import absent, cells, gates, looks, provenance, stats, text
from meshdns.core import errors, units

Instants = NDArray[np.int64]
Flags = NDArray[np.bool_]

CHANGE, GONE, UNNOTICED = "change", "gone", "unnoticed"  # experiments
NEW, KEPT = "new", "keepalive"
CONNECTIONS = (NEW, KEPT)
EDS, ORIGINAL_DST, STRICT_DNS = "EDS", "ORIGINAL_DST", "STRICT_DNS"
STRICT_DNS_30 = "STRICT_DNS, TTL 30 s"  # the others' records live for 5 s
# How a sidecar knows the endpoints of what is called, and how a client without one does.
BACKENDS = {
    "shop": (EDS, "ClusterIP"),
    "shop-headless": (ORIGINAL_DST, "client's DNS"),
    "shop-dns": (STRICT_DNS, "client's DNS"),
    "shop-dns-30": (STRICT_DNS_30, "client's DNS"),
}
CALLED = {"shop": "Service", "shop-headless": "headless", "shop-dns": "external", "shop-dns-30": "external"}
SAID = {"up": "added", "down": "shut down", "replace": "replaced", "unready": "unready", "crash": "killed"}  # a replica
UNSEEN = {
    "up": "a replica is added",
    "rotate": "every certificate is replaced",
    "unrelated": "another Service comes and goes",
}
ALIVE = "unready"  # what is removed lives on, so that it can be kept
BAR_NS = 300 * units.NS_PER_MS  # what EDS may add to the probe period until a ready replica is asked first (p50)
JUDGED = "up"  # by that bar: nothing but readiness changes
BAR_HZ, BAR_S = 500.0, 60.0  # a change goes unnoticed if no request fails at such a rate for so long
BIN_NS = 200 * units.NS_PER_MS  # of the timeline
# What was seen last may be seen again: it has ended only after a silence of twice the longest before the change. A
# second is enough in any case.
SLACK, ENOUGH_NS = 2, units.NS_PER_S
PLAN = "meshdns report --plan change"


# --- one cell ---


@dataclass(frozen=True)
class Load:
    """The requests of a cell, in the order in which they started."""

    due_ns: Instants
    start_ns: Instants
    end_ns: Instants
    outcome: NDArray[Any]
    status: Instants
    replica: NDArray[Any]  # that answered; "": none
    local_port: Instants

    @cached_property
    def ok(self) -> Flags:
        """The requests that were served."""
        return np.asarray(self.outcome == "ok", dtype=bool)

    def served_by(self, replicas: Sequence[str]) -> Flags:
        """The requests that one of these replicas served."""
        return np.asarray(self.ok & np.isin(self.replica, list(replicas)), dtype=bool)


@dataclass(frozen=True)
class Change:
    """What was done during the load."""

    at_ns: int  # on the clock of the requests
    done_ns: int  # when making it had ended
    added: tuple[str, ...]
    removed: tuple[str, ...]
    probe_ns: float  # how often readiness is asked for


def lasting(seen_ns: Instants, load: Load, change: Change) -> bool:
    """Whether what was seen at these instants still goes on when the load ends."""
    if not (seen_ns >= change.at_ns).any():
        return False
    before = seen_ns[seen_ns < change.at_ns]
    longest = int(np.diff([load.start_ns[0], *before, change.at_ns]).max())
    return bool(load.start_ns[-1] - seen_ns[-1] <= min(SLACK * longest, ENOUGH_NS))


def _until_last(seen_ns: Instants, load: Load, change: Change) -> float:
    """ns from the change to the last of these; infinite if it is not the last."""
    if not seen_ns.size:
        return 0.0
    return np.inf if lasting(seen_ns, load, change) else max(float(seen_ns[-1] - change.at_ns), 0.0)


def until_added(load: Load, change: Change) -> float:
    """ns from the change to the first request served by an added replica; NaN if none was added."""
    if not change.added:
        return np.nan
    seen_ns = load.start_ns[load.served_by(change.added)]
    return max(float(seen_ns[0] - change.at_ns), 0.0) if seen_ns.size else np.inf


def until_left(load: Load, change: Change) -> float:
    """ns from the change to the last request served by a removed replica; NaN if it never served any."""
    seen_ns = load.start_ns[load.served_by(change.removed)]
    return _until_last(seen_ns, load, change) if seen_ns.size else np.nan


def until_followed(load: Load, change: Change) -> float:
    """ns from the change until every request that starts is served, none by a removed replica, and added ones serve.

    NaN if the change did not concern this load: its connections were all to other replicas.
    """
    removed, failed = load.served_by(change.removed), ~load.ok
    if not change.added and not removed.any() and not failed.any():
        return np.nan
    wrong = _until_last(load.start_ns[removed | failed], load, change)
    return float(np.nanmax([wrong, until_added(load, change)]))


def failed_after(load: Load, change: Change) -> Flags:
    """The requests that failed, and not before the change."""
    return np.asarray(~load.ok & (load.end_ns >= change.at_ns), dtype=bool)


def error_ns(load: Load, change: Change, rate_hz: float) -> float:
    """How long the load offers as many requests as failed: error-seconds, in ns."""
    return float(failed_after(load, change).sum()) / rate_hz * units.NS_PER_S


def failing_ns(load: Load, change: Change, rate_hz: float) -> float:
    """ns from the first failed request to the last, each of which stands for one interval of the load."""
    due_ns = load.due_ns[failed_after(load, change)]
    # Due times are rounded to nanoseconds, which would show as digits.
    return round(float(np.ptp(due_ns)) + units.NS_PER_S / rate_hz, -3) if due_ns.size else 0.0


@dataclass(frozen=True)
class Stay:
    """Connections to removed replicas that were kept."""

    connections: int  # that a removed replica served before the change
    stayed: int  # of them, that it still served when the load ended
    requests: int  # that it served on these after the change


def stay(load: Load, change: Change) -> Stay:
    """What became of connections (source ports) to removed replicas."""
    there = load.served_by(change.removed) & (load.local_port > 0)
    ports = np.unique(load.local_port[there & (load.start_ns < change.at_ns)])
    kept = [port for port in ports if lasting(load.start_ns[there & (load.local_port == port)], load, change)]
    later = there & (load.start_ns >= change.at_ns) & np.isin(load.local_port, kept)
    return Stay(len(ports), len(kept), int(later.sum()))


def kinds(load: Load, change: Change) -> dict[str, int]:
    """How many requests ended how, from the change on: `ok`, an outcome, or the status that came with an HTTP error."""
    after = load.end_ns >= change.at_ns
    named = [
        f"HTTP {status}" if outcome == "http_error" else str(outcome)
        for outcome, status in zip(load.outcome[after], load.status[after], strict=True)
    ]
    found, counts = np.unique(named, return_counts=True)
    return {str(name): int(count) for name, count in zip(found, counts, strict=True)}


# --- over blocks ---


@dataclass(frozen=True)
class Spell:
    """A duration in every block; infinite where it did not end within the load."""

    values: cells.Values  # ns

    @property
    def n(self) -> int:
        """Blocks that have one."""
        return len(self.values)

    @property
    def never(self) -> int:
        """Blocks in which it did not end."""
        return int(np.isinf(self.values).sum())

    @property
    def p50(self) -> float:
        """The median, ns; infinite if it did not end in half of the blocks, NaN without any."""
        return float(np.median(self.values)) if self.n else np.nan

    @property
    def interval(self) -> stats.Interval | None:
        """Of the mean; None where it did not always end, as there is no mean."""
        return stats.interval(self.values) if self.n and not self.never else None


Row = dict[str, Any]
_LEVELS = ["change", "backend", "arm", "connection"]
_SPELLS = ("followed", "added", "left", "errors", "failing", "over probe", "took")


def endpoints(backend: str, *, sidecar: bool) -> str:
    """How the endpoints of this backend are known, by a sidecar or by a client without one."""
    by_sidecar, own = BACKENDS.get(backend, (text.ABSENT, text.ABSENT))
    return by_sidecar if sidecar else own


def made(agent: dict[str, Any]) -> Change | None:
    """The change that a cell's agent tells of."""
    told = agent.get("change")
    if not isinstance(told, dict):
        return None
    return Change(
        int(told["at_ns"]),
        int(told["done_ns"]),
        tuple(told["added"]),
        tuple(told["removed"]),
        float(told["probe_period_s"]) * units.NS_PER_S,
    )


def _loads(runs: store.Runs, chosen: pd.DataFrame) -> Iterator[tuple[Row, Load, Change]]:
    """The cells in which a change was made while the load ran, with their requests."""
    names = list(Load.__dataclass_fields__)
    there = runs.samples["experiment"].isin(chosen["experiment"].unique())
    near = runs.samples.loc[there, [*cells.KEY, *names]]
    keys = cells.keys(near, runs.headers)
    order = np.lexsort((near["start_ns"].to_numpy(), keys))
    keys = keys[order]
    columns = [np.asarray(near[name])[order] for name in names]
    for row in chosen.to_dict("records"):
        change = made(row["agent"])
        begin, end = np.searchsorted(keys, (row["key"], row["key"] + 1))
        load = Load(*(each[begin:end] for each in columns))
        if change is not None and end > begin and load.start_ns[0] < change.at_ns < load.start_ns[-1]:
            yield {str(name): value for name, value in row.items()}, load, change


def _per_cell(runs: store.Runs, of: Callable[[Row, Load, Change], Row], experiment: str = CHANGE) -> pd.DataFrame:
    """The cells of the experiment with what `of` says of each."""
    chosen = cells.select(runs, experiment)
    found = [row | of(row, load, change) for row, load, change in _loads(runs, chosen)] if len(chosen) else []
    return pd.DataFrame(found)


def _timed(row: Row, load: Load, change: Change) -> Row:
    followed_ns, rate_hz = until_followed(load, change), float(row["rate_hz"])
    return {
        "followed": followed_ns,
        "failed": int(failed_after(load, change).sum()),
        "after": int((load.end_ns >= change.at_ns).sum()),
        "added": until_added(load, change),
        "left": until_left(load, change),
        "errors": error_ns(load, change, rate_hz),
        "failing": failing_ns(load, change, rate_hz),
        "over probe": (until_added(load, change) if change.added else followed_ns) - change.probe_ns,
        "took": float(change.done_ns - change.at_ns),
        "probe": change.probe_ns,
        "rest": float(load.start_ns[-1] - change.at_ns),
    }


def _parts(frame: pd.DataFrame, runs: store.Runs) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
    """The levels that were measured, in the order of this page, each with its cells."""
    orders = (tuple(SAID), tuple(BACKENDS), tuple(runs.world.arms), CONNECTIONS)

    def place(level: tuple[str, ...]) -> list[tuple[int, str]]:
        return [([*order, each].index(each), each) for each, order in zip(level, orders, strict=True)]

    if frame.empty:
        return []
    found = {tuple(map(str, level)): part for level, part in frame.groupby(_LEVELS, observed=True)}
    return [(level, found[level]) for level in sorted(found, key=place)]


def _spells(frame: pd.DataFrame, by: Sequence[str], value: str) -> Callable[[Hashable], Spell]:
    """That duration by level; averaged within a block should it have several cells of one."""
    values = pd.DataFrame() if frame[value].isna().all() else cells.matrix(frame, by, value)
    return lambda level: Spell(cells.column(values, level))


@cells.once
def followed(runs: store.Runs) -> pd.DataFrame:
    """A row per change, backend, arm and connection: how long until traffic had followed (Spells, ns)."""
    found = _per_cell(runs, _timed)
    spells = {name: _spells(found, _LEVELS, name) for name in _SPELLS} if len(found) else {}
    rows, seen = [], looks.of_runs(runs)
    for level, mine in _parts(found, runs):
        change, backend, arm, connection = level
        rows.append(
            {"change": change, "backend": backend, "arm": arm, "connection": connection}
            | {
                "endpoints": endpoints(backend, sidecar=seen.pod(arm).sidecar),
                "blocks": cells.blocks_of(mine),
            }
            | {name: each(level) for name, each in spells.items()}
            | {name: int(mine[name].sum()) for name in ("failed", "after")}
            | {"probe": float(mine["probe"].median()), "rest": float(mine["rest"].min())}
        )
    columns = [*_LEVELS, "endpoints", "blocks", *_SPELLS, "failed", "after", "probe", "rest"]
    return absent.of(pd.DataFrame(rows, columns=columns), runs, CHANGE)


def of(table: pd.DataFrame, **levels: str) -> list[Row]:
    """The rows at these levels."""
    for name, level in levels.items():
        table = table[table[name] == level]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


# --- as people read it ---


def _median(spell: Spell) -> str:
    if not spell.n:
        return text.ABSENT
    return "never" if np.isinf(spell.p50) else units.duration(spell.p50, "s")


def _mean(spell: Spell) -> str:
    if spell.never:
        return f"never in {spell.never} of {text.blocks(spell.n)}"
    return text.ABSENT if spell.interval is None else units.interval(spell.interval, "s")


def _named(row: Row) -> Row:
    return {
        "a replica is": SAID.get(row["change"], row["change"]),
        "arm": row["arm"],
        "endpoints by": row["endpoints"],
    }


def _among(name: str, value: str, known: Sequence[str]) -> None:
    """Raises InputError for a level that nobody can have measured, rather than show that nobody did."""
    if value not in known:
        raise errors.InputError(f"{name} is {value!r}", place="parameters", step=f"choose from {', '.join(known)}")


def table(found: pd.DataFrame, connection: str = NEW) -> pd.DataFrame:
    """How long until traffic had followed, on these connections. Raises InputError."""
    _among("connection", connection, CONNECTIONS)
    rows = [
        _named(row)
        | {
            "blocks": row["followed"].n,
            "followed after, p50": _median(row["followed"]),
            "mean": _mean(row["followed"]),
            "first on added, p50": _median(row["added"]),
            "last on removed, p50": _median(row["left"]),
            "error-seconds": _mean(row["errors"]),
            "failing span": _mean(row["failing"]),
        }
        for row in of(found, connection=connection)
    ]
    return pd.DataFrame(rows)


def bar(found: pd.DataFrame) -> pd.DataFrame:
    """A row per change where endpoints are pushed to the sidecar: what is beyond the probe period.

    That is timed to the first request on an added replica, else until traffic had followed; only readiness is judged.
    """
    rows = []
    for row in of(found, endpoints=EDS):
        spell = row["over probe"]
        if spell.n:
            rows.append(
                {
                    "a replica is": _named(row)["a replica is"],
                    "arm": row["arm"],
                    "connection": row["connection"],
                    "blocks": spell.n,
                    "first on added, p50": _median(row["added"]),
                    "followed after, p50": _median(row["followed"]),
                    "made within, p50": _median(row["took"]),
                    "probe period": units.duration(row["probe"], "s"),
                    "beyond it, p50": _median(spell),
                    "beyond it, mean": _mean(spell),
                    "bar": units.duration(BAR_NS, "s") if row["change"] == JUDGED else text.ABSENT,
                    "verdict": _judged(row),
                }
            )
    return pd.DataFrame(rows, columns=_BAR)


_BAR = [
    "a replica is", "arm", "connection", "blocks", "first on added, p50", "followed after, p50", "made within, p50",
    "probe period", "beyond it, p50", "beyond it, mean", "bar", "verdict",
]  # fmt: skip


def _judged(row: Row) -> str:
    """A change falls anywhere between two probes, so that waiting for one took nothing or a whole period.

    Only what holds for both is a verdict: met with the whole wait counted, or missed without any of it.
    """
    if row["change"] != JUDGED:
        return text.ABSENT
    if row["over probe"].p50 >= BAR_NS:
        return "MISSED"
    return "met" if row["added"].p50 < BAR_NS else gates.UNKNOWN


def kept(runs: store.Runs) -> pd.DataFrame:
    """A row per change that removes, backend and arm: connections kept to removed replicas, summed over blocks."""

    def counted(_: Row, load: Load, change: Change) -> Row:
        each, removed = stay(load, change), len(change.removed)
        return {"removed": removed, "on it": each.connections, "stayed": each.stayed, "later": each.requests}

    found, seen = _per_cell(runs, counted), looks.of_runs(runs)
    rows = []
    for level, mine in _parts(found, runs):
        if level[-1] == KEPT and mine["removed"].any():
            sums = {name: int(mine[name].sum()) for name in ("on it", "stayed", "later")}
            more: Row = {
                "endpoints": endpoints(level[1], sidecar=seen.pod(level[2]).sidecar),
                "blocks": cells.blocks_of(mine),
            }
            rows.append(dict(zip(_LEVELS, level, strict=True)) | more | sums)
    table = pd.DataFrame(rows, columns=[*_LEVELS, "endpoints", "blocks", "on it", "stayed", "later"])
    return absent.of(table, runs, CHANGE)


def kept_table(found: pd.DataFrame) -> pd.DataFrame:
    """The same as people read it."""
    rows = [
        _named(row)
        | {
            "blocks": row["blocks"],
            "connections to it before": row["on it"],
            "of them until the end": row["stayed"],
            "requests on those": row["later"],
        }
        for row in of(found)
    ]
    return pd.DataFrame(rows)


def outcomes(runs: store.Runs) -> pd.DataFrame:
    """A row where requests failed: how all those that ended after the change ended, summed over blocks."""
    found = _per_cell(runs, lambda _, load, change: {"kinds": kinds(load, change)})
    rows, seen = [], looks.of_runs(runs)
    for level, mine in _parts(found, runs):
        counted = pd.DataFrame(list(mine["kinds"])).sum().astype(int).to_dict()
        if set(counted) - {"ok"}:
            known = endpoints(level[1], sidecar=seen.pod(level[2]).sidecar)
            row = dict(zip(_LEVELS, level, strict=True)) | {"endpoints": known}
            rows.append(_named(row) | {"connection": level[-1], "requests": sum(counted.values())} | counted)
    named = ["a replica is", "arm", "endpoints by", "connection", "requests", "ok"]
    if not rows:
        return pd.DataFrame(columns=named)
    whole = pd.DataFrame(rows)
    counted_as = [*named[4:], *sorted(set(whole.columns) - set(named))]
    return whole[named[:4]].join(whole[counted_as].fillna(0).astype(int))


SHARES = ("others", "removed", "added", "failed")


def timeline(runs: store.Runs, change: str, connection: str = NEW) -> pd.DataFrame:
    """A row per backend, arm and bin of 200 ms: who served the requests that started in it, as shares of them.

    Raises InputError.
    """
    _among("connection", connection, CONNECTIONS)
    _among("change", change, list(SAID))
    chosen = cells.select(runs, CHANGE)
    chosen = chosen[(chosen["change"] == change) & (chosen["connection"] == connection)] if len(chosen) else chosen
    parts = []
    for row, load, done in _loads(runs, chosen) if len(chosen) else ():
        removed, added = load.served_by(done.removed), load.served_by(done.added)
        flags = {"others": load.ok & ~removed & ~added, "removed": removed, "added": added, "failed": ~load.ok}
        level = {"backend": row["backend"], "arm": row["arm"]}
        parts.append(pd.DataFrame(level | {"bin": (load.start_ns - done.at_ns) // BIN_NS} | flags))
    if not parts:
        return pd.DataFrame(columns=["backend", "arm", "endpoints", "from_ns", "requests", *SHARES])
    by = pd.concat(parts).groupby(["backend", "arm", "bin"], sort=False, observed=True)
    found = by[list(SHARES)].mean().assign(requests=by.size()).reset_index()
    found["from_ns"] = found["bin"] * BIN_NS
    seen, levels = looks.of_runs(runs), zip(found["arm"], found["backend"], strict=True)
    found["endpoints"] = [endpoints(str(backend), sidecar=seen.pod(str(arm)).sidecar) for arm, backend in levels]
    return looks.known(found.sort_values(["backend", "arm", "bin"], ignore_index=True), seen)


# --- a name that is gone ---


def until_failing(load: Load, change: Change) -> float:
    """ns from the change to the first request that started after it and failed; infinite if none did."""
    seen_ns = load.start_ns[~load.ok & (load.start_ns >= change.at_ns)]
    return float(seen_ns[0] - change.at_ns) if seen_ns.size else np.inf


def _gone(_: Row, load: Load, change: Change) -> Row:
    until_ns, after = until_failing(load, change), load.start_ns >= change.at_ns
    since = load.start_ns >= change.at_ns + until_ns
    counts = {"before": ~after, "after": after, "since": since}
    return (
        {name: int(each.sum()) for name, each in counts.items()}
        | {f"{name} ok": int((each & load.ok).sum()) for name, each in counts.items()}
        | {"failing": until_ns, "rest": float(load.start_ns[-1] - change.at_ns)}
    )


def gone(runs: store.Runs) -> pd.DataFrame:
    """A row per resolver of the sidecar: requests and successes before the record was removed, after, since failing."""
    found = _per_cell(runs, _gone, GONE)
    rows, seen = [], looks.of_runs(runs)
    arms = seen.held(found["arm"]) if len(found) else []
    for arm, resolver in looks.apart({arm: seen.pod(arm).resolver for arm in arms}).items():
        mine = found[found["arm"] == arm]
        numbers = [name for name in _GONE if name not in ("failing", "rest")]
        rows.append(
            {"arm": arm, "resolver": resolver, "blocks": cells.blocks_of(mine)}
            | {name: int(mine[name].sum()) for name in numbers}
            | {"failing": _spells(found, ["arm"], "failing")(arm), "rest": float(mine["rest"].min())}
        )
    return absent.of(pd.DataFrame(rows, columns=["arm", "resolver", "blocks", *_GONE]), runs, GONE)


_GONE = ["before", "after", "since", "before ok", "after ok", "since ok", "failing", "rest"]


def gone_table(found: pd.DataFrame) -> pd.DataFrame:
    """The same as people read it."""
    rows = [
        {
            "resolver": row["resolver"],
            "arm": row["arm"],
            "blocks": row["blocks"],
            "served before": _share(row["before ok"], row["before"]),
            "served after": _share(row["after ok"], row["after"]),
            "first failure after, p50": _median(row["failing"]),
            "first failure after, mean": _mean(row["failing"]),
            "served from then on": _share(row["since ok"], row["since"]),
        }
        for row in of(found)
    ]
    return pd.DataFrame(rows)


def unnoticed(runs: store.Runs) -> pd.DataFrame:
    """A row per change that nobody should notice and arm: requests after it, and those of them that failed.

    `longest` is the most that one load was watched after the change, `mutual TLS` what replicas counted of connections
    made meanwhile; NaN where they come and go, so that nobody counts.
    """
    found = _per_cell(runs, _lost, UNNOTICED)
    if found.empty:
        return absent.of(pd.DataFrame(columns=[*_UNSEEN, "longest", *_SUMS]), runs, UNNOTICED)
    by = found.groupby(_UNSEEN, observed=True, sort=False)
    sums = by[_SUMS].sum(min_count=1).assign(longest=by["seconds"].max()).reset_index()
    order = [*UNSEEN, *runs.world.arms]
    return sums.sort_values(
        ["change", "arm"],
        key=lambda names: names.astype(str).map(lambda name: looks.place(order, name)),
        ignore_index=True,
    )


_UNSEEN, _SUMS = ["change", "arm", "rate_hz"], ["seconds", "requests", "failed", "mutual TLS"]


def _lost(row: Row, load: Load, change: Change) -> Row:
    after = load.start_ns >= change.at_ns
    seconds = float(load.start_ns[-1] - change.at_ns) / units.NS_PER_S
    counts = {"requests": int(after.sum()), "failed": int(failed_after(load, change).sum())}
    return counts | {"seconds": seconds, "mutual TLS": float(row["agent"]["change"].get("mutual_tls", np.nan))}


def unnoticed_table(found: pd.DataFrame) -> pd.DataFrame:
    """The same as people read it."""
    rows = [
        {
            "change": UNSEEN.get(row["change"], row["change"]),
            "arm": row["arm"],
            "offered": f"{row['rate_hz']:g} /s",
            "watched": f"{row['seconds']:.0f} s",
            "requests": row["requests"],
            "new mutual TLS connections": text.ABSENT if np.isnan(row["mutual TLS"]) else int(row["mutual TLS"]),
            "failed": row["failed"],
            "verdict": _kept_quiet(row),
        }
        for row in of(found)
    ]
    return pd.DataFrame(rows)


def _kept_quiet(row: Row) -> str:
    """New certificates are tried by new connections only."""
    if row["failed"]:
        return "MISSED"
    tried = row["change"] != "rotate" or row["mutual TLS"] > 0
    enough = row["rate_hz"] >= BAR_HZ and row["longest"] >= BAR_S
    return "met" if enough and tried else text.ABSENT


def _share(part: int, whole: int) -> str:
    return f"{units.percent(part / whole)} of {whole}" if whole else text.ABSENT


# --- sentences ---


def answer(found: pd.DataFrame) -> str:
    """How long until new connections have followed every change, by how endpoints are known, fastest first."""
    if found.empty:
        return f"This run did not change endpoints under load; `{PLAN}` does."
    ways = {way: _slowest(of(found, endpoints=way, connection=NEW)) for way in dict.fromkeys(found["endpoints"])}
    known = {way: row for way, row in ways.items() if row is not None}
    if not known:
        return "No change met a load on new connections in a valid cell."
    fast = sorted((way for way in known if not _late(known[way])), key=lambda way: float(known[way]["followed"].p50))
    said = [_within(known[way], f" with {way}") for way in fast]
    if said:
        said[0] = f"At p50, new connections have followed even the slowest change after {said[0]}"
    slow = [_missed(way, of(found, endpoints=way, connection=NEW)) for way in known if way not in fast]
    hidden = unended(of(found, connection=NEW))
    rest = [f"Behind these medians are blocks in which the load ended before: a replica {hidden}."] if hidden else []
    return " ".join([f"{text.listed(said)}."] * bool(said) + slow + rest)


def _late(row: Row) -> bool:
    return bool(np.isinf(row["followed"].p50))


def _slowest(rows: list[Row]) -> Row | None:
    return max((row for row in rows if row["followed"].n), key=lambda row: float(row["followed"].p50), default=None)


def _where(row: Row) -> str:
    return f"{SAID.get(row['change'], row['change'])} in {row['arm']}"


def _within(row: Row, way: str = "") -> str:
    return f"{units.duration(row['followed'].p50)}{way} (a replica {_where(row)}: {spread(row['followed'])})"


def _missed(way: str, rows: list[Row]) -> str:
    rows = [row for row in rows if row["followed"].n]
    late = [row for row in rows if _late(row)]
    rest = units.duration(min(row["rest"] for row in late), "s")
    if len(late) == len(rows):
        return f"With {way} new connections follow no change within the {rest} of load left."
    whats = text.listed([_where(row) for row in late])
    slowest = _slowest([row for row in rows if not _late(row)])
    rest_of = f"; at p50 the others take up to {_within(slowest)}" if slowest else ""
    said = f"With {way} new connections do not follow {len(late)} of {len(rows)} changes within the {rest} of load left"
    return f"{said}: {whats}{rest_of}."


def unended(rows: list[Row]) -> str:
    """`replaced in plain with client's DNS never in 1 of 3 blocks`: what a median hides; "" if it hides none."""
    known = [row for row in rows if row["followed"].never and not _late(row)]
    return text.listed([f"{_where(row)} with {row['endpoints']} {_mean(row['followed'])}" for row in known])


def spread(spell: Spell) -> str:
    """`mean 0.62 ± 0.04 s, 8 blocks`, or in how many it never ended; one block has no interval."""
    if spell.interval is None:
        return _mean(spell)
    if spell.n == 1:
        return text.blocks(1)
    return f"mean {units.interval(spell.interval)}, {text.blocks(spell.n)}"


def bar_answer(found: pd.DataFrame) -> str:
    """How soon a replica that became ready is asked by EDS, and what is known of the bar; "" if not measured."""
    rows = [row for row in of(found, endpoints=EDS, change=JUDGED) if row["over probe"].n]
    if not rows:
        return ""
    each = [f"{_median(row['added'])} in {row['arm']} ({row['connection']})" for row in rows]
    verdicts = [_judged(row) for row in rows]
    counted = [f"{name} in {verdicts.count(name)}" for name in ("met", "MISSED", gates.UNKNOWN) if name in verdicts]
    return (
        f"From readiness to the first request on the new replica EDS takes {text.listed(each)} (p50), of which waiting "
        f"for the probe is anything up to its period of {units.duration(rows[0]['probe'], 's')}; the bar of "
        f"{units.duration(BAR_NS)} for the rest is {text.listed(counted).lower()} of {len(rows)}."
    )


def errors_answer(found: pd.DataFrame) -> str:
    """What the changes cost in failures; "" if nothing was measured."""
    if found.empty:
        return ""
    worst = max(of(found), key=lambda row: float(row["errors"].values.mean()))
    if not worst["errors"].values.any():
        return f"No request failed because of a change, in {text.blocks(int(found['blocks'].max()))}."
    said = f"The most failed requests of all: {worst['failed']} of the {worst['after']} that ended after the change, "
    said += f"when a replica is {_where(worst)}, with {worst['endpoints']} ({worst['connection']} connections): "
    said += units.interval(worst["errors"].interval, "s").replace(" s", " error-seconds")
    clean = [way for way in dict.fromkeys(found["endpoints"]) if not _failed(of(found, endpoints=way))]
    return f"{said}; with {text.listed(clean)} no request failed." if clean else f"{said}."


def _failed(rows: list[Row]) -> bool:
    return any(row["errors"].values.any() for row in rows)


def kept_answer(found: pd.DataFrame) -> str:
    """Whether connections stay on a replica that is unready but alive; "" if none was kept alive to one."""
    parts = []
    for way in dict.fromkeys(found["endpoints"]):
        rows = of(found, endpoints=way, change=ALIVE)
        whole, stayed = (sum(row[name] for row in rows) for name in ("on it", "stayed"))
        parts += [f"{stayed} of {whole} with {way}"] if whole else []
    said = "Of connections kept alive to a replica that became unready but lives, these stay on it until the load ends"
    return f"{said}: {text.listed(parts)}." if parts else ""


def gone_answer(found: pd.DataFrame) -> str:
    """When requests fail once the name has no record, by resolver; "" if that was not measured."""
    parts = []
    for row in of(found):
        spell, rest = row["failing"], units.duration(row["rest"], "s")
        if spell.never == spell.n:
            parts.append(f"with {row['resolver']} no request fails in the {rest} left ({text.blocks(spell.n)})")
        elif np.isinf(spell.p50):
            parts.append(f"with {row['resolver']} requests fail in {spell.n - spell.never} of {text.blocks(spell.n)}")
        else:
            first = f"{units.duration(spell.p50)} (p50; {spread(spell)})"
            parts.append(f"with {row['resolver']} the first request fails after {first}")
    return f"When the record of the name is removed, {text.listed(parts)}." if parts else ""


def unnoticed_answer(found: pd.DataFrame) -> str:
    """Whether requests failed; "" if that was not measured."""
    parts = []
    for change in dict.fromkeys(found["change"]):
        rows = of(found, change=change)
        each = [f"{row['failed']} of {row['requests']} requests in {row['arm']}" for row in rows]
        parts.append(f"{text.listed(each)} fail while {UNSEEN.get(change, change)}")
    return f"Of what nobody should notice: {'; '.join(parts)}." if parts else ""


# --- whether the data can carry it ---


def checks(runs: store.Runs) -> pd.DataFrame:
    """A row per experiment that was measured: cells, requests, failures before the change. Raises ReportError."""
    rows = [_check(runs, name) for name in (CHANGE, GONE, UNNOTICED) if (runs.cells["experiment"] == name).any()]
    for row in rows:
        if problem := _problem(row):
            place = ", ".join(header.name for header in runs.headers)
            raise errors.ReportError(f"experiment {row['experiment']}: {problem}", place=place, step="measure again")
    return provenance.reconciled(runs, pd.DataFrame(rows))


def _check(runs: store.Runs, experiment: str) -> Row:
    def counted(_: Row, load: Load, change: Change) -> Row:
        early = load.end_ns < change.at_ns
        return {
            "requests": len(load.ok),
            "failed before": int((~load.ok & early).sum()),
            "added before": int((load.served_by(change.added) & early).sum()),
            "took": float(change.done_ns - change.at_ns),
            "lag": float(np.quantile(load.start_ns - load.due_ns, 0.99)),
        }

    every = runs.cells[runs.cells["experiment"] == experiment]
    found = _per_cell(runs, counted, experiment)
    sums = {name: int(found[name].sum()) if len(found) else 0 for name in ("requests", "failed before", "added before")}
    medians = {name: float(found[name].median()) if len(found) else np.nan for name in ("took", "lag")}
    return {
        "experiment": experiment,
        "blocks": cells.blocks_of(found),
        "cells": len(every),
        "invalid or without change": len(every) - len(found),
        "requests": sums["requests"],
        "failed before the change": sums["failed before"],
        "by an added replica before": sums["added before"],
        "making the change took, p50": units.duration(medians["took"], "s"),
        "send lag p99, p50 of cells": units.duration(medians["lag"], "µs"),
    }


def _problem(row: Row) -> str:
    if row["invalid or without change"] > provenance.MAX_INVALID * row["cells"]:
        return f"{row['invalid or without change']} of {row['cells']} cells are invalid or tell of no change"
    if row["blocks"] < provenance.MIN_BLOCKS and row["experiment"] != UNNOTICED:  # a count, not an average
        return f"{row['blocks']} block(s), an interval needs {provenance.MIN_BLOCKS}"
    if row["failed before the change"] > provenance.MAX_FAILED * row["requests"]:
        return f"{row['failed before the change']} of {row['requests']} requests failed before the change"
    if row["by an added replica before"]:
        return f"{row['by an added replica before']} requests were served by a replica that was yet to be added"
    return ""
