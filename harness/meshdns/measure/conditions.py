"""The conditions a trial asks for, brought about before it and taken back after the run.

Each is remembered, so that two trials under the same conditions cost nothing in between.
"""

from __future__ import annotations

import contextlib
import time
from typing import Self

from meshdns.core import errors
from meshdns.core.world import Pod
from meshdns.lab import readiness
from meshdns.lab.observers import Observers
from meshdns.lab.place import Ended, Place
from meshdns.lab.plane import Plane
from meshdns.measure.cell import Cell
from meshdns.measure.factors import fault

ASK_TIMEOUT_S = 30


class Conditions:
    """The name server's delay, the mesh's policy, and per pod: extra rules, interception, the sidecar."""

    def __init__(self, place: Place, observers: Observers) -> None:
        self._place, self._observers = place, observers
        self.plane = Plane(place, observers["observer"]) if "xds" in place.groups else None
        self._delay_ms = -1.0  # unknown: a resumed run may find any
        self._extra: dict[str, int] = {}
        self._open: dict[str, bool] = {}
        self._down: dict[str, bool] = {}

    def prepare(self, cell: Cell) -> bool:
        """The testbed is as the cell wants it; whether anything had to change for that. Raises TestbedError."""
        before = self._known()
        if cell.dns_delay_ms != self._delay_ms:
            self._set_delay(cell.dns_delay_ms)
        if self.plane:
            self.plane.govern(cell.policy)
        if drain_s := fault.of(cell.fault).drain_s:
            time.sleep(drain_s)
        client = self._place.world.arms.get(cell.arm)
        if client is not None and client.sidecar:
            self._set_extra(client, cell.extra_rules)
            self._set_intercepted(client, cell.intercepted)
            self._set_sidecar(client, cell.sidecar == "up")
        return self._known() != before

    def _known(self) -> tuple[object, ...]:
        policy = self.plane.policy if self.plane else ""
        return self._delay_ms, dict(self._extra), dict(self._open), dict(self._down), policy

    def ended(self) -> Ended:
        """Services that are not up because a trial wants it so, or were not."""
        sidecars = {f"{pod}-envoy" for pod, down in self._down.items() if down}
        ever = {f"{pod}-envoy" for pod in self._down}
        plane = self.plane.ended if self.plane else Ended()
        return Ended(plane.now | sidecars, plane.ever | ever)

    def settle(self) -> None:
        """Everything is as it was found."""
        if self._delay_ms > 0:
            self._set_delay(0.0)
        if self.plane:
            self.plane.govern("none")
        for pod in self._extra.keys() | self._open.keys() | self._down.keys():
            client = self._place.world.named(pod)
            self._set_extra(client, 0)
            self._set_intercepted(client, True)
            self._set_sidecar(client, True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, errors.LostPartError):
            return  # what is broken is not settled, but started anew
        with contextlib.suppress(errors.MeshdnsError):  # a testbed that is gone needs no settling
            self.settle()

    def _set_delay(self, delay_ms: float) -> None:
        """From now on dnsdist delays each UDP answer by this much."""
        told = ["dnsdist", "-C", "/etc/meshdns/dnsdist.conf", "-c", "-e", f"delay_ms={delay_ms:g}"]
        self._place.exec("dns-dnsdist", told, timeout_s=10)
        self._delay_ms = delay_ms

    def _set_extra(self, client: Pod, count: int) -> None:
        if count != self._extra.get(client.pod, 0):
            self._tell(client, {"op": "extra_rules", "count": count, "mechanism": client.mechanism})
            self._extra[client.pod] = count

    def _set_intercepted(self, client: Pod, wanted: bool) -> None:
        if wanted == self._open.get(client.pod, False):
            self._tell(client, {"op": "interception", "on": wanted})
            self._open[client.pod] = not wanted

    def _set_sidecar(self, client: Pod, up: bool) -> None:
        if up == self._down.get(client.pod, False):
            readiness.set_sidecar(self._place, client, self._observers[client.pod], up=up)
            self._down[client.pod] = not up

    def _tell(self, client: Pod, request: dict[str, object]) -> None:
        self._observers[client.pod].ask(request, ASK_TIMEOUT_S)
