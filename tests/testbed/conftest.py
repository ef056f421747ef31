"""One testbed for all tests here; it is up once, and gone at the end whatever happens.

It has a name and networks of its own, also for the commands that tests start: nobody's testbed is in its way, or taken
down by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshdns import cli
from meshdns.lab import locks
from meshdns.lab.compose import engine, testbed
from meshdns.lab.compose.testbed import Testbed
from meshdns.measure.session import Session, opened
from shipped import WORLD

OWN = {"MESHDNS_PROJECT": "meshdns-test", "MESHDNS_PODS": "198.18.76", "MESHDNS_WORLD": "198.19.76"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("testbed")


@pytest.fixture(scope="session")
def bed() -> Iterator[Testbed]:
    said: list[str] = []
    with pytest.MonkeyPatch.context() as environment:
        for name, value in OWN.items():  # for the commands that tests start, too
            environment.setenv(name, value)
        project, nets = cli._project(), cli._nets()
        locks.machine().ask()  # tests on real containers would be seen in somebody's numbers
        engine.ensure(said.append)
        # With every pod, as the commands that tests start.
        every = WORLD.groups - WORLD.live_groups
        images = engine.images(said.append, testbed.images_of(WORLD, every))
        own = Testbed(images, nets, project, testbed.state_of(project), every)
        # The testbed's lock is for those commands to take; this one keeps the tests of two checkouts apart.
        with locks.testbed("tests", project).hold("tests of the testbed"):
            own.down()  # an earlier session may have been killed
            own.up(said.append)
            try:
                yield own
            finally:
                own.down()
                assert own.containers() == []


@pytest.fixture(scope="module")
def session(bed: Testbed) -> Iterator[Session]:
    with opened(bed) as found:
        yield found
