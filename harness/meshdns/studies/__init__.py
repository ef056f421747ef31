"""What a run says of each question: a folder per question, found by its name alone.

  plan.toml   what is measured for it, where a plan of its own does it
  tables.py   the numbers: runs in, tables out, with identifiers as columns; EXPERIMENTS are those that it reads
  answer.py   the words: sentences on those tables, and WORDS, what people read in the place of identifiers
  figures.py  figures that no other study draws
  claims.py   `verdicts`: what the runs say of the claims that it decides

Only tables.py and answer.py are needed. `verdict` is what all claims share, `own` what no study asks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType


def experiments() -> frozenset[str]:
    """Every experiment that some study reads."""
    return frozenset(name for tables in modules("tables") for name in getattr(tables, "EXPERIMENTS", ()))


def modules(kind: str) -> Iterator[ModuleType]:
    """That module of each study that has one, in the order of their names."""
    for study in sorted(each.name for each in pkgutil.iter_modules(__path__) if each.ispkg):
        folder = importlib.import_module(f"{__name__}.{study}")
        if kind in {each.name for each in pkgutil.iter_modules(folder.__path__)}:
            yield importlib.import_module(f"{folder.__name__}.{kind}")
