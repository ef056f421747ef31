"""A knob of plans: what its levels are, when they mean something, and how they come about.

A module of this folder is one; what it does not say is as here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, Pod, World
from meshdns.interception.mechanisms import Command
from meshdns.lab.controlplane import ControlPlane
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.measure.cell import Cell

ASK_TIMEOUT_S = 30
Rules = Iterator[tuple[bool, str]]


@dataclass(frozen=True)
class Job:
    """What the agent is to do, so far: each factor adds what is its own, or takes the place of an earlier one's."""

    fields: Mapping[str, Any] = field(default_factory=dict)  # of its job, in its own words
    name: str = ""  # to be looked up
    server: str = ""  # asked for it by wire
    path: str = ""  # of an HTTP request
    head: tuple[str, ...] = ()  # its other lines

    def having(self, **fields: Any) -> Self:
        """With these fields."""
        return replace(self, fields={**self.fields, **fields})


@dataclass(frozen=True)
class Reach:
    """By what levels are brought about."""

    place: Place
    observers: Observers
    control: ControlPlane | None  # where the place has one


class Control:
    """Brings a cell's level about before it is measured; it remembers how it stands: the same again costs nothing."""

    def apply(self, cell: Cell) -> None:
        """As the cell wants it. Raises TestbedError."""

    def undo(self) -> None:
        """As it was found. Raises TestbedError."""

    def state(self) -> object:
        """How it stands, to be compared."""

    def ended(self) -> Ended:
        """Services that are not up because a cell wants it so, or were not."""
        return Ended()


class Factor:
    """One or several columns of a cell that belong together."""

    def levels(self, world: World) -> Limits:
        """Column -> its levels, or the least and the greatest where these are many."""
        return {}

    def rules(self, cell: Cell, world: World) -> Rules:
        """Why a cell is not possible, as (holds, rule)."""
        return iter(())

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        """The agent's job with what a cell's level means for it."""
        return so_far

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        """Expected duration of one request in a closed loop, by the factors before and this one."""
        return so_far_s

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        """By how much a trial after that of the cell `before` is expected to take longer, beside its load."""
        return 0.0

    def controls(self, reach: Reach) -> Iterator[Control]:
        """What brings its levels about."""
        return iter(())


class OfControlPlane(Control):
    """A level of the whole place, that its control plane sets, and remembers under the column's name."""

    def __init__(self, control: ControlPlane, column: str, set_level: Callable[[str], None]) -> None:
        self._control, self._column, self._set = control, column, set_level

    def apply(self, cell: Cell) -> None:
        self._set(getattr(cell, self._column))

    def undo(self) -> None:
        self._set(getattr(Cell, self._column))

    def state(self) -> object:
        return getattr(self._control, self._column)

    def ended(self) -> Ended:
        return self._control.ended


class OfPods(Control, ABC):
    """A level of each pod that captures; subclasses say of which column, and how it is set."""

    column: str

    def __init__(self, reach: Reach) -> None:
        self.place, self.observers = reach.place, reach.observers
        self.levels: dict[str, Any] = {}
        self.usual = getattr(Cell, self.column)

    @abstractmethod
    def set(self, client: Pod, level: Any) -> None:
        """From now on. Raises TestbedError."""

    def apply(self, cell: Cell) -> None:
        client = self.place.world.arms.get(cell.arm)
        if client is not None and client.sidecar:
            self._change(client, getattr(cell, self.column))

    def undo(self) -> None:
        for pod in list(self.levels):
            self._change(self.place.world.named(pod), self.usual)

    def state(self) -> object:
        return dict(self.levels)

    def _change(self, client: Pod, level: Any) -> None:
        if level != self.levels.get(client.pod, self.usual):
            self.set(client, level)
            self.levels[client.pod] = level

    def run(self, client: Pod, commands: Sequence[Command]) -> None:
        """The pod's observer runs them. Raises TestbedError."""
        self.observers[client.pod].ask({"op": "run", "commands": list(commands)}, ASK_TIMEOUT_S)
