"""What a plan varies, a module for each knob: its levels, their bounds, and the cells in which they mean something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from meshdns.core.world import World
from meshdns.measure.cell import Cell
from meshdns.measure.factors import answer, arm, backend, change, delay, fault, load, name, policy, rules


class Factor(Protocol):
    """What a module of a knob says."""

    @property
    def BOUNDS(self) -> Mapping[str, tuple[float, float]]:  # noqa: N802  a constant of the module
        """Column -> least and greatest level, where these are numbers."""

    def levels(self, world: World, /) -> dict[str, tuple[Any, ...]]:
        """Column -> its levels, where these are few."""

    def rules(self, cell: Cell, world: World, /) -> Iterator[tuple[bool, str]]:
        """Why a cell is not possible, as (holds, rule)."""


ALL: tuple[Factor, ...] = (load, backend, name, arm, delay, answer, rules, policy, fault, change)


def levels(world: World) -> dict[str, tuple[Any, ...]]:
    """Of all factors."""
    return {column: few for factor in ALL for column, few in factor.levels(world).items()}


def bounds() -> dict[str, tuple[float, float]]:
    """Of all factors."""
    return {column: both for factor in ALL for column, both in factor.BOUNDS.items()}
