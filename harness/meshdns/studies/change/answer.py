"""How fast traffic follows a change of endpoints, and what becomes of it until then: the words."""

from __future__ import annotations

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, gates, text
from meshdns.core import units
from meshdns.studies.change import tables, ways
from meshdns.studies.change.load import Row
from meshdns.studies.change.spells import Spell
from meshdns.studies.change.tables import NEW

PLAN = "meshdns report --plan change"
SAID = {"up": "added", "down": "shut down", "replace": "replaced", "unready": "unready", "crash": "killed"}  # a replica
_CHANGES = {change: f"a replica is {said}" for change, said in SAID.items()}
_CHANGES |= {"unrelated": "another Service comes and goes", "istiod": "istiod is away"}
_DEBOUNCES = {
    "1ms": "all for 1 ms",
    "100ms": "all for 100 ms (its default)",
    "1s": "all for 1 s",
    "endpoints-at-once": "all but endpoints for 100 ms",
}
WORDS = text.Words(
    headings={
        "endpoints": "endpoints by",
        "followed": "followed after, p50",
        "followed_mean": "mean",
        "added": "first on added, p50",
        "left": "last on removed, p50",
        "errors": "error-seconds",
        "failing": "failing span",
        "took": "made within, p50",
        "connections": "connections to it before",
        "stayed": "of them until the end",
        "rate_hz": "offered, /s",
        "debounce": "istiod gathers",
    },
    values={"change": _CHANGES, "debounce": _DEBOUNCES, "verdict": {gates.MISSED: "MISSED"}},
)
FOLLOWED = [
    "change", "arm", "endpoints", "blocks", "followed", "followed_mean", "added", "left", "took", "errors", "failing",
]  # fmt: skip
GATHERED = ["debounce", "backend", "endpoints", "arm", "blocks", "followed", "followed_mean", "errors"]
KEPT = ["change", "arm", "endpoints", "blocks", "connections", "stayed", "requests_on_them"]
UNNOTICED = ["change", "arm", "rate_hz", "watched_s", "requests", "failed", "verdict"]


def _stale(way: str) -> str:
    """What is stale until a change is followed, by how it is known."""
    known = {ways.EDS: "an endpoint", ways.STRICT_DNS: "a name that the sidecar resolves"}
    return "a headless name" if ways.is_name(way) else known.get(way, way)


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    found = tables.followed(runs)
    said = [answer(found), gathered_answer(tables.gathered(runs)), errors_answer(found)]
    return [*said, kept_answer(tables.kept(runs)), unnoticed_answer(tables.unnoticed(runs))]


def answer(found: pd.DataFrame) -> str:
    """How long names and endpoints are stale for new connections, by how they are known and arm, names first."""
    if found.empty:
        return f"This run did not change endpoints under load; `{PLAN}` does."
    new = [row for row in cells.rows(found, connection=NEW) if row["followed"].n]
    if not new:
        return "No change met a load on new connections in a valid cell."
    slowest = sorted(_slowest(new), key=lambda row: (not ways.is_name(row["endpoints"]), _p50(row)))
    stale = text.grouped((_stale(row["endpoints"]), _within(row)) for row in slowest)
    said = [f"At p50 {what} is stale for {text.listed(mine)}." for what, mine in stale.items()]
    if late := [row for row in new if row["followed"].late]:
        them = text.listed(f"{_where(row)} with {row['endpoints']}" for row in late)
        rest = units.number(min(row["rest_s"] for row in late))
        said.append(f"Within the {rest} s of load left {len(late)} of {len(new)} changes are not followed: {them}.")
    if hidden := unended(new):
        said.append(f"Behind these medians are blocks in which the load ended before: a replica {hidden}.")
    return " ".join(said)


def _slowest(new: list[Row]) -> list[Row]:
    """Of each way and arm, the slowest of the changes that are told at once; of all, where none of these was made."""
    known = text.grouped(((row["endpoints"], row["arm"]), row) for row in new)
    told = ([row for row in mine if row["change"] in tables.TOLD] or mine for mine in known.values())
    return [max(mine, key=_p50) for mine in told]


def _p50(row: Row) -> float:
    return float(row["followed"].p50)


def _where(row: Row) -> str:
    return f"{SAID.get(row['change'], row['change'])} in {row['arm']}"


def _within(row: Row) -> str:
    late, spell = row["followed"].late, row["followed"]
    lasts = f"longer than the {units.number(row['rest_s'])} s of load left" if late else units.duration(spell.p50)
    return f"{lasts} with {row['endpoints']} (a replica {_where(row)}: {spread(spell)})"


def unended(found: list[Row]) -> str:
    """`replaced in plain with cluster DNS never in 1 of 3 blocks`: what a median hides; "" if it hides none."""
    known = [row for row in found if row["followed"].never and not row["followed"].late]
    return text.listed([f"{_where(row)} with {row['endpoints']} {row['followed'].mean}" for row in known])


def spread(spell: Spell) -> str:
    """`mean 0.62 ± 0.04 s, 8 blocks`, or in how many it never ended; one block has no interval."""
    if spell.interval is None:
        return str(spell.mean)
    return text.blocks(1) if spell.n == 1 else f"mean {units.interval(spell.interval)}, {text.blocks(spell.n)}"


def gathered_answer(found: pd.DataFrame) -> str:
    """How soon an added replica is asked by istiod's debounce; "" if that was not measured."""
    parts = text.grouped(
        (WORDS.value("debounce", row["debounce"]), f"{_lasts(row['followed'])} with {row['endpoints']}")
        for row in cells.rows(found)
    )
    each = [f"{text.listed(said)} where istiod gathers {gathers}" for gathers, said in parts.items()]
    return f"A replica that is added is followed (p50) after {'; '.join(each)}." if each else ""


def _lasts(spell: Spell) -> str:
    return str(spell) if spell.late or not spell.n else units.duration(spell.p50)


def errors_answer(found: pd.DataFrame) -> str:
    """What the changes cost in failures; "" if nothing was measured."""
    if found.empty:
        return ""
    worst = max(cells.rows(found), key=lambda row: float(row["errors"].values.mean()))
    if not worst["failed"]:
        return f"No request failed because of a change, in {text.blocks(max(each.n for each in found['errors']))}."
    said = f"The most failed requests of all: {worst['failed']} of the {worst['after']} that ended after the change, "
    said += f"when a replica is {_where(worst)}, with {worst['endpoints']} ({worst['connection']} connections): "
    said += str(worst["errors"]).replace(" s", " error-seconds")
    failed = found.groupby("endpoints", sort=False)["failed"].sum()
    clean = failed.index[failed == 0]
    return f"{said}; with {text.listed(clean)} no request failed." if len(clean) else f"{said}."


def kept_answer(found: pd.DataFrame) -> str:
    """Whether connections stay on a replica that is unready but alive; "" if none was kept alive to one."""
    alive = found[found["change"] == tables.ALIVE].groupby("endpoints", sort=False)[["stayed", "connections"]].sum()
    parts = [f"{stayed} of {whole} with {way}" for way, stayed, whole in alive.itertuples() if whole]
    said = "Of connections kept alive to a replica that became unready but lives, these stay on it until the load ends"
    return f"{said}: {text.listed(parts)}." if parts else ""


def unnoticed_answer(found: pd.DataFrame) -> str:
    """Whether requests failed; "" if that was not measured."""
    parts = text.grouped(
        (WORDS.value("change", row["change"]), f"{row['failed']} of {row['requests']} requests in {row['arm']}")
        for row in cells.rows(found)
    )
    each = [f"{text.listed(said)} fail while {change}" for change, said in parts.items()]
    return f"Of what nobody should notice: {'; '.join(each)}." if each else ""
