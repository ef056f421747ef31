"""Notebooks in, executed notebooks out, two at a time.

papermill runs each in a kernel, which is a process of its own; here a thread waits for it. The kernels get their
working directory directly, because papermill's way changes that of this process.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill  # type: ignore[import-untyped]
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from meshdns.core import errors, paths
from meshdns.core.schema import Document, Fault, Field, refuse

Progress = Callable[[str, int, int], None]  # what happens, notebooks done, notebooks in all

AT_ONCE = 2  # a kernel imports pandas and seaborn on a core of its own; more would wait for the two cores we promise
CELL_TIMEOUT_S = 120  # the bar is 15 s for a whole notebook: this one hangs
START_TIMEOUT_S = 120  # a cold disk under load
# The retina picture is sharp on paper and on a phone; the PDF goes beside the page. No history file: kernels share it.
KERNEL_ARGUMENTS = (
    "--InlineBackend.figure_formats={'retina','pdf'}",
    "--HistoryManager.enabled=False",
    "--IPKernelApp.log_level=40",  # its warning that loopback is not encrypted is for other users
)
KERNEL_ENVIRONMENT = {
    "SOURCE_DATE_EPOCH": "0",  # matplotlib dates its PDFs by it: the same data give the same bytes
    "PYTHONHASHSEED": "0",  # nor may the order of a set show
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's warning on Python 3.11
}
TYPES = {"str": str, "int": int, "float": float, "bool": bool}

Declared = Mapping[str, str]  # a notebook's parameters: the type that each was declared with, "None" where none was


def execute(
    notebooks: Sequence[Path], parameters: Mapping[str, object], progress: Progress
) -> list[nbformat.NotebookNode]:
    """The notebooks with their outputs, in the order given. Raises InputError, ReportError."""
    declared = check(notebooks, parameters)
    executed: dict[Path, nbformat.NotebookNode] = {}
    with _threads() as (pool, abandoned):
        running: dict[Future[nbformat.NotebookNode], Path] = {}
        for notebook, known in declared.items():
            own = {name: value for name, value in parameters.items() if name in known}
            running[pool.submit(_execute_one, notebook, own, abandoned)] = notebook
        progress("running notebooks", 0, len(notebooks))
        for future in as_completed(running):
            executed[running[future]] = future.result()
            progress(f"ran {running[future].stem}", len(executed), len(notebooks))
    return [executed[notebook] for notebook in notebooks]


def check(notebooks: Sequence[Path], parameters: Mapping[str, object]) -> dict[Path, Declared]:
    """What each notebook declares. Raises InputError unless the parameters are those."""
    declared = {notebook: _declared(notebook) for notebook in notebooks}
    check_declared(declared, parameters)
    return declared


def check_declared(declared: Mapping[Path, Declared], given: Mapping[str, object]) -> None:
    """Every name is declared by at least one notebook, with that type, and every notebook takes `runs`."""
    known = {name: wanted for parameters in declared.values() for name, wanted in parameters.items()}
    if unknown := sorted(set(given) - {*known, "runs"}):
        names, free = ", ".join(map(repr, unknown)), ", ".join(name for name in known if name != "runs")
        step = f"use {free}" if free else "leave it out"
        raise errors.InputError(f"no notebook of this report takes {names}", place="parameters", step=step)
    for notebook, parameters in declared.items():
        if "runs" not in parameters:
            step = "declare `runs: str` in the cell tagged parameters"
            raise errors.InputError("does not take the parameter 'runs'", place=notebook.name, step=step)
    faults: list[Fault] = []
    for name, value in given.items():
        Field(value, name, Document("parameters"), faults).into(TYPES.get(known.get(name, ""), Any))
    refuse(faults, "the parameters")


class _AbandonedError(Exception):
    """Another notebook failed, or the person has had enough."""


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that start no further cell once the block has failed; the user's start-up files stay out."""
    before = dict(os.environ)
    abandoned = threading.Event()
    with tempfile.TemporaryDirectory(prefix="meshdns-ipython-") as profile:
        os.environ.update(KERNEL_ENVIRONMENT | {"IPYTHONDIR": profile})  # nbclient has no way to hand it over
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            yield pool, abandoned
        except BaseException:
            abandoned.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            os.environ.clear()
            os.environ.update(before)


def _declared(notebook: Path) -> Declared:
    try:
        found: dict[str, dict[str, Any]] = papermill.inspect_notebook(notebook)
    except Exception as problem:  # noqa: BLE001  papermill names neither its own nor nbformat's exceptions
        step = "is it a Jupyter notebook?"
        raise errors.InputError(f"cannot be read ({type(problem).__name__})", place=str(notebook), step=step) from None
    return {name: str(each["inferred_type_name"]) for name, each in found.items()}


def _execute_one(notebook: Path, parameters: Mapping[str, object], abandoned: threading.Event) -> nbformat.NotebookNode:
    """The executed notebook. Raises InputError, ReportError."""

    def stop_if_abandoned(**_: object) -> None:
        if abandoned.is_set():
            raise _AbandonedError

    try:
        executed: nbformat.NotebookNode = papermill.execute_notebook(
            notebook,
            None,
            parameters=dict(parameters),
            resources={"metadata": {"path": str(notebook.parent)}},
            kernel_name="python3",  # the one of this environment, whatever the author's was called
            progress_bar=False,
            start_timeout=START_TIMEOUT_S,
            execution_timeout=CELL_TIMEOUT_S,
            extra_arguments=list(KERNEL_ARGUMENTS),
            on_cell_start=stop_if_abandoned,
            shutdown_kernel="immediate",  # nothing to save in it; the polite way takes a second
        )
    except papermill.PapermillExecutionError as problem:
        place = f"{notebook.name}, cell {_name(notebook, problem)}"
        fact = _message(problem.ename, problem.evalue)
        if problem.ename == errors.InputError.__name__:  # a parameter's value, which only the notebook understands
            raise errors.InputError(fact, place=place) from None
        raise errors.ReportError(fact, place=place, step=_step(notebook)) from None
    except CellTimeoutError:
        fact = f"a cell took longer than {CELL_TIMEOUT_S} s"
        raise errors.ReportError(fact, place=notebook.name, step=_step(notebook)) from None
    except (DeadKernelError, RuntimeError) as problem:
        fact = f"its kernel died ({type(problem).__name__})"
        raise errors.ReportError(fact, place=notebook.name, step="is there enough memory?") from None
    return executed


def _step(notebook: Path) -> str:
    return f"open {notebook.name} with `{paths.LAB}` to see more"


def _message(name: str, value: str) -> str:
    """What the exception says, without colours, in one line; its name where it says nothing or is a plain mistake."""
    line = " ".join(str(value).split())
    ours = {each.__name__ for each in errors.MeshdnsError.__subclasses__()} | {"AssertionError"}
    return line if line and name in ours else f"{name}: {line}".rstrip(": ")


def _name(notebook: Path, problem: papermill.PapermillExecutionError) -> str:
    """What the author calls the cell: its tag, or its number; papermill counts one more that it inserted."""
    cells = nbformat.read(notebook, as_version=4).cells  # type: ignore[no-untyped-call]
    same = (at for at, cell in enumerate(cells) if cell.source == problem.source)
    at = next(same, problem.cell_index)
    tags = cells[at].metadata.get("tags") if at < len(cells) else None
    return repr(tags[0]) if tags else str(at + 1)
