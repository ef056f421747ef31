"""What a name is answered with, and what is then taken away of the pod that asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import Pod, World
from meshdns.lab import readiness
from meshdns.lab.place import Ended
from meshdns.measure.cell import Cell
from meshdns.measure.factors import control

NOWHERE = ("unroutable", "virtual")  # they lead to nobody: each request waits until its time is out
BOUNDS: dict[str, tuple[float, float]] = {}


def levels(world: World) -> dict[str, tuple[Any, ...]]:
    """Those of the world."""
    return {"answer": (*world.answers, "none"), "sidecar": ("up", "down")}


class Interception(control.OfPods[bool]):
    """The pod's observer takes the rules that capture away, and puts them back."""

    usual = True

    def wanted(self, cell: Cell) -> bool:
        """Whether they are there."""
        return cell.intercepted

    def set(self, client: Pod, level: bool) -> None:
        """See `control.OfPods`."""
        self.tell(client, {"op": "interception", "on": level})


class Sidecar(control.OfPods[bool]):
    """The pod's Envoy is killed, and started again."""

    usual = True

    def wanted(self, cell: Cell) -> bool:
        """Whether it is up."""
        return cell.sidecar == "up"

    def set(self, client: Pod, level: bool) -> None:
        """See `control.OfPods`."""
        readiness.set_sidecar(self.place, client, self.observers[client.pod], up=level)

    def ended(self) -> Ended:
        """See `control.Control`."""
        down = {f"{pod}-envoy" for pod, up in self.levels.items() if not up}
        return Ended(down, {f"{pod}-envoy" for pod in self.levels})


def rules(cell: Cell, world: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    asked = cell.answer != "none"
    yield not asked or cell.arm in world.answering, f"answers are tried in {' and '.join(world.answering)}"
    yield (
        not asked or (cell.kind == "request" and cell.connection == "new" and cell.lookup == "wire"),
        "an answer is tried by kind request, connection new, lookup wire",
    )
    yield asked or (cell.intercepted and cell.sidecar == "up"), "only trials of answers take a pod's sidecar away"
