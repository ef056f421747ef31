"""Plans: what is refused, and that the same seed gives the same order."""

from __future__ import annotations

import dataclasses
import itertools
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns import studies
from meshdns.core import errors, plans
from meshdns.measure import plan
from shipped import WORLD

MINIMAL = """
name = "p"
seed = 1
blocks = 2
[[experiment]]
name = "lookup"
arm = ["plain", "mode1"]
rate_hz = 100.0
"""


def refused(text: str) -> str:
    with pytest.raises(errors.InputError) as caught:
        plan.parse(text, "my.toml", WORLD)
    message = str(caught.value)
    assert message.startswith("my.toml")
    return message


@pytest.mark.parametrize("name", plans.shipped())
def test_shipped_plans_are_measurable_and_bounded(name: str) -> None:
    what = plan.find(name, WORLD)
    if name not in ("calibration", "path"):  # that compare no arms
        fewest = {"change": 9}.get(name, 15)  # fewer pairs and the report is not worth publishing; a change is counted
        assert what.blocks >= fewest
        arms = {trial.cell.arm for trial in what.block(0)}
        assert {"plain", "plain-aa"} <= arms  # no plan without its noise floor
    assert plan.from_json(json.loads(json.dumps(what.to_json())), "again", WORLD) == what


def test_a_plan_that_includes_others_holds_their_experiments_as_often_as_it_says() -> None:
    document = """
    name = "mine"
    seed = 1
    blocks = 4
    [[include]]
    plan = "names"
    [[include]]
    plan = "path"
    every = 2
    """
    what = plan.parse(document, "mine.toml", WORLD)
    names, path = (plan.find(name, WORLD).experiments for name in ("names", "path"))
    assert what.experiments == (*names, *(dataclasses.replace(each, every=2) for each in path))
    for wrong in ('plan = "gone"', 'plan = "path"\nevery = 0', 'plan = "path"\nblocks = 3', "plan = 1"):
        assert "include" in refused(f'name = "x"\nseed = 1\nblocks = 1\n[[include]]\n{wrong}\n')


def test_every_experiment_that_is_shipped_says_what_is_measured_and_is_read_by_a_study() -> None:
    held = {each.series or each.name for name in plans.shipped() for each in plan.find(name, WORLD).experiments}
    assert {name for name in held if plans.about(name) == name} == set()
    assert held == studies.experiments()


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_nothing_that_is_compared_has_fewer_than_fifteen_blocks(name: str) -> None:
    what = plan.find(name, WORLD)
    # Other load generators start a program for each cell, and are no arms.
    compared = [each for each in what.experiments if not each.name.startswith("card-ruler")]
    assert {each.name: -(-what.blocks // each.every) for each in compared if what.blocks <= 14 * each.every} == {}


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_what_is_compared_has_a_twin_and_a_line_has_three_delays(name: str) -> None:
    what = plan.find(name, WORLD)
    for experiment in ("lookup", "request", "keepalive", "open", "names", "delay"):
        cells = [cell for each in what.experiments for cell in each.cells() if cell.experiment == experiment]
        assert "plain-aa" in {cell.arm for cell in cells}, experiment
    for each in what.experiments:
        assert each.name not in ("delay", "delay-external") or len(each.dns_delay_ms) > 2


def test_a_block_holds_every_cell_once_in_an_order_that_the_seed_decides() -> None:
    what = plan.find("quick", WORLD)
    first, again = what.block(3), what.block(3)
    assert first == again
    assert len({trial.cell for trial in first}) == len(first)
    assert [t.cell for t in what.block(4)] != [t.cell for t in what.block(8)]
    other = dataclasses.replace(what, seed=what.seed + 1)
    assert [t.cell for t in other.block(3)] != [t.cell for t in first]


def test_cells_with_one_upstream_delay_stand_together() -> None:
    delays = [trial.cell.dns_delay_ms for trial in plan.find("quick", WORLD).block(0)]
    changes = sum(a != b for a, b in itertools.pairwise(delays))
    assert changes == len(set(delays)) - 1


def test_cells_that_are_compared_stand_together_in_an_order_of_their_own() -> None:
    what = plan.find("quick", WORLD)
    orders = set()
    for number in range(1, 9):
        # Delays change least often, so what sweeps them stands apart.
        cells = [trial.cell for trial in what.block(number) if trial.cell.experiment != "delay"]
        changes = sum(a.experiment != b.experiment for a, b in itertools.pairwise(cells))
        assert changes == len({cell.experiment for cell in cells}) - 1
        orders.add(tuple(cell.arm for cell in cells if cell.experiment == "lookup"))
    assert len(orders) > 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 1", "sed = 1", "unknown key sed"),
        ("blocks = 2", "blocks = 0", "blocks: 0 (a number) is not in range; give 1 to 1000"),
        ("blocks = 2", 'blocks = "2"', "blocks: '2' (text) is not a whole number"),
        ("blocks = 2", "blocks = true", "true (a truth value) is not a whole number"),
        ('name = "p"', 'name = "../p"', "it names folders"),
        ('name = "p"', 'name = "é"', "it names folders"),
        ('name = "p"', 'name = "-p"', "it names folders"),
        ('name = "p"', f'name = "{"p" * 300}"', "at most 100"),
        ("rate_hz = 100.0", "rate_hz = 0.0", "open loops need rate_hz"),
        ("rate_hz = 100.0", "rate_hz = -5", "not in range; give 0 to 20000"),
        ("rate_hz = 100.0", "rate = 100", "unknown key rate"),
        ("rate_hz = 100.0", "rate_hz = [1, 1.0]", "rate_hz: names a level twice"),
        ("rate_hz = 100.0", f"rate_hz = {[k / 100 for k in range(100, 10000)]}", "19800 cells"),
        ("rate_hz = 100.0", "rate_hz = 100.0\nbody_bytes = 1024", "a lookup has neither body_bytes nor tls"),
        ('"mode1"', '"null"\n]\nname_kind = ["external"', "the calibration target asks no DNS server"),
        ('"mode1"', '"mode3"', "choose from ip, plain"),
        ('"mode1"', '"plain"', "names a level twice"),
        (
            "rate_hz",
            'kind = "request"\nbackend = "plain"\nconnection = "new"\nlookup = "none"\nrate_hz',
            "lookup none calls a pod by its address: kind request, an arm without a sidecar",
        ),
        ('arm = ["plain", "mode1"]', "arm = []", "no levels"),
        (
            'arm = ["plain", "mode1"]',
            'arm = "plain"\nkind = "request"\nconnection = "new"\nbackend = "redis"\nchange = "crash"',
            "crash changes shop-1, which the backend has not",
        ),
        ('arm = ["plain", "mode1"]', 'arm = "plain"\nkind = "request"', "a request needs connection"),
        ("rate_hz = 100.0", 'lookup = "getaddrinfo"\nrate_hz = 5.0', "getaddrinfo blocks its caller"),
        ("rate_hz = 100.0", "rate_hz = 1.0\ncount = 1000000", "hours"),
        ("rate_hz = 100.0", 'arrival = "closed"\ntool = "h2load"', "h2load asks a Service"),
        (
            "rate_hz = 100.0",
            'kind = "request"\nbackend = "plain"\nconnection = "new"\narrival = "closed"\ntool = "h2load"',
            "h2load asks a Service: kind request, connection keepalive",
        ),
        (
            "rate_hz = 100.0",
            'kind = "request"\nbackend = "plain"\nconnection = "keepalive"\narrival = "closed"\ntool = "dnsperf"',
            "dnsperf asks by wire: kind lookup",
        ),
        ("rate_hz = 100.0", "rate_hz = 100.0\nevery = 2", "block 1 would be empty"),
        ("[[experiment]]", "[[experiments]]", "unknown key experiments"),
        ("seed = 1", "seed = ", "not TOML"),
        ("seed = 1", f"seed = {'9' * 5000}", "an integer of thousands of digits"),
        ("seed = 1", f"seed = {'[' * 30_000}", "nested too deeply"),
        ("seed = 1", f"seed{'.a' * 2000} = 1", "seed: 1 entry (a mapping) is not a whole number"),
        ("rate_hz = 100.0", f"rate_hz = {'9' * 4000}", "rate_hz: 99999999"),
        ("seed = 1", "seed = 1\nquestion = 1", "question: 1 (a number) is not text; put it in quotes"),
    ],
)
def test_what_cannot_be_measured_is_refused(old: str, new: str, said: str) -> None:
    assert old in MINIMAL
    assert said in refused(MINIMAL.replace(old, new))


def test_a_plan_without_experiments_is_refused() -> None:
    assert "there is no experiment" in refused('name = "p"\nseed = 1\nblocks = 2\n')


def test_experiments_that_are_due_now_and_then_fill_every_block_together() -> None:
    table = MINIMAL[MINIMAL.index("[[experiment]]") :].replace('"lookup"', '"other"') + "every = 2\n"
    assert [len(plan.parse(MINIMAL + table, "x", WORLD).block(n)) for n in (0, 1)] == [4, 2]
    assert plan.parse(MINIMAL.replace("blocks = 2", "blocks = 1") + "every = 9\n", "x", WORLD).block(0)


def test_two_experiments_of_one_name_are_refused() -> None:
    second = MINIMAL[MINIMAL.index("[[experiment]]") :]
    assert "two experiments have one name" in refused(MINIMAL + second)


def test_one_cell_in_two_experiments_of_a_series_is_refused() -> None:
    second = MINIMAL[MINIMAL.index("[[experiment]]") :].replace('"lookup"', '"again"\nseries = "lookup"')
    assert "experiments 'lookup' and 'again' hold the same cell of plain" in refused(MINIMAL + second)


def test_a_missing_file_names_the_plans_there_are() -> None:
    with pytest.raises(errors.InputError, match=r"use calibration, change, cluster-dns, .*, standard, or a path"):
        plan.find("no-such-plan", WORLD)


@pytest.mark.parametrize("path", ["/dev/null/x", "x" * 5000, "/"])
def test_a_path_that_cannot_be_read_is_bad_input(path: str) -> None:
    with pytest.raises(errors.InputError, match="cannot be read"):
        plan.find(path, WORLD)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["name", "seed", "blocks", "question", "experiment"]), _VALUES)
def test_any_value_anywhere_is_a_plan_or_an_input_error(key: str, value: object) -> None:
    document = {
        "name": "p",
        "seed": 1,
        "blocks": 2,
        "experiment": [{"name": "lookup", "arm": "plain", "rate_hz": 1.0}],
        key: value,
    }
    try:
        plan.from_json(document, "x", WORLD)
    except errors.InputError:
        return


@given(st.sampled_from([f.name for f in dataclasses.fields(plan.Experiment)]), _VALUES)
def test_any_value_in_an_experiment_is_a_plan_or_an_input_error(key: str, value: object) -> None:
    experiment = {"name": "lookup", "arm": "plain", "rate_hz": 1.0, key: value}
    try:
        what = plan.from_json({"name": "p", "seed": 1, "blocks": 1, "experiment": [experiment]}, "x", WORLD)
    except errors.InputError:
        return
    assert what.block(0)
