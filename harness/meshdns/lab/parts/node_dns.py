"""NodeLocal DNSCache: CoreDNS at a link-local address of the node, which keeps answers and asks the cluster DNS by TCP.

The pod's own loopback stands for the node. It runs as the user that rules tell from the application.
"""

from __future__ import annotations

import re

from meshdns.core.world import Pod
from meshdns.interception.conventions import ISTIO
from meshdns.lab import ports
from meshdns.lab.parts import coredns
from meshdns.lab.parts.component import ASKED, FROM_POD, At, Container, Counts, Made, NameServer, Page, Pairs

ADDRESS, CONFIG_MAP = "169.254.20.10", "node-local-dns"  # as its manifest has them
_PASSED_ON = re.compile(r'^coredns_proxy_request_duration_seconds_count{.*to="([^"]+):53".*} (\S+)', re.MULTILINE)


class NodeDns(NameServer):
    image = "coredns"

    def container(self, at: At) -> Container:
        return coredns.running(at, user=f"{ISTIO.uid}:{ISTIO.uid}")

    def files(self, at: At) -> dict[str, str]:
        corefile = at.world.configuration(at.pod.pod, coredns.COREFILE, CONFIG_MAP)
        return {
            f"{at.service}/{coredns.COREFILE}": corefile,
            f"{at.service}/resolv.conf": coredns.own_resolv_conf(at),
        }

    def page(self, at: At) -> Page:
        return at.inner(f"{ports.PORT_NODE_DNS}/metrics")

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        cluster = at.world.dns_cluster_ip
        passed_on = sum(float(count) for server, count in _PASSED_ON.findall(body) if server == cluster)
        return {"pod/dnsproxy/queries": coredns.counted(body), "pod/dnsproxy/forwarded": passed_on}

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        yield "queries at the node's name server", counts.get("pod/dnsproxy/queries", 0), counts.get(ASKED, 0)
        passed_on = counts.get("pod/dnsproxy/forwarded", 0)
        yield "queries at the cluster DNS, against those the node's passed on", counts.get(FROM_POD, 0), passed_on


PART = NodeDns()
