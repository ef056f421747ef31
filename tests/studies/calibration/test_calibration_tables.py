"""The self-test, against runs whose truth is known: each way to be wrong turns a check, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis
import pandas as pd
import pytest
from hypothesis import strategies

import measured
from measured import World
from meshdns import store
from meshdns.analysis import cells, gates, stats, text
from meshdns.studies.calibration import answer, conservation, generators, tables
from meshdns.studies.cost import tables as requests
from meshdns.studies.names import tables as lookups


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def verdict(found: list[gates.Check], item: str, **values: object) -> str:
    """That of this check, of which some are made for several things."""
    return next(each.verdict for each in found if each.item == item and values.items() <= each.values.items())


def test_it_is_green_for_a_good_load_generator_and_red_for_a_bent_one(usual: store.Runs, tmp_path: Path) -> None:
    lines = answer.lines(tables.checks(usual))
    assert gates.RED not in set(lines["verdict"])
    assert answer.answer(lines).startswith("As far as it can be told: ")  # equal arms of the open loop differ
    assert answer.answer(lines[lines["verdict"] != gates.UNKNOWN]).startswith("Yes: ")
    bent = measured.runs(tmp_path, World(slope=1.05, bias=30.0, lost_queries=1, invalid=0.1))
    good, poor = (dict(zip(each["item"], each["verdict"], strict=True)) for each in map(tables.checks, (usual, bent)))
    for item in ("linearity", "dns_bias", "total_bias", "conservation_dns"):
        assert good[item] == gates.GREEN
        assert poor[item] == gates.RED
    assert poor["invalid"] == gates.AMBER
    assert answer.whole(bent)[0].startswith("Not everywhere")


def changed(runs: store.Runs, chosen: pd.DataFrame, **values: object) -> store.Runs:
    """The same with these columns of these cells set."""
    found = runs.cells.copy()
    for name, value in values.items():
        found[name] = [
            value if at in set(chosen.index) else old for at, old in zip(found.index, found[name], strict=True)
        ]
    return replace(runs, cells=found)


def test_conservation_counts_the_cells_that_validity_rejected(usual: store.Runs) -> None:
    mine = usual.cells[(usual.cells["experiment"] == "request") & (usual.cells["arm"] == "mode1")]
    reason = ["path not taken: requests at the servers: 1, expected 2"]
    stray = dict(mine["counters"].iloc[0]) | {"servers/nginx_rq": 1.0, "dnsdist/from_pod": 0.0}
    few, many = (changed(usual, mine[:n], valid=False, reasons=reason, counters=stray) for n in (1, len(mine)))
    for item in ("dns", "servers", "rejected"):
        assert verdict(conservation.conservation(usual), f"conservation_{item}") == gates.GREEN
        assert verdict(conservation.conservation(many), f"conservation_{item}") == gates.RED
    assert verdict(conservation.conservation(few), "conservation_servers") == gates.AMBER  # left out, and so few
    trusted = changed(usual, mine[:1], counters=stray)
    assert verdict(conservation.conservation(trusted), "conservation_servers") == gates.RED


def kept(runs: store.Runs, rows: pd.Series[bool]) -> store.Runs:
    """The same without the other samples."""
    return replace(runs, samples=runs.samples[rows])


def test_littles_law_fails_where_requests_of_an_arm_are_lost_or_work_piles_up(usual: store.Runs) -> None:
    closed, opened = "little_closed", "little_open"
    assert verdict(conservation.little(usual), closed) == verdict(conservation.little(usual), opened) == gates.GREEN
    rows = usual.samples
    lost = (rows["experiment"] == "lookup") & (rows["arm"] == "mode1") & (rows["seq"] % 2 == 1)
    assert verdict(conservation.little(kept(usual, ~lost)), closed) == gates.RED
    piled = rows.assign(end_ns=rows["end_ns"] + rows["seq"] * 1_000_000 * (rows["experiment"] == "open").to_numpy())
    assert verdict(conservation.little(replace(usual, samples=piled)), opened) == gates.RED
    # Workers that wait for each other, and arms that are put under load on purpose, are no matter of the closed loop.
    assert set(conservation.gaps(usual)["experiment"]) == {"lookup", "request", "keepalive"}


def test_send_lag_is_of_all_cells_and_its_gate_of_one_rate(usual: store.Runs) -> None:
    of = {"connection": "keepalive", "rate_hz": 500.0}
    card_lag = usual.cells[usual.cells["experiment"] == "card-lag"]
    mine = usual.samples["experiment"] == "card-lag"
    late = usual.samples.assign(start_ns=usual.samples["start_ns"] + 20_000_000 * mine.to_numpy())
    runs = changed(replace(usual, samples=late), card_lag, valid=False, reasons=["load not offered"])
    assert verdict(generators.lag(runs), "send_lag", **of) == gates.RED
    assert {verdict(generators.lag(each), "send_lag", arrival="poisson", rate_hz=250.0) for each in (usual, runs)} == {
        gates.STATED
    }
    without = replace(usual, cells=usual.cells[usual.cells["experiment"] != "card-lag"])
    assert verdict(generators.lag(without), "send_lag_gate") == gates.UNMEASURED


def test_a_bias_is_of_nearly_all_requests_or_of_none(usual: store.Runs) -> None:
    lost = (usual.samples["experiment"] == "card-wire") & (usual.samples["seq"] % 20 == 0)
    columns = {name: usual.samples[name].where(~lost, -1) for name in ("wire_dns_ns", "wire_total_ns")}
    runs = replace(usual, samples=usual.samples.assign(**columns))
    for item in ("dns_bias", "total_bias"):
        assert verdict(generators.bias(usual), f"{item}_matched") == gates.GREEN
        assert verdict(generators.bias(runs), f"{item}_matched") == gates.RED
        assert verdict(generators.bias(runs), item) == gates.GREEN


def test_precision_is_a_share_of_the_slower_p50_and_a_bar_can_be_missed(tmp_path: Path) -> None:
    noisy = measured.runs(tmp_path, World(noise=0.05))
    (row, *_) = conservation.precision(noisy)
    medians = cells.matrix(cells.per_cell(noisy, cells.select(noisy, "lookup"), "from_start"), ["arm"])
    pairs = [(a, b) for a in medians for b in medians if a < b]
    found = {(a, b): cells.paired(medians, a, b) for a, b in pairs}
    widest = max(each.absolute.half_width / medians[list(at)].mean().max() for at, each in found.items() if each)
    assert row.values["widest"] == pytest.approx(widest)
    assert (row.verdict, row.values["experiment"]) == (gates.MISSED, "lookup")
    assert "Bars missed: precision of p50 differences: lookup" in answer.whole(noisy)[0]


def test_only_gates_are_counted(usual: store.Runs) -> None:
    table = tables.checks(usual)
    counts = table["verdict"].value_counts()
    assert counts[gates.STATED] > 0
    counted = len(table) - counts[gates.STATED] - counts.get(gates.UNMEASURED, 0)
    assert f"{counts[gates.GREEN]} of {counted} checks are green" in answer.whole(usual)[0]


COUNTS = strategies.integers(-1_000, 1_000)


@hypothesis.given(COUNTS, COUNTS, COUNTS.map(abs), COUNTS.map(abs), strategies.integers(1, 9))
def test_no_interval_wider_than_its_limits_passes(low: int, middle: int, room: int, half: int, n: int) -> None:
    high = low + room
    wide = stats.Interval(middle, middle - half, middle + half, n)
    verdict = gates.within(wide, low, high)
    assert verdict in (gates.GREEN, gates.UNKNOWN, gates.RED)
    if 2 * half > room:
        assert verdict != gates.GREEN
    assert (verdict == gates.RED) == (not low <= middle <= high)
    one = stats.interval([middle])
    assert gates.within(one, low, high) != gates.GREEN  # one block tells no interval


def test_what_nothing_could_have_failed_is_not_green(usual: store.Runs) -> None:
    assert verdict(tables.environment(usual), "machines") == gates.STATED  # one run is of one machine
    planned = usual.cells["rate_hz"].where(usual.cells["experiment"] == "card-rate", 0.0)
    idle = replace(usual, cells=usual.cells.assign(rate_hz=planned))
    assert verdict(generators.headroom(idle), "rate", kind="request") == gates.STATED
    silent = replace(usual, headers=[_without_facts(usual.headers[0], clock="backwards", machine="governor")])
    assert verdict(generators.clock(silent), "clock_backwards") == gates.UNMEASURED
    assert verdict(tables.environment(silent), "governor") == gates.STATED
    untold = _without_facts(usual.headers[0], clock="", machine="steal_share")
    for headers in ([untold], [usual.headers[0], untold]):
        assert verdict(tables.environment(replace(usual, headers=headers)), "steal") == gates.UNMEASURED


def _without_facts(header: store.RunHeader, clock: str, machine: str) -> store.RunHeader:
    """The header without this fact of every clock and of the machine."""
    clocks = {arm: {k: v for k, v in each.items() if k != clock} for arm, each in header.facts["clock"].items()}
    facts = {name: each for name, each in header.facts["machine"].items() if name != machine}
    return replace(header, facts=header.facts | {"clock": clocks, "machine": facts})


def test_clones_of_an_image_on_other_processors_are_other_machines(usual: store.Runs) -> None:
    first = usual.headers[0]
    clone = replace(first, facts=first.facts | {"machine": first.facts["machine"] | {"cpu": "another"}})
    pair, twice = (replace(usual, headers=[first, each]) for each in (clone, first))
    assert verdict(tables.environment(pair), "machines") == gates.AMBER
    assert verdict(tables.environment(twice), "machines") == gates.GREEN


def test_wide_a_a_comparisons_are_unknown_and_all_of_them_are_counted(usual: store.Runs, tmp_path: Path) -> None:
    rows = {each.item: each for each in conservation.equal_arms(usual)}
    names = lookups.by_name(usual)
    kinds = len(names[names["arm"] == "plain-aa"])
    assert kinds == 11
    assert rows["false_positives"].values["compared"] == len(conservation.twins(usual)) >= kinds + 4
    wide = measured.runs(tmp_path, World(noise=0.2), blocks=3)
    assert verdict(conservation.equal_arms(wide), "noise_floor", experiment="lookup") != gates.GREEN


def test_a_twin_is_the_noise_floor_and_never_less_or_more(tmp_path: Path) -> None:
    slow = measured.runs(tmp_path, World(dns=World().dns | {"plain-aa": 400.0}))
    found = [lookups.by_arm(slow), lookups.by_name(slow), requests.changes(slow), requests.changes(slow, "keepalive")]
    for table in found:
        assert set(table["reading"][table["arm"] == "plain-aa"]) == {text.TWIN}
    positives = conservation.equal_arms(slow)[-1]
    clear = sum(each.clear for each in conservation.twins(slow))
    assert clear >= 11
    assert (positives.verdict, positives.values["clear"]) == (gates.AMBER, clear)


def test_every_load_generator_is_held_to_one_law(usual: store.Runs) -> None:
    laws = generators.compared(usual).set_index(["kind", "generator"])["littles_residual"]
    assert abs(laws["request", "h2load"]) < generators.LITTLE
    slack = [
        each | {"run_time_s": 3 * each["run_time_s"]} if tool == "agent" and experiment == "card-ruler" else each
        for each, tool, experiment in zip(
            usual.cells["agent"], usual.cells["tool"], usual.cells["experiment"], strict=True
        )
    ]
    found = generators.others(replace(usual, cells=usual.cells.assign(agent=slack)))
    own = next(each for each in found if each.values["generator"] == "h2load")
    assert own.verdict == gates.UNKNOWN  # the agent breaks the law as any other may
    assert -0.7 < own.values["idle"]["agent, block"] < -0.6


def test_lateness_is_held_against_what_it_adds_to(usual: store.Runs) -> None:
    of = {"connection": "keepalive", "rate_hz": 500.0}
    mine = (usual.samples["experiment"] == "card-lag").to_numpy()
    prompt = usual.samples.assign(start_ns=usual.samples["start_ns"].where(~mine, usual.samples["due_ns"] + 1_000))
    tardy = usual.samples.assign(start_ns=usual.samples["start_ns"].where(~mine, usual.samples["due_ns"] + 90_000))
    assert verdict(generators.lag(replace(usual, samples=prompt)), "send_lag", **of) == gates.GREEN
    assert (
        verdict(generators.lag(replace(usual, samples=tardy)), "send_lag", **of) == gates.AMBER
    )  # far below 1 ms, and yet in the tail


def test_what_was_not_measured_is_not_green(usual: store.Runs, tmp_path: Path) -> None:
    empty = replace(usual, cells=usual.cells[:0], samples=usual.samples[:0], headers=[])
    lines = answer.lines(tables.checks(empty))
    # A run without a cell has no invalid one.
    assert set(lines["verdict"][lines["item"] != "invalid cells"]) == {gates.UNMEASURED}
    assert answer.answer(lines).endswith(f"Not measured: {len(lines) - 1}.")
    assert verdict(generators.bias(measured.runs(tmp_path, blocks=1)), "dns_bias") == gates.UNKNOWN


def test_more_blocks_detect_smaller_effects(usual: store.Runs) -> None:
    row = conservation.detectable(usual).set_index("comparison").loc["lookup"]
    sizes = [row[f"blocks_{n}_us"] for n in conservation.BLOCKS]
    assert sizes == sorted(sizes, reverse=True)
    medians = cells.matrix(cells.per_cell(usual, cells.select(usual, "lookup"), "from_due"), ["arm"])
    sd_ns = float((medians["plain-aa"] - medians["plain"]).std())
    assert sizes[1] == pytest.approx(stats.minimum_detectable(sd_ns, 10) / 1_000, rel=0.01)
