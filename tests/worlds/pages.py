"""Every published notebook's figures and tables on some runs, as what a reader can see of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.text import Text

from meshdns import store
from meshdns.analysis import absent, provenance, text

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))


@dataclass(frozen=True)
class Part:
    """What one cell of a notebook shows."""

    place: str
    drawn: list[str]  # the texts of its figures, and the heads of its tables
    rows: list[list[str]] = field(default_factory=list)  # of its tables
    words: str = ""  # beside the table

    @property
    def labels(self) -> list[str]:
        """All of them."""
        return [*self.drawn, *(each for row in self.rows for each in row)]

    def names(self, arm: str) -> bool:
        """Whether that is shown, alone, with what it calls or after what it is."""
        said = re.compile(rf"(.*(\n|, |\(|→ |against ))?{re.escape(arm)}( →.*| against.*|, .*|\))?", re.DOTALL)
        return any(said.fullmatch(label) for label in self.labels)


def parts(path: Path, runs: store.Runs) -> Iterator[Part]:
    """The notebook's figures and tables on these runs; raises what it raises, warnings too."""
    mpl.use("agg")
    tables: list[pd.DataFrame] = []
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        usual = text.shown
        patch.setattr(absent, "display", lambda _: None)
        patch.setattr(provenance, "load", lambda _: runs)
        patch.setattr(text, "shown", lambda *given: tables.append(usual(*given)))  # type: ignore[func-returns-value]
        for cell in (each for each in nbformat.read(path, 4).cells if each.cell_type == "code"):  # type: ignore[no-untyped-call]
            exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), space)
            found = [each.get_text() for number in plt.get_fignums() for each in plt.figure(number).findobj(Text)]
            frames = [each for each in tables if isinstance(each, text.Shown)]
            found += [str(head) for frame in frames for head in frame.columns]
            rows = [[str(each) for each in row] for frame in frames for row in frame.to_numpy()]
            plt.close("all")
            yield Part(f"{path.stem}, {cell.id}", found, rows, " ".join(each.words for each in frames))
            tables.clear()
