"""Tables against frames small enough to work out by hand, and against made-up worlds whose truth is known."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import measured
import numpy as np
import pandas as pd
import pytest
from measured import World

from harness import errors, stats, store
from harness.tables import card, cells, consistency, gates, lookups, provenance, requests, ruler, text


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
        pd.DataFrame(rows), pd.DataFrame(found).assign(offered=5, counters=[{}] * len(found)), [header], []
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
    assert text.reading(small, floor).startswith("below the noise floor")
    assert text.reading(large, floor) == "more"
    equal = stats.paired([100.0, 101.0, 100.0], [101.0, 100.0, 100.0])
    assert text.reading(equal, floor).startswith("no difference larger than")


def test_one_word_for_a_difference_whatever_the_ratios_say() -> None:
    slow_block = stats.paired([100.0, 100.0, 1_000.0], [112.0, 112.0, 900.0])  # less in the mean, more in most blocks
    assert text.word(slow_block) == "less"
    assert text.size(slow_block).startswith("30 ± 160 ns less")
    assert "the mean of the blocks' ratios is 0 % [-30, 40]" in text.size(slow_block)
    uneven = stats.paired([10.0, 100.0, 1_000.0, 1_010.0], [13.0, 100.0, 880.0, 890.0])
    assert text.size(uneven).endswith("more") == (text.word(uneven) == "more")
    clear = stats.paired([1e6, 1e6, 1e6, 2_000.0], [9.9e5, 9.9e5, 9.9e5, 200.0])
    assert clear.clear == ("clear in µs, not as a share" in text.size(clear))


def test_names_and_delays_are_read_against_their_own_twin(tmp_path: Path) -> None:
    world = World(noise=0.05, dns=World().dns | {"mode1": 214.0})
    found = lookups.by_name(measured.runs(tmp_path, world, blocks=15))
    assert {"plain-aa"} < set(found["arm"])
    assert not set(found[found["arm"] == "mode1"]["reading"]) & {"less", "more"}
    delays = lookups.delays(measured.runs(tmp_path / "delays", World()))
    assert set(delays["reading"][delays["delay, ms"] > 0]) == {"less"}


def test_lookups_turn_round_with_the_data(usual: store.Runs, tmp_path: Path) -> None:
    said = lookups.answer(usual)
    assert said.startswith("Mode 2 answers a cluster name in 6")
    assert "less than without a mesh (8 blocks)" in said
    assert "Mode 1 answers a cluster name in 2" in said
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
    other = measured.runs(tmp_path, slow)
    assert "% [" in lookups.answer(other)
    assert "more than without a mesh" in lookups.answer(other)
    assert "already at 0 ms" in lookups.break_even_answer(lookups.break_even(usual))
    turn = lookups.break_even(other)
    assert turn.delay is not None
    assert turn.delay.estimate == pytest.approx(0.2, rel=0.1)  # ms: what mode 2 is slower by without any delay
    assert "mode 2 is ahead once the cluster DNS takes" in lookups.break_even_answer(turn)
    assert "never ahead" in lookups.break_even_answer(lookups.break_even(usual, "external"), "external")


def test_break_even_says_what_the_blocks_tell() -> None:
    line = stats.Line(*[stats.Interval(1.0, 0.5, 1.5, 9, 0.95)] * 2, (0.0, -2_000.0, 1_000.0))
    delay = stats.Interval(0.5, 0.4, 0.6, 9, 0.95)
    kinds = {
        stats.BreakEven(
            "wins_above", delay, True, line
        ): "ahead once the cluster DNS takes 0.500 ms [0.400, 0.600] longer",
        stats.BreakEven("loses_above", delay, False, line): "less than 0.500 ms [0.400, 0.600] longer, beyond",
        stats.BreakEven("wins_above", replace(delay, low=-0.1), True, line): "not told from no delay at all",
        stats.BreakEven("never", None, False, line): "never ahead",
        stats.BreakEven("always", None, False, line): "already at 0 ms",
        stats.BreakEven("unclear", None, False, line): "no delay that the blocks tell",
    }
    for found, phrase in kinds.items():
        assert phrase in lookups.break_even_answer(found)
    level = replace(line, slope=stats.Interval(0.0, -1.0, 1.0, 9, 0.95))
    assert "never ahead at the delays that were measured (" in lookups.break_even_answer(
        stats.BreakEven("never", None, False, level)
    )
    assert "no delay is farther than 2.00 µs from the line" in lookups.break_even_answer(found)
    assert "from the line" not in lookups.break_even_answer(replace(found, line=replace(line, residuals=(0.0, 0.0))))
    assert "No delay sweep" in lookups.break_even_answer(None)


def test_queries_agree_to_the_packet_or_say_that_they_do_not(usual: store.Runs, tmp_path: Path) -> None:
    table = lookups.queries(usual)
    assert set(table["residual"]) == {0}
    row = table[(table["arm"] == "plain") & (table["name_kind"] == "external") & (table["ndots"] == 5)]
    assert set(row[row["lookup"] == "getaddrinfo"]["client, per lookup"]) == {8.0}
    kept = table[(table["arm"] == "mode2-envoy") & (table["name_kind"] == "fqdn")]
    assert set(kept["at cluster DNS"]) == {0}
    assert "counted the same queries" in lookups.queries_answer(table)
    assert lookups.queries_answer(table[:0]).endswith("in all 0 combinations.")
    lost = lookups.queries(measured.runs(tmp_path, World(lost_queries=1)))
    assert "disagree in" in lookups.queries_answer(lost)
    assert set(lost["agree"]) == {"NO"}


def test_queries_per_lookup_are_of_lookups_that_all_arms_made(usual: store.Runs) -> None:
    table = lookups.queries(usual)
    said = lookups.queries_answer(table)
    assert said.endswith("3.45 in plain, 3.48 in mode1, 2.91 in mode2-envoy and 2.91 in mode2-agent.")
    cheap = (table["arm"] == "plain") & (table["name_kind"] == "fqdn") & (table["lookup"] == "wire")
    counts = ["lookups", "at client", "at cluster DNS"]
    more = table.assign(**{name: table[name].where(~cheap, 50 * table[name]) for name in counts})
    assert lookups.queries_answer(more) == said  # so it is where other runs looked up names in plain alone


def test_return_codes_tell_nodata_from_nxdomain(usual: store.Runs, tmp_path: Path) -> None:
    assert "NODATA without a mesh, NXDOMAIN in mode2-envoy and NODATA in mode2-agent" in lookups.aaaa_answer(
        lookups.return_codes(usual)
    )
    alike = measured.runs(tmp_path, World(aaaa_rcode=0))
    assert "gets NODATA with and without mode 2" in lookups.aaaa_answer(lookups.return_codes(alike))


def test_phases_add_up_and_changes_recover_the_world(usual: store.Runs, tmp_path: Path) -> None:
    phases = requests.phases(usual)
    assert len(phases) == len(requests.LADDER)
    assert phases["left over, ns"].abs().max() < 1
    changes = requests.changes(usual).set_index("change")
    assert changes.loc["sidecar at the server", "p50"].absolute.estimate == pytest.approx(180_000, rel=0.1)
    assert changes.loc["mode 2 for mode 1, both sidecars", "p50"].absolute.estimate == pytest.approx(-152_000, rel=0.15)
    assert "shorter than in mode 1" in requests.answer(usual)
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
    assert "longer than in mode 1" in requests.answer(measured.runs(tmp_path, slow))


def test_cpu_goes_to_the_containers_of_the_arm(usual: store.Runs) -> None:
    table = requests.cpu(usual).set_index("step")
    assert table.loc["mode2-envoy → meshed", "client sidecar"].estimate == pytest.approx(250_000, rel=0.1)
    assert table.loc["mode2-envoy → meshed", "bind"].estimate == 0
    assert table.loc["plain → plain", "client sidecar"].estimate == 0
    plain = ("plain", "plain")
    assert requests.role(plain, "client-plain-app") == "client app"
    assert requests.role(plain, "client-plain-aa-app") == ""
    assert requests.role(plain, "legacy-2") == "server (nginx)"
    assert requests.role(plain, "web-1-envoy") == ""
    assert requests.role(("plain", "meshed"), "web-1-envoy") == "server sidecar"
    assert {"client app", "server (nginx)"} <= set(requests.memory(usual)["role"])


def verdict(lines: list[gates.Row], item: str) -> str:
    return next(each.verdict for each in lines if each.item == item)


def test_the_card_is_green_for_a_good_ruler_and_red_for_a_bent_one(usual: store.Runs, tmp_path: Path) -> None:
    assert gates.RED not in set(card.card(usual)["verdict"])
    assert card.answer(card.card(usual)).startswith("Yes")
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
    assert verdict(ruler.lag(without), "send lag at 500 /s") == gates.UNKNOWN


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
    green, stated = ((table["verdict"] == each).sum() for each in (gates.GREEN, gates.STATED))
    assert stated > 0
    assert f"{green} of {len(table) - stated} gates are green" in card.answer(table)


def test_what_was_not_measured_is_not_green() -> None:
    runs = tiny({(0, "plain"): LEVEL, (1, "plain"): LEVEL})
    assert ruler.linearity(runs)[0].verdict == gates.UNKNOWN
    assert ruler.clock(runs)[0].verdict == gates.UNKNOWN


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
    with pytest.raises(errors.ReportError, match="cells are invalid"):
        provenance.checks(measured.runs(tmp_path, World(invalid=0.9)), "lookup")


def test_runs_are_found_from_the_root_and_from_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    for place in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(place)
        assert provenance.locate("data/sample").resolve() == (tmp_path / "data" / "sample").resolve()
    assert provenance.locate(2026) == tmp_path / "notebooks" / "2026"  # type: ignore[arg-type]


def test_shown_tables_have_units_and_no_raw_values() -> None:
    pair = stats.paired([100_000.0, 100_000.0, 100_000.0], [150_000.0, 151_000.0, 149_000.0])
    table = pd.DataFrame({"arm": ["a" * 80], "p50": [pair.absolute], "d": [pair], "values": [np.arange(3)]})
    shown = text.shown(table)
    assert list(shown.columns) == ["arm", "p50", "d, µs", "d, %"]
    assert shown["p50"].iloc[0] == "50.0 ± 2.5 µs"
    assert "a" * 80 in shown._repr_html_()
    assert text.size(stats.paired([100.0, 100.0], [40.0, 41.0])).endswith("less")


def test_waits_are_of_the_open_loop(usual: store.Runs) -> None:
    table = requests.waits(usual).set_index("step")
    assert (table["p50 from due"].map(lambda each: each.estimate) > 0).all()
    asked = cells.select(usual, "open")
    assert set(asked["arrival"]) == {"poisson"}
    assert table["hidden wait mean"].map(lambda each: each.estimate).max() > 0  # a closed loop has none by definition


def test_sizes_and_tls_stand_beside_the_usual_request(usual: store.Runs, tmp_path: Path) -> None:
    assert requests.sizes(usual).empty
    assert "were not measured" in requests.sizes_answer(requests.sizes(usual))
    table = requests.sizes(measured.runs(tmp_path, blocks=3, name="standard"))
    assert set(zip(table["TLS"], table["body, kB"], strict=True)) == {("yes", 1.0), ("no", 16.0), ("no", 128.0)}
    assert set(table["arm"]) == {"plain", "mode1", "mode2-envoy", "mode2-agent"}
    assert {each.absolute.n for each in table["p50 against 1 kB without TLS"]} == {3}
    assert "128 kB on plain → meshed" in requests.sizes_answer(table)
