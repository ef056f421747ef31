"""The command `docker`: for Compose, for builds, and for what only it knows of itself."""

from __future__ import annotations

from collections.abc import Mapping

from meshdns.core import process


def argv(*arguments: str) -> tuple[str, ...]:
    """What to run."""
    return ("docker", *arguments)


def run(
    *arguments: str, timeout_s: float, hush_s: float | None = None, env: Mapping[str, str] | None = None
) -> process.Finished:
    """It has ended."""
    return process.run(*argv(*arguments), timeout_s=timeout_s, hush_s=hush_s, env=env)
