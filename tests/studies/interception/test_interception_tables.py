"""Ways to capture, in worlds where a mechanism is slower, equal, charged by the rule, refused, or loses packets."""

from __future__ import annotations

import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

import measured
from measured import World
from meshdns import store
from meshdns.analysis import cells, text
from meshdns.studies.interception import answer, figures, mechanisms, tables

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "08-interceptor.ipynb"
TRUTH = {"nftables": 0.0, "tproxy": 25.0, "ebpf": -25.0, "in-tproxy": 30.0, "in-ebpf": -30.0}


def told(root: Path, world: World, blocks: int = 10, name: str = "interception", seed: int = 1) -> store.Runs:
    """Runs of that world, with what the load agent and the rules say about themselves."""
    quiet = replace(world, noise=0.001, spread=0.03)  # what is small must be found
    return counting(measured.runs(root, quiet, blocks, seed, name))


def counting(runs: store.Runs) -> store.Runs:
    """The same runs, where agents report their own counts and rules count flows."""
    agents, counters = [], []
    for cell, made in zip(runs.cells.to_dict("records"), cells.asked(runs, runs.cells), strict=True):
        before = int(made) - cell["offered"]
        asked = int(cell["counters"].get("pod/rule/dns_client", 0))
        opened = {"lookup": 0, "request": cell["offered"] if cell["connection"] == "new" else 0}[cell["kind"]]
        warm = {
            "connections_opened": {"lookup": 0, "request": before if opened else 1}[cell["kind"]],
            "queries_sent": 0,
        }
        agents.append(cell["agent"] | {"connections_opened": opened, "queries_sent": asked, "warmup": warm})
        more = {"pod/rule/redirect_dns_udp": asked, "pod/conntrack/entries": 100 + 50 * (cell["arm"] == "ebpf")}
        more |= {"servers/envoy_rq": made} if cell["backend"].startswith("in-") else {}
        counters.append(cell["counters"] | more)
    return replace(runs, cells=runs.cells.assign(agent=agents, counters=counters))


def refusing(runs: store.Runs, *levels: str) -> store.Runs:
    """The same runs on a machine that does not allow the mechanism of these arms and backends."""
    reason = "eBPF is not allowed here (operation not permitted)"
    header = replace(runs.headers[0], facts=runs.headers[0].facts | {"refused": dict.fromkeys(levels, reason)})
    left = [each[~each["arm"].isin(levels) & ~each["backend"].isin(levels)] for each in (runs.cells, runs.samples)]
    return replace(runs, cells=left[0], samples=left[1], headers=[header])


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    equal_dns = dict.fromkeys(["mode2-agent", "nftables", "tproxy"], 60.0) | {"ebpf": 40.0}
    world = World(dns=World().dns | equal_dns, capture=TRUTH)
    return told(tmp_path_factory.mktemp("unequal"), world)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return told(tmp_path_factory.mktemp("equal"), World(dns=World().dns | {"ebpf": 60.0}), seed=5)


@pytest.fixture(scope="module")
def charged(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return told(tmp_path_factory.mktemp("charged"), World(per_rule=0.1), seed=5)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("other"), blocks=3)  # the quick plan


def row(table: Any, *levels: str) -> Any:
    index = ["measure", "phase", "mechanism"] if len(levels) == 3 else ["measure", "mechanism"]
    return table.set_index(index).loc[levels]


def test_what_a_mechanism_adds_is_found_where_it_was_put(unequal: store.Runs) -> None:
    table = tables.differences(unequal)
    assert len(table) == 15
    found = row(table, "new", "tproxy")
    assert found[tables.AGAINST].absolute.estimate == pytest.approx(25_000, rel=0.2)
    assert found["reading"] == "more"
    assert row(table, "inbound_new", "ebpf")["reading"] == "less"
    assert row(table, "inbound_new", "ebpf")[tables.AGAINST].absolute.estimate == pytest.approx(-30_000, rel=0.2)
    assert row(table, "lookup", "ebpf")["reading"] == "less"
    for quiet in (("new", "nftables"), ("kept", "tproxy"), ("inbound_kept", "ebpf")):
        assert row(table, *quiet)["reading"] not in text.CLEAR
    phases = tables.phases(unequal)
    assert row(phases, "new", "connect", "tproxy")[tables.AGAINST].absolute.estimate == pytest.approx(25_000, rel=0.1)
    assert row(phases, "new", "dns", "ebpf")["reading"] == "less"
    assert row(phases, "new", "first_byte", "tproxy")["reading"] not in text.CLEAR


def test_the_answer_turns_with_the_data(unequal: store.Runs, equal: store.Runs, tmp_path: Path) -> None:
    said = answer.answer(unequal)
    assert said.startswith("It matters to a request on a new connection, a UDP lookup and an incoming request on a new")
    assert "less, of a UDP lookup with eBPF." in said  # a third of it
    assert "more (+2" in said
    assert "A request on a new connection, against iptables: not resolved (" in said
    kept = next(
        each for each in said.split("(p50, ") if "A request on a connection kept alive, against iptables" in each
    )
    assert kept.count("not resolved (") == 3  # a floor or a wide interval makes nothing alike
    assert answer.answer(equal).startswith("What the mechanisms differ by is not resolved for any measure.")
    reverse = told(tmp_path, World(capture={"tproxy": -25.0}))
    assert "less (-2" in answer.answer(reverse)


def test_cells_with_too_few_requests_are_named(unequal: store.Runs) -> None:
    few = replace(unequal, samples=unequal.samples[(unequal.samples["seq"] < 15) | (unequal.samples["arm"] != "ip")])
    said = answer.answer(few)
    assert "an incoming request on a new connection and an incoming request on a kept connection hold too few" in said
    assert "too few" not in answer.answer(unequal)


def test_a_difference_that_equal_arms_show_too_is_called_noise(tmp_path: Path) -> None:
    uneven = World(dns=World().dns | {"plain-aa": 240.0}, capture={"tproxy": 20.0})
    found = row(tables.differences(told(tmp_path, uneven)), "new", "tproxy")
    assert found["reading"].startswith("not resolved (+")
    assert "; noise floor " in found["reading"]


def test_extra_rules_are_priced_in_ns_and_held_against_the_kernels_design(
    charged: store.Runs, equal: store.Runs
) -> None:
    table = tables.slopes(charged)
    for mechanism in mechanisms.SHIPPED:
        found = row(table, "new", mechanism.name)
        assert found["per_rule"].of.estimate == pytest.approx(100, rel=0.2)
        assert (found["extra_rules"], found["reading"], found["as_expected"]) == ("0, 10, 100, 1000", "more", True)
    assert set(table["extra_rules"]) == {"0, 10, 100, 1000"}
    assert len(table) == len(mechanisms.SWEEPS) * len(mechanisms.SHIPPED)
    assert len(tables.rules(charged)) == 3 * len(table)
    said = answer.rules_answer(tables.slopes(charged))
    assert "What each extra rule that matches nothing adds to a request on a new connection is 1" in said
    unresolved = "What each extra rule that matches nothing adds to a request on a new connection is not resolved."
    assert unresolved in answer.rules_answer(tables.slopes(equal))
    assert "these blocks decide it for no mechanism" in answer.rules_answer(tables.slopes(equal))


def slowed(runs: store.Runs, arm: str, us: int) -> store.Runs:
    """The same runs, where a thousand extra rules also slow down requests on this arm's kept connections."""
    rows = runs.samples
    hit = (rows["experiment"] == "rules-keepalive") & (rows["arm"] == arm) & (rows["extra_rules"] == 1000)
    return replace(runs, samples=rows.assign(end_ns=rows["end_ns"] + 1_000 * us * hit))


@pytest.mark.parametrize(("arm", "name", "verdict"), [("tproxy", "TPROXY", True), ("mode2-agent", "iptables", False)])
def test_rules_may_slow_a_kept_connection_only_where_each_packet_is_asked(
    equal: store.Runs, arm: str, name: str, verdict: bool
) -> None:
    found = row(tables.slopes(slowed(equal, arm, 50)), "kept", name.lower())
    assert (found["reading"], found["as_expected"]) == ("more", verdict)
    assert found["per_rule"].of.estimate == pytest.approx(50, rel=0.3)
    told = "it is so with" if verdict else "it is not so with"
    assert f"{told} {name}; not resolved with" in answer.rules_answer(tables.slopes(slowed(equal, arm, 50)))
    without = row(tables.slopes(equal), "kept", name.lower())
    assert without["as_expected"] is None  # what is not resolved shows neither an effect nor that there is none


def test_cpu_time_goes_to_the_mechanisms_own_containers(unequal: store.Runs) -> None:
    table = tables.cpu(unequal)
    assert row(table, "new", "ebpf")["client_sidecar"].estimate == pytest.approx(250_000, rel=0.1)
    assert row(table, "inbound_new", "tproxy")["server_sidecar"].estimate == pytest.approx(60_000, rel=0.1)
    assert row(table, "inbound_kept", "iptables")["client_sidecar"].estimate == 0
    dearer = [
        {name: us * (3 if name == "web-tproxy-istio-proxy" else 1) for name, us in each.items()}
        for each in unequal.cells["cpu_us"]
    ]
    found = row(tables.cpu(replace(unequal, cells=unequal.cells.assign(cpu_us=dearer))), "inbound_new", "tproxy")
    assert found["reading"] == "more"
    assert found["against_iptables"].absolute.estimate == pytest.approx(120_000, rel=0.1)


def test_counters_agree_with_the_client_or_the_mechanism_is_named(unequal: store.Runs, tmp_path: Path) -> None:
    table = tables.counts(unequal)
    assert table["agree"].all()
    assert len(table) == 16
    assert "agree with the client's own counts in every cell" in answer.counts_answer(tables.counts(unequal))
    lost = told(tmp_path, World(lost_redirects=1, invalid=0.2))
    wrong = tables.counts(lost).set_index(["counted", "mechanism"]).loc["connections_redirected"]
    assert not wrong["agree"].any()
    assert (wrong["invalid_cells"] > 0).all()  # those are not left out of the comparison
    assert "disagree with the client's own counts with iptables, nftables, TPROXY and eBPF" in answer.counts_answer(
        tables.counts(lost)
    )


def test_known_flows_are_no_fault_but_none_at_all_is(unequal: store.Runs) -> None:
    def with_flows(share: float) -> Any:
        counters = [
            each | {"pod/rule/redirect_dns_udp": int(each["pod/rule/redirect_dns_udp"] * share)}
            for each in unequal.cells["counters"]
        ]
        table = tables.counts(replace(unequal, cells=unequal.cells.assign(counters=counters)))
        return set(table[table["counted"] == "dns_flows_redirected"]["agree"])

    longer = unequal.cells[unequal.cells["connection"] != "keepalive"]
    assert with_flows(2.0) == {False}
    assert with_flows(0.0) == {False}
    unequal = replace(unequal, cells=longer)
    assert with_flows(0.9) == {True}


def test_entries_are_numbers_without_a_unit(unequal: store.Runs) -> None:
    table = tables.entries(unequal).set_index("mechanism")
    assert str(table.loc["ebpf", "after_lookup"]) == "150 ± 0"
    assert str(table.loc["ebpf", "lookup_against_iptables"]).startswith("+50")
    assert str(text.shown(table, answer.WORDS).iloc[1]["UDP lookup, against iptables"]) == text.ABSENT


def test_a_refused_mechanism_has_no_rows_and_its_reason(unequal: store.Runs) -> None:
    runs = refusing(unequal, "ebpf", "in-ebpf")
    assert "eBPF was refused on this machine (eBPF is not allowed here" in answer.answer(runs)
    for table in (tables.differences(runs), tables.slopes(runs), tables.cpu(runs), tables.phases(runs)):
        assert "ebpf" not in set(table["mechanism"])
        assert "tproxy" in set(table["mechanism"])
    state = tables.availability(runs).set_index("mechanism")
    assert state.loc["ebpf", "outbound_blocks"] == 0
    assert "not permitted" in str(state.loc["ebpf", "refused"])
    assert pd.isna(state.loc["nftables", "refused"])
    without = refusing(unequal, "mode2-agent", "in-iptables")
    assert answer.answer(without).startswith("No valid block has iptables")


def test_a_mechanism_that_nobody_knows_is_compared_and_nothing_is_predicted_of_it(equal: store.Runs) -> None:
    pod = replace(equal.world.arms["tproxy"], arm="sockets", mechanism="sockets")
    pods = tuple(pod if each.arm == "tproxy" else each for each in equal.world.pods)
    cells_, samples = (
        each.assign(arm=each["arm"].astype(str).replace("tproxy", "sockets")) for each in (equal.cells, equal.samples)
    )
    runs = replace(
        slowed(replace(equal, cells=cells_, samples=samples), "sockets", 50), world=replace(equal.world, pods=pods)
    )
    found = row(tables.slopes(runs), "kept", "sockets")
    assert (found["reading"], found["as_expected"], found["more_expected"]) == ("more", None, None)
    assert "sockets" in answer.rules_answer(tables.slopes(runs))
    assert "sockets" in set(tables.differences(runs)["mechanism"])
    assert "TPROXY was not measured in a valid cell" in answer.answer(runs)


def test_a_run_of_another_plan_says_so(other: store.Runs) -> None:
    assert mechanisms.experiments(other) == []
    assert "`meshdns report --plan interception`" in answer.answer(other)
    assert answer.rules_answer(tables.slopes(other)) == ""


@pytest.fixture
def _closed() -> Any:
    mpl.use("agg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("_closed")
def test_figures_show_zero_the_floor_and_every_mechanism(unequal: store.Runs, other: store.Runs) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for runs in (unequal, refusing(unequal, "ebpf", "in-ebpf"), other):
            for table, column in (
                (tables.differences(runs), tables.AGAINST),
                (tables.rules(runs), tables.ADDED),
            ):
                ax = figures.contrasts(table, column, "p50")
                ax.figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
                low, high = ax.get_xlim()
                assert low < 0 < high or table.empty
                marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
                assert len(marks) == len(table)
                legend = ax.get_legend()
                names = {each.get_text() for each in legend.get_texts()} if legend else set()
                assert names == (
                    {str(answer.WORDS.value("mechanism", each)) for each in table["mechanism"]} if len(table) else set()
                )


@pytest.mark.slow
@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("name", ["interception", "quick"])
def test_the_notebook_runs_on_any_run(name: str, tmp_path: Path) -> None:
    folder = measured.build(tmp_path, World(capture=TRUTH, per_rule=0.05), blocks=3, name=name)
    cells = nbformat.read(NOTEBOOK, 4).cells
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cell in cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), space)
            if cell.metadata["tags"][0] == "parameters":
                space["runs"] = str(folder)
    assert len(plt.get_fignums()) == 2
    assert ("did not compare" in answer.answer(space["measured"])) == (name == "quick")
