"""Whether what the control plane pushed to DNS proxies, cluster DNS and sidecars agrees.

A name answered with a virtual address works only if every sidecar has a cluster for the name and a listener that takes
connections to the address; any other name must have the same addresses in the cluster DNS as in the name table. An
Envoy that answers DNS itself gets the names apart from the agent's proxy, and must have got the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, provenance
from meshdns.core.world import World
from meshdns.studies.policies.external import VIRTUAL, kind

FACTS = "pushed"  # as runs keep it
_TABLE = [
    "run", "name", "address", "answered_by_dns_proxies", "in_cluster_dns", "sidecars", "dns_filters", "lacking",
    "agree",
]  # fmt: skip
Sidecars = dict[str, Collection[str]]
Answers = dict[str, tuple[str, ...]]  # host -> addresses


def table(runs: store.Runs) -> pd.DataFrame:
    """A row per run and name that was pushed to DNS proxies, and what others lack of it; `agree` is None where no
    sidecar's configuration was recorded."""
    rows = []
    for header in runs.headers:
        facts, dumps = provenance.branch(header.facts, FACTS), _dumps(header.facts, runs.world)
        names, recorded = (_answers(provenance.branch(facts, each).items()) for each in ("names", "records"))
        clusters, listeners = (
            provenance.branch(facts, each) or {pod: [*_dumped(dump, each)] for pod, dump in dumps.items()}
            for each in ("clusters", "listeners")
        )
        filters = {pod: answers for pod, dump in dumps.items() if (answers := _answers(_filtered(dump)))}
        for host, addresses in names.items():
            virtual = [each for each in addresses if kind(each, runs.world) == VIRTUAL]
            lacking: list[str] = []
            if virtual:
                lacking += _lacking(host, virtual, clusters, listeners)
            elif addresses != recorded.get(host, ()):
                lacking += [f"cluster DNS: {'other addresses' if host in recorded else 'not this name'}"]
            lacking += [
                f"{pod}: {'other addresses' if host in answers else 'not this name'} in its DNS filter"
                for pod, answers in filters.items()
                if answers.get(host) != addresses
            ]
            row: dict[str, Any] = {"run": header.name, "name": host, "address": _kind(addresses, runs.world)}
            row |= {"answered_by_dns_proxies": addresses, "in_cluster_dns": recorded.get(host, ())}
            row |= {"sidecars": len(clusters), "dns_filters": len(filters) or None, "lacking": tuple(lacking)}
            unknown = virtual and not clusters and not lacking
            rows.append(row | {"agree": None if unknown else not lacking})
    found = pd.DataFrame(rows, columns=_TABLE).astype({"agree": object})
    return absent.knowing(found, (absent.PUSHED,))


def _answers(found: Any) -> Answers:
    return {str(name).rstrip("."): tuple(sorted(map(str, each))) for name, each in found}


def _dumps(facts: dict[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """Envoy's /config_dump of each client with pushed configuration whose dump was recorded."""
    dumps = provenance.branch(facts, "envoy")
    return {client.pod: dumps[client.pod] for client in world.clients if client.managed and dumps.get(client.pod)}


def _dumped(dump: dict[str, Any], what: str) -> Iterator[str]:
    """From Envoy's /config_dump, what the control plane gave it."""
    for part in dump.get("configs", []):
        for each in part.get("dynamic_active_clusters", []) if what == "clusters" else []:
            yield str(each["cluster"]["name"])
        for each in part.get("dynamic_listeners", []) if what == "listeners" else []:
            if "active_state" in each:
                yield str(each["name"])


def _filtered(dump: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The names in the tables of an Envoy's DNS filters, with their addresses."""
    for part in dump.get("configs", []):
        for each in part.get("dynamic_listeners", []):
            for one in each.get("active_state", {}).get("listener", {}).get("listener_filters", []):
                known = one.get("typed_config", {}).get("server_config", {}).get("inline_dns_table", {})
                for domain in known.get("virtual_domains", []):
                    yield domain["name"], domain["endpoint"]["address_list"]["address"]


def _kind(addresses: Collection[str], world: World) -> str:
    """In a word."""
    if any(kind(each, world) == VIRTUAL for each in addresses):
        return VIRTUAL
    network = ipaddress.ip_network(world.cluster_ips)
    return "ClusterIP" if any(ipaddress.ip_address(each) in network for each in addresses) else "pods"


def _lacking(host: str, virtual: list[str], clusters: Sidecars, listeners: Sidecars) -> Iterator[str]:
    """What each sidecar has not got of what connections to these addresses need.

    Clusters are named `outbound|port|subset|host` and listeners `address_port`, as Istio does.
    """
    for sidecar, names in clusters.items():
        split = [each.split("|") for each in names]
        ports = sorted({port[1] for port in split if len(port) == 4 and port[3] == host})
        if not ports:
            yield f"{sidecar}: no cluster"
        for address, port in ((address, port) for address in virtual for port in ports):
            if not {f"{address}_{port}", f"0.0.0.0_{port}"} & set(listeners.get(sidecar, ())):
                yield f"{sidecar}: no listener for {address}:{port}"
