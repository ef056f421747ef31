"""Reads counters and captures packets in a pod, between loads."""

from __future__ import annotations

from typing import ClassVar

from meshdns.lab.parts.component import At, Component, Container


class Observer(Component):
    """See the module."""

    image = "observer"
    carries = False
    versions: ClassVar = {"iptables": "iptables --version"}
    capabilities: ClassVar[tuple[str, ...]] = ("NET_ADMIN", "NET_RAW")  # reading rule counters; capturing packets

    def container(self, at: At) -> Container:
        """See `Component`."""
        return Container(("sleep", "infinity"), capabilities=self.capabilities, cpus="all", abrupt=True)

    def ready(self, at: At) -> None:
        """See `Component`: it does nothing until it is talked to."""


PART = Observer()
