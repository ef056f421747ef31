"""What is called."""

from __future__ import annotations

from dataclasses import replace

from meshdns.core.schema import Limits
from meshdns.core.world import Nets, Service, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors.factor import Factor, Job, Rules

TLS_CERTIFICATE = "/tls/certificate/tls.crt"  # where the client container has it
# A broken TLS record: the shortest question that both servers answer, each in its own words (an alert; -ERR).
_TCP_PAYLOAD = "16030a0004ff000000"
_TCP_ANSWERS = {"postgres": ["53", "4e", "1503"], "redis": ["2b504f4e47", "2d455252"]}
_PUSHED_S = 0.0006  # longer than another request in a closed loop, rounded from data/sample


def service_of(cell: Cell, world: World) -> Service:
    """The service a cell is about; lookups are of one."""
    return world.backends.get(cell.backend, world.looked_up)


class Backend(Factor):
    def levels(self, world: World) -> Limits:
        return {"backend": (*world.backends, "none")}

    def rules(self, cell: Cell, world: World) -> Rules:
        by_address = cell.backend in {each.backend for each in world.inbound}
        live, client = world.is_live(cell.backend), world.arms.get(cell.arm)
        request, bare = cell.kind == "request", client is None or not client.sidecar
        yield request == (cell.backend != "none"), "a request needs a backend, a lookup has none"
        entry = cell.backend in world.backends and world.backends[cell.backend].external
        yield not (entry and bare) or live, "a ServiceEntry of Istio's is called by arms with a sidecar"
        yield cell.lookup == "none" or not by_address, "one replica alone is called by its address: lookup none"
        wired = not cell.tls and cell.lookup == "wire"
        yield not live or wired, "a backend that Istio's own control plane tells of: no tls, lookup wire"

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        if cell.kind != "request":
            return so_far
        service = service_of(cell, world)
        if service.name in _TCP_ANSWERS:
            tcp = {"payload": _TCP_PAYLOAD, "answers": _TCP_ANSWERS}
            return replace(so_far, path="").having(address="", port=service.ports[0], tls=None, tcp=tcp)
        tls = {"server_name": service.host, "cafile": TLS_CERTIFICATE} if cell.tls else None
        named = replace(so_far, head=(f"Host: {service.host}", *so_far.head))
        return named.having(address="", port=service.ports[cell.tls], tls=tls)

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        return so_far_s + _PUSHED_S if world.is_live(cell.backend) else so_far_s
