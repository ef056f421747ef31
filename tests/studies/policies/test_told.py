"""Whether names that an agent is told lead somewhere in its sidecar."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshdns import store
from meshdns.studies.policies import claims, told
from meshdns.studies.verdict import REFUTED, SUPPORTED, UNMEASURED

NAMES = {"web.shop.svc.cluster.local": ["10.96.1.10"], "db.example.com": ["240.240.0.1"]}
CLUSTERS = ("outbound|80||web.shop.svc.cluster.local", "outbound|5432||db.example.com", "BlackHoleCluster")
LISTENERS = ("0.0.0.0_80", "240.240.0.1_5432")


def runs(names: Any = NAMES, clusters: Any = CLUSTERS, listeners: Any = LISTENERS) -> store.Runs:
    dump = {
        "configs": [
            {"dynamic_active_clusters": [{"cluster": {"name": each}} for each in clusters]},
            {"dynamic_listeners": [{"name": each, "active_state": {}} for each in listeners]},
        ]
    }
    header = SimpleNamespace(name="one", facts={"names": {"client": names}, "envoy": {"client": dump}})
    return cast(store.Runs, SimpleNamespace(headers=[header]))


def test_a_name_with_cluster_and_listener_agrees() -> None:
    table = told.table(runs())
    assert list(table["agree"]) == [True, True]
    assert claims.one_plane(table).verdict == SUPPORTED


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ({"clusters": CLUSTERS[:1]}, "db.example.com in client (no cluster)"),
        ({"listeners": LISTENERS[:1]}, "db.example.com in client (no listener for 240.240.0.1:5432)"),
        (
            {"listeners": ("10.96.1.11_80", LISTENERS[1])},
            "web.shop.svc.cluster.local in client (no listener for 10.96.1.10:80)",
        ),
    ],
)
def test_what_is_lacking_is_said(lacking: dict[str, Any], words: str) -> None:
    verdict = claims.one_plane(told.table(runs(**lacking)))
    assert verdict.verdict == REFUTED
    assert words in verdict.because


def test_who_was_not_asked_for_its_configuration_tells_nothing() -> None:
    one = runs()
    one.headers[0].facts["envoy"] = {}
    assert claims.one_plane(told.table(one)).verdict == UNMEASURED
