"""Drawings say what their tables hold; no pixel is compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.axes import Axes

import measured
import traces
from meshdns.analysis import diagrams
from meshdns.studies.path import answer, figures, hops, tables
from shipped import WORLD


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    mpl.use("agg")
    yield
    plt.close("all")


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def arrows(ax: Axes) -> list[tuple[float, float, float]]:
    """Height, begin and end of each."""
    found = [text for text in ax.texts if getattr(text, "arrowprops", None)]
    return [(each.xy[1], each.xyann[0], each.xy[0]) for each in found]


def drawn() -> tuple[Axes, Axes]:
    paths = tables.paths(traces.traced(traces.mode1(*traces.ABSENT), traces.mode2(*traces.ABSENT)))
    left, right = figures.sequence(paths, "mode1", "mode2-agent").axes
    return left, right


def test_each_message_is_an_arrow_and_time_runs_down() -> None:
    left, _ = drawn()
    path = hops.read(traces.mode1(*traces.ABSENT), WORLD)
    assert len(arrows(left)) == sum(len(row.hop.messages) for row in path.rows())
    heights = [y for y, _, _ in arrows(left)]
    assert heights == sorted(heights)


def test_both_modes_are_side_by_side_with_their_lifelines_and_rewritten_addresses() -> None:
    left, right = drawn()
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("mode1", "mode2-agent")
    assert {"application", "CoreDNS", "sidecar", "server\nsidecar", "server"} <= set(words(left))
    assert "DNS\nproxy" in words(right)
    assert "DNS\nproxy" not in words(left)
    assert "10.96.1.10:80 → 127.0.0.1:15001" in words(left)
    assert "240.240.0.10:80 → 127.0.0.1:15001" in words(right)
    assert "3 × NXDOMAIN" in words(left)
    assert "connect (3)" in words(left)


def test_arrows_from_pod_to_pod_are_thick() -> None:
    for ax, arm in zip(drawn(), (traces.mode1(*traces.ABSENT), traces.mode2(*traces.ABSENT)), strict=True):
        widths = [each.arrow_patch.get_linewidth() for each in ax.texts if getattr(each, "arrowprops", None)]
        leaving = [not row.hop.inside for row in hops.read(arm, WORLD).rows() for _ in row.hop.messages]
        assert widths.count(max(widths)) == sum(leaving)
        assert 0 < sum(leaving) < len(widths)


def test_requests_point_one_way_and_responses_the_other() -> None:
    left, _ = drawn()
    first, *_, last = arrows(left)
    assert first[1] < first[2]
    assert f"{traces.RESPONSE} (1)" in words(left)
    assert last[1] > last[2]  # the server closes


def test_failed_requests_are_drawn_to_where_they_ended() -> None:
    lost, refused = (figures.sequence({path.arm: path}, path.arm).axes[0] for path in (
        hops.read(traces.lost(), WORLD), hops.read(traces.refused(), WORLD)))  # fmt: skip
    assert "nothing comes back" in words(lost)
    assert "nobody" in words(lost)
    assert "refused (1)" in words(refused)


def test_a_loop_is_drawn_once() -> None:
    ax = figures.sequence({"unguarded": hops.read(traces.loop(40), WORLD)}, "unguarded").axes[0]
    assert any(each.startswith("39 × ") for each in words(ax))


def test_an_arm_that_was_not_traced_says_so() -> None:
    left, right = figures.sequence({"mode1": hops.read(traces.mode1(), WORLD)}, "mode1", "mode2-agent").axes
    assert "not traced in these runs" in words(right)
    assert "not traced in these runs" not in words(left)


def test_the_grid_has_a_word_in_every_cell_and_lightness_that_differs() -> None:
    ax = diagrams.grid(answer.grid(tables.matrix(traces.answered(*traces.USUAL)), "mode1"))
    assert [each.get_text().replace("\n", " ") for each in ax.get_xticklabels()] == [
        "captured, sidecar up", "captured, sidecar down", "not captured, sidecar up", "not captured, sidecar down",
    ]  # fmt: skip
    assert len(ax.patches) == 4 * (len(WORLD.answers) + 2)
    assert "the sidecar's port at 127.0.0.1, no guard" in [
        each.get_text().replace("\n", " ") for each in ax.get_yticklabels()
    ]
    assert {"at the sidecar's port", "–", "by the guard,\n1 connection each"} <= set(words(ax))
    assert {"proxied", "direct", "looped", "refused", "lost", "behind the sidecar"} <= set(words(ax))
    assert len(set(diagrams._SHADES.values())) == len(tables.OUTCOMES) == len(diagrams._SHADES)


def test_the_sidecars_own_lookups_are_marked() -> None:
    left, _ = drawn()
    assert [each for each in words(left) if each.startswith("own: web-headless")]


def test_the_notebook_draws_runs_that_hold_both_traces_and_answers(tmp_path: Path) -> None:
    folder = measured.build(tmp_path, blocks=2, name="interception")
    header = json.loads((folder / "run.json").read_text())
    header["facts"]["traces"] = {"mode1": traces.mode1(*traces.ABSENT), "mode2-agent": traces.mode2(*traces.ABSENT)}
    (folder / "run.json").write_text(json.dumps(header))
    space: dict[str, Any] = {}
    notebook = nbformat.read(Path(__file__).parents[3] / "notebooks" / "03-traffic-path.ipynb", 4)
    for cell in (each for each in notebook.cells if each.cell_type == "code"):
        exec(compile(cell.source, cell.id, "exec"), space)
        space["runs"] = str(folder)
    sequence, grid, second = (plt.figure(number) for number in plt.get_fignums())
    assert [ax.get_title(loc="left") for ax in sequence.axes] == ["mode1", "mode2-agent"]
    assert len(grid.axes[0].patches) == 4 * (len(WORLD.answers) + 2)
    assert len(second.axes[0].patches) == 28
    assert "not measured" not in "".join(answer.whole(space["measured"]))


def test_a_state_that_nobody_knows_has_a_column() -> None:
    ax = diagrams.grid(
        answer.grid(tables.matrix(traces.answered(*traces.USUAL, traces.Cell("pod", {}, sidecar="paused"))), "mode1")
    )
    assert ax.get_xticklabels()[-1].get_text().endswith("paused")


def test_a_grid_of_nothing_says_so() -> None:
    empty = tables.matrix(traces.answered(traces.Cell("pod", valid=False)))
    assert words(diagrams.grid(answer.grid(empty, "mode1"))) == ["not measured in these runs"]
