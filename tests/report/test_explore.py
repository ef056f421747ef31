"""What a selection means, and that the widgets show what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pytest
from matplotlib.figure import Figure

import synthetic
from meshdns import store
from meshdns.analysis import provenance
from meshdns.report import explore
from meshdns.report.explore import controls, drawing, numbers
from meshdns.report.explore.numbers import Selection

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return store.load(synthetic.build(tmp_path_factory.mktemp("runs"), blocks=4, samples_per_cell=40))


@pytest.fixture
def selection(runs: store.Runs) -> Selection:
    return Selection((runs.headers[0].name,), "names", ("plain", "mode2-envoy"), further={"lookup": ("getaddrinfo",)})


def test_a_value_is_the_quantile_of_the_requests_of_its_own_block(runs: store.Runs) -> None:
    one = Selection((synthetic.NAME,), "request", ("plain",), ("dns", "total"), (), (50.0,), "start")
    per_block = numbers.points(runs, replace(one, further={"backend": ("plain",)}))
    frame = runs.samples.query("experiment == 'request' and arm == 'plain' and backend == 'plain' and block == 2")
    for phase, begin, end in (("dns", "start_ns", "dns_ns"), ("total", "start_ns", "end_ns")):
        mine = per_block.query(f"phase == '{phase}' and block == 2")["value_ns"]
        assert mine.tolist() == [np.quantile(frame[end] - frame[begin], 0.5)]


def test_series_are_named_by_what_differs_and_arms_stand_in_order(runs: store.Runs, selection: Selection) -> None:
    both = replace(selection, name_kinds=("fqdn", "short"), further={"lookup": ("getaddrinfo",), "ndots": (1,)})
    named = numbers.table(numbers.points(runs, both))["series"].unique().tolist()
    assert named == ["plain, fqdn", "plain, short", "mode2-envoy, fqdn", "mode2-envoy, short"]


def test_a_factor_that_an_arm_lacks_does_not_hide_the_arm(runs: store.Runs) -> None:
    arms = Selection(
        (synthetic.NAME,), "request", ("ip", "plain"), name_kinds=("fqdn",), further={"backend": ("plain",)}
    )
    assert numbers.points(runs, arms)["series"].unique().tolist() == ["ip", "plain"]


def test_invalid_cells_are_left_out_unless_asked_for(runs: store.Runs, selection: Selection) -> None:
    marked = runs.cells.assign(valid=runs.cells["block"] != 1)
    spoilt = replace(runs, cells=marked)
    assert set(numbers.points(spoilt, selection)["block"]) == {0, 2, 3}
    assert set(numbers.points(spoilt, replace(selection, invalid=True))["block"]) == {0, 1, 2, 3}


def test_a_percentile_with_too_few_requests_has_no_value(runs: store.Runs, selection: Selection) -> None:
    table = numbers.table(numbers.points(runs, replace(selection, percentiles=(50.0, 99.9))))
    assert table.query("percentile == 50")["blocks"].min() == 4
    assert table.query("percentile == 99.9")["blocks"].max() == 0
    assert set(numbers.shown(table)["estimate, 95 % interval"][table["percentile"] == 99.9]) == {"–"}


def test_latency_from_due_time_is_charged_with_lateness(runs: store.Runs) -> None:
    late = Selection((synthetic.NAME,), "card-lag", ("null",), percentiles=(50.0,), further={"rate_hz": (500.0,)})
    from_due = numbers.points(runs, late)["value_ns"]
    from_start = numbers.points(runs, replace(late, origin="start"))["value_ns"]
    assert (from_due.to_numpy() > from_start.to_numpy()).all()


def test_curves_rise_from_none_to_all(runs: store.Runs, selection: Selection) -> None:
    for _, curve in numbers.ecdf(runs, selection).groupby("series"):
        assert curve["share"].iloc[[0, -1]].tolist() == [0, 1]
        assert curve["latency_ns"].is_monotonic_increasing


def test_turning_a_widget_changes_picture_and_table_together(runs: store.Runs) -> None:
    shown = controls._Panel(runs)
    picture, table = bytes(shown.picture.value), shown.table.value
    assert bytes(picture).startswith(PNG) and "p50" in table and "invalid" in shown.note.value
    shown.percentile.value = (75.0,)
    assert bytes(shown.picture.value) != picture and "p75" in shown.table.value and "p50" not in shown.table.value


@pytest.mark.slow
def test_each_experiment_can_be_chosen_and_no_policy_is_a_choice_that_no_other_brings_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda _, png, **__: png.write(PNG))  # drawn, but not put into pixels
    shown = controls._Panel(provenance.load("data/sample"))
    for experiment in shown.experiment.options:
        shown.picture.value = b""
        shown.experiment.value = experiment
        assert bytes(shown.picture.value).startswith(PNG)
        assert drawing.NOT_MEASURED not in shown.note.value, experiment
    shown.experiment.value = "faults"
    shown.further["fault"].value, shown.further["policy"].value = ("fail30",), ("retries",)
    chosen = numbers.chosen(shown.runs, shown.selection())
    assert len(chosen) and set(chosen["fault"]) == {"fail30"} and set(chosen["policy"]) == {"retries"}
    shown.arm.value = ()
    assert drawing.NOT_MEASURED in shown.note.value


def test_the_panel_finds_runs_by_path(tmp_path: Path) -> None:
    synthetic.build(tmp_path, blocks=1, samples_per_cell=3)
    assert explore.panel(tmp_path).children


def test_a_factor_named_with_markup_is_words() -> None:
    boxes = controls._titled("<img src=x>", controls._list("x", ["a"]))
    assert type(boxes.children[0]) is widgets.Label  # its value is text, whatever it holds
