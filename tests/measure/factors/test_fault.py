"""A fault is one entry, and what the servers need; one that is half done is refused."""

import pytest

from meshdns.core import errors, paths
from meshdns.core.world import Nets
from meshdns.measure import jobs, plan
from meshdns.measure.factors import fault
from shipped import WORLD

TABLE = """
name = "x"
seed = 1
blocks = 1
[[experiment]]
name = "faults"
arm = "mode1"
kind = "request"
backend = "{backend}"
connection = "new"
rate_hz = 10
fault = "{level}"
"""


def read(level: str, backend: str = "shop") -> plan.Plan:
    return plan.parse(TABLE.format(level=level, backend=backend), "my.toml", WORLD)


def test_every_fault_reaches_the_servers_or_is_a_backend() -> None:
    served = (paths.COMPOSE / "web" / "shop.conf").read_text()
    for level, each in fault.LEVELS.items():
        [trial] = read(level, each.backend or "shop").block(0)
        asked = jobs.job(trial, WORLD, Nets(), 1)["request"]
        assert asked.startswith(f"GET {each.path}/bytes/")
        assert each.backend in WORLD.backends or f"location {each.path}/ {{" in served


def test_a_fault_that_nobody_brings_about_is_none() -> None:
    """Added to the levels alone, it would be measured as an ordinary request and stored as that fault."""
    with pytest.raises(ValueError, match="a path at the servers, or a backend"):
        fault.Fault()


@pytest.mark.parametrize(
    ("level", "backend", "said"),
    [
        ("gone", "shop", "fault: 'gone' .text. is unknown; choose from fail30, slow, .*none"),
        ("slow", "api", "fault is of backends whose replicas are the part shop"),
        ("none", "shop-dead", "the backend shop-dead has the fault dead, and no other"),
        ("dead", "shop", "the fault dead is the backend shop-dead, and it alone"),
    ],
)
def test_a_cell_without_meaning_is_refused(level: str, backend: str, said: str) -> None:
    with pytest.raises(errors.InputError, match=said):
        read(level, backend)
