"""The price of a request in made-up worlds whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest

import measured
from measured import World
from meshdns import store
from meshdns.analysis import cells, text
from meshdns.studies.cost import answer, tables
from shipped import WORLD


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def test_phases_add_up_and_changes_recover_the_world(usual: store.Runs, tmp_path: Path) -> None:
    phases = tables.phases(usual)
    assert len(phases) == len(tables.LADDER)
    assert phases["left_over_ns"].abs().max() < 1
    changes = tables.changes(usual).set_index("change")
    assert changes.loc[tables.change(tables.PLAIN, ("plain", "meshed")), "p50"].absolute.estimate == pytest.approx(
        180_000, rel=0.1
    )
    assert changes.loc[tables.change(tables.MODE1, tables.MODE2), "p50"].absolute.estimate == pytest.approx(
        -152_000, rel=0.15
    )
    assert " µs shorter, " in answer.answer(usual)
    slow = World(
        dns={
            "plain": 100.0,
            "plain-aa": 100.0,
            "mode1": 100.0,
            "mode2-envoy": 300.0,
            "mode2-agent": 300.0,
            "null": 40.0,
        }
    )
    slowly = answer.answer(measured.runs(tmp_path, slow))
    assert " µs longer, " in slowly.partition("A request in mode 2 takes")[2].partition("On a")[0]
    assert "shorter" not in slowly


def test_cpu_goes_to_the_containers_of_the_arm(usual: store.Runs) -> None:
    table = tables.cpu(usual).set_index("step")
    assert table.loc["mode2-envoy → meshed", "client_sidecar"].estimate == pytest.approx(250_000, rel=0.1)
    assert table.loc["mode2-envoy → meshed", "coredns"].estimate == 0
    assert table.loc["plain → plain", "client_sidecar"].estimate == 0
    plain = ("plain", "plain")
    assert tables.role(plain, "client-plain-app", WORLD) == "client_app"
    assert tables.role(plain, "client-plain-aa-app", WORLD) == ""
    assert tables.role(plain, "legacy-2", WORLD) == "server"
    assert tables.role(plain, "web-1-istio-proxy", WORLD) == ""
    assert tables.role(("plain", "meshed"), "web-1-istio-proxy", WORLD) == "server_sidecar"
    assert {"client_app", "server"} <= set(tables.memory(usual)["role"])


def test_kept_connections_have_their_price_in_the_answer(usual: store.Runs) -> None:
    said = answer.answer(usual)
    for mode, step in (("mode 1", tables.MODE1), ("mode 2", tables.MODE2)):
        row = tables.changes(usual, "keepalive").set_index("change").loc[tables.change(tables.PLAIN, step)]
        before, after = (text.interval(each) for each in row["levels"])
        price = f"a request with both sidecars in {mode} takes {after}, without a mesh {before}: "
        assert f"On a connection kept alive {price}" in said
        assert text.size(row["p50"]) in said


def test_waits_are_of_the_open_loop(usual: store.Runs) -> None:
    table = tables.waits(usual).set_index("step")
    assert (table["p50_from_due"].map(lambda each: each.estimate) > 0).all()
    asked = cells.select(usual, "open")
    assert set(asked["arrival"]) == {"poisson"}
    assert table["hidden_wait_mean"].map(lambda each: each.estimate).max() > 0  # a closed loop has none by definition


def test_sizes_and_tls_stand_beside_the_usual_request(usual: store.Runs, tmp_path: Path) -> None:
    assert tables.sizes(usual).empty
    assert "were not measured" in answer.sizes_answer(tables.sizes(usual))
    table = tables.sizes(measured.runs(tmp_path, blocks=3, name="standard"))
    assert set(zip(table["tls"], table["body_kb"], strict=True)) == {(True, 1.0), (False, 16.0), (False, 128.0)}
    assert set(table["arm"]) == {"plain", "mode1", "mode2-envoy", "mode2-agent"}
    assert {each.absolute.n for each in table["p50_against_usual"]} == {3}
    assert "128 kB on plain → meshed" in answer.sizes_answer(table)
