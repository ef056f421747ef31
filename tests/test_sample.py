"""The recorded sample: complete, small, and enough for every notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshdns import store
from meshdns.measure import plan
from meshdns.store import samples
from shipped import WORLD

ROOT = Path(__file__).parents[1]
SAMPLE, PLANS = ROOT / "data" / "sample", ROOT / "data" / "plans"
MOST_BYTES = 8_000_000  # four runs, each with what Istio tells its sidecars


@pytest.fixture(scope="module")
def sample() -> store.Runs:
    return store.load(SAMPLE)


def test_it_is_small_and_of_todays_schema(sample: store.Runs) -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < MOST_BYTES
    assert {json.loads(path.read_text())["schema"] for path in SAMPLE.glob("*/run.json")} == {samples.SCHEMA_VERSION}
    assert not list(SAMPLE.glob("*.partial"))


def test_it_was_recorded_by_the_plans_beside_it_and_from_what_is_committed(sample: store.Runs) -> None:
    plans = {each.name: each for each in (plan.find(str(path), WORLD) for path in PLANS.glob("*.toml"))}
    recorded = [json.loads(path.read_text()) for path in SAMPLE.glob("*/run.json")]
    assert {each["plan"]["name"] for each in recorded} == plans.keys()
    for each in recorded:
        assert plan.from_json(each["plan"], each["name"], WORLD) == plans[each["plan"]["name"]]
        assert not each["facts"]["versions"]["commit"].endswith("-dirty"), each["name"]


def test_every_notebook_finds_what_it_asks_for(sample: store.Runs) -> None:
    there = set(sample.cells["experiment"])
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        needs = json.loads(path.read_text())["metadata"].get("meshdns", {}).get("needs")
        assert needs is None or there & set(needs), path.stem
