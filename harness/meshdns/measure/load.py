"""The load of one trial: the agent's or another tool's, with what is to happen or to be captured meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from meshdns.core import errors
from meshdns.lab.channel import Channel
from meshdns.lab.observers import Observers
from meshdns.lab.place import Place
from meshdns.measure import capture, generators, jobs
from meshdns.measure.cell import Cell
from meshdns.measure.conditions import Conditions
from meshdns.measure.factors.arm import NULL
from meshdns.measure.plan import Trial

AGENT = ("python3", "-m", "agent")
ANSWER_SLACK_S = 30  # beyond the load's own limit: sending the columns to us
# When a change comes: a quarter into a load, and soon in a long one, while what it has looked up first is new.
CHANGE_AT, CHANGE_AT_S = 0.25, 2.0


class Agents:
    """Load agents, started when first needed: one per client pod and ndots, since glibc reads RES_OPTIONS once."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._channels: dict[tuple[str, int], Channel] = {}

    def of(self, arm: str, ndots: int) -> Channel:
        """The agent in an arm's client pod."""
        key = ("plain" if arm == NULL else arm, ndots)  # the calibration target needs no pod of its own
        if key not in self._channels:
            service = f"{self._place.world.arms[key[0]].pod}-app"
            self._channels[key] = self._place.talk(service, AGENT, env={"RES_OPTIONS": f"ndots:{ndots}"})
            self._channels[key].ask({"kind": "ping"}, ANSWER_SLACK_S)
        return self._channels[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()


@dataclass(frozen=True)
class Loads:
    """Loads on one place, one after the other."""

    place: Place
    agents: Agents
    observers: Observers
    conditions: Conditions

    def make(self, index: int, trial: Trial, seed: int) -> tuple[pa.Table, dict[str, Any]]:
        """The samples of a trial, number `index` of its block, and what the agent says. Raises TestbedError."""
        cell = trial.cell
        if cell.tool != "agent":
            return generators.measure(index, trial, self.place)
        agent = self.agents.of(cell.arm, cell.ndots)
        job = jobs.job(trial, self.place.world, self.place.nets, seed)
        limit_s = job["duration_limit_s"] + trial.timeout_ms / 1000 + ANSWER_SLACK_S
        with self._captured(trial) as pcap, self._changing(trial) as changed:
            header, body = agent.ask(job, limit_s)
        table = jobs.table(index, header, body)
        if pcap:
            table = capture.joined(table, cell, pcap["eth0"], self.place.address(self._client(cell)))
        return table, header["facts"] | changed

    @contextlib.contextmanager
    def _captured(self, trial: Trial) -> Iterator[dict[str, bytes]]:
        """Packets on the client pod's interface while the load runs, where the plan asks for it: there afterwards."""
        found: dict[str, bytes] = {}
        if not trial.capture:
            yield found
            return
        observer = self.observers[self._client(trial.cell)]
        observer.ask({"op": "capture", "interfaces": ["eth0"], "ports": [53, 8080, 8443]}, ANSWER_SLACK_S)
        try:
            yield found
        finally:
            found |= capture.taken(observer)

    @contextlib.contextmanager
    def _changing(self, trial: Trial) -> Iterator[dict[str, Any]]:
        """A change comes about while the load runs, and is taken back after it; what is known of it then."""
        kind, changed, failed = trial.cell.change, dict[str, Any](), list[errors.MeshdnsError]()
        if kind == "none" or self.conditions.controlplane is None:
            yield changed
            return
        changing, service = self.conditions.controlplane, self.place.world.backends[trial.cell.backend]
        client = self.place.world.named(self._client(trial.cell))
        observer = self.observers[client.pod]
        changing.await_usual(service, client, observer)

        def act() -> None:
            try:
                changed["change"] = {"pooled": changing.pooled(service, observer), **changing.change(kind)}
            except errors.MeshdnsError as error:
                failed.append(error)

        timer = threading.Timer(min(trial.seconds(self.place.world) * CHANGE_AT, CHANGE_AT_S), act)
        timer.start()
        try:
            yield changed
        finally:
            timer.join()
            changing.restore(kind)
        if failed:
            raise failed[0]

    def _client(self, cell: Cell) -> str:
        """The pod that asks: for the calibration target the plain one."""
        return self.place.world.arms["plain" if cell.arm == NULL else cell.arm].pod
