"""How much later the cluster DNS answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

BOUNDS = {"dns_delay_ms": (0.0, 1000.0)}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """Any within the bounds."""
    return {}


def rules(_: Cell, __: World) -> Iterator[tuple[bool, str]]:
    """Whoever asks may be answered later."""
    yield from ()
