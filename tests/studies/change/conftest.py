"""Runs in which endpoints change, and runs of another plan."""

from __future__ import annotations

import pytest

import changes_world
import measured
from meshdns import store


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return changes_world.runs(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("other"), blocks=2)  # the quick plan
