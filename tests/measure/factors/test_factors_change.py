"""Factors that need Istio's own control plane."""

from __future__ import annotations

import pytest

from meshdns.core import errors
from meshdns.measure import plan
from shipped import WORLD

TABLE = """
name = "x"
seed = 1
blocks = 1
[[experiment]]
name = "x"
arm = "mode1"
kind = "request"
connection = "new"
"""


def read(more: str) -> plan.Plan:
    return plan.parse(TABLE + more, "my.toml", WORLD)


@pytest.mark.parametrize(
    "more",
    [
        'rate_hz = 10\nbackend = "shop"\nchange = "crash"\ndebounce = "1s"',
        'rate_hz = 10\nbackend = "shop-headless"\nchange = ["up", "istiod"]',
        'rate_hz = 10\nbackend = "shop"\nchange = "deny"',
        'arrival = "closed"\nbackend = "shop"\npolicy = "strict"',
    ],
)
def test_a_plan_of_a_live_backend_needs_its_group(more: str) -> None:
    assert {"shop"} <= read(more).groups() & WORLD.live_groups


def test_the_group_of_a_service_is_needed_beside_that_of_its_pods() -> None:
    assert read('arrival = "closed"\nbackend = "shop-dead"\nfault = "dead"').groups() == {"shop", "dead"}
    assert read('arrival = "closed"\nbackend = "api"').groups() == {"shop", "outside"}
    assert read('arrival = "closed"\nbackend = "meshed"').groups() == frozenset()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('rate_hz = 10\nbackend = "meshed"\nchange = "up"', "a change is one of a backend that Istio's own control"),
        (
            'rate_hz = 10\nbackend = "meshed"\npolicy = "strict"',
            "a policy is one of a backend that Istio's own control",
        ),
        ('arrival = "closed"\nbackend = "shop"\nchange = "up"', "a change happens under a load with a rate"),
        ('rate_hz = 10\nbackend = "shop"\ndebounce = "1s"', "debounce is of trials with a change"),
        ('rate_hz = 10\nbackend = "shop"\nchange = "up"\ndebounce = "2s"', "debounce: '2s' .text. is unknown"),
        ('rate_hz = 10\nbackend = "shop"\ntls = true', "tells of: no tls, lookup wire"),
    ],
)
def test_what_has_no_meaning_there_is_refused(more: str, said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        read(more)
