"""The plans that come with the package, by name, and which experiments each holds; `measure.plan` reads them."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "plans"


def shipped() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def measuring(experiment: str) -> list[str]:
    """Names of those that hold an experiment, whole or as a series of parts."""
    return [name for name, held in _series().items() if experiment in held]


@functools.cache
def _series() -> dict[str, frozenset[str]]:
    tables = {name: tomllib.loads((FOLDER / f"{name}.toml").read_text())["experiment"] for name in shipped()}
    return {name: frozenset(each.get("series") or each["name"] for each in held) for name, held in tables.items()}
