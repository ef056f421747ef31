"""Istio's agent semantics on port 15053, by Envoy's user: the rules tell both from the application by it."""

from __future__ import annotations

import json
from typing import Any

from meshdns.core.world import Pod
from meshdns.lab import names, ports
from meshdns.lab.parts.component import LOOPBACK, At, Component, Container, Counts, Made, Mount, Page, Pairs
from meshdns.lab.parts.envoy import answered


class DnsProxy(Component):
    image = "dnsproxy"

    def container(self, at: At) -> Container:
        # One that the control plane configures gets its table from there.
        table = "volume/names" if at.pod.managed else f"state/{at.pod.pod}"
        return Container(
            (
                "--name-table=/etc/meshdns/names.json",
                "--listen=127.0.0.1:15053",
                f"--upstream={at.world.dns_address(at.pod)}:53",
                "--resolv-conf=/etc/resolv.conf",
                f"--namespace={at.world.namespace}",
                f"--domain={at.world.domain}",
                f"--metrics=127.0.0.1:{ports.PORT_DNS_METRICS}",
            ),
            mounts=(Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"), Mount(table, "/etc/meshdns")),
            abrupt=True,
        )

    def ready(self, at: At) -> Page:
        return self.page(at)

    def files(self, at: At) -> dict[str, str]:
        if at.pod.managed:
            return {}
        return {f"{at.pod.pod}/names.json": json.dumps(_table(at), indent=1)}

    def page(self, at: At) -> Page:
        return {"url": f"{LOOPBACK}:{ports.PORT_DNS_METRICS}/metrics"}

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        """Sums of its Prometheus counters: all queries, and those it asked upstream for."""
        found = {"dns_requests_total": 0.0, "dns_upstream_requests_total": 0.0}
        for line in body.splitlines():
            for name in found:
                if line.startswith(name):
                    found[name] += float(line.rsplit(" ", 1)[1])
        asked, passed_on = found.values()
        return {"pod/dnsproxy/queries": asked, "pod/dnsproxy/forwarded": passed_on}

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        return answered(counts)


def _table(at: At) -> dict[str, Any]:
    """What it answers, in the form in which Istio's control plane hands names to its agent."""
    world = at.world
    services = {
        service.host: {
            "ips": [service.virtual_ip],
            "registry": "Kubernetes",
            "namespace": world.namespace,
            "shortname": service.name,
        }
        for service in world.static
    }
    return {"table": services | names.conformance_world(world, at.nets).name_table()["table"]}


PART = DnsProxy()
