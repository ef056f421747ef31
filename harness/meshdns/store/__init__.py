"""A folder of runs: blocks written once, resumed after a kill, loaded as one frame.

RunWriter writes; every file appears whole or not at all (temporary name, fsync, rename) and a block counts once both
its files are there. `load` reads; what is missing, cut short or of another schema is a DataError that names the file.
What a cell's parameters mean is the plan's business: here they are a flat set of names and values.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from meshdns.core import errors, schema
from meshdns.core.schema import Bounds
from meshdns.core.world import World
from meshdns.store import samples

PARTIAL = ".partial"  # suffix of a run that is not finished
TEMPORARY = ".tmp-"  # prefix of files being written; left behind only by a kill, swept by resume
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # one path component on every file system, not hidden
COMPRESSION_LEVEL = 3  # zstd's own default; delta-encoded instants are random bits, level 9 gains 0.02 %
SCHEMA_KEY = b"meshdns.schema"
_TAKEN = "exists already; runs are never overwritten"

_TEXT_COLUMNS = [each.name for each in samples.SCHEMA if pa.types.is_dictionary(each.type)]
_INTEGER_COLUMNS = [each.name for each in samples.SCHEMA if not pa.types.is_dictionary(each.type)]


@dataclass(frozen=True)
class RunHeader:
    """run.json: what was asked for and what was true."""

    name: str  # <plan>-<UTC time>-<4 hex>, also the folder
    plan: dict[str, Any]  # normalised plan: JSON tree
    seed: int  # of the order of cells and of arrivals
    created: str  # ISO 8601, UTC
    blocks: Annotated[int, Bounds(1, 1_000_000)]  # how many the plan asks for
    facts: dict[str, Any] = field(default_factory=dict)  # versions, images, kernel, CPU, rules, ...: JSON tree
    finished: str | None = None  # ISO 8601, UTC; None while blocks are missing
    schema: int = samples.SCHEMA_VERSION


@dataclass(frozen=True)
class _Cells:
    """A block's JSON beside its samples."""

    schema: int
    block: int
    started: str  # ISO 8601, UTC
    cells: list[samples.CellRecord]


@dataclass(frozen=True, eq=False)
class Runs:
    """What `load` found."""

    samples: pd.DataFrame  # a row per request: run, block, columns of samples.SCHEMA, cell parameters as categories
    cells: pd.DataFrame  # a row per cell: run, block, parameters, valid, reasons, offered, ..., dicts in the last four
    headers: list[RunHeader]  # in the order of their names
    notes: list[str]  # what was left out, and why
    world: World  # of all runs together


def parameters(runs: Runs) -> list[str]:
    """The columns of `cells` that are factors of the plan."""
    about = {"run", "block", *samples.CellRecord.__dataclass_fields__}
    return [str(name) for name in runs.cells.columns if name not in about]


class RunWriter:
    """An unfinished run on disk; made by `create` or `resume`."""

    def __init__(self, path: Path, header: RunHeader) -> None:
        """Writes to a folder that exists already, with this header in it."""
        self.path, self.header = path, header

    def missing(self) -> list[int]:
        """The blocks still to be measured."""
        there = set(stored(self.path))
        return [block for block in range(self.header.blocks) if block not in there]

    def write_block(self, block: int, table: pa.Table, cells: Sequence[samples.CellRecord], started: str) -> None:
        """The block is on disk, whole; it is refused if it is there already or holds what cannot have happened."""
        parquet, record = _block_paths(self.path, block)
        if not 0 <= block < self.header.blocks:
            raise errors.DataError(f"block {block} is outside 0..{self.header.blocks - 1}", place=str(self.path))
        if _has_block(self.path, block):
            raise errors.DataError(f"block {block} is stored already; blocks are written once", place=str(self.path))
        samples.check(table, place=str(parquet))
        _check_cells(table, cells, str(record))
        content = asdict(_Cells(samples.SCHEMA_VERSION, block, started, list(cells)))
        encoded = _json_bytes(content, record)  # first: nothing is half stored if it cannot be expressed
        _write(parquet, _parquet_bytes(table))
        _write(record, encoded)  # last: the block exists from here on

    def finish(self, finished: str, closing: Mapping[str, Any] | None = None) -> Path:
        """The folder has its final name; refused while blocks are missing. `closing`: facts known only at the end."""
        if missing := self.missing():
            raise errors.DataError(f"lacks {_listed(missing)}", place=str(self.path), step="resume the run first")
        final = self.path.with_name(self.header.name)
        if final.exists():
            raise errors.DataError(_TAKEN, place=str(final), step="move it away")
        self.header = replace(self.header, finished=finished, facts={**self.header.facts, **(closing or {})})
        _write(self.path / "run.json", _json_bytes(vars(self.header), self.path / "run.json"))
        with _storage(final):
            self.path.rename(final)
            _sync_folder(final.parent)
        self.path = final
        return final

    def log(self, line: str) -> None:
        """The line is in log.txt, with the time."""
        with _storage(self.path / "log.txt"), (self.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")


def create(root: Path, header: RunHeader, made_in: World) -> RunWriter:
    """A new folder <root>/<name>.partial with run.json, world.json and no blocks."""
    if not RUN_NAME.fullmatch(header.name) or header.name.endswith(PARTIAL):
        raise errors.InputError(f"{header.name!r} cannot name a run", step="use letters, digits, '-', '_' and '.'")
    _stored(RunHeader, vars(header), header.name)
    path = Path(root) / f"{header.name}{PARTIAL}"
    encoded = _json_bytes(vars(header), path / "run.json")
    described = _json_bytes(made_in.to_json(), path / "world.json")
    for taken in (path, path.with_name(header.name)):
        if taken.exists():
            raise errors.InputError(_TAKEN, place=str(taken), step="choose another name")
    with _storage(path):
        (path / "blocks").mkdir(parents=True)
    try:
        _write(path / "world.json", described)
        _write(path / "run.json", encoded)
    except BaseException:  # an interrupt too: a folder without run.json is of no use to anybody
        with contextlib.suppress(OSError):
            (path / "world.json").unlink(missing_ok=True)
            (path / "blocks").rmdir()
            path.rmdir()
        raise
    return RunWriter(path, header)


def resume(path: Path | str) -> RunWriter:
    """The unfinished run in that folder, without what a kill left half-written."""
    folder = Path(path)
    if folder.is_dir() and not folder.name.endswith(PARTIAL):
        raise errors.InputError("is finished, there is nothing to resume", place=str(folder))
    header = _header(folder)
    if header.name + PARTIAL != folder.absolute().name:  # it becomes the folder's name when all is measured
        raise errors.DataError(
            f"says that the run is {header.name!r}", place=str(folder / "run.json"), step="restore the folder's name"
        )
    final = folder.absolute().with_name(header.name)
    if final.exists():
        step = "move it away, to go on with the unfinished one"
        raise errors.InputError("exists already", place=str(final), step=step)
    with _storage(folder):
        (folder / "blocks").mkdir(exist_ok=True)
        for leftover in [*folder.glob(f"{TEMPORARY}*"), *(folder / "blocks").glob(f"{TEMPORARY}*")]:
            leftover.unlink()
    for block in _present(folder, header):  # a damaged one is told now, not after hours of measuring the others
        _decode(_open_block(folder, header.name, block))
    return RunWriter(folder, header)


def world(folder: Path) -> World:
    """What the run's testbed was made of. Raises DataError."""
    place = folder / "world.json"
    if not place.exists():
        step = "read it with the meshdns that wrote it (run.json has its commit), or measure again"
        raise errors.DataError("is missing: the run is of an older meshdns", place=str(place), step=step)
    return schema.stored(World, _read_json(place), str(place))


def stored(folder: Path) -> list[int]:
    """The blocks of a run that are on disk, whole; what is still being written has another name and does not count."""
    numbers = {int(path.stem) for path in (folder / "blocks").glob("*.json") if path.stem.isdecimal()}
    return [block for block in sorted(numbers) if _has_block(folder, block)]


def records(path: Path) -> list[samples.CellRecord]:
    """The cells of all complete blocks of one run, finished or not, without their samples."""
    present = _present(path, _header(path))
    return [cell for block in present for cell in _cells(_block_paths(path, block)[1], block)]


def require_writable(folder: Path) -> None:
    """Something can be stored there, also where it is still to be made; for who would find out hours later.

    Raises StorageError.
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        fact = "cannot be written" if there.is_dir() else "is not a folder"
        raise errors.StorageError(
            fact, place=str(there), step=f"get access to it, or choose another, and {errors.AGAIN}"
        )


def load(path: str | Path | Iterable[str | Path]) -> Runs:
    """All samples and cells of a run folder, of a folder of run folders, or of several of either."""
    places = [Path(path)] if isinstance(path, str | Path) else [Path(each) for each in path]
    notes: list[str] = []
    folders = list(dict.fromkeys(folder for place in places for folder in _run_folders(place, notes)))
    if not folders:
        where = ", ".join(map(str, places)) or "an empty list"
        raise errors.DataError(
            "holds no finished run" + "".join(f" ({note})" for note in notes), place=where, step="measure one"
        )
    headers: list[RunHeader] = []
    blocks: list[_Block] = []
    for folder in folders:
        header = _header(folder)
        headers.append(header)
        blocks.extend(_open_block(folder, header.name, number) for number in _numbers(folder, header, notes))
    given = ", ".join(map(str, folders))
    if len({header.name for header in headers}) < len(headers):
        raise errors.DataError("the same run is given twice", place=given, step="give each run once")
    if not blocks:
        raise errors.DataError("holds no complete block", place=given, step="resume the run")
    whole = _together({header.name: world(folder) for header, folder in zip(headers, folders, strict=True)})
    return Runs(_samples_frame(blocks), _cells_frame(blocks), headers, notes, whole)


# --- reading ---


def _together(worlds: Mapping[str, World]) -> World:
    """One world of all: what has one name in several runs must be the same in them. Raises DataError."""
    first, *others = worlds
    whole = worlds[first]
    for name in others:
        pods = {pod.pod: pod for pod in whole.pods}
        services = {service.host: service for service in whole.services}
        other = worlds[name]
        differing = [each.pod for each in other.pods if pods.setdefault(each.pod, each) != each]
        differing += [each.name for each in other.services if services.setdefault(each.host, each) != each]
        if differing:
            fact = f"{', '.join(differing)} is not the same in it as in {first}"
            raise errors.DataError(fact, place=name, step="report the runs apart")
        more = tuple(each for each in other.manifests if each not in whole.manifests)
        whole = replace(
            whole,
            pods=tuple(pods.values()),
            services=tuple(services.values()),
            manifests=(*whole.manifests, *more),
            cluster_dns={**other.cluster_dns, **whole.cluster_dns},
        )
    return whole


@dataclass(frozen=True)
class _Block:
    run: str
    number: int
    cells: list[samples.CellRecord]
    path: Path  # of the Parquet file, for messages
    file: pq.ParquetFile

    @property
    def rows(self) -> int:
        """As its footer announces."""
        return int(self.file.metadata.num_rows)


def _run_folders(place: Path, notes: list[str]) -> list[Path]:
    """The folder itself if it is a run, else the finished runs in it."""
    if not place.is_dir():
        raise errors.DataError(
            "there is no such folder", place=str(place), step="give a run folder or a folder of runs"
        )
    if _is_run(place) or place.name.endswith(PARTIAL):
        return [place]
    found = []
    for child in sorted(each for each in place.iterdir() if each.is_dir() and not each.name.startswith(".")):
        if child.name.endswith(PARTIAL):
            notes.append(f"{child.name} is left out: the run is not finished")
        elif _is_run(child):
            found.append(child)
        else:
            notes.append(f"{child.name} is left out: it is not a run folder")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "blocks").is_dir()


def _header(folder: Path) -> RunHeader:
    header = _stored(RunHeader, _read_json(folder / "run.json"), str(folder / "run.json"))
    if not folder.name.endswith(PARTIAL) and header.finished is None:
        raise errors.DataError(
            "is not finished but does not say .partial", place=str(folder), step=f"rename it to {header.name}{PARTIAL}"
        )
    return header


def _numbers(folder: Path, header: RunHeader, notes: list[str]) -> list[int]:
    """The blocks to read: all of a finished run, those present of another."""
    present = _present(folder, header)
    if len(present) == header.blocks:
        return present
    if header.finished is None:
        notes.append(f"{folder.name} is not finished: {len(present)} of {header.blocks} blocks")
        return present
    lacking = sorted(set(range(header.blocks)) - set(present))
    raise errors.DataError(
        f"lacks {_listed(lacking)}", place=str(folder), step="copy the whole folder again, or measure again"
    )


def _present(folder: Path, header: RunHeader) -> list[int]:
    return [block for block in stored(folder) if block < header.blocks]


def _has_block(folder: Path, block: int) -> bool:
    return all(path.exists() for path in _block_paths(folder, block))


def _block_paths(folder: Path, block: int) -> tuple[Path, Path]:
    return folder / "blocks" / f"{block:04d}.parquet", folder / "blocks" / f"{block:04d}.json"


def _open_block(folder: Path, run: str, block: int) -> _Block:
    """The block's cells and its Parquet file, opened but not decoded."""
    parquet, record = _block_paths(folder, block)
    return _Block(run, block, _cells(record, block), parquet, _open_parquet(parquet))


def _cells(record: Path, block: int) -> list[samples.CellRecord]:
    content = _stored(_Cells, _read_json(record), str(record))
    if content.block != block:
        raise errors.DataError(f"says it is block {content.block}", place=str(record), step="restore the file's name")
    return content.cells


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as problem:
        raise errors.DataError(
            "is missing", place=str(path), step="the run folder is not whole; copy or measure it again"
        ) from problem
    except OSError as problem:
        raise errors.DataError(f"cannot be read ({problem.strerror})", place=str(path)) from problem


def _read_json(path: Path) -> object:
    content = _read_bytes(path)
    with _whole(path, "whole JSON"):
        value: object = json.loads(content)
    return value


def _open_parquet(path: Path) -> pq.ParquetFile:
    content = _read_bytes(path)
    with _whole(path, "a whole Parquet file"):
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        schema = file.schema_arrow
    samples.check_columns(schema, str(path))
    version = (schema.metadata or {}).get(SCHEMA_KEY, b"none")
    if version != str(samples.SCHEMA_VERSION).encode():
        raise _other_schema(version.decode(errors="replace"), str(path))
    return file


def _decode(block: _Block) -> pa.Table:
    """The samples of the block, checked."""
    with _whole(block.path, "a whole Parquet file"):
        table = block.file.read()
        table.validate(full=True)  # a damaged page may decode to indices outside their dictionary
    if table.num_rows != block.rows:
        raise errors.DataError(f"announces {block.rows} rows and holds {table.num_rows}", place=str(block.path))
    samples.check(table, str(block.path))
    _check_cells(table, block.cells, str(block.path))
    return table


@contextlib.contextmanager
def _whole(path: Path, what: str) -> Iterator[None]:
    """What json and pyarrow raise on a damaged file becomes a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as problem:
        step = "the file is damaged; copy or measure it again"
        raise errors.DataError(f"is not {what}", place=str(path), step=step) from problem


def _stored(kind: type[schema.Kind], value: object, place: str) -> schema.Kind:
    """A JSON object of this schema. Raises DataError."""
    if isinstance(value, dict) and value.get("schema", samples.SCHEMA_VERSION) != samples.SCHEMA_VERSION:
        raise _other_schema(value["schema"], place)
    return schema.stored(kind, value, place)


def _other_schema(version: object, place: str) -> errors.DataError:
    fact = f"has schema {version}, this meshdns reads {samples.SCHEMA_VERSION}"
    return errors.DataError(fact, place=place, step="use the version that wrote it")


def _check_cells(table: pa.Table, cells: Sequence[samples.CellRecord], place: str) -> None:
    """Cells are numbered by position, share their parameters' names, and every sample has one."""
    if [each.cell for each in cells] != list(range(len(cells))):
        raise errors.DataError(
            f"cells are numbered {[each.cell for each in cells]}, expected 0..{len(cells) - 1}", place=place
        )
    if len({frozenset(each.parameters) for each in cells}) > 1:
        raise errors.DataError("cells differ in which parameters they have", place=place)
    largest = int(np.max(table.column("cell").to_numpy(), initial=-1))
    if largest >= len(cells):
        raise errors.DataError(f"a sample belongs to cell {largest}, but there are {len(cells)} cells", place=place)


# --- frames ---


def _samples_frame(blocks: list[_Block]) -> pd.DataFrame:
    rows = [each.rows for each in blocks]
    columns, cell_of_row = _sample_columns(blocks, rows)
    cells = [cell for each in blocks for cell in each.cells]
    levels = {
        name: _category([cell.parameters[name] for cell in cells], cell_of_row) for name in _parameter_names(blocks)
    }
    run = _category([each.run for each in blocks], np.repeat(np.arange(len(blocks)), rows))
    block = np.repeat(np.array([each.number for each in blocks], dtype=np.int32), rows)
    return pd.DataFrame({"run": run, "block": block, **columns, **levels}, copy=False)


def _sample_columns(blocks: list[_Block], rows: list[int]) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The stored columns, and each row's index into the cells of all blocks.

    Block by block into arrays of the final size: decoding everything first would need twice the memory, and touching
    fresh memory is what takes the time.
    """
    whole = {name: np.empty(sum(rows), samples.SCHEMA.field(name).type.to_pandas_dtype()) for name in _INTEGER_COLUMNS}
    texts: dict[str, list[pa.Array]] = {name: [] for name in _TEXT_COLUMNS}
    cell_of_row = np.empty(sum(rows), np.int64)
    begin = first_cell = 0
    for block in blocks:
        table, end = _decode(block), begin + block.rows
        for name, column in whole.items():
            column[begin:end] = table.column(name).to_numpy()
        for name, chunks in texts.items():
            chunks.extend(table.column(name).chunks)
        np.add(whole["cell"][begin:end], first_cell, out=cell_of_row[begin:end])
        begin, first_cell = end, first_cell + len(block.cells)
    merged = {name: _text_category(chunks) for name, chunks in texts.items()}
    return {name: (whole | merged)[name] for name in samples.SCHEMA.names}, cell_of_row


def _text_category(chunks: list[pa.Array]) -> pd.Categorical[Any]:
    one: Any = pa.chunked_array(chunks, samples.SCHEMA.field("outcome").type).unify_dictionaries().combine_chunks()
    codes: NDArray[np.int32] = one.indices.to_numpy()
    return pd.Categorical.from_codes(codes, categories=pd.Index(one.dictionary.to_pandas()))


def _category(values: Sequence[samples.Parameter], record: NDArray[np.int64]) -> pd.Categorical[Any]:
    """`values[record]` with the distinct values, in order, as categories."""
    levels: list[Any] = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    code = {level: index for index, level in enumerate(levels)}
    codes: NDArray[np.signedinteger[Any]] = np.array(
        [code[value] for value in values], dtype=np.int8 if len(levels) < 128 else np.int32
    )
    return pd.Categorical.from_codes(codes[record], categories=pd.Index(levels))


def _cells_frame(blocks: list[_Block]) -> pd.DataFrame:
    names = _parameter_names(blocks)
    rows = [
        {"run": each.run, "block": each.number, "cell": cell.cell}
        | {name: cell.parameters[name] for name in names}
        | {name: value for name, value in vars(cell).items() if name not in ("cell", "parameters")}
        for each in blocks
        for cell in each.cells
    ]
    return pd.DataFrame(rows)


def _parameter_names(blocks: list[_Block]) -> list[str]:
    """The names all cells share; runs that differ in them cannot be put in one frame."""
    first = next((each for each in blocks if each.cells), None)
    if first is None:
        raise errors.DataError(
            "holds no cell", place=", ".join(sorted({each.run for each in blocks})), step="measure again"
        )
    names = list(first.cells[0].parameters)
    reserved = {"run", "block", *samples.SCHEMA.names, *samples.CellRecord.__dataclass_fields__}
    if clash := sorted(reserved & set(names)):
        raise errors.DataError(f"parameter {clash[0]} has the name of a column", place=first.run)
    for each in blocks:
        if each.cells and set(each.cells[0].parameters) != set(names):
            differing = ", ".join(sorted(set(names) ^ set(each.cells[0].parameters)))
            raise errors.DataError(
                f"differs from {first.run} in parameters {differing}", place=each.run, step="load the runs apart"
            )
    return names


# --- writing ---


def _parquet_bytes(table: pa.Table) -> bytes:
    stamped = table.select(samples.SCHEMA.names).replace_schema_metadata(
        {SCHEMA_KEY: str(samples.SCHEMA_VERSION).encode()}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        stamped,
        sink,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=_TEXT_COLUMNS,
        column_encoding=dict.fromkeys(_INTEGER_COLUMNS, "DELTA_BINARY_PACKED"),  # instants grow in small steps
        write_page_checksum=True,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _json_bytes(value: object, path: Path) -> bytes:
    """Compact, and without a final newline: any shorter file is then not JSON, so that truncation always shows."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as problem:
        raise errors.DataError(f"cannot be expressed in JSON ({problem})", place=str(path)) from problem


def _write(path: Path, content: bytes) -> None:
    """The file is on disk under its name; whatever goes wrong, nothing of it is."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with _storage(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # an interrupt too
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Operating-system errors inside become a StorageError about the path."""
    try:
        yield
    except OSError as problem:
        raise errors.StorageError(
            f"cannot be written ({problem.strerror or problem})",
            place=str(path),
            step=f"blocks stored earlier are intact; make room or get write access and {errors.AGAIN}",
        ) from problem


def _listed(blocks: list[int]) -> str:
    shown = ", ".join(map(str, blocks[:5])) + (", ..." if len(blocks) > 5 else "")
    return f"{len(blocks)} block{'s' * (len(blocks) > 1)} ({shown})"
