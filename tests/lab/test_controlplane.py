"""What `meshdns status` says of the control plane."""

from __future__ import annotations

from typing import Any

import pytest

from meshdns.lab import controlplane
from shipped import WORLD

SETTLED = {"settled": True}


def status(**more: Any) -> dict[str, Any]:
    """All is as it should be."""
    pods = [pod.pod for pod in (*WORLD.clients, *WORLD.meshed) if pod.managed]
    nodes = {f"{WORLD.namespace}/{pod}": {"connected": True, "types": {"LDS": SETTLED}} for pod in pods}
    return {
        "configuration": {"number": 3, "resources": {"Service": 2}, "error": "", "fault": ""},
        "sidecar_faults": {},
        "conflicts": {"count": 0, "first": []},
        "nodes": nodes,
        "dns": None,
        "name_tables": {"/names": {"bytes": 1, "error": ""}},
        "names_pending": False,
        **more,
    }


def conflict(n: int) -> dict[str, Any]:
    return {"mode": 1, "listener": "0.0.0.0_5432", "loser": f"db{n}.example.com", "winner": "db.example.com",
            "why": "the first wins"}  # fmt: skip


def test_what_is_in_order_is_two_lines() -> None:
    given = status()
    assert list(controlplane.unsettled(given, WORLD)) == []
    assert list(controlplane.summary(given, WORLD)) == [
        "control plane: configuration 3 is in force: 2 Service",
        f"control plane: {len(given['nodes'])} sidecars have accepted all they were sent",
    ]


def test_a_rejection_is_told_with_its_reason() -> None:
    given = status()
    name = next(iter(given["nodes"]))
    given["nodes"][name]["types"]["LDS"] = {"settled": True, "rejected": {"reason": "duplicate listener"}}
    assert f"{name} rejects LDS: duplicate listener" in list(controlplane.summary(given, WORLD))


@pytest.mark.parametrize("count", [1, 7])
def test_services_that_lose_their_listener_are_told_and_counted(count: int) -> None:
    lines = list(
        controlplane.summary(status(conflicts={"count": count, "first": [conflict(n) for n in range(count)]}), WORLD)
    )
    assert "conflict: in mode 1, db0.example.com loses listener 0.0.0.0_5432 to db.example.com: the first wins" in lines
    assert ("conflict: 2 more, 7 in all; see `meshdns validate`" in lines) == (count == 7)


@pytest.mark.parametrize("error", ["", "/names: the name table cannot be written"])
def test_names_that_are_not_told_keep_the_testbed_waiting(error: str) -> None:
    given = status(names_pending=True, name_tables={"/names": {"bytes": 1, "error": error}})
    assert list(controlplane.unsettled(given, WORLD)) == [error or "new names are not told yet"]
