"""Figures draw with warnings as errors, show what the table says, and tell arms apart in grey."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

import measured
from meshdns import store
from meshdns.analysis import cells, figures, looks, stats
from meshdns.studies import claims, lookups, requests, ruler


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"), blocks=5)


@pytest.fixture(autouse=True)
def strictly() -> Iterator[None]:
    mpl.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def drawn(ax: Axes) -> Axes:
    """The axes, once they were laid out and written as a notebook does it."""
    for form in ("png", "pdf"):
        assert ax.figure is not None
        ax.figure.savefig(BytesIO(), format=form, bbox_inches="tight")  # type: ignore[union-attr]
    assert ax.get_xlabel() or [each.get_text() for each in ax.get_xticklabels()]
    return ax


def labels(ax: Axes) -> list[str]:
    return [each.get_text() for each in ax.get_yticklabels()]


def test_latencies_start_at_zero_and_show_every_block(usual: store.Runs) -> None:
    table = lookups.by_arm(usual)
    ax = drawn(figures.latencies(table))
    assert labels(ax) == list(table["arm"])
    assert ax.get_xlim()[0] == 0
    assert ax.get_xlabel().endswith("µs")
    assert [len(each.get_offsets()) for each in ax.collections] == [5] * len(table)


def test_blocks_beyond_the_axis_are_counted_in_its_label(usual: store.Runs) -> None:
    table = lookups.by_arm(usual)
    table.at[0, "values"] = np.append(table.at[0, "values"], [9e9])
    assert "(1 of the blocks beyond the axis)" in drawn(figures.latencies(table)).get_xlabel()


def test_names_have_a_row_per_question_and_a_mark_per_arm(usual: store.Runs) -> None:
    table = lookups.by_name(usual)
    for lookup in ("wire", "getaddrinfo"):
        part = table[table["lookup"] == lookup]
        ax = drawn(figures.names(table, lookup))
        assert len(labels(ax)) == len(part[["name_kind", "qtype", "ndots"]].drop_duplicates())
        marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
        assert len(marks) == len(part)
        rows = sorted(float(np.ravel(line.get_ydata())[0]) for line in marks)
        assert min(np.diff(rows)) > 0.1  # marks of one row do not reach into the next


def test_bars_of_a_step_reach_its_total(usual: store.Runs) -> None:
    table = requests.phases(usual)
    ax = drawn(figures.stacked(table, list(cells.PHASES), "mean, µs"))
    ends = np.zeros(len(table))
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)  # type: ignore[attr-defined]
        ends[row] = max(ends[row], bar.get_x() + bar.get_width())  # type: ignore[attr-defined]
    assert ends == pytest.approx([each.estimate / 1_000 for each in table["total"]])
    drawn(figures.stacked(requests.cpu(usual), requests.BEHIND_CLIENT, "CPU, µs", "without client"))


def test_differences_show_zero_and_the_noise_floor(usual: store.Runs) -> None:
    for floor in (requests.floor(usual), None):
        ax = drawn(figures.differences(requests.changes(usual), floor))
        low, high = ax.get_xlim()
        assert low < 0 < high
        assert ("noise floor" in ax.get_xlabel()) == (floor is not None)


def test_the_others_draw(usual: store.Runs) -> None:
    drawn(figures.delays(lookups.delays(usual), stats.Interval(2.0, 1.5, 2.5, 5, 0.95)))
    drawn(figures.residuals(ruler.ladder(usual)[0]))
    drawn(figures.biases(ruler.bias_values(usual)))
    ax = drawn(figures.verdicts(claims.table(claims.verdicts(usual), usual)))
    assert labels(ax) == list(claims.TEXTS)


def test_one_block_is_drawn_without_an_interval(tmp_path_factory: pytest.TempPathFactory) -> None:
    runs = measured.runs(tmp_path_factory.mktemp("one"), blocks=1)
    drawn(figures.latencies(lookups.by_arm(runs)))
    drawn(figures.differences(requests.changes(runs), requests.floor(runs)))
    drawn(figures.delays(lookups.delays(runs)))


def test_the_title_of_the_delays_says_what_the_table_says(usual: store.Runs) -> None:
    table = lookups.delays(usual)
    assert figures.delays(table).get_title(loc="left").startswith("at 0 ms: -1")
    table["reading"] = "not resolved (-44 to -14 µs; noise floor 69.5 µs)"
    assert figures.delays(table).get_title(loc="left") == f"at 0 ms: {table['reading'][0]}"


def test_a_delay_without_pairs_is_left_out(usual: store.Runs) -> None:
    table = lookups.delays(usual)
    table.at[0, "blocks"] = 0
    table["mode 2 minus plain"] = [None, *table["mode 2 minus plain"][1:]]
    drawn(figures.delays(table, None))
    assert figures.delays(table[:1], None).get_title(loc="left") == "not measured in this run"


def test_arms_differ_without_colour() -> None:
    assert len({each.marker for each in looks.KNOWN.values()}) == len(looks.KNOWN)
    grey = {arm: float(np.dot(to_rgb(each.colour), (0.299, 0.587, 0.114))) for arm, each in looks.KNOWN.items()}
    compared = [arm for arm in grey if arm != "plain-aa"]  # the twin is hollow
    assert all(abs(grey[a] - grey[b]) > 0.05 for a, b in itertools.combinations(compared, 2)), grey


def test_the_ground_is_opaque_and_light(usual: store.Runs) -> None:
    figure = figures.latencies(lookups.by_arm(usual)).figure
    assert figure is not None
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_what_a_plan_leaves_out_is_an_empty_figure_that_says_so(usual: store.Runs) -> None:
    other = replace(usual, cells=usual.cells.assign(experiment="mine"))
    empty = [
        figures.latencies(lookups.by_arm(other)),
        figures.names(lookups.by_name(other), "wire"),
        figures.stacked(requests.phases(other), list(cells.PHASES), "µs"),
        figures.stacked(requests.cpu(other), requests.BEHIND_CLIENT, "µs", "without client"),
        figures.differences(requests.changes(other), None),
    ]
    assert {ax.get_title(loc="left") for ax in empty} == {"not measured in this run"}
