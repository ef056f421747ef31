"""The index of a report: every answer first, then what they rest on, then how to do it again.

Also the footer that each page carries, since both tell of the same runs. Dates are those of the runs, never of the
report: the same data give the same bytes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from harness import plan, store
from harness.report import page
from harness.report.page import Page
from harness.tables import provenance

TITLE = "Sidecars and DNS: what was asked, what was measured"
CLAIMS, CARD = "00", "10"  # how the file names of these two notebooks begin


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
<p class="summary">{_measured(runs)}</p>
{"".join(map(_card, answers))}
{"".join(map(_card, claims))}
{"".join(map(_card, card))}
{_unasked(unasked)}
<h2>Do it again</h2>
<pre><code>{html.escape(_command(runs))}</code></pre>
<p>Measures on your own machine and publishes this report from what it finds. Numbers depend on the machine; which arm
is dearer, and whether the difference is clear, should not.</p>
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


def _measured(runs: store.Runs) -> str:
    invalid = int((~runs.cells["valid"].astype(bool)).sum())
    blocks = sum(header.blocks for header in runs.headers)
    days = sorted({header.created[:10] for header in runs.headers})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{_count(len(runs.headers), 'run')} of {when}, {_count(blocks, 'block')}, "
        f"{len(runs.samples):,} requests in {_count(len(runs.cells), 'cell')}"
        + (f"; {invalid} of them invalid and left out." if invalid else "; none invalid.")
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


def _command(runs: store.Runs) -> str:
    names = {str(header.plan.get("name", "")) for header in runs.headers} - {"", "quick"}
    if len(names) != 1:
        return "make report"
    name = names.pop()
    return f"make report PLAN={name}{'' if name in plan.shipped() else '.toml'}"
