"""Rules that Istio's own agent makes, by what they do to a connection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.conformance import captured

from meshdns.core import process

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("options", "said"), [((), "let through"), (("--native-nftables",), "captured")])
def test_native_nftables_capture_ipv6_though_it_is_off(agent: Path, options: tuple[str, ...], said: str) -> None:
    program = (sys.executable, captured.__file__, str(agent), *options)
    done = process.run("unshare", "--net", *program, timeout_s=60)
    assert done.ok, done.err
    assert done.out.split("\n")[-2] == said
