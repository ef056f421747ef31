import json
from typing import Any

import pyarrow as pa
import pytest

from meshdns.core import errors, schema
from meshdns.store import samples

RECORD = samples.CellRecord(
    cell=0,
    parameters={"arm": "ip", "ndots": 5, "rate_hz": 0.0, "tls": False},
    valid=False,
    reasons=["load not offered"],
    offered=3,
    started_ns=7,
    wall_s=0.5,
    counters={"dnsdist/from_pod": 3},
    cpu_us={"envoy": 1.5},
    memory_bytes={"envoy": 2**40},
    agent={"pauses": [1, 2], "spin": {"hz": 1e6}},
)


def rows(**changes: list[Any]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [1_000, 2_000] for name in samples.SCHEMA.names}
    columns |= {"cell": [0, 0], "seq": [0, 1], "due_ns": [900, 1_900], "rcode": [0, -1], "status": [200, 0]}
    columns |= {"queries": [1, -1], "address": ["10.0.0.1", ""], "replica": ["web-1", ""], "outcome": ["ok", "timeout"]}
    return samples.table(columns | changes)


def test_a_possible_table_passes_and_keeps_its_schema() -> None:
    samples.check(rows())
    assert rows().schema.equals(samples.SCHEMA)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"dns_ns": [1_000, 1_999]}, "dns_ns is before start_ns in 1 rows, first in cell 0 seq 1"),
        ({"end_ns": [999, 2_000]}, "end_ns is before first_byte_ns"),
        ({"due_ns": [3_000, 1_900]}, "start_ns is before due_ns"),
        ({"outcome": ["ok", "fine"]}, "unknown outcome 'fine'"),
        ({"seq": [1, 1]}, "same cell and seq"),
        ({"status": [700, 0]}, "status is outside 0..599"),
        ({"wire_dns_ns": [-2, 0]}, "wire_dns_ns is outside"),
    ],
)
def test_an_impossible_row_is_refused_with_its_place(changes: dict[str, list[Any]], fact: str) -> None:
    with pytest.raises(errors.DataError, match=fact):
        samples.check(rows(**changes), place="0003.parquet")


def test_wrong_columns_and_types_are_named() -> None:
    with pytest.raises(errors.DataError, match="lacks seq and has unknown sequence"):
        samples.check(rows().rename_columns([{"seq": "sequence"}.get(name, name) for name in samples.SCHEMA.names]))
    narrow = rows().set_column(1, "seq", pa.array([0, 1], pa.int64()))
    with pytest.raises(errors.DataError, match="column seq is int64, expected int32"):
        samples.check(narrow)
    with pytest.raises(errors.DataError, match="does not have its type"):
        rows(cell=[0, 2**20])
    with pytest.raises(errors.DataError, match="empty values"):
        samples.check(rows().set_column(1, "seq", pa.array([0, None], pa.int32())))


def test_a_record_survives_json() -> None:
    assert schema.stored(samples.CellRecord, json.loads(json.dumps(vars(RECORD))), "x") == RECORD


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"extra": 1}, "unknown key extra; read it with"),
        ({"cell": "0"}, r"cell: '0' \(text\) is not a whole number"),
        ({"offered": True}, r"offered: true \(a truth value\) is not a whole number"),
        ({"parameters": {"arm": None}}, "parameters.arm: nothing is not text or"),
        ({"counters": {"a/b": "3"}}, "counters.a/b: '3' "),
        ({"reasons": [1]}, r"reasons\[0\]: 1 "),
    ],
)
def test_a_record_with_strange_keys_or_values_is_refused(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(errors.DataError, match=fact):
        schema.stored(samples.CellRecord, vars(RECORD) | change, "x")
    with pytest.raises(errors.DataError, match="wall_s is missing"):
        schema.stored(samples.CellRecord, {key: value for key, value in vars(RECORD).items() if key != "wall_s"}, "x")
