"""What the parts counted: read before and after a trial, never during it, and subtracted.

Sources: the rules' counters and the pages of the client pod (its observer), the pages of servers and name servers (one
observer for all), CPU and memory from the place. What a page says, and by which names, the part itself knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshdns.core import errors
from meshdns.core.world import World
from meshdns.lab import observers, parts, rules
from meshdns.lab.controlplane import EFFECTS
from meshdns.lab.observers import Observers, Page
from meshdns.lab.parts.component import At
from meshdns.lab.place import Place, Usage
from meshdns.measure.cell import Cell
from meshdns.measure.factors.arm import NULL

ASK_TIMEOUT_S = 30
OUTSIDE = "observer"  # asks servers and name servers
Counts = dict[str, float]
Pages = list[tuple[At, Page]]


def on_path(cell: Cell, world: World) -> list[str]:
    """Pods that a cell's traffic may pass; no replicas where these come and go."""
    if cell.arm == NULL:
        return [world.arms["plain"].pod, "null-target"]
    client, service = world.arms[cell.arm], world.backends.get(cell.backend)
    replicas = service.replicas if service and not any(EFFECTS.get(cell.change, ())) else ()
    return [client.pod, world.dns_pod(client).pod, "world-dns", *replicas]


class Reader:
    """Reads the counters of one place."""

    def __init__(self, place: Place, observers: Observers) -> None:
        """Asks for what everybody has used, since the first time takes longest."""
        self._place, self._observers, self._world = place, observers, place.world
        self._there = parts.there(place)
        place.usage([part.service for part in place.parts()])

    def counts(self, *cells: Cell) -> list[Counts]:
        """For each cell all counters on its path, as totals since the containers started; all read at one moment."""
        pages = {cell: self._pages(cell) for cell in cells if cell.arm != NULL}
        asked: dict[str, dict[str, Page]] = {self._world.arms[cell.arm].pod: {} for cell in pages}
        asked |= {OUTSIDE: {}} if pages else {}
        for at, page in (each for few in pages.values() for each in few):
            asked[observers.asker(at.pod, page)][at.service] = page
        # Everybody is asked before anybody is awaited: they read at the same time.
        for who, those in asked.items():
            counted = {} if who == OUTSIDE else {"rules": rules.counters(self._world.named(who))}
            self._observers[who].send({"op": "snapshot", "pages": [*those.values()], **counted})
        replies = {who: self._observers[who].receive(ASK_TIMEOUT_S)[0] for who in asked}
        bodies: dict[str, str | None] = {}
        for who, those in asked.items():
            bodies |= dict(zip(those, replies[who]["pages"], strict=True))
        return [self._of(cell, pages[cell], replies, bodies) if cell in pages else {} for cell in cells]

    def _of(self, cell: Cell, pages: Pages, replies: Mapping[str, Any], bodies: Mapping[str, str | None]) -> Counts:
        client = self._world.arms[cell.arm]
        found: Counts = {f"pod/rule/{name}": count for name, count in replies[client.pod]["rules"].items()}
        found["pod/conntrack/entries"] = replies[client.pod]["conntrack"]
        for at, _ in pages:
            body = bodies[at.service]
            if body is None:
                step = "see `meshdns status`"
                raise errors.TestbedError("the statistics page does not answer", place=at.service, step=step)
            for name, count in at.part.counts(body, at, client).items():
                found[name] = found.get(name, 0) + count
        return found

    def _pages(self, cell: Cell) -> Pages:
        """What the parts on a cell's path count, each on its page; none of the client's where these are taken down."""
        own = (self._world.arms[cell.arm].pod,) if cell.sidecar == "up" else ()
        every = (at for pod in on_path(cell, self._world) for at in self._there.get(pod, ()))
        found = ((at, page) for at in every if (page := at.part.page(at)))
        return [(at, page) for at, page in found if observers.asker(at.pod, page) in (OUTSIDE, *own)]

    def usage(self, cell: Cell) -> dict[str, Usage]:
        """CPU and memory of the containers on this cell's path; none where these come and go."""
        if cell.answer != "none" or self._world.is_live(cell.backend):
            return {}
        every = (at for pod in on_path(cell, self._world) for at in self._there.get(pod, ()))
        return self._place.usage(sorted(at.service for at in every if at.part.carries))

    def difference(self, cell: Cell, before: Counts, after: Counts) -> Counts:
        """after - before, below zero where what counted is gone; conntrack entries are a level and stay as they are."""
        found = {key: after[key] - before.get(key, 0) for key in after}
        if "pod/conntrack/entries" in after:
            found["pod/conntrack/entries"] = after["pod/conntrack/entries"]
        for at, _ in self._pages(cell) if cell.arm != NULL else ():
            if at.part.counts_itself in found:
                found[at.part.counts_itself] -= 1
        return found
