"""Counters of rules, by their comments."""

from __future__ import annotations

import re
import subprocess


def counted(counters: list[tuple[list[str], str]]) -> dict[str, int]:
    """Packets per rule's name, summed over the rules that share it (in nat: new flows).

    Each of `counters` is a program that prints them, and an expression with the number and the name of one; or with
    numbers alone, each a group of that name.
    """
    found: dict[str, int] = {}
    printed = {tuple(command): said(*command).splitlines() for command, _ in counters}
    for command, expression in counters:
        pattern = re.compile(expression)
        for match in filter(None, map(pattern.search, printed[tuple(command)])):
            name = match.lastgroup or match[2]
            found[name] = found.get(name, 0) + int(match[match.lastgroup or 1])
    return found


def said(*command: str, given: str = "") -> str:
    """What a program prints. Raises RuntimeError with its own words."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout
