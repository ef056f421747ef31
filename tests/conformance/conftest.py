"""Istio's agent, taken out of the sidecar's image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.conformance import binary, dnsproxies

from meshdns.core import errors


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if lacks := dnsproxies.lacking():
        pytest.skip(lacks)
    try:
        return binary.find(tmp_path_factory.mktemp("agent"), print)
    except errors.EnvironmentProblem as problem:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no image to take Istio's agent from, and {binary.GIVEN} names none: {problem}")
