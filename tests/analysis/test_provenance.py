"""What a page says of the parts that its numbers are of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import measured
from meshdns import store
from meshdns.analysis import provenance

DEVELOPMENT = "0.0.0-20260827124520-eed52ebb66ad"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> store.Runs:
    return measured.runs(tmp_path_factory.mktemp("runs"), blocks=2)


def said(runs: store.Runs, plane: dict[str, Any], **versions: str) -> str:
    facts = {"versions": {"envoy": "1.40.0"} | versions, "plane": plane}
    return provenance.made_of(
        dataclasses.replace(runs, headers=[dataclasses.replace(each, facts=facts) for each in runs.headers])
    ).words


def test_a_run_of_recorded_answers_says_what_is_not_istios(usual: store.Runs) -> None:
    words = said(usual, {"live": False, "recorded": f"v{DEVELOPMENT}"}, istio=DEVELOPMENT)
    assert f"agent {DEVELOPMENT} (development towards 1.31, not a release)" in words
    for what in ("upstream Envoy 1.40.0", "metadata exchange, ALPN", "kubelet", "was recorded", "CA of", "plugin file"):
        assert what in words


def test_a_live_run_says_nothing_of_recordings(usual: store.Runs) -> None:
    words = said(usual, {"live": True}, istio=DEVELOPMENT)
    assert "upstream Envoy" in words
    for what in ("recorded", "CA of", "plugin file"):
        assert what not in words


def test_a_release_is_not_called_development(usual: store.Runs) -> None:
    assert "development" not in said(usual, {"live": True}, istio="1.30.1")


def test_a_run_before_istio_claims_nothing_of_it(usual: store.Runs) -> None:
    assert said(usual, {}) == ""
