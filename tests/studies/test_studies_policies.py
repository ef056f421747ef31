"""Notebook 04's tables of faults and traffic split, in worlds that keep what a sidecar promises, and that do not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

import measured
import policies_world
from meshdns import store
from meshdns.analysis import absent, cells, figures, gates, shares, stats, text
from meshdns.core import errors, plans, units
from meshdns.core.world import Nets
from meshdns.lab import parts
from meshdns.lab.parts import envoy
from meshdns.measure import plan
from meshdns.studies import claims, policies
from policies_world import ARMS, MODES, World
from shipped import WORLD

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04-what-the-sidecar-buys.ipynb"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return policies_world.runs(tmp_path_factory.mktemp("usual"), World(facts=policies_world.governed()))


@pytest.fixture(scope="module")
def unheeded(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return policies_world.runs(tmp_path_factory.mktemp("unheeded"), World(retried=False, weight=1 / 3))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("empty"), blocks=2)


@pytest.fixture
def _closed() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def row(table: pd.DataFrame, fault: str, policy: str, arm: str) -> dict[Any, Any]:
    found = table[(table["fault"] == fault) & (table["policy"] == policy) & (table["arm"] == arm)]
    assert len(found) == 1
    return found.to_dict("records")[0]


def verdict(runs: store.Runs) -> claims.Verdict:
    return claims.passing(policies.faults(runs), policies.replicas(runs), policies.split(runs))


# --- shares ---


def test_a_share_has_students_interval_over_blocks_cut_at_its_bounds() -> None:
    found = shares.interval([90, 95, 100], [100, 100, 100])
    assert found.estimate == pytest.approx(0.95)
    assert found.low == pytest.approx(0.95 - 4.302653 * 0.05 / np.sqrt(3), abs=1e-6)
    assert found.high == 1.0
    assert shares.percent(found) == "95 % [83, 100]"


def test_blocks_that_are_alike_have_the_interval_of_their_requests() -> None:
    found = shares.interval([100, 100], [100, 100])
    assert (found.estimate, found.n) == (1.0, 2)
    assert found.low == pytest.approx(200 / (200 + 1.959964**2), abs=1e-6)
    assert found.high == 1.0
    assert shares.interval([0, 0], [50, 50]).low == 0.0
    assert shares.wilson(10, 100, 1).low == pytest.approx(0.05523, abs=1e-5)  # as tables of Wilson's have it
    assert shares.wilson(10, 100, 1).high == pytest.approx(0.17437, abs=1e-5)


def test_one_block_has_no_interval_and_none_no_share() -> None:
    assert shares.percent(shares.interval([9], [10])) == "90.0 % [?, ?]"
    assert shares.percent(shares.interval([], [])) == shares.points(None) == text.ABSENT
    assert shares.percent(shares.interval([0, 0], [0, 0])) == text.ABSENT
    assert shares.interval([5, 0], [10, 0]).n == 1


def counts(*hits: int, n: int = 100) -> pd.DataFrame:
    return pd.DataFrame({"hits": hits, "n": [n] * len(hits)}, index=range(len(hits)))


def test_differences_of_shares_are_paired_in_blocks() -> None:
    found = shares.difference(counts(50, 60, 70), counts(60, 71, 79))
    assert found is not None
    assert (found.estimate, found.n) == (pytest.approx(0.10), 3)
    assert found.high - found.low < 0.06  # the blocks themselves differ by 0.2
    assert shares.reading(found) == "more"
    assert shares.reading(shares.difference(counts(60, 71, 79), counts(50, 60, 70))) == "fewer"
    assert shares.difference(counts(50, 60), counts(50).rename(index={0: 9})) is None
    assert shares.reading(None) == "not measured"
    assert shares.reading(shares.difference(counts(5), counts(9))) == "one block: no interval"


def test_differences_that_are_alike_in_all_blocks_are_bounded_by_their_requests() -> None:
    found = shares.difference(counts(100, 100), counts(100, 100))
    assert found is not None
    assert found.low < 0 < found.high
    assert shares.reading(found) == "not resolved (-1.9 to +1.9 points)"
    total = shares.difference(counts(0, 0), counts(100, 100))
    assert total is not None
    assert (total.estimate, round(total.high, 6)) == (1.0, 1.0)
    assert 0.95 < total.low < 1


# --- faults ---


def test_the_table_knows_what_the_world_does(usual: store.Runs) -> None:
    table = policies.faults(usual)
    without = row(table, "fail30", "none", "plain")
    assert without["served"].holds(0.9)  # a third of the requests meets the replica that fails 30 %
    assert without["reading"] == "the baseline"
    for arm in MODES:
        tried = row(table, "fail30", "retries", arm)
        assert tried["served"].estimate > 0.995
        assert tried["reading"] == "more"
        assert tried[policies.AGAINST].holds(0.1)
        assert tried[policies.ALONE].holds(0.1)
        assert tried["attempts"].estimate == pytest.approx(1.1, abs=0.03)
        assert tried["arrived"].estimate == pytest.approx(tried["attempts"].estimate)
        assert tried["retries"] > 0
        assert row(table, "fail30", "outlier", arm)["ejections"] == 8
        assert row(table, "overload", "breaker", arm)["breaker overflows"] > 0
        assert row(table, "overload", "breaker", arm)["reading"] == "fewer"
        assert row(table, "dead", "none", arm)["reading"] == "more"
    assert row(table, "dead", "none", "plain")["served"].holds(0.75)
    assert row(table, "dead", "none", "plain")["arrived"].holds(0.75)  # the dead address is no replica
    assert pd.isna(without["retries"])


def test_every_try_counts_but_not_what_a_breaker_refuses(usual: store.Runs) -> None:
    table = policies.faults(usual)
    made = 8 * 130  # the warm-up too
    for arm in MODES:
        for fault, policy in (("slow", "timeouts"), ("dead", "none"), ("fail30", "retries"), ("overload", "breaker")):
            found = row(table, fault, policy, arm)
            tries = made + found["retries"] - found["breaker overflows"]
            assert found["tries"] == tries
            assert found["attempts"].estimate == pytest.approx(tries / made)
        given_up, dead = row(table, "slow", "timeouts", arm), row(table, "dead", "none", arm)
        assert given_up["retries"] > 0
        assert given_up["arrived"].estimate == pytest.approx(given_up["attempts"].estimate)  # given up, but there
        assert dead["arrived"].estimate <= 1.0 < dead["attempts"].low  # what met the dead address was tried again
        assert row(table, "overload", "breaker", arm)["arrived"].holds(0.7)
    assert row(table, "slow", "none", "plain")["attempts"].n == 0
    assert set(policies.outcomes(table).query("arm == 'plain'")["tries per request"]) == {text.ABSENT}


def test_tries_are_counted_whether_or_not_they_were_answered() -> None:
    # As Envoy 1.40 counted 60 requests of which 59 were given up at one replica and then refused by another.
    counted = {"total": 119, "pending_failure_eject": 59, "completed": 60, "retry": 118, "pending_overflow": 7}
    stats = [
        {"name": f"cluster.outbound|80||shop.shop.svc.cluster.local.upstream_rq_{name}", "value": value}
        for name, value in counted.items()
    ]
    client, server = WORLD.arms["mode2-xds"], WORLD.named("shop-1")
    caller, called = (
        next(at for at in parts.of(WORLD, Nets(), pod) if at.part is envoy.PART) for pod in (client, server)
    )
    found = envoy.PART.counts(json.dumps({"stats": stats}), caller, client)
    assert found["pod/envoy/tries"] == 60 + found["pod/envoy/retries"]
    assert found["pod/envoy/breaker_overflow"] == 7
    passed_on = ("total", "completed")
    inbound = [{"name": f"cluster.inbound.upstream_rq_{name}", "value": counted[name]} for name in passed_on]
    assert envoy.PART.counts(json.dumps({"stats": inbound}), called, client)["servers/nginx_rq"] == 119


def test_time_outs_shorten_the_tail_and_serve_no_more(usual: store.Runs) -> None:
    table = policies.faults(usual)
    found = row(table, "slow", "timeouts", "mode2-xds")
    assert row(table, "slow", "none", "plain")["p90"].holds(102.5 * units.NS_PER_MS)
    assert 25 < found["p90"].estimate / units.NS_PER_MS < 28
    assert found[policies.TAIL_AGAINST].clear
    assert found["time-outs"] > 0
    assert found["reading"].startswith("not resolved (-")


def test_rows_come_in_the_order_in_which_they_are_read(usual: store.Runs) -> None:
    table = policies.faults(usual)
    assert list(dict.fromkeys(table["fault"])) == ["fail30", "slow", "dead", "overload"]
    assert list(table["row"][:4]) == ["503s, no policy"] * 4
    assert list(table["arm"][:4]) == list(ARMS)


def test_a_quantile_of_few_served_requests_is_left_out(usual: store.Runs) -> None:
    found = row(policies.faults(usual), "overload", "breaker", "mode1-xds")
    assert found["p90"].n == 0
    assert found["p99"] == text.ABSENT


def test_invalid_cells_count_for_nothing(usual: store.Runs, tmp_path: Path) -> None:
    half = policies_world.runs(tmp_path, World(invalid=0.3), blocks=4)
    table = policies.faults(half)
    assert 0 < table["requests"].sum() < policies.faults(usual)["requests"].sum() / 2
    assert policies.checks(half)["invalid cells"].sum() > 0


def test_replicas_that_are_left_out_answer_less(usual: store.Runs) -> None:
    table = policies.replicas(usual).set_index(["fault", "policy", "arm"])
    even = table.loc[("503s", "no policy", "plain")]
    assert all(even[name].holds(1 / 3) for name in policies_world.REPLICAS)
    left_out = table.loc[("503s", "outlier", "mode1-xds")]
    assert left_out["shop-1"].high < 0.1
    assert left_out["shop-2"].holds(0.485)
    assert "% [" in policies.in_percent(policies.replicas(usual))["shop-1"][0]


def test_what_people_read_has_units_and_no_raw_values(usual: store.Runs) -> None:
    table = policies.faults(usual)
    shown = text.shown(policies.outcomes(table))
    assert shown["against plain"].str.contains(r"^(?:–|[+-]?[\d.]+ points \[.*\])$").all()
    assert set(shown.loc[shown["arm"] == "plain", "retries"]) == {text.ABSENT}
    timed = text.shown(policies.latencies(table))
    assert {"p50", "p90", "p99", "p90 against plain, µs", "p90 against plain, %"} <= set(timed)
    assert "values" not in timed


# --- traffic split ---


def test_the_promised_share_lies_inside_where_it_is_kept(usual: store.Runs, unheeded: store.Runs) -> None:
    kept, broken = (policies.split(each).set_index("arm") for each in (usual, unheeded))
    assert kept.loc[list(MODES), "10 % inside"].tolist() == ["yes"] * 3
    assert kept.loc["plain", "10 % inside"] == "NO"
    assert kept.loc["plain", "share of v2"].holds(1 / 3)
    assert broken.loc[list(MODES), "10 % inside"].tolist() == ["NO"] * 3
    said = policies.split_answer(policies.split(usual))
    assert "the promised 10 % lies inside the interval in mode1-xds, mode2-xds and mode2-envoy-xds." in said
    assert "outside it in mode1-xds, mode2-xds and mode2-envoy-xds" in policies.split_answer(policies.split(unheeded))


def test_a_split_in_one_block_is_not_judged(tmp_path: Path) -> None:
    table = policies.split(policies_world.runs(tmp_path, blocks=1))
    assert set(table["10 % inside"]) == {text.ABSENT}
    assert "one block does not tell whether that is the promised 10 %." in policies.split_answer(table)


def test_an_interval_that_holds_an_even_third_too_keeps_no_promise(usual: store.Runs) -> None:
    wide, narrow = (stats.Interval(0.1, low, high, 3, 0.95) for low, high in ((0.0, 0.5), (0.08, 0.12)))
    assert [policies._inside(each) for each in (wide, narrow)] == [gates.UNKNOWN, "yes"]
    table = policies.split(usual)
    vague = table.assign(**{"10 % inside": gates.UNKNOWN})
    assert "holds an even third too and does not tell whether" in policies.split_answer(vague)
    assert "lies inside" not in policies.split_answer(vague)
    one = table.assign(**{"10 % inside": table["10 % inside"].where(table["arm"] != MODES[0], gates.UNKNOWN)})
    assert "; in mode1-xds the interval holds an even third too" in policies.split_answer(one)


def test_no_difference_is_bounded_by_one_block(tmp_path: Path) -> None:
    said = policies.answer(policies.faults(policies_world.runs(tmp_path, blocks=1)))
    assert "are served without a mesh; one block does not tell what a sidecar changes." in said
    assert "inf" not in said


# --- answers ---


def test_the_answer_follows_the_data(usual: store.Runs, unheeded: store.Runs) -> None:
    said = policies.answer(policies.faults(usual))
    assert said.startswith("Passing the sidecar buys most against one address of four dead")
    assert "with retries 100.0 % [99.6, 100.0] in mode1-xds, 100.0 % [99.6, 100.0] in mode2-xds and 100.0 %" in said
    assert "p90 of those served is 103 ± 1 ms without a mesh, with timeouts 26.5" in said
    assert "fewer with breaker" in said
    other = policies.answer(policies.faults(unheeded))
    assert other.startswith("No policy was seen to serve more requests in every mode")
    assert "with timeouts" not in other


def test_of_policies_that_serve_alike_none_at_all_is_named(usual: store.Runs) -> None:
    table = policies.faults(usual)
    dead = table[(table["fault"] == "dead")]
    spare = dead[dead["arm"].isin(MODES)]
    alike = spare.assign(policy="none", row="dead address, no policy")
    both = pd.concat([dead[dead["arm"] == policies.PLAIN], alike, spare.assign(policy="retries"), spare])
    assert "with a sidecar and no policy" in policies.answer(both).splitlines()[-1]


def test_runs_without_the_experiments_say_how_to_measure_them(empty: store.Runs) -> None:
    table = policies.faults(empty)
    assert table.empty
    assert "meshdns report --plan policies" in policies.answer(table)
    assert policies.split(empty).empty
    assert policies.replicas(empty).empty
    assert policies.split_answer(policies.split(empty)) == ""
    assert policies.checks(empty).empty
    for shown in (policies.outcomes(table), policies.latencies(table)):
        assert text.shown(shown) == absent.Absent(("faults",))


def test_checks_refuse_what_cannot_carry_an_answer(tmp_path: Path) -> None:
    with pytest.raises(errors.ReportError, match="has 1 block"):
        policies.checks(policies_world.runs(tmp_path / "one", blocks=1))
    with pytest.raises(errors.ReportError, match="cells are invalid"):
        policies.checks(policies_world.runs(tmp_path / "bad", World(invalid=0.9), blocks=2))


def test_many_failures_are_the_question_and_no_reason_to_refuse(usual: store.Runs) -> None:
    checked = policies.checks(usual).set_index("experiment")
    assert list(checked.index) == list(policies.EXPERIMENTS)
    assert checked.loc["faults", "not served"] > 0.1 * checked.loc["faults", "requests"]
    assert (checked["of those offered"] == 1).all()


# --- the claim ---


def test_policies_act_only_in_a_sidecar_but_a_clusterip_spreads_too(usual: store.Runs) -> None:
    found = verdict(usual)
    assert found.verdict == claims.DEPENDS
    assert "retries, time-outs, circuit breaking, outlier ejection and traffic split act only in a sidecar" in (
        found.because
    )
    assert "more" not in found.numbers
    assert "points [" in found.numbers
    assert found.notebook == NOTEBOOK.stem


def test_policies_are_supported_where_nothing_spreads_without_a_sidecar(tmp_path: Path) -> None:
    one = policies_world.runs(tmp_path, World(plain_replicas=("shop-1",)))
    assert verdict(one).verdict == claims.SUPPORTED


def test_policies_are_refuted_where_they_do_nothing_or_act_everywhere(unheeded: store.Runs, tmp_path: Path) -> None:
    assert verdict(unheeded).verdict == claims.REFUTED
    assert "no policy acted" in verdict(unheeded).because
    everywhere = policies_world.runs(tmp_path, World(everywhere=True))
    table = policies.faults(everywhere)
    plain = table["arm"] == policies.PLAIN
    retried = table.assign(
        arrived=table["arrived"].where(~plain, table["arrived"][table["policy"] == "retries"].iloc[0])
    )
    found = claims.passing(retried, policies.replicas(everywhere), policies.split(everywhere))
    assert found.verdict == claims.REFUTED
    assert "without a sidecar there was retries" in found.because


def test_policies_depend_on_the_policy_where_one_does_nothing(usual: store.Runs) -> None:
    table = policies.faults(usual)
    found = claims.passing(table.assign(ejections=0), policies.replicas(usual), policies.split(usual))
    assert found.verdict == claims.DEPENDS
    assert "outlier ejection did not" in found.because


def test_retries_that_serve_no_more_than_no_policy_do_not_act(usual: store.Runs) -> None:
    table = policies.faults(usual)
    nothing = stats.Interval(0.0, -0.01, 0.01, 8, 0.95)
    retried = table["policy"] == "retries"
    alone = [nothing if mine else each for mine, each in zip(retried, table[policies.ALONE], strict=True)]
    found = claims.passing(table.assign(**{policies.ALONE: alone}), policies.replicas(usual), policies.split(usual))
    assert "retries did not" in found.because
    assert " retries: " not in found.numbers.split(";")[0]


def test_a_split_of_one_block_decides_nothing(usual: store.Runs, tmp_path: Path) -> None:
    short = policies.split(policies_world.runs(tmp_path, blocks=1))
    found = claims.passing(policies.faults(usual), policies.replicas(usual), short)
    assert "traffic split" not in found.because


def test_policies_that_were_not_measured_have_no_verdict(empty: store.Runs, usual: store.Runs) -> None:
    assert verdict(empty).verdict == claims.UNMEASURED
    without = policies.faults(usual)
    without = without[without["policy"] == "none"]
    found = claims.passing(without, policies.replicas(usual), policies.split(empty))
    assert found.verdict == claims.UNMEASURED


def test_all_claims_of_the_notebook_are_decided_by_such_runs(usual: store.Runs) -> None:
    found = {each.claim: each for each in claims.verdicts(usual)}
    assert {name: found[name].verdict for name in ("C11", "C12", "C15", "C17")} == {
        "C11": claims.DEPENDS,
        "C12": claims.SUPPORTED,
        "C15": claims.SUPPORTED,
        "C17": claims.DEPENDS,
    }
    assert {found[name].notebook for name in ("C11", "C12", "C15", "C17")} == {NOTEBOOK.stem}


# --- figures and the notebook ---


def drawn(ax: Any) -> Any:
    """The axes, laid out and written as a notebook does it."""
    for form in ("png", "pdf"):
        ax.figure.savefig(BytesIO(), format=form, bbox_inches="tight")
    return ax


@pytest.mark.usefixtures("_closed")
def test_the_figure_has_a_row_per_fault_and_policy_and_holds_every_mark(usual: store.Runs) -> None:
    table = policies.faults(usual)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = drawn(figures.compared(table, "served", "served", band=policies.BASELINE))
    assert [each.get_text() for each in ax.get_yticklabels()] == list(dict.fromkeys(table["row"]))
    assert ax.get_xlabel() == "served, %"
    marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    assert len(marks) == len(table)
    low, high = ax.get_xlim()
    assert all(low <= line.get_xdata()[0] <= high for line in marks)
    assert len(ax.patches) == table["row"].nunique()  # the grey of each
    assert ax.figure.legends[0].get_window_extent().x1 <= ax.figure.bbox.x1


@pytest.mark.usefixtures("_closed")
def test_durations_far_apart_have_a_logarithmic_axis(usual: store.Runs) -> None:
    table = policies.faults(usual)
    how: dict[str, Any] = {"unit": units.NS_PER_MS, "values": "p90 values", "band": policies.TAIL_BASELINE}
    ax = drawn(figures.compared(table, "p90", "p90", **how))
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "p90, ms (logarithmic)")
    wide = [replace(each, low=-each.high) if n == 3 else each for n, each in enumerate(table["p90"])]  # of few blocks
    ax = drawn(figures.compared(table.assign(p90=wide), "p90", "p90", **how))
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[0] > 0
    near = drawn(figures.compared(table[table["fault"] == "fail30"], "p90", "p90", **how))
    assert (near.get_xscale(), near.get_xlabel()) == ("linear", "p90, ms")
    assert near.get_xlim()[0] == 0


@pytest.mark.usefixtures("_closed")
def test_nothing_measured_is_a_sentence_and_not_an_empty_frame(empty: store.Runs) -> None:
    assert "not measured" in drawn(figures.compared(policies.faults(empty), "served", "served")).get_title(loc="left")


def notebook(folder: Path) -> dict[str, Any]:
    """What the notebook's cells leave, run on this folder with warnings as errors."""
    space: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cell in nbformat.read(NOTEBOOK, 4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), space)
            if cell.metadata["tags"][0] == "parameters":
                space["runs"] = str(folder)
    return space


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("blocks", [2, 3])
def test_the_notebook_runs_on_what_it_needs(tmp_path: Path, blocks: int) -> None:
    space = notebook(policies_world.build(tmp_path, World(facts=policies_world.governed()), blocks=blocks))
    assert len(plt.get_fignums()) == 4
    assert all(space["said"])


@pytest.mark.usefixtures("_closed")
def test_the_notebook_runs_on_any_run(tmp_path: Path) -> None:
    space = notebook(measured.build(tmp_path, blocks=2))
    assert "was not measured" in space["said"][0]


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("name", [each for each in plans.shipped() if each == "policies"])
def test_the_notebook_runs_on_the_shipped_plan(tmp_path: Path, name: str) -> None:
    asked = plan.find(name, WORLD)
    short = replace(asked, experiments=tuple(replace(each, count=min(each.count, 150)) for each in asked.experiments))
    space = notebook(policies_world.build(tmp_path, World(facts=policies_world.governed()), blocks=2, asked=short))
    assert all(space["said"])
    unresolved = (
        "100.0 % [98.7, 100.0] of requests are served without a mesh; what a sidecar changes is not resolved (-"
    )
    assert f"No fault: {unresolved}" in space["said"][0]


def test_the_kinds_of_fault_and_policy_all_have_a_name() -> None:
    from meshdns.measure.factors import fault

    assert set(policies.FAULT) == {"none", *fault.LEVELS}
    assert set(ARMS) <= set(WORLD.arms)
    assert cells.PROBABILITIES[1] == policies.TAIL


def test_a_world_without_plain_has_no_differences(usual: store.Runs) -> None:
    left = [each[each["arm"] != "plain"] for each in (usual.cells, usual.samples)]
    table = policies.faults(replace(usual, cells=left[0], samples=left[1]))
    assert table[policies.AGAINST].isna().all()
    assert set(table["reading"]) == {"not measured"}
    assert policies.answer(table)
