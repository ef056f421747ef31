"""Whether what istiod tells an agent of names and its Envoy of connections fits together.

A name works only if the sidecar that answers it has a cluster for it, and a listener that takes connections to each of
its addresses at each of the cluster's ports. Clusters are named `outbound|port|subset|host`, listeners `address_port`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from meshdns import store
from meshdns.analysis import absent, provenance

_TABLE = ["run", "pod", "name", "addresses", "lacking", "agree"]


def table(runs: store.Runs) -> pd.DataFrame:
    """A row per run, pod and name that its agent was told, with what its Envoy lacks of it."""
    rows = []
    for header in runs.headers:
        dumps = provenance.branch(header.facts, "envoy")
        for pod, names in provenance.branch(header.facts, "names").items():
            if not dumps.get(pod):
                continue
            parts = dumps[pod].get("configs", [])  # of Envoy's /config_dump
            clusters = {each["cluster"]["name"] for part in parts for each in part.get("dynamic_active_clusters", [])}
            told = [each for part in parts for each in part.get("dynamic_listeners", [])]
            listeners = {each["name"] for each in told if "active_state" in each}
            for host, addresses in names.items():
                lacking = tuple(_lacking(host, addresses, clusters, listeners))
                row = {"name": host, "addresses": tuple(addresses), "lacking": lacking, "agree": not lacking}
                rows.append({"run": header.name, "pod": pod} | row)
    return absent.knowing(pd.DataFrame(rows, columns=_TABLE), ("names",))


def _lacking(host: str, addresses: Collection[str], clusters: set[str], listeners: set[str]) -> Iterator[str]:
    split = [each.split("|") for each in clusters]
    ports = sorted({each[1] for each in split if len(each) == 4 and each[0] == "outbound" and each[3] == host})
    if not ports:
        yield "no cluster"
    for address, port in ((address, port) for address in addresses for port in ports):
        if not {f"{address}_{port}", f"0.0.0.0_{port}"} & listeners:
            yield f"no listener for {address}:{port}"
