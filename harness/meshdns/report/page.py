"""An executed notebook in, one HTML page out: question, answer, figures with captions, tables, doubts, provenance.

nbconvert renders each cell's outputs; what stands around them (order, captions, alternative texts, table scopes, the
shell) is ours. Nothing on a page is fetched from elsewhere.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePath
from string import Template

import nbformat
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from meshdns import __version__
from meshdns.analysis import absent
from meshdns.core import errors

HIDDEN = ("parameters", "injected-parameters", "load")  # set up, and say nothing
ALTERNATIVE_LENGTH = 400  # a screen reader cannot skim: the caption's first sentences are enough
MADE_BY = f"<p>Report made by meshdns {__version__}.</p>"
CHECKS_TITLE = "<h2>What was checked</h2>"
# Said wherever these parts have results; whoever measures the originals changes it here.
PARTS = (
    "What stands for Istio's agent (the DNS proxy of <code>mode2-agent</code> and <code>mode2-xds</code>) and for its "
    "control plane are this laboratory's own imitations, and the cluster DNS is BIND behind dnsdist, not CoreDNS: "
    "numbers of these parts are not those of the originals."
)
PART = re.compile(r"mode ?2|-xds|cluster DNS", re.IGNORECASE)
ABSENT = "absent"  # tag of the sentence that says what was not measured
CELL = re.compile(r"<(td|th)\b[^>]*>(.*?)</t[dh]>", re.DOTALL)
PNG, PDF = "image/png", "application/pdf"


@dataclass(frozen=True)
class Figure:
    """One figure, as it is stored beside the page."""

    name: str  # file name without its ending
    png: bytes
    pdf: bytes  # empty if the notebook made none
    width: int  # in CSS pixels
    height: int
    alternative: str


@dataclass(frozen=True)
class Page:
    """What a notebook says, taken apart."""

    stem: str  # file name of the notebook and of the page, without their endings
    question: str
    lead: str  # HTML: why it matters
    answer: str  # HTML: the computed answer
    body: str  # HTML: figures, tables, doubts, checks
    provenance: str  # HTML
    figures: Sequence[Figure]
    parameters: Mapping[str, object]  # given, other than the runs

    @property
    def label(self) -> str:
        """`01 name resolution`: what links to the page say."""
        return self.stem.replace("_", " ").replace("-", " ")


@dataclass(frozen=True)
class Link:
    """A page of the same report."""

    address: str
    label: str


def read(notebook: nbformat.NotebookNode, stem: str) -> Page:
    """The page of an executed notebook. Raises ReportError if it lacks its question, its answer or a figure."""
    cells = [cell for cell in notebook.cells if _tag(cell) not in HIDDEN]
    question, lead = _question(cells, stem)
    figures: list[Figure] = []
    answer, provenance, body = "", "", []
    rest = iter(_measured(cells[1:]))
    following = next(rest, None)
    while (cell := following) is not None:
        following = next(rest, None)
        tag = _tag(cell)
        if tag == "answer":
            answer += _rendered(cell)
        elif tag == "provenance":
            provenance += _rendered(cell)
        elif tag.startswith("figure") and not _pictures(cell):
            raise errors.ReportError("drew nothing", place=f"{stem}, cell {tag!r}", step="let it show its figure")
        elif _pictures(cell) or tag.startswith("table"):
            caption = _own_caption(cell)
            if not caption and following is not None and _is_caption(following):
                caption, following = following.source, next(rest, None)
            if _pictures(cell):
                body.append(_figure(cell, caption or question, caption, stem, figures))
            else:
                body.append(_section(tag, _with_caption(_rendered(cell), caption)))
        elif part := _rendered(cell):
            body.append(_section(tag, CHECKS_TITLE + part if tag == "checks" else part))
    if not answer:
        raise errors.ReportError("has no output in a cell tagged answer", place=stem, step="let it say its answer")
    given = {name: value for name, value in _given(notebook).items() if name != "runs"}
    return Page(stem, question, lead, answer, "\n".join(body), provenance, figures, given)


def shell(title: str, links: Sequence[Link], current: str, content: str) -> str:
    """A whole HTML document; `current` is the address of the page itself."""
    items = "".join(
        f'<li><a href="{html.escape(link.address)}"{" aria-current=page" * (link.address == current)}>'
        f"{html.escape(link.label)}</a></li>"
        for link in links
    )
    template = Template(_asset("shell.html"))
    return template.substitute(title=html.escape(title), style=_asset("style.css"), links=items, content=content)


def document(page: Page, links: Sequence[Link], provenance: str) -> str:
    """The page as a whole HTML document; `provenance` is HTML for one that tells of no runs itself."""
    given = ", ".join(f"{html.escape(name)} = {html.escape(str(value))}" for name, value in page.parameters.items())
    content = f"""
<main>
<h1>{html.escape(page.question)}</h1>
<section class="answer" aria-label="Answer">{page.answer}</section>
<div class="lead">{page.lead}{parts(page.answer + page.body)}</div>
{page.body}
</main>
<footer>
<h2>Where this comes from</h2>
{page.provenance or provenance}
{f"<p>Parameters: {given}</p>" if given else ""}
{MADE_BY}
</footer>"""
    return shell(page.question, links, f"{page.stem}.html", content)


def parts(content: str) -> str:
    """Which parts are not what they stand for, as HTML, if the content tells of them; else ""."""
    return f"<p>{PARTS}</p>" if PART.search(content) else ""


def _measured(cells: Sequence[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells without those that show nothing, and their captions; one sentence says what was not measured."""
    left: list[nbformat.NotebookNode] = []
    missing: list[str] = []
    place = 0  # of the sentence: where the last of them stood
    for before, cell in zip([None, *cells], cells, strict=False):
        if names := _absent(cell):
            missing, place = [*missing, *names], len(left)
        elif before is None or not _absent(before) or not _is_caption(cell):
            left.append(cell)
    if missing:
        words = nbformat.v4.new_markdown_cell(absent.sentence(missing), metadata={"tags": [ABSENT]})  # type: ignore[no-untyped-call]
        left.insert(place, words)
    return left


def _absent(cell: nbformat.NotebookNode) -> list[str]:
    """What the cell shows not to be measured."""
    told = (output.get("data", {}).get(absent.MIME, {}) for output in cell.get("outputs", []))
    return [str(name) for each in told for name in each.get("names", [])]


def _question(cells: Sequence[nbformat.NotebookNode], stem: str) -> tuple[str, str]:
    """The title as text, and what stands under it as HTML."""
    title, _, under = (cells[0].source if cells else "").partition("\n")
    if not title.startswith("# "):
        step = "let its first cell begin with `# Question?`"
        raise errors.ReportError("does not begin with a question", place=stem, step=step)
    return title.removeprefix("# ").strip().replace("`", ""), _markdown(under)


def _figure(cell: nbformat.NotebookNode, alternative: str, caption: str, stem: str, figures: list[Figure]) -> str:
    """The cell as HTML figure; its pictures are added to `figures`."""
    plain = " ".join(re.sub(r"<[^>]+>", "", _markdown(alternative)).split())[:ALTERNATIVE_LENGTH]
    links = []
    for output in _pictures(cell):
        size = output.metadata.get(PNG, {})
        figure = Figure(
            name=f"{stem}-{len(figures) + 1}",
            png=base64.b64decode(output.data[PNG]),
            pdf=base64.b64decode(output.data.pop(PDF, "")),
            width=int(size.get("width", 640)),
            height=int(size.get("height", 480)),
            alternative=html.unescape(plain),
        )
        output.metadata.setdefault(PNG, {})["alt"] = figure.alternative
        links.append(f'<a href="figures/{figure.name}.png">PNG</a>')
        links += [f'<a href="figures/{figure.name}.pdf">PDF</a>'] if figure.pdf else []
        figures.append(figure)
    words = f"{_markdown(caption)}<p class=files>{' '.join(links)}</p>"
    return f"<figure>{_rendered(cell)}<figcaption>{words}</figcaption></figure>"


def _with_caption(table: str, caption: str) -> str:
    """The table with its caption inside, where screen readers look for it."""
    if not caption:
        return table
    words = re.sub(r"</?(?:div|p)[^>]*>", "", _markdown(caption)).strip()
    captioned, found = re.subn(
        r"<table[^>]*>", lambda start: f"{start[0]}<caption><span>{words}</span></caption>", table, count=1
    )
    return captioned if found else table + _markdown(caption)


def _own_caption(cell: nbformat.NotebookNode) -> str:
    """The Markdown that the figure's own cell displayed, taken out of its outputs."""
    words = [output for output in cell.outputs if PNG not in output.get("data", {}) and _markdown_of(output)]
    cell.outputs = [output for output in cell.outputs if output not in words]
    return "\n\n".join(_markdown_of(output) for output in words)


def _markdown_of(output: nbformat.NotebookNode) -> str:
    return str(output.get("data", {}).get("text/markdown", ""))


def _pictures(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in cell.get("outputs", []) if PNG in output.get("data", {})]


def _is_caption(cell: nbformat.NotebookNode) -> bool:
    words = cell.cell_type == "markdown" and _tag(cell) != ABSENT
    return bool(words and cell.source.strip() and not cell.source.lstrip().startswith("#"))


def _tag(cell: nbformat.NotebookNode) -> str:
    """The first tag, or nothing."""
    return str(next(iter(cell.metadata.get("tags", [])), ""))


def _given(notebook: nbformat.NotebookNode) -> Mapping[str, object]:
    given: Mapping[str, object] = notebook.metadata.get("papermill", {}).get("parameters", {})
    return given


def _section(tag: str, content: str) -> str:
    kind = re.sub(r"-\d+$", "", tag) or "words"
    return f'<section class="{html.escape(kind)}">{content}</section>'


def _markdown(source: str) -> str:
    return _rendered(nbformat.v4.new_markdown_cell(source)) if source.strip() else ""  # type: ignore[no-untyped-call]


def _rendered(cell: nbformat.NotebookNode) -> str:
    """The cell's words or outputs as HTML, without its code and without warnings on stderr; empty if there are none."""
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        if not cell.outputs:
            return ""
    body, _ = _exporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))  # type: ignore[no-untyped-call]
    return accessible(re.sub(r' id="cell-id=[^"]*"', "", body)).strip()


class _Exporter(HTMLExporter):
    """nbconvert's, for which Markdown is words alone: HTML in it is text, since sentences quote stored runs."""

    @pass_context
    def markdown2html(self, context: object, source: str) -> str:
        """Markdown as HTML; nbconvert's own passes on what looks like HTML."""
        renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
        return str(MarkdownWithMath(renderer=renderer).render(source))


@cache
def _exporter() -> HTMLExporter:
    exporter = _Exporter(template_name="basic")  # type: ignore[no-untyped-call]
    exporter.exclude_input = True
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    return exporter


def accessible(body: str) -> str:
    """The same HTML with tables that scroll by themselves and tell which of row and column a heading belongs to."""
    body = re.sub(r"<style scoped[^>]*>.*?</style>", "", body, flags=re.DOTALL)  # pandas' own alignment
    body = re.sub(r"<table.*?</table>", lambda table: _readable(table[0]), body, flags=re.DOTALL)
    body = re.sub(r"<thead>.*?</thead>", lambda head: _scoped(head[0], "col"), body, flags=re.DOTALL)
    body = re.sub(r"<tbody>.*?</tbody>", lambda rows: _scoped(rows[0], "row"), body, flags=re.DOTALL)
    body = re.sub(r'<table border="1"', "<table", body)
    # Reachable by keyboard, because what cannot be scrolled to cannot be read.
    return re.sub(
        r"<table.*?</table>", lambda table: f'<div class="scroll" tabindex="0">{table[0]}</div>', body, flags=re.DOTALL
    )


def _readable(table: str) -> str:
    """The table without mere row numbers, words on the left, and what stands between backticks as code."""
    return re.sub("`([^`<]+)`", r"<code>\1</code>", _words_marked(_without_row_numbers(table)))


def _without_row_numbers(table: str) -> str:
    """The table without row names that are blank or mere numbers; then its first column names the rows."""
    head, _, body = table.partition("<tbody>")
    names = re.findall(r"<tr[^>]*>\s*<th[^>]*>(.*?)</th>", body)
    if len(names) < body.count("<tr") or not (set(names) == {""} or names == [str(n) for n in range(len(names))]):
        return table
    body = re.sub(r"(<tr[^>]*>\s*)<th[^>]*>.*?</th>\s*<td>(.*?)</td>", r"\1<th>\2</th>", body, flags=re.DOTALL)
    return re.sub(r"(<tr[^>]*>\s*)<th></th>", r"\1", head) + "<tbody>" + body


def _words_marked(table: str) -> str:
    """The table with class words on every cell of a column that holds words: those read from the left."""
    if "colspan" in table or "rowspan" in table:
        return table  # columns cannot be counted
    rows = [re.findall(CELL, row) for row in re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2], re.DOTALL)]
    columns = {at for row in rows for at, (_, content) in enumerate(row) if re.match(r"\s*[^\W\d]{2}", content)}

    def marked(row: re.Match[str]) -> str:
        at = iter(range(row[0].count("</t")))
        return re.sub(r"<(td|th)\b", lambda cell: cell[0] + ' class="words"' * (next(at) in columns), row[0])

    return re.sub(r"<tr.*?</tr>", marked, table, flags=re.DOTALL)


def _scoped(part: str, scope: str) -> str:
    part = re.sub(r"<th[^>]*>(?:\s|&nbsp;)*</th>", "<td></td>", part)  # an empty corner is no heading
    return re.sub(r"<th(?![a-z])(?![^>]*\bscope=)", f'<th scope="{scope}"', part)


@cache
def _asset(name: str) -> str:
    return (resources.files("meshdns.report") / name).read_text(encoding="utf-8")


def address(stem: str) -> str:
    """Where the page of that notebook is, seen from the index."""
    return str(PurePath(f"{stem}.html"))
