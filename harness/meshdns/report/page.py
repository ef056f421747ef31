"""An executed notebook in, one HTML page out: question, answer, figures with captions, tables, doubts, provenance."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nbformat

from meshdns.analysis import absent
from meshdns.core import errors
from meshdns.report import markup

HIDDEN = ("parameters", "injected-parameters", "load")  # set up, and say nothing
ALTERNATIVE_LENGTH = 400  # a screen reader cannot skim: the caption's first sentences are enough
PNG, PDF, MARKDOWN = "image/png", "application/pdf", "text/markdown"


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
class Section:
    """What a page shows of one cell; `content` and `caption` are HTML."""

    kind: str  # the cell's tag, without its number
    content: str
    caption: str = ""  # of figures; a table holds its own
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Page:
    """What a notebook says, taken apart; lead, answer and provenance are HTML."""

    stem: str  # file name of the notebook and of the page, without their endings
    question: str
    lead: str  # why it matters
    answer: str
    parts: Sequence[Section]
    provenance: str
    parameters: Mapping[str, object]  # given, other than the runs

    @property
    def figures(self) -> list[Figure]:
        """All of the page, in order."""
        return [figure for part in self.parts for figure in part.figures]


def read(notebook: nbformat.NotebookNode, stem: str) -> Page:
    """The page of an executed notebook. Raises ReportError if it lacks its question, its answer or a figure."""
    cells = deque(cell for cell in notebook.cells if _tag(cell) not in HIDDEN)
    title, _, under = (cells.popleft().source if cells else "").partition("\n")
    if not title.startswith("# "):
        step = "let its first cell begin with `# Question?`"
        raise errors.ReportError("does not begin with a question", place=stem, step=step)
    question = title.removeprefix("# ").strip().replace("`", "")
    prose = {"answer": "", "provenance": ""}
    parts: list[Section] = []
    missing: list[str] = []
    place = 0  # of the sentence that says what was not measured: where the last of it would be
    drawn = 0
    while cells:
        cell = cells.popleft()
        tag = _tag(cell)
        kind = tag.rstrip("-0123456789") or "words"
        if names := _absent(cell):
            _take_caption(cells)
            missing, place = [*missing, *names], len(parts)
        elif kind in prose:
            content = markup.of_cell(cell)
            for each in content.select("[id]"):
                del each["id"]  # the index holds answers of several pages
            prose[kind] += str(content)
        elif kind == "figure" and not _pictures(cell):
            raise errors.ReportError("drew nothing", place=f"{stem}, cell {tag!r}", step="let it show its figure")
        elif _pictures(cell):
            parts.append(_figure(cell, _own_caption(cell) or _take_caption(cells), question, stem, drawn))
            drawn += len(parts[-1].figures)
        elif kind == "table":
            caption = _own_caption(cell) or _take_caption(cells)
            parts.append(Section(kind, markup.captioned(markup.of_cell(cell), caption)))
        elif shown := str(markup.of_cell(cell)):
            parts.append(Section(kind, shown))
    if not prose["answer"]:
        raise errors.ReportError("has no output in a cell tagged answer", place=stem, step="let it say its answer")
    if missing:
        parts.insert(place, Section("absent", str(markup.of_markdown(absent.sentence(missing)))))
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    parameters = {name: value for name, value in given.items() if name != "runs"}
    return Page(stem, question, str(markup.of_markdown(under)), prose["answer"], parts, prose["provenance"], parameters)


def document(page: Page, pages: Sequence[Page], about_runs: Sequence[str]) -> str:
    """The page as a whole HTML document; `about_runs` is for one that says nothing of its runs itself."""
    return markup.render("page.html", title=page.question, page=page, pages=pages, about_runs=about_runs)


def _figure(cell: nbformat.NotebookNode, caption: str, question: str, stem: str, drawn: int) -> Section:
    """The cell's pictures with their caption; so many were drawn on the page before."""
    alternative = " ".join(markup.of_markdown(caption or question).get_text().split())[:ALTERNATIVE_LENGTH]
    figures = []
    for number, output in enumerate(_pictures(cell), drawn + 1):
        metadata = output.metadata.setdefault(PNG, {})
        metadata["alt"] = alternative
        png, pdf = base64.b64decode(output.data[PNG]), base64.b64decode(output.data.pop(PDF, ""))
        size = int(metadata.get("width", 640)), int(metadata.get("height", 480))
        figures.append(Figure(f"{stem}-{number}", png, pdf, *size, alternative))
    return Section("figure", str(markup.of_cell(cell)), str(markup.of_markdown(caption)), figures)


def _take_caption(cells: deque[nbformat.NotebookNode]) -> str:
    """The Markdown of the next cell, taken from the cells, if it is no section of its own."""
    if not cells or cells[0].cell_type != "markdown" or (cells[0].source.lstrip() or "#").startswith("#"):
        return ""
    return str(cells.popleft().source)


def _own_caption(cell: nbformat.NotebookNode) -> str:
    """The Markdown that the cell displayed beside its figure or table, taken out of its outputs."""
    words = [output for output in cell.outputs if MARKDOWN in output.get("data", {}) and PNG not in output.data]
    cell.outputs = [output for output in cell.outputs if output not in words]
    return "\n\n".join(output.data[MARKDOWN] for output in words)


def _pictures(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in cell.get("outputs", []) if PNG in output.get("data", {})]


def _absent(cell: nbformat.NotebookNode) -> list[str]:
    shown = (output.get("data", {}).get(absent.MIME, {}) for output in cell.get("outputs", []))
    return [str(name) for each in shown for name in each.get("names", [])]


def _tag(cell: nbformat.NotebookNode) -> str:
    return str(next(iter(cell.metadata.get("tags", [])), ""))
