"""How requests come, what they are, and who makes them."""

from __future__ import annotations

from dataclasses import replace

from meshdns.core.schema import Bounds, Limits
from meshdns.core.world import Nets, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors.arm import NULL
from meshdns.measure.factors.factor import Factor, Job, Rules

BODY_SIZES = (0, 1024, 16384, 131072, 1048576)  # files in the web image
# What one request of a closed loop takes, rounded from the cells of data/sample (two CPUs): for expectations only.
_LOOKUP_S, _REQUEST_S = 0.0001, 0.0003
_OTHER_S = 0.1  # another load generator starts, and writes down what it saw


def _others(cell: Cell) -> Rules:
    """What other load generators can measure."""
    kept = cell.connection == "keepalive" and cell.arm != NULL and (cell.lookup != "none" or cell.kind == "lookup")
    yield cell.tool == "agent" or cell.arrival == "closed", "other load generators run closed loops"
    yield (
        cell.tool != "h2load" or (cell.kind == "request" and kept and not cell.tls and cell.fault == "none"),
        "h2load asks a Service: kind request, connection keepalive, no tls, no fault, no lookup none, not arm null",
    )
    yield (
        cell.tool != "dnsperf"
        or (cell.kind == "lookup" and kept and cell.lookup == "wire" and cell.name_kind == "fqdn"),
        "dnsperf asks by wire: kind lookup, connection keepalive, lookup wire, name_kind fqdn, not arm null",
    )
    yield cell.tool != "dnsperf" or "+" not in cell.qtype, "dnsperf asks for one type: qtype A or AAAA"


class Load(Factor):
    def levels(self, world: World) -> Limits:
        return {
            "kind": ("lookup", "request"),
            "connection": ("new", "keepalive", "none"),
            "arrival": ("closed", "constant", "poisson"),
            "wait": ("spin", "block"),
            "tool": ("agent", "h2load", "dnsperf"),
            "body_bytes": BODY_SIZES,
            "rate_hz": Bounds(0, 20_000),
            "concurrency": Bounds(1, 1000),
        }

    def rules(self, cell: Cell, world: World) -> Rules:
        request, opened = cell.kind == "request", cell.arrival != "closed"
        yield not request or cell.connection != "none", "a request needs connection new or keepalive"
        yield (
            request or cell.connection != "new",
            "a lookup has connection none, or keepalive to use one socket for all",
        )
        yield (cell.rate_hz > 0) == opened, "open loops need rate_hz above 0, closed loops have none"
        yield request or not (cell.body_bytes or cell.tls), "a lookup has neither body_bytes nor tls"
        yield from _others(cell)

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        arrival = {"process": cell.arrival, "rate_hz": cell.rate_hz, "concurrency": cell.concurrency}
        connection = "keepalive" if cell.connection == "keepalive" else "new"
        made = so_far.having(kind=cell.kind, connection=connection, arrival=arrival, wait=cell.wait)
        if cell.kind != "request":
            return made
        # A one-off request says so, as one-off clients do; the server then closes first and keeps the port's TIME_WAIT.
        close = ("Connection: close",) if cell.connection == "new" else ()
        return replace(made, path=f"/bytes/{cell.body_bytes}", head=("User-Agent: meshdns", *close))

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        return so_far_s + (_LOOKUP_S if cell.kind == "lookup" else _REQUEST_S)

    def seconds(self, cell: Cell, before: Cell | None) -> float:
        return _OTHER_S if cell.tool != "agent" else 0.0
