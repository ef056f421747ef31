"""The place in memory does what every place must, and so what runs on it runs on others."""

from __future__ import annotations

import pytest

from contract import PlaceContract
from meshdns.core.world import LIVE
from meshdns.lab.place import Place
from recording import Recording
from shipped import WORLD


@pytest.fixture(scope="module", params=[WORLD.groups - WORLD.live_groups, WORLD.groups | {LIVE}])
def place(request: pytest.FixtureRequest) -> Place:
    found = Recording(frozenset(request.param))
    found.up(lambda _: None)
    return found


class TestRecording(PlaceContract):
    def test_nothing_is_left_once_it_is_down(self) -> None:
        found = Recording()
        found.up(lambda _: None)
        assert found.down() != []
        assert found.parts() == []
        assert [asked[0] for asked in found.asked][-1] == "down"
