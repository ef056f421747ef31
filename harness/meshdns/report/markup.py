"""HTML: ours comes from templates that escape what they are given; what notebooks bring is parsed and made readable.

Nothing on a page runs or is fetched from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from meshdns import __version__

TEMPLATES = Environment(
    loader=PackageLoader("meshdns.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["version"] = __version__
PARSER = "html.parser"
QUOTED = re.compile("`([^`]+)`")
WORDS = re.compile(r"\s*[^\W\d]{2}")  # how a cell begins that is read from the left
PARTS = ("thead", "tbody")


def render(template: str, **values: object) -> str:
    """The template as a whole document; only what it marks `safe` is HTML, all else text."""
    return TEMPLATES.get_template(template).render(values)


def of_markdown(source: str) -> BeautifulSoup:
    """Words as HTML; empty if there are none."""
    cell = nbformat.v4.new_markdown_cell(source)  # type: ignore[no-untyped-call]
    return of_cell(cell) if source.strip() else accessible("")


def of_cell(cell: nbformat.NotebookNode) -> BeautifulSoup:
    """The cell's words or outputs, without its code and without warnings on stderr; empty if there are none."""
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        if not cell.outputs:
            return accessible("")
    body, _ = _exporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))  # type: ignore[no-untyped-call]
    soup = accessible(body.strip())
    for each in soup.select('[id^="cell-id="]'):
        del each["id"]
    return soup


def accessible(body: str) -> BeautifulSoup:
    """Tables scroll by themselves and tell which of row and column a heading belongs to; nothing in it is a script."""
    soup = BeautifulSoup(body, PARSER)
    for each in soup.select("script, style[scoped]"):  # the latter is pandas' own alignment
        each.decompose()
    for table in soup("table"):
        _make_readable(table, soup)
        # Reachable by keyboard, because what cannot be scrolled to cannot be read.
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    return soup


def captioned(content: BeautifulSoup, caption: str) -> str:
    """The HTML of a table with its caption (Markdown) inside, where screen readers look for it."""
    words = of_markdown(caption)
    if not words.contents or content.table is None:
        return f"{content}{words}"
    for each in words.select("div, p"):
        each.unwrap()
    span = content.new_tag("span")
    span.append(BeautifulSoup(str(words).strip(), PARSER))
    content.table.insert(0, span)
    span.wrap(content.new_tag("caption"))
    return str(content)


def text(body: str) -> str:
    """The words of this HTML."""
    return BeautifulSoup(body, PARSER).get_text(" ")


def _make_readable(table: Tag, soup: BeautifulSoup) -> None:
    """No mere row numbers, words on the left, what is between backticks as code, a scope for every heading."""
    del table["border"]
    head, rows = ([row(["th", "td"], recursive=False) for row in table.select(f"{part} tr")] for part in PARTS)
    _drop_row_numbers(head, rows)
    for part, scope in ((head, "col"), (rows, "row")):
        for cell in (cell for row in part for cell in row if cell.name == "th"):
            if cell.get_text(strip=True):
                cell.attrs.setdefault("scope", scope)
            else:  # an empty corner is no heading
                cell.replace_with(soup.new_tag("td"))
    if not table.select("[colspan], [rowspan]"):  # else columns cannot be counted
        columns = {at for row in rows for at, cell in enumerate(row) if WORDS.match(cell.get_text())}
        for cell in (cell for row in (*head, *rows) for at, cell in enumerate(row) if at in columns):
            cell["class"] = "words"
    for words in table(string=QUOTED):
        pieces = enumerate(QUOTED.split(words))
        words.replace_with(*(soup.new_tag("code", string=each) if at % 2 else each for at, each in pieces))


def _drop_row_numbers(head: Sequence[list[Tag]], rows: Sequence[list[Tag]]) -> None:
    """Row names that are blank or mere numbers go; then the first column names the rows."""
    names = [row[0].get_text() if row and row[0].name == "th" else None for row in rows]
    if set(names) != {""} and names != [str(n) for n in range(len(names))]:
        return
    for row in (*(row for row in head if row and not row[0].get_text()), *rows):
        row.pop(0).decompose()
    for row in rows:
        for first in row[:1]:
            first.name = "th"


@cache
def _exporter() -> HTMLExporter:
    exporter = _Exporter(template_name="basic")  # type: ignore[no-untyped-call]
    exporter.exclude_input = True
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    return exporter


class _Exporter(HTMLExporter):
    """nbconvert's, for which Markdown is words alone: HTML in it is text, since sentences quote stored runs."""

    @pass_context
    def markdown2html(self, context: object, source: str) -> str:
        """Markdown as HTML; nbconvert's own passes on what looks like HTML."""
        renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
        return str(MarkdownWithMath(renderer=renderer).render(source))
