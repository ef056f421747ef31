"""The figures of following change, and the notebook that shows them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

import changes_world
from drawn import labels, strictly
from meshdns import store
from meshdns.analysis import cells
from meshdns.studies.change import figures, tables

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "05-following-change.ipynb"


__all__ = ["strictly"]  # around every test


def marks(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_marker() not in ("None", "")]


@pytest.mark.parametrize("connection", ["new", "keepalive"])
def test_the_figure_has_a_mark_per_row_and_hollow_ones_for_never(usual: store.Runs, connection: str) -> None:
    mine = tables.on(tables.followed(usual), connection)
    times, failures = figures.follow(mine)
    times.figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert len(marks(times)) == len(marks(failures)) == len(mine)
    hollow = [line for line in marks(times) if line.get_markerfacecolor() == "white"]
    assert len(hollow) == sum(np.isinf(each.p50) for each in mine["followed"])
    assert times.get_xlim()[0] == failures.get_xlim()[0] == 0
    assert times.figure.legends[0].get_window_extent().x1 <= times.figure.bbox.x1
    assert labels(times)[:7] == [
        "a replica is added",
        "shop (ClusterIP)",
        "shop (EDS)",
        "shop-headless (cluster DNS, no cache)",
        "shop-headless (name table)",
        "shop-headless (cluster DNS, cache 30 s)",
        "shop-dns (STRICT_DNS)",
    ]
    at = {line.get_ydata()[0]: line.get_xdata()[0] for line in marks(times)}
    assert len(at) == len(mine)  # none hides another
    cached = cells.rows(mine, change="up", arm="plain-cache")[0]
    assert at[5] == pytest.approx(min(cached["followed"].p50 / 1e9, cached["rest_s"]))


def test_endpoints_and_names_have_a_mark_by_debounce(usual: store.Runs) -> None:
    table = tables.gathered(usual)
    ax = figures.gathered(table)
    ax.figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert len(marks(ax)) == len(table) == 8
    assert labels(ax)[::3] == [
        "all for 1 ms", "all for 100 ms (its default)", "all for 1 s", "all but endpoints for 100 ms",
    ]  # fmt: skip
    at = {line.get_ydata()[0]: line.get_xdata()[0] for line in marks(ax)}
    assert labels(ax)[10:] == ["shop (EDS)", "shop-headless (name table)"]
    assert at[10] == pytest.approx(0.2, abs=0.05)
    assert at[11] == pytest.approx(0.9, abs=0.05)


def test_the_timeline_has_a_panel_per_arm_and_way(usual: store.Runs) -> None:
    axes = figures.timeline(tables.timeline(usual, "replace"))
    axes[0].figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert sum(ax.axison for ax in axes) == 9
    assert [ax.get_title(loc="left") for ax in axes[:2]] == ["ClusterIP\nplain", "EDS\nmode1"]


def test_figures_of_what_was_not_measured_say_so(other: store.Runs, tmp_path: Path) -> None:
    assert figures.follow(tables.followed(other))[0].get_title(loc="left") == "not measured in this run"
    assert figures.timeline(tables.timeline(other, "up"))[0].get_title(loc="left") == "not measured in this run"
    assert figures.gathered(tables.gathered(other)).get_title(loc="left") == "not measured in this run"
    one = changes_world.runs(tmp_path, blocks=1)
    figures.follow(tables.on(tables.followed(one)))[0].figure.savefig(BytesIO())  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "given"), [("", {"connection": "keepalive", "change": "crash"}), ("change", {})])
def test_the_notebook_runs(name: str, given: dict[str, str], tmp_path: Path) -> None:
    folder, space = changes_world.build(tmp_path, blocks=2, name=name), dict[str, Any]()
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), space)
        if cell.metadata["tags"][0] == "parameters":
            space |= {"runs": str(folder)} | given
    assert len(plt.get_fignums()) == 3
    assert all(space["answer"].whole(space["measured"])[:4])
