"""The record: one row per request, one CellRecord per cell.

Columns, types, meaning and the schema's version are defined here. `check` refuses rows that cannot have happened.
Nothing here reads or writes files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meshdns.core import errors

SCHEMA_VERSION = 1  # of run.json, NNNN.json and NNNN.parquet together

# Instants of one CLOCK_MONOTONIC in the order in which they pass. Each is the end of its phase; a phase that did not
# happen has no length. `due_ns` is apart: it is when the plan wanted the request to start.
INSTANTS = ("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")

OUTCOMES = ("ok", "timeout", "dns_error", "connect_error", "tls_error", "http_error", "reset", "bad_answer")

# due = t0 + k/rate is rounded to nanoseconds and the agent spins on that value; earlier than this is a wrong clock.
DUE_TOLERANCE_NS = 1_000

_TEXT = pa.dictionary(pa.int32(), pa.string())

# Column -> type, and the smallest and the largest value where it is a number and not an instant.
_COLUMNS: dict[str, tuple[pa.DataType, tuple[int, int] | None]] = {
    "cell": (pa.int16(), (0, 2**15 - 1)),  # index into the block's cells
    "seq": (pa.int32(), (0, 2**31 - 1)),  # request number in the cell, unique there
    "due_ns": (pa.int64(), None),  # planned start; equals start_ns in a closed loop
    "start_ns": (pa.int64(), None),  # actual start
    "dns_ns": (pa.int64(), None),  # answer known
    "connect_ns": (pa.int64(), None),  # TCP connected
    "tls_ns": (pa.int64(), None),  # TLS established
    "first_byte_ns": (pa.int64(), None),  # first byte of the response
    "end_ns": (pa.int64(), None),  # all done, or the moment of failure
    "outcome": (_TEXT, None),  # one of OUTCOMES
    "rcode": (pa.int8(), (-1, 23)),  # DNS RCODE, 23 the largest assigned (BADCOOKIE); -1: no DNS
    "status": (pa.int16(), (0, 599)),  # HTTP status; 0: none
    "queries": (pa.int16(), (-1, 2**15 - 1)),  # DNS queries the agent sent; -1: unknown (getaddrinfo)
    "address": (_TEXT, None),  # answered address; "": none
    "replica": (_TEXT, None),  # server that answered; "": none
    "bytes": (pa.int32(), (0, 2**31 - 1)),  # body bytes received
    "local_port": (pa.int32(), (0, 65_535)),  # source port (TCP, for lookups UDP); 0: unknown
    "wire_dns_ns": (pa.int64(), (-1, 2**63 - 1)),  # between packets at the client pod; -1: not captured
    "wire_total_ns": (pa.int64(), (-1, 2**63 - 1)),  # same, first to last packet of the request
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, (kind, _) in _COLUMNS.items()])

Parameter = str | int | float | bool


@dataclass(frozen=True)
class CellRecord:
    """What was measured around the samples of one cell."""

    cell: int  # index in the block
    parameters: dict[str, Parameter]  # factor levels, flat
    valid: bool  # False: keep, but do not draw conclusions from it
    reasons: list[str]  # why it is not valid
    offered: int  # requests that the plan asked for
    started_ns: int  # monotonic instant of the first due request
    wall_s: float  # time from first due request to last answer
    counters: dict[str, int | float] = field(default_factory=dict)  # "<source>/<counter>" -> after minus before
    cpu_us: dict[str, float] = field(default_factory=dict)  # container -> CPU time spent
    memory_bytes: dict[str, int] = field(default_factory=dict)  # container -> memory in use at the end
    agent: dict[str, Any] = field(default_factory=dict)  # facts of the agent: JSON tree


def table(columns: dict[str, Any]) -> pa.Table:
    """A table of this schema from arrays or lists, one per column."""
    if set(columns) != set(SCHEMA.names):
        raise errors.DataError(_column_fact(list(columns)), place="samples")
    try:
        return pa.table({each.name: pa.array(columns[each.name]).cast(each.type) for each in SCHEMA}, schema=SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as problem:
        raise errors.DataError(f"a column does not have its type ({problem})", place="samples") from problem


def check(samples: pa.Table, place: str = "samples") -> None:
    """Nothing, once every row could have happened; DataError for the first that could not."""
    check_columns(samples.schema, place)
    for name in SCHEMA.names:
        if empty := samples.column(name).null_count:
            raise errors.DataError(f"{name} has {empty} empty values", place=place)
    present = pc.unique(samples.column("outcome").cast(pa.string())).to_pylist()
    if unknown := sorted(set(present) - set(OUTCOMES)):
        raise errors.DataError(f"unknown outcome {unknown[0]!r}; known: {', '.join(OUTCOMES)}", place=place)
    for name, (_, bounds) in _COLUMNS.items():
        if bounds:
            (low, high), values = bounds, samples.column(name).to_numpy()
            _refuse((values < low) | (values > high), samples, f"{name} is outside {low}..{high}", place)
    instants = [samples.column(name).to_numpy() for name in INSTANTS]
    due_ns = samples.column("due_ns").to_numpy()
    _refuse(instants[0] < due_ns - DUE_TOLERANCE_NS, samples, "start_ns is before due_ns", place)
    for before, after, earlier, later in zip(INSTANTS[:-1], INSTANTS[1:], instants[:-1], instants[1:], strict=True):
        _refuse(later < earlier, samples, f"{after} is before {before}", place)
    keys = samples.column("cell").to_numpy().astype(np.int64) << 32 | samples.column("seq").to_numpy()
    if np.any(np.diff(keys) <= 0) and len(np.unique(keys)) != len(keys):  # rows in order need no second look
        raise errors.DataError("two rows have the same cell and seq", place=place)


def check_columns(schema: pa.Schema, place: str = "samples") -> None:
    """Nothing, once the schema is this one, whatever the order of columns."""
    if set(schema.names) != set(SCHEMA.names) or len(schema.names) != len(SCHEMA.names):
        raise errors.DataError(_column_fact(schema.names), place=place, step="not samples, or of another version")
    for each in SCHEMA:
        found = schema.field(each.name).type
        if found != each.type:
            raise errors.DataError(f"column {each.name} is {found}, expected {each.type}", place=place)


def _column_fact(names: list[str]) -> str:
    missing, unknown = sorted(set(SCHEMA.names) - set(names)), sorted(set(names) - set(SCHEMA.names))
    facts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
    return f"wrong columns: {' and '.join(facts) or 'one occurs twice'}"


def _refuse(bad: np.ndarray[Any, np.dtype[np.bool_]], samples: pa.Table, fact: str, place: str) -> None:
    if bad.any():
        row = samples.slice(int(bad.argmax()), 1)
        cell, seq = row.column("cell")[0].as_py(), row.column("seq")[0].as_py()
        raise errors.DataError(f"{fact} in {int(bad.sum())} rows, first in cell {cell} seq {seq}", place=place)
