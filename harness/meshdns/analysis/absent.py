"""What the runs do not hold, said in one sentence instead of shown as an empty figure or table.

A table remembers what was not measured for it (`of`); who shows or draws it and finds no row gives an Absent in its
place, which a published page gathers into one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from IPython.display import display

from meshdns import store
from meshdns.analysis import looks
from meshdns.core import plans

MIME = "application/vnd.meshdns.absent+json"
ATTRIBUTE, LEFT_OUT = "absent", "left out"  # of a table
TRACES, CONFORMANCE = "traces", "conformance"  # no experiments, but facts of a run
_FACTS = {  # that the quick plan brings along
    TRACES: "the way of a traced request in each mode",
    CONFORMANCE: "how the DNS proxies answer what Istio's agent is known to answer",
}

Frame = TypeVar("Frame", bound=pd.DataFrame)


@dataclass(frozen=True)
class Absent:
    """In the place of a figure or table without a row."""

    names: tuple[str, ...]  # experiments, or facts of a run

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        words = sentence(self.names)
        return {"text/plain": words, "text/markdown": words, MIME: {"names": list(self.names)}}


def of(table: Frame, runs: store.Runs, *experiments: str) -> Frame:
    """The same table, which knows how its arms look, and what was not measured if no valid cell of these experiments
    is there."""
    there = set(runs.cells["experiment"][runs.cells["valid"].astype(bool)])
    return knowing(looks.known(table, looks.of_runs(runs)), () if there & set(experiments) else experiments)


def knowing(table: Frame, names: Iterable[str]) -> Frame:
    """The same table, which knows that this was not measured."""
    table.attrs[ATTRIBUTE] = list(names)
    return table


def leaving(table: Frame, arms: Iterable[str]) -> Frame:
    """The same table, which says beside its rows that it leaves these arms out."""
    table.attrs[LEFT_OUT] = [*arms]
    return table


def known(table: pd.DataFrame) -> tuple[str, ...]:
    """What the table knows not to be measured."""
    return tuple(table.attrs.get(ATTRIBUTE, ()))


def tell(names: Iterable[str]) -> None:
    """Shows that this was not measured, beside an empty figure."""
    display(Absent(tuple(names)))  # type: ignore[no-untyped-call]


def sentence(names: Iterable[str]) -> str:
    """What was not measured, and by which plan it is, in Markdown; "" of nothing."""
    by_commands: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        measuring = ["quick"] if name in _FACTS else plans.measuring(name)
        commands = " or ".join(f"`meshdns report --plan {each}`" for each in measuring)
        by_commands.setdefault(commands, []).append(_FACTS.get(name) or plans.about(name))
    parts = [", ".join(words) + (f" ({by})" if by else "") for by, words in by_commands.items()]
    return f"Not measured in these runs: {'; '.join(parts)}." if parts else ""
