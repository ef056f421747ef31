"""Whether requests take as long where Istio answers as where its answers were recorded: `python tests/bench/live.py`.

Two testbeds of the shipped world are up at once, with names and networks of their own: in one Istio's own control plane
configures sidecars, in the other what it was recorded to say. The same block of requests, keep-alive and on new
connections, to a server with a sidecar, is measured on each in turn, which of them first being drawn anew. A block has
one value of each cell: the logarithm of live over recorded, of the medians. They are equivalent where both one-sided
tests, each at 2.5 %, refuse a difference of 5 %: where the interval, which holds 95 %, lies within. Exits with 1 if one
does not.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from meshdns.analysis import stats
from meshdns.core import errors
from meshdns.core.progress import Progress
from meshdns.core.world import LIVE, Nets
from meshdns.lab import locks, recording, world
from meshdns.lab.compose import engine, testbed
from meshdns.lab.compose.testbed import Testbed
from meshdns.measure import block, plan, session
from meshdns.measure.plan import Plan
from meshdns.measure.session import Session

WORLD = world.shipped()
NETS = {
    "recorded": Nets("198.18.78", "198.19.78", "198.19.178"),
    LIVE: Nets("198.18.79", "198.19.79", "198.19.179"),
}
BAR = 0.05
BLOCKS = 300  # a quarter of an hour; with 100 an interval is 3 % wide to either side
PLAN = """
name = "live"
seed = 20261130
blocks = {blocks}

[[experiment]]
name = "request"
kind = "request"
arm = ["mode1", "mode2-agent"]
backend = "meshed"
connection = ["keepalive", "new"]
arrival = "closed"
body_bytes = 1024
count = 200
warmup = 30
"""
Cell = tuple[str, str]  # arm and connection
Medians = dict[Cell, float]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def up(kind: str) -> Iterator[Testbed]:
    """A testbed of this kind, and nothing left of it afterwards."""
    groups = frozenset({kind} & {LIVE})
    tags = engine.images(say, testbed.images_of(WORLD, groups))
    project = f"meshdns-bench-{kind}"
    bed = Testbed(tags, NETS[kind], project, testbed.state_of(project), groups, WORLD)
    with bed.exclusive("tests/bench/live.py"):
        try:
            bed.up(say)
            yield bed
        finally:
            bed.down()


def _named(parameters: Mapping[str, object]) -> Cell:
    return str(parameters["arm"]), str(parameters["connection"])


def medians(what: Plan, number: int, opened: Session) -> Medians:
    """Of each cell of a block that was measured at last; in nanoseconds."""
    found = block.measure_block(what, number, opened.place, opened)
    cells, took_ns = (found.table[name].to_numpy() for name in ("cell", "end_ns"))
    took_ns = took_ns - found.table["start_ns"].to_numpy()
    valid = [one for one in found.records if one.valid]
    return {_named(one.parameters): float(np.quantile(took_ns[cells == one.cell], 0.5)) for one in valid}


def measured(what: Plan, opened: Mapping[str, Session]) -> dict[Cell, list[float]]:
    """The logarithms of the ratios, one for each block that both have measured."""
    logs: dict[Cell, list[float]] = {_named(vars(trial.cell)): [] for trial in what.block(0)}
    order = random.Random(what.seed)
    for number in range(what.blocks):
        found = {kind: medians(what, number, opened[kind]) for kind in order.sample([*opened], len(opened))}
        for cell in found[LIVE].keys() & found["recorded"].keys():
            logs[cell].append(math.log(found[LIVE][cell] / found["recorded"][cell]))
    return logs


def told(logs: Mapping[Cell, list[float]]) -> int:
    """A line for each cell; 1 if one of them is not equivalent."""
    passed = []
    for (arm, connection), values in sorted(logs.items()):
        found = stats.interval(values)
        ratio, low, high = (math.exp(each) for each in (found.estimate, found.low, found.high))
        passed.append(low > 1 - BAR and high < 1 + BAR)
        print(
            f"{arm:12}{connection:10} live over recorded, p50 {ratio:.3f} ({low:.3f} to {high:.3f}), {found.n} blocks; "
            f"bar {1 - BAR:g} to {1 + BAR:g} {'PASS' if passed[-1] else 'FAIL'}"
        )
    return int(not all(passed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    what = plan.parse(PLAN.format(blocks=parser.parse_args().blocks), "tests/bench/live.py", WORLD)
    assert recording.serves(WORLD.of(())), "what Istio says of the shipped world is to be recorded anew"
    engine.ensure(say)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locks.machine().hold("tests/bench/live.py"))
        beds = {kind: stack.enter_context(up(kind)) for kind in NETS}
        total_s = what.measuring_s(range(what.blocks)) * len(beds)
        progress = stack.enter_context(Progress(total_s, "measuring"))
        logs = measured(what, {kind: stack.enter_context(session.opened(bed, progress)) for kind, bed in beds.items()})
    return told(logs)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except errors.MeshdnsError as error:
        sys.exit(f"{error}")
