"""Figures of names and delays show what their tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import measured
from drawn import drawn, labels, strictly
from meshdns import store
from meshdns.analysis import stats
from meshdns.studies.names import figures, tables

__all__ = ["strictly"]  # around every test


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"), blocks=5)


def test_names_have_a_row_per_question_and_a_mark_per_arm(usual: store.Runs) -> None:
    table = tables.by_name(usual)
    for lookup in ("wire", "getaddrinfo"):
        part = table[table["lookup"] == lookup]
        ax = drawn(figures.names(table, lookup))
        assert len(labels(ax)) == len(part[["name_kind", "qtype", "ndots"]].drop_duplicates())
        marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
        assert len(marks) == len(part)
        rows = sorted(float(np.ravel(line.get_ydata())[0]) for line in marks)
        assert min(np.diff(rows)) > 0.1  # marks of one row do not reach into the next


def test_the_title_of_the_delays_says_what_the_table_says(usual: store.Runs) -> None:
    table = tables.delays(usual)
    assert figures.delays(table).get_title(loc="left").startswith("at 0 ms: -1")
    table["reading"] = "not resolved (-44 to -14 µs; noise floor 69.5 µs)"
    assert figures.delays(table).get_title(loc="left") == f"at 0 ms: {table['reading'][0]}"


def test_a_delay_without_pairs_is_left_out(usual: store.Runs) -> None:
    table = tables.delays(usual)
    table.at[0, "blocks"] = 0
    table["mode2_minus_plain"] = [None, *table["mode2_minus_plain"][1:]]
    drawn(figures.delays(table, None))
    assert figures.delays(table[:1], None).get_title(loc="left") == "not measured in this run"


def test_delays_draw_with_and_without_a_crossing(usual: store.Runs, tmp_path: Path) -> None:
    drawn(figures.delays(tables.delays(usual), stats.Interval(2.0, 1.5, 2.5, 5)))
    drawn(figures.delays(tables.delays(measured.runs(tmp_path, blocks=1))))


def test_names_that_were_not_measured_are_an_empty_figure_that_says_so(usual: store.Runs) -> None:
    other = replace(usual, cells=usual.cells.assign(experiment="mine"))
    assert figures.names(tables.by_name(other), "wire").get_title(loc="left") == "not measured in this run"
