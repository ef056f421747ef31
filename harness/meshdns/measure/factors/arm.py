"""Who calls: a client pod of the world, or the calibration target's own client."""

from __future__ import annotations

from dataclasses import replace

from meshdns.core.schema import Bounds, Limits
from meshdns.core.world import Nets, World
from meshdns.measure.cell import Cell
from meshdns.measure.factors import backend
from meshdns.measure.factors.factor import Factor, Job, Rules

NULL = "null"  # the calibration target is asked, from the plain pod
_NULL_NAME = "d{delay:g}.null."  # it busy-waits for the microseconds that its question names


class Arm(Factor):
    def levels(self, world: World) -> Limits:
        return {"arm": (*world.arms, NULL), "null_delay_us": Bounds(0, 10_000)}

    def rules(self, cell: Cell, world: World) -> Rules:
        arm, request = cell.arm, cell.kind == "request"
        asks = "plain" in world.arms and any(pod.pod == "null-target" for pod in world.pods)
        yield arm != NULL or asks, "the arm null needs a world with the arm plain and the Pod null-target"
        bare = arm in world.arms and not world.arms[arm].sidecar
        yield (
            cell.lookup != "none" or (request and bare),
            "lookup none calls a pod by its address: kind request, an arm without a sidecar",
        )
        yield arm == NULL or cell.null_delay_us == 0, "null_delay_us belongs to the arm null"
        yield (
            arm != NULL or (not request and cell.lookup == "wire" and cell.backend == "none"),
            "the arm null is the calibration target: kind lookup, lookup wire, no backend",
        )
        yield (
            arm != NULL or (cell.name_kind == "fqdn" and not cell.dns_delay_ms),
            "the calibration target asks no DNS server: name_kind fqdn, no dns_delay_ms",
        )

    def job(self, so_far: Job, cell: Cell, world: World, nets: Nets) -> Job:
        if cell.arm == NULL:
            name = _NULL_NAME.format(delay=cell.null_delay_us)
            return replace(so_far, name=name, server=world.address(nets, "null-target"))
        if cell.lookup == "none":  # it names a pod, and so the container's own port
            service = backend.service_of(cell, world)
            return so_far.having(address=nets.pod(service.hosts[0]), port=service.target_ports[cell.tls])
        return so_far

    def request_s(self, so_far_s: float, cell: Cell, world: World, timeout_s: float) -> float:
        return so_far_s + cell.null_delay_us / 1e6
