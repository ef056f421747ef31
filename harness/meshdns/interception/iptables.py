"""The rule set as `iptables-restore --noflush` (or ip6tables-restore) reads it, in Istio's spelling.

Chains are made by `-N`: where they exist the text is refused as a whole, so loading it twice by hand cannot double a
jump. A table is atomic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from . import routing
from .ruleset import BASE_CHAINS, TABLES, Act, Field, Match, Rule, RuleSet, Step, Value

COMMENT = "meshdns:"  # before a rule's name, so that counters are found by it
_SAVE_AS = {"ipv4": "iptables-restore --noflush", "ipv6": "ip6tables-restore --noflush"}

_SIMPLE = {
    Field.IN_INTERFACE: "-i",
    Field.OUT_INTERFACE: "-o",
    Field.PROTOCOL: "-p",
    Field.SOURCE: "-s",
    Field.DESTINATION: "-d",
}
_MODULES = {
    Field.UID: ("owner", "--uid-owner"),
    Field.GID: ("owner", "--gid-owner"),
    Field.MARK: ("mark", "--mark"),
    Field.CONNECTION_MARK: ("connmark", "--mark"),
    Field.STATE: ("conntrack", "--ctstate"),
    Field.DIRECTION: ("conntrack", "--ctdir"),
}
_PORTS = {Field.SOURCE_PORT: "--sport", Field.DESTINATION_PORT: "--dport"}
_VERDICTS = {
    Act.RETURN: "RETURN",
    Act.ACCEPT: "ACCEPT",
    Act.DROP: "DROP",
    Act.JUMP: "{chain}",
    Act.REDIRECT: "REDIRECT --to-ports {port}",
    Act.TPROXY: "TPROXY --tproxy-mark {mark}/0xffffffff{on_address} --on-port {port}",
    Act.SET_MARK: "MARK --set-mark {mark}",
    Act.SET_CONNECTION_MARK: "CONNMARK --set-mark {mark}",
    Act.SAVE_MARK: "CONNMARK --save-mark",
    Act.RESTORE_MARK: "CONNMARK --restore-mark",
    Act.ZONE: "CT --zone {zone}",
}


def render(rules: RuleSet, *, first: bool = False, named: bool = False) -> str:
    """The text that loads the rules of one family.

    `first`: our jump stands before every other rule of nat OUTPUT (a container engine's name server rule), not after.
    `named`: rules that have a name carry it as a comment.
    """
    (family,) = rules.families or ("ipv4",)
    lines = routing.comments(rules, "add", "first")
    lines.append(f"# {_SAVE_AS[family]}")
    for table in TABLES:
        steps = [step for step in rules.steps if step.table == table]
        if steps:
            lines += [f"*{table}", *(f"-N {chain}" for chain in own_chains(rules, table))]
            lines += spelled(steps, first=first, named=named)
            lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def render_removal(rules: RuleSet, *, named: bool = False) -> str:
    """The text that removes what `render` loads, and nothing else; refused as a whole table where that is not there."""
    (family,) = rules.families or ("ipv4",)
    lines = [f"# {_SAVE_AS[family]}"]
    for table in TABLES:
        steps = [step for step in rules.steps if step.table == table]
        if steps:
            chains = own_chains(rules, table)
            base = (step for step in steps if step.chain in BASE_CHAINS)
            lines += [f"*{table}", *(f"-D {step.chain} {spell(step.rule, named=named)}" for step in base)]
            lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains] + ["COMMIT"]
    return "\n".join(lines + routing.comments(rules, "delete", "afterwards")) + "\n"


def own_chains(rules: RuleSet, table: str) -> list[str]:
    """The chains of a table that are ours alone."""
    return [chain for chain in rules.ordered.get(table, {}) if chain not in BASE_CHAINS]


def spelled(steps: list[Step], *, first: bool, named: bool) -> Iterator[str]:
    """The steps of a table as lines, `-A CHAIN …` or `-I CHAIN N …`; with `first` those of nat OUTPUT lead."""
    places = itertools.count(1)
    for step in steps:
        position = next(places) if first and (step.table, step.chain) == ("nat", "OUTPUT") else step.position
        where = f"-A {step.chain}" if position is None else f"-I {step.chain} {position}"
        yield f"{where} {spell(step.rule, named=named)}"


def spell(rule: Rule, *, named: bool = False) -> str:
    """Conditions and verdict of a rule as iptables takes them."""
    words = [word for match in rule.matches for word in _match(match)]
    if named and rule.name:
        words.append(f'-m comment --comment "{COMMENT}{rule.name}"')
    on_address = f" --on-ip {rule.verdict.address}" if rule.verdict.address else ""
    verdict = _VERDICTS[rule.verdict.act].format(**vars(rule.verdict), on_address=on_address)
    return " ".join([*words, f"-j {verdict}"])


def spell_value(value: Value, dash: str) -> str:
    """A value of a condition; `dash` joins the ends of a range."""
    return f"{value.start}{dash}{value.stop - 1}" if isinstance(value, range) else str(value)


def _match(match: Match) -> Iterator[str]:
    values = ",".join(spell_value(value, ":") for value in match.values)
    no = "! " if match.negated else ""
    if match.field in _SIMPLE:
        yield f"{no}{_SIMPLE[match.field]} {values}"
    elif match.field in _PORTS:
        several = len(match.values) > 1
        yield f"{'-m multiport ' if several else ''}{no}{_PORTS[match.field]}{'s' if several else ''} {values}"
    else:
        module, option = _MODULES[match.field]
        yield f"-m {module} {no}{option} {values}"
