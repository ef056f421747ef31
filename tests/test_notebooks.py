"""Every published notebook: its form, a fast run in this process, a slow one as people run it."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest

import measured
import printed
from meshdns import store
from meshdns.analysis import absent

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ORDER = ["title", "parameters", "load", "answer", "figure", "table", "doubts", "checks", "provenance"]
PARAMETER = re.compile(r"^[a-z_]+: (str|int|float|bool|list\[\w+\]) = [^=]+  # [^=]+$")
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.If, ast.With, ast.Lambda, ast.comprehension)
ALLOWED = {"meshdns", "pandas", "IPython"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured.build(tmp_path_factory.mktemp("runs"), blocks=5)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def tags(notebook: Any) -> list[str]:
    """The kinds of cells in order, captions aside and repeats of figure and table taken together."""
    kinds = [re.sub(r"-\d+$", "", cell.metadata["tags"][0]) for cell in notebook.cells]
    body = [kind for kind in kinds if kind != "caption"]
    merged = ["figure" if kind == "table" and body[n + 1 :].count("figure") else kind for n, kind in enumerate(body)]
    return [kind for n, kind in enumerate(merged) if n == 0 or kind != merged[n - 1]]


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_there() -> None:
    recorded = {path.stem for path in NOTEBOOKS if printed.recorded(path.stem) is not None}
    assert {"00", "01", "02", "03", "04", "05", "08", "10"} <= {stem.split("-")[0] for stem in recorded}


@each_notebook
def test_form(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert tags(notebook) == ORDER
    title, *under = notebook.cells[0].source.splitlines()
    assert title.startswith("# ")
    assert title.endswith("?")
    assert len(under) == 2  # why it matters, what would change
    assert notebook.cells[-3].source.startswith("## What could be wrong")
    parameters = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata["tags"])
    assert all(PARAMETER.match(line) for line in parameters.splitlines()), parameters
    lines = [line for source in code_of(notebook) for line in source.splitlines() if line.strip()]
    assert len(lines) <= 60
    assert max(len(source.splitlines()) for source in code_of(notebook)) <= 12


@each_notebook
def test_figures_have_captions(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    for cell, following in itertools.pairwise(cells):
        if cell.metadata["tags"][0].startswith("figure"):
            assert following.metadata["tags"] == ["caption"]
            assert following.source.endswith(".")


@each_notebook
def test_stripped(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert set(notebook.metadata) - {"meshdns"} == {"kernelspec"}  # meshdns: what runs it needs to be published
    assert all(set(cell.metadata) == {"tags"} and re.fullmatch(r"[a-z0-9-]+", cell.id) for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@each_notebook
def test_no_logic_and_no_other_imports(path: Path) -> None:
    tree = ast.parse("\n".join(code_of(nbformat.read(path, 4))))
    assert not [node for node in ast.walk(tree) if isinstance(node, LOGIC)]
    imported = {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    imported |= {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert imported <= ALLOWED


@each_notebook
def test_runs_without_warnings(path: Path, run: Path) -> None:
    notebook = nbformat.read(path, 4)
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), space)
            if cell.metadata["tags"][0] == "parameters":
                space["runs"] = str(run)
    assert isinstance(space["measured"], store.Runs)
    assert len(plt.get_fignums()) == sum(cell.metadata["tags"][0].startswith("figure") for cell in notebook.cells)


@pytest.mark.slow
@each_notebook
def test_papermill_gives_answer_figures_and_tables_from_the_sample(path: Path, tmp_path: Path) -> None:
    """As it stands, with no parameter: the default is the recorded sample."""
    output = tmp_path / path.name
    papermill.execute_notebook(str(path), str(output), cwd=str(FOLDER.parent), progress_bar=False)
    executed = nbformat.read(output, 4)
    assert printed.recorded(path.stem) in (None, printed.numbers_of(executed))
    for cell in executed.cells:
        found = {kind for each in cell.get("outputs", []) for kind in each.get("data", {})}
        kind = re.sub(r"-\d+$", "", cell.metadata["tags"][0])
        expected = {"answer": "text/markdown", "figure": "image/png", "table": "text/html"}.get(kind)
        assert expected is None or expected in found or absent.MIME in found, cell.id


@pytest.mark.slow
def test_the_papermill_command_works_from_the_root_and_from_the_notebooks_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(run.parent)
    source = (FOLDER / "00-claims.ipynb").read_text()
    (tmp_path / "notebooks" / "00-claims.ipynb").write_text(source)
    command = Path(sys.executable).with_name("papermill")
    for place, name in ((tmp_path, "notebooks/00-claims.ipynb"), (tmp_path / "notebooks", "00-claims.ipynb")):
        asked = [str(command), name, "out.ipynb", "--no-progress-bar"]
        done = subprocess.run(asked, cwd=place, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert done.returncode == 0, done.stderr[-2000:]
