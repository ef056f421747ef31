"""Whether name table, cluster DNS and sidecars agree, told from facts where they do and where they do not."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import policies_world
from meshdns import store
from meshdns.istio import nametable, reader, records, registry, vips
from meshdns.studies import verdict
from meshdns.studies.policies import answer, claims, pushed
from meshdns.xds import api
from meshdns.xds.compile import snapshot
from meshdns.xds.node import Node
from policies_world import HOSTS, SHOP, VIRTUAL
from shipped import WORLD, mesh


def table(facts: dict[str, Any]) -> pd.DataFrame:
    header = store.RunHeader("policies-1", {}, 1, "2026-01-01T00:00:00Z", 2, facts)
    return pushed.table(store.Runs(pd.DataFrame(), pd.DataFrame(), [header], [], WORLD))


def lacking(facts: dict[str, Any], host: str) -> str:
    found = table(facts).set_index("name").loc[host]
    assert found["agree"] is False
    return "; ".join(found["lacking"])


def test_what_one_model_feeds_agrees() -> None:
    found = table(policies_world.pushed())
    assert set(found["agree"]) == {True}
    kinds = dict(zip(found["name"], found["address"], strict=True))
    assert kinds[SHOP] == "ClusterIP"
    assert kinds["shop-headless.shop.svc.cluster.local"] == "pods"
    assert kinds[HOSTS["redis"]] == "virtual"
    assert "All 5 names" in answer.pushed_answer(found)
    assert claims.one_model(found).verdict == verdict.SUPPORTED
    assert "3 have a virtual address" in claims.one_model(found).numbers


def test_names_of_several_runs_are_counted_once() -> None:
    facts = policies_world.pushed()
    headers = [store.RunHeader(f"run-{n}", {}, 1, "2026-01-01T00:00:00Z", 2, facts) for n in range(2)]
    found = claims.one_model(pushed.table(store.Runs(pd.DataFrame(), pd.DataFrame(), headers, [], WORLD)))
    assert found.numbers.startswith("5 of 5 names agree in 2 runs; 3 have a virtual address")


def test_a_virtual_address_without_a_cluster_or_a_listener_is_found() -> None:
    told = policies_world.pushed()["pushed"]
    fewer = {pod: [each for each in names if "redis" not in each] for pod, names in told["clusters"].items()}
    assert lacking(policies_world.pushed(clusters=fewer), HOSTS["redis"]) == (
        "client-mode1-xds: no cluster; client-mode2-xds: no cluster; client-mode2-envoy-xds: no cluster"
    )
    silent = {pod: [each for each in names if VIRTUAL["redis"] not in each] for pod, names in told["listeners"].items()}
    facts = policies_world.pushed(listeners=silent)
    silent_ones = ("client-mode2-xds", "client-mode2-envoy-xds")
    assert lacking(facts, HOSTS["redis"]) == "; ".join(
        f"{each}: no listener for {VIRTUAL['redis']}:6000" for each in silent_ones
    )
    found = claims.one_model(table(facts))
    assert found.verdict == verdict.REFUTED
    assert HOSTS["redis"] in found.because
    assert f"1 disagree with the rest: {HOSTS['redis']}" in answer.pushed_answer(table(facts))


@pytest.mark.parametrize(
    ("records", "why"),
    [({SHOP: ["10.96.1.99"]}, "cluster DNS: other addresses"), ({}, "cluster DNS: not this name")],
)
def test_records_that_differ_are_found(records: dict[str, list[str]], why: str) -> None:
    assert lacking(policies_world.pushed(records=records), SHOP) == why


def test_names_are_the_same_with_and_without_their_final_dot() -> None:
    told = policies_world.pushed()["pushed"]
    dotted = {f"{name}.": found for name, found in told["records"].items()}
    assert set(table(policies_world.pushed(records=dotted))["agree"]) == {True}


def test_a_sidecars_own_configuration_serves_where_nothing_else_was_noted() -> None:
    told = policies_world.pushed()["pushed"]
    facts = policies_world.pushed(clusters={}, listeners={})
    assert any(each is None for each in table(facts)["agree"])
    assert claims.one_model(table(facts)).verdict == verdict.UNDECIDED
    assert "could not be compared" in answer.pushed_answer(table(facts))
    dump = {
        "configs": [
            {"static_clusters": []},
            {"dynamic_active_clusters": [{"cluster": {"name": name}} for name in told["clusters"]["client-mode2-xds"]]},
            {
                "dynamic_listeners": [
                    *({"name": name, "active_state": {}} for name in told["listeners"]["client-mode2-xds"]),
                    {"name": "warming", "warming_state": {}},
                ]
            },
        ]
    }
    facts["envoy"] = {"client-mode2-xds": dump, "client-mode1": {"configs": []}}
    found = table(facts)
    assert set(found["agree"]) == {True}
    assert set(found["sidecars"]) == {1}


def filtering(**other: list[str]) -> dict[str, Any]:
    """Facts with the configuration of a sidecar whose DNS filter answers what the others do, but for these names."""
    facts = policies_world.pushed()
    answers = {**facts["pushed"]["names"], **{HOSTS[name]: ips for name, ips in other.items()}}
    domains = [{"name": name, "endpoint": {"address_list": {"address": ips}}} for name, ips in answers.items() if ips]
    config = {"typed_config": {"server_config": {"inline_dns_table": {"virtual_domains": domains}}}}
    dns = {"name": "dns_udp", "active_state": {"listener": {"listener_filters": [config]}}}
    return facts | {"envoy": {"client-mode2-envoy-xds": {"configs": [{"dynamic_listeners": [dns]}]}}}


def test_a_dns_filter_was_told_what_the_other_proxies_were() -> None:
    found = table(filtering())
    assert set(found["agree"]) == {True}
    assert set(found["dns_filters"]) == {1}
    assert answer.pushed_answer(found).endswith("; Envoy's DNS filter got the same.")
    assert "filter" not in answer.pushed_answer(table(policies_world.pushed()))
    other = "client-mode2-envoy-xds: other addresses in its DNS filter"
    assert lacking(filtering(redis=["240.240.0.9"]), HOSTS["redis"]) == other
    assert lacking(filtering(redis=[]), HOSTS["redis"]) == "client-mode2-envoy-xds: not this name in its DNS filter"
    assert claims.one_model(table(filtering(redis=[]))).verdict == verdict.REFUTED


def test_runs_without_a_control_plane_have_nothing_to_say() -> None:
    found = table({})
    assert found.empty
    assert answer.pushed_answer(found) == ""
    assert claims.one_model(found).verdict == verdict.UNMEASURED


def shipped(*, dns: str = "agent") -> dict[str, Any]:
    """Facts as the control plane would make them of what it is told, for one sidecar."""
    given = reader.parse(mesh())
    virtual = vips.assign(vips.Allocation(), vips.wanted(given), vips.reserved(given)).addresses
    whole = registry.build(given, virtual)
    found = snapshot(whole, Node("client", WORLD.namespace, "198.18.0.54", dns=dns))
    held: dict[str, list[str]] = {}
    for each in records.build(whole):
        if each.rtype == "A":
            held.setdefault(each.name, []).append(each.data)
    return {
        "pushed": {
            "names": {host: list(name.ips) for host, name in nametable.build(whole).items()},
            "records": held,
            "clusters": {"client": list(found[api.CLUSTER])},
            "listeners": {"client": list(found[api.LISTENER])},
        }
    }


def test_the_shipped_mesh_agrees_with_itself() -> None:
    found = table(shipped()).set_index("name")
    assert found.loc[~found["agree"].astype(bool), "lacking"].to_dict() == {}
    assert {"virtual", "ClusterIP", "pods"} <= set(found["address"])
    for name in ("api", "postgres", "redis"):
        assert found.loc[WORLD.backends[name].host, "address"] == "virtual"


def test_a_sidecar_without_the_virtual_addresses_of_two_services_on_one_port_still_has_a_listener_for_it() -> None:
    assert set(table(shipped(dns="cluster"))["agree"]) == {True}
