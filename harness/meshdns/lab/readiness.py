"""Whether everything in a place answers: before anything is measured, and again after a sidecar was down."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
from collections.abc import Collection

from meshdns.core import errors
from meshdns.core.world import CORE, Pod
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, ports
from meshdns.lab.channel import Channel
from meshdns.lab.observers import Observers, Page
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
    with observers.opened(place) as asking:
        while waiting := _not_ready(place, asking):
            if time.monotonic() - asked_s > UNRESOLVED_S:
                _ask_again(place, waiting.keys())
                asked_s = time.monotonic()
            if time.monotonic() - began_s > TIMEOUT_S:
                service, fact = next(iter(waiting.items()))
                raise _unready(place, service, f"{fact} after {TIMEOUT_S} s")
            time.sleep(0.2)


def set_sidecar(place: Place, client: Pod, observer: Channel, *, up: bool) -> None:
    """The pod's Envoy is killed, or started and ready again. Raises TestbedError."""
    service = f"{client.pod}-envoy"
    if not up:
        place.kill(service)
        return
    place.start(service)
    deadline = time.monotonic() + TIMEOUT_S
    while observers.page(observer, _own_probes(client)[service]) is None or not _resolved(place, client, observer):
        if time.monotonic() > deadline:
            raise _unready(place, service, "is not ready again")
        time.sleep(0.05)


def _unready(place: Place, service: str, fact: str) -> errors.TestbedError:
    return errors.TestbedError(fact, place=service, step=log_ends(place, service) or f"see `meshdns logs {service}`")


def log_ends(place: Place, service: str) -> str:
    """The last words of a service, as the end of a sentence; empty where it has none, or the place is gone."""
    with contextlib.suppress(errors.MeshdnsError):
        return next((place.account(each).log_ends for each in place.parts() if each.service == service), "")
    return ""


def _not_ready(place: Place, asking: Observers) -> dict[str, str]:
    """Services that do not answer, each with what is wrong."""
    refused = refusals(place)
    for part in place.parts():
        if part.state == "exited" and not part.is_as_it_must_be:
            raise _unready(place, part.service, f"the container ended with code {part.code}")
    waiting = {
        service: "does not answer"
        for service, (pod, page) in _probes(place).items()
        if not any(service.startswith(f"{each}-") for each in refused) and observers.page(asking[pod], page) is None
    }
    waiting |= dict.fromkeys(_deaf(place), "does not answer")
    for client in observers.clients(place):
        if not client.sidecar or client.pod in refused or f"{client.pod}-envoy" in waiting:
            continue
        if not _resolved(place, client, asking[client.pod]):
            waiting[f"{client.pod}-envoy"] = "has not resolved its endpoints"
    return waiting


def _ask_again(place: Place, waiting: Collection[str]) -> None:
    """Governed sidecars among these services are started anew.

    One that asked for a name before the replicas were ready, and so before it had records, was told NXDOMAIN: it
    would ask again only after its refresh rate, a minute.
    """
    for client in observers.clients(place):
        if client.governed and (service := f"{client.pod}-envoy") in waiting:
            place.kill(service)
            place.start(service)


def _deaf(place: Place) -> list[str]:
    """Of the servers outside the slowest, where no observer is: PostgreSQL's that do not listen yet."""
    world = place.world
    there = {pod.pod for pod in world.pods if pod.part == "world-postgres" and pod.group in (CORE, *place.groups)}
    ports_of = {each.served_by: each.ports[0] for each in world.services if each.served_by in there}
    ask = "/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1 -p {} && echo yes || echo no"
    said = {
        pod: place.exec(pod, ["sh", "-c", ask.format(port)], timeout_s=15).strip() for pod, port in ports_of.items()
    }
    return [pod for pod, words in said.items() if words != "yes"]


def _resolved(place: Place, client: Pod, observer: Channel) -> bool:
    """Whether each service's cluster of the client's sidecar has as many healthy members as the smallest has pods."""
    pushed = [each for each in place.world.backends.values() if each.governed and each.watched]
    known = pushed if client.governed else place.world.static
    hosts = "|".join(re.escape(service.host) for service in known)
    cluster = rf"outbound\|80\|\|({hosts})" if client.governed else "-http"
    pattern = urllib.parse.quote(rf"{cluster}\.membership_healthy", safe="")
    url = f"http://127.0.0.1:{ISTIO.admin_port}/stats?format=json&filter={pattern}"
    stats = json.loads(observers.page(observer, {"url": url}) or '{"stats": []}')["stats"]
    fewest = min((int(each["value"]) for each in stats if "value" in each), default=0)
    return fewest >= min((len(service.replicas) for service in known), default=0)


def _probes(place: Place) -> dict[str, tuple[str, Page]]:
    """Service -> (who asks, page): what must answer before anything is measured."""
    probes: dict[str, tuple[str, Page]] = {}
    for client in observers.clients(place):
        probes |= {name: (client.pod, page) for name, page in _own_probes(client).items()}

    def outside(service: str, pod: str, page: str) -> None:
        probes[service] = "observer", {"url": f"http://{place.address(pod)}:{page}", "timeout_s": 1}

    for server in place.world.meshed:
        if server.group in (CORE, *place.groups):
            outside(f"{server.pod}-envoy", server.pod, f"{ISTIO.stats_port}/stats?filter=^server.live$")
            outside(f"{server.pod}-app", server.pod, f"{ISTIO.status_port}/status")
    for pod in (each for each in place.world.alone if each.group in (CORE, *place.groups)):
        outside(pod.pod, pod.pod, f"{ISTIO.status_port}/status")
    if "xds" in place.groups:
        outside("control-plane", "control-plane", f"{ports.PORT_PLANE}/ready")
    probes["dns-bind"] = "observer", bind_page(place)
    probes["dns-dnsdist"] = "observer", dnsdist_page(place)
    return probes


def _own_probes(client: Pod) -> dict[str, Page]:
    """Service -> page on the pod's loopback that answers once it is ready."""
    pages = {}
    if client.sidecar:
        pages["envoy"] = f"{ISTIO.admin_port}/ready"
    if client.dns == "agent":
        pages["dns"] = f"{ports.PORT_DNS_METRICS}/metrics"
    if mechanisms.ALL[client.mechanism].programs:
        pages["loader"] = f"{ports.PORT_LOADER}/counters"
    return {f"{client.pod}-{part}": {"url": f"http://127.0.0.1:{page}", "timeout_s": 1} for part, page in pages.items()}


def bind_page(place: Place) -> Page:
    """BIND's statistics."""
    return {"url": f"http://{place.address('dns')}:8053/json/v1/server", "timeout_s": 2}


def dnsdist_page(place: Place) -> Page:
    """dnsdist's statistics and rules."""
    return {
        "url": f"http://{place.address('dns')}:8083/api/v1/servers/localhost",
        "headers": {"X-API-Key": json.loads(place.read("secrets.json"))["web_password"]},
        "timeout_s": 2,
    }
