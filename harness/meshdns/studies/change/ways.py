"""How a client, or its sidecar, knows whom to call: by what is told to the sidecar, or by who answers the name."""

from __future__ import annotations

import re

from meshdns.core.world import Pod, World

EDS, STRICT_DNS, CLUSTER_IP = "EDS", "STRICT_DNS", "ClusterIP"
NAME_TABLE, CLUSTER_DNS = "name table", "cluster DNS"  # of a headless name
_CACHE = re.compile(r"^\s*cache\s+(?P<seconds>\d+)\s*(?:\{(?P<options>[^}]*)\})?", re.MULTILINE)


def endpoints(world: World, backend: str, client: Pod) -> str:
    """How this client knows the endpoints of this backend."""
    service = world.backends.get(backend)
    if service is None:
        return backend
    if service.cluster_ip:
        return EDS if client.sidecar else CLUSTER_IP
    if service.external and client.sidecar:
        return STRICT_DNS
    return NAME_TABLE if client.dns == "agent" else _cluster_dns(world, client)


def is_name(way: str) -> bool:
    """Whether it is a headless name that tells the endpoints."""
    return way.startswith((NAME_TABLE, CLUSTER_DNS))


def _cluster_dns(world: World, client: Pod) -> str:
    """The cluster DNS that this client asks, with the time for which it keeps what it knows of names of the cluster."""
    if world.asks_node(client):
        return f"{CLUSTER_DNS}, node's cache"
    cache = _CACHE.search(world.configuration(world.dns_pod(client).pod, "Corefile"))
    if not cache or re.search(rf"disable success\b.*\b{re.escape(world.domain)}\b", cache["options"] or ""):
        return f"{CLUSTER_DNS}, no cache"
    return f"{CLUSTER_DNS}, cache {cache['seconds']} s"
