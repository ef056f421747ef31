"""How fast traffic follows a change of endpoints, and what becomes of it until then: the words."""

from __future__ import annotations

import pandas as pd

from meshdns import store
from meshdns.analysis import gates, text
from meshdns.core import units
from meshdns.studies.change import tables
from meshdns.studies.change.spells import Spell
from meshdns.studies.change.tables import EDS, MET, NEW, Row, rows

PLAN = "meshdns report --plan change"
SAID = {"up": "added", "down": "shut down", "replace": "replaced", "unready": "unready", "crash": "killed"}  # a replica
_CHANGES = {change: f"a replica is {said}" for change, said in SAID.items()}
_CHANGES |= {"rotate": "every certificate is replaced", "unrelated": "another Service comes and goes"}
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
        "probe_s": "probe period, s",
        "over_probe": "beyond it, p50",
        "over_probe_mean": "beyond it, mean",
        "connections": "connections to it before",
        "stayed": "of them until the end",
        "rate_hz": "offered, /s",
        "until_failing": "first failure after, p50",
        "until_failing_mean": "first failure after, mean",
        "mutual_tls": "new mutual TLS connections",
    },
    values={"change": _CHANGES, "verdict": {gates.MISSED: "MISSED"}},
)
FOLLOWED = [
    "change", "arm", "endpoints", "blocks", "followed", "followed_mean", "added", "left", "errors", "failing",
]  # fmt: skip
BAR = [
    "change", "arm", "connection", "blocks", "added", "followed", "took", "probe_s", "over_probe", "over_probe_mean",
    "bar_s", "verdict",
]  # fmt: skip
KEPT = ["change", "arm", "endpoints", "blocks", "connections", "stayed", "requests_on_them"]
GONE = [
    "resolver", "arm", "blocks", "served_before", "served_after", "until_failing", "until_failing_mean", "served_since",
]  # fmt: skip
UNNOTICED = ["change", "arm", "rate_hz", "watched_s", "requests", "mutual_tls", "failed", "verdict"]


def whole(runs: store.Runs) -> list[str]:
    """All sentences, the main one first."""
    found = tables.followed(runs)
    said = [answer(found), errors_answer(found), kept_answer(tables.kept(runs)), bar_answer(tables.bar(found))]
    return [*said, gone_answer(tables.gone(runs)), unnoticed_answer(tables.unnoticed(runs))]


def answer(found: pd.DataFrame) -> str:
    """How long until new connections have followed every change, by how endpoints are known, fastest first."""
    if found.empty:
        return f"This run did not change endpoints under load; `{PLAN}` does."
    new = [row for row in rows(found, connection=NEW) if row["followed"].n]
    ways: dict[str, list[Row]] = {}
    for row in new:
        ways.setdefault(row["endpoints"], []).append(row)
    if not ways:
        return "No change met a load on new connections in a valid cell."
    slowest = {way: max(each, key=_p50) for way, each in ways.items()}
    fast = sorted((way for way, row in slowest.items() if not row["followed"].late), key=lambda way: _p50(slowest[way]))
    said = text.listed([_within(slowest[way], f" with {way}") for way in fast])
    sentences = [f"At p50, new connections have followed even the slowest change after {said}."] if fast else []
    sentences += [_missed(way, ways[way]) for way in ways if way not in fast]
    if hidden := unended(new):
        sentences.append(f"Behind these medians are blocks in which the load ended before: a replica {hidden}.")
    return " ".join(sentences)


def _p50(row: Row) -> float:
    return float(row["followed"].p50)


def _where(row: Row) -> str:
    return f"{SAID.get(row['change'], row['change'])} in {row['arm']}"


def _within(row: Row, way: str = "") -> str:
    return f"{units.duration(_p50(row))}{way} (a replica {_where(row)}: {spread(row['followed'])})"


def _missed(way: str, found: list[Row]) -> str:
    late, timely = ([row for row in found if row["followed"].late == kind] for kind in (True, False))
    rest = f"within the {units.number(min(row['rest_s'] for row in late))} s of load left"
    if not timely:
        return f"With {way} new connections follow no change {rest}."
    said = f"With {way} new connections do not follow {len(late)} of {len(found)} changes {rest}: "
    said += text.listed([_where(row) for row in late])
    return f"{said}; at p50 the others take up to {_within(max(timely, key=_p50))}."


def unended(found: list[Row]) -> str:
    """`replaced in plain with client's DNS never in 1 of 3 blocks`: what a median hides; "" if it hides none."""
    known = [row for row in found if row["followed"].never and not row["followed"].late]
    return text.listed([f"{_where(row)} with {row['endpoints']} {row['followed'].mean}" for row in known])


def spread(spell: Spell) -> str:
    """`mean 0.62 ± 0.04 s, 8 blocks`, or in how many it never ended; one block has no interval."""
    if spell.interval is None:
        return str(spell.mean)
    return text.blocks(1) if spell.n == 1 else f"mean {units.interval(spell.interval)}, {text.blocks(spell.n)}"


def bar_answer(bar: pd.DataFrame) -> str:
    """How soon a replica that became ready is asked by EDS, and what is known of the bar; "" if not measured."""
    judged = rows(bar, change=tables.JUDGED)
    if not judged:
        return ""
    each = [f"{row['added']} in {row['arm']} ({row['connection']})" for row in judged]
    verdicts = [row["verdict"] for row in judged]
    counted = [f"{name} in {verdicts.count(name)}" for name in (MET, gates.MISSED, gates.UNKNOWN) if name in verdicts]
    return (
        f"From readiness to the first request on the new replica {EDS} takes {text.listed(each)} (p50), of which "
        f"waiting for the probe is anything up to its period of {units.number(judged[0]['probe_s'])} s; the bar of "
        f"{units.duration(tables.BAR_NS)} for the rest is {text.listed(counted)} of {len(judged)}."
    )


def errors_answer(found: pd.DataFrame) -> str:
    """What the changes cost in failures; "" if nothing was measured."""
    if found.empty:
        return ""
    worst = max(rows(found), key=lambda row: float(row["errors"].values.mean()))
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


def gone_answer(found: pd.DataFrame) -> str:
    """When requests fail once the name has no record, by resolver; "" if that was not measured."""
    parts = []
    for row in rows(found):
        spell = row["until_failing"]
        if spell.never == spell.n:
            fate = f"no request fails in the {units.number(row['rest_s'])} s left ({text.blocks(spell.n)})"
        elif spell.late:
            fate = f"requests fail in {spell.n - spell.never} of {text.blocks(spell.n)}"
        else:
            fate = f"the first request fails after {units.duration(spell.p50)} (p50; {spread(spell)})"
        parts.append(f"with {row['resolver']} {fate}")
    return f"When the record of the name is removed, {text.listed(parts)}." if parts else ""


def unnoticed_answer(found: pd.DataFrame) -> str:
    """Whether requests failed; "" if that was not measured."""
    parts: dict[str, list[str]] = {}
    for row in rows(found):
        said = f"{row['failed']} of {row['requests']} requests in {row['arm']}"
        parts.setdefault(str(WORDS.value("change", row["change"])), []).append(said)
    each = [f"{text.listed(said)} fail while {change}" for change, said in parts.items()]
    return f"Of what nobody should notice: {'; '.join(each)}." if each else ""
