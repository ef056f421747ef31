"""How clients know endpoints, by the world alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from meshdns.core.world import World
from meshdns.studies.change import ways
from shipped import WORLD


def told(change: Callable[[str], str]) -> World:
    """The world in which every Corefile is changed so."""

    def changed(document: Any) -> Any:
        if "Corefile" not in document.get("data", {}):
            return document
        return document | {"data": {"Corefile": change(document["data"]["Corefile"])}}

    manifests = (dataclasses.replace(each, document=changed(each.document)) for each in WORLD.manifests)
    return dataclasses.replace(WORLD, manifests=tuple(manifests))


@pytest.mark.parametrize(
    ("backend", "arm", "way"),
    [
        ("shop", "plain", "ClusterIP"),
        ("shop", "mode2-agent", "EDS"),
        ("shop-dns", "mode2-agent", "STRICT_DNS"),
        ("shop-headless", "mode2-agent", "name table"),
        ("shop-headless", "mode2-envoy", "cluster DNS, no cache"),  # a name that Envoy's filter does not have
        ("shop-headless", "plain-cache", "cluster DNS, cache 30 s"),
        ("shop-headless", "plain-nocache", "cluster DNS, no cache"),
        ("shop-headless", "plain-nodelocal", "cluster DNS, node's cache"),
        ("nowhere", "plain", "nowhere"),
    ],
)
def test_the_way_is_that_of_the_shipped_world(backend: str, arm: str, way: str) -> None:
    assert ways.endpoints(WORLD, backend, WORLD.arms[arm]) == way
    assert ways.is_name(way) == (backend == "shop-headless")


def test_what_the_cluster_dns_keeps_stands_in_its_corefile() -> None:
    def of(world: World, arm: str) -> str:
        return ways.endpoints(world, "shop-headless", world.arms[arm])

    longer = told(lambda text: text.replace("cache 30", "cache 300"))
    assert of(longer, "plain-cache") == "cluster DNS, cache 300 s"
    assert of(longer, "plain") == "cluster DNS, no cache"
    elsewhere = told(lambda text: text.replace("disable success cluster.local", "disable success example.com"))
    assert of(elsewhere, "plain") == "cluster DNS, cache 30 s"
    denials = told(lambda text: text.replace("disable success cluster.local", ""))
    assert of(denials, "plain") == "cluster DNS, cache 30 s"
