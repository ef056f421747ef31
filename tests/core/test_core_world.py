"""A world as a testbed with some of its groups has it."""

from __future__ import annotations

from meshdns.core.world import LIVE
from shipped import WORLD


def test_services_of_a_group_that_is_not_up_are_not_there_nor_is_what_belongs_to_them() -> None:
    without, shop = WORLD.of({"outside"}), WORLD.of({"shop"})
    assert WORLD.live_groups == {"shop", "dead", "autopath"}
    assert {"shop", "shop-headless", "api"} <= shop.backends.keys() - without.backends.keys()
    assert "shop-dead" in WORLD.backends.keys() - shop.backends.keys()
    assert {pod.pod for pod in shop.pods} - {pod.pod for pod in without.pods} == {f"shop-{n}" for n in range(1, 5)}
    kinds = ("Service", "EndpointSlice", "ServiceEntry", "Pod")
    names = {(each.document["kind"], each.document["metadata"]["name"]) for each in without.manifests}
    assert not {(kind, name) for kind in kinds for name in ("shop", "shop-headless", "shop-dns", "shop-1")} & names


def test_groups_that_hold_pods_alone_change_nothing_that_istio_is_told() -> None:
    usual = WORLD.of(())
    for group in WORLD.groups - WORLD.live_groups:
        assert WORLD.of({group}) == usual


def test_a_world_is_live_where_istios_own_control_plane_is_up_and_stays_so() -> None:
    live = WORLD.of({LIVE})
    assert (WORLD.of(()).live, live.live, live.of(()).live) == (False, True, True)
    assert "recorded" not in {pod.pod for pod in live.up({LIVE})}
    assert "recorded" in {pod.pod for pod in WORLD.of(()).up(())}


def test_a_backend_is_live_by_its_group() -> None:
    assert [WORLD.is_live(name) for name in ("shop", "shop-dead", "meshed", "none")] == [True, True, False, False]
