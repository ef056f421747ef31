"""Alone on the pod network: reads the pages of servers and name servers."""

from __future__ import annotations

from typing import ClassVar

from meshdns.lab.parts.observer import Observer


class Alone(Observer):
    """See the module."""

    capabilities: ClassVar[tuple[str, ...]] = ("NET_RAW",)


PART = Alone()
