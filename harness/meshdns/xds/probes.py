"""Readiness of pods, found out as the kubelet does: by asking them, again and again.

A probe is TCP (the port accepts) or HTTP (a status from 200 to 399). A pod that is new is not ready before its first
success; it becomes unready after `failures` in a row. Defaults of timeout and threshold are the kubelet's; its period
of 10 s is not: that is what the reaction to a failure mostly consists of. Reference: Kubernetes, "Configure Liveness,
Readiness and Startup Probes".

A sidecar that captures accepts any TCP connection, whether its application is there or not, and refuses plain HTTP
where mutual TLS is strict. Where pods have sidecars, probe a port that interception leaves alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshdns.core import errors
from meshdns.istio.resources import Resources

PERIOD_S = 1.0
TIMEOUT_S = 1.0
FAILURES = 3
_NOT_HTTP = "the answer is not HTTP"
_TEXT = re.compile(r"(tcp|http)(?::([0-9]{1,5}))?(/\S*)?")


@dataclass(frozen=True)
class Probe:
    """What is asked, and how often."""

    kind: str  # tcp or http
    port: int = 0  # 0: the first TCP port of the pod's Service
    path: str = "/"
    period_s: float = PERIOD_S
    timeout_s: float = TIMEOUT_S
    failures: int = FAILURES  # in a row, until the pod is not ready; one success suffices for the way back


def parse(text: str) -> Probe | None:
    """A probe from `tcp[:PORT]` or `http[:PORT][/PATH]`; None from `none`. InputError otherwise."""
    if text == "none":
        return None
    match = _TEXT.fullmatch(text)
    port = int(match[2]) if match and match[2] else 0
    if match is None or port > 65_535 or (match[3] and match[1] == "tcp"):
        raise errors.InputError("this is not a probe", place=text, step="give none, tcp[:PORT] or http[:PORT][/PATH]")
    return Probe(match[1], port, match[3] or "/")


def wanted(given: Resources, default: Probe | None) -> dict[str, Probe]:
    """What to probe, by address: endpoints that are pods. Others keep the condition that their slice states."""
    if default is None:
        return {}
    pods = {pod.address for pod in given.pods if pod.address}
    transports = {
        (service.meta.namespace, service.meta.name, port.name): port.transport
        for service in given.services
        for port in service.ports
    }
    found: dict[str, Probe] = {}
    for piece in given.slices:
        of_tcp = [
            number
            for name, number in piece.ports
            if transports.get((piece.meta.namespace, piece.service, name), "TCP") == "TCP"
        ]
        port = default.port or next(iter(of_tcp), 0)
        for one in piece.endpoints if port else ():
            for address in one.addresses:
                if address in pods:
                    found.setdefault(address, replace(default, port=port))
    return found


async def ask(address: str, probe: Probe) -> str:
    """Why the pod is not ready, or an empty string."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            reader, writer = await asyncio.open_connection(address, probe.port)
            try:
                return await _http(reader, writer, address, probe) if probe.kind == "http" else ""
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer within {probe.timeout_s:g} s"
    except OSError as error:  # asyncio puts the address where the reason should be
        return os.strerror(error.errno) if error.errno else str(error)


async def _asked(address: str, probe: Probe) -> str:
    """The same, whatever happens: who waits for the first result of every pod would wait for ever for this one."""
    try:
        return await ask(address, probe)
    except Exception as error:  # noqa: BLE001  a fault of ours is a reason too
        return f"the probe failed ({type(error).__name__}: {error}); please report it"


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, probe: Probe) -> str:
    host = f"[{address}]" if ":" in address else address
    writer.write(
        f"GET {probe.path} HTTP/1.1\r\nHost: {host}:{probe.port}\r\nUser-Agent: kube-probe/meshdns\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    try:
        line = (await reader.readline()).decode("latin-1").split()
    except ValueError:  # more than the reader holds, and no end of the line yet
        return _NOT_HTTP
    if len(line) < 2 or not line[0].startswith("HTTP/") or not (line[1].isascii() and line[1].isdigit()):
        return _NOT_HTTP
    return "" if 200 <= int(line[1]) < 400 else f"HTTP status {line[1]}"


@dataclass
class State:
    """What is known of one pod."""

    probe: Probe
    ready: bool = False
    told: bool = False  # the first result is in
    failed: int = 0  # in a row
    asked: int = 0
    reason: str = "not asked yet"

    def result(self, reason: str) -> bool:
        """Take one result in; whether readiness changed by it."""
        before = self.ready
        self.told = True
        self.asked += 1
        self.reason = reason
        self.failed = self.failed + 1 if reason else 0
        if not reason:
            self.ready = True
        elif self.failed >= self.probe.failures:
            self.ready = False
        return self.ready != before


class Probes:
    """Asks every pod on its own clock; `changed` is called at once when readiness does."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._states: dict[str, State] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def plan(self, probes: Mapping[str, Probe]) -> None:
        """From now on exactly these; what is known of a pod stays known when its probe changes."""
        for address in list(self._states):
            if probes.get(address) != self._states[address].probe:
                self._tasks.pop(address).cancel()
            if address not in probes:
                del self._states[address]
        for address, probe in probes.items():
            if address in self._states:
                self._states[address].probe = probe
            else:
                self._states[address] = State(probe)
            if address not in self._tasks:
                self._tasks[address] = asyncio.create_task(self._run(address, self._states[address]))

    def ready(self) -> dict[str, bool]:
        """Readiness by address, for those that are probed."""
        return {address: one.ready for address, one in self._states.items()}

    async def settled(self) -> None:
        """Each pod was asked once."""
        while not all(one.told for one in self._states.values()):
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """No more."""
        self.plan({})

    def to_json(self) -> dict[str, Any]:
        """For people."""
        return {
            address: {
                "probe": f"{one.probe.kind}:{one.probe.port}" + (one.probe.path if one.probe.kind == "http" else ""),
                "ready": one.ready,
                "asked": one.asked,
                "failed_in_a_row": one.failed,
                "reason": one.reason,
            }
            for address, one in sorted(self._states.items())
        }

    async def _run(self, address: str, state: State) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            if state.result(await _asked(address, state.probe)):
                self._changed()
            due_s = max(due_s + state.probe.period_s, loop.time())  # a slow answer delays the next, as in the kubelet
            await asyncio.sleep(due_s - loop.time())
