"""One testbed for all tests here; it is up once, and gone at the end whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli, counters, engine, run
from harness.conditions import Conditions
from harness.mesh import topology
from harness.progress import Progress
from harness.testbed import Testbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("testbed")


@pytest.fixture(scope="session")
def bed() -> Iterator[Testbed]:
    said: list[str] = []
    engine.ensure(said.append)
    # As the commands that tests start, with every pod.
    testbed = Testbed(engine.images(said.append).tags, cli._nets(), groups=frozenset(topology.GROUPS))
    testbed.down()  # an earlier session may have been killed
    testbed.up(said.append)
    try:
        yield testbed
    finally:
        testbed.down()
        assert testbed.containers() == []


@pytest.fixture(scope="module")
def session(bed: Testbed) -> Iterator[run.Session]:
    with contextlib.ExitStack() as stack:
        observers = stack.enter_context(bed.observers())
        agents = stack.enter_context(run.Agents(bed))
        progress = stack.enter_context(Progress(1, "test"))
        conditions = stack.enter_context(Conditions(bed, observers))
        yield run.Session(bed, agents, observers, counters.Reader(bed, observers), conditions, progress=progress)
