"""Runs about what passing a sidecar buys, and runs of another plan."""

from __future__ import annotations

import pytest

import measured
import policies_world
from meshdns import store
from policies_world import World


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return policies_world.runs(tmp_path_factory.mktemp("usual"), World())


@pytest.fixture(scope="session")
def unheeded(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return policies_world.runs(tmp_path_factory.mktemp("unheeded"), World(retried=False, weight=1 / 3))


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("empty"), blocks=2)
