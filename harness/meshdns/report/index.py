"""The index of a report: every answer first, then what they rest on, then how to do it again.

Also the footer that each page carries, since both tell of the same runs. Dates are those of the runs, never of the
report: the same data give the same bytes.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from meshdns import store
from meshdns.analysis import provenance, text
from meshdns.core import paths
from meshdns.measure import plan
from meshdns.report import page
from meshdns.report.page import Page

TITLE = "Sidecars and DNS: what was asked, what was measured"
CLAIMS, CARD = "00", "10"  # how the file names of these two notebooks begin
KEPT_PLANS = "data/plans"  # where a checkout keeps the plans of its sample
CARRIES_OVER = (
    "To other machines carry over the sign of the difference that DNS makes, how many queries a lookup takes, and the "
    "hops and paths of a request. The sizes of times and of differences do not: they are of this machine."
)


class Unasked(NamedTuple):
    """What a notebook asks that the runs cannot answer, and the plans that measure it."""

    question: str
    plans: Sequence[str]


def document(
    pages: Sequence[Page], links: Sequence[page.Link], runs: store.Runs, unasked: Sequence[Unasked] = ()
) -> str:
    """The whole HTML document."""
    answers = [each for each in pages if not each.stem.startswith((CLAIMS, CARD))]
    claims = [each for each in pages if each.stem.startswith(CLAIMS)]
    card = [each for each in pages if each.stem.startswith(CARD)]
    content = f"""
<main>
<h1>{html.escape(TITLE)}</h1>
<p class="summary">{_measured(runs, card)}</p>
{page.parts("".join(each.answer for each in pages))}
{"".join(map(_card, answers))}
{"".join(map(_card, claims))}
{"".join(map(_card, card))}
{_unasked(unasked)}
<h2>Do it again</h2>
{_again(runs, pages)}
<p>{CARRIES_OVER}</p>
</main>
<footer id="runs">
<h2>The runs</h2>
{_runs_table(runs)}
{_notes(runs)}
{page.MADE_BY}
</footer>"""
    return page.shell(TITLE, links, "index.html", content)


def footer(runs: store.Runs) -> str:
    """Run ids, versions, commit and dates, as HTML paragraphs."""
    lines = [f"<p>{html.escape(line)}</p>" for header in runs.headers for line in _run_lines(header)]
    return "\n".join(lines)


def _card(one: Page) -> str:
    """A notebook's question, its answer and its first figure."""
    link = page.address(one.stem)
    thumb = ""
    if one.figures:
        first = one.figures[0]
        thumb = (
            f'<a class="thumb" href="{link}"><img src="figures/{first.name}.png" width="{first.width}" '
            f'height="{first.height}" alt="{html.escape(first.alternative)}"></a>'
        )
    # Ids of one page may be those of another.
    answer = re.sub(r' id="[^"]*"', "", one.answer)
    return f"""<article class="card{"" if thumb else " bare"}">
<h2><a href="{link}">{html.escape(one.question)}</a></h2>
<div class="answer">{answer}</div>{thumb}
</article>
"""


def _unasked(notebooks: Sequence[Unasked]) -> str:
    if not notebooks:
        return ""
    listed = "".join(f"<li>{html.escape(each.question)}{_measured_by(each.plans)}</li>" for each in notebooks)
    return f"<h2>Not asked in these runs</h2>\n<ul>{listed}</ul>"


def _measured_by(plans: Sequence[str]) -> str:
    commands = " or ".join(f"<code>meshdns report --plan {html.escape(name)}</code>" for name in plans)
    return f" {commands}" if plans else ""


def _measured(runs: store.Runs, card: Sequence[Page]) -> str:
    where = f', <a href="{page.address(card[0].stem)}">listed by experiment and reason</a>' if card else ""
    invalid = int((~runs.cells["valid"].astype(bool)).sum())
    blocks = sum(header.blocks for header in runs.headers)
    days = sorted({header.created[:10] for header in runs.headers})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{_count(len(runs.headers), 'run')} of {when}, {_count(blocks, 'block')}, "
        f"{len(runs.samples):,} requests in {_count(len(runs.cells), 'cell')}"
        + (f"; {invalid} of them invalid and left out{where}." if invalid else "; none invalid.")
        + " Each page says which of these cells it reads."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _run_lines(header: store.RunHeader) -> list[str]:
    versions = provenance.branch(header.facts, "versions")
    machine = provenance.branch(header.facts, "machine")
    commit = versions.get("commit", header.facts.get("commit", "unknown"))
    named = [f"{name} {value}" for name, value in versions.items() if name != "commit" and value]
    where = [str(machine[name]) for name in ("cpu", "kernel") if machine.get(name)]
    span = f"{header.created} to {header.finished or 'unfinished'}"
    return [
        f"Run {header.name}: {_count(header.blocks, 'block')}, seed {header.seed}, {span}",
        f"Commit {commit}; {', '.join([*named, *where])}",
    ]


def _runs_table(runs: store.Runs) -> str:
    body = provenance.table(runs).to_html(border=0).replace("<th>run</th>", "<th></th>")
    return page.accessible(body)


def _notes(runs: store.Runs) -> str:
    return "".join(f"<p>{html.escape(note)}.</p>" for note in runs.notes)


def _again(runs: store.Runs, pages: Sequence[Page]) -> str:
    """The commands that measure such runs, and the one that publishes this report, as HTML."""
    given = {name: value for each in pages for name, value in each.parameters.items()}
    typed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    more = "".join(f" -p {name} {shlex.quote(value)}" for name, value in typed.items())
    names = list(dict.fromkeys(str(header.plan.get("name", "")) for header in runs.headers))
    plans = [_plan(name) for name in names if name]
    if len(runs.headers) == 1 and plans:
        commands = [f"meshdns report --plan {shlex.quote(plans[0])}{more}"]
        words = "Measures on your own machine and publishes this report from what it finds."
    else:
        commands = [f"meshdns run --plan {shlex.quote(each)}" for each in plans]
        commands.append(f"meshdns report --runs FOLDER{more}")
        words = "Each plan measures one of these runs on your own machine; the last command publishes this report from "
        words += "the FOLDER that holds the runs."
    own = [each for name, each in zip(filter(None, names), plans, strict=True) if each == f"{name}.toml"]
    words += f" What {text.listed(own)} held stands in run.json." if own else ""
    return f"<pre><code>{html.escape(chr(10).join(commands))}</code></pre>\n<p>{html.escape(words)}</p>"


def _plan(name: str) -> str:
    """The plan of that name as the command line takes it; of one that is not here only the name is known."""
    if name in plan.shipped():
        return name
    kept = {path.stem for path in (paths.RESOURCES / KEPT_PLANS).glob("*.toml")}
    return f"{KEPT_PLANS}/{name}.toml" if name in kept else f"{name}.toml"
