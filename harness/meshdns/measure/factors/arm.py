"""Who calls: a client pod of the world, or the calibration target's own client."""

from __future__ import annotations

from typing import Any, ClassVar

from meshdns.core.world import World
from meshdns.measure.cell import Cell
from meshdns.measure.factors.factor import Factor, Rules

NULL = "null"  # the calibration target is asked, from the plain pod


class Arm(Factor):
    """See the module."""

    bounds: ClassVar = {"null_delay_us": (0.0, 10_000.0)}

    def levels(self, world: World) -> dict[str, tuple[Any, ...]]:
        """Those of the world."""
        return {"arm": (*world.arms, NULL)}

    def rules(self, cell: Cell, world: World) -> Rules:
        """As (holds, rule)."""
        arm, request = cell.arm, cell.kind == "request"
        asks = "plain" in world.arms and any(pod.pod == "null-target" for pod in world.pods)
        yield arm != NULL or asks, "the arm null needs a world with the arm plain and the Pod null-target"
        yield (
            arm != "ip" or (request and cell.lookup == "none"),
            "the arm ip knows addresses: kind request, lookup none",
        )
        yield arm in ("ip", NULL) or cell.lookup != "none", "every arm but ip reaches its backend by name"
        yield arm == NULL or cell.null_delay_us == 0, "null_delay_us belongs to the arm null"
        yield (
            arm != NULL or (not request and cell.lookup == "wire" and cell.backend == "none"),
            "the arm null is the calibration target: kind lookup, lookup wire, no backend",
        )
        yield (
            arm != NULL or (cell.name_kind == "fqdn" and not cell.dns_delay_ms),
            "the calibration target asks no DNS server: name_kind fqdn, no dns_delay_ms",
        )
