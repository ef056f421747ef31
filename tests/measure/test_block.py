"""Whole plans on a place in memory: every block is stored, and every cell is valid."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from meshdns import store
from meshdns.core import errors
from meshdns.core.progress import Progress
from meshdns.lab import world
from meshdns.lab.controlplane import POLICIES
from meshdns.measure import block, facts, plan, run, session
from meshdns.measure.block import measure_block
from recording import Recording, at_once, groups_of
from shipped import WORLD

__all__ = ["at_once"]  # around every test


def small(name: str, blocks: int = 2) -> plan.Plan:
    """A shipped plan with all its cells, each measured for a few requests."""
    what = plan.find(name, WORLD)
    few = [dataclasses.replace(each, count=4, warmup=min(each.warmup, 2)) for each in what.experiments]
    return dataclasses.replace(what, blocks=blocks, experiments=tuple(few))


def up(what: plan.Plan) -> Recording:
    place = Recording(groups_of(WORLD, what.groups()))
    place.up(lambda _: None)
    return place


@pytest.mark.parametrize("name", ["quick", "standard", "interception", "policies", "change"])
def test_a_whole_plan_is_measured_and_every_cell_is_valid(name: str, tmp_path: Path) -> None:
    what = small(name)
    place = up(what)
    folder = run.execute(what, place, tmp_path, Progress(1, "test"))
    stored = store.load(folder)
    expected = [trial for number in range(what.blocks) for trial in what.block(number)]
    invalid = [each for each in store.records(folder) if not each.valid]
    said = {f"{each.parameters['experiment']} {each.parameters['arm']}: {each.reasons}" for each in invalid}
    assert said == set()
    assert len(stored.cells) == len(expected)  # each at its first attempt
    assert len(stored.samples) == sum(trial.count for trial in expected)
    assert store.world(folder).live == place.world.live == (name in ("policies", "change"))


def test_a_block_is_measured_by_one_call_and_the_place_is_afterwards_as_it_was() -> None:
    what = small("interception")
    place = up(what)
    before = {part.service: part.state for part in place.parts()}
    found = measure_block(what, 0, place)
    assert [each.parameters["arm"] for each in found.records] == [trial.cell.arm for trial in what.block(0)]
    assert all(each.valid for each in found.records)
    assert found.table.num_rows == sum(trial.count for trial in what.block(0))
    assert {part.service: part.state for part in place.parts()} == before
    moved = [asked[:2] for asked in place.asked if asked[0] in ("kill", "start")]
    assert {service for _, service in moved} == {"client-answers-istio-proxy", "client-answers-mode2-istio-proxy"}
    assert len([verb for verb, _ in moved if verb == "kill"]) == len(moved) / 2


def test_a_policy_is_put_in_force_for_its_cells_alone_and_gone_at_the_end() -> None:
    what = small("policies")
    place = up(what)
    measure_block(what, 0, place)
    put = {asked[1:] for asked in place.asked if asked[0] == "manifests" and asked[2]}
    names = {trial.cell.policy for trial in what.block(0)} | {trial.cell.change for trial in what.block(0)}
    assert put == {(f"{each}.yaml", (POLICIES / f"{each}.yaml").read_text()) for each in names - {"none"}}
    assert not place.plane().there


def test_a_cell_whose_path_was_not_taken_is_measured_again_and_kept_with_its_reason() -> None:
    what = small("quick")
    place = up(what)
    place.lost = {"client-mode1"}
    found = measure_block(what, 1, place)
    wrong = [each for each in found.records if not each.valid]
    assert {each.parameters["arm"] for each in wrong} == {"mode1"}
    assert {reason.rpartition(": ")[0] for each in wrong for reason in each.reasons} == {
        "path not taken: DNS packets of the client, against its own count",
        "path not taken: queries at the cluster DNS, against those sent to it",
    }
    asked = [trial for trial in what.block(1) if trial.cell.arm == "mode1" and trial.cell.lookup == "wire"]
    assert len(wrong) == block.ATTEMPTS * len(asked)


def test_what_the_place_does_not_allow_is_left_out_and_a_plan_of_nothing_else_is_refused(tmp_path: Path) -> None:
    what = small("interception", blocks=1)
    place = Recording(what.groups(), refused=frozenset({"client-ebpf", "web-ebpf"}))
    place.up(lambda _: None)
    folder = run.execute(what, place, tmp_path, Progress(1, "test"))
    arms = {each.parameters["arm"] for each in store.records(folder)}
    assert "ebpf" not in arms
    assert {"plain", "nftables", "tproxy"} <= arms
    assert set(store.load(folder).headers[0].facts["refused"]) == {"ebpf", "in-ebpf"}
    alone = [dataclasses.replace(each, arm=("ebpf",)) for each in what.experiments if "ebpf" in each.arm]
    place.up(lambda _: None)
    with pytest.raises(errors.EnvironmentProblem, match=r"nothing of this plan .* \(not allowed here\)"):
        run.execute(dataclasses.replace(what, experiments=tuple(alone)), place, tmp_path, Progress(1, "test"))


@pytest.mark.parametrize(
    ("module", "name", "when"),
    [
        (session, "Conditions", "before the first block"),
        (facts, "machine", "before the first block"),
        (block, "_trials", "while block 0 was measured"),
        (facts, "resolutions", "after the last block"),
    ],
)
def test_a_run_names_what_it_loses(
    module: object, name: str, when: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    what = small("quick", blocks=1)
    place = up(what)

    def loses(*_: object) -> None:
        place.kill("dns-coredns")
        raise errors.TestbedError("the program in the container ended")

    monkeypatch.setattr(module, name, loses)
    with pytest.raises(errors.LostPartError) as caught:
        run.execute(what, place, tmp_path, Progress(1, "test"))
    said = f"dns-coredns: the container was killed by SIGKILL (exit code 137) {when}; its log ends: dns-coredns says"
    assert str(caught.value).startswith(said)


SMALL = """
name = "small"
seed = 1
blocks = 2
[[experiment]]
name = "request"
kind = "request"
arm = ["bare", "meshy"]
backend = "meshed"
connection = "new"
arrival = "closed"
count = 3
warmup = 1
"""


def test_a_world_of_ones_own_needs_none_of_the_shipped_arms(tmp_path: Path) -> None:
    """Two arms by names of their own, and what every testbed has; one replica instead of three."""
    kept = {"meshdns", "kube-dns", "coredns", "dns", "world-dns", "world-web", "observer", "recorded"}
    kept |= {"web", "web-headless", "web-1"}
    renamed = {"client-plain": "bare", "client-mode2-agent": "meshy"}
    documents = []
    for path in sorted(world.SHIPPED.glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            name = each["metadata"]["name"]
            if name in renamed:
                each["metadata"]["annotations"]["meshdns/arm"] = renamed[name]
            if each["kind"] == "EndpointSlice" and name != "kube-dns":
                each["endpoints"] = each["endpoints"][:1]
            documents += [each] if each["kind"] == "Namespace" or name in kept | renamed.keys() else []
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump_all(documents))
    mine = world.read([tmp_path / "mine.yaml"])
    place = Recording(world=mine)
    place.up(lambda _: None)
    what = plan.parse(SMALL, "small", mine)
    folder = run.execute(what, place, tmp_path / "runs", Progress(1, "test"))
    stored = store.load(folder)
    assert list(stored.world.arms) == ["bare", "meshy"]
    assert stored.cells["valid"].all(), stored.cells["reasons"].tolist()
