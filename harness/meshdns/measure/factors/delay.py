"""How much later the cluster DNS answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.measure.cell import Cell

BOUNDS = {"dns_delay_ms": (0.0, 1000.0)}


def levels(_: World) -> dict[str, tuple[Any, ...]]:
    """Any within the bounds."""
    return {}


class Control:
    """dnsdist delays each UDP answer."""

    def __init__(self, place: Place, _: Observers) -> None:
        self._place = place
        self._delay_ms = -1.0  # unknown: a resumed run may find any

    def apply(self, cell: Cell) -> None:
        """See `control.Control`."""
        if cell.dns_delay_ms != self._delay_ms:
            self._set(cell.dns_delay_ms)

    def undo(self) -> None:
        """See `control.Control`."""
        if self._delay_ms > 0:
            self._set(0.0)

    def state(self) -> object:
        """See `control.Control`."""
        return self._delay_ms

    def ended(self) -> Ended:
        """See `control.Control`."""
        return Ended()

    def _set(self, delay_ms: float) -> None:
        told = ["dnsdist", "-C", "/etc/meshdns/dnsdist.conf", "-c", "-e", f"delay_ms={delay_ms:g}"]
        self._place.exec("dns-dnsdist", told, timeout_s=10)
        self._delay_ms = delay_ms


def rules(_: Cell, __: World) -> Iterator[tuple[bool, str]]:
    """Whoever asks may be answered later."""
    yield from ()
