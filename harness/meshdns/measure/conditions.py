"""The conditions a trial asks for, brought about before it and taken back after the run.

Each is remembered, so that two trials under the same conditions cost nothing in between.
"""

from __future__ import annotations

import contextlib
from typing import Self

from meshdns.core import errors
from meshdns.lab.controlplane import ControlPlane
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.measure import factors
from meshdns.measure.cell import Cell
from meshdns.measure.factors.factor import Reach


class Conditions:
    """All controls of a place, in the order in which they are set."""

    def __init__(self, place: Place, observers: Observers) -> None:
        live = place.world.live
        self.controlplane = ControlPlane(place, place.plane(), observers["observer"]) if live else None
        reach = Reach(place, observers, self.controlplane)
        self._controls = [one for each in factors.ALL for one in each.controls(reach)]

    def prepare(self, cell: Cell) -> bool:
        """The testbed is as the cell wants it; whether anything had to change for that. Raises TestbedError."""
        before = self._state()
        for one in self._controls:
            one.apply(cell)
        return self._state() != before

    def _state(self) -> list[object]:
        return [one.state() for one in self._controls]

    def ended(self) -> Ended:
        """Services that are not up because a trial wants it so, or were not."""
        found = [one.ended() for one in self._controls]
        return Ended(frozenset().union(*(one.now for one in found)), frozenset().union(*(one.ever for one in found)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, errors.LostPartError):
            return  # what is broken is not settled, but started anew
        with contextlib.suppress(errors.MeshdnsError):  # a testbed that is gone needs no settling
            for one in self._controls:
                one.undo()
