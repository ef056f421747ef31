"""Whether applications can tell, by data for it and against it."""

from __future__ import annotations

from pathlib import Path

import pytest

import measured
from measured import World
from meshdns import store
from meshdns.studies import verdict
from meshdns.studies.cost import tables as requests
from meshdns.studies.names import claims
from meshdns.studies.names import tables as lookups


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("usual"))


def test_applications_can_tell_by_a_different_answer(usual: store.Runs, tmp_path: Path) -> None:
    path = requests.path(usual)
    found = claims.transparency(lookups.return_codes(usual), path)
    assert found.verdict == verdict.DEPENDS
    assert "mode2-envoy NXDOMAIN" in found.numbers
    alike = measured.runs(tmp_path, World(aaaa_rcode=0))
    assert claims.transparency(lookups.return_codes(alike), path).verdict == verdict.UNDECIDED
    codes = lookups.return_codes(usual)
    assert "mode2-agent NODATA" in found.numbers
    told = codes.assign(arm=codes["arm"].replace({"mode2-envoy": "mode2-agent", "mode2-agent": "mode2-envoy"}))
    assert "differently in mode2-agent" in claims.transparency(told, path).because
    assert claims.transparency(codes[codes["qtype"] == "A"], path).verdict == verdict.UNMEASURED
