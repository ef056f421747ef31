"""Rules that match nothing, before those that capture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

BOUNDS = {"extra_rules": (0.0, 10_000.0)}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """Any within the bounds."""
    return {}


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    client = world.arms.get(cell.arm)
    yield cell.extra_rules == 0 or (client is not None and client.sidecar), "extra_rules need an arm that captures"
