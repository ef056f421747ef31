"""The Compose services that a pod consists of, made from the `x-` parts of compose/compose.yaml."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from meshdns.core.world import CORE, Pod, World
from meshdns.interception import mechanisms

Service = dict[str, Any]
Services = dict[str, Service]
_DONE, _STARTED = {"condition": "service_completed_successfully"}, {"condition": "service_started"}


def services(world: World, parts: Mapping[str, Service], groups: Collection[str]) -> Services:
    """Every pod of the testbed: the core and these groups."""
    found: Services = {}
    for pod in (each for each in world.pods if each.group in (CORE, *groups)):
        if pod.arm:
            found |= _client(parts, pod, outside=pod.outside and "xds" in groups)
        elif pod.sidecar:
            found |= _server(parts, pod)
        elif pod.ports:  # a server alone, without anything beside it
            alone = {"environment": {"REPLICA": pod.pod}, "depends_on": {"tls": _DONE}}
            found[pod.pod] = {**parts[f"x-{pod.part}"], **alone, "networks": _address(pod)}
        else:
            found[pod.pod] = {**parts[f"x-{pod.part}"], "networks": _address(pod, outside=pod.outside)}
    return found


def _address(pod: Pod, *, outside: bool = False) -> dict[str, Any]:
    """Its network, and where the servers outside are called, theirs: the pod's ordinary route to them."""
    networks = {pod.network, "world"} if outside else {pod.network}
    return {name: {"ipv4_address": f"${{MESHDNS_{name.upper()}}}.{pod.host}"} for name in sorted(networks)}


def _in(pod: str, part: Service, *mounts: str, after: Mapping[str, dict[str, str]] | None = None) -> Service:
    """A container in the pod's namespace."""
    volumes = [*part.get("volumes", []), *(f"${{MESHDNS_STATE}}/{pod}:{path}:ro" for path in mounts)]
    return {**part, "network_mode": f"service:{pod}", "volumes": volumes, "depends_on": after or {pod: _STARTED}}


def _captured(parts: Mapping[str, Service], pod: str, mechanism: str) -> tuple[Services, dict[str, Any]]:
    """What sets interception up in a pod, and the state it is in before anybody else starts."""
    ready = {f"{pod}-rules": _DONE}
    if mechanisms.ALL[
        mechanism
    ].programs:  # the programs stay as long as the container that loaded them; the rules wait for it
        loader, after = _in(pod, parts["x-loader"], "/rules"), {f"{pod}-loader": _STARTED}
        return {f"{pod}-loader": loader, f"{pod}-rules": _in(pod, parts["x-rules"], "/rules", after=after)}, ready
    return {f"{pod}-rules": _in(pod, parts["x-rules"], "/rules")}, ready


def _envoy(parts: Mapping[str, Service], mechanism: str) -> Service:
    return parts["x-envoy-transparent" if mechanisms.ALL[mechanism].transparent else "x-envoy"]


def _server(parts: Mapping[str, Service], server: Pod) -> Services:
    rules, ready = _captured(parts, server.pod, server.mechanism)
    app = _in(server.pod, parts[f"x-{server.part}"], after={**ready, "tls": _DONE})
    known = {"REPLICA": server.pod} | ({} if server.ready else {"READY": "no"})
    return {
        server.pod: {**parts["x-pause"], "networks": _address(server)},
        **rules,
        f"{server.pod}-envoy": _in(server.pod, _envoy(parts, server.mechanism), "/etc/envoy", after=ready),
        f"{server.pod}-app": {**app, "environment": known},
    }


def _client(parts: Mapping[str, Service], client: Pod, *, outside: bool) -> Services:
    pod = client.pod
    rules, ready = _captured(parts, pod, client.mechanism)
    found = {pod: {**parts["x-pause"], "networks": _address(client, outside=outside)}, **rules}
    after = {**ready, "dns-dnsdist": _STARTED}
    if client.sidecar:
        envoy = _in(pod, _envoy(parts, client.mechanism), "/etc/envoy", after=after)
        if client.resolver == "getaddrinfo":  # the one that reads it
            envoy["volumes"].append("${MESHDNS_STATE}/resolv.conf:/etc/resolv.conf:ro")
        found[f"{pod}-envoy"] = envoy
    if client.dns == "agent":
        # A governed one gets its table from the control plane.
        table = ["names:/etc/meshdns:ro"] if client.governed else [f"${{MESHDNS_STATE}}/{pod}:/etc/meshdns:ro"]
        proxy = parts["x-dnsproxy"]
        found[f"{pod}-dns"] = _in(pod, {**proxy, "volumes": [*proxy["volumes"], *table]}, after=after)
    found[f"{pod}-app"] = _in(pod, parts[f"x-{client.part}"], after={**ready, "tls": _DONE})
    found[f"{pod}-observer"] = _in(pod, parts["x-observer"])
    return found
