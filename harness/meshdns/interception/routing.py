"""What rules need beside themselves: policy routes that deliver marked packets here, and the IPv6 passthrough address.

`ip -batch` input, one family at a time. TPROXY leaves the destination address alone, so only a route makes the packet
local. ::6 must exist to be bound; 127.0.0.6 does without, all of 127.0.0.0/8 being local.
"""

from __future__ import annotations

from .options import Family
from .ruleset import RuleSet

OPTION: dict[Family, str] = {"ipv4": "-4", "ipv6": "-6"}


def commands(rules: RuleSet, verb: str, family: Family) -> list[str]:
    """The lines for `ip -batch`, with "add" or "delete"."""
    if family not in rules.families:
        return []
    lines = [f"rule {verb} fwmark {mark} lookup {table}" for mark, table in rules.mark_routes]
    lines += [f"route {verb} local default dev lo table {table}" for table in sorted({t for _, t in rules.mark_routes})]
    if family == "ipv6" and rules.mesh.passthrough_v6:
        lines.append(f"address {verb} {rules.mesh.passthrough_v6}/128 dev lo")
    return lines


def render(rules: RuleSet, verb: str = "add") -> dict[Family, str]:
    """Per family the text for `ip -4 -batch -` or `ip -6 -batch -`; empty where nothing is needed."""
    return {family: "".join(f"{line}\n" for line in commands(rules, verb, family)) for family in rules.families}


def comments(rules: RuleSet, verb: str, when: str) -> list[str]:
    """The commands as comment lines for a text that a rule loader reads."""
    return [
        f"# {when}: ip {OPTION[family]} {line}" for family in rules.families for line in commands(rules, verb, family)
    ]
