"""Captured packets as flows: those between two sockets, or of one DNS question between them.

A packet that two namespaces saw is counted once, where it was seen first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from meshdns.analysis import text
from meshdns.interception.conventions import ISTIO

Packet = Mapping[str, Any]  # one of a trace's `packets`
Kind = Literal["DNS", "TCP"]
DNS_PORTS = (53, 5353, ISTIO.dns_port)  # the cluster DNS, dnsdist before it, the DNS proxy


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
class Flow:
    """Packets between two sockets, or those of one question between them."""

    protocol: str
    place: str  # the namespace for loopback, "" for the network
    initiator: str
    packets: list[Packet]
    question: str = ""

    @property
    def target(self) -> str:
        """Where it went, by the packets of the one that began."""
        return next(str(each["target"]) for each in self.packets if each["source"] == self.initiator)

    @property
    def kind(self) -> Kind:
        """By the port asked."""
        return "DNS" if port(self.target) in DNS_PORTS else "TCP"

    @property
    def span(self) -> tuple[float, float]:
        """First and last packet, µs."""
        return float(self.packets[0]["at_us"]), float(self.packets[-1]["at_us"])

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """A question with its repetitions and its answer, or the stages of a connection with all their packets,
        acknowledgements too."""
        stages: list[tuple[str, bool, list[Packet]]] = []
        seen = self._seen()
        for packet in sorted(seen, key=self._forward, reverse=True) if self.protocol == "udp" else seen:
            forward, now = self._forward(packet), stages[-1][0] if stages else ""
            what = ("asks" if forward else "answers") if self.protocol == "udp" else _stage(now, packet, forward)
            if what != now:
                stages.append((what, forward, []))
            stages[-1][2].append(packet)
        return tuple(
            Message(
                at_us=float(packets[0]["at_us"]),
                forward=forward,
                what=what,
                packets=len(packets),
                size=sum(int(each["size"]) for each in packets),
                says=_said(packets),
            )
            for what, forward, packets in stages
        )

    @property
    def ending(self) -> str:
        """How the one that asked was answered."""
        whats = {each.what for each in self.messages}
        if whats & {"answers", "responds"}:
            return "answered"
        known = {"refuses": "refused", "closes": "closed"}
        told = next((ending for what, ending in known.items() if what in whats), "")
        return told or ("lost" if all(map(self._forward, self._seen())) else "unanswered")

    def _forward(self, packet: Packet) -> bool:
        return bool(packet["source"] == self.initiator)

    def _seen(self) -> list[Packet]:
        """Each packet once: as the namespace saw it that saw the first one."""
        return [each for each in self.packets if each["namespace"] == self.packets[0]["namespace"]]


def port(endpoint: str) -> int:
    """That of `address:port`."""
    return int(endpoint.rpartition(":")[2])


def host(endpoint: str) -> str:
    """The address of `address:port`."""
    return endpoint.rpartition(":")[0]


def flows(packets: Sequence[Packet]) -> list[Flow]:
    """By who began: a reply may come from another address than was asked, as it is translated back when it is sent.

    A connection's last words from before the trace began (no SYN, no payload) are no flow.
    """
    found: dict[tuple[str, str, str], Flow] = {}
    for packet in packets:
        protocol, place = str(packet["protocol"]), packet["namespace"] if packet["interface"] == "lo" else ""
        ends = [(protocol, place, str(packet[end])) for end in ("source", "target")]
        key = next((end for end in ends if end in found), None)
        if key is None and (packet["size"] or "SYN" in packet["flags"]):
            key = ends[0]
            found[key] = Flow(*key, [])
        if key is not None:
            found[key].packets.append(packet)
    split = [part for flow in found.values() for part in _questions(flow)]
    return sorted(split, key=lambda flow: flow.span[0])


def _questions(flow: Flow) -> Iterator[Flow]:
    """A UDP socket asks several questions, one after the other or at once."""
    if flow.protocol == "tcp":
        yield replace(flow, question=_question(_said(flow.packets)) if flow.kind == "DNS" else "")
        return
    asked = text.grouped((_question(packet["says"]), packet) for packet in flow.packets)
    for question, packets in asked.items():
        if any(each["source"] == flow.initiator for each in packets):
            yield replace(flow, packets=packets, question=question)


def _question(says: str) -> str:
    return says.removesuffix("?").partition(": ")[0]


def _stage(now: str, packet: Packet, forward: bool) -> str:
    """The stage that a packet begins or belongs to; back and forth after the first response is one stage."""
    if packet["size"] and now != "closes":
        return "requests" if forward and now != "responds" else "responds"
    if "RST" in packet["flags"] and not forward and now == "connects":
        return "refuses"
    if {"RST", "FIN"} & set(packet["flags"].split()):
        return "closes"
    return now or ("connects" if "SYN" in packet["flags"] else "requests")


def _said(packets: Sequence[Packet]) -> str:
    return next((str(each["says"]) for each in packets if each["says"]), "")
