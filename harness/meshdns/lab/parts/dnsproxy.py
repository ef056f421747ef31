"""Our own proxy with the agent's semantics, beside a sidecar that our own control plane configures."""

from __future__ import annotations

from meshdns.core.world import Pod
from meshdns.lab import ports
from meshdns.lab.parts.component import LOOPBACK, At, Component, Container, Counts, Made, Mount, Page, Pairs, answered


class DnsProxy(Component):
    image = "dnsproxy"

    def container(self, at: At) -> Container:
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
            mounts=(Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"), Mount("volume/names", "/etc/meshdns")),
            abrupt=True,
        )

    def ready(self, at: At) -> Page:
        return self.page(at)

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


PART = DnsProxy()
