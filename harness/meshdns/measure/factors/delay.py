"""How much later the cluster DNS answers."""

from __future__ import annotations

from collections.abc import Iterator

from meshdns.core.schema import Bounds, Limits
from meshdns.core.world import Nets, World
from meshdns.lab import parts
from meshdns.lab.parts import dnsdist, queries
from meshdns.lab.place import Place
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Reach, Rules


class Control(factor.Control):
    """dnsdist delays each UDP answer to pods that are led to it; a pod whose cell wants no delay is not."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._delays_ms: dict[str, float] = {}  # by dnsdist's service
        self._led: dict[str, frozenset[str]] = {}  # pods, by their name server's; unknown at first: a resumed run

    def apply(self, cell: Cell) -> None:
        client = self._place.world.arms.get(cell.arm)
        if client is None:
            return
        for service in delayers(self._place.world, cell) if cell.dns_delay_ms else ():
            if cell.dns_delay_ms != self._delays_ms.get(service):
                self._place.exec(service, dnsdist.PART.delaying(cell.dns_delay_ms), timeout_s=10)
                self._delays_ms[service] = cell.dns_delay_ms
        self._lead(self._place.world.dns_pod(client).pod, frozenset({client.pod} if cell.dns_delay_ms else ()))

    def undo(self) -> None:
        for server in self._led:
            self._lead(server, frozenset())

    def state(self) -> object:
        return dict(self._delays_ms), dict(self._led)

    def _lead(self, server: str, pods: frozenset[str]) -> None:
        """These alone are led to the dnsdist of their name server."""
        if self._led.get(server) == pods:
            return
        command, given = queries.PART.delaying([self._place.address(each) for each in pods])
        self._place.exec(f"{server}-queries", command, timeout_s=10, given=given)
        self._led[server] = pods


def delayers(world: World, cell: Cell) -> list[str]:
    """What can delay the answers of the arm's cluster DNS."""
    dns = world.dns_pod(world.arms.get(cell.arm))
    return [at.service for at in parts.of(world, Nets(), dns) if at.part is dnsdist.PART]


class Delay(Factor):
    def levels(self, world: World) -> Limits:
        return {"dns_delay_ms": Bounds(0, 1000)}

    def rules(self, cell: Cell, world: World) -> Rules:
        able = not cell.dns_delay_ms or bool(delayers(world, cell))
        yield able, "dns_delay_ms needs a cluster DNS with the part dnsdist"

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        arm = world.arms.get(cell.arm)
        in_pod = arm is not None and arm.dns_proxy and cell.name_kind in ("fqdn", "short")  # a proxy knows the name
        return so_far_s if in_pod else so_far_s + cell.dns_delay_ms / 1000

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        yield Control(reach.place)
