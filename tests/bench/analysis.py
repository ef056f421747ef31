"""Speed bars of what reads results: `python tests/bench/analysis.py`.

The store and the statistics, beside raw pyarrow on the same table: one million samples written in 1 s, loaded and
summarised (p50, p99 per cell) in 1 s, under 600 MB. The ratio to raw pyarrow tells a slow machine from slow code. Loads
run in fresh processes. Then each notebook on the recorded sample, one after the other, as a report executes it: 15 s,
start of the kernel and imports included. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meshdns import report, store
from meshdns.analysis import stats
from meshdns.core import errors
from meshdns.lab import world
from meshdns.report import execute
from meshdns.store import samples

BAR_S = 1.0
BAR_MB = 600
NOTEBOOK_BAR_S = 15.0
ROOT = Path(__file__).parents[2]
ROWS = 1_000_000
BLOCKS, CELLS = 40, 40
REPEATS = 3  # the best of three shows the code; the others show the neighbours


def make_blocks(rows: int, blocks: int, cells: int) -> list[tuple[pa.Table, list[samples.CellRecord]]]:
    """Blocks like recorded ones: cells one after the other, log-normal phases."""
    rng = np.random.default_rng(1)
    per_cell = rows // blocks // cells
    out = []
    for block in range(blocks):
        n = per_cell * cells
        phases = [rng.lognormal(np.log(60_000), 0.3, n).astype(np.int64) for _ in range(3)]
        start = 10**12 + block * 10**9 + np.arange(n) * 500_000
        dns = start + phases[0]
        connect = dns + phases[1]
        end = connect + phases[2]
        zeros, minus = np.zeros(n, np.int64), np.full(n, -1)
        columns = {
            "cell": np.repeat(np.arange(cells), per_cell),
            "seq": np.tile(np.arange(per_cell), cells),
            "due_ns": start,
            "start_ns": start,
            "dns_ns": dns,
            "connect_ns": connect,
            "tls_ns": connect,
            "first_byte_ns": end - 1000,
            "end_ns": end,
            "outcome": pa.DictionaryArray.from_arrays(zeros.astype(np.int32), ["ok"]),
            "rcode": zeros,
            "status": zeros + 200,
            "queries": zeros + 1,
            "address": pa.DictionaryArray.from_arrays(zeros.astype(np.int32), ["10.96.0.7"]),
            "replica": pa.DictionaryArray.from_arrays(
                rng.integers(0, 3, n).astype(np.int32), ["web-1", "web-2", "web-3"]
            ),
            "bytes": zeros + 1024,
            "local_port": 32_768 + np.arange(n) % 28_000,
            "wire_dns_ns": minus,
            "wire_total_ns": minus,
        }
        columns["first_byte_ns"] = np.maximum(columns["first_byte_ns"], connect)
        out.append((samples.table(columns), [make_cell(cell) for cell in range(cells)]))
    return out


def make_cell(cell: int) -> samples.CellRecord:
    levels = {f"factor{i}": f"level{cell % (i + 2)}" for i in range(18)}
    return samples.CellRecord(cell, {**levels, "rate_hz": float(cell)}, True, [], 100, 0, 1.0, {"a/b": 1}, {"web": 1.0})


def write(root: Path, name: str, blocks: list[tuple[pa.Table, list[samples.CellRecord]]]) -> Path:
    writer = store.create(root, store.RunHeader(name, {}, 1, "2026-01-01T00:00:00Z", len(blocks)), world.shipped())
    for number, (table, cells) in enumerate(blocks):
        writer.write_block(number, table, cells, "2026-01-01T00:00:00Z")
    return writer.finish("2026-01-01T00:01:00Z")


def summarise(folder: Path) -> int:
    """Load, one p50 and p99 per run, block and cell."""
    frame = store.load(folder).samples
    group = frame["block"].to_numpy().astype(np.int64) * CELLS + frame["cell"].to_numpy()
    return len(stats.quantiles_by_group((frame["end_ns"] - frame["due_ns"]).to_numpy(), group, (0.5, 0.99)))


def best(action: Callable[[int], object]) -> float:
    times = []
    for repeat in range(REPEATS):
        begin = time.perf_counter()
        action(repeat)
        times.append(time.perf_counter() - begin)
    return min(times)


def measure_load(folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes in a process that does nothing else; imports are not timed."""
    output = subprocess.run([sys.executable, __file__, "load", str(folder)], check=True, capture_output=True).stdout
    seconds, megabytes = json.loads(output)
    return seconds, megabytes


def load_only(folder: Path) -> None:
    begin = time.perf_counter()
    summarise(folder)
    seconds = time.perf_counter() - begin
    # VmHWM, not ru_maxrss: the latter includes what the parent held when it forked.
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps([seconds, peak_kb / 1024]))


def bars_of_the_store() -> bool:
    """Whether all are met."""
    with tempfile.TemporaryDirectory(prefix="meshdns-bench-") as folder:
        root = Path(folder)
        blocks = make_blocks(ROWS, BLOCKS, CELLS)
        whole = pa.concat_tables([table for table, _ in blocks]).unify_dictionaries()
        raw_file = root / "raw.parquet"
        raw_write = best(lambda _: pq.write_table(whole, raw_file, compression="zstd"))
        raw_read = best(lambda _: pq.read_table(raw_file).to_pandas())
        written = best(lambda repeat: write(root, f"run{repeat}", blocks))
        small = write(root, "small", make_blocks(200_000, BLOCKS, CELLS))
        loads = [measure_load(root / "run0") for _ in range(REPEATS)]
        small_loads = [measure_load(small) for _ in range(REPEATS)]
        size = sum(path.stat().st_size for path in (root / "run0" / "blocks").iterdir())
        rows = [
            ("write 1e6 samples, 40 blocks", written, "s", BAR_S, written / raw_write),
            ("load + p50/p99, 1e6 samples", min(loads)[0], "s", BAR_S, min(loads)[0] / raw_read),
            ("load + p50/p99, 2e5 samples", min(small_loads)[0], "s", BAR_S, None),
            ("peak memory of the load, 1e6", max(mb for _, mb in loads), "MB", BAR_MB, None),
        ]
        print(f"{'':32}{'measured':>12}{'bar':>10}{'/ raw pyarrow':>16}")
        for label, value, unit, bar, ratio in rows:
            beside = "" if ratio is None else f"{ratio:.2f}"
            print(
                f"{label:32}{value:>9.3g} {unit:<2}{bar:>7g} {unit:<2}{beside:>14}{'' if value <= bar else '  MISSED'}"
            )
        print(f"{size / ROWS:.1f} bytes per sample stored; raw pyarrow {raw_file.stat().st_size / ROWS:.1f}")
        return all(value <= bar for _, value, _, bar, _ in rows)


def bars_of_notebooks(runs: Path) -> bool:
    """Whether every notebook whose experiment has been recorded is executed in time."""
    can, unasked = report._answerable(
        report.notebooks_in(ROOT / "notebooks"), set(store.load(runs).cells["experiment"])
    )
    met = []
    for notebook in can:
        begin, said = time.perf_counter(), ""
        try:
            execute.execute([notebook], {"runs": str(runs)}, lambda *_: None)
        except errors.ReportError as error:
            said = f"  FAILED: {error}"
        seconds = time.perf_counter() - begin
        met.append(not said and seconds <= NOTEBOOK_BAR_S)
        said = said or ("" if met[-1] else "  MISSED")
        print(f"{notebook.stem:32}{seconds:>9.3g} s {NOTEBOOK_BAR_S:>7g} s {said}")
    for question, _ in unasked:
        print(f"not recorded in {runs.relative_to(ROOT)}, so not executed: {question}")
    return bool(met) and all(met)


def main() -> int:
    met = [bars_of_the_store(), bars_of_notebooks(ROOT / "data" / "sample")]  # both are said
    return int(not all(met))


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        load_only(Path(sys.argv[2]))
    else:
        sys.exit(main())
