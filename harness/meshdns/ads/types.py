"""What Istio tells sidecars: types of resources, and by what one is asked for. Anybody reads it, without protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

URL = "type.googleapis.com/"
CDS, EDS, LDS, RDS = (
    f"{URL}envoy.config.{each}"
    for each in ("cluster.v3.Cluster", "endpoint.v3.ClusterLoadAssignment", "listener.v3.Listener",
                 "route.v3.RouteConfiguration")
)  # fmt: skip
NDS = f"{URL}istio.networking.nds.v1.NameTable"
TYPES = (CDS, EDS, LDS, RDS, NDS)
Resource = dict[str, Any]  # in protobuf's JSON mapping


def hosts(tables: Iterable[Resource]) -> dict[str, list[str]]:
    """What name tables say: host -> addresses."""
    return {host: list(entry.get("ips", ())) for each in tables for host, entry in each.get("table", {}).items()}


def name_of(resource: Resource) -> str:
    """By which it is asked for; a name table has none."""
    return str(resource.get("name") or resource.get("clusterName") or "")
