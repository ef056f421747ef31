"""What a name is answered with, and what is then taken away of the pod that asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

NOWHERE = ("unroutable", "virtual")  # they lead to nobody: each request waits until its time is out
BOUNDS: dict[str, tuple[float, float]] = {}


def levels(world: World) -> dict[str, tuple[Any, ...]]:
    """Those of the world."""
    return {"answer": (*world.answers, "none"), "sidecar": ("up", "down")}


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    asked = cell.answer != "none"
    yield not asked or cell.arm in world.answering, f"answers are tried in {' and '.join(world.answering)}"
    yield (
        not asked or (cell.kind == "request" and cell.connection == "new" and cell.lookup == "wire"),
        "an answer is tried by kind request, connection new, lookup wire",
    )
    yield asked or (cell.intercepted and cell.sidecar == "up"), "only trials of answers take a pod's sidecar away"
