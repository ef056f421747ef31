"""What brings a cell's level about before it is measured, and takes it back after the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from meshdns.core.world import Pod
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.measure.cell import Cell

ASK_TIMEOUT_S = 30
Level = TypeVar("Level")


class Control(Protocol):
    """One thing that cells want different; it remembers how it stands, so that the same again costs nothing."""

    def apply(self, cell: Cell) -> None:
        """As the cell wants it. Raises TestbedError."""

    def undo(self) -> None:
        """As it was found. Raises TestbedError."""

    def state(self) -> object:
        """How it stands, to be compared."""

    def ended(self) -> Ended:
        """Services that are not up because a cell wants it so, or were not."""


class OfPods(Generic[Level]):
    """A level of each pod that captures; subclasses say which, and how it is set."""

    usual: Level

    def __init__(self, place: Place, observers: Observers) -> None:
        self.place, self.observers = place, observers
        self.levels: dict[str, Level] = {}

    def wanted(self, cell: Cell) -> Level:
        """The cell's."""
        raise NotImplementedError

    def set(self, client: Pod, level: Level) -> None:
        """From now on. Raises TestbedError."""
        raise NotImplementedError

    def apply(self, cell: Cell) -> None:
        """See `Control`."""
        client = self.place.world.arms.get(cell.arm)
        if client is not None and client.sidecar:
            self._change(client, self.wanted(cell))

    def undo(self) -> None:
        """See `Control`."""
        for pod in list(self.levels):
            self._change(self.place.world.named(pod), self.usual)

    def state(self) -> object:
        """See `Control`."""
        return dict(self.levels)

    def ended(self) -> Ended:
        """See `Control`."""
        return Ended()

    def _change(self, client: Pod, level: Level) -> None:
        if level != self.levels.get(client.pod, self.usual):
            self.set(client, level)
            self.levels[client.pod] = level

    def tell(self, client: Pod, request: dict[str, object]) -> None:
        """The pod's observer does it. Raises TestbedError."""
        self.observers[client.pod].ask(request, ASK_TIMEOUT_S)


Make = Callable[[Place, Observers], Control]
