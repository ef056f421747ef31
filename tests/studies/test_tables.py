"""Tables against frames small enough to work out by hand, and against made-up worlds whose truth is known."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies

import measured
from measured import World
from meshdns import store
from meshdns.analysis import cells, gates, provenance, stats, text
from meshdns.core import errors, paths
from meshdns.studies import card, consistency, ruler
from meshdns.studies.cost import answer as cost_answer
from meshdns.studies.cost import tables as requests
from meshdns.studies.names import answer as names_answer
from meshdns.studies.names import tables as lookups
from shipped import WORLD


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def tiny(latencies: dict[tuple[int, str], list[float]], valid: dict[tuple[int, str], bool] | None = None) -> store.Runs:
    """A run of wire lookups: (block, arm) -> latencies in µs, each 1 µs late."""
    rows, found = [], []
    for number, ((block, arm), values) in enumerate(latencies.items()):
        parameters = {"experiment": "lookup", "arm": arm, "kind": "lookup", "tool": "agent", "lookup": "wire"}
        parameters |= {"null_delay_us": 0.0}
        place = {"run": "r", "block": block, "cell": number}
        found.append(place | parameters | {"valid": (valid or {}).get((block, arm), True), "reasons": ["made so"]})
        for us in values:
            end = 1_000 + int(us * 1_000)
            instants = dict.fromkeys(("connect_ns", "tls_ns", "first_byte_ns", "end_ns", "dns_ns"), end)
            rows.append(place | parameters | {"due_ns": 0, "start_ns": 1_000, "outcome": "ok"} | instants)
    header = store.RunHeader("r", {"experiment": [{"name": "lookup", "warmup": 3}]}, 1, "", 2)
    return store.Runs(
        pd.DataFrame(rows), pd.DataFrame(found).assign(offered=5, counters=[{}] * len(found)), [header], [], WORLD
    )


LEVEL = [*range(1, 20), 1000]  # twenty values with a median of 10.5


def test_a_value_per_cell_then_an_interval_over_blocks_then_pairs_inside_blocks() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): [2 * x for x in LEVEL], (0, "mode1"): [x + 3 for x in LEVEL],
                 (1, "mode1"): [2 * x + 5 for x in LEVEL]})  # fmt: skip
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from start"), ["arm"])
    assert cells.column(values, "plain").tolist() == pytest.approx([10_500, 21_000])
    assert cells.interval(values, "plain").estimate == pytest.approx(15_750)
    pair = cells.paired(values, "plain", "mode1")
    assert pair is not None
    assert pair.absolute.estimate == pytest.approx(4_000)
    assert pair.absolute.n == 2
    late = cells.per_cell(runs, cells.select(runs, "lookup"), "from due")["value"]
    assert (late - 1_000).tolist() == pytest.approx([10_500, 13_500, 21_000, 26_000])


def test_quantiles_need_ten_samples_beyond_them() -> None:
    runs = tiny({(0, "plain"): LEVEL[:-1], (1, "plain"): LEVEL, (2, "plain"): [float(x) for x in range(100)]})
    chosen = cells.select(runs, "lookup")
    assert cells.per_cell(runs, chosen, "from start")["value"].isna().tolist() == [True, False, False]
    assert cells.per_cell(runs, chosen, "from start", 0.9)["value"].isna().tolist() == [True, True, False]
    assert cells.pooled(runs, chosen, "arm", "from start", 0.99) == {}
    assert cells.pooled(runs, chosen, "arm", "from start", 0.9).keys() == {"plain"}


def test_invalid_cells_are_listed_and_never_averaged() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): [9e6] * 20}, {(1, "plain"): False})
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from start"), ["arm"])
    assert cells.column(values, "plain").tolist() == pytest.approx([10_500])
    runs.cells["backend"] = "none"
    assert provenance.invalid(runs)[["reason", "cells"]].to_numpy().tolist() == [["made so", 1]]


def test_a_block_without_one_of_the_arms_is_not_paired() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): LEVEL, (1, "mode1"): LEVEL})
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from start"), ["arm"])
    pair = cells.paired(values, "plain", "mode1")
    assert pair is not None
    assert pair.absolute.n == 1
    assert cells.paired(values, "plain", "ip") is None
    assert text.reading(pair, None) == "one block: no interval"


def test_counters_are_divided_by_recorded_and_warm_up_requests() -> None:
    runs = tiny({(0, "plain"): LEVEL})
    assert cells.asked(runs, cells.select(runs)).tolist() == [8]


def test_the_warm_up_is_that_of_the_cell_where_parts_of_a_series_have_their_own() -> None:
    runs = tiny({(0, "plain"): LEVEL, (0, "mode1"): LEVEL, (0, "ip"): LEVEL})
    parts = [
        {"name": "lookup", "arm": "plain", "warmup": 3},
        {"name": "more", "series": "lookup", "arm": ["mode1", "ip"], "kind": "lookup", "warmup": 40},
        {"name": "else", "series": "lookup", "arm": ["ip"], "kind": "request", "warmup": 500},
    ]
    runs = dataclasses.replace(runs, headers=[dataclasses.replace(runs.headers[0], plan={"experiment": parts})])
    assert cells.asked(runs, cells.select(runs)).tolist() == [8, 45, 45]


def test_differences_below_the_noise_floor_are_called_so() -> None:
    floor = stats.noise_floor([100.0, 100.0, 100.0, 100.0], [106.0, 95.0, 104.0, 97.0])
    small = stats.paired([100.0, 101.0, 100.0, 101.0], [102.0, 103.1, 102.0, 103.1])
    large = stats.paired([100.0, 101.0, 100.0, 101.0], [202.0, 203.1, 202.0, 203.1])
    assert text.reading(small, None) == "more"
    assert text.reading(small, floor) == "not resolved (+1.96 to +2.14 ns; noise floor 8.97 ns)"
    assert text.reading(large, floor) == "more"
    equal = stats.paired([100.0, 101.0, 100.0], [101.0, 100.0, 100.0])
    assert text.reading(equal, floor) == "not resolved (-2.5 to +2.5 ns)"


def test_one_word_for_a_difference_whatever_the_ratios_say() -> None:
    slow_block = stats.paired([100.0, 100.0, 1_000.0], [112.0, 112.0, 900.0])  # less in the mean, more in most blocks
    assert text.word(slow_block) == "less"
    assert text.size(slow_block).startswith("30 ± 160 ns less")
    assert "the mean of the blocks' ratios is 0 % [-30, 40]" in text.size(slow_block)
    uneven = stats.paired([10.0, 100.0, 1_000.0, 1_010.0], [13.0, 100.0, 880.0, 890.0])
    assert text.size(uneven).endswith("more") == (text.word(uneven) == "more")
    clear = stats.paired([1e6, 1e6, 1e6, 2_000.0], [9.9e5, 9.9e5, 9.9e5, 200.0])
    assert clear.clear == ("clear in µs, not as a share" in text.size(clear))


def verdict(lines: list[gates.Row], item: str) -> str:
    return next(each.verdict for each in lines if each.item == item)


def test_the_card_is_green_for_a_good_ruler_and_red_for_a_bent_one(usual: store.Runs, tmp_path: Path) -> None:
    assert gates.RED not in set(card.card(usual)["verdict"])
    assert card.answer(card.card(usual)).startswith("As far as it can be told: ")  # equal arms of the open loop differ
    narrow = card.card(usual)[lambda table: table["verdict"] != gates.UNKNOWN]
    assert card.answer(narrow).startswith("Yes: ")
    bent = measured.runs(tmp_path, World(slope=1.05, bias=30.0, lost_queries=1, invalid=0.1))
    good, poor = (dict(zip(each["item"], each["verdict"], strict=True)) for each in (card.card(usual), card.card(bent)))
    for item in ("linearity: slope", "bias of the DNS phase", "bias of the request total", "conservation: DNS queries"):
        assert good[item] == gates.GREEN
        assert poor[item] == gates.RED
    assert poor["invalid cells"] == gates.AMBER
    assert card.answer(card.card(bent)).startswith("Not everywhere")


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
    for item in ("DNS queries", "requests at the servers", "cells rejected for it"):
        assert verdict(consistency.conservation(usual), f"conservation: {item}") == gates.GREEN
        assert verdict(consistency.conservation(many), f"conservation: {item}") == gates.RED
    assert (
        verdict(consistency.conservation(few), "conservation: requests at the servers") == gates.AMBER
    )  # left out, and so few
    trusted = changed(usual, mine[:1], counters=stray)
    assert verdict(consistency.conservation(trusted), "conservation: requests at the servers") == gates.RED


def kept(runs: store.Runs, rows: pd.Series[bool]) -> store.Runs:
    """The same without the other samples."""
    return replace(runs, samples=runs.samples[rows])


def test_littles_law_fails_where_requests_of_an_arm_are_lost_or_work_piles_up(usual: store.Runs) -> None:
    closed, opened = "Little's law, closed loop", "Little's law, open loop"
    assert verdict(consistency.little(usual), closed) == verdict(consistency.little(usual), opened) == gates.GREEN
    rows = usual.samples
    lost = (rows["experiment"] == "lookup") & (rows["arm"] == "mode1") & (rows["seq"] % 2 == 1)
    assert verdict(consistency.little(kept(usual, ~lost)), closed) == gates.RED
    piled = rows.assign(end_ns=rows["end_ns"] + rows["seq"] * 1_000_000 * (rows["experiment"] == "open").to_numpy())
    assert verdict(consistency.little(replace(usual, samples=piled)), opened) == gates.RED
    # Workers that wait for each other, and arms that are put under load on purpose, are no matter of the closed loop.
    assert set(consistency.gaps(usual)["experiment"]) == {"lookup", "request", "keepalive"}


def test_send_lag_is_of_all_cells_and_its_gate_of_one_rate(usual: store.Runs) -> None:
    item = "send lag: request, keepalive, constant 500 /s"
    card_lag = usual.cells[usual.cells["experiment"] == "card-lag"]
    mine = usual.samples["experiment"] == "card-lag"
    late = usual.samples.assign(start_ns=usual.samples["start_ns"] + 20_000_000 * mine.to_numpy())
    runs = changed(replace(usual, samples=late), card_lag, valid=False, reasons=["load not offered"])
    assert verdict(ruler.lag(runs), item) == gates.RED
    assert {verdict(ruler.lag(each), "send lag: request, new, poisson 250 /s") for each in (usual, runs)} == {
        gates.STATED
    }
    without = replace(usual, cells=usual.cells[usual.cells["experiment"] != "card-lag"])
    assert verdict(ruler.lag(without), "send lag at 500 /s") == gates.UNMEASURED


def test_a_bias_is_of_nearly_all_requests_or_of_none(usual: store.Runs) -> None:
    lost = (usual.samples["experiment"] == "card-wire") & (usual.samples["seq"] % 20 == 0)
    columns = {name: usual.samples[name].where(~lost, -1) for name in ("wire_dns_ns", "wire_total_ns")}
    runs = replace(usual, samples=usual.samples.assign(**columns))
    for item in ("bias of the DNS phase", "bias of the request total"):
        assert verdict(ruler.bias(usual), f"{item}: matched to packets") == gates.GREEN
        assert verdict(ruler.bias(runs), f"{item}: matched to packets") == gates.RED
        assert verdict(ruler.bias(runs), item) == gates.GREEN


def test_precision_is_a_share_of_the_slower_p50_and_a_bar_can_be_missed(tmp_path: Path) -> None:
    noisy = measured.runs(tmp_path, World(noise=0.05))
    row = card.card(noisy).set_index("item").loc["precision of p50 differences: lookup"]
    medians = cells.matrix(cells.per_cell(noisy, cells.select(noisy, "lookup"), "from start"), ["arm"])
    pairs = [(a, b) for a in medians for b in medians if a < b]
    found = {(a, b): cells.paired(medians, a, b) for a, b in pairs}
    widest = max(each.absolute.half_width / medians[list(at)].mean().max() for at, each in found.items() if each)
    assert row["measured"].startswith(f"widest {100 * widest:.3g}")
    assert row["verdict"] == gates.MISSED
    assert "Bars missed: precision of p50 differences: lookup" in card.answer(card.card(noisy))


def test_only_gates_are_counted(usual: store.Runs) -> None:
    table = card.card(usual)
    counts = table["verdict"].value_counts()
    assert counts[gates.STATED] > 0
    counted = len(table) - counts[gates.STATED] - counts.get(gates.UNMEASURED, 0)
    assert f"{counts[gates.GREEN]} of {counted} checks are green" in card.answer(table)


COUNTS = strategies.integers(-1_000, 1_000)


@hypothesis.given(COUNTS, COUNTS, COUNTS.map(abs), COUNTS.map(abs), strategies.integers(1, 9))
def test_no_interval_wider_than_its_limits_passes(low: int, middle: int, room: int, half: int, n: int) -> None:
    high = low + room
    wide = stats.Interval(middle, middle - half, middle + half, n, 0.95)
    verdict = gates.within(wide, low, high)
    assert verdict in (gates.GREEN, gates.UNKNOWN, gates.RED)
    if 2 * half > room:
        assert verdict != gates.GREEN
    assert (verdict == gates.RED) == (not low <= middle <= high)
    one = stats.interval([middle])
    assert gates.within(one, low, high) != gates.GREEN  # one block tells no interval


def test_what_nothing_could_have_failed_is_not_green(usual: store.Runs) -> None:
    lines = card.card(usual).set_index("item")
    assert lines.loc["environment: machines", "verdict"] == gates.STATED  # one run is of one machine
    planned = usual.cells["rate_hz"].where(usual.cells["experiment"] == "card-rate", 0.0)
    idle = replace(usual, cells=usual.cells.assign(rate_hz=planned))
    assert verdict(ruler.headroom(idle), "maximum rate, request") == gates.STATED
    silent = replace(usual, headers=[_without_facts(usual.headers[0], clock="backwards", machine="governor")])
    assert verdict(ruler.clock(silent), "clock: steps backwards") == gates.UNMEASURED
    assert verdict(card.environment(silent), "environment: governor") == gates.STATED
    untold = _without_facts(usual.headers[0], clock="", machine="steal_share")
    for headers in ([untold], [usual.headers[0], untold]):
        lines = card.environment(replace(usual, headers=headers))
        assert verdict(lines, "environment: steal time") == gates.UNMEASURED


def _without_facts(header: store.RunHeader, clock: str, machine: str) -> store.RunHeader:
    """The header without this fact of every clock and of the machine."""
    clocks = {arm: {k: v for k, v in each.items() if k != clock} for arm, each in header.facts["clock"].items()}
    facts = {name: each for name, each in header.facts["machine"].items() if name != machine}
    return replace(header, facts=header.facts | {"clock": clocks, "machine": facts})


def test_clones_of_an_image_on_other_processors_are_other_machines(usual: store.Runs) -> None:
    first = usual.headers[0]
    clone = replace(first, facts=first.facts | {"machine": first.facts["machine"] | {"cpu": "another"}})
    pair, twice = (replace(usual, headers=[first, each]) for each in (clone, first))
    assert verdict(card.environment(pair), "environment: machines") == gates.AMBER
    assert verdict(card.environment(twice), "environment: machines") == gates.GREEN


def test_wide_a_a_comparisons_are_unknown_and_all_of_them_are_counted(usual: store.Runs, tmp_path: Path) -> None:
    rows = {each.item: each for each in consistency.equal_arms(usual)}
    names = lookups.by_name(usual)
    kinds = len(names[names["arm"] == "plain-aa"])
    assert kinds == 11
    compared = int(rows["A/A: false positives"].measured.split()[2])
    assert compared == len(consistency.twins(usual)) >= kinds + 4
    wide = measured.runs(tmp_path, World(noise=0.2), blocks=3)
    assert verdict(consistency.equal_arms(wide), "A/A, lookup: noise floor") != gates.GREEN


def test_a_twin_is_the_noise_floor_and_never_less_or_more(tmp_path: Path) -> None:
    slow = measured.runs(tmp_path, World(dns=World().dns | {"plain-aa": 400.0}))
    tables = [lookups.by_arm(slow), lookups.by_name(slow), requests.changes(slow), requests.changes(slow, "keepalive")]
    for table in tables:
        assert set(table["reading"][table["arm"] == "plain-aa"]) == {text.TWIN}
    positives = consistency.equal_arms(slow)[-1]
    clear = sum(each.clear for each in consistency.twins(slow))
    assert clear >= 11
    assert (positives.verdict, positives.measured.split()[0]) == (gates.AMBER, str(clear))


def test_every_ruler_is_held_to_one_law(usual: store.Runs) -> None:
    item = "cross-ruler: h2load (request)"
    laws = ruler.rulers_table(usual).set_index(["kind", "ruler"])["Little's residual"]
    assert abs(laws["request", "h2load"]) < ruler.LITTLE
    slack = [
        each | {"run_time_s": 3 * each["run_time_s"]} if tool == "agent" and experiment == "card-ruler" else each
        for each, tool, experiment in zip(
            usual.cells["agent"], usual.cells["tool"], usual.cells["experiment"], strict=True
        )
    ]
    own = next(
        each for each in ruler.rulers(replace(usual, cells=usual.cells.assign(agent=slack))) if each.item == item
    )
    assert own.verdict == gates.UNKNOWN  # the agent breaks the law as any other ruler may
    assert "agent, block -6" in own.note


def test_lateness_is_held_against_what_it_adds_to(usual: store.Runs) -> None:
    item = "send lag: request, keepalive, constant 500 /s"
    mine = (usual.samples["experiment"] == "card-lag").to_numpy()
    prompt = usual.samples.assign(start_ns=usual.samples["start_ns"].where(~mine, usual.samples["due_ns"] + 1_000))
    tardy = usual.samples.assign(start_ns=usual.samples["start_ns"].where(~mine, usual.samples["due_ns"] + 90_000))
    assert verdict(ruler.lag(replace(usual, samples=prompt)), item) == gates.GREEN
    assert verdict(ruler.lag(replace(usual, samples=tardy)), item) == gates.AMBER  # far below 1 ms, and yet in the tail


def test_pages_say_which_cells_they_read(usual: store.Runs) -> None:
    every, invalid = len(usual.cells), int((~usual.cells["valid"].astype(bool)).sum())
    whole = provenance.checks(usual, "lookup", also=None)
    assert whole["cells"].sum() == every
    assert whole["invalid cells"].sum() == invalid
    part = provenance.checks(usual, "lookup", also=("open", "tls"))
    assert part["experiment"].tolist() == ["lookup", "open"]
    assert f"{part['cells'].sum()} of the {every} of these runs" in part._repr_html_()
    assert set(part["send lag p99, µs"][part["experiment"] == "lookup"]) == {text.ABSENT}  # a closed loop is never late


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sentences_and_tables_of_any_world_agree(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    arms = {arm: us * float(rng.uniform(0.5, 1.6)) for arm, us in World().dns.items()}
    world = World(dns=arms, noise=float(rng.choice([0.005, 0.05, 0.2])), sidecar=float(rng.choice([3.0, 260.0])))
    runs = measured.runs(tmp_path, world, blocks=3, seed=seed)
    said = cost_answer.answer(runs)
    for table, among in ((requests.changes(runs), 3), (requests.changes(runs, "keepalive"), 3)):
        told = [
            row for row in table.to_dict("records") if row["change"].startswith(("whole mesh", "mode 2 for mode 1, b"))
        ]
        assert len(told) == among
        for row in told:
            before, after = (text.interval(each) for each in row["levels"])
            (sentence,) = [
                each for each in said.split(" blocks)") if f"takes {after}, " in each and before in each
            ] or [""]
            clear = {"more": " longer, ", "less": " shorter, "}.get(row["reading"])
            assert (clear or f"the difference is {row['reading']}") in sentence
    for row in lookups.by_arm(runs).to_dict("records"):
        if row["arm"] in ("mode1", "mode2-envoy", "mode2-agent"):
            opening = f"a cluster name in {text.interval(row['p50'])}"
            clear = row["reading"] in text.CLEAR
            phrase = (
                f", {text.size(row['p50 against plain'])} than"
                if clear
                else f": the difference from no mesh is {row['reading']}"
            )
            assert f"{opening}{phrase}" in names_answer.answer(runs)


def test_what_was_not_measured_is_not_green() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): LEVEL})
    assert ruler.linearity(runs)[0].verdict == gates.UNMEASURED
    assert ruler.clock(runs)[0].verdict == gates.UNMEASURED


def test_more_blocks_detect_smaller_effects(usual: store.Runs) -> None:
    row = consistency.detectable(usual).set_index("comparison").loc["lookup"]
    sizes = [float(row[f"{n} blocks"].split()[0]) for n in consistency.BLOCK_COUNTS]
    assert sizes == sorted(sizes, reverse=True)
    medians = cells.matrix(cells.per_cell(usual, cells.select(usual, "lookup"), "from due"), ["arm"])
    sd_ns = float((medians["plain-aa"] - medians["plain"]).std())
    assert sizes[1] == pytest.approx(stats.minimum_detectable(sd_ns, 10) / 1_000, rel=0.01)


def test_a_failed_check_raises(usual: store.Runs, tmp_path: Path) -> None:
    assert provenance.checks(usual, "lookup", "request")["blocks"].tolist() == [8, 8]
    with pytest.raises(errors.ReportError, match="tls was not measured"):
        provenance.checks(usual, "tls")
    assert provenance.checks(usual, "tls", "lookup", planned=True)["experiment"].tolist() == ["lookup"]
    assert provenance.checks(usual, "tls", planned=True).empty  # of a plan that asks something else
    once = measured.runs(tmp_path / "once", blocks=1)
    with pytest.raises(errors.ReportError, match="an interval needs 2"):
        provenance.checks(once, "lookup")
    assert provenance.checks(once, "card-wire")["blocks"].tolist() == [1]
    assert verdict(ruler.bias(once), "bias of the DNS phase") == gates.UNKNOWN  # so the card says it, and goes on
    with pytest.raises(errors.ReportError, match="cells are invalid"):
        provenance.checks(measured.runs(tmp_path, World(invalid=0.9)), "lookup")


def test_runs_are_found_from_the_root_and_from_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        assert paths.locate("data/sample").resolve() == (tmp_path / "data" / "sample").resolve()
    assert paths.locate(2026) == tmp_path / "notebooks" / "2026"  # type: ignore[arg-type]


def test_shown_tables_have_units_and_no_raw_values() -> None:
    pair = stats.paired([100_000.0, 100_000.0, 100_000.0], [150_000.0, 151_000.0, 149_000.0])
    table = pd.DataFrame({"arm": ["a" * 80], "p50": [pair.absolute], "d": [pair], "values": [np.arange(3)]})
    shown = text.shown(table)
    assert list(shown.columns) == ["arm", "p50", "d, µs", "d, %"]
    assert shown["p50"].iloc[0] == "50.0 ± 2.5 µs"
    assert "a" * 80 in shown._repr_html_()
    assert text.size(stats.paired([100.0, 100.0], [40.0, 41.0])).endswith("less")
