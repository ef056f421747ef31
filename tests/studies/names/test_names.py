"""Names against made-up worlds whose truth is known."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies

import measured
from measured import World
from meshdns import store
from meshdns.analysis import stats, text
from meshdns.core import units
from meshdns.studies.names import answer, tables


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def test_names_and_delays_are_read_against_their_own_twin(tmp_path: Path) -> None:
    world = World(noise=0.05, dns=World().dns | {"mode1": 214.0})
    found = tables.by_name(measured.runs(tmp_path, world, blocks=15))
    assert {"plain-aa"} < set(found["arm"])
    assert not set(found[found["arm"] == "mode1"]["reading"]) & {"less", "more"}
    delays = tables.delays(measured.runs(tmp_path / "delays", World()))
    assert set(delays["reading"][delays["delay_ms"] > 0]) == {"less"}


def test_lookups_turn_round_with_the_data(usual: store.Runs, tmp_path: Path) -> None:
    said = answer.answer(usual)
    assert said.startswith("Mode 2 answers a cluster name in 6")
    assert "less than without a mesh (8 blocks)" in said
    assert "Mode 1 answers a cluster name in 2" in said
    slow = World(
        dns={
            "plain": 100.0,
            "plain-aa": 100.0,
            "mode1": 100.0,
            "mode2-envoy": 300.0,
            "mode2-agent": 300.0,
            "null": 40.0,
        }
    )
    other = measured.runs(tmp_path, slow)
    assert "% [" in answer.answer(other)
    assert "more than without a mesh" in answer.answer(other)
    table = tables.delays(usual)
    said = answer.break_even_answer(table, tables.break_even(usual))
    assert "mode 2 answers a cluster name sooner than plain at 0, 1, 2 and 5 ms" in said
    turned, found = tables.delays(other), tables.break_even(other)
    assert found is not None
    assert found.delay is not None
    assert found.delay.estimate == pytest.approx(0.2, rel=0.1)  # ms: what mode 2 is slower by without any delay
    said = answer.break_even_answer(turned, found)
    assert "sooner than plain at 1, 2 and 5 ms and later than plain at 0 ms; by the line" in said
    assert tables.crossing(turned, found) == found.delay
    outside = answer.break_even_answer(tables.delays(usual, "external"), tables.break_even(usual, "external"), "")
    assert "later than plain at 0, 2 and 5 ms" in outside


def swept(differences: dict[float, list[float]], floor_ns: float = 0.0) -> tuple[pd.DataFrame, stats.BreakEven]:
    """The table of delays (ms) with these differences of mode 2 from plain (ns, a list per block), and its line."""
    floor = stats.noise_floor([1e5] * 3, [1e5 + floor_ns, 1e5 - floor_ns, 1e5]) if floor_ns else None
    rows = []
    for delay, values in differences.items():
        base = [1e6 * (1 + delay)] * len(values)
        found = stats.paired(base, np.add(base, values))
        rows.append(
            {"delay_ms": delay, "blocks": len(values), "plain": stats.interval(base)}
            | {"mode2-agent": stats.interval(np.add(base, values)), "mode2_minus_plain": found}
            | {"reading": text.reading(found, floor)}
        )
    return pd.DataFrame(rows), stats.break_even(list(differences), np.array(list(differences.values())).T)


def test_a_break_even_is_told_only_where_the_delays_measured_carry_it() -> None:
    crossed = {0.0: [4e5, 5e5, 6e5], 1.0: [-5.1e5, -5e5, -4.9e5], 2.0: [-1.4e6, -1.5e6, -1.6e6]}
    table, found = swept(crossed)
    assert tables.crossing(table, found) == found.delay
    assert "both cost the same at 0.500 ms [" in answer.break_even_answer(table, found)
    bent, line = swept({**crossed, 2.0: [-1.4e5, -1.5e5, -1.6e5]})  # no line goes through these
    assert line.delay is not None
    assert tables.crossing(bent, line) is None
    beyond, line = swept({0.0: [9e5, 9.1e5, 9.2e5], 1.0: [7e5, 7.1e5, 7.2e5]})
    assert line.delay is not None
    assert tables.crossing(beyond, line) is None  # extrapolated
    assert "later than plain at 0 and 1 ms. At 0 ms" in answer.break_even_answer(beyond, line)
    drowned, line = swept(crossed, floor_ns=4e5)
    assert tables.crossing(drowned, line) is None
    assert "No delay sweep" in answer.break_even_answer(table[:0], None)


NANOSECONDS = strategies.integers(-400_000, 400_000)


# Blocks of differences that lie near a line through the delays, so that it may carry a break-even.
LINES = strategies.builds(
    lambda slope, root, noise: [[round(slope * (at - root)) + each for each in row] for at, row in enumerate(noise)],
    strategies.sampled_from([-4e5, -1e4, 1e4, 4e5]),
    strategies.floats(-1.0, 4.0),
    strategies.lists(strategies.lists(strategies.integers(-100, 100), min_size=3, max_size=3), min_size=2, max_size=4),
)


@hypothesis.given(
    strategies.lists(strategies.lists(NANOSECONDS, min_size=3, max_size=3), min_size=2, max_size=4) | LINES,
    strategies.sampled_from([0.0, 3e4, 2e5]),
)
@hypothesis.example([[150_000, 149_900, 150_100], [-250_000, -249_950, -250_050]], 0.0)
@hypothesis.example([[-250_000, -249_950, -250_050], [150_000, 149_900, 150_100]], 0.0)
def test_the_sentence_of_the_delays_says_what_their_table_says(rows: list[list[int]], floor_ns: float) -> None:
    delays = [float(n) for n in range(len(rows))]
    table, found = swept({at: [float(each) for each in row] for at, row in zip(delays, rows, strict=True)}, floor_ns)
    said = answer.break_even_answer(table, found)
    ahead, behind = (table["delay_ms"][table["reading"] == word].tolist() for word in ("less", "more"))
    for word, at in (("sooner", ahead), ("later", behind)):
        listed = text.listed([f"{each:g}" for each in at])
        assert (f"{word} than plain at {listed} ms" in said) == bool(at), said
    assert said.count("not resolved") == len(set(table["reading"]) - {"less", "more"})
    if (delay := tables.crossing(table, found)) is not None:
        assert f"both cost the same at {units.number(delay.estimate)} ms" in said
        sooner_above = found.line.slope.estimate < 0
        assert all((each > delay.estimate) == sooner_above for each in ahead)
        assert all((each > delay.estimate) != sooner_above for each in behind)
    else:
        assert "both cost the same" not in said


def test_external_names_are_priced_with_their_levels(usual: store.Runs) -> None:
    names = tables.by_name(usual)
    said = answer.external_answer(names)
    libc = names[(names["lookup"] == "getaddrinfo") & (names["name_kind"] == "external") & (names["ndots"] == 5)]
    levels = [text.interval(libc["p50"][libc["arm"] == arm].iloc[0]) for arm in ("plain", "mode2-agent")]
    assert f"through the C library (A+AAAA, ndots 5), {levels[0]} without a mesh and {levels[1]} in mode 2 (" in said
    assert "% [" in said
    assert answer.external_answer(names[names["name_kind"] != "external"]) == ""


def test_queries_agree_to_the_packet_or_say_that_they_do_not(usual: store.Runs, tmp_path: Path) -> None:
    table = tables.queries(usual)
    assert set(table["residual"]) == {0}
    row = table[(table["arm"] == "plain") & (table["name_kind"] == "external") & (table["ndots"] == 5)]
    assert set(row[row["lookup"] == "getaddrinfo"]["client_per_lookup"]) == {8.0}
    kept = table[(table["arm"] == "mode2-envoy") & (table["name_kind"] == "fqdn")]
    assert set(kept["at_cluster_dns"]) == {0}
    assert "counted the same queries" in answer.queries_answer(table)
    assert answer.queries_answer(table[:0]).endswith("in all 0 combinations.")
    lost = tables.queries(measured.runs(tmp_path, World(lost_queries=1)))
    assert "disagree in" in answer.queries_answer(lost)
    assert not lost["agree"].any()


def test_queries_per_lookup_are_of_lookups_that_all_arms_made(usual: store.Runs) -> None:
    table = tables.queries(usual)
    said = answer.queries_answer(table)
    assert said.endswith("3.45 in plain, 3.45 in mode1, 2.91 in mode2-envoy and 2.91 in mode2-agent.")
    cheap = (table["arm"] == "plain") & (table["name_kind"] == "fqdn") & (table["lookup"] == "wire")
    counts = ["lookups", "at_client", "at_cluster_dns"]
    more = table.assign(**{name: table[name].where(~cheap, 50 * table[name]) for name in counts})
    assert answer.queries_answer(more) == said  # so it is where other runs looked up names in plain alone


def test_return_codes_tell_nodata_from_nxdomain(usual: store.Runs, tmp_path: Path) -> None:
    assert "NODATA without a mesh, NXDOMAIN in mode2-envoy and NODATA in mode2-agent" in answer.aaaa_answer(
        tables.return_codes(usual)
    )
    alike = measured.runs(tmp_path, World(aaaa_rcode=0))
    assert "gets NODATA with and without mode 2" in answer.aaaa_answer(tables.return_codes(alike))
