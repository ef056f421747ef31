"""A report: notebooks in, a folder of HTML pages, figures and an index out.

`execute` runs the notebooks, `page` makes a page of each, `index` tells all answers first. Here they are put together;
a report appears as a whole, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

from meshdns.core import errors, plans
from meshdns.report import execute, index, page
from meshdns.report.execute import Progress
from meshdns.store import Runs, load

__all__ = ["Progress", "check_parameters", "notebooks_in", "parameter", "publish"]

LATEST = "latest"  # symbolic link beside the reports


def publish(
    runs: Path, out: Path, parameters: Mapping[str, object], notebooks: Sequence[Path], progress: Progress
) -> Path:
    """The folder `out` holds the report on these runs and `latest` beside it leads there; its index page.

    An older report in `out` is replaced, anything else there is refused. Raises InputError, DataError, ReportError,
    StorageError; then `out` and `latest` are as they were.
    """
    runs, out = runs.resolve(), out.absolute()
    _check_target(out)
    measured = load(runs)  # before the kernels: what is wrong with the data is said within a second
    notebooks, unasked = _answerable(notebooks, set(measured.cells["experiment"]))
    stems = [notebook.stem for notebook in notebooks]
    executed = execute.execute([each.resolve() for each in notebooks], {**parameters, "runs": str(runs)}, progress)
    progress("writing pages", len(stems), len(stems))
    pages = [page.read(notebook, stem) for notebook, stem in zip(executed, stems, strict=True)]
    with _whole(out) as folder:
        _write(folder, pages, measured, unasked)
    return out / index.NAME


def check_parameters(
    parameters: Mapping[str, object], notebooks: Sequence[Path], experiments: Set[str] | None = None
) -> None:
    """Every name is a parameter of some notebook, with that type, and not `runs`. Raises InputError.

    Where the experiments are known, of a notebook that they let be published.
    """
    if "runs" in parameters:
        step = "give the folder as --runs"
        raise errors.InputError("runs is what the report is about, not a parameter", place="parameters", step=step)
    published = notebooks if experiments is None else _answerable(notebooks, experiments)[0]
    execute.check(published, {**parameters, "runs": ""})


def notebooks_in(folder: Path) -> list[Path]:
    """Those that are published, in the order of their names: each begins with a number. Raises InputError."""
    found = sorted(folder.glob("[0-9]*.ipynb"))
    if not found:
        raise errors.InputError("holds no notebook", place=str(folder), step="their names begin with a number")
    return found


def parameter(text: str) -> object:
    """What was typed after a parameter's name: a JSON value (99.9, true, ["a"]), else the text itself."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _answerable(notebooks: Sequence[Path], experiments: Set[str]) -> tuple[list[Path], list[index.Unasked]]:
    """Notebooks one of whose experiments (`needs` in their metadata) is among these, and what the others ask."""
    can, unasked = [], []
    for notebook in notebooks:
        document = json.loads(notebook.read_text(encoding="utf-8"))
        needs = document.get("metadata", {}).get("meshdns", {}).get("needs")
        if needs is None or experiments & set(needs):
            can.append(notebook)
        else:
            question = "".join(document["cells"][0]["source"]).splitlines()[0].lstrip("# ")
            unasked.append(index.Unasked(question, plans.measuring(needs[0])))
    return can, unasked


def _write(folder: Path, pages: Sequence[page.Page], runs: Runs, unasked: Sequence[index.Unasked]) -> None:
    (folder / "figures").mkdir()
    about = index.about(runs)
    for each in pages:
        (folder / f"{each.stem}.html").write_text(page.document(each, pages, about), encoding="utf-8")
        for figure in each.figures:
            for ending, content in (("png", figure.png), ("pdf", figure.pdf)):
                if content:
                    (folder / "figures" / f"{figure.name}.{ending}").write_bytes(content)
    (folder / index.NAME).write_text(index.document(pages, runs, unasked), encoding="utf-8")


def _check_target(out: Path) -> None:
    """Never overwrite what is not ours."""
    if out.name == LATEST:
        raise errors.InputError(f"{LATEST} leads to the newest report", place=str(out), step="choose another name")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise errors.InputError("is not a folder", place=str(out), step="choose another place")
    if out.exists() and any(out.iterdir()) and not _is_report(out):
        raise errors.InputError("holds something else than a report", place=str(out), step="choose an empty folder")
    latest = out.parent / LATEST
    if latest.exists() and not latest.is_symlink():
        raise errors.InputError("should be a symbolic link, to be replaced", place=str(latest), step="move it away")


def _is_report(folder: Path) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return 'name="generator" content="meshdns"' in (folder / index.NAME).read_text(encoding="utf-8")[:1000]
    return False


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when its content is complete, and else vanishes."""
    folder = out.parent
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        folder.chmod(0o755)  # mkdtemp's is for secrets; a report is to be shown
        yield folder
        old = folder.with_name(f"{folder.name}-old")
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        _link(out)
    except OSError as problem:
        step = "free some space or choose another place"
        raise errors.StorageError(f"cannot be written ({problem.strerror})", place=str(out), step=step) from problem
    finally:
        if folder != out.parent:
            shutil.rmtree(folder, ignore_errors=True)


def _link(out: Path) -> None:
    """The link changes in one step: whoever follows it finds the old report or the new one."""
    link = out.parent / f".{LATEST}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(out.name, target_is_directory=True)
    link.replace(out.parent / LATEST)
