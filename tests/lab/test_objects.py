"""Istio is told the world, and nothing of the laboratory."""

from __future__ import annotations

import json

from meshdns.core.world import Nets
from meshdns.lab import objects
from shipped import WORLD

TOLD = objects.told(WORLD)


def test_nothing_that_is_ours_is_told() -> None:
    assert "meshdns/" not in json.dumps([each.document["metadata"] for each in TOLD])
    assert not [each for each in TOLD if (each.kind, each.name) == ("ConfigMap", "meshdns")]
    names = {(each.kind, each.name) for each in TOLD}
    assert {("Pod", "client-mode1"), ("EndpointSlice", "web"), ("EnvoyFilter", "dns-filter")} <= names


def test_services_of_a_group_are_told_with_it_and_with_their_endpoints_and_pods() -> None:
    def told(*groups: str) -> set[tuple[str, str]]:
        return {(each.kind, each.name) for each in objects.told(WORLD.of(groups))}

    own = {("Service", "shop"), ("EndpointSlice", "shop"), ("ServiceEntry", "shop-dns"), ("Pod", "shop-1")}
    assert not own & told("dead")
    assert own <= told("shop")
    assert told("shop", "dead") - told("shop") == {
        ("Service", "shop-dead"), ("EndpointSlice", "shop-dead"), ("Pod", "shop-dead"),
    }  # fmt: skip


def test_the_oldest_come_first() -> None:
    ages = [each.created for each in TOLD]
    assert ages == sorted(ages)


def test_addresses_move_with_the_networks_and_others_stay() -> None:
    text = json.dumps([each.document for each in objects.told(WORLD, Nets("198.18.7", "198.19.7"))])
    assert "198.18.0." not in text
    assert all(address in text for address in ("198.18.7.21", "10.96.1.10", "240.240.0.10"))


def test_only_whole_octets_are_an_address_of_a_network() -> None:
    move = objects.mover(Nets(), Nets("198.18.7", "198.19.7"))
    assert move("a 198.18.0.5:80, 1198.18.0.5 and 198.18.0_5") == "a 198.18.7.5:80, 1198.18.0.5 and 198.18.0_5"
