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
    assert labels(times)[:4] == [
        "a replica is added:",
        "shop (EDS)",
        "shop-headless (ORIGINAL_DST)",
        "shop-dns (STRICT_DNS)",
    ]


def test_the_timeline_has_a_panel_per_arm_and_way(usual: store.Runs) -> None:
    axes = figures.timeline(tables.timeline(usual, "replace"))
    axes[0].figure.savefig(BytesIO(), format="png")  # type: ignore[union-attr]
    assert sum(ax.axison for ax in axes) == 11
    assert [ax.get_title(loc="left") for ax in axes[:2]] == ["ClusterIP\nplain", "EDS\nmode1-xds"]


def test_figures_of_what_was_not_measured_say_so(other: store.Runs, tmp_path: Path) -> None:
    assert figures.follow(tables.followed(other))[0].get_title(loc="left") == "not measured in this run"
    assert figures.timeline(tables.timeline(other, "up"))[0].get_title(loc="left") == "not measured in this run"
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
    assert len(plt.get_fignums()) == 2
    assert all(space["answer"].whole(space["measured"])[:5])
