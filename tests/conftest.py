"""Makes modules shared by tests (`synthetic`) importable from any test."""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started us in the background had it ignored

# jsonschema imports it where it is there, a second in each process: grammars of IRIs, which no notebook has.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "worlds")]

hypothesis.settings.register_profile("unhurried", deadline=None)  # others may use the machine too
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def no_power_cut() -> None:
    """Nothing here outlives one, so nobody waits for a disk; tests of what is synced, and when, patch it themselves."""
    os.fsync = lambda _: None  # type: ignore[assignment]
