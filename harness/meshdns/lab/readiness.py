"""Whether everything in a place answers: before anything is measured, and again after a sidecar was down."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
from collections.abc import Collection, Sequence

from meshdns.core import errors
from meshdns.core.world import Pod
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, parts
from meshdns.lab.channel import Channel
from meshdns.lab.observers import Observers
from meshdns.lab.parts.component import At
from meshdns.lab.place import Place

TIMEOUT_S = 60  # proxies and name servers answer within a few seconds of their start
UNRESOLVED_S = 5  # then, and again, a sidecar whose names are not resolved is started anew (`_ask_again`)


def refusals(place: Place) -> dict[str, str]:
    """Pods whose way of capturing this place does not allow -> why, in the loader's words."""
    refused = [part for part in place.parts() if part.is_refused]
    reasons = {part.service.removesuffix("-loader"): place.account(part).log for part in refused}
    return {pod: said[-1] if said else "no reason given" for pod, said in reasons.items()}


def wait(place: Place) -> None:
    """Init containers succeeded, everything else runs and answers. Raises TestbedError that names who does not."""
    began_s = asked_s = time.monotonic()
    every = [at for each in parts.there(place).values() for at in each]
    with observers.opened(place) as asking:
        while waiting := _not_ready(place, asking, every):
            if time.monotonic() - asked_s > UNRESOLVED_S:
                _ask_again(place, waiting.keys())
                asked_s = time.monotonic()
            if time.monotonic() - began_s > TIMEOUT_S:
                service, fact = next(iter(waiting.items()))
                raise _unready(place, service, f"{fact} after {TIMEOUT_S} s")
            time.sleep(0.2)


def set_sidecar(place: Place, client: Pod, observer: Channel, *, up: bool) -> None:
    """The pod's Envoy is killed, or started and ready again. Raises TestbedError."""
    service = parts.sidecar(client)
    if not up:
        place.kill(service)
        return
    place.start(service)
    deadline = time.monotonic() + TIMEOUT_S
    [sidecar] = [at for at in parts.there(place)[client.pod] if at.service == service]
    while not (_answers(place, sidecar, {client.pod: observer}) and _resolved(place, client, observer)):
        if time.monotonic() > deadline:
            raise _unready(place, service, "is not ready again")
        time.sleep(0.05)


def refuse_ended(place: Place) -> None:
    """Return if no part has ended that must run. Raises TestbedError that names it."""
    for part in place.parts():
        if part.state == "exited" and not part.is_as_it_must_be:
            raise _unready(place, part.service, f"the container ended with code {part.code}")


def _unready(place: Place, service: str, fact: str) -> errors.TestbedError:
    return errors.TestbedError(fact, place=service, step=log_ends(place, service) or f"see `meshdns logs {service}`")


def log_ends(place: Place, service: str) -> str:
    """The last words of a service, as the end of a sentence; empty where it has none, or the place is gone."""
    with contextlib.suppress(errors.MeshdnsError):
        return next((place.account(each).log_ends for each in place.parts() if each.service == service), "")
    return ""


def _not_ready(place: Place, asking: Observers, every: Sequence[At]) -> dict[str, str]:
    """Services that do not answer, each with what is wrong."""
    refused = refusals(place)
    refuse_ended(place)
    waiting = {
        at.service: "does not answer" for at in every if at.pod.pod not in refused and not _answers(place, at, asking)
    }
    for client in observers.clients(place):
        if not client.sidecar or client.pod in refused or parts.sidecar(client) in waiting:
            continue
        if not _resolved(place, client, asking[client.pod]):
            waiting[parts.sidecar(client)] = "has not resolved its endpoints"
    return waiting


def _ask_again(place: Place, waiting: Collection[str]) -> None:
    """Sidecars among these services are started anew.

    One that asked for a name before the replicas were ready, and so before it had records, was told NXDOMAIN: it
    would ask again only after its refresh rate, a minute.
    """
    for client in observers.clients(place):
        if client.sidecar and (service := parts.sidecar(client)) in waiting:
            place.kill(service)
            place.start(service)


def _answers(place: Place, at: At, asking: Observers) -> bool:
    """Whether a part says that it is ready."""
    wanted = at.part.ready(at)
    if isinstance(wanted, tuple):
        return place.exec(at.service, wanted, timeout_s=15).strip() == "yes"
    if wanted is None or (asker := observers.asker(at.pod, wanted)) not in asking:
        return True
    return observers.page(asking[asker], {"timeout_s": 1, **wanted}) is not None


def _resolved(place: Place, client: Pod, observer: Channel) -> bool:
    """Whether each service's cluster of the client's sidecar has as many healthy members as the smallest has pods."""
    world = place.world
    known = [each for each in world.backends.values() if each.watched]
    hosts = "|".join(re.escape(service.host) for service in known)
    pattern = urllib.parse.quote(rf"outbound\|80\|\|({hosts});?\.membership_healthy", safe="")
    url = f"http://127.0.0.1:{ISTIO.admin_port}/stats?format=json&filter={pattern}"
    stats = json.loads(observers.page(observer, {"url": url}) or '{"stats": []}')["stats"]
    fewest = min((int(each["value"]) for each in stats if "value" in each), default=0)
    return fewest >= min((len(service.replicas) for service in known), default=0)
