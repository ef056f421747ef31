"""What nobody here has heard of: arms, ways to capture, Services, parts, faults and experiments drawn at random.

They are added to the shipped world and plans, measured in a place in memory, and looked for on every page that shows
the shipped one.

A twin differs from what is shipped by its name and at most one option. It may be refused only by a factor's rule for
that very cell, and a page that leaves it out says so.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshdns import store
from meshdns.core import errors
from meshdns.core.progress import Progress
from meshdns.core.world import LIVE, World
from meshdns.interception import mechanisms
from meshdns.lab import parts, world
from meshdns.measure import factors, plan, run
from meshdns.measure.cell import Cell
from meshdns.measure.factors import fault
from meshdns.report import index
from pages import NOTEBOOKS, Part
from pages import parts as parts_of
from recording import Recording, at_once

__all__ = ["at_once"]  # around every test
PLANS = ("standard", "interception", "policies", "change")
PROXY = "proxy.istio.io/config"
CAPTURE = 'proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: "{}"\n'
# Annotation -> what it may be changed to.
OPTIONS: dict[str, tuple[str, ...]] = {
    "meshdns/mechanism": tuple(mechanisms.ALL),
    "meshdns/loop-guard": ("true", "false"),
    "meshdns/outside": ("true", "false"),
    "meshdns/virtual-ips": ("true", "false"),
    PROXY: (CAPTURE.format("true"), CAPTURE.format("false")),
}


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted(world.SHIPPED.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


@dataclass
class Drawn:
    """What was added, each by the name of what it is a twin of."""

    chance: random.Random
    world: World
    arms: dict[str, str] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def name(self, of: str) -> str:
        return f"{self.chance.choice('qxz')}{self.chance.randrange(10**4)}-of-{of}"

    def experiment(self, each: plan.Experiment) -> plan.Experiment:
        """With the twins of what it names, where a rule does not refuse them."""
        found = dataclasses.replace(each, every=1, count=30, warmup=min(each.warmup, 2))
        for column, twins in (("arm", self.arms), ("backend", self.backends), ("fault", self.faults)):
            for level in getattr(each, column):
                if level in twins and self._possible(dataclasses.replace(found, **{column: (twins[level],)})):
                    found = dataclasses.replace(found, **{column: (*getattr(found, column), twins[level])})
        return found

    def _possible(self, each: plan.Experiment) -> bool:
        rules = (rule for cell in each.cells() for held, rule in _rules(cell, self.world) if not held)
        refused = [f"{each.name}, {each.arm[0]}: {rule}" for rule in rules]
        self.refused += refused
        return not refused


def _rules(cell: Cell, there: World) -> Iterator[tuple[bool, str]]:
    for factor in factors.ALL:
        yield from factor.rules(cell, there)


def drawn(seed: int, folder: Path, patch: pytest.MonkeyPatch, arms: int) -> Drawn:
    """Twins of so many arms, of a way to capture, of a Service and the part behind it, of a fault, of an experiment."""
    chance = random.Random(seed)
    shipped = world.shipped()
    found = Drawn(chance, shipped)
    mechanism = found.name("nftables")
    patch.setitem(mechanisms.ALL, mechanism, mechanisms.ALL["nftables"])
    patch.setitem(world._POD, "mechanism", tuple(mechanisms.ALL))
    failing = found.name("slow")
    patch.setitem(fault.LEVELS, failing, dataclasses.replace(fault.LEVELS["slow"], path=f"/{failing}"))
    found.faults["slow"] = failing
    every = [*documents()]
    added = []
    chosen = {"nftables", *chance.sample([*shipped.arms], arms)}
    for each in (one for one in every if one["metadata"].get("annotations", {}).get("meshdns/arm") in chosen):
        arm = each["metadata"]["annotations"]["meshdns/arm"]
        found.arms[arm] = found.name(arm)
        added.append(_arm(each, found.arms[arm], chance, {"meshdns/mechanism": mechanism} if arm == "nftables" else {}))
        added[-1]["status"]["podIP"] = f"198.18.0.{150 + len(added)}"
    found.backends["meshed"], part = found.name("meshed"), found.name("web")
    patch.setitem(parts.ALL, part, parts.ALL["web"])
    web = [one for one in every if one["metadata"]["name"] in ("web", "web-1") and one["kind"] != "ServiceAccount"]
    added += _service(web, found.backends["meshed"], part)
    found.containers["web-1-app"] = f"pod-{part}-app"
    (folder / "mine.yaml").write_text(yaml.safe_dump_all(added))
    found.world = world.read([world.SHIPPED, folder / "mine.yaml"])
    found.experiments["lookup"] = found.name("lookup")
    return found


def _arm(shipped: dict[str, Any], name: str, chance: random.Random, change: dict[str, str]) -> dict[str, Any]:
    twin = copy.deepcopy(shipped)
    notes = twin["metadata"]["annotations"]
    key = chance.choice([*OPTIONS])
    kept = {"ebpf"} if "meshdns/answers" in notes else set()  # what takes capture away cannot take that
    notes |= change or {key: chance.choice([each for each in OPTIONS[key] if each not in {notes.get(key), *kept}])}
    notes["meshdns/arm"] = name
    twin["metadata"]["name"] = f"pod-{name}"
    return twin


def _service(web: Sequence[dict[str, Any]], name: str, part: str) -> Iterator[dict[str, Any]]:
    """A Service before one replica, which is made of that part."""
    for twin in map(copy.deepcopy, web):
        twin["metadata"]["name"] = name
        if twin["kind"] == "Service":
            twin["spec"]["clusterIP"] = "10.96.1.222"
            twin["metadata"]["annotations"] |= {"meshdns/backend": name}
        elif twin["kind"] == "Pod":
            twin["metadata"]["name"] = f"pod-{part}"
            del twin["metadata"]["annotations"]["meshdns/backend"]
            twin["spec"]["containers"][0]["image"] = f"meshdns/{part}"
            twin["status"]["podIP"] = "198.18.0.149"
        else:
            twin["metadata"]["labels"]["kubernetes.io/service-name"] = name
            twin["endpoints"] = twin["endpoints"][:1]
            twin["endpoints"][0] |= {"addresses": ["198.18.0.149"]}
            twin["endpoints"][0]["targetRef"]["name"] = f"pod-{part}"
        yield twin


def measured(drawn: Drawn, folder: Path) -> store.Runs:
    """The shipped plans with all twins, in a place in memory."""
    for name in PLANS:
        what = plan.find(name, drawn.world)
        kept = [drawn.experiment(each) for each in what.experiments if not each.name.startswith("card-")]
        own = [
            dataclasses.replace(each, name=drawn.experiments[each.name], series="", about="")
            for each in kept
            if each.name in drawn.experiments and name == PLANS[0]
        ]
        what = dataclasses.replace(what, blocks=2, experiments=(*kept, *own))
        place = Recording(what.groups() | {LIVE}, world=drawn.world)  # nobody has recorded it, so it starts live
        place.up(lambda _: None)
        run.execute(what, place, folder, Progress(1, "test"))
    return store.load(folder)


def shown(label: str, part: Part) -> bool:
    return part.names(label) or label in part.words


def missing(found: Sequence[Part], twins: dict[str, str]) -> list[str]:
    """Where what is shipped is shown and its twin neither is nor is said to be left out."""
    return [
        f"{part.place}: {level} is shown, {twin} is not"
        for part in found
        for level, twin in twins.items()
        if part.names(level) and "not traced in these runs" not in part.labels and not shown(twin, part)
    ]


@functools.cache
def pages_of(runs: store.Runs) -> list[Part]:
    return [part for path in NOTEBOOKS for part in parts_of(path, runs)]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "arms"), [(1, 4), (2, 30), (3, 30), (4, 30)])
def test_what_is_new_is_measured_and_shown_where_the_shipped_one_is(
    seed: int, arms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = drawn(seed, tmp_path, monkeypatch, min(arms, len(world.shipped().arms)))
    runs = measured(new, tmp_path / "runs")
    good = runs.cells[runs.cells["valid"].astype(bool)]
    wrong = runs.cells[~runs.cells["valid"].astype(bool)]
    assert {f"{row.experiment} {row.arm} {row.backend}: {row.reasons}" for row in wrong.itertuples()} == set()
    for column, twins in (("arm", new.arms), ("backend", new.backends), ("fault", new.faults)):
        there = set(good[column])
        for level, twin in twins.items():
            assert twin in there or any(twin in each for each in new.refused) or level not in there, (level, twin)
    found = pages_of(runs)
    every = {**new.arms, **new.backends, **new.faults, **new.containers}
    assert missing(found, every) == []
    for twin in new.arms.values():
        assert twin not in set(good["arm"]) or any(part.names(twin) for part in found), twin
    on_index = index.document([], runs)
    assert all(each in on_index for each in new.experiments.values())
    # The test itself: without one row of any table that shows a twin, it fails.
    for n, part in enumerate(found):
        for level, twin in every.items():
            if part.rows and part.names(level) and part.names(twin):
                less = dataclasses.replace(
                    part, rows=[row for row in part.rows if not any(twin in each for each in row)]
                )
                assert missing([*found[:n], less, *found[n + 1 :]], every), (part.place, twin)


def test_a_level_that_no_module_knows_is_refused_in_the_words_of_the_plan() -> None:
    there = world.shipped()
    for column in ("arm", "backend", "name_kind", "fault", "policy", "change", "answer", "tool"):
        table = {"name": "x", "arm": "plain", "arrival": "closed", column: "nobody"}
        document = {"name": "mine", "seed": 1, "blocks": 1, "experiment": [table]}
        with pytest.raises(errors.InputError, match=rf"mine.toml experiment 1 'x': {column}: 'nobody' .*choose from"):
            plan.from_json(document, "mine.toml", there)
