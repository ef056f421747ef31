"""The plans that come with the package, by name, and which experiments each holds; `measure.plan` reads them.

A plan of one question lies in the folder of its study; those that ask several include them.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from meshdns.core import schema

_PACKAGE = Path(__file__).parents[1]


@functools.cache
def shipped() -> dict[str, Path]:
    """Name -> file."""
    several = {path.stem: path for path in _PACKAGE.glob("plans/*.toml")}
    return dict(sorted((several | {path.parent.name: path for path in _PACKAGE.glob("studies/*/plan.toml")}).items()))


@dataclass(frozen=True)
class _Included:
    plan: str
    every: Annotated[int, schema.Bounds(1, 1000)] = 1  # its experiments are measured so much more seldom


def whole(document: Any, place: str, within: tuple[str, ...] = ()) -> Any:
    """The plan with the experiments of those that it includes, before its own. Raises InputError."""
    if not isinstance(document, dict) or not isinstance(document.get("include"), list):
        return document
    own = {key: value for key, value in document.items() if key != "include"}
    parts: list[Any] = []
    for number, tree in enumerate(document["include"], 1):
        there = tuple(name for name in shipped() if name not in within)
        each = schema.read(_Included, tree, f"{place} include {number}", {"plan": there})
        held = whole(_read(each.plan), each.plan, (*within, each.plan))["experiment"]
        parts += [{**table, "every": each.every * table.get("every", 1)} for table in held]
    mine = own.get("experiment", [])
    return own | {"experiment": [*parts, *mine] if isinstance(mine, list) else mine}


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(shipped()[name].read_text(encoding="utf-8"))


def measuring(experiment: str) -> list[str]:
    """Names of those that hold an experiment, whole or as a series of parts."""
    return [name for name, held in _series().items() if experiment in held]


def about(experiment: str) -> str:
    """What is measured by it, as some plan says it; its name where none does."""
    return next((held[experiment] for held in _series().values() if held.get(experiment)), experiment)


@functools.cache
def _series() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in shipped():
        held = found.setdefault(name, {})
        for each in whole(_read(name), name)["experiment"]:
            series = each.get("series") or each["name"]
            held[series] = held.get(series) or each.get("about", "")
    return found
