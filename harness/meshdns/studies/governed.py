"""Notebook 04: whether what the control plane told DNS proxies, cluster DNS and sidecars agrees.

A name answered with a virtual address works only if every sidecar has a cluster for the name and a listener that takes
connections to the address; any other name must have the same addresses in the cluster DNS as in the name table. An
Envoy that answers DNS itself was told the names apart from the agent's proxy, and must have been told the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from typing import Any

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, provenance, text
from meshdns.core.world import World
from meshdns.studies import external

FACTS = "governed"
UNKNOWN = "no sidecar's configuration was recorded"
_TABLE = [
    "run", "name", "address", "answered by DNS proxies", "in the cluster DNS", "sidecars", "DNS filters", "lacking",
    "agree",
]  # fmt: skip


def table(runs: store.Runs) -> pd.DataFrame:
    """A row per run and name that DNS proxies were told."""
    rows = []
    for header in runs.headers:
        facts = provenance.branch(header.facts, FACTS)
        names, records = provenance.branch(facts, "names"), provenance.branch(facts, "records")
        recorded = {str(name).rstrip("."): sorted(map(str, found)) for name, found in records.items()}
        clusters, listeners = (_by_sidecar(header.facts, name, runs.world) for name in ("clusters", "listeners"))
        filters = _filters(header.facts, runs.world)
        for name, ips in names.items():
            host, told = str(name).rstrip("."), sorted(map(str, ips))
            row = _row(host, told, recorded.get(host, []), clusters, listeners, world=runs.world)
            rows.append({"run": header.name} | _compared(row, host, told, filters))
    return absent.knowing(pd.DataFrame(rows, columns=_TABLE), (absent.GOVERNED,))


Sidecars = dict[str, Collection[str]]


def _by_sidecar(facts: dict[str, Any], kind: str, world: World) -> Sidecars:
    """Names of the clusters or listeners of each sidecar: as they were noted, or as its own configuration has them."""
    if noted := provenance.branch(provenance.branch(facts, FACTS), kind):
        return {str(sidecar): {str(each) for each in found} for sidecar, found in noted.items()}
    return {pod: set(_dumped(dump, kind)) for pod, dump in _dumps(facts, world).items()}


def _dumps(facts: dict[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """Envoy's /config_dump of each governed client whose configuration was recorded."""
    dumps = provenance.branch(facts, "envoy")
    return {client.pod: dumps[client.pod] for client in world.clients if client.governed and dumps.get(client.pod)}


def _dumped(dump: dict[str, Any], kind: str) -> Iterator[str]:
    """From Envoy's /config_dump, what the control plane gave it."""
    for part in dump.get("configs", []):
        for each in part.get("dynamic_active_clusters", []) if kind == "clusters" else []:
            yield str(each["cluster"]["name"])
        for each in part.get("dynamic_listeners", []) if kind == "listeners" else []:
            if "active_state" in each:
                yield str(each["name"])


Answers = dict[str, list[str]]  # host -> addresses


def _filters(facts: dict[str, Any], world: World) -> dict[str, Answers]:
    """What each sidecar answers that has a DNS filter."""
    found = {pod: list(_domains(dump)) for pod, dump in _dumps(facts, world).items()}
    return {
        pod: {str(each["name"]).rstrip("."): sorted(each["endpoint"]["address_list"]["address"]) for each in domains}
        for pod, domains in found.items()
        if domains
    }


def _domains(dump: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The names in the tables of an Envoy's DNS filters."""
    for part in dump.get("configs", []):
        for each in part.get("dynamic_listeners", []):
            for one in each.get("active_state", {}).get("listener", {}).get("listener_filters", []):
                table = one.get("typed_config", {}).get("server_config", {}).get("inline_dns_table", {})
                yield from table.get("virtual_domains", [])


def _row(
    host: str, told: list[str], recorded: list[str], clusters: Sidecars, listeners: Sidecars, *, world: World
) -> dict[str, Any]:
    virtual = [each for each in told if external.kind(each, world) == external.VIRTUAL]
    lacking = [
        f"{sidecar}: {what}"
        for sidecar in clusters
        if virtual and (what := _lacks(host, virtual, clusters[sidecar], listeners.get(sidecar, ())))
    ]
    if virtual:
        agree = ("NO" if lacking else "yes") if clusters else UNKNOWN
    else:
        agree = "yes" if told == recorded else "NO"
        why = "the cluster DNS has other addresses" if recorded else "the cluster DNS has none"
        lacking = [] if told == recorded else [why]
    return {
        "name": host,
        "address": _kind(told, world),
        "answered by DNS proxies": ", ".join(told),
        "in the cluster DNS": ", ".join(recorded) or text.ABSENT,
        "sidecars": len(clusters),
        "lacking": "; ".join(lacking) or text.ABSENT,
        "agree": agree,
    }


def _compared(row: dict[str, Any], host: str, told: list[str], filters: dict[str, Answers]) -> dict[str, Any]:
    """The row, and whether DNS filters answer the same."""
    other = [
        f"{sidecar}: its DNS filter has {'other addresses' if host in answers else 'not this name'}"
        for sidecar, answers in filters.items()
        if answers.get(host) != told
    ]
    compared = row | {"DNS filters": len(filters) or text.ABSENT}
    if not other:
        return compared
    before = [row["lacking"]] if row["agree"] == "NO" else []
    return compared | {"agree": "NO", "lacking": "; ".join([*before, *other])}


def _kind(told: list[str], world: World) -> str:
    """In a word."""
    if any(external.kind(each, world) == external.VIRTUAL for each in told):
        return external.VIRTUAL
    network = ipaddress.ip_network(world.cluster_ips)
    return "ClusterIP" if any(ipaddress.ip_address(each) in network for each in told) else "pods"


def _lacks(host: str, virtual: list[str], clusters: Collection[str], listeners: Collection[str]) -> str:
    """What a sidecar has not got of what connections to these addresses need; "" if nothing.

    Clusters are named `outbound|port|subset|host` and listeners `address_port`, as Istio does.
    """
    split = [each.split("|") for each in clusters]
    ports = {parts[1] for parts in split if len(parts) == 4 and parts[3] == host}
    if not ports:
        return "no cluster"
    unheard = [
        f"no listener for {address}:{port}"
        for address in virtual
        for port in sorted(ports)
        if not {f"{address}_{port}", f"0.0.0.0_{port}"} & set(listeners)
    ]
    return ", ".join(unheard)


def answer(found: pd.DataFrame) -> str:
    """Whether they agree; "" if nothing was recorded."""
    if found.empty:
        return ""
    wrong, unknown = (list(dict.fromkeys(found[found["agree"] == each]["name"])) for each in ("NO", UNKNOWN))
    whole = found["name"].nunique()
    if wrong:
        return f"Of {whole} names told to DNS proxies {len(wrong)} disagree with the rest: {text.listed(wrong)}."
    if unknown:
        return f"Of {whole} names told to DNS proxies {len(unknown)} could not be compared: {UNKNOWN}."
    filtered = "" if (found["DNS filters"] == text.ABSENT).all() else "; Envoy's DNS filter was told the same"
    return (
        f"All {whole} names told to DNS proxies agree with the rest: those with a virtual address have a cluster and a "
        f"listener in every sidecar, the others the same addresses in the cluster DNS{filtered}."
    )
