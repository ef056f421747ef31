"""A plan: TOML in, randomised blocks of cells out.

Experiment: factors with their levels, crossed into cells. Block: every cell due in it, once, in random order. The
recorded seed gives the same order again. Keys that do not exist are refused; so are levels that cannot be measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from meshdns.core import errors, plans, schema
from meshdns.core.schema import Bounds, Levels
from meshdns.core.world import CORE, World
from meshdns.measure import factors
from meshdns.measure.cell import Cell
from meshdns.measure.factors.arm import NULL

OVERHEAD_S = 0.05  # of a trial beside its load: readings before and after, and repeats (60 ms in data/sample)
MAX_SECONDS = 24 * 3600  # a plan that runs for longer is a typing error
MAX_CELLS = 10_000  # in a block: their number is stored in 16 bits, and an invalid cell is measured up to three times
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")  # the beginning of a run's name, on every file system


@dataclass(frozen=True)
class Trial:
    """A cell and how long it is measured; the bounds are hard, so that load always ends by itself."""

    cell: Cell
    count: int  # requests recorded
    warmup: int  # requests before recording
    timeout_ms: int  # per request
    capture: bool  # packets are captured beside the agent's own clock

    def seconds(self, world: World) -> float:
        """Expected duration of the load with its warm-up, for the progress bar and `--dry-run`."""
        rate_hz, request_s = self.cell.rate_hz, factors.request_s(self.cell, world, self.timeout_ms / 1000)
        return (self.count / rate_hz if rate_hz else self.count * request_s) + self.warmup * request_s

    def measuring_s(self, before: Trial | None, world: World) -> float:
        """Expected duration after the trial before it in its block, with all that is not load."""
        previous = before.cell if before else None
        more_s = sum(factor.seconds(self.cell, previous) for factor in factors.ALL)
        return self.seconds(world) + OVERHEAD_S + more_s


# What a plan varies: a cell's columns, in their order.
_FACTORS = [each for each in dataclasses.fields(Cell) if each.name not in ("experiment", "kind")]


def _of_factors(kind: type[schema.Kind]) -> type[schema.Kind]:
    """With a field for each factor: a level, or a list of levels."""
    types, none = typing.get_type_hints(Cell), dataclasses.MISSING
    fields = []
    for each in _FACTORS:
        usual = none if each.default is none else (each.default,)
        fields.append((each.name, typing.cast(Any, Levels)[types[each.name]], field(default=usual)))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)


@_of_factors
@dataclass(frozen=True)
class Experiment:
    """Factors and load of one experiment of the plan."""

    name: str
    kind: str = "lookup"
    count: Annotated[int, Bounds(1, 1_000_000)] = 200
    warmup: Annotated[int, Bounds(0, 100_000)] = 20
    timeout_ms: Annotated[int, Bounds(1, 60_000)] = 2000
    every: Annotated[int, Bounds(1, 1000)] = 1  # measured in every k-th block
    capture: bool = False
    series: str = ""  # the experiment that it is a part of, where one table of factors cannot say it; else its own name
    about: str = ""  # what is measured by it, in a few words

    def cells(self) -> list[Cell]:
        """All combinations, in the order the factors are written."""
        names = [each.name for each in _FACTORS]
        return [
            Cell(experiment=self.series or self.name, kind=self.kind, **dict(zip(names, combination, strict=True)))
            for combination in itertools.product(*(getattr(self, name) for name in names))
        ]

    def trials(self) -> list[Trial]:
        """Its cells, with its load."""
        return [Trial(cell, self.count, self.warmup, self.timeout_ms, self.capture) for cell in self.cells()]


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    name: str
    question: str
    seed: int
    blocks: int
    experiments: tuple[Experiment, ...]
    world: World = field(repr=False)

    def block(self, number: int) -> list[Trial]:
        """The trials of one block, in the order in which they run.

        Cells with the same upstream delay stand together, since changing it disturbs most, and so do those of one
        experiment, since a machine's noise changes within a second and what is compared should share it; within it,
        cells that need the same state of a pod. The order of all of these, and of the cells of each, is random.
        """
        rng = random.Random(f"{self.seed}/{number}")  # noqa: S311  an experiment's order, not a secret
        trials = [trial for e in self.experiments if number % e.every == 0 for trial in e.trials()]
        rng.shuffle(trials)
        delays = sorted({trial.cell.dns_delay_ms for trial in trials})
        rng.shuffle(delays)
        names = sorted({trial.cell.experiment for trial in trials})
        rng.shuffle(names)
        states = sorted({trial.cell.state() for trial in trials})
        rng.shuffle(states)
        return sorted(
            trials,
            key=lambda t: (
                delays.index(t.cell.dns_delay_ms),
                names.index(t.cell.experiment),
                states.index(t.cell.state()),
            ),
        )

    def groups(self) -> frozenset[str]:
        """The groups of pods that are needed beside the core."""
        cells = [cell for experiment in self.experiments for cell in experiment.cells()]
        services = [self.world.backends[cell.backend] for cell in cells if cell.backend != "none"]
        pods = [self.world.arms[cell.arm] for cell in cells if cell.arm != NULL]
        pods += [self.world.dns_pod(pod) for pod in pods]
        pods += [self.world.named(name) for service in services for name in service.replicas]
        pods += [self.world.named(service.served_by) for service in services if service.served_by]
        return frozenset({pod.group for pod in pods} | {service.group for service in services}) - {CORE}

    def seconds(self) -> float:
        """Expected duration of all load."""
        return sum(
            trial.seconds(self.world) * len(range(0, self.blocks, e.every))
            for e in self.experiments
            for trial in e.trials()
        )

    def measuring_s(self, blocks: Iterable[int]) -> float:
        """Expected duration of measuring these blocks."""
        pairs = (pair for number in blocks for pair in itertools.pairwise([None, *self.block(number)]))
        return sum(trial.measuring_s(before, self.world) for before, trial in pairs if trial is not None)

    def to_json(self) -> dict[str, Any]:
        """As JSON; `from_json` reads it back. The world is stored beside it."""
        experiments = [dataclasses.asdict(each) for each in self.experiments]
        return {"experiment": experiments, "name": self.name, "question": self.question, "seed": self.seed,
                "blocks": self.blocks}  # fmt: skip


@dataclass(frozen=True)
class _File:
    """A plan as it is written."""

    name: str
    seed: Annotated[int, Bounds(0, 2**63 - 1)]
    blocks: Annotated[int, Bounds(1, 1000)]
    question: str = ""
    experiment: tuple[Mapping[str, Any], ...] = ()
    include: tuple[Mapping[str, Any], ...] = ()  # resolved by `plans.whole` before


def _refuse(place: str, fact: str, step: str) -> errors.InputError:
    return errors.InputError(fact, place=place, step=step)


def _experiment(place: str, table: Mapping[str, Any], world: World, limits: schema.Limits) -> Experiment:
    place += f" {table['name']!r}" if isinstance(table.get("name"), str) else ""
    experiment = schema.read(Experiment, table, place, limits)
    crossed = math.prod(len(each) for each in vars(experiment).values() if isinstance(each, tuple))
    if crossed > MAX_CELLS:
        raise _refuse(place, f"its levels make {crossed} cells", f"leave levels out: a block holds {MAX_CELLS} at most")
    for cell in experiment.cells():  # what has no meaning is refused, rather than something else measured
        for holds, rule in (each for factor in factors.ALL for each in factor.rules(cell, world)):
            if not holds:
                raise _refuse(f"{place} {cell.arm}", rule, "change the factor or split the experiment")
    return experiment


def parse(text: str, place: str, world: World) -> Plan:
    """The plan in `text`; `place` names it in messages. Raises InputError."""
    try:
        return from_json(tomllib.loads(text), place, world)
    except tomllib.TOMLDecodeError as error:
        raise _refuse(place, f"not TOML ({error})", "mend the line it names") from None
    except ValueError:  # Python's own, for the digits of an integer
        raise _refuse(place, "holds an integer of thousands of digits", "give a smaller one") from None
    except RecursionError:
        raise _refuse(place, "nested too deeply to be a plan", "remove what no plan needs") from None


def from_json(document: object, place: str, world: World) -> Plan:
    """A plan from its TOML or JSON tree. Raises InputError."""
    file = schema.read(_File, plans.whole(document, place), place)
    if not NAME.fullmatch(file.name):
        step = "use at most 100 letters (A to Z), digits and hyphens: it names folders"
        raise _refuse(place, f"name is {file.name!r}", step)
    if not file.experiment:
        raise _refuse(place, "there is no experiment", "add an [[experiment]] table")
    limits = factors.levels(world)
    experiments = tuple(
        _experiment(f"{place} experiment {i}", t, world, limits) for i, t in enumerate(file.experiment, 1)
    )
    if len({experiment.name for experiment in experiments}) != len(experiments):
        raise _refuse(place, "two experiments have one name", "rename one")
    plan = Plan(file.name, file.question, file.seed, file.blocks, experiments, world)
    empty = next((n for n in range(plan.blocks) if all(n % e.every for e in experiments)), None)
    if empty is not None:
        fact = f"block {empty} would be empty: every experiment has every above 1"
        raise _refuse(place, fact, "leave every out of one of them")
    _once(plan, place)
    if plan.seconds() > MAX_SECONDS:
        raise _refuse(place, f"the load would take {plan.seconds() / 3600:.3g} hours", "lower count or blocks")
    return plan


def _once(what: Plan, place: str) -> None:
    """Refuses cells that two experiments name, since their samples would count as one cell's, and too many in all."""
    first: dict[Cell, str] = {}
    for experiment in what.experiments:
        for cell in experiment.cells():
            if cell in first:
                fact = f"experiments {first[cell]!r} and {experiment.name!r} hold the same cell of {cell.arm}"
                raise _refuse(place, fact, "leave it out of one, or give them another series")
            first[cell] = experiment.name
    if len(first) > MAX_CELLS:
        step = f"leave levels out: a block holds {MAX_CELLS} at most"
        raise _refuse(place, f"its levels make {len(first)} cells", step)


def find(name: str, world: World) -> Plan:
    """A shipped plan by name, or a plan file by path. Raises InputError."""
    path = plans.shipped().get(name, Path(name))
    step = f"use {', '.join(plans.shipped())}, or a path to a TOML file"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _refuse(name, "no such plan", step) from None
    except UnicodeDecodeError:
        raise _refuse(name, "is not TOML (it is not UTF-8)", step) from None
    except OSError as error:
        raise _refuse(name, f"cannot be read ({error.strerror})", step) from None
    return parse(text, str(path), world)
