"""How much later the cluster DNS answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from meshdns.core.world import Nets, World
from meshdns.lab import parts
from meshdns.lab.controlplane import ControlPlane
from meshdns.lab.observers import Observers
from meshdns.lab.parts import dnsdist
from meshdns.lab.place import Place
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Rules


class Control(factor.Control):
    """dnsdist delays each UDP answer."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._delays_ms: dict[str, float] = {}  # by service; unknown at first: a resumed run may find any

    def apply(self, cell: Cell) -> None:
        for service in delayers(self._place.world, cell):
            if cell.dns_delay_ms != self._delays_ms.get(service):
                self._set(service, cell.dns_delay_ms)

    def undo(self) -> None:
        for service, delay_ms in self._delays_ms.items():
            if delay_ms > 0:
                self._set(service, 0.0)

    def state(self) -> object:
        return dict(self._delays_ms)

    def _set(self, service: str, delay_ms: float) -> None:
        self._place.exec(service, dnsdist.PART.delaying(delay_ms), timeout_s=10)
        self._delays_ms[service] = delay_ms


def delayers(world: World, cell: Cell) -> list[str]:
    """What can delay the answers of the arm's cluster DNS."""
    dns = world.dns_pod(world.arms.get(cell.arm))
    return [at.service for at in parts.of(world, Nets(), dns) if at.part is dnsdist.PART]


class Delay(Factor):
    bounds: ClassVar = {"dns_delay_ms": (0.0, 1000.0)}

    def rules(self, cell: Cell, world: World) -> Rules:
        able = not cell.dns_delay_ms or bool(delayers(world, cell))
        yield able, "dns_delay_ms needs a cluster DNS with the part dnsdist"

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        arm = world.arms.get(cell.arm)
        in_pod = arm is not None and arm.dns_proxy and cell.name_kind in ("fqdn", "short")  # a proxy knows the name
        return so_far_s if in_pod else so_far_s + cell.dns_delay_ms / 1000

    def controls(self, place: Place, observers: Observers, control: ControlPlane | None) -> Iterator[factor.Control]:
        yield Control(place)
