"""The evaluator against the kernel: every counter of every rule, and where each packet went, for both mechanisms."""

from __future__ import annotations

import os
from random import Random

import asking
import pytest

from meshdns.interception import ruleset
from meshdns.interception.conventions import ALL, ISTIO, Conventions
from meshdns.interception.options import from_json
from meshdns.interception.ruleset import FAMILIES

# Sets of options, each by both mechanisms with 60 packets: 20 s; a fifth as many for the other meshes.
# INTERCEPTION_SEEDS=1000:3000 looks at others.
FIRST, LAST = map(int, os.environ.get("INTERCEPTION_SEEDS", "0:30").split(":"))


@pytest.mark.parametrize("mechanism", ["iptables", "nftables"])
@pytest.mark.parametrize(
    ("mesh", "seed"),
    [
        (mesh, seed)
        for mesh in ALL.values()
        for seed in range(FIRST, LAST if mesh is ISTIO else FIRST + (LAST - FIRST) // 5)
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_kernel_does_to_each_packet_what_the_evaluator_says(mesh: Conventions, seed: int, mechanism: str) -> None:
    asking.needs_kernel()
    rng = Random(seed)
    options = from_json(asking.option_values(rng, mesh), "options")
    outbound_tproxy = mesh is ISTIO and rng.random() < 1 / 3
    rules = ruleset.build(options, *FAMILIES, outbound_tproxy=outbound_tproxy)
    sent = [asking.routed(rules, packet) for packet in asking.packets(rng, (mesh.uid, mesh.uid))]
    expected = asking.predicted(mechanism, options, outbound_tproxy, sent)
    kept = len(expected["arrived"]) + len(expected["left"])
    seen = asking.observed(mechanism, options, outbound_tproxy, sent, kept)
    assert seen["arrived"] == expected["arrived"]
    assert seen["left"] == expected["left"]
    assert seen["hits"] == expected["hits"]
    dropped = sum(packet.state == "INVALID" for packet in sent) if options.drop_invalid else 0
    assert kept >= len(sent) - dropped  # none was lost on the way
