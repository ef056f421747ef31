"""How each arm looks and where it stands, by the world that the runs were made in.

Colour and marker belong to the arm, everywhere the same. Those that a reader knows keep theirs; any other gets the next
of a further palette, in the order of the world. A table takes its looks along to whoever draws it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

import pandas as pd

from meshdns import store
from meshdns.core.world import Pod

ATTRIBUTE = "looks"  # of a table


@dataclass(frozen=True)
class Look:
    """How an arm looks."""

    colour: str
    marker: str
    hollow: bool = False


# Okabe and Ito's colours, in an order of falling lightness in grey within what is compared.
KNOWN = {
    "ip": Look("#999999", "v"),
    "plain": Look("#222222", "o"),
    "plain-aa": Look("#666666", "s", hollow=True),
    "mode1": Look("#D55E00", "^"),
    "mode2-envoy": Look("#0072B2", "D"),
    # Lighter or darker than theirs where two would be one grey.
    "mode2-agent": Look("#009E73", "P"),
    "nftables": Look("#F0A800", ">"),
    "tproxy": Look("#742C5B", "X"),
    "ebpf": Look("#3FA0DA", "*"),
}
OTHER = Look("#444444", "o")  # what belongs to no arm
# Of arms not known by name: no colour is one of the above, and as the numbers of both have no common divisor, none
# looks like another until there are 35.
COLOURS = ("#CC5FA0", "#7A5322", "#7F8000", "#4C3BB0", "#D9705C", "#1F8A8A", "#A3124B")
MARKERS = ("<", "p", "d", "h", "8")

Frame = TypeVar("Frame", bound=pd.DataFrame)
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Looks:
    """Of the arms of one world."""

    arms: Mapping[str, Pod] = field(default_factory=dict)  # in its order

    def __deepcopy__(self, _: object) -> Self:
        """Itself: pandas copies with every step of a table what the table knows."""
        return self

    def __getitem__(self, arm: str) -> Look:
        """The arm's look."""
        if found := KNOWN.get(arm):
            return found
        further = [each for each in self.arms if each not in KNOWN]
        if arm not in further:
            return OTHER
        place = further.index(arm)
        return Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])

    def pod(self, arm: str) -> Pod:
        """The arm's client; of an arm that the world lacks nothing is known."""
        return self.arms.get(arm) or Pod(f"client-{arm}", 0, "", arm=arm)

    def held(self, arms: Iterable[object]) -> list[str]:
        """Each of these arms once: those of the world in its order, then the others by name."""
        return sorted(dict.fromkeys(map(str, arms)), key=lambda arm: (place(self.arms, arm), arm))


def of_runs(runs: store.Runs) -> Looks:
    """Of the world of these runs."""
    return Looks(runs.world.arms)


def of(table: pd.DataFrame) -> Looks:
    """Of the world of the runs that the table was made of."""
    found = table.attrs.get(ATTRIBUTE)
    return found if isinstance(found, Looks) else Looks()


def known(table: Frame, looks: Looks) -> Frame:
    """The same table, which knows how its arms look."""
    table.attrs[ATTRIBUTE] = looks
    return table


def place(order: Iterable[Name], level: Name) -> int:
    """Where the level stands in this order; what the order does not know comes after all that it does."""
    names = [*order]
    return names.index(level) if level in names else len(names)


def ordered(table: Frame, orders: Mapping[str, Iterable[Hashable]]) -> Frame:
    """The same rows by these columns, the first above all, each in its order."""
    ranks = pd.DataFrame({name: [place(order, level) for level in table[name]] for name, order in orders.items()})
    return table.iloc[ranks.sort_values([*orders], kind="stable").index].reset_index(drop=True)


def words(pod: Pod) -> str:
    """What is around the application in this pod."""
    if not pod.sidecar:
        return "a DNS proxy, no sidecar" if pod.dns_proxy else "no sidecar"
    by = {"agent": "mode 2 by the agent's proxy", "envoy": "mode 2 by Envoy's DNS filter"}
    return f"sidecar, {by.get(pod.dns, 'mode 1')}"
