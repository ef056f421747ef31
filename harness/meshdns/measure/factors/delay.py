"""How much later the cluster DNS answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from meshdns.core.world import World
from meshdns.lab.observers import Observers
from meshdns.lab.place import Place
from meshdns.lab.plane import Plane
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor


class Control(factor.Control):
    """dnsdist delays each UDP answer."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._delay_ms = -1.0  # unknown: a resumed run may find any

    def apply(self, cell: Cell) -> None:
        """See `factor.Control`."""
        if cell.dns_delay_ms != self._delay_ms:
            self._set(cell.dns_delay_ms)

    def undo(self) -> None:
        """See `factor.Control`."""
        if self._delay_ms > 0:
            self._set(0.0)

    def state(self) -> object:
        """See `factor.Control`."""
        return self._delay_ms

    def _set(self, delay_ms: float) -> None:
        told = ["dnsdist", "-C", "/etc/meshdns/dnsdist.conf", "-c", "-e", f"delay_ms={delay_ms:g}"]
        self._place.exec("dns-dnsdist", told, timeout_s=10)
        self._delay_ms = delay_ms


class Delay(Factor):
    """See the module."""

    bounds: ClassVar = {"dns_delay_ms": (0.0, 1000.0)}

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        """See `Factor`."""
        arm = world.arms.get(cell.arm)
        in_pod = arm is not None and arm.dns_proxy and cell.name_kind in ("fqdn", "short")  # a proxy knows the name
        return so_far_s if in_pod else so_far_s + cell.dns_delay_ms / 1000

    def controls(self, place: Place, observers: Observers, plane: Plane | None) -> Iterator[factor.Control]:
        """See `Factor`."""
        yield Control(place)
