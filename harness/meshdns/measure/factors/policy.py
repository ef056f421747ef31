"""What the mesh's configuration says beyond the services themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

# Each is a file of compose/policies.
LEVELS = ("retries", "timeouts", "outlier", "breaker", "split", "strict", "permissive", "disable", "reconnect")
BOUNDS: dict[str, tuple[float, float]] = {}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """All of them."""
    return {"policy": (*LEVELS, "none")}


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    pushed = world.is_governed(cell.backend)
    yield pushed or cell.policy == "none", "policy and change are of the control plane's backends"
