"""What a person wants to know of a place that is up: a row for each part."""

from __future__ import annotations

from meshdns.lab.place import Place

COLUMNS = ("pod", "container", "health", "address", "intercepted")


def rows(place: Place) -> list[tuple[str, ...]]:
    """A row for each part, by pod."""
    taken = {client.pod: client.intercepted() for client in place.world.clients}
    taken |= {server.pod: f"tcp in and out ({server.mechanism})" for server in place.world.meshed}
    pods = sorted(taken, key=len, reverse=True)
    found = []
    for part in place.parts():
        pod = next((each for each in pods if part.service.startswith(each)), part.service)
        intercepted = taken.get(pod, "nothing") if part.service == pod else ""
        found.append((pod, part.service, part.words, part.address, intercepted))
    return sorted(found)
