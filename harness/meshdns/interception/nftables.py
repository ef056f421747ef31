"""The rule set as `nft -f` reads it, in the tables and spelling of Istio's native nftables rules.

Tables of family inet, a counter in every rule, chains in their final order. Loading replaces tables of the same names
as one transaction. A base chain of one family alone asks for that family, so that the other is left in peace; where
both are enabled and loaded one by one, each has tables of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import routing
from .conventions import ALL
from .iptables import COMMENT, spell_value
from .options import Family
from .ruleset import BASE_CHAINS, Act, Field, Match, Rule, RuleSet

_ORDER_OF_TABLES = ("nat", "mangle", "raw")  # Istio's
_NAT_PRIORITY, _FIRST_PRIORITY = -100, -101  # one earlier: before any nat rule of iptables or a container engine
_OTHER_PRIORITY = {"mangle": -150, "raw": -300}

# Conditions in Istio's order: interfaces, protocol, addresses, ports, the rest.
_ORDER = (
    Field.IN_INTERFACE, Field.OUT_INTERFACE, Field.PROTOCOL, Field.SOURCE, Field.DESTINATION, Field.SOURCE_PORT,
    Field.DESTINATION_PORT, Field.STATE, Field.DIRECTION, Field.UID, Field.GID, Field.MARK, Field.CONNECTION_MARK,
)  # fmt: skip
_KEYS = {
    Field.STATE: "ct state",
    Field.DIRECTION: "ct direction",
    Field.UID: "skuid",
    Field.GID: "skgid",
    Field.MARK: "mark",
    Field.CONNECTION_MARK: "ct mark",
}
_INTERFACES = {Field.IN_INTERFACE: "iifname", Field.OUT_INTERFACE: "oifname"}
_ADDRESSES = {Field.SOURCE: "saddr", Field.DESTINATION: "daddr"}
_PORTS = {Field.SOURCE_PORT: "sport", Field.DESTINATION_PORT: "dport"}
_IP: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}
_VERDICTS = {
    Act.RETURN: "counter return",
    Act.ACCEPT: "counter accept",
    Act.DROP: "counter drop",
    Act.JUMP: "counter jump {to}",
    Act.REDIRECT: "counter redirect to :{port}",
    Act.TPROXY: "tproxy {ip} to {socket}:{port} meta mark set {mark} counter accept",
    Act.SET_MARK: "counter meta mark set {mark}",
    Act.SET_CONNECTION_MARK: "counter ct mark set {mark}",
    Act.SAVE_MARK: "counter ct mark set mark",
    Act.RESTORE_MARK: "counter meta mark set ct mark",
    Act.ZONE: "counter ct zone set {zone}",
}


def render(rules: RuleSet, *, first: bool = False, named: bool = False) -> str:
    """The text that loads the rules, of one family or both, in place of tables of the same names.

    `first` and `named` as for iptables; a chain of priority -101 is asked before those of -100.
    """
    lines = routing.comments(rules, "add", "first")
    lines.append("# nft -f")
    for table, name in table_names(rules).items():
        if table in rules.ordered:
            lines += [f"add table inet {name}", f"delete table inet {name}", f"add table inet {name}"]
            lines += _table(rules, table, first=first, named=named)
    return "\n".join(lines) + "\n"


def render_removal(rules: RuleSet) -> str:
    """The text that removes the tables, whether they are there or not."""
    lines = ["# nft -f"]
    for table, name in table_names(rules).items():
        if table in rules.ordered:
            lines += [f"add table inet {name}", f"delete table inet {name}"]
    return "\n".join(lines + routing.comments(rules, "delete", "afterwards")) + "\n"


def table_names(rules: RuleSet) -> dict[str, str]:
    """Its name for each table, with the family where it is loaded apart from the other."""
    suffix = f"-{rules.families[0]}" if rules.apart else ""
    return {table: f"{rules.mesh.table(table)}{suffix}" for table in _ORDER_OF_TABLES}


def rival_names(rules: RuleSet) -> list[str]:
    """Names of tables that would do the same to the same packets: of any mesh, of one family or of both."""
    suffixes = ["", *(f"-{family}" for family in rules.families)] if rules.apart else ["", "-ipv4", "-ipv6"]
    named = [mesh.table(table) for mesh in ALL.values() for table in _ORDER_OF_TABLES]
    return [f"{name}{suffix}" for name in named for suffix in suffixes]


def chain_name(chain: str) -> str:
    """Istio's name: ISTIO_IN_REDIRECT is istio-in-redirect."""
    return chain.lower().replace("_", "-")


def _table(rules: RuleSet, table: str, *, first: bool, named: bool) -> Iterator[str]:
    chains = rules.ordered[table]
    place = f"inet {table_names(rules)[table]}"
    for chain in chains:
        if chain in BASE_CHAINS:
            yield f"add chain {place} {chain_name(chain)} {{ {_hook(table, chain, first)} ; }}"
        else:
            yield f"add chain {place} {chain_name(chain)}"
    for chain, steps in rules.ordered[table].items():
        for step in steps:
            # A chain of ours is entered from a base chain only, and that one has asked for the family.
            ask = len(step.families) == 1 and (chain in BASE_CHAINS or step.families != rules.families)
            spelled = spell(step.rule, step.families[0], ask=ask, named=named)
            yield f"add rule {place} {chain_name(chain)} {spelled}"


def _hook(table: str, chain: str, first: bool) -> str:
    kind = "nat" if table == "nat" else "filter"
    if (table, chain) == ("mangle", "OUTPUT"):
        kind = "route"  # a changed mark must be routed anew
    priority = _OTHER_PRIORITY.get(table, _FIRST_PRIORITY if first else _NAT_PRIORITY)
    return f"type {kind} hook {chain_name(chain)} priority {priority}"


def spell(rule: Rule, family: Family = "ipv4", *, ask: bool = False, named: bool = False) -> str:
    """Conditions, counter and verdict of a rule as nft takes them; `ask`: the rule is for that family only."""
    addressed = any(match.field in _ADDRESSES for match in rule.matches)
    words = [f"meta nfproto {family}"] if not addressed and (ask or rule.verdict.act is Act.TPROXY) else []
    words += [_match(match, rule) for match in sorted(rule.matches, key=lambda match: _ORDER.index(match.field))]
    does = rule.verdict
    socket = f"[{does.address}]" if ":" in does.address else does.address
    words.append(_VERDICTS[does.act].format(**vars(does), to=chain_name(does.chain), ip=_IP[family], socket=socket))
    if named and rule.name:
        words.append(f'comment "{COMMENT}{rule.name}"')
    return " ".join(word for word in words if word)


def protocol(rule: Rule) -> str:
    """The protocol a rule asks for; empty if any."""
    return next((str(match.values[0]) for match in rule.matches if match.field is Field.PROTOCOL), "")


def _match(match: Match, rule: Rule) -> str:
    no = "!= " if match.negated else ""
    values = [spell_value(value, "-") for value in match.values]
    if match.field is Field.GID:
        values = [value if value.isdigit() else f'"{value}"' for value in values]  # Debian's "list" is a keyword
    if match.field is Field.PROTOCOL:
        # "udp dport" asks for the protocol itself; Istio spells it out for TCP only.
        with_port = any(other.field in _PORTS for other in rule.matches)
        return "" if values == ["udp"] and with_port else f"meta l4proto {values[0]}"
    if match.field in _INTERFACES:
        name = values[0].removesuffix("+") + "*" if values[0].endswith("+") else values[0]
        quoted = name if name == "lo" else f'"{name}"'  # a user's name may be a keyword of nft
        return f"{_INTERFACES[match.field]} {no}{quoted}"
    if match.field in _ADDRESSES:
        version: Family = "ipv6" if ":" in values[0] else "ipv4"
        return f"{_IP[version]} {_ADDRESSES[match.field]} {no}{values[0]}"
    one_of = f"{{ {', '.join(values)} }}" if len(values) > 1 else values[0]
    if match.field in _PORTS:
        return f"{protocol(rule)} {_PORTS[match.field]} {no}{one_of}"
    if match.field is Field.STATE:
        return f"ct state {no}{','.join(values).lower()}"
    return f"{_KEYS[match.field]} {no}{one_of.lower() if match.field is Field.DIRECTION else one_of}"
