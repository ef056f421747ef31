"""Which name is looked up, how, and for which type."""

from __future__ import annotations

from dataclasses import replace

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, World
from meshdns.lab import names
from meshdns.measure.cell import Cell
from meshdns.measure.factors import backend
from meshdns.measure.factors.factor import Factor, Job, Rules

_LIBC_S = 0.0007  # what a call of getaddrinfo takes, with its files (rounded from data/sample)


class Name(Factor):
    def levels(self, world: World) -> Limits:
        return {
            "lookup": ("none", "wire", "getaddrinfo"),
            "name_kind": ("fqdn", "short", "external", "absent"),
            "qtype": ("A", "AAAA", "A+AAAA"),
            "ndots": tuple(range(16)),  # resolv.conf(5): capped at 15
        }

    def rules(self, cell: Cell, world: World) -> Rules:
        request, by_libc = cell.kind == "request", cell.lookup == "getaddrinfo"
        yield request or cell.lookup != "none", "a lookup needs lookup wire or getaddrinfo"
        yield not request or cell.name_kind in ("fqdn", "short"), "requests go to names of the cluster: fqdn or short"
        yield (
            not by_libc or (cell.arrival == "closed" and cell.concurrency == 1),
            "getaddrinfo blocks its caller: arrival closed, concurrency 1",
        )
        yield not by_libc or cell.wait == "block", "getaddrinfo waits in the C library: wait block"
        yield cell.lookup == "none" or not request or "A" in cell.qtype.split("+"), "a request needs an IPv4 address: A"
        yield (
            not by_libc or request or cell.connection == "none",
            "getaddrinfo has sockets of its own: a lookup by it has connection none",
        )

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        name = names.application_name(world, cell.name_kind, backend.service_of(cell, world))
        asked = replace(so_far, name=name, server=world.dns_address(world.arms.get(cell.arm)))
        # An A-only name has no AAAA, an absent name no address: that is the answer, not a failure.
        only = cell.qtype == "AAAA"
        return asked.having(lookup=cell.lookup, accept_nodata=only, accept_nxdomain=only or cell.name_kind == "absent")

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        return _LIBC_S if cell.lookup == "getaddrinfo" else so_far_s
