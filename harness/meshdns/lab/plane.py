"""What a run asks of Istio's own control plane, where it is live, and of those who would tell it of pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from meshdns.core.world import Pod

# What becomes of a pod, as its endpoints say it; one that is gone is not listed.
READY, UNREADY, ENDING, GONE = "ready", "unready", "ending", "gone"
# Conditions of an endpoint, as the controller of EndpointSlices writes them.
CONDITIONS: Mapping[str, Mapping[str, bool]] = {
    READY: {"ready": True, "serving": True, "terminating": False},
    UNREADY: {"ready": False, "serving": False, "terminating": False},
    ENDING: {"ready": False, "serving": True, "terminating": True},
}


class Plane(Protocol):
    """Raises TestbedError where who is asked does not answer."""

    @property
    def service(self) -> str:
        """By which the place knows istiod."""

    def put(self, text: str, file: str) -> None:
        """Manifests of a file, with addresses of the usual networks, are there as they stand. Raises InputError."""

    def remove(self, text: str, file: str) -> None:
        """They are gone."""

    def report(self, pods: Mapping[str, str]) -> int:
        """What a kubelet and the controller of EndpointSlices would write of pods that became one of the four.

        The instant right before the first of it, in nanoseconds of CLOCK_MONOTONIC.
        """

    def sidecars(self) -> dict[str, dict[str, Any]]:
        """Of each that is connected, by pod: type URL -> what was sent last, when, and what was accepted."""

    def names(self, pod: Pod) -> dict[str, list[str]]:
        """What it tells the agent of a pod of names: host -> addresses."""

    def is_ready(self) -> bool:
        """Whether istiod says that it knows everything."""
