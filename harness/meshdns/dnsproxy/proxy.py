"""Decides where each query is answered: from the name table, from the cache, or by the servers of the real DNS.

`Proxy.answer` is the whole decision; `ready` holds finished answers by the exact bytes of the query, for the UDP loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from . import answer, cache, nametable, wire
from .metrics import Metrics
from .reactor import Countdown, Reactor
from .upstream import Forwarder

READY_BYTES = 96 << 20  # enough for 50,000 names, A and AAAA; then collected anew
READY_BYTES_EACH = 300  # beside the bytes of query and answer
RELEASED = 1000  # entries of an old table let go between two looks at the sockets: some 0.2 ms
Send = Callable[[bytes], None]


class Proxy:
    """Answers queries; holds the table in force."""

    def __init__(
        self, reactor: Reactor, forwarder: Forwarder, metrics: Metrics, style: answer.Style, kept: cache.Cache | None
    ) -> None:
        self.ready: dict[bytes, answer.Prepared] = {}
        self.table: nametable.NameTable | None = None
        self.generation = 0
        self._ready_bytes = 0
        self._reactor, self._forwarder, self._metrics = reactor, forwarder, metrics
        self._style, self._cache = style, kept
        # What sends a stale answer, for each client that waits while one lies ready.
        self._patience: Countdown[Callable[[], None]] = reactor.countdown(cache.STALE_WAIT_S, lambda serve: serve())

    def swap(self, table: nametable.NameTable) -> None:
        """From one query to the next the new table is in force."""
        old, self.table = self.table, table
        self.generation += 1
        self._forget_ready()
        if old:
            self._reactor.background(_release(old.names, old.wildcards))

    def text(self) -> str:
        """The metrics' page."""
        hosts = self.table.hosts if self.table else 0
        return self._metrics.text(self.generation, hosts, len(self._cache) if self._cache is not None else 0)

    def came_back(self, message: bytes, tcp: bool, client: tuple[Any, ...]) -> bool:
        """Whether this is our own question, which must not be asked again."""
        return self._forwarder.came_back(message, tcp, client)

    def answer(self, message: bytes, tcp: bool, send: Send) -> None:
        """`send` is called once with the answer, now or later, or never if there must be none."""
        try:
            query = wire.read_query(message)
        except wire.RefusedError as refused:
            if refused.rcode >= 0:
                self._metrics.tally(None, tcp, refused.rcode, "error").hits += 1
                send(wire.bare_reply(message, refused.rcode))
            return
        if self.table is None:
            self._reply(query, tcp, None, send)
            return
        found = None
        if query.qclass == wire.IN and query.qtype in (wire.A, wire.AAAA):
            found = self.table.find(query.name)
        if found and query.edns_version:
            self._metrics.tally(query, tcp, wire.BADVERS, "error").hits += 1
            send(wire.bad_version(query))
        elif found:
            self._local(query, tcp, found, send)
        else:
            self._forward(query, tcp, send)

    def _local(self, query: wire.Query, tcp: bool, found: nametable.Found, send: Send) -> None:
        limit = wire.MOST_TCP if tcp else query.udp_size
        tally = self._metrics.tally(query, tcp, wire.NOERROR, "local")
        prepared = answer.build(query, found, self._style, limit=limit, tally=tally, serial=self.generation)
        tally.hits += 1
        reply = query.message[:2] + (prepared.rest or prepared.shuffled())
        cut = reply[2] << 8 & wire.TC  # which addresses are left out must not stay the same
        if not tcp and not cut and len(reply) <= wire.LEAST_UDP and _repeats(query):
            size = READY_BYTES_EACH + len(query.message) + prepared.size
            if self._ready_bytes + size > READY_BYTES:
                self._forget_ready()
            self.ready[query.message[2:]] = prepared
            self._ready_bytes += size
        send(reply)

    def _forget_ready(self) -> None:
        old, self.ready = self.ready, {}
        self._ready_bytes = 0
        self._reactor.background(_release(old))

    def _reply(self, query: wire.Query, tcp: bool, reply: bytes | None, send: Send) -> None:
        """What the servers answered; SERVFAIL if none did."""
        source = "upstream" if reply is not None else "error"
        reply = reply if reply is not None else wire.bare_reply(query.message, wire.SERVFAIL)
        self._metrics.tally(query, tcp, reply[3] & 15, source).hits += 1
        send(reply)

    def _forward(self, query: wire.Query, tcp: bool, send: Send) -> None:
        if self._cache is not None and not query.options:
            self._through_cache(self._cache, query, tcp, send)
        else:
            self._forwarder.ask(query, tcp, lambda reply: self._reply(query, tcp, reply, send))

    def _through_cache(self, kept: cache.Cache, query: wire.Query, tcp: bool, send: Send) -> None:
        hit = kept.find(query, wire.MOST_TCP if tcp else query.udp_size)
        if hit and not hit.ask:
            self._count_hit(query, tcp, hit)
            send(hit.message)
            return

        def serve_stale() -> None:
            if hit:
                self._count_hit(query, tcp, hit)
                send(hit.message)

        if hit:
            self._patience.start(serve_stale)

        def done(reply: bytes | None) -> None:
            good = reply is not None and kept.store(query, reply)
            if not good:
                kept.failed(query)
            if hit:
                if serve_stale not in self._patience:  # served already
                    return
                self._patience.stop(serve_stale)
            if hit and not good:
                serve_stale()
            else:
                self._reply(query, tcp, reply, send)

        self._forwarder.ask(query, tcp, done)

    def _count_hit(self, query: wire.Query, tcp: bool, hit: cache.Hit) -> None:
        self._metrics.cache_hits["stale" if hit.stale else "fresh"] += 1
        self._metrics.tally(query, tcp, hit.message[3] & 15, "cache").hits += 1


def _repeats(query: wire.Query) -> bool:
    """Whether the same bytes will come again: no random spelling (DNS 0x20), no cookie, nothing unusual."""
    plain = wire.HEADER + len(query.question) + (wire.OPT_BYTES if query.edns else 0)
    return len(query.message) == plain and query.question[:-4] == query.name


def _release(*old: dict[bytes, Any]) -> Iterator[None]:
    """Lets go of large dictionaries bit by bit: at once, they would hold up the queries for tens of milliseconds."""
    for one in old:
        while one:
            for _ in range(min(RELEASED, len(one))):
                one.popitem()
            yield
