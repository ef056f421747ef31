"""What becomes of the replicas, or of their records, while the load runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

LEVELS = ("up", "down", "replace", "unready", "crash", "gone", "rotate", "unrelated")
BOUNDS: dict[str, tuple[float, float]] = {}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """All of them."""
    return {"change": (*LEVELS, "none")}


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    pushed = world.is_governed(cell.backend)
    yield pushed or cell.change == "none", "policy and change are of the control plane's backends"
    yield cell.change == "none" or cell.arrival != "closed", "a change happens under a load with a rate"
