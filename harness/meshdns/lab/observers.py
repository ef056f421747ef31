"""The observers of a place: programs in its pods that read counters and pages, and capture packets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from meshdns.core.world import CORE, Pod
from meshdns.lab.channel import Channel
from meshdns.lab.place import Place

PROGRAM = ("python3", "-m", "observer")
ASK_TIMEOUT_S = 15
Observers = Mapping[str, Channel]  # by client pod, and `observer` for servers and name servers
Page = dict[str, Any]


def clients(place: Place) -> list[Pod]:
    """Its client pods."""
    return [client for client in place.world.clients if client.group in (CORE, *place.groups)]


@contextlib.contextmanager
def opened(place: Place) -> Iterator[dict[str, Channel]]:
    """A conversation with every observer of a place."""
    services = {client.pod: f"{client.pod}-observer" for client in clients(place)} | {"observer": "observer"}
    with contextlib.ExitStack() as stack:
        yield {key: stack.enter_context(place.talk(service, PROGRAM)) for key, service in services.items()}


def asker(pod: Pod, asked: Page) -> str:
    """Whose observer can ask for a page of a pod: on its loopback its own alone, which only client pods have."""
    return pod.pod if "//127.0.0.1:" in asked["url"] else "observer"


def page(observer: Channel, asked: Page) -> str | None:
    """A page as this observer gets it; None where nobody answers with one. Raises TestbedError."""
    reply, _ = observer.ask({"op": "snapshot", "pages": [asked]}, ASK_TIMEOUT_S)
    body: str | None = reply["pages"][0]
    return body
