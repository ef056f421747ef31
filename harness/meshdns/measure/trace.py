"""One request, and what every hop saw of it: packets in each namespace, address translations, counters that moved.

The document is plain JSON (`Trace.to_json`), stored with a run and drawn by the notebook. Nothing in it is inferred:
packets are captured, translations are the kernel's connection tracking entries, listeners and clusters are those whose
statistics moved, and which filter chain counts under which statistic is what Envoy says of its own configuration.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import dns.exception
import dns.message
import dns.rcode

from meshdns.core import errors, resolver
from meshdns.core.world import Pod, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, ports, rules
from meshdns.lab.channel import Channel
from meshdns.lab.place import Place
from meshdns.measure import capture, jobs
from meshdns.measure.factors.backend import TLS_CERTIFICATE

FRAME_BYTES = 2048  # whole packets: one request is small
TIMEOUT_MS = 2000
INTERFACES = ("eth0", "lo")
_FLAGS = ((0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"))
_UDP = 17


@dataclass(frozen=True)
class Target:
    """What is asked for."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """An http or https URL. Raises InputError."""
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (ValueError, KeyError):
            step = "give http://HOST[:PORT]/PATH or https://…"
            raise errors.InputError("not a URL that can be traced", place=url, step=step) from None
        if not parts.hostname:
            raise errors.InputError("names no host", place=url, step="give http://HOST[:PORT]/PATH")
        return cls(parts.scheme, parts.hostname, port, parts.path or "/")

    def job(self, world: World, client: Pod) -> dict[str, Any]:
        """One request of the load agent, as an application in the pod would make it."""
        head = f"GET {self.path} HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: meshdns\r\nConnection: close\r\n\r\n"
        tls = {"server_name": self.host, "cafile": TLS_CERTIFICATE} if self.scheme == "https" else None
        return {
            "kind": "request",
            "lookup": "wire",
            "wire": resolver.wire(self.host, "A", 5, world.search),
            "resolver": [world.dns_address(client), 53],
            "port": self.port,
            "request": head,
            "tls": tls,
            "count": 1,
            "timeout_ms": TIMEOUT_MS,
            "wait": "block",
        }


# An Envoy's listener, by its name in statistics -> prefix of a filter's statistics -> filter chains that have it.
Chains = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Seen:
    """A packet, where it was seen, and what it said."""

    at_us: float  # after the first packet
    namespace: str  # the pod
    interface: str
    protocol: str
    source: str
    target: str
    flags: str
    size: int
    says: str


@dataclass(frozen=True)
class Trace:
    """What was observed of one request."""

    arm: str
    url: str
    pods: dict[str, str]  # pod -> address, of every namespace that was watched
    request: dict[str, Any]  # outcome, status, answered address, replica, phases in ns
    packets: list[Seen]
    tracked: dict[str, list[str]]  # pod -> connection tracking entries of what was captured there
    rules: dict[str, dict[str, float]]  # pod -> rule -> packets, of connections in nat the first one only
    proxies: dict[str, dict[str, float]]  # pod -> Envoy statistic -> by how much it moved
    chains: dict[str, Chains]  # pod -> the filter chains of the listeners among these

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def observe(place: Place, watching: observers.Observers, agent: Channel, arm: str, url: str) -> Trace:
    """Trace one request from an arm's client. Raises InputError and TestbedError."""
    target, client = Target.parse(url), place.world.arms[arm]
    with contextlib.ExitStack() as stack:
        watched = {client.pod: watching[client.pod]}
        for pod in _namespaces(target, place.world, client):
            watched[pod] = stack.enter_context(place.talk(pod, observers.PROGRAM, image="observer"))
        chains = {pod: _chains(dump) for pod, channel in watched.items() if (dump := page(channel, "config_dump"))}
        before = {pod: _counted(place.world.named(pod), channel) for pod, channel in watched.items()}
        for channel in watched.values():
            channel.ask({"op": "capture", "interfaces": list(INTERFACES), "size": FRAME_BYTES}, capture.ASK_TIMEOUT_S)
        header, body = agent.ask(target.job(place.world, client), capture.ASK_TIMEOUT_S)
        # At once: the kernel forgets a connection that was reset after ten seconds, and all else may take as long.
        entries = {pod: _tracked(channel) for pod, channel in watched.items()}
        packets = list(_packets({pod: capture.taken(channel) for pod, channel in watched.items()}))
        after = {pod: _counted(place.world.named(pod), channel) for pod, channel in watched.items()}
    moved = {pod: _moved(before[pod].proxy, counted.proxy) for pod, counted in after.items() if counted.proxy}
    return Trace(
        arm,
        url,
        pods={pod: place.address(pod) for pod in watched},
        request=jobs.table(0, header, body).to_pylist()[0],
        packets=packets,
        tracked={pod: _used(pod, lines, packets) for pod, lines in entries.items()},
        rules={pod: _moved(before[pod].rules, counted.rules) for pod, counted in after.items()},
        proxies=moved,
        chains={pod: _of_moved(chains.get(pod, {}), statistics) for pod, statistics in moved.items()},
    )


def _namespaces(target: Target, world: World, client: Pod) -> list[str]:
    """Pods beside the client's whose packets are worth watching: the name server's and those behind the name."""
    service = next((each for each in world.told if target.host.split(".")[0] == each.name), None)
    return [world.dns_pod(client).pod, *(service.replicas if service else ())]


@dataclass(frozen=True)
class _Counted:
    """A pod's counters at one moment."""

    rules: dict[str, float]
    proxy: dict[str, float]  # empty without an Envoy


def _counted(pod: Pod, channel: Channel) -> _Counted:
    counted = channel.ask({"op": "snapshot", "rules": rules.counters(pod)}, capture.ASK_TIMEOUT_S)[0]["rules"]
    if mechanisms.ALL[pod.mechanism].programs:  # its programs count what rules count elsewhere, by the same names
        loader = page(channel, "counters", ports.PORT_LOADER) or {"counters": {}}
        counted |= {name: counted.get(name, 0) + count for name, count in loader["counters"].items()}
    said = page(channel, "stats?format=json&usedonly") or {"stats": []}
    return _Counted(counted, {each["name"]: each["value"] for each in said["stats"] if "value" in each})


def page(channel: Channel, path: str, port: int = ISTIO.admin_port) -> Any:
    """A JSON page on the pod's loopback; None where nobody answers."""
    body = observers.page(channel, {"url": f"http://127.0.0.1:{port}/{path}"})
    return json.loads(body) if body else None


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def _chains(dump: Mapping[str, Any]) -> Chains:
    """The listeners of an Envoy, from its own account of its configuration."""
    found: Chains = {}
    for listener in _listeners(dump):
        chains = [*listener.get("filter_chains", []), listener.get("default_filter_chain", {})]
        address = listener.get("address", {}).get("socket_address", {})
        name = listener.get("stat_prefix") or f"{address.get('address')}_{address.get('port_value')}"
        prefixes = found.setdefault(name, {})
        for number, chain in enumerate(chains, 1):
            counted = {each.get("typed_config", {}).get("stat_prefix", "") for each in chain.get("filters", [])}
            for prefix in counted - {""}:
                prefixes.setdefault(prefix, []).append(chain.get("name") or f"number {number}")
    return found


def _listeners(dump: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in dump["configs"]:
        for static in part.get("static_listeners", []):
            yield static["listener"]
        for dynamic in part.get("dynamic_listeners", []):
            yield dynamic.get("active_state", {}).get("listener", {})


def _of_moved(chains: Chains, moved: Mapping[str, float]) -> Chains:
    """Those of the listeners that the request reached."""
    return {name: each for name, each in chains.items() if any(key.startswith(f"listener.{name}.") for key in moved)}


_TUPLE = re.compile(r"\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")


def _used(pod: str, lines: list[str], packets: Sequence[Seen]) -> list[str]:
    """Connection tracking entries of packets that were captured in the pod, whether they are new or stood before.

    By their ends and not by what is new: a source port may come again while its last use is still remembered.
    """
    seen = {(each.protocol, *sorted((each.source, each.target))) for each in packets if each.namespace == pod}
    return [line for line in lines if seen & set(_ends(line))]


def _ends(line: str) -> Iterator[tuple[str, str, str]]:
    """The two ends of an entry, as they are before translation and after it."""
    protocol = "tcp" if " tcp " in f" {line} " else "udp"
    for source, target, sport, dport in _TUPLE.findall(line):
        first, second = sorted((f"{source}:{sport}", f"{target}:{dport}"))
        yield protocol, first, second


def _tracked(channel: Channel) -> list[str]:
    found: list[str] = channel.ask({"op": "tracked"}, capture.ASK_TIMEOUT_S)[0]["entries"]
    return found


def _packets(seen: Mapping[str, Mapping[str, bytes]]) -> Iterator[Seen]:
    """All packets in the order in which they passed; those of the observation itself are left out."""
    found = [
        (frame, pod, interface)
        for pod, pcaps in seen.items()
        for interface, pcap in pcaps.items()
        for frame in capture.frames(pcap)
        if not _OBSERVERS & {frame.source_port, frame.target_port}
    ]
    found.sort(key=lambda each: each[0].at_ns)
    for frame, pod, interface in found:
        yield Seen(
            (frame.at_ns - found[0][0].at_ns) / 1000,
            pod,
            interface,
            "udp" if frame.protocol == _UDP else "tcp",
            f"{frame.source}:{frame.source_port}",
            f"{frame.target}:{frame.target_port}",
            " ".join(name for bit, name in _FLAGS if frame.flags & bit),
            frame.size,
            _said(frame),
        )


# Pages that observers read, name servers' consoles: never part of an application's request.
_OBSERVERS = {ISTIO.admin_port, ISTIO.stats_port, ISTIO.status_port, ports.PORT_PAGES, ports.PORT_LOADER,
              ports.PORT_COREDNS_METRICS, ports.PORT_COREDNS_READY, 5199, 8083}  # fmt: skip


def _said(frame: capture.Frame) -> str:
    """DNS question and answer, the first line of HTTP, TLS as such."""
    if not frame.payload:
        return ""
    if {53, ports.PORT_DNS_DIRECT, ISTIO.dns_port} & {frame.source_port, frame.target_port}:
        return _dns(frame.payload if frame.protocol == _UDP else frame.payload[2:])
    if frame.payload[:1] in (b"\x16", b"\x17"):
        return "TLS handshake" if frame.payload[:1] == b"\x16" else "TLS data"
    first = frame.payload.split(b"\r\n", 1)[0]
    return first.decode("ascii", "replace") if b"HTTP/1" in first else ""


def _dns(wire: bytes) -> str:
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return ""
    question = " ".join(f"{q.name} {dns.rdatatype.to_text(q.rdtype)}" for q in message.question)
    if not message.flags & 0x8000:
        return f"{question}?"
    answers = ", ".join(str(record) for rrset in message.answer for record in rrset)
    return f"{question}: {answers or dns.rcode.to_text(message.rcode())}"
