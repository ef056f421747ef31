"""Notebook 04's tables of faults and traffic split, in worlds that keep what a sidecar promises, and that do not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import policies_world
from meshdns import store
from meshdns.analysis import absent, cells, gates, stats, text
from meshdns.core import errors, units
from meshdns.studies.policies import answer, external, mtls, tables
from policies_world import ARMS, MODES, World
from shipped import WORLD

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04-what-the-sidecar-buys.ipynb"


def row(table: pd.DataFrame, fault: str, policy: str, arm: str) -> dict[Any, Any]:
    found = table[(table["fault"] == fault) & (table["policy"] == policy) & (table["arm"] == arm)]
    assert len(found) == 1
    return found.to_dict("records")[0]


# --- faults ---


def test_the_table_knows_what_the_world_does(usual: store.Runs) -> None:
    table = tables.faults(usual)
    without = row(table, "fail30", "none", "plain")
    assert without["served"].holds(0.9)  # a third of the requests meets the replica that fails 30 %
    assert without["reading"] == "the baseline"
    for arm in MODES:
        tried = row(table, "fail30", "retries", arm)
        assert tried["served"].estimate > 0.995
        assert tried["reading"] == "more"
        assert tried["against_plain"].holds(0.1)
        assert tried["against_no_policy"].holds(0.1)
        assert tried["attempts"].estimate == pytest.approx(1.1, abs=0.03)
        assert tried["arrived"].estimate == pytest.approx(tried["attempts"].estimate)
        assert tried["retries"] > 0
        assert row(table, "fail30", "outlier", arm)["ejections"] == 8
        assert row(table, "overload", "breaker", arm)["breaker_overflows"] > 0
        assert row(table, "overload", "breaker", arm)["reading"] == "fewer"
        assert row(table, "dead", "none", arm)["reading"] == "more"
    assert row(table, "dead", "none", "plain")["served"].holds(0.75)
    assert row(table, "dead", "none", "plain")["arrived"].holds(0.75)  # the dead address is no replica
    assert pd.isna(without["retries"])


def test_every_try_counts_but_not_what_a_breaker_refuses(usual: store.Runs) -> None:
    table = tables.faults(usual)
    made = 8 * 130  # the warm-up too
    for arm in MODES:
        for fault, policy in (("slow", "timeouts"), ("dead", "none"), ("fail30", "retries"), ("overload", "breaker")):
            found = row(table, fault, policy, arm)
            tries = made + found["retries"] - found["breaker_overflows"]
            assert found["tries"] == tries
            assert found["attempts"].estimate == pytest.approx(tries / made)
        given_up, dead = row(table, "slow", "timeouts", arm), row(table, "dead", "none", arm)
        assert given_up["retries"] > 0
        assert given_up["arrived"].estimate == pytest.approx(given_up["attempts"].estimate)  # given up, but there
        assert dead["arrived"].estimate <= 1.0 < dead["attempts"].low  # what met the dead address was tried again
        assert row(table, "overload", "breaker", arm)["arrived"].holds(0.7)
    assert row(table, "slow", "none", "plain")["attempts"].n == 0
    assert {str(each) for each in table.query("arm == 'plain'")["attempts"]} == {text.ABSENT}


def test_time_outs_shorten_the_tail_and_serve_no_more(usual: store.Runs) -> None:
    table = tables.faults(usual)
    found = row(table, "slow", "timeouts", "mode2-agent")
    assert row(table, "slow", "none", "plain")["p90"].holds(103.4 * units.NS_PER_MS)
    assert 25 < found["p90"].estimate / units.NS_PER_MS < 28
    assert found["p90_against_plain"].clear
    assert found["time_outs"] > 0
    assert found["reading"].startswith("not resolved (-")


def test_rows_come_in_the_order_in_which_they_are_read(usual: store.Runs) -> None:
    table = tables.faults(usual)
    assert list(dict.fromkeys(table["fault"])) == ["fail30", "slow", "dead", "overload"]
    assert set(table["policy"][:3]) == {"none"}
    assert list(table["arm"][:3]) == list(ARMS)


def test_a_quantile_of_few_served_requests_is_left_out(usual: store.Runs) -> None:
    found = row(tables.faults(usual), "overload", "breaker", "mode1")
    assert found["p90"].n == 0
    assert pd.isna(found["p99"].value_ns)


def test_invalid_cells_count_for_nothing(usual: store.Runs, tmp_path: Path) -> None:
    half = policies_world.runs(tmp_path, World(invalid=0.3), blocks=4)
    table = tables.faults(half)
    assert 0 < table["requests"].sum() < tables.faults(usual)["requests"].sum() / 2
    assert tables.checks(half)["invalid cells"].sum() > 0


def test_replicas_that_are_left_out_answer_less(usual: store.Runs) -> None:
    table = tables.replicas(usual).set_index(["fault", "policy", "arm"])
    even = table.loc[("fail30", "none", "plain")]
    assert all(even[name].holds(1 / 3) for name in policies_world.REPLICAS)
    left_out = table.loc[("fail30", "outlier", "mode1")]
    assert left_out["shop-1"].high < 0.1
    assert left_out["shop-2"].holds(0.485)
    assert "% [" in str(even["shop-1"])


def test_what_people_read_has_units_and_no_raw_values(usual: store.Runs) -> None:
    table = tables.faults(usual)
    shown = text.shown(table, answer.WORDS, answer.OUTCOMES)
    assert isinstance(shown, pd.DataFrame)
    assert shown["against plain"].map(str).str.contains(r"^(?:–|[+-]?[\d.]+ points \[.*\])$").all()
    assert set(shown.loc[shown["arm"] == "plain", "retries"]) == {text.ABSENT}
    assert {"503s", "slow replica", "dead address", "overload"} == set(shown["fault"])
    timed = text.shown(table, answer.WORDS, answer.LATENCIES)
    assert {"p50", "p90", "p99", "p90 against plain, µs", "p90 against plain, %"} <= set(timed)


def test_faults_and_policies_that_nobody_here_knows_are_shown_last_under_their_own_name(usual: store.Runs) -> None:
    def renamed(frame: pd.DataFrame) -> pd.DataFrame:
        names = {"fault": {"slow": "a-fault"}, "policy": {"retries": "a-policy", "strict": "a-rule"}}
        names["backend"] = {"redis": "a-shop"}
        return frame.assign(**{name: frame[name].astype(str).replace(known) for name, known in names.items()})

    runs = replace(usual, cells=renamed(usual.cells), samples=renamed(usual.samples))
    table = tables.faults(runs)
    assert len(table) == len(tables.faults(usual))
    assert list(dict.fromkeys(table["fault"])) == ["fail30", "dead", "overload", "a-fault"]
    assert [*table[table["fault"] == "fail30"]["policy"]][-1] == "a-policy"
    assert "A-fault: " in answer.answer(table)
    assert "with a-policy" in answer.answer(table)
    assert set(mtls.table(runs)["policy"]) == {"permissive", "disable", "a-rule"}
    assert "mutual TLS a-rule" in answer.mtls_answer(mtls.table(runs))
    assert list(answer.grid(mtls.table(runs)).columns) == [*tables.WANTED, "a-rule"]
    assert list(external.table(runs)["backend"])[-1] == "a-shop"
    assert "a-shop is answered" in answer.external_answer(external.table(runs))


# --- traffic split ---


def test_the_promised_share_lies_inside_where_it_is_kept(usual: store.Runs, unheeded: store.Runs) -> None:
    kept, broken = (tables.split(each).set_index("arm") for each in (usual, unheeded))
    assert kept.loc[list(MODES), "promised"].tolist() == [tables.INSIDE] * 2
    assert kept.loc["plain", "promised"] == tables.OUTSIDE
    assert kept.loc["plain", "share_of_v2"].holds(1 / 3)
    assert broken.loc[list(MODES), "promised"].tolist() == [tables.OUTSIDE] * 2
    said = answer.split_answer(tables.split(usual))
    assert "the promised 10 % lies inside the interval in mode1 and mode2-agent." in said
    assert "outside it in mode1 and mode2-agent" in answer.split_answer(tables.split(unheeded))


def test_a_split_in_one_block_is_not_judged(tmp_path: Path) -> None:
    table = tables.split(policies_world.runs(tmp_path, blocks=1))
    assert table["promised"].isna().all()
    assert "one block does not tell whether that is the promised 10 %." in answer.split_answer(table)


def test_an_interval_that_holds_an_even_third_too_keeps_no_promise(usual: store.Runs) -> None:
    wide, narrow = (stats.Interval(0.1, low, high, 3) for low, high in ((0.0, 0.5), (0.08, 0.12)))
    assert [tables.promise(each) for each in (wide, narrow)] == [gates.UNKNOWN, tables.INSIDE]
    table = tables.split(usual)
    vague = table.assign(promised=gates.UNKNOWN)
    assert "holds an even third too and does not tell whether" in answer.split_answer(vague)
    assert "lies inside" not in answer.split_answer(vague)
    one = table.assign(promised=table["promised"].where(table["arm"] != MODES[0], gates.UNKNOWN))
    assert "; in mode1 the interval holds an even third too" in answer.split_answer(one)


def test_no_difference_is_bounded_by_one_block(tmp_path: Path) -> None:
    said = answer.answer(tables.faults(policies_world.runs(tmp_path, blocks=1)))
    assert "are served without a mesh; one block does not tell what a sidecar changes." in said
    assert "inf" not in said


# --- answers ---


def test_the_answer_follows_the_data(usual: store.Runs, unheeded: store.Runs) -> None:
    said = answer.answer(tables.faults(usual))
    assert said.startswith("Passing the sidecar buys most against one address of four dead")
    assert "with retries 100.0 % [99.6, 100.0] in mode1 and 100.0 % [99.6, 100.0] in mode2-agent" in said
    assert re.search(r"p90 of those served is 10[23][\d.]* ± [\d.]+ ms without a mesh, with timeouts 26\.", said)
    assert "fewer with breaker" in said
    other = answer.answer(tables.faults(unheeded))
    assert other.startswith("No policy was seen to serve more requests in every mode")
    assert "with timeouts" not in other


def test_of_policies_that_serve_alike_none_at_all_is_named(usual: store.Runs) -> None:
    table = tables.faults(usual)
    dead = table[(table["fault"] == "dead")]
    spare = dead[dead["arm"].isin(MODES)]
    both = pd.concat([dead[dead["arm"] == tables.PLAIN], spare, spare.assign(policy="retries")])
    assert "with a sidecar and no policy" in answer.answer(both).splitlines()[-1]


def test_runs_without_the_experiments_say_how_to_measure_them(empty: store.Runs) -> None:
    table = tables.faults(empty)
    assert table.empty
    assert "meshdns report --plan policies" in answer.answer(table)
    assert tables.split(empty).empty
    assert tables.replicas(empty).empty
    assert answer.split_answer(tables.split(empty)) == ""
    assert tables.checks(empty).empty
    for columns in (answer.OUTCOMES, answer.LATENCIES):
        assert text.shown(table, answer.WORDS, columns) == absent.Absent(("faults",))


def test_checks_refuse_what_cannot_carry_an_answer(tmp_path: Path) -> None:
    with pytest.raises(errors.ReportError, match="has 1 block"):
        tables.checks(policies_world.runs(tmp_path / "one", blocks=1))
    with pytest.raises(errors.ReportError, match="cells are invalid"):
        tables.checks(policies_world.runs(tmp_path / "bad", World(invalid=0.9), blocks=2))


def test_many_failures_are_the_question_and_no_reason_to_refuse(usual: store.Runs) -> None:
    checked = tables.checks(usual).set_index("experiment")
    assert list(checked.index) == list(tables.EXPERIMENTS)
    assert checked.loc["faults", "not served"] > 0.1 * checked.loc["faults", "requests"]
    assert (checked["of those offered"] == 1).all()


def test_the_kinds_of_fault_and_policy_all_have_a_name() -> None:
    from meshdns.measure.factors import fault

    assert set(fault.LEVELS) == answer.WORDS.values["fault"].keys() - {"none"} | {"overload"} == set(answer._FAULTS)
    assert set(ARMS) <= set(WORLD.arms)
    assert cells.PROBABILITIES[1] == tables.TAIL


def test_a_world_without_plain_has_no_differences(usual: store.Runs) -> None:
    left = [each[each["arm"] != "plain"] for each in (usual.cells, usual.samples)]
    table = tables.faults(replace(usual, cells=left[0], samples=left[1]))
    assert table["against_plain"].isna().all()
    assert set(table["reading"]) == {"not measured"}
    assert answer.answer(table)
