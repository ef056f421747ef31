"""The index of a report: every answer first, then what they rest on, then how to do it again.

Dates are those of the runs, never of the report: the same data give the same bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from meshdns import store
from meshdns.analysis import provenance, text
from meshdns.core import paths, plans
from meshdns.report import markup
from meshdns.report.page import Page
from meshdns.studies import own

NAME = "index.html"
TITLE = "Sidecars and DNS: what was asked, what was measured"
CLAIMS, SELF_TEST = "00", "10"  # how the file names of these two notebooks begin
KEPT_PLANS = "data/plans"  # where a checkout keeps the plans of its sample


class Unasked(NamedTuple):
    """What a notebook asks that the runs cannot answer, and the plans that measure it."""

    question: str
    plans: Sequence[str]


def document(pages: Sequence[Page], runs: store.Runs, unasked: Sequence[Unasked] = ()) -> str:
    """The whole HTML document."""
    blocks = sum(header.blocks for header in runs.headers)
    days = sorted({header.created[:10] for header in runs.headers})
    commands, how = _again(runs, pages)
    unasked_for = text.shown(found) if len(found := own.levels(runs)) else None
    return markup.render(
        "index.html",
        title=TITLE,
        pages=pages,
        page=None,
        summary=f"{_count(len(runs.headers), 'run')} of {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{_count(blocks, 'block')}, {len(runs.samples):,} requests in {_count(len(runs.cells), 'cell')}",
        invalid=int((~runs.cells["valid"].astype(bool)).sum()),
        self_test=next((each for each in pages if each.stem.startswith(SELF_TEST)), None),
        cards=sorted(pages, key=lambda each: (each.stem.startswith(SELF_TEST), each.stem.startswith(CLAIMS))),
        unasked=unasked,
        own=markup.accessible(unasked_for.to_html(border=0)) if isinstance(unasked_for, text.Shown) else "",
        commands=commands,
        how=how,
        table=markup.accessible(provenance.table(runs).rename_axis(columns=None).to_html(border=0)),
        runs=runs,
    )


def about(runs: store.Runs) -> list[str]:
    """Run ids, versions, commit and dates, in sentences."""
    lines = []
    for header in runs.headers:
        versions, machine = (provenance.branch(header.facts, name) for name in ("versions", "machine"))
        commit = versions.get("commit", header.facts.get("commit", "unknown"))
        named = [f"{name} {value}" for name, value in versions.items() if name != "commit" and value]
        named += [str(machine[name]) for name in ("cpu", "kernel") if machine.get(name)]
        span = f"{header.created} to {header.finished or 'unfinished'}"
        lines.append(f"Run {header.name}: {_count(header.blocks, 'block')}, seed {header.seed}, {span}")
        lines.append(f"Commit {commit}; {', '.join(named)}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _again(runs: store.Runs, pages: Sequence[Page]) -> tuple[list[str], str]:
    """The commands that measure such runs and publish this report, and what they do."""
    given = {name: value for each in pages for name, value in each.parameters.items()}
    typed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    more = "".join(f" -p {name} {shlex.quote(value)}" for name, value in typed.items())
    names = list(filter(None, dict.fromkeys(str(header.plan.get("name", "")) for header in runs.headers)))
    plans = [_plan(name) for name in names]
    if len(runs.headers) == 1 and plans:
        commands = [f"meshdns report --plan {shlex.quote(plans[0])}{more}"]
        how = "Measures on your own machine and publishes this report from what it finds."
    else:
        commands = [f"meshdns run --plan {shlex.quote(each)}" for each in plans]
        commands.append(f"meshdns report --runs FOLDER{more}")
        how = "Each plan measures one of these runs on your own machine; the last command publishes this report from "
        how += "the FOLDER that holds the runs."
    own = [each for name, each in zip(names, plans, strict=True) if each == f"{name}.toml"]
    return commands, how + (f" What {text.listed(own)} held stands in run.json." if own else "")


def _plan(name: str) -> str:
    """The plan of that name as the command line takes it; of one that is not here only the name is known."""
    if name in plans.shipped():
        return name
    kept = {path.stem for path in (paths.RESOURCES / KEPT_PLANS).glob("*.toml")}
    return f"{KEPT_PLANS}/{name}.toml" if name in kept else f"{name}.toml"
