"""What a name is answered with, and what is then taken away of the pod that asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, Pod, World
from meshdns.interception import mechanisms
from meshdns.lab import parts, readiness
from meshdns.lab.place import Ended
from meshdns.measure.cell import Cell
from meshdns.measure.factors import factor
from meshdns.measure.factors.factor import Factor, Job, Reach, Rules

NOWHERE = ("unroutable", "virtual")  # they lead to nobody: each request waits until its time is out


class Interception(factor.OfPods):
    """The pod's observer takes the rules that capture away, and puts them back."""

    column = "intercepted"

    def set(self, client: Pod, level: bool) -> None:
        self.run(client, mechanisms.ALL[client.mechanism].capture(level))


class Sidecar(factor.OfPods):
    """The pod's Envoy is killed, and started again."""

    column = "sidecar"

    def set(self, client: Pod, level: str) -> None:
        readiness.set_sidecar(self.place, client, self.observers[client.pod], up=level == "up")

    def ended(self) -> Ended:
        service = {pod: parts.sidecar(self.place.world.named(pod)) for pod in self.levels}
        down = {service[pod] for pod, level in self.levels.items() if level == "down"}
        return Ended(down, {*service.values()})


class Answer(Factor):
    def levels(self, world: World) -> Limits:
        return {"answer": (*world.answers, "none"), "sidecar": ("up", "down")}

    def rules(self, cell: Cell, world: World) -> Rules:
        asked, answering = cell.answer != "none", " and ".join(world.answering) or "no arm of this world"
        yield not asked or cell.arm in world.answering, f"answers are tried in {answering}"
        yield (
            not asked or (cell.kind == "request" and cell.connection == "new" and cell.lookup == "wire"),
            "an answer is tried by kind request, connection new, lookup wire",
        )
        client = world.arms.get(cell.arm)
        capturing = mechanisms.ALL[client.mechanism] if client else None
        yield (
            cell.intercepted or capturing is None or bool(capturing.capture(False)),
            "what captures in this arm cannot be taken out of its pod: intercepted true",
        )
        yield asked or (cell.intercepted and cell.sidecar == "up"), "only trials of answers take a pod's sidecar away"

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        if cell.answer == "none":
            return so_far
        own = replace(so_far, name=f"{world.answer_name(cell.answer, world.arms[cell.arm])}.")
        return own.having(port=world.answers[cell.answer].port)

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        waits = cell.answer in NOWHERE and (cell.sidecar == "up" or not cell.intercepted)
        return timeout_s if waits else so_far_s

    def controls(self, reach: Reach) -> Iterator[factor.Control]:
        yield Interception(reach)
        yield Sidecar(reach)
