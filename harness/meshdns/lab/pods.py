"""The Compose services that a pod consists of, made from the `x-` parts of compose/compose.yaml."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from meshdns.lab import topology

Service = dict[str, Any]
Services = dict[str, Service]
_DONE, _STARTED = {"condition": "service_completed_successfully"}, {"condition": "service_started"}


def services(parts: Mapping[str, Service], groups: Collection[topology.Group]) -> Services:
    """Every pod of the testbed: the core and these groups."""
    found: Services = {}
    for name, host in topology.LEGACY_PODS.items():
        found[name] = {
            **parts["x-web"],
            "environment": {"REPLICA": name},
            "networks": _address(host),
            "depends_on": {"tls": _DONE},
        }
    for server in topology.MESHED:
        if server.group in ("core", *groups):
            found |= _server(parts, server)
    for client in topology.CLIENTS:
        if client.group in ("core", *groups):
            found |= _client(parts, client, world="governed" in groups and (client.governed or client.arm == "plain"))
    return found | (_governed(parts) if "governed" in groups else {})


def _governed(parts: Mapping[str, Service]) -> Services:
    """The control plane, the dead replica, and the servers outside."""
    servers = {
        name: {**parts[f"x-{name}"], "networks": {"world": {"ipv4_address": f"${{MESHDNS_WORLD}}.{host}"}}}
        for name, host in topology.WORLD_HOSTS.items()
    }
    return {
        "control-plane": {**parts["x-plane"], "networks": _address(topology.PLANE_HOST)},
        topology.DEAD_POD: {**parts["x-pause"], "networks": _address(topology.DEAD_HOST)},
        **servers,
    }


def _address(host: int, *, world: bool = False) -> dict[str, Any]:
    """The pod network, and where the servers outside are called, theirs: the pod's ordinary route to them."""
    outside = {"world": {"ipv4_address": f"${{MESHDNS_WORLD}}.{host}"}} if world else {}
    return {"pods": {"ipv4_address": f"${{MESHDNS_PODS}}.{host}"}, **outside}


def _in(pod: str, part: Service, *mounts: str, after: Mapping[str, dict[str, str]] | None = None) -> Service:
    """A container in the pod's namespace."""
    volumes = [*part.get("volumes", []), *(f"${{MESHDNS_STATE}}/{pod}:{path}:ro" for path in mounts)]
    return {**part, "network_mode": f"service:{pod}", "volumes": volumes, "depends_on": after or {pod: _STARTED}}


def _captured(parts: Mapping[str, Service], pod: str, mechanism: topology.Mechanism) -> tuple[Services, dict[str, Any]]:
    """What sets interception up in a pod, and the state it is in before anybody else starts."""
    ready = {f"{pod}-rules": _DONE}
    if mechanism == "ebpf":  # the programs stay as long as the container that loaded them; the rules wait for it
        loader, after = _in(pod, parts["x-loader"], "/rules"), {f"{pod}-loader": _STARTED}
        return {f"{pod}-loader": loader, f"{pod}-rules": _in(pod, parts["x-rules"], "/rules", after=after)}, ready
    return {f"{pod}-rules": _in(pod, parts["x-rules"], "/rules")}, ready


def _envoy(parts: Mapping[str, Service], mechanism: topology.Mechanism) -> Service:
    return parts["x-envoy-transparent" if mechanism == "tproxy" else "x-envoy"]


def _server(parts: Mapping[str, Service], server: topology.ServerPod) -> Services:
    rules, ready = _captured(parts, server.pod, server.mechanism)
    app = _in(server.pod, parts["x-shop" if server.governed else "x-web"], after={**ready, "tls": _DONE})
    known = {"REPLICA": server.pod} | ({"READY": "no"} if server.pod == topology.SPARE_POD else {})
    return {
        server.pod: {**parts["x-pause"], "networks": _address(server.host)},
        **rules,
        f"{server.pod}-envoy": _in(server.pod, _envoy(parts, server.mechanism), "/etc/envoy", after=ready),
        f"{server.pod}-app": {**app, "environment": known},
    }


def _client(parts: Mapping[str, Service], client: topology.ClientPod, *, world: bool) -> Services:
    pod = client.pod
    rules, ready = _captured(parts, pod, client.mechanism)
    found = {pod: {**parts["x-pause"], "networks": _address(client.host, world=world)}, **rules}
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
    found[f"{pod}-app"] = _in(pod, parts["x-app"], after={**ready, "tls": _DONE})
    found[f"{pod}-observer"] = _in(pod, parts["x-observer"])
    return found
