"""Tables against frames small enough to work out by hand, and against made-up worlds whose truth is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import measured
from measured import World
from meshdns import store
from meshdns.analysis import cells, provenance, stats, text
from meshdns.core import errors, paths
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
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from_start"), ["arm"])
    assert cells.column(values, "plain").tolist() == pytest.approx([10_500, 21_000])
    assert cells.interval(values, "plain").estimate == pytest.approx(15_750)
    pair = cells.paired(values, "plain", "mode1")
    assert pair is not None
    assert pair.absolute.estimate == pytest.approx(4_000)
    assert pair.absolute.n == 2
    late = cells.per_cell(runs, cells.select(runs, "lookup"), "from_due")["value"]
    assert (late - 1_000).tolist() == pytest.approx([10_500, 13_500, 21_000, 26_000])


def test_quantiles_need_ten_samples_beyond_them() -> None:
    runs = tiny({(0, "plain"): LEVEL[:-1], (1, "plain"): LEVEL, (2, "plain"): [float(x) for x in range(100)]})
    chosen = cells.select(runs, "lookup")
    assert cells.per_cell(runs, chosen, "from_start")["value"].isna().tolist() == [True, False, False]
    assert cells.per_cell(runs, chosen, "from_start", 0.9)["value"].isna().tolist() == [True, True, False]
    assert cells.pooled(runs, chosen, "arm", "from_start", 0.99) == {}
    assert cells.pooled(runs, chosen, "arm", "from_start", 0.9).keys() == {"plain"}


def test_invalid_cells_are_listed_and_never_averaged() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): [9e6] * 20}, {(1, "plain"): False})
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from_start"), ["arm"])
    assert cells.column(values, "plain").tolist() == pytest.approx([10_500])
    runs.cells["backend"] = "none"
    assert provenance.invalid(runs)[["reason", "cells"]].to_numpy().tolist() == [["made so", 1]]


def test_a_block_without_one_of_the_arms_is_not_paired() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): LEVEL, (1, "mode1"): LEVEL})
    values = cells.matrix(cells.per_cell(runs, cells.select(runs, "lookup"), "from_start"), ["arm"])
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
        pairs = ((requests.PLAIN, requests.MODE1), (requests.PLAIN, requests.MODE2), (requests.MODE1, requests.MODE2))
        found = [row for row in table.to_dict("records") if row["change"] in {requests.change(*each) for each in pairs}]
        assert len(found) == among
        for row in found:
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
                f", {text.size(row['p50_against_plain'])} than"
                if clear
                else f": the difference from no mesh is {row['reading']}"
            )
            assert f"{opening}{phrase}" in names_answer.answer(runs)


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
