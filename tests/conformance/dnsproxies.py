"""The differential of the DNS proxies, run in namespaces of its own, and what a page says of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.conformance.section import Section

from meshdns.core import process
from meshdns.dnsproxy import differences

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900.0


def lacking() -> str:
    """What the machine has not, that this needs; "" if nothing."""
    if os.geteuid():
        return "it makes namespaces, which root may"
    missing = [tool for tool in ("unshare", "ip", "mount") if not shutil.which(tool)]
    return f"there is no {' or '.join(missing)}" if missing else ""


def run(agent: Path, *options: str) -> dict[str, Any]:
    """What was found."""
    argv = (
        "unshare",
        "--net",
        "--mount",
        sys.executable,
        "-m",
        "tests.conformance.differential",
        "--agent",
        str(agent),
    )
    harness = str(ROOT / "harness")
    (done,) = process.run_all([process.Command((*argv, *options), TIMEOUT_S, env={"PYTHONPATH": harness}, cwd=ROOT)])
    if not done.ok:
        raise RuntimeError(f"the differential broke:\n{done.last_lines(20)}")
    found: dict[str, Any] = json.loads(done.out)
    return found


def section(agent: Path) -> Section:
    """For the page."""
    found = run(agent)
    wrong = [
        *(f"{one['part']}, {one['what']}: {one['left']}" for one in found["unexplained"]),
        *(f"{one['part']}, {one['what']}: both answer alike, yet it is listed as {one['differences']}"
          for one in found["overstated"]),
        *(f"{one}: it is taken for what it is near" for one in found["mistaken"]),
        *(f"conformance case {one}" for one in found["refuted"]),
        *(f"{name}: the difference was not seen" for name in unseen(found)),
    ]  # fmt: skip
    intro = (
        f"The agent and `meshdns dns-proxy` were asked the same {found['asked']:,} questions: odd and malformed"
        f" queries, {found['parts']['upstream']} exchanges with servers that answer in every way, and random tables."
        f" Where the two differ, one of the differences below must say so; where they do not, none may. The"
        f" {found['cases']} conformance cases were put to the agent as well. `meshdns dns-proxy --differences` says why"
        " they differ."
    )
    return Section("DNS", intro, wrong, ["difference", "the agent", "this proxy"], [
        [f"`{d.id}`", d.istio, d.here] for d in differences.DIFFERENCES
    ])  # fmt: skip


NOT_TRIED = {"pending"}  # thousands of questions at a time: a test of the proxy alone shows the bound


def unseen(found: dict[str, Any]) -> list[str]:
    """Listed differences that no question has shown."""
    return sorted({d.id for d in differences.DIFFERENCES} - set(found["explained"]) - NOT_TRIED)
