"""Arms that nobody here has heard of: each page shows them wherever it shows the arm that they differ from by one
option, or says that it leaves them out."""

from __future__ import annotations

import dataclasses
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import changes_world
import measured
import policies_world
import traces
from meshdns import store
from meshdns.analysis import absent, looks, provenance, text
from meshdns.core.world import Pod, World
from meshdns.measure import plan
from meshdns.studies.path import answer, tables
from shipped import WORLD

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
OPTIONS: dict[str, tuple[Any, ...]] = {
    "dns": ("cluster", "envoy", "agent"), "mechanism": ("iptables", "nftables", "tproxy", "ebpf"),
    "resolver": ("c-ares", "getaddrinfo"), "guarded": (True, False), "outside": (True, False), "ready": (True, False),
}  # fmt: skip


def copied(chance: random.Random, pod: Pod) -> Pod:
    """The same client but for its name, its address and one option."""
    option = chance.choice([*OPTIONS])
    other = chance.choice([level for level in OPTIONS[option] if level != getattr(pod, option)])
    arm = f"{chance.choice('QXZ')}{chance.randrange(10**4)}-of-{pod.arm}"
    return dataclasses.replace(pod, pod=f"pod-{arm}", arm=arm, host=pod.host + 100, **{option: other})


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
        changes_world.build(folder, dataclasses.replace(usual, fails=by_arm(usual.fails)), 2, asked=changed(asked))
    return store.load(folder)


def thin(asked: plan.Plan) -> plan.Plan:
    """Without experiments on the instrument, and with few requests."""
    kept = (each for each in asked.experiments if not each.name.startswith("card-"))
    few = (dataclasses.replace(each, count=min(each.count, 30)) for each in kept)
    return dataclasses.replace(asked, experiments=tuple(few))


@dataclasses.dataclass(frozen=True)
class Part:
    """What one cell of a notebook shows."""

    place: str
    labels: list[str]  # of its figures, or the cells and heads of its table
    words: str  # beside the table

    def names(self, arm: str) -> bool:
        """Whether the arm is shown, alone, with what it calls or after what it is."""
        said = re.compile(rf"(.*(\n|, |\())?{re.escape(arm)}( →.*|\))?", re.DOTALL)
        return any(said.fullmatch(label) for label in self.labels)


def parts(path: Path, runs: store.Runs) -> Iterator[Part]:
    """The notebook's figures and tables on these runs; raises what it raises, warnings too."""
    tables: list[pd.DataFrame] = []
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        usual = text.shown
        patch.setattr(absent, "display", lambda _: None)
        patch.setattr(provenance, "load", lambda _: runs)
        patch.setattr(text, "shown", lambda *given: tables.append(usual(*given)))  # type: ignore[func-returns-value]
        for cell in (each for each in nbformat.read(path, 4).cells if each.cell_type == "code"):
            exec(compile(cell.source, f"{path.name}:{cell.id}", "exec"), space)
            found = [each.get_text() for number in plt.get_fignums() for each in plt.figure(number).findobj(Text)]
            frames = [each for each in tables if isinstance(each, pd.DataFrame)]
            found += [str(each) for frame in frames for each in (*frame.columns, *frame.to_numpy().ravel())]
            plt.close("all")
            yield Part(f"{path.stem}, {cell.id}", found, " ".join(each.words for each in frames))
            tables.clear()


@pytest.fixture(autouse=True)
def without_a_screen() -> None:
    mpl.use("agg")


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_an_arm_that_differs_by_its_name_and_one_option_is_shown_where_that_one_is(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    twins = {pod.arm: copied(chance, pod) for pod in WORLD.clients}
    runs = made(
        tmp_path,
        dataclasses.replace(WORLD, pods=(*WORLD.pods, *twins.values())),
        lambda arm: (arm, twins[arm].arm) if arm in twins else (arm,),
    )
    seen = set()
    for path in NOTEBOOKS:
        for part in parts(path, runs):
            for arm, twin in twins.items():
                if part.names(arm) and "not traced in these runs" not in part.labels:
                    assert part.names(twin.arm) or twin.arm in part.words, (part.place, twin)
                seen |= {arm} if part.names(twin.arm) else set()
    assert seen == set(twins)


def test_runs_with_arms_that_no_longer_exist_are_shown(tmp_path: Path) -> None:
    renamed = {pod.arm: f"{pod.arm}-of-yore" for pod in WORLD.clients}
    pods = tuple(dataclasses.replace(pod, arm=renamed.get(pod.arm, pod.arm)) for pod in WORLD.pods)
    runs = made(tmp_path, dataclasses.replace(WORLD, pods=pods), lambda arm: (renamed.get(arm, arm),))
    assert not set(renamed) & set(runs.cells["arm"])
    shown = [part for path in NOTEBOOKS for part in parts(path, runs)]
    for arm in renamed.values():
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
