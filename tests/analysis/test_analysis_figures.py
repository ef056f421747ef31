"""Figures draw with warnings as errors, show what the table says, and tell arms apart in grey."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import measured
from drawn import drawn, labels, strictly
from meshdns import store
from meshdns.analysis import cells, figures, looks
from meshdns.studies.cost import tables as requests
from meshdns.studies.names import tables as lookups

__all__ = ["strictly"]  # around every test


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"), blocks=5)


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


def test_bars_of_a_step_reach_its_total(usual: store.Runs) -> None:
    table = requests.phases(usual)
    ax = drawn(figures.stacked(table, list(cells.PHASES), "mean, µs"))
    ends = np.zeros(len(table))
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)  # type: ignore[attr-defined]
        ends[row] = max(ends[row], bar.get_x() + bar.get_width())  # type: ignore[attr-defined]
    assert ends == pytest.approx([each.estimate / 1_000 for each in table["total"]])
    drawn(
        figures.stacked(requests.cpu(usual), requests.behind_client(requests.cpu(usual)), "CPU, µs", "without_client")
    )


def test_a_bar_of_more_parts_than_shades_reaches_its_total_too(usual: store.Runs) -> None:
    table = requests.cpu(usual)
    more = {f"part_{n}": table["server"] for n in range(8)}
    ax = drawn(figures.stacked(table.assign(**more), [*more], "CPU, µs", "without_client"))
    assert len(ax.patches) == len(more) * len(table)


def test_differences_show_zero_and_the_noise_floor(usual: store.Runs) -> None:
    for floor in (requests.floor(usual), None):
        ax = drawn(figures.differences(requests.changes(usual), floor))
        low, high = ax.get_xlim()
        assert low < 0 < high
        assert ("noise floor" in ax.get_xlabel()) == (floor is not None)


def test_one_block_is_drawn_without_an_interval(tmp_path_factory: pytest.TempPathFactory) -> None:
    runs = measured.runs(tmp_path_factory.mktemp("one"), blocks=1)
    drawn(figures.latencies(lookups.by_arm(runs)))
    drawn(figures.differences(requests.changes(runs), requests.floor(runs)))


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
        figures.stacked(requests.phases(other), list(cells.PHASES), "µs"),
        figures.stacked(requests.cpu(other), requests.behind_client(requests.cpu(other)), "µs", "without_client"),
        figures.differences(requests.changes(other), None),
    ]
    assert {ax.get_title(loc="left") for ax in empty} == {"not measured in this run"}
