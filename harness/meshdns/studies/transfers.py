"""Notebook 03: one traced request, hop by hop.

A hop is a transfer between two processes: a DNS question with its answer, or a TCP connection. So it has a socket at
either end, and crosses from one network namespace to another unless it is inside one. It is read from captured packets,
joined with what the kernel translated (conntrack) and with what Envoy counted. A packet that two namespaces saw is
counted once, where it was seen first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal
from urllib.parse import urlsplit

from meshdns.core import resolver
from meshdns.core.world import Pod as WorldPod
from meshdns.core.world import World
from meshdns.interception.conventions import ISTIO

Packet = Mapping[str, Any]  # one of a trace's `packets`
Kind = Literal["DNS", "TCP"]
APPLICATION, SIDECAR, DNS_PROXY, DNSDIST, BIND = "application", "sidecar", "DNS proxy", "dnsdist", "BIND"
SERVER_SIDECAR, SERVER, ITSELF = "server sidecar", "server", "the pod itself"
DNS_PORTS = (53, 5300, ISTIO.dns_port)  # the cluster DNS, BIND behind dnsdist, the DNS proxy
_CAPTURING = (ISTIO.outbound_port, ISTIO.inbound_port)


@dataclass(frozen=True)
class Message:
    """What went one way: a DNS message, or the packets of one stage of a connection."""

    at_us: float  # after the first packet of the trace
    forward: bool  # from the one that asks
    what: str  # asks, answers; connects, requests, responds, closes, refuses
    packets: int
    size: int  # bytes above UDP or TCP
    says: str


@dataclass(frozen=True)
class Hop:
    """One transfer."""

    kind: Kind
    source: str  # the process that asks
    target: str  # the one that is reached
    pods: tuple[str, str]  # theirs; an address where nobody watched
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
    def size(self) -> int:
        """Bytes above UDP or TCP, both ways."""
        return sum(each.size for each in self.messages)

    @property
    def said(self) -> str:
        """What was asked."""
        return next((each.says for each in self.messages if each.forward and each.says), "")

    @property
    def answer(self) -> str:
        """What came back: addresses or a return code, the first line of HTTP."""
        found = next((each.says for each in self.messages if not each.forward and each.says), "")
        return found.partition(": ")[2] if self.kind == "DNS" else found

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for hops that differ in nothing but the moment, the port and the name asked for."""
        ends = (self.kind, self.source, self.target, self.pods, self.inside)
        return *ends, self.asked, self.reached, self.ending, self.answer, self.own


@dataclass(frozen=True)
class Entry:
    """A connection tracking entry."""

    protocol: str
    source: str
    asked: str
    reached: str  # differs where an address or a port was rewritten
    zone: str  # "" is the default one

    @property
    def rewritten(self) -> bool:
        """An address or a port was changed."""
        return self.asked != self.reached

    @property
    def ends(self) -> str:
        """`10.96.1.10:80 → 127.0.0.1:15001`, or one address where nothing was rewritten."""
        return f"{self.asked} → {self.reached}" if self.rewritten else self.asked


@dataclass(frozen=True)
class Taken:
    """What of an Envoy took a request: that whose statistics moved; "" where none did."""

    listener: str = ""
    chain: str = ""  # the filter chain that matched
    filter: str = ""
    cluster: str = ""

    def __str__(self) -> str:
        """`listener 10.96.1.10_80, filter chain web-http, filter out_web, cluster web-http`."""
        parts = {"listener": self.listener, "filter chain": self.chain, "filter": self.filter, "cluster": self.cluster}
        return ", ".join(f"{part} {name}" for part, name in parts.items() if name)


@dataclass(frozen=True)
class Pod:
    """What was counted and remembered in one pod; None: this run's version did not record it there."""

    rules: Mapping[str, float] | None
    entries: tuple[Entry, ...] | None
    taken: Taken


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


def _episodes(hops: Sequence[Hop]) -> Iterator[list[Hop]]:
    """What the application starts, each time with all that follows from it."""
    found: list[Hop] = []
    for hop in hops:
        if hop.source == APPLICATION and found:
            yield found
            found = []
        found.append(hop)
    if found:
        yield found


def _counted(hops: Sequence[Hop]) -> list[Row]:
    """Each kind of hop once: a loop that goes round a thousand times has as many equal ones."""
    found: dict[tuple[object, ...], Row] = {}
    for hop in hops:
        row = found.get(hop.signature)
        found[hop.signature] = Row(row.hop, row.times + 1) if row else Row(hop, 1)
    return list(found.values())


@dataclass(frozen=True)
class _Flow:
    """Packets between two sockets, or those of one question between them."""

    protocol: str
    place: str  # the namespace for loopback, "" for the network
    initiator: str
    packets: list[Packet]
    question: str = ""

    @property
    def target(self) -> str:
        return next(str(each["target"]) for each in self.packets if each["source"] == self.initiator)

    @property
    def kind(self) -> Kind:
        return "DNS" if _port(self.target) in DNS_PORTS else "TCP"

    @property
    def span(self) -> tuple[float, float]:
        return float(self.packets[0]["at_us"]), float(self.packets[-1]["at_us"])

    def seen(self) -> list[Packet]:
        """Each packet once: as the namespace saw it that saw the first one."""
        return [each for each in self.packets if each["namespace"] == self.packets[0]["namespace"]]


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0]


def _flows(packets: Sequence[Packet]) -> list[_Flow]:
    """By who began: a reply may come from another address than was asked, as it is translated back when it is sent.

    A connection's last words from before the trace began (no SYN, no payload) are no flow.
    """
    found: dict[tuple[str, str, str], _Flow] = {}
    for packet in packets:
        protocol, place = str(packet["protocol"]), packet["namespace"] if packet["interface"] == "lo" else ""
        ends = [(protocol, place, str(packet[end])) for end in ("source", "target")]
        key = next((end for end in ends if end in found), None)
        if key is None and (packet["size"] or "SYN" in packet["flags"]):
            key = ends[0]
            found[key] = _Flow(*key, [])
        if key is not None:
            found[key].packets.append(packet)
    split = [part for flow in found.values() for part in _questions(flow)]
    return sorted(split, key=lambda flow: flow.span[0])


def _questions(flow: _Flow) -> Iterator[_Flow]:
    """A UDP socket asks several questions, one after the other or at once."""
    if flow.protocol == "tcp":
        said = next((str(each["says"]) for each in flow.packets if each["says"]), "")
        yield replace(flow, question=_question(said) if flow.kind == "DNS" else "")
        return
    asked: dict[str, list[Packet]] = {}
    for packet in flow.packets:
        asked.setdefault(_question(str(packet["says"])), []).append(packet)
    for question, packets in asked.items():
        if any(each["source"] == flow.initiator for each in packets):
            yield replace(flow, packets=packets, question=question)


def _question(says: str) -> str:
    return says.removesuffix("?").partition(": ")[0]


def read(trace: Mapping[str, Any], world: World) -> Path:
    """The path in a trace's JSON (`meshdns.measure.trace.Trace.to_json`)."""
    return _Reader(trace, world).path()


class _Reader:
    """Names the processes at both ends of each flow, and leaves out what does not belong to the request."""

    def __init__(self, trace: Mapping[str, Any], world: World) -> None:
        self.trace, self.request, self.world = trace, trace["request"], world
        arm = str(trace["arm"])
        self.client = world.arms.get(arm) or WorldPod(f"client-{arm}", 0, "client", arm=arm)
        self.pods: dict[str, str] = {address: pod for pod, address in trace["pods"].items()}
        parts = urlsplit(trace["url"])
        self.port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        self.candidates = {f"{name} A" for name in resolver.candidates(parts.hostname or "", 5, world.search)}
        self.known = {pod: self._pod(pod) for pod in trace["pods"]}
        self.translations = [each for each in self.known[self.client.pod].entries or () if each.rewritten]

    def _pod(self, pod: str) -> Pod:
        tracked, rules = self._recorded("tracked", pod), self._recorded("rules", pod)
        chains = self.trace["chains"].get(pod, {}) if "chains" in self.trace else None
        entries = None if tracked is None else _entries(tracked)
        return Pod(rules, entries, _taken(self.trace["proxies"].get(pod, {}), chains))

    def _recorded(self, what: str, pod: str) -> Any:
        """Of a pod; older traces have `rules` and `translations` of the client's alone."""
        if "tracked" in self.trace:
            return self.trace[what].get(pod)
        return self.trace[{"tracked": "translations"}.get(what, what)] if pod == self.client.pod else None

    def path(self) -> Path:
        hops: list[tuple[_Flow, Hop]] = []
        for flow in _flows(self.trace["packets"]):
            hop = self._hop(flow, hops)
            if hop is not None:
                hops.append((flow, hop))
        return Path(
            self.trace["arm"],
            self.trace["url"],
            self.client.pod,
            self.request,
            tuple(hop for _, hop in hops),
            self.known,
        )

    def _hop(self, flow: _Flow, before: Sequence[tuple[_Flow, Hop]]) -> Hop | None:
        """None for a question that somebody else asked meanwhile."""
        pod = flow.place or self.pods.get(_host(flow.initiator), "")
        if not pod:
            return None
        source, own = self._source(flow, pod, before)
        if not source:
            return None
        asked, reached = self._addresses(flow, source)
        target_pod = flow.place or self.pods.get(_host(reached), _host(reached))
        target = self._target(flow, target_pod, reached)
        messages = _dns_messages(flow) if flow.protocol == "udp" else _tcp_messages(flow)
        return Hop(
            kind=flow.kind,
            source=source,
            target=target,
            pods=(pod, target_pod),
            inside=bool(flow.place),
            asked=asked,
            reached=reached,
            taken=self._taken_by(flow.kind, target, target_pod),
            kept=flow.protocol == "tcp" and "SYN" not in flow.packets[0]["flags"],
            own=own,
            ending=_ending(flow, messages),
            messages=messages,
        )

    def _source(self, flow: _Flow, pod: str, before: Sequence[tuple[_Flow, Hop]]) -> tuple[str, bool]:
        """Who asks, and whether on its own account; "" if not for this request."""
        if pod == "dns":
            outer = next((hop for other, hop in before if _within(flow, other) and hop.target == DNSDIST), None)
            return (DNSDIST if flow.place else BIND, outer.own) if outer else ("", False)
        if pod != self.client.pod:
            return SERVER_SIDECAR if pod in self.trace["proxies"] else SERVER, False
        mine = [hop for _, hop in before if hop.pods[0] == pod and hop.kind == flow.kind]
        if flow.kind == "TCP":
            return SIDECAR if self.client.sidecar and mine else APPLICATION, False
        if self.client.dns_proxy and not flow.place:
            passed_on = flow.question in self.candidates or any(hop.said == f"{flow.question}?" for hop in mine)
            return (DNS_PROXY, False) if passed_on else (SIDECAR, True)
        again = any(hop.said == f"{flow.question}?" and hop.source == APPLICATION for hop in mine)
        if not self.client.sidecar or (flow.question in self.candidates and not again):
            return APPLICATION, False
        return SIDECAR, True

    def _addresses(self, flow: _Flow, source: str) -> tuple[str, str]:
        """What was asked for and what that became; some mechanisms leave no entry, but the application knows."""
        reached = flow.target
        for each in self.translations:
            if (each.protocol, each.source, each.reached) == (flow.protocol, flow.initiator, reached):
                return each.asked, reached
        if source != APPLICATION:
            return reached, reached
        if flow.kind == "DNS":
            return f"{self.world.dns_cluster_ip}:53", reached
        return f"{self.request['address'] or _host(reached)}:{self.port}", reached

    def _target(self, flow: _Flow, pod: str, reached: str) -> str:
        """Who is reached."""
        if pod == "dns":
            return BIND if flow.place else DNSDIST
        if pod == self.client.pod:
            if flow.kind == "DNS":
                return DNS_PROXY
            strange = not _host(reached).startswith("127.") and self.pods.get(_host(reached)) != pod
            return SIDECAR if _port(reached) in _CAPTURING or strange else ITSELF
        if pod in self.pods.values():
            return SERVER_SIDECAR if str(self.known[pod].taken) and not flow.place else SERVER
        return "nobody" if _nobody(reached) else pod

    def _taken_by(self, kind: Kind, target: str, pod: str) -> str:
        if target in (SIDECAR, SERVER_SIDECAR) and kind == "TCP":
            return str(self.known[pod].taken)
        moved = self.trace["proxies"].get(pod, {})
        filters = [name for name in moved if re.fullmatch(r"dns_filter\.[\w-]+\.downstream_rx_queries", name)]
        return "Envoy's DNS filter" if target == DNS_PROXY and filters else ""


def _nobody(endpoint: str) -> bool:
    """No process has such an address: it was not translated."""
    return endpoint.startswith(("10.96.", "240.240.", "192.0.2."))


def _within(inner: _Flow, outer: _Flow) -> bool:
    """The same question, asked while the other waits for its answer."""
    begin, end = outer.span
    answered = any(each["source"] != outer.initiator for each in outer.packets)
    return inner.question == outer.question and begin <= inner.span[0] and (inner.span[0] <= end or not answered)


_TUPLE = re.compile(r"\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")
_ZONE = re.compile(r"\bzone(?:-\w+)?=(\d+)")


def _entries(lines: Sequence[str]) -> tuple[Entry, ...]:
    """In an order of their own, as the kernel's is that of a hash: UDP first, what was rewritten first."""
    found = filter(None, map(_entry, lines))
    return tuple(sorted(found, key=lambda each: (each.protocol == "tcp", not each.rewritten)))


def _entry(line: str) -> Entry | None:
    """What a conntrack(8) entry says; None where it has no ports."""
    ways = _TUPLE.findall(line)
    if len(ways) != 2:
        return None
    (source, asked, sport, dport), (reached, _, reached_port, _) = ways
    protocol = "tcp" if " tcp " in f" {line} " else "udp"
    zone = found[1] if (found := _ZONE.search(line)) else ""
    return Entry(protocol, f"{source}:{sport}", f"{asked}:{dport}", f"{reached}:{reached_port}", zone)


# Envoy statistic -> the part it tells of; those of the page that is read do not count. On a connection that stood
# already the listener counts requests only.
_LISTENER = re.compile(r"listener\.([\d.]+_\d+)\.(?:downstream_cx_total|http\.[\w-]+\.downstream_rq_completed)")
_FILTER = re.compile(r"(?:http|tcp)\.(?!admin|stats)([\w-]+)\.downstream_[cr][xq]_total")
_CLUSTER = re.compile(r"cluster\.(?!admin)([\w-]+)\.upstream_[cr][xq]_total")
NOT_RECORDED = "not recorded"


def _taken(moved: Mapping[str, float], chains: Mapping[str, Mapping[str, Sequence[str]]] | None) -> Taken:
    """What the statistics tell; the chain is the one that counts under a moved filter's name in a moved listener."""
    listeners, filters, clusters = (
        list(dict.fromkeys(match[1] for name in sorted(moved) if (match := pattern.fullmatch(name))))
        for pattern in (_LISTENER, _FILTER, _CLUSTER)
    )
    matched = [
        " or ".join((chains or {}).get(listener, {}).get(name, ())) for listener in listeners for name in filters
    ]
    chain = " + ".join(dict.fromkeys(filter(None, matched)))
    if chains is None and listeners:
        chain = NOT_RECORDED
    return Taken(" + ".join(listeners), chain, " + ".join(filters), " + ".join(clusters))


def _dns_messages(flow: _Flow) -> tuple[Message, ...]:
    """The question with its repetitions, and the answer."""
    ways = [
        (forward, what, [each for each in flow.seen() if (each["source"] == flow.initiator) == forward])
        for forward, what in ((True, "asks"), (False, "answers"))
    ]
    return tuple(_message(packets, forward, what) for forward, what, packets in ways if packets)


def _tcp_messages(flow: _Flow) -> tuple[Message, ...]:
    """The stages of a connection, each with all its packets, acknowledgements too."""
    stages: list[tuple[str, bool, list[Packet]]] = []
    for packet in flow.seen():
        forward = packet["source"] == flow.initiator
        what = _stage(stages[-1][0] if stages else "", packet, forward)
        if not stages or what != stages[-1][0]:
            stages.append((what, forward, []))
        stages[-1][2].append(packet)
    return tuple(_message(packets, forward, what) for what, forward, packets in stages)


def _stage(now: str, packet: Packet, forward: bool) -> str:
    """The stage that a packet begins or belongs to; back and forth after the first response is one stage."""
    if packet["size"] and now != "closes":
        return "requests" if forward and now != "responds" else "responds"
    if "RST" in packet["flags"] and not forward and now == "connects":
        return "refuses"
    if {"RST", "FIN"} & set(packet["flags"].split()):
        return "closes"
    return now or ("connects" if "SYN" in packet["flags"] else "requests")


def _message(packets: Sequence[Packet], forward: bool, what: str) -> Message:
    says = next((str(each["says"]) for each in packets if each["says"]), "")
    size = sum(int(each["size"]) for each in packets)
    return Message(float(packets[0]["at_us"]), forward, what, len(packets), size, says)


def _ending(flow: _Flow, messages: Sequence[Message]) -> str:
    whats = {each.what for each in messages}
    if whats & {"answers", "responds"}:
        return "answered"
    if "refuses" in whats:
        return "refused"
    if "closes" in whats:
        return "closed"
    heard = any(each["source"] != flow.initiator for each in flow.seen())
    return "unanswered" if heard else "lost"
