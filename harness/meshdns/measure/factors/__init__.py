"""What a plan varies, a module for each knob; `factor` says what one is."""

from __future__ import annotations

from typing import Any

from meshdns.core.world import World
from meshdns.measure.factors.answer import Answer
from meshdns.measure.factors.arm import Arm
from meshdns.measure.factors.backend import Backend
from meshdns.measure.factors.change import Change
from meshdns.measure.factors.delay import Delay
from meshdns.measure.factors.factor import Factor
from meshdns.measure.factors.fault import Faults
from meshdns.measure.factors.load import Load
from meshdns.measure.factors.name import Name
from meshdns.measure.factors.policy import Policy
from meshdns.measure.factors.rules import ExtraRules

# In the order in which their rules are told and their levels set.
ALL: tuple[Factor, ...] = (
    Load(), Backend(), Name(), Arm(), Delay(), Policy(), Faults(), ExtraRules(), Answer(), Change(),
)  # fmt: skip


def levels(world: World) -> dict[str, tuple[Any, ...]]:
    """Of all factors."""
    return {column: few for factor in ALL for column, few in factor.levels(world).items()}


def bounds() -> dict[str, tuple[float, float]]:
    """Of all factors."""
    return {column: both for factor in ALL for column, both in factor.bounds.items()}
