"""The figures of what passing the sidecar buys, and the notebook that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

import measured
import policies_world
from drawn import drawn, labels, strictly
from meshdns import store
from meshdns.core import plans
from meshdns.measure import plan
from meshdns.studies.policies import answer, deny, figures, tables
from shipped import WORLD

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "04-what-the-sidecar-buys.ipynb"


__all__ = ["strictly"]  # around every test


def named(table: pd.DataFrame) -> list[str]:
    levels = dict.fromkeys(zip(table["fault"], table["policy"], strict=True))
    return [f"{answer.WORDS.value('fault', fault)}, {answer.WORDS.value('policy', policy)}" for fault, policy in levels]


def test_the_figure_has_a_row_per_fault_and_policy_and_holds_every_mark(usual: store.Runs) -> None:
    table = tables.faults(usual)
    ax = drawn(figures.compared(table, "served", "served"))
    assert labels(ax) == named(table)
    assert ax.get_xlabel() == "served, %"
    marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    assert len(marks) == len(table)
    low, high = ax.get_xlim()
    assert all(low <= line.get_xdata()[0] <= high for line in marks)
    assert len(ax.patches) == len(named(table))  # the grey of each
    assert ax.figure.legends[0].get_window_extent().x1 <= ax.figure.bbox.x1


def test_durations_far_apart_have_a_logarithmic_axis(usual: store.Runs) -> None:
    table = tables.faults(usual)
    ax = drawn(figures.compared(table, "p90", "p90"))
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "p90, ms (logarithmic)")
    wide = [replace(each, low=-each.high) if n == 3 else each for n, each in enumerate(table["p90"])]  # of few blocks
    ax = drawn(figures.compared(table.assign(p90=wide), "p90", "p90"))
    assert ax.get_xscale() == "log"
    assert ax.get_xlim()[0] > 0
    near = drawn(figures.compared(table[table["fault"] == "fail30"], "p90", "p90"))
    assert (near.get_xscale(), near.get_xlabel()) == ("linear", "p90, ms")
    assert near.get_xlim()[0] == 0


def test_late_requests_stand_against_connections_beside_the_line_of_one_each(usual: store.Runs) -> None:
    table = deny.table(usual)
    ax = drawn(figures.late(table))
    line, *marks = [each for each in ax.lines if each.get_linestyle() == "--" or each.get_marker() not in ("None", "")]
    assert [mark.get_ydata()[0] for mark in marks] == [each.estimate for each in table["late"]]
    assert np.allclose([mark.get_xdata()[0] for mark in marks], table["connections"], atol=0.5)
    assert line.get_slope() == 1
    assert [each.get_text() for each in ax.figure.legends[0].get_texts()] == [
        *policies_world.MODES,
        "one per connection",
    ]


def test_nothing_measured_is_a_sentence_and_not_an_empty_frame(empty: store.Runs) -> None:
    for ax in (figures.compared(tables.faults(empty), "served", "served"), figures.late(deny.table(empty))):
        assert "not measured" in ax.get_title(loc="left")


def notebook(folder: Path) -> dict[str, Any]:
    """What the notebook's cells leave, run on this folder with warnings as errors."""
    space: dict[str, Any] = {}
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), space)
        if cell.metadata["tags"][0] == "parameters":
            space["runs"] = str(folder)
    return space


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [2, 3])
def test_the_notebook_runs_on_what_it_needs(tmp_path: Path, blocks: int) -> None:
    space = notebook(policies_world.build(tmp_path, blocks=blocks))
    assert len(plt.get_fignums()) == 5
    assert all(space["answer"].whole(space["measured"]))


def test_the_notebook_runs_on_any_run(tmp_path: Path) -> None:
    space = notebook(measured.build(tmp_path, blocks=2))
    assert "was not measured" in space["answer"].answer(space["faults"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [each for each in plans.shipped() if each == "policies"])
def test_the_notebook_runs_on_the_shipped_plan(tmp_path: Path, name: str) -> None:
    asked = plan.find(name, WORLD)
    short = replace(asked, experiments=tuple(replace(each, count=min(each.count, 150)) for each in asked.experiments))
    space = notebook(policies_world.build(tmp_path, blocks=2, asked=short))
    assert all(space["answer"].whole(space["measured"]))
    unresolved = (
        "100.0 % [98.7, 100.0] of requests are served without a mesh; what a sidecar changes is not resolved (-"
    )
    assert f"No fault: {unresolved}" in space["answer"].answer(space["faults"])
