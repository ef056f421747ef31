"""The plans that come with the package, by name, and which experiments each holds; `measure.plan` reads them.

A plan of one question lies in the folder of its study; those that ask several include them.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meshdns.core import errors

_PACKAGE = Path(__file__).parents[1]
Tree = dict[str, Any]


@functools.cache
def shipped() -> dict[str, Path]:
    """Name -> file."""
    several = {path.stem: path for path in _PACKAGE.glob("plans/*.toml")}
    return dict(sorted((several | {path.parent.name: path for path in _PACKAGE.glob("studies/*/plan.toml")}).items()))


def whole(document: Tree, place: str, within: Iterable[str] = ()) -> Tree:
    """The plan with the experiments of those that it includes, before its own. Raises InputError."""
    included = document.get("include", [])
    parts: list[Tree] = []
    for each in included if isinstance(included, list) else [included]:
        known = each if isinstance(each, dict) else {}
        name, every = known.get("plan"), known.get("every", 1)
        if name not in shipped() or name in within or known.keys() - {"plan", "every"}:
            step = f"give plan = NAME, one of {', '.join(shipped())}, and every = NUMBER or nothing"
            raise errors.InputError(f"includes {each!r}", place=place, step=step)
        if not isinstance(every, int) or every < 1:
            raise errors.InputError(f"every is {every!r}", place=f"{place} include {name}", step="give a number from 1")
        held = whole(tomllib.loads(shipped()[name].read_text(encoding="utf-8")), name, [*within, name])
        parts += [{**table, "every": every * table.get("every", 1)} for table in held["experiment"]]
    own = {key: value for key, value in document.items() if key != "include"}
    return own | {"experiment": [*parts, *own.get("experiment", [])]} if parts else own


def measuring(experiment: str) -> list[str]:
    """Names of those that hold an experiment, whole or as a series of parts."""
    return [name for name, held in _series().items() if experiment in held]


def about(experiment: str) -> str:
    """What is measured by it, as some plan says it; its name where none does."""
    return next((held[experiment] for held in _series().values() if held.get(experiment)), experiment)


@functools.cache
def _series() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, path in shipped().items():
        held = found.setdefault(name, {})
        for each in whole(tomllib.loads(path.read_text(encoding="utf-8")), name)["experiment"]:
            series = each.get("series") or each["name"]
            held[series] = held.get(series) or each.get("about", "")
    return found
