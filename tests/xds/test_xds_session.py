"""The xDS protocol as a state machine: what is answered, what is pushed, in which order, and what is not sent again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serverdriver import ModelEnvoy, assignment, cluster, listener, snapshot, table

from meshdns.xds.encoding import CDS, EDS, LDS, RDS, Group
from meshdns.xds.session import PATIENCE_S, DeltaSession, WorldSession

BOTH = pytest.mark.parametrize("kind", [WorldSession, DeltaSession])


def mesh(*names: str, ports: dict[str, int] | None = None, listeners: int = 1) -> dict[str, Group]:
    """Clusters of these names, all reached by the table of each listener."""
    return snapshot(
        {name: cluster(name) for name in names},
        {name: assignment(name, (ports or {}).get(name, 1000)) for name in names},
        {f"l{n}": listener(f"l{n}", 20_000 + n, f"t{n}") for n in range(listeners)},
        {f"t{n}": table(f"t{n}", *names) for n in range(listeners)},
    )


def started(kind: Any, state: dict[str, Group]) -> ModelEnvoy:
    envoy = ModelEnvoy(kind())
    envoy.session.update(state)
    envoy.start()
    envoy.settle()
    assert holds(envoy, state)
    return envoy


def holds(envoy: ModelEnvoy, state: dict[str, Group]) -> bool:
    return all(set(envoy.held[url]) == set(state[url].resources) for url in (CDS, EDS, LDS, RDS)) and all(
        envoy.held[url][name] == type(envoy.held[url][name]).FromString(one.value)
        for url in (CDS, EDS, LDS, RDS)
        for name, one in state[url].resources.items()
    )


def sent(envoy: ModelEnvoy) -> list[int]:
    """How many clusters came in each response."""
    return [push.resources for push in envoy.settle() if push.type_url == CDS]


@BOTH
def test_a_sidecar_gets_everything_and_then_nothing_until_something_changes(kind: Any) -> None:
    envoy = started(kind, mesh("a", "b"))
    envoy.session.update(mesh("a", "b"))
    assert envoy.settle() == []
    assert not envoy.dangling


@BOTH
def test_one_changed_endpoint_is_all_that_is_sent(kind: Any) -> None:
    envoy = started(kind, mesh("a", "b", "c"))
    envoy.session.update(mesh("a", "b", "c", ports={"b": 2000}))
    (push,) = envoy.settle()
    assert (push.type_url, push.resources, push.removed) == (EDS, 1, 0)
    assert holds(envoy, mesh("a", "b", "c", ports={"b": 2000}))


@BOTH
def test_a_new_cluster_comes_before_the_route_to_it_and_an_old_one_goes_after(kind: Any) -> None:
    envoy = started(kind, mesh("a"))
    envoy.session.update(mesh("b"))
    pushes = envoy.settle()
    assert [push.type_url for push in pushes] == [CDS, EDS, RDS, CDS]
    assert holds(envoy, mesh("b"))
    assert not envoy.dangling


@BOTH
def test_routes_wait_for_the_endpoints_of_a_new_cluster_but_not_for_ever(kind: Any) -> None:
    envoy = started(kind, mesh("a"))
    envoy.names[EDS].add("b")  # as if it had asked already: this client never does
    envoy.session.update(mesh("a", "b"))
    push = envoy.session.next(10.0)
    assert push
    assert push.type_url == CDS
    envoy.apply(push.message)
    envoy.answer()
    assert envoy.session.next(10.1) is None
    late = envoy.session.next(10.1 + PATIENCE_S)
    assert late
    assert late.type_url == RDS


@BOTH
def test_an_updated_cluster_gets_its_endpoints_again(kind: Any) -> None:
    """Envoy warms an updated cluster anew and does not ask for endpoints that it already watches."""
    envoy = started(kind, mesh("a", "b"))
    state = dict(mesh("a", "b"))
    state[CDS] = snapshot({"a": cluster("a", timeout_s=9), "b": cluster("b")})[CDS]
    envoy.session.update(state)
    assert [(push.type_url, push.resources) for push in envoy.settle()][1:] == [(EDS, 1)]


@BOTH
def test_a_rejection_is_remembered_and_what_depends_on_it_is_held_back(kind: Any) -> None:
    envoy = started(kind, mesh("a"))
    accepted = envoy.session.subscriptions[CDS].accepted
    envoy.rejects = {CDS}
    envoy.session.update(mesh("a", "b"))
    assert [push.type_url for push in envoy.settle()] == [CDS]
    one = envoy.session.subscriptions[CDS]
    assert one.rejected
    assert one.rejected.reason == "no such thing"
    assert (one.accepted, one.rejections) == (accepted, 1)
    assert envoy.settle(1000.0) == []  # not sent again, and no route to a cluster that is not there
    envoy.rejects = set()
    envoy.session.update(mesh("a", "c"))
    envoy.settle()
    assert one.rejected is None
    assert holds(envoy, mesh("a", "c"))
    assert not envoy.dangling


def two_tables(*, bad_s: int = 1, port: int = 1000) -> dict[str, Group]:
    """Table t0 leads to a and bad, t1 to a and c."""
    names = ("a", "bad", "c")
    return snapshot(
        {name: cluster(name, timeout_s=bad_s if name == "bad" else 1) for name in names},
        {name: assignment(name, port) for name in names},
        {f"l{n}": listener(f"l{n}", 20_000 + n, f"t{n}") for n in range(2)},
        {"t0": table("t0", "a", "bad"), "t1": table("t1", "a", "c")},
    )


@BOTH
def test_a_rejected_cluster_holds_back_what_names_it_and_nothing_else(kind: Any) -> None:
    envoy = started(kind, mesh("a", listeners=2))
    envoy.refuses = {"bad"}
    envoy.session.update(two_tables())
    envoy.settle()
    one = envoy.session.subscriptions[CDS]
    assert one.refused == {"bad"}
    assert envoy.held[RDS]["t1"] == type(envoy.held[RDS]["t1"]).FromString(two_tables()[RDS].resources["t1"].value)
    assert [route.route.cluster for route in envoy.held[RDS]["t0"].virtual_hosts[0].routes] == ["a", "a"]
    envoy.session.update(two_tables(port=7))  # a later change is accepted, and the cluster is missing all the same
    assert EDS in [push.type_url for push in envoy.settle()]
    assert one.rejected
    assert "bad" in one.rejected.reason
    envoy.refuses = set()
    envoy.session.update(two_tables(bad_s=3, port=7))
    envoy.settle()
    assert (one.rejected, one.refused) == (None, set())
    assert holds(envoy, two_tables(bad_s=3, port=7))
    assert not envoy.dangling


def test_a_rejection_is_shown_until_what_was_rejected_is_mended_or_gone() -> None:
    envoy = started(DeltaSession, mesh("a"))
    envoy.refuses = {"bad"}
    envoy.session.update(mesh("a", "bad"))
    envoy.settle()
    one = envoy.session.subscriptions[CDS]
    before = one.accepted
    envoy.session.update(mesh("a", "bad", "c"))  # of an incremental answer only c is accepted
    envoy.settle()
    assert one.rejected
    assert one.accepted == before
    envoy.session.update(mesh("a", "c"))
    envoy.settle()
    assert one.rejected is None
    assert one.accepted == mesh("a", "c")[CDS].version
    assert not envoy.dangling


@BOTH
def test_a_rejected_update_of_a_cluster_holds_back_nothing(kind: Any) -> None:
    envoy = started(kind, mesh("a", "bad"))
    envoy.refuses = {"bad"}
    state = dict(mesh("a", "bad", "c"))
    state[CDS] = snapshot({"a": cluster("a"), "bad": cluster("bad", timeout_s=9), "c": cluster("c")})[CDS]
    envoy.session.update(state)
    envoy.settle()
    assert {route.route.cluster for route in envoy.held[RDS]["t0"].virtual_hosts[0].routes} == {"a", "bad", "c"}
    assert not envoy.dangling


@BOTH
def test_endpoints_flow_while_a_listener_is_rejected_and_nothing_it_may_need_is_removed(kind: Any) -> None:
    envoy = started(kind, mesh("a", "b"))
    envoy.rejects = {LDS}
    envoy.session.update(mesh("b", ports={"b": 7}, listeners=2))
    types = [push.type_url for push in envoy.settle()]
    assert EDS in types
    assert LDS in types
    assert "a" in envoy.held[CDS]


def test_a_stale_answer_is_ignored() -> None:
    envoy = started(WorldSession, mesh("a"))
    one = envoy.session.subscriptions[CDS]
    before = one.accepted
    envoy.nonces[CDS] = "0"
    envoy.ask(CDS, error_detail={"message": "late"})
    assert (one.rejected, one.accepted) == (None, before)


def test_delta_reconnect_sends_the_difference_only() -> None:
    old, new = mesh("a", "b"), mesh("a", "c")
    session = DeltaSession()
    session.update(new)
    envoy = ModelEnvoy(session)
    versions = {name: one.version for name, one in old[CDS].resources.items()}
    envoy.ask(CDS, initial_resource_versions=versions)
    push = session.next(0.0)
    assert push
    assert [one.name for one in push.message.resources] == ["c"]
    envoy.ask(CDS, response_nonce=push.message.nonce)
    assert session.next(0.5) is None  # its listeners are not known yet: nothing is taken away
    late = session.next(5.0)
    assert late
    assert list(late.message.removed_resources) == ["b"]


def test_delta_reconnect_with_everything_up_to_date_sends_no_resource() -> None:
    state = mesh("a", "b")
    session = DeltaSession()
    session.update(state)
    envoy = ModelEnvoy(session)
    for url in (CDS, EDS):
        versions = {name: one.version for name, one in state[url].resources.items()}
        envoy.ask(url, set(versions) if url == EDS else None, initial_resource_versions=versions)
    assert [push.resources for push in envoy.settle()] == [0]  # the empty answer to the wildcard
    for url in (CDS, EDS):
        one = session.subscriptions[url]
        assert one.sent == one.accepted == state[url].version


def test_world_reconnect_with_the_same_version_sends_nothing_of_clusters_and_listeners() -> None:
    state = mesh("a")
    first = started(WorldSession, state)
    again = ModelEnvoy(WorldSession(), held=first.held, versions=first.versions)
    again.session.update(state)
    again.start()
    assert again.settle() == []
    again.session.update(mesh("a", "b"))
    assert next(push.type_url for push in again.settle()) == CDS


def test_delta_name_that_is_not_there_is_said_to_be_absent_and_sent_when_it_comes() -> None:
    session = DeltaSession()
    session.update(mesh("a"))
    envoy = ModelEnvoy(session)
    envoy.ask(EDS, {"b"})
    push = session.next(0.0)
    assert push
    assert (list(push.message.removed_resources), push.resources) == (["b"], 0)
    envoy.ask(EDS, response_nonce=push.message.nonce)
    session.update(mesh("a", "b"))
    push = session.next(0.0)
    assert push
    assert [one.name for one in push.message.resources] == ["b"]


def test_delta_resubscribed_name_is_sent_though_unchanged() -> None:
    session = DeltaSession()
    session.update(mesh("a"))
    envoy = ModelEnvoy(session)
    envoy.ask(EDS, {"a"})
    envoy.settle()
    envoy.ask(EDS, {"a"})
    assert [push.resources for push in envoy.settle()] == [1]


def test_delta_wildcard_can_be_added_to_names_and_taken_away() -> None:
    session = DeltaSession()
    session.update(mesh("a", "b"))
    envoy = ModelEnvoy(session)
    envoy.ask(CDS, {"a"})
    assert sent(envoy) == [1]
    envoy.ask(CDS, {"*"})
    assert sent(envoy) == [1]  # b; a is known
    envoy.ask(CDS, gone={"*"})
    session.update(mesh("a", "c"))
    assert sent(envoy) == []  # b is its own no longer, c never was


def test_world_names_replace_the_wildcard_and_no_names_then_mean_none() -> None:
    session = WorldSession()
    session.update(mesh("a", "b"))
    envoy = ModelEnvoy(session)
    envoy.ask(CDS)
    assert sent(envoy) == [2]
    envoy.names[CDS] = {"a"}
    envoy.ask(CDS)
    envoy.settle()
    session.update(mesh("b"))
    envoy.settle()
    assert set(envoy.held[CDS]) == set()
    envoy.names[CDS] = set()
    envoy.ask(CDS)
    session.update(mesh("a", "b", "c"))
    assert sent(envoy) == []


def test_an_empty_world_is_an_answer_too() -> None:
    for session in (WorldSession(), DeltaSession()):
        session.update(snapshot())
        ModelEnvoy(session).ask(LDS)
        push = session.next(0.0)
        assert push
        assert push.resources == 0


def test_without_a_configuration_nothing_is_taken_away() -> None:
    session = DeltaSession()
    ModelEnvoy(session).ask(CDS, initial_resource_versions={"a": "1"})
    assert session.next(0.0) is None


_STATES = st.builds(
    lambda names, ports, listeners: mesh(*sorted(names), ports=ports, listeners=listeners),
    st.sets(st.sampled_from("abcd"), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3)),
    st.integers(0, 2),
)


@BOTH
@settings(max_examples=150, deadline=None)
@given(states=st.lists(_STATES, min_size=1, max_size=5), pace=st.lists(st.integers(0, 4), min_size=1, max_size=10))
def test_whatever_changes_and_whenever_it_is_read_the_sidecar_ends_with_the_latest_and_never_dangles(
    kind: Any, states: list[dict[str, Group]], pace: list[int]
) -> None:
    envoy = ModelEnvoy(kind())
    envoy.start()
    for n, state in enumerate(states):
        envoy.session.update(state)
        for _ in range(pace[n % len(pace)]):  # read and answer a little, then the next change comes
            if push := envoy.session.next(0.0):
                envoy.apply(push.message)
            else:
                envoy.answer()
    envoy.settle()
    assert holds(envoy, states[-1])
    assert envoy.dangling == []
