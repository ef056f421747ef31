"""Who calls: a client pod of the world, or the calibration target's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshdns.core.world import World
from meshdns.measure.cell import Cell

NULL = "null"  # the calibration target is asked, from the plain pod
BOUNDS = {"null_delay_us": (0.0, 10_000.0)}


def levels(world: World) -> dict[str, tuple[Any, ...]]:
    """Those of the world."""
    return {"arm": (*world.arms, NULL)}


def rules(cell: Cell, _: World) -> Iterator[tuple[bool, str]]:
    """As (holds, rule)."""
    arm, request = cell.arm, cell.kind == "request"
    yield arm != "ip" or (request and cell.lookup == "none"), "the arm ip knows addresses: kind request, lookup none"
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
