"""The recorded sample: complete, small, and enough for every notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import store

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def sample() -> store.Runs:
    return store.load(SAMPLE)


def test_it_is_small_and_of_todays_schema(sample: store.Runs) -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < MOST_BYTES
    assert {json.loads(path.read_text())["schema"] for path in SAMPLE.glob("*/run.json")} == {store.SCHEMA_VERSION}
    assert not list(SAMPLE.glob("*.partial"))


def test_it_was_recorded_with_what_is_committed(sample: store.Runs) -> None:
    for path in SAMPLE.glob("*/run.json"):
        assert not json.loads(path.read_text())["facts"]["versions"]["commit"].endswith("-dirty"), path


def test_every_notebook_finds_what_it_asks_for(sample: store.Runs) -> None:
    there = set(sample.cells["experiment"])
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        needs = json.loads(path.read_text())["metadata"].get("meshdns", {}).get("needs")
        assert needs is None or needs in there, path.stem
