"""C17 on worlds that keep what a sidecar promises and on such that do not, and all claims of this study at once."""

from __future__ import annotations

from pathlib import Path

import policies_world
from meshdns import store
from meshdns.analysis import shares
from meshdns.studies import verdict
from meshdns.studies.policies import claims, tables
from policies_world import World


def decided(runs: store.Runs) -> verdict.Verdict:
    return claims.passing(tables.faults(runs), tables.replicas(runs), tables.split(runs))


def test_policies_act_only_in_a_sidecar_but_a_clusterip_spreads_too(usual: store.Runs) -> None:
    found = decided(usual)
    assert found.verdict == verdict.DEPENDS
    assert "retries, time-outs, circuit breaking, outlier ejection and traffic split act only in a sidecar" in (
        found.because
    )
    assert "more" not in found.numbers
    assert "points [" in found.numbers
    assert found.notebook == verdict.BUYS


def test_policies_are_supported_where_nothing_spreads_without_a_sidecar(tmp_path: Path) -> None:
    one = policies_world.runs(tmp_path, World(plain_replicas=("shop-1",)))
    assert decided(one).verdict == verdict.SUPPORTED


def test_policies_are_refuted_where_they_do_nothing_or_act_everywhere(unheeded: store.Runs, tmp_path: Path) -> None:
    assert decided(unheeded).verdict == verdict.REFUTED
    assert "no policy acted" in decided(unheeded).because
    everywhere = policies_world.runs(tmp_path, World(everywhere=True))
    table = tables.faults(everywhere)
    plain = table["arm"] == tables.PLAIN
    retried = table.assign(
        arrived=table["arrived"].where(~plain, table["arrived"][table["policy"] == "retries"].iloc[0])
    )
    found = claims.passing(retried, tables.replicas(everywhere), tables.split(everywhere))
    assert found.verdict == verdict.REFUTED
    assert "without a sidecar there was retries" in found.because


def test_policies_depend_on_the_policy_where_one_does_nothing(usual: store.Runs) -> None:
    table = tables.faults(usual)
    found = claims.passing(table.assign(ejections=0), tables.replicas(usual), tables.split(usual))
    assert found.verdict == verdict.DEPENDS
    assert "outlier ejection did not" in found.because


def test_retries_that_serve_no_more_than_no_policy_do_not_act(usual: store.Runs) -> None:
    table = tables.faults(usual)
    nothing = shares.Points(0.0, -0.01, 0.01, 8)
    retried = table["policy"] == "retries"
    alone = [nothing if mine else each for mine, each in zip(retried, table["against_no_policy"], strict=True)]
    found = claims.passing(table.assign(against_no_policy=alone), tables.replicas(usual), tables.split(usual))
    assert "retries did not" in found.because
    assert " retries: " not in found.numbers.split(";")[0]


def test_a_split_of_one_block_decides_nothing(usual: store.Runs, tmp_path: Path) -> None:
    short = tables.split(policies_world.runs(tmp_path, blocks=1))
    found = claims.passing(tables.faults(usual), tables.replicas(usual), short)
    assert "traffic split" not in found.because


def test_policies_that_were_not_measured_have_no_verdict(empty: store.Runs, usual: store.Runs) -> None:
    assert decided(empty).verdict == verdict.UNMEASURED
    without = tables.faults(usual)
    without = without[without["policy"] == "none"]
    found = claims.passing(without, tables.replicas(usual), tables.split(empty))
    assert found.verdict == verdict.UNMEASURED


def test_all_claims_of_the_notebook_are_decided_by_such_runs(usual: store.Runs) -> None:
    found = {each.claim: each for each in claims.verdicts(usual)}
    assert {name: found[name].verdict for name in ("C11", "C12", "C17")} == {
        "C11": verdict.DEPENDS,
        "C12": verdict.SUPPORTED,
        "C17": verdict.DEPENDS,
    }
    assert {found[name].notebook for name in ("C11", "C12", "C17")} == {verdict.BUYS}
