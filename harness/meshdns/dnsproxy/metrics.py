"""Counts of requests and of what the servers did, as Prometheus text; served over HTTP by `Page`.

The first four metrics are those of Istio's agent, with its buckets; the labels and the rest are what its users ask for.
A counter is looked up when an answer is prepared, not when it is given: the hot path adds one to it and no more.
"""

from __future__ import annotations

import bisect
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import wire
from .answer import Tally
from .reactor import Reactor
from .stream import Acceptor, Stream

BUCKETS_S = (0.001, 0.005, 0.01, 0.1, 1.0, 5.0)  # Istio's
NAMES = 1000  # names with a count of their own; clients choose names, so the rest share one
OTHER = "other"
REQUEST_BYTES = 8192  # an HTTP request that is longer is none of ours
PAGES = 16  # connections at a time
PAGE_IDLE_S = 10.0
_RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS"}
_TYPES = {wire.A: "A", wire.AAAA: "AAAA"}


class Label(NamedTuple):
    """What requests are told apart by."""

    name: str
    transport: str  # udp, tcp
    rcode: str
    qtype: str  # A, AAAA, other
    source: str  # local, cache, upstream, error


class Metrics:
    """Every counter of the process. Switched off, they all are one that nobody reads."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.upstream_requests = 0  # questions put to the servers
        self.upstream_failures = 0  # that all of them failed
        self.upstream_s = 0.0
        self.cache_hits = {"fresh": 0, "stale": 0}
        self.table_loads = {"good": 0, "wrong": 0}
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._tallies: dict[Label, Tally] = {}
        self._names: set[str] = set()
        self._unread = Tally()

    def tally(self, query: wire.Query | None, tcp: bool, rcode: int, source: str) -> Tally:
        """The counter for answers of this kind."""
        if not self.enabled:
            return self._unread
        name = wire.show_name(query.name) if query else OTHER
        if name not in self._names:
            if len(self._names) < NAMES:
                self._names.add(name)
            else:
                name = OTHER
        qtype = _TYPES.get(query.qtype, OTHER) if query else OTHER
        label = Label(name, "tcp" if tcp else "udp", _RCODES.get(rcode, OTHER), qtype, source)
        return self._tallies.setdefault(label, Tally())

    def took(self, seconds: float) -> None:
        """From the question to the answer or to the end of hope."""
        self.upstream_s += seconds
        self._buckets[bisect.bisect_left(BUCKETS_S, seconds)] += 1

    def text(self, generation: int, names: int, cached: int) -> str:
        """All of it, in Prometheus' text format 0.0.4."""
        return "\n".join(self._lines(generation, names, cached)) + "\n"

    def _lines(self, generation: int, names: int, cached: int) -> Iterator[str]:
        requests: dict[str, int] = {}
        by_name: dict[str, int] = {}
        for label, tally in self._tallies.items():
            kind = ",".join(f'{key}="{value}"' for key, value in list(label._asdict().items())[1:])
            requests[kind] = requests.get(kind, 0) + tally.hits
            by_name[label.name] = by_name.get(label.name, 0) + tally.hits
        yield from _family("dns_requests_total", "counter", "DNS requests answered.", requests)
        asked, failed = {"": self.upstream_requests}, {"": self.upstream_failures}
        yield from _family("dns_upstream_requests_total", "counter", "Requests forwarded.", asked)
        yield from _family("dns_upstream_failures_total", "counter", "Requests that every server failed.", failed)
        yield from self._histogram()
        per_name = {f'name="{_escaped(name)}"': count for name, count in by_name.items()}
        what = f"DNS requests per name; the first {NAMES} names."
        yield from _family("dns_name_requests_total", "counter", what, per_name)
        hits = {f'kind="{kind}"': count for kind, count in self.cache_hits.items()}
        yield from _family("dns_cache_hits_total", "counter", "Requests answered from the cache.", hits)
        yield from _family("dns_cache_entries", "gauge", "Answers in the cache.", {"": cached})
        yield from _family("dns_name_table_generation", "gauge", "Name tables taken over.", {"": generation})
        yield from _family("dns_name_table_hosts", "gauge", "Hosts in the name table.", {"": names})
        loads = {f'result="{result}"': count for result, count in self.table_loads.items()}
        yield from _family("dns_name_table_loads_total", "counter", "Name table files read.", loads)

    def _histogram(self) -> Iterator[str]:
        name = "dns_upstream_request_duration_seconds"
        yield f"# HELP {name} Time until the upstream servers answered."
        yield f"# TYPE {name} histogram"
        count = 0
        for bound, inside in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            count += inside
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.upstream_s:.9f}"
        yield f"{name}_count {count}"


def _family(name: str, kind: str, text: str, values: dict[str, int]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for label, value in values.items():
        yield f"{name}{{{label}}} {value}" if label else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


class Page:
    """GET /metrics and /healthz/ready (503 before the first name table, as in Istio); HTTP/1.0, one request each."""

    def __init__(
        self, reactor: Reactor, sock: socket.socket, text: Callable[[], str], ready: Callable[[], bool]
    ) -> None:
        self._text, self._ready = text, ready
        self._acceptor = Acceptor(reactor, sock, self._received, most=PAGES, idle_s=PAGE_IDLE_S)

    def close(self) -> None:
        """No more pages."""
        self._acceptor.close()

    def _received(self, stream: Stream) -> None:
        head, found, _ = bytes(stream.incoming).partition(b"\r\n\r\n")
        if not found:
            if stream.ended or len(stream.incoming) > REQUEST_BYTES:
                stream.close()
            return
        stream.incoming.clear()
        words = head.split(b"\r\n")[0].split()
        path = words[1] if len(words) == 3 and words[0] == b"GET" else b""
        status, body = "404 Not Found", "ask for /metrics or /healthz/ready\n"
        if path == b"/metrics":
            status, body = "200 OK", self._text()
        elif path == b"/healthz/ready":
            ready = self._ready()
            status, body = ("200 OK", "ready\n") if ready else ("503 Service Unavailable", "no name table yet\n")
        stream.finish(
            f"HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            f"Content-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}".encode()
        )
