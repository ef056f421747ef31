import dataclasses
import errno
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic
from meshdns import store
from meshdns.core import errors
from meshdns.store import samples
from shipped import WORLD


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.build(tmp_path_factory.mktemp("runs"), blocks=2, samples_per_cell=3)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_loaded_with_the_parameters_of_each_row(finished: Path) -> None:
    runs = store.load(finished)
    planned, tables = synthetic.cells(), [synthetic.make_block(block, 3) for block in (0, 1)]
    assert len(runs.cells) == 2 * len(planned)
    assert [header.facts for header in runs.headers] == [synthetic._facts()]
    assert len(runs.samples) == sum(table.num_rows for table, _ in tables)
    for block, (table, records) in enumerate(tables):
        rows = runs.samples[runs.samples["block"] == block]
        for name in samples.SCHEMA.names:
            assert rows[name].to_list() == table.column(name).to_pylist()
        for name in vars(planned[0]):
            assert rows[name].to_list() == [records[cell].parameters[name] for cell in rows["cell"]]
            assert isinstance(runs.samples[name].dtype, pd.CategoricalDtype)
    assert runs.cells["counters"].iloc[0] == tables[0][1][0].counters


cell_tables = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 2**62),
        st.lists(st.integers(0, 2**40), min_size=5, max_size=5),
        st.sampled_from(samples.OUTCOMES),
        st.text(max_size=5),
        st.integers(-1, 2**40),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=40)
@given(cell_tables, st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_possible_table_comes_back_as_it_went(rows: list[Any], counters: dict[str, float]) -> None:
    columns: dict[str, Any] = {name: np.zeros(len(rows), np.int64) for name in samples.SCHEMA.names}
    instants = np.array([np.cumsum([row[1], *row[2]]) for row in rows], np.int64).reshape(-1, 6)
    columns |= {name: instants[:, index] for index, name in enumerate(samples.INSTANTS)}
    columns |= {"cell": [row[0] for row in rows], "seq": range(len(rows)), "due_ns": instants[:, 0]}
    columns |= {"wire_dns_ns": [row[5] for row in rows], "outcome": pa.array([row[3] for row in rows], pa.string())}
    columns |= {name: pa.array([row[4] for row in rows], pa.string()) for name in ("address", "replica")}
    table = samples.table({name: list(value) if isinstance(value, range) else value for name, value in columns.items()})
    records = [samples.CellRecord(cell, {"arm": f"a{cell}"}, True, [], 1, 0, 1.0, counters) for cell in range(3)]
    with tempfile.TemporaryDirectory() as root:
        writer = store.create(Path(root), store.RunHeader("r", {"ü": [None, 1]}, 1, "now", 1), WORLD)
        writer.write_block(0, table, records, "now")
        runs = store.load(writer.finish("later"))
    assert runs.cells["counters"].to_list() == [counters] * 3
    assert runs.headers[0].plan == {"ü": [None, 1]}
    for name in samples.SCHEMA.names:
        assert runs.samples[name].to_list() == table.column(name).to_pylist()
    assert runs.samples["arm"].to_list() == [f"a{cell}" for cell in table.column("cell").to_pylist()]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncated_file_is_one_clear_error(finished: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["run.json", "blocks/0000.json", "blocks/0001.parquet"]))
    whole = (finished / name).read_bytes()
    kept = data.draw(st.integers(0, len(whole) - 1))
    try:
        (finished / name).write_bytes(whole[:kept])
        with pytest.raises(errors.DataError, match=Path(name).name):
            store.load(finished)
    finally:
        (finished / name).write_bytes(whole)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_in_the_samples_never_escapes_as_another_error(finished: Path, data: st.DataObject) -> None:
    file = finished / "blocks/0001.parquet"
    whole = file.read_bytes()
    at = data.draw(st.integers(4, len(whole) - 9))
    try:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
        try:
            store.load(finished)  # bytes that say nothing about the rows, such as statistics, may change unseen
        except errors.DataError as problem:
            assert "0001" in str(problem)
    finally:
        file.write_bytes(whole)


def rewrite_json(name: str, change: dict[str, Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))

    return damage


def rewrite_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        pq.write_table(change(pq.read_table(run / "blocks/0001.parquet")), run / "blocks/0001.parquet")

    return damage


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda run: (run / "run.json").unlink(), "run.json: is missing"),
        (lambda run: (run / "blocks/0001.parquet").unlink(), r"lacks 1 block \(1\)"),
        (lambda run: (run / "blocks/0000.json").unlink(), r"lacks 1 block \(0\)"),
        (lambda run: shutil.rmtree(run / "blocks"), r"lacks 2 blocks \(0, 1\)"),
        (lambda run: (run / "blocks/0001.parquet").write_bytes(b"PAR1"), "0001.parquet: is not a whole Parquet file"),
        (lambda run: (run / "blocks/0000.json").write_bytes(b"\xff"), "0000.json: is not whole JSON"),
        (rewrite_json("run.json", {"schema": 2}), "run.json: has schema 2, this meshdns reads 1"),
        (rewrite_json("run.json", {"finished": None}), "is not finished but does not say .partial"),
        (rewrite_json("blocks/0001.json", {"schema": 9}), "0001.json: has schema 9"),
        (rewrite_json("blocks/0001.json", {"cells": []}), "a sample belongs to cell"),
        (rewrite_json("blocks/0001.json", {"block": 0}), "says it is block 0"),
        (rewrite_table(lambda table: table.drop_columns(["seq"])), "lacks seq"),
        (rewrite_table(lambda table: table.replace_schema_metadata({store.SCHEMA_KEY: b"2"})), "has schema 2"),
        (rewrite_table(lambda table: table.replace_schema_metadata({})), "has schema none"),
    ],
)
def test_damage_is_named_with_its_place(run: Path, damage: Callable[[Path], None], fact: str) -> None:
    damage(run)
    with pytest.raises(errors.DataError, match=fact):
        store.load(run.parent if (run / "blocks").exists() else run)


def test_a_folder_of_runs_leaves_out_what_is_not_finished_and_says_so(run: Path) -> None:
    root = run.parent
    writer = synthetic.partial(root, blocks=2, written=1, samples_per_cell=2, name="other")
    synthetic.build(root, blocks=1, samples_per_cell=2, name="third")
    (root / "figures").mkdir()
    (root / "README.md").touch()
    runs = store.load(root)
    assert [header.name for header in runs.headers] == [run.name, "third"]
    assert [note.split(" is ")[0] for note in runs.notes] == ["figures", "other.partial"]
    assert set(runs.samples["run"]) == {run.name, "third"}
    asked = store.load(writer.path)
    assert asked.notes == ["other.partial is not finished: 1 of 2 blocks"]
    assert len(store.load([run, root / "third"]).headers) == 2
    with pytest.raises(errors.DataError, match="no such folder"):
        store.load(root / "nowhere")
    with pytest.raises(errors.DataError, match="no finished run"):
        store.load(root / "figures")


def test_a_killed_run_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    path = synthetic.partial(tmp_path, blocks=3, written=1, samples_per_cell=2).path
    before = files(path)
    (path / "blocks" / ".tmp-0001.parquet").write_bytes(b"half")
    (path / "blocks" / "0001.parquet").write_bytes(b"killed before the json")
    writer = store.resume(path)
    assert writer.missing() == [1, 2]
    assert not (path / "blocks" / ".tmp-0001.parquet").exists()
    with pytest.raises(errors.DataError, match=r"lacks 2 blocks \(1, 2\)"):
        writer.finish("later")
    for block in writer.missing():
        writer.write_block(block, *synthetic.make_block(block, 2), "now")
    final = writer.finish("later")
    assert final == tmp_path / synthetic.NAME
    assert {name: content for name, content in files(final).items() if name in before and name != "run.json"} == {
        name: content for name, content in before.items() if name != "run.json"
    }
    assert store.load(final).headers[0].finished == "later"
    with pytest.raises(errors.InputError, match="finished"):
        store.resume(final)


def test_nothing_is_overwritten_and_nothing_impossible_is_stored(tmp_path: Path) -> None:
    writer = synthetic.partial(tmp_path, blocks=2, written=1, samples_per_cell=2)
    table, records = synthetic.make_block(1, 2)
    before = files(writer.path)
    for block, rows, cells in (
        (0, table, records),
        (2, table, records),
        (1, table, records[1:]),
        (1, table.drop_columns(["seq"]), records),
        (1, table, [*records, samples.CellRecord(len(records), records[0].parameters, True, [], 1, 0, float("nan"))]),
    ):
        with pytest.raises(errors.DataError):
            writer.write_block(block, rows, cells, "now")
    assert files(writer.path) == before
    for name in (synthetic.NAME, "../escape", ".hidden", "x.partial"):
        with pytest.raises(errors.InputError):
            store.create(tmp_path, store.RunHeader(name, {}, 1, "now", 1), WORLD)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(
    "fatal_call", [1, 3]
)  # while writing the samples, or the json after them (fsync: file, folder)
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fatal_call: int) -> None:
    writer = synthetic.partial(tmp_path, blocks=2, written=1, samples_per_cell=2)
    before, calls, fsync = files(writer.path), 0, os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(errors.StorageError, match="intact"):
            writer.write_block(1, *synthetic.make_block(1, 2), "now")
    after = files(writer.path)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if store.TEMPORARY in name]
    again = store.resume(writer.path)
    assert again.missing() == [1]
    again.write_block(1, *synthetic.make_block(1, 2), "now")
    assert len(store.load(again.finish("later")).cells) == 2 * len(synthetic.cells())


def test_a_block_counts_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at every moment at which something is brought to disk, as by another process that looks meanwhile."""
    writer, seen, fsync = synthetic.partial(tmp_path, blocks=2, written=1, samples_per_cell=2), [], os.fsync

    def looking(descriptor: int) -> None:
        seen.append(store.stored(writer.path))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", looking)
        writer.write_block(1, *synthetic.make_block(1, 2), "now")
    assert seen == [[0], [0], [0], [0, 1]]  # samples, their folder, the record under its other name, its folder
    (writer.path / "blocks" / "0001.parquet").unlink()
    assert store.stored(writer.path) == [0]


def test_a_write_that_the_kernel_cuts_short_leaves_nothing(tmp_path: Path) -> None:
    writer = synthetic.partial(tmp_path, blocks=2, written=1, samples_per_cell=2)
    table, records = synthetic.make_block(1, 2)
    before, limits = files(writer.path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(errors.StorageError):
            writer.write_block(1, table, records, "now")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(writer.path) == before


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.create(tmp_path, store.RunHeader("r", {}, 1, "now", 1), WORLD)
    assert list(tmp_path.iterdir()) == []


def test_runs_with_other_parameters_are_not_mixed(run: Path) -> None:
    writer = store.create(run.parent, store.RunHeader("zz", {}, 1, "now", 1), WORLD)
    record = samples.CellRecord(0, {"arm": "ip"}, True, [], 1, 0, 1.0)
    writer.write_block(0, samples.SCHEMA.empty_table(), [record], "now")
    writer.finish("later")
    with pytest.raises(errors.DataError, match=r"zz: differs from .* in parameters .*ndots"):
        store.load(run.parent)


def test_a_run_whose_header_is_of_another_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    writer = store.create(tmp_path, store.RunHeader("r", {}, 1, "now", 1), WORLD)
    path = writer.path / "run.json"
    path.write_text(path.read_text().replace('"r"', '"../elsewhere"'))
    with pytest.raises(errors.DataError, match=r"says that the run is '\.\./elsewhere'"):
        store.resume(writer.path)
    path.write_text(path.read_text().replace('"../elsewhere"', '"r"'))
    (tmp_path / "r").mkdir()
    with pytest.raises(errors.InputError, match="exists already"):
        store.resume(writer.path)


def test_the_records_of_an_unfinished_run_are_read_without_its_samples(tmp_path: Path) -> None:
    writer = store.create(tmp_path, store.RunHeader("r", {}, 1, "now", 3), WORLD)
    record = samples.CellRecord(0, {"arm": "plain"}, False, ["a reason"], 1, 0, 1.0)
    writer.write_block(1, samples.SCHEMA.empty_table(), [record], "now")
    (writer.path / "blocks" / "0002.json").touch()  # half written
    assert store.records(writer.path) == [record]


def test_a_run_without_its_world_is_of_an_older_meshdns(run: Path) -> None:
    (run / "world.json").unlink()
    with pytest.raises(errors.DataError, match=r"world.json: is missing: the run is of an older meshdns; read it with"):
        store.load(run)
    (run / "world.json").write_text('{"pods": 1}')
    with pytest.raises(errors.DataError, match=r"world.json: namespace, domain.* is missing; read it with"):
        store.load(run)


def test_runs_of_different_worlds_are_read_apart(run: Path, tmp_path: Path) -> None:
    """Each understands its own arms; one name for two different pods is refused."""
    arms = WORLD.arms | {"mode1": dataclasses.replace(WORLD.arms["mode1"], mechanism="nftables")}
    other = dataclasses.replace(WORLD, pods=tuple(arms.get(pod.arm, pod) for pod in WORLD.pods))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy / run.name)
    (copy / run.name / "world.json").write_text(json.dumps(other.to_json()))
    assert store.load(copy).world.arms["mode1"].mechanism == "nftables"
    header = json.loads((copy / run.name / "run.json").read_text())
    (copy / run.name / "run.json").write_text(json.dumps(header | {"name": "other"}))
    with pytest.raises(errors.DataError, match="client-mode1 is not the same in it as in"):
        store.load([run, copy / run.name])
    less = dataclasses.replace(WORLD, pods=(), manifests=(), cluster_dns={})
    (copy / run.name / "world.json").write_text(json.dumps(less.to_json()))
    whole = store.load([copy / run.name, run]).world
    assert whole.dns_pod(whole.arms["plain-cache"]).pod == "dns-cache"
    assert "cache 30" in whole.configuration("dns-cache", "Corefile")
