"""One traced request, hop by hop.

A hop is a transfer between two processes: a DNS question with its answer, or a TCP connection. So it has a socket at
either end, and crosses from one network namespace to another unless it is inside one. It is read from captured packets,
joined with what the kernel translated (conntrack) and with what Envoy counted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from meshdns.analysis import text
from meshdns.core import resolver
from meshdns.core.world import World
from meshdns.interception.conventions import ISTIO
from meshdns.studies.path.flows import Flow, Kind, Message, flows, host, port
from meshdns.studies.path.pods import Pod, entries, taken

APPLICATION, SIDECAR, DNS_PROXY = "application", "sidecar", "DNS proxy"
COREDNS = "CoreDNS"
SERVER_SIDECAR, SERVER, ITSELF = "server sidecar", "server", "the pod itself"
_CAPTURING = (ISTIO.outbound_port, ISTIO.inbound_port)


@dataclass(frozen=True)
class Hop:
    """One transfer."""

    kind: Kind
    source: str  # the process that asks
    pod: str  # its pod
    target: str  # the process that is reached
    target_pod: str  # an address where nobody watched
    inside: bool  # over a pod's loopback
    asked: str  # address:port asked for
    reached: str  # and what it was after translation
    taken: str  # Envoy's listener, filter chain and cluster that took it; "" without Envoy
    kept: bool  # on a connection that stood already
    own: bool  # the sidecar's own lookup, made by the clock and not for this request
    ending: str  # answered, refused, closed, unanswered, lost
    messages: tuple[Message, ...]

    @property
    def packets(self) -> int:
        """Both ways."""
        return sum(each.packets for each in self.messages)

    @property
    def bytes(self) -> int:
        """Above UDP or TCP, both ways."""
        return sum(each.size for each in self.messages)

    @property
    def rewritten(self) -> str | None:
        """The address after translation, where that changed it."""
        return self.reached if self.reached != self.asked else None

    @property
    def said(self) -> str:
        """What was asked."""
        return next((each.says for each in self.messages if each.forward and each.says), "")

    @property
    def answer(self) -> str:
        """What came back: addresses or a return code, the first line of HTTP; of nothing how it ended."""
        found = next((each.says for each in self.messages if not each.forward and each.says), "")
        return (found.partition(": ")[2] if self.kind == "DNS" else found) or self.ending

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for hops that differ in nothing but the moment, the port and the name asked for."""
        ends = (self.kind, self.source, self.pod, self.target, self.target_pod, self.inside)
        return *ends, self.asked, self.reached, self.ending, self.answer, self.own


@dataclass(frozen=True)
class Row:
    """A hop, and how often one like it was seen."""

    hop: Hop
    times: int


@dataclass(frozen=True)
class Path:
    """A traced request."""

    arm: str
    url: str
    pod: str
    request: Mapping[str, Any]
    hops: tuple[Hop, ...]
    pods: Mapping[str, Pod]

    @property
    def served(self) -> str:
        """The pod that answered; "" if none did or it has no name."""
        return str(self.request["replica"])

    def of(self, kind: Kind) -> list[Hop]:
        """Those that the request made."""
        return [hop for hop in self.hops if hop.kind == kind and not hop.own]

    def questions(self) -> list[list[Hop]]:
        """The DNS exchanges of each question that the application asked."""
        episodes = ([hop for hop in each if hop.kind == "DNS" and not hop.own] for each in _episodes(self.hops))
        return [each for each in episodes if each and each[0].source == APPLICATION]

    def rows(self) -> list[Row]:
        """The hops in order; searches and loops that repeat themselves are told once, with how often."""
        episodes = [_counted(each) for each in _episodes(self.hops)]
        found: list[Row] = []
        for _, same in groupby(episodes, lambda rows: [row.hop.signature for row in rows]):
            alike = list(same)
            found += [Row(row.hop, sum(rows[n].times for rows in alike)) for n, row in enumerate(alike[0])]
        return found


def _episodes(hops: Sequence[Hop]) -> list[list[Hop]]:
    """What the application starts, each time with all that follows from it."""
    found: list[list[Hop]] = []
    for hop in hops:
        if hop.source == APPLICATION or not found:
            found.append([])
        found[-1].append(hop)
    return found


def _counted(hops: Sequence[Hop]) -> list[Row]:
    """Each kind of hop once: a loop that goes round a thousand times has as many equal ones."""
    return [Row(same[0], len(same)) for same in text.grouped((hop.signature, hop) for hop in hops).values()]


def read(trace: Mapping[str, Any], world: World) -> Path:
    """The path in a trace's JSON (`meshdns.measure.trace.Trace.to_json`)."""
    return _Reader(trace, world).path()


class _Reader:
    """Names the processes at both ends of each flow, and leaves out what does not belong to the request."""

    def __init__(self, trace: Mapping[str, Any], world: World) -> None:
        self.trace, self.request, self.world = trace, trace["request"], world
        self.client = world.arms[trace["arm"]]
        self.dns = world.cluster_dns.get(world.dns_address(self.client), "dns")
        parts = {part for pod in world.pods if pod.pod == self.dns for part in (pod.part, *pod.parts)}
        self.server = COREDNS if "coredns" in parts else min(parts, default=COREDNS)
        self.pods: dict[str, str] = {address: pod for pod, address in trace["pods"].items()}
        url = urlsplit(trace["url"])
        self.port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
        self.candidates = {f"{name} A" for name in resolver.candidates(url.hostname or "", 5, world.search)}
        self.known = {pod: self._pod(pod) for pod in trace["pods"]}
        self.translations = [each for each in self.known[self.client.pod].entries or () if each.rewritten]

    def _pod(self, pod: str) -> Pod:
        rules, tracked = self.trace["rules"].get(pod), self.trace["tracked"].get(pod)
        moved = taken(self.trace["proxies"].get(pod, {}), self.trace["chains"].get(pod, {}))
        return Pod(rules, None if tracked is None else entries(tracked), moved)

    def path(self) -> Path:
        hops: list[tuple[Flow, Hop]] = []
        for flow in flows(self.trace["packets"]):
            hop = self._hop(flow, hops)
            if hop is not None:
                hops.append((flow, hop))
        found = tuple(hop for _, hop in hops)
        return Path(self.trace["arm"], self.trace["url"], self.client.pod, self.request, found, self.known)

    def _hop(self, flow: Flow, before: Sequence[tuple[Flow, Hop]]) -> Hop | None:
        """None for a question that somebody else asked meanwhile."""
        pod = flow.place or self.pods.get(host(flow.initiator), "")
        if not pod:
            return None
        source, own = self._source(flow, pod, before)
        if not source:
            return None
        reached = flow.target
        target_pod = flow.place or self.pods.get(host(reached), host(reached))
        target = self._target(flow, target_pod)
        return Hop(
            kind=flow.kind,
            source=source,
            pod=pod,
            target=target,
            target_pod=target_pod,
            inside=bool(flow.place),
            asked=self._asked(flow, source),
            reached=reached,
            taken=self._taken_by(flow.kind, target, target_pod),
            kept=flow.protocol == "tcp" and "SYN" not in flow.packets[0]["flags"],
            own=own,
            ending=flow.ending,
            messages=flow.messages,
        )

    def _source(self, flow: Flow, pod: str, before: Sequence[tuple[Flow, Hop]]) -> tuple[str, bool]:
        """Who asks, and whether on its own account; "" if not for this request."""
        if pod == self.dns:
            outer = next((hop for other, hop in before if _within(flow, other) and hop.target == self.server), None)
            return (self.server, outer.own) if outer else ("", False)
        if pod != self.client.pod:
            return SERVER_SIDECAR if pod in self.trace["proxies"] else SERVER, False
        mine = [hop for _, hop in before if hop.pod == pod and hop.kind == flow.kind]
        if flow.kind == "TCP":
            return SIDECAR if self.client.sidecar and mine else APPLICATION, False
        if self.client.dns_proxy and not flow.place:
            passed_on = flow.question in self.candidates or any(hop.said == f"{flow.question}?" for hop in mine)
            return (DNS_PROXY, False) if passed_on else (SIDECAR, True)
        again = any(hop.said == f"{flow.question}?" and hop.source == APPLICATION for hop in mine)
        if not self.client.sidecar or (flow.question in self.candidates and not again):
            return APPLICATION, False
        return SIDECAR, True

    def _asked(self, flow: Flow, source: str) -> str:
        """What was asked for, whatever that became; some mechanisms leave no entry, but the application knows."""
        for each in self.translations:
            if (each.protocol, each.source, each.reached) == (flow.protocol, flow.initiator, flow.target):
                return each.asked
        if source != APPLICATION:
            return flow.target
        if flow.kind == "DNS":
            return f"{self.world.dns_address(self.client)}:53"
        return f"{self.request['address'] or host(flow.target)}:{self.port}"

    def _target(self, flow: Flow, pod: str) -> str:
        """Who is reached; nobody at an address that no process has, as it was not translated."""
        reached = flow.target
        if pod == self.dns:
            return self.server
        if pod == self.client.pod:
            if flow.kind == "DNS":
                return DNS_PROXY
            strange = not host(reached).startswith("127.") and self.pods.get(host(reached)) != pod
            return SIDECAR if port(reached) in _CAPTURING or strange else ITSELF
        if pod in self.pods.values():
            return SERVER_SIDECAR if str(self.known[pod].taken) and not flow.place else SERVER
        ranges = (self.world.cluster_ips, self.world.virtual_ips, self.world.unroutable)
        address = ipaddress.ip_address(host(reached))
        return "nobody" if any(address in ipaddress.ip_network(each) for each in ranges) else pod

    def _taken_by(self, kind: Kind, target: str, pod: str) -> str:
        if target in (SIDECAR, SERVER_SIDECAR) and kind == "TCP":
            return str(self.known[pod].taken)
        moved = self.trace["proxies"].get(pod, {})
        filters = [name for name in moved if re.fullmatch(r"dns_filter\.[\w-]+\.downstream_rx_queries", name)]
        return "Envoy's DNS filter" if target == DNS_PROXY and filters else ""


def _within(inner: Flow, outer: Flow) -> bool:
    """The same question, asked while the other waits for its answer."""
    begin, end = outer.span
    answered = any(each["source"] != outer.initiator for each in outer.packets)
    return inner.question == outer.question and begin <= inner.span[0] and (inner.span[0] <= end or not answered)
