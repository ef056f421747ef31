"""What each arm looks like, and that runs with arms that nobody has any more are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import changes_world
import measured
import policies_world
import traces
from meshdns import store
from meshdns.analysis import looks, text
from meshdns.core.world import Pod, World
from meshdns.measure import plan
from meshdns.studies.path import answer, tables
from pages import NOTEBOOKS, parts
from shipped import WORLD


def made(folder: Path, world: World, arms: Callable[[str], tuple[str, ...]]) -> store.Runs:
    """Runs of shipped plans in which other arms stand in the place of each."""

    def changed(asked: plan.Plan) -> plan.Plan:
        every = (
            dataclasses.replace(each, arm=tuple(own for arm in each.arm for own in arms(arm)), every=1)
            for each in asked.experiments
        )
        return dataclasses.replace(asked, experiments=tuple(every), world=world)

    def by_arm(values: dict[str, Any]) -> dict[str, Any]:
        return {own: value for arm, value in values.items() for own in arms(arm)}

    shipped = (pod for pod in WORLD.pods if pod not in world.pods)  # plans name them
    whole = dataclasses.replace(world, pods=(*world.pods, *shipped))
    with pytest.MonkeyPatch.context() as patch:
        for each in (measured, policies_world, changes_world):
            patch.setattr(each, "WORLD", whole)
        true = measured.World()
        true = dataclasses.replace(true, dns=by_arm(true.dns))
        for seed, name in enumerate(("standard", "interception"), 1):
            measured.build(folder, true, 2, seed, asked=changed(thin(plan.find(name, whole))))
        policies_world.build(folder, None, 2, 1, changed(plan.parse(policies_world.PLAN, "policies_world", whole)))
        usual = changes_world.World(rate_hz=25)  # arms are looked at, not numbers
        asked = changes_world._plan(usual)
        changes_world.build(folder, usual, 2, asked=changed(asked))
    return store.load(folder)


def thin(asked: plan.Plan) -> plan.Plan:
    """Without experiments on the instrument, and with few requests."""
    kept = (each for each in asked.experiments if not each.name.startswith("card-"))
    few = (dataclasses.replace(each, count=min(each.count, 30)) for each in kept)
    return dataclasses.replace(asked, experiments=tuple(few))


@pytest.mark.slow
def test_runs_with_arms_that_no_longer_exist_are_shown(tmp_path: Path) -> None:
    renamed = {pod.arm: f"{pod.arm}-of-yore" for pod in WORLD.clients}
    pods = tuple(dataclasses.replace(pod, arm=renamed.get(pod.arm, pod.arm)) for pod in WORLD.pods)
    runs = made(tmp_path, dataclasses.replace(WORLD, pods=pods), lambda arm: (renamed.get(arm, arm),))
    assert not set(renamed) & set(runs.cells["arm"])
    shown = [part for path in NOTEBOOKS for part in parts(path, runs)]
    for arm in set(runs.cells["arm"]):
        assert any(part.names(arm) for part in shown), arm


def test_every_arm_has_a_look_of_its_own_that_the_order_of_the_world_decides() -> None:
    further = {arm: Pod(arm, n, "", arm=arm) for n, arm in enumerate(f"x{n}" for n in range(35))}
    seen = looks.Looks({**further, **WORLD.arms})
    assert len({seen[arm] for arm in [*further, *looks.KNOWN]}) == len(further) + len(looks.KNOWN)
    assert [seen[arm] for arm in looks.KNOWN] == list(looks.KNOWN.values())
    assert seen["x34"] == looks.Looks(further)["x34"]
    assert seen.held(["gone", "mode1", "x3", "plain", "x3"]) == ["x3", "plain", "mode1", "gone"]
    assert not {each.colour for each in looks.KNOWN.values()} & set(looks.COLOURS)
    for colour in looks.COLOURS:  # against white, as WCAG asks of graphics
        linear = np.array(
            [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        )
        assert 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05) > 3, colour


def test_traces_of_arms_that_are_not_side_by_side_are_named_beside_the_table() -> None:
    found = tables.paths(traces.traced(traces.mode1(), traces.mode2()))
    assert len(found) == 2
    first, second = found
    assert second in text.shown(tables.hops(found, first), answer.WORDS).words  # type: ignore[union-attr]
    assert not text.shown(tables.hops(found, first, second), answer.WORDS).words  # type: ignore[union-attr]
