"""A run's beginning, resumption and expected duration, as far as these need no testbed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from meshdns import store
from meshdns.core import errors
from meshdns.measure import block, facts, plan, run, session
from meshdns.store import samples
from shipped import WORLD

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
PLAN = """
name = "p"
seed = 1
blocks = 3
[[experiment]]
name = "lookup"
arm = "plain"
arrival = "closed"
"""
KNOWN: dict[str, Any] = {
    "machine": {"machine_id_hash": "here", "boot_id_hash": "b"},
    "versions": {"commit": "c"},
    "images": {
        "client": {"tag": "meshdns/client:1", "id": "sha256:" + "a" * 64},
        "envoy": {"tag": "meshdns/envoy:1", "id": "sha256:" + "b" * 64},
    },
}


@pytest.fixture
def what() -> plan.Plan:
    return plan.parse(PLAN, "p", WORLD)


@pytest.fixture
def unfinished(what: plan.Plan, tmp_path: Path) -> Path:
    header = store.RunHeader("r", what.to_json(), what.seed, "now", what.blocks, KNOWN)
    return store.create(tmp_path, header, WORLD).path


def test_an_unfinished_run_is_resumed_under_what_it_was_begun_with(unfinished: Path, what: plan.Plan) -> None:
    assert run._resumed(unfinished, what, KNOWN).missing() == [0, 1, 2]


def test_a_run_keeps_the_configuration_of_what_it_asks_once() -> None:
    dump = {"configs": [{"bootstrap": {"admin": {}, "node": {"extensions": []}, "static_resources": {"clusters": []}}}]}
    observer: Any = SimpleNamespace(ask=lambda *_: ({"pages": [json.dumps(dump)]}, b""))
    pods = [client.pod for client in WORLD.clients]
    place = SimpleNamespace(groups=WORLD.groups, world=WORLD)
    opened: Any = SimpleNamespace(place=place, observers=dict.fromkeys(pods, observer))
    arms = {"plain", "mode1", "answers", "mode2-envoy"}  # `answers` is configured as `mode1`
    found = facts._config_dumps(opened, arms)
    assert list(found) == ["client-mode1", "client-mode2-envoy"]
    assert found["client-mode1"] == {"configs": [{"bootstrap": {"admin": {}, "node": {}}}]}


def test_a_resumed_run_does_not_mix_plans_machines_or_images(unfinished: Path, what: plan.Plan) -> None:
    other = plan.parse(PLAN.replace("seed = 1", "seed = 2"), "p", WORLD)
    with pytest.raises(errors.InputError, match="a run of another plan"):
        run._resumed(unfinished, other, KNOWN)
    elsewhere = KNOWN | {"machine": {"machine_id_hash": "there", "boot_id_hash": "b"}}
    with pytest.raises(errors.InputError, match="begun on another machine"):
        run._resumed(unfinished, what, elsewhere)
    rebuilt = {"tag": "meshdns/client:1", "id": "sha256:" + "c" * 64}
    changed = KNOWN | {"images": KNOWN["images"] | {"client": rebuilt}}
    with pytest.raises(errors.InputError) as caught:
        run._resumed(unfinished, what, changed)
    message = str(caught.value)
    assert "another image of client (meshdns/client:1 aaaaaaaaaaaa; now meshdns/client:1 cccccccccccc)" in message
    assert "start anew" in message


def test_a_block_that_this_machine_allows_nothing_of_is_stored_empty(tmp_path: Path) -> None:
    writer = store.create(tmp_path, store.RunHeader("r", {}, 1, "now", 2), WORLD)
    writer.write_block(0, block.joined([]), [], "now")
    record = samples.CellRecord(0, {"arm": "plain"}, True, [], 1, 0, 1.0)
    writer.write_block(1, block.joined([session.Measured(_sample(), record)]), [record], "now")
    runs = store.load(writer.finish("later"))
    assert list(runs.samples["block"]) == [1]
    assert list(runs.cells["block"]) == [1]


def _sample() -> pa.Table:
    texts = {"outcome": ["ok"], "address": ["10.0.0.1"], "replica": [""]}
    return samples.table({name: texts.get(name, [0]) for name in samples.SCHEMA.names})


def test_a_plan_of_which_nothing_is_allowed_is_told_with_the_reason(what: plan.Plan) -> None:
    with pytest.raises(errors.EnvironmentProblem, match=r"p: nothing of this plan .* \(no bpf here\)"):
        block.require_some(what, {"plain": "no bpf here"})
    block.require_some(what, {"ebpf": "no bpf here"})


def test_blocks_that_are_stored_take_no_more_time() -> None:
    what = plan.find("quick", WORLD)
    assert what.measuring_s([5]) == sum(t.measuring_s(None, WORLD) for t in what.block(5))
    assert what.measuring_s(range(what.blocks)) > 2 * what.measuring_s(range(60, what.blocks))


@pytest.mark.parametrize("folder", sorted(SAMPLE.glob("*-*")), ids=lambda folder: folder.name)
def test_the_expected_duration_is_near_that_of_the_recorded_runs(folder: Path) -> None:
    header = store.load(folder).headers[0]
    what = plan.from_json(header.plan, folder.name, WORLD)
    took = datetime.fromisoformat(str(header.finished)) - datetime.fromisoformat(header.created)
    assert 0.5 < what.measuring_s(range(what.blocks)) / took.total_seconds() < 2  # machines differ by as much
