"""A report is whole or absent, says answers first, fetches nothing and is the same twice."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

import measured
import small_notebooks
import synthetic
from meshdns import report, store
from meshdns.analysis import absent, text
from meshdns.core import errors
from meshdns.report import execute, index, markup, page

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
BEHAVIOUR = {"id": "x", "topic": "t", "question": "q", "expected": "e", "observed": "o", "agrees": False}
REMOTE = re.compile(
    r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?:https?:|//)|url\(|@import|<script|<link|<iframe""", re.I
)


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.build(tmp_path_factory.mktemp("runs"), blocks=2, samples_per_cell=5)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("notebooks")
    return [small_notebooks.write(folder, stem) for stem in ("01_names", "10_card")]


@pytest.fixture(scope="module")
def published(runs: Path, books: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = report.publish(runs, tmp_path_factory.mktemp("reports") / "one", {"percentile": 90}, books, quiet)
    return made.parent


@pytest.mark.slow
def test_pages_say_question_answer_caption_and_provenance(published: Path) -> None:
    text = (published / "01_names.html").read_text()
    order = ["What does 01_names cost?", "costs 4 µs more at p90", "Why it matters", "<figure>", "<table", "Much."]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert 'alt="Lower is better &amp; faster."' in text
    assert "plt.subplots" not in text and "percentile = 90" in text and "Runs: as told here" in text
    assert "<caption><span>Medians of <em>all</em> blocks.</span></caption>" in text
    assert len(re.findall(r"<th [^>]*scope=", text)) == 4  # two columns and two rows; the blank row names are gone
    assert (published / "figures/01_names-1.png").read_bytes()[1:4] == b"PNG"
    assert (published / "figures/01_names-1.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.slow
def test_index_states_every_answer_and_links_to_every_page(published: Path, books: list[Path]) -> None:
    text = (published / "index.html").read_text()
    assert text.count("costs 4 µs more at p90") == len(books)
    assert synthetic.NAME in text
    targets = set(re.findall(r'(?:href|src)="([^"#]+)"', text))
    assert {f"{book.stem}.html" for book in books} <= targets
    assert all((published / target).exists() for target in targets)
    assert (published.parent / "latest").resolve() == published


def header_of(runs: store.Runs, plan: str) -> store.RunHeader:
    return dataclasses.replace(runs.headers[0], plan={"name": plan})


@pytest.mark.parametrize(
    ("plans", "commands"),
    [
        (["quick"], ["meshdns report --plan quick"]),
        (["mine"], ["meshdns report --plan mine.toml"]),
        (
            ["quick", "sample-change", "mine", "quick"],
            [f"meshdns run --plan {each}" for each in ("quick", "data/plans/sample-change.toml", "mine.toml")],
        ),
    ],
)
def test_the_commands_of_the_index_publish_that_report(runs: Path, plans: list[str], commands: list[str]) -> None:
    measured = store.load(runs)
    several = dataclasses.replace(measured, headers=[header_of(measured, name) for name in plans])
    text = index.document([], several)
    told = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)
    assert told == ["\n".join(commands + ["meshdns report --runs FOLDER"] * (len(plans) > 1))]
    assert "make report" not in text
    assert "The sizes of times and of differences do not" in text


def cell(source: str, tag: str, *outputs: dict[str, object]) -> nbformat.NotebookNode:
    """An executed code cell that displayed these."""
    shown = [nbformat.v4.new_output("display_data", data=each) for each in outputs]
    return nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}, outputs=shown)


def caption(words: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(words, metadata={"tags": ["caption"]})


PIXEL = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}


def page_of(*cells: nbformat.NotebookNode) -> str:
    """The whole page of these cells between a question and its provenance."""
    question = nbformat.v4.new_markdown_cell("# Why?\nBecause.", metadata={"tags": ["title"]})
    made = page.read(nbformat.v4.new_notebook(cells=[question, *cells]), "04")
    return page.document(made, [made], [])


def test_what_was_not_measured_is_one_sentence_and_no_figure_table_or_caption() -> None:
    gathered, external = (absent.Absent((name,))._repr_mimebundle_() for name in ("gathered", "external"))
    cells = [
        cell("", "answer", {"text/markdown": "Said."}),
        cell("", "figure", PIXEL),
        caption("Of what was measured."),
        cell("", "figure-2", external, PIXEL),
        caption("How to read a picture of nothing."),
        cell("", "table", gathered),
        caption("How to read a table of nothing."),
        cell("", "table-2", {"text/html": "<table><thead></thead><tbody><tr><td>7</td></tr></tbody></table>"}),
        nbformat.v4.new_markdown_cell("## What could be wrong", metadata={"tags": ["doubts"]}),
    ]
    text = page_of(*cells)
    assert text.count("<figure>") == 1
    assert "of nothing" not in text
    assert text.count("Not measured in these runs") == 1
    assert "services outside the mesh (<code>meshdns report --plan policies</code>)" in text
    assert "how long istiod gathers changes (<code>meshdns report --plan change</code>)" in text
    assert "Of what was measured." in text


def test_checks_have_a_heading_that_claims_nothing() -> None:
    said = [cell("", "answer", {"text/markdown": "Said."}), cell("", "checks", {"text/plain": "30 invalid"})]
    assert "<h2>What was checked</h2>" in page_of(*said)


EVIL = "<img src=x onerror=alert(1)><script>alert(1)</script>![x](http://evil/x.png) [x](http://evil) \\<b>"
# Elements that a page has for nobody but who smuggled them in; its own pictures are data or stand beside it.
ACTIVE = re.compile(
    r"<script|onerror=[^&]*>|<img(?![^>]* src=\"(?:data:image/png;|figures/))|<b>|evil[^<]*\"|\"http://evil",
    re.IGNORECASE,
)


def test_what_looks_like_html_or_a_link_in_an_answer_is_words() -> None:
    said = text.said([f"It was refused ({EVIL}).", "[58, 64] (10 blocks)"])
    made = page_of(cell("", "answer", {"text/markdown": said.data}))
    raw = page_of(cell("", "answer", {"text/markdown": EVIL.partition("!")[0]}))  # a sentence that nobody took care of
    assert "<script" not in page_of(cell("", "answer", {"text/html": "Said.<script>alert(1)</script>"}))
    for each in (made, raw):
        assert not ACTIVE.search(each), each
        assert "&lt;script&gt;" in each
    assert "[58, 64] (10 blocks)" in made
    assert made.count("<a ") == 2  # the navigation's


def poisoned(value: object) -> object:
    """The same facts with a poison in every string that is not read as a number, an address or a path."""
    if isinstance(value, dict):
        return {name: poisoned(each) for name, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + EVIL if isinstance(value, str) else value


@pytest.mark.slow
def test_pages_of_a_run_with_markup_in_every_fact_hold_none_of_it(tmp_path: Path) -> None:
    folder = measured.build(tmp_path / "runs", measured.World(invalid=0.05), blocks=2, name="interception")
    told = json.loads((folder / "run.json").read_text())
    refused = {"ebpf": "not permitted", "in-ebpf": "not permitted"}
    told["facts"] = poisoned(told["facts"] | {"refused": refused, "conformance": {"mode2-agent": [BEHAVIOUR]}})
    told["plan"]["name"] += EVIL
    (folder / "run.json").write_text(json.dumps(told))
    reasons = 0
    for path in folder.glob("blocks/*.json"):
        block = json.loads(path.read_text())
        for each in block["cells"]:
            reasons += len(each["reasons"])
            each["reasons"] = poisoned(each["reasons"])
        path.write_text(json.dumps(block))
    assert reasons
    made = report.publish(folder, tmp_path / "reports" / "one", {}, report.notebooks_in(NOTEBOOKS), quiet)
    pages = sorted(made.parent.glob("*.html"))
    assert {"08-interceptor.html", "10-self-test.html", "index.html"} <= {path.name for path in pages}
    for path in pages:
        assert not ACTIVE.search(path.read_text()), path
        assert "Content-Security-Policy" in path.read_text()
    for page_of_facts in ("08-interceptor.html", "10-self-test.html"):  # what is refused, why cells are invalid
        assert "&lt;img src=x" in (made.parent / page_of_facts).read_text()
    assert "&lt;img src=x" in made.read_text()


def test_a_question_that_was_not_asked_comes_with_the_plan_that_asks_it(runs: Path, tmp_path: Path) -> None:
    path = small_notebooks.write(tmp_path, "05_change")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["meshdns"] = {"needs": ["change"]}
    nbformat.write(notebook, path)
    measured = store.load(runs)
    can, unasked = report._answerable([path], set(measured.cells["experiment"]))
    assert can == []
    with pytest.raises(errors.InputError, match="no notebook of this report takes 'percentile'; leave it out"):
        report.check_parameters({"percentile": 90.0}, [path], set(measured.cells["experiment"]))
    report.check_parameters({"percentile": 90.0}, [path], {"change"})
    text = index.document([], measured, unasked)
    assert "What does 05_change cost? <code>meshdns report --plan change</code>" in text
    assert "policies" not in text


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(published: Path) -> None:
    for path in published.glob("*.html"):
        assert not REMOTE.findall(path.read_text()), path


@pytest.mark.slow
def test_the_same_data_give_the_same_bytes(published: Path, runs: Path, books: list[Path], tmp_path: Path) -> None:
    again = report.publish(runs, tmp_path / "again", {"percentile": 90}, books, quiet).parent
    assert contents(again) == contents(published)


@pytest.mark.slow
def test_a_failed_check_names_itself_and_publishes_nothing(runs: Path, books: list[Path], tmp_path: Path) -> None:
    with pytest.raises(errors.ReportError) as caught:
        report.publish(runs, tmp_path / "reports" / "one", {"fail": True}, books[:1], quiet)
    assert str(caught.value).startswith("01_names.ipynb, cell 'checks': run-x: only 3 blocks <b>;")
    assert "Traceback" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (tmp_path / "reports").exists()


@pytest.mark.slow
def test_unknown_parameters_are_refused_before_anything_runs(runs: Path, books: list[Path], tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no notebook of this report takes 'percentil'; use percentile, fail"):
        report.publish(runs, tmp_path / "one", {"percentil": 90.0}, books, quiet)


def test_parameters_have_a_type_and_runs_is_required() -> None:
    number, place = {"percentile": "float"}, {"runs": "str"}
    execute.check_declared({Path("a"): number | place, Path("b"): place}, {"percentile": 90})
    with pytest.raises(errors.InputError, match=r"percentile: true \(a truth value\) is not a number"):
        execute.check_declared({Path("a"): number | place}, {"percentile": True})
    with pytest.raises(errors.InputError, match="does not take the parameter 'runs'"):
        execute.check_declared({Path("a"): number}, {})


def test_a_value_that_only_the_notebook_can_refuse_is_bad_input_too(
    books: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise papermill.PapermillExecutionError(1, 1, "", "InputError", "change is 'x'; choose from up, down", [])

    monkeypatch.setattr(papermill, "execute_notebook", refused)
    with pytest.raises(errors.InputError, match="change is 'x'; choose from up, down"):
        execute.execute(books[:1], {"runs": "x"}, quiet)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("99.9", 99.9), ("true", True), ("data/x", "data/x"), ('"7"', "7"), ("[" * 30_000, "[" * 30_000)],
)
def test_typed_parameters(typed: str, value: object) -> None:
    assert report.parameter(typed) == value


def test_other_people_s_folders_are_not_overwritten(runs: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "index.html").write_text("mine")
    (tmp_path / "other" / "latest").mkdir(parents=True)
    for out in (thesis, thesis / "index.html", tmp_path / "latest", tmp_path / "other" / "one"):
        with pytest.raises(errors.InputError):
            report.publish(runs, out, {}, [], quiet)
    assert (thesis / "index.html").read_text() == "mine"


def test_an_older_report_is_replaced_whole_and_kept_if_the_new_one_fails(tmp_path: Path) -> None:
    out = tmp_path / "one"
    for generation in ("old", "new"):
        with report._whole(out) as folder:
            (folder / generation).write_text("")
    with pytest.raises(errors.StorageError, match="No space left"), report._whole(out) as folder:
        (folder / "third").write_text("")
        raise OSError(28, "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one"]
    assert [path.name for path in out.iterdir()] == ["new"]


def test_a_notebook_without_an_answer_or_a_question_is_refused() -> None:
    untitled = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("words")])
    silent = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Why?")])
    with pytest.raises(errors.ReportError, match="does not begin with a question"):
        page.read(untitled, "03")
    with pytest.raises(errors.ReportError, match="no output in a cell tagged answer"):
        page.read(silent, "03")


def test_a_figure_that_drew_nothing_is_refused() -> None:
    cells = [nbformat.v4.new_markdown_cell("# Why?")]
    cells += [nbformat.v4.new_code_cell("pass", metadata={"tags": ["figure-2"]})]
    with pytest.raises(errors.ReportError, match="03, cell 'figure-2': drew nothing"):
        page.read(nbformat.v4.new_notebook(cells=cells), "03")


def test_tables_lose_row_numbers_and_words_stand_left() -> None:
    table = (
        '<table border="1"><thead><tr><th></th><th>arm</th><th>p50</th></tr></thead>'
        "<tbody><tr><th>0</th><td>plain</td><td>1.0</td></tr><tr><th>1</th><td>ip</td>"
        "<td>2 µs, by `meshdns run`</td></tr></tbody></table>"
    )
    better = str(markup.accessible(table))
    assert "<td>2 µs, by <code>meshdns run</code></td>" in better
    assert ">0<" not in better and '<th class="words" scope="row">plain</th>' in better
    assert '<th class="words" scope="col">arm</th><th scope="col">p50</th>' in better
