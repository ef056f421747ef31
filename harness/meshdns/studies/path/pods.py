"""What was counted and remembered in a pod while a request passed: rules, connection tracking, Envoy's statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NOT_RECORDED = "not recorded"


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
    """What was counted and remembered in one pod; None: nobody watched there."""

    rules: Mapping[str, float] | None
    entries: tuple[Entry, ...] | None
    taken: Taken

    @property
    def moved(self) -> str:
        """`redirect_tcp 1`: what the rules counted."""
        if self.rules is None:
            return NOT_RECORDED
        return ", ".join(f"{name} {count:g}" for name, count in sorted(self.rules.items())) or "none"

    @property
    def tracked(self) -> str:
        """`tcp 10.96.1.10:80 → 127.0.0.1:15001`: the entries of connection tracking."""
        if self.entries is None:
            return NOT_RECORDED
        return "; ".join(f"{each.protocol} {each.ends}" for each in self.entries) or "none"


_TUPLE = re.compile(r"\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")
_ZONE = re.compile(r"\bzone(?:-\w+)?=(\d+)")


def entries(lines: Sequence[str]) -> tuple[Entry, ...]:
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


def taken(moved: Mapping[str, float], chains: Mapping[str, Mapping[str, Sequence[str]]]) -> Taken:
    """What the statistics tell; the chain is the one that counts under a moved filter's name in a moved listener."""
    listeners, filters, clusters = (
        list(dict.fromkeys(match[1] for name in sorted(moved) if (match := pattern.fullmatch(name))))
        for pattern in (_LISTENER, _FILTER, _CLUSTER)
    )
    matched = [" or ".join(chains.get(listener, {}).get(name, ())) for listener in listeners for name in filters]
    chain = " + ".join(dict.fromkeys(filter(None, matched)))
    return Taken(" + ".join(listeners), chain, " + ".join(filters), " + ".join(clusters))
