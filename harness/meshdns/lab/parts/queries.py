"""Counts the queries that come to a cluster DNS, by the pod that asks: whatever name server it is.

Rules in the pod's network count, and decide nothing; the page also has the name server's own count of the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

from meshdns.core.world import Pod
from meshdns.lab import ports, rules
from meshdns.lab.parts import coredns
from meshdns.lab.parts.component import (
    ASKED,
    FROM_ALL,
    FROM_POD,
    LOOPBACK,
    PASSED_ON,
    At,
    Command,
    Component,
    Container,
    Counts,
    Made,
    Mount,
    Page,
    Pairs,
)

_DELAYED = "DELAYED"  # a chain


class Queries(Component):
    image = "observer"
    carries = False

    def container(self, at: At) -> Container:
        command = ["python3", "-m", "observer.counted", "--rules", "/rules/queries"]
        command += ["--listen", f"{at.address}:{ports.PORT_PAGES}"]
        if any(part == "coredns" for part in (at.pod.part, *at.pod.parts)):
            command += ["--beside", f"{LOOPBACK}:{ports.PORT_COREDNS_METRICS}/metrics"]
        mounts = (Mount(f"state/{at.pod.pod}", "/rules"),)
        return Container(tuple(command), capabilities=("NET_ADMIN",), mounts=mounts, abrupt=True)

    def files(self, at: At) -> dict[str, str]:
        return {f"{at.pod.pod}/queries": "".join(f"{line}\n" for line in _rules(at))}

    def page(self, at: At) -> Page:
        return at.outer(f"{ports.PORT_PAGES}/")

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        told = json.loads(body)
        found = {FROM_POD: told["rules"].get(_from(client), 0), FROM_ALL: told["rules"].get("all", 0)}
        return found | ({coredns.QUERIES: coredns.counted(told["beside"])} if told["beside"] else {})

    def delaying(self, addresses: Collection[str]) -> tuple[Command, str]:
        """The command, and its input, by which queries from these addresses and no other go to what delays answers.

        It answers at another port, and must seem to answer at 53: rules of a sidecar tell answers by it. Flows that
        stand keep their way, so they are forgotten; it is no fault where there are none.
        """
        forget = "conntrack -D -p udp --orig-port-dst 53 >/dev/null 2>&1 || true"
        lines = [
            f"-A {_DELAYED} -s {each}/32 -p udp -j REDIRECT --to-ports {ports.PORT_DNS_DIRECT}" for each in addresses
        ]
        given = "".join(f"{line}\n" for line in ("*nat", f":{_DELAYED} - [0:0]", *lines, "COMMIT"))
        return ("sh", "-c", f"iptables-restore --noflush && {forget}"), given

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if at.world.asks_node(client):  # it keeps answers, and says itself what it passes on
            return
        sent = counts.get(PASSED_ON, 0) + (0 if client.dns_proxy else counts.get(ASKED, 0))
        yield "queries at the cluster DNS, against those sent to it", counts.get(FROM_POD, 0), sent


def _from(client: Pod) -> str:
    return f"from_{client.host}"


def _rules(at: At) -> Iterator[str]:
    """`iptables-restore` input. A query by TCP is a segment that was pushed: each comes in one."""
    yield from ("*raw", ":QUERIES - [0:0]")
    for port in (53, ports.PORT_DNS_DIRECT):
        for what in ("udp", "tcp --tcp-flags PSH PSH"):
            protocol, _, flags = what.partition(" ")
            yield f"-A PREROUTING ! -i lo -p {protocol} --dport {port} {flags} {rules.count('all')} -j QUERIES"
    for client in at.world.clients:
        yield f"-A QUERIES -s {at.nets.pod(client.host)}/32 {rules.count(_from(client))} -j RETURN"
    yield from ("COMMIT", "*nat", f":{_DELAYED} - [0:0]", f"-A PREROUTING -p udp --dport 53 -j {_DELAYED}", "COMMIT")


PART = Queries()
