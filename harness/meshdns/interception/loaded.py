"""What a namespace holds, in a form that can be compared with what we would load.

The tools print rules in another spelling than they read (marks in hexadecimal, implied matches, sorted states), and
their versions differ in it. Both spellings are brought to one here; nothing else is interpreted. Most of what is there
may be other people's: what is not understood is kept as it is printed, and so is never taken for a rule of ours.
"""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from . import iptables, nftables
from .conventions import ALL
from .refusal import Refusal
from .ruleset import BASE_CHAINS, OUR_CHAINS, Field, RuleSet

Canonical = tuple[tuple[str, ...], ...]
_ALL_BITS = "0xffffffff"
_IMPLIED = ("tcp", "udp")  # matches that iptables prints beside `-p`; every other asks for something
# What the rules for marks in the kernel's chains are made of.
_BESIDE = {
    "-p", "-o", "-d", "-j", "-m mark", "-m connmark", "-m owner", "--mark", "--uid-owner", "--gid-owner", "--set-mark",
    "--save-mark", "--restore-mark",
}  # fmt: skip
_FREE_TEXT = ("--comment", "--string", "--log-prefix", "--nflog-prefix")  # one word follows, whatever it looks like


@dataclass(frozen=True)
class Table:
    """A table of iptables-save: its chains, and their rules as printed, without `-A CHAIN`."""

    chains: dict[str, list[str]] = field(default_factory=dict)

    def ours(self) -> list[str]:
        """Chains with our names."""
        return [chain for chain in self.chains if chain in OUR_CHAINS]


def saved(text: str) -> dict[str, Table]:
    """What `iptables-save` printed, by table."""
    tables: dict[str, Table] = {}
    name = ""
    for printed in _lines(text):
        line = re.sub(r"^\[\d+:\d+\] ", "", printed)
        if line.startswith("*"):
            name = line[1:].strip()
            tables[name] = Table()
        elif declared := re.match(r":(\S+) ", line):
            tables[name].chains[declared[1]] = []
        elif line.startswith("-A "):
            chain, _, spec = line.removeprefix("-A ").partition(" ")
            tables[name].chains.setdefault(chain, []).append(spec)
    return tables


def _lines(text: str) -> Iterator[str]:
    """The lines as iptables means them: a comment may hold a line's end, and what Unicode takes for one."""
    printed = text.split("\n")
    at = 0
    while at < len(printed):
        line, at = printed[at], at + 1
        whole, end = line, at
        while _is_open(whole) and end < len(printed) and printed[end] != "COMMIT":
            whole, end = f"{whole}\n{printed[end]}", end + 1
        if not _is_open(whole):
            line, at = whole, end
        yield line


def _is_open(line: str) -> bool:
    """A rule with a quote that is not closed; in the name of a chain it stands for itself."""
    return line.startswith(("-A ", "[")) and re.sub(r"\\.", "", line, flags=re.DOTALL).count('"') % 2 == 1


def canonical(spec: str) -> Canonical:
    """A rule of iptables, as printed or as read, as a sorted set of (option, value…)."""
    try:
        words = shlex.split(spec)
    except ValueError:
        return ((spec,),)
    groups: list[list[str]] = []
    negated = False
    for word in words:
        if groups and len(groups[-1]) == 1 and groups[-1][0] in _FREE_TEXT:
            groups[-1].append(word)
        elif word == "!":
            negated = True
        elif re.match(r"--?[a-zA-Z]", word) or not groups:
            groups.append([*(["!"] if negated else []), word])
            negated = False
        else:
            groups[-1].append(word)
    return tuple(sorted({group for group in map(_group, groups) if group}))


def _group(words: list[str]) -> tuple[str, ...]:
    """One option in one spelling; empty where it says nothing."""
    negation, (option, *values) = (("!",), words[1:]) if words[0] == "!" else ((), words)
    value = values[0] if values else ""
    with contextlib.suppress(ValueError, Refusal):
        match option:
            case "-m" if value in _IMPLIED:
                return ()
            case "--nfmask" | "--ctmask" if value == _ALL_BITS:
                return ()
            case "--on-ip" if value in ("0.0.0.0", "::"):  # noqa: S104  "any", as iptables prints it
                return ()
            case "--set-mark" | "--set-xmark" | "--mark" | "--tproxy-mark":
                values = [str(int(value.removesuffix(f"/{_ALL_BITS}"), 0))]
                option = option.replace("xmark", "mark")
            case "-s" | "-d" if not negation and ipaddress.ip_network(value, strict=False).prefixlen == 0:
                return ()  # every address: printed as no condition
            case "-s" | "-d":
                values = [str(ipaddress.ip_network(value, strict=False))]
            case "--ctstate":
                values = [",".join(sorted(value.split(",")))]
            case "--gid-owner":
                values = [str(group_id(value))]
    return (*negation, option, *values)


def group_id(group: str) -> int:
    """The number of a group given by number or name, as iptables and nft resolve it. Raises Refusal."""
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refusal(f"group {group}: not in this machine's /etc/group; give its number") from None


def check_groups(rules: RuleSet) -> None:
    """Every group named in the rules is known here. Raises Refusal."""
    for match in (match for step in rules.steps for match in step.rule.matches if match.field is Field.GID):
        for value in match.values:
            group_id(str(value))


def missing(tables: dict[str, Table], rules: RuleSet, *, named: bool) -> set[str] | None:
    """Tables of these rules that are still to be loaded; None where one holds other rules with our names.

    A loader that was killed leaves whole tables behind, each as it was to be or untouched.
    """
    check_groups(rules)
    found = set[str]()
    for table in {*tables, *rules.ordered}:
        content = tables.get(table, Table())
        if content.ours() and not _holds(content, rules, table, named=named):
            return None
        if table in rules.ordered and not content.ours():
            found.add(table)
    return found


def _holds(content: Table, rules: RuleSet, table: str, *, named: bool) -> bool:
    """A table holds these rules: our chains exactly, the kernel's chains at least."""
    if set(content.ours()) != set(iptables.own_chains(rules, table)):
        return False
    for chain, steps in rules.ordered[table].items():
        wanted = [canonical(iptables.spell(step.rule, named=named)) for step in steps]
        have = [canonical(spec) for spec in content.chains.get(chain, [])]
        if have != wanted if chain not in BASE_CHAINS else not _among(wanted, have):
            return False
    return True


def _among(wanted: list[Canonical], have: list[Canonical]) -> bool:
    """A chain of the kernel's has the rules wanted, others' that may be the same, and no other that leads to ours."""
    others = Counter(have) - Counter(wanted)
    return Counter(wanted) <= Counter(have) and not any(_target(one) in OUR_CHAINS for one in others)


def _target(rule: Canonical) -> str:
    return next((group[1] for group in rule if len(group) > 1 and group[0] in ("-j", "-g")), "")


def put_in(tables: dict[str, Table], rules: RuleSet, *, first: bool, named: bool) -> dict[str, list[tuple[str, str]]]:
    """Per table what loading put into the kernel's chains, as (chain, rule), in tables that hold these rules.

    Where others have the same rule, (chain, number), from the highest: ours are the last of them, or the first where
    they were inserted.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for table, chain in ((table, chain) for table in tables for chain in BASE_CHAINS):
        have = [canonical(spec) for spec in tables[table].chains.get(chain, [])]
        inserted, appended = Counter[Canonical](), Counter[Canonical]()
        for step in rules.ordered.get(table, {}).get(chain, ()):
            leads = step.position is not None or (first and (table, chain) == ("nat", "OUTPUT"))
            (inserted if leads else appended)[canonical(iptables.spell(step.rule, named=named))] += 1
        numbers, specs = list[int](), list[str]()
        for rule in inserted | appended:
            places = [number for number, one in enumerate(have) if one == rule]
            ours = places[: inserted[rule]] + places[len(places) - appended[rule] :]
            if ours == places:
                specs += [tables[table].chains[chain][number] for number in ours]
            else:
                numbers += [number + 1 for number in ours]
        found.setdefault(table, []).extend((chain, str(number)) for number in sorted(numbers, reverse=True))
        found[table] += [(chain, spec) for spec in specs]
    return found


def left_over(tables: dict[str, Table], rules: RuleSet, *, named: bool) -> dict[str, list[tuple[str, str]]]:
    """Per table the rules in the kernel's chains, as (chain, rule), that belong to rules with our names.

    Those that lead into our chains, those that `rules` puts there, and what Istio's options put beside them: pairs of
    interface exemptions, exemptions of rerouted interfaces, the marks of TPROXY that our chains have.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for table, content in tables.items():
        base = [(chain, spec) for chain in BASE_CHAINS for spec in content.chains.get(chain, [])]
        theirs = {(chain, canonical(spec)) for chain, spec in base}
        wanted = {
            (chain, canonical(iptables.spell(step.rule, named=named)))
            for chain in BASE_CHAINS
            for step in rules.ordered.get(table, {}).get(chain, ())
        }
        marks = _marks(content)
        for chain, spec in base:
            rule = canonical(spec)
            if _target(rule) in OUR_CHAINS or (chain, rule) in wanted or _beside(rule, theirs, marks):
                found.setdefault(table, []).append((chain, spec))
    return found


def _marks(content: Table) -> set[str]:
    """The marks that our chains ask for or give."""
    rules = (canonical(spec) for chain in content.ours() for spec in content.chains[chain])
    return {group[-1] for rule in rules for group in rule if "--mark" in group or "--set-mark" in group}


def _beside(rule: Canonical, all_rules: set[tuple[str, Canonical]], marks: set[str]) -> bool:
    words = {group[0]: group[-1] for group in rule if group[0] != "!"}
    if _target(rule) == "RETURN" and len(rule) == 2 and ("-i" in words or "-o" in words):
        name = words.get("-i", words.get("-o", ""))
        pair = {("PREROUTING", (("-i", name), ("-j", "RETURN"))), ("OUTPUT", (("-j", "RETURN"), ("-o", name)))}
        redirects = {mesh.chains.redirect for mesh in ALL.values()}
        rerouted = any(("-i", name) in other and _target(other) in redirects for _, other in all_rules)
        return pair <= all_rules or rerouted
    if not {" ".join(group) if group[0] == "-m" else group[group[0] == "!"] for group in rule} <= _BESIDE:
        return False  # it asks for more, or does more
    by_mark = words.get("--mark") in marks and words.get("-p") == "tcp"
    carried = _target(rule) == "CONNMARK" and "--set-mark" not in words
    kept = by_mark and (carried or (_target(rule) == "RETURN" and words.get("-o") == "lo"))
    own = {str(mesh.self_mark) for mesh in ALL.values() if mesh.self_mark}
    to_own_pod = words.get("--set-mark") in own & marks
    return kept or (_target(rule) == "MARK" and to_own_pod)


def tproxy_marks(tables: dict[str, Table]) -> set[int]:
    """Marks that the rules of our chains give to TPROXY's packets."""
    rules = (canonical(spec) for table in tables.values() for chain in table.ours() for spec in table.chains[chain])
    marks = (group[1] for rule in rules for group in rule if group[0] == "--tproxy-mark" and len(group) == 2)
    return {int(mark) for mark in marks if mark.isdigit()}


def nft_tproxy_marks(text: str) -> set[int]:
    """The same for a listing of our tables by nft."""
    return {int(mark, 0) for mark in re.findall(r"\btproxy .*mark set (0x[0-9a-f]+|\d+)", text)}


def nft_saved(text: str) -> set[tuple[str, tuple[str, ...]]]:
    """What `nft list table` printed, as (chain, its lines)."""
    return {(chain, tuple(map(nft_canonical, lines))) for chain, lines in nft_chains(text).items()}


def nft_chains(text: str) -> dict[str, list[str]]:
    """The same, as it was printed."""
    chains: dict[str, list[str]] = {}
    name = ""
    for line in map(str.strip, text.split("\n")):
        if line.startswith("chain "):
            name = line.split()[1]
            chains[name] = []
        elif line == "}":
            name = ""
        elif name and line:
            chains[name].append(line)
    return chains


def nft_wanted(rules: RuleSet, table: str, *, first: bool, named: bool) -> set[tuple[str, tuple[str, ...]]]:
    """The same for what we would load into a table."""
    check_groups(rules)
    chains: dict[str, list[str]] = {}
    place = f"inet {nftables.table_names(rules)[table]} "
    for line in nftables.render(rules, first=first, named=named).splitlines():
        if line.startswith(f"add chain {place}"):
            name, _, hook = line.removeprefix(f"add chain {place}").partition(" ")
            chains[name] = [nft_canonical(hook.strip("{} "))] if hook else []
        elif line.startswith(f"add rule {place}"):
            name, _, rule = line.removeprefix(f"add rule {place}").partition(" ")
            chains[name].append(nft_canonical(rule))
    return {(name, tuple(lines)) for name, lines in chains.items()}


_NFT_VALUES: dict[str, Callable[[str], object]] = {
    "addr": lambda text: ipaddress.ip_network(text, strict=False),
    "skgid": group_id,
    "ct state": lambda text: _ordered(text.split(",")),
}
_PRIORITIES = {"dstnat": -100, "mangle": -150, "raw": -300}


def nft_canonical(line: str) -> str:
    """A line of nft, as printed or as read, in one spelling."""
    if line.startswith("type "):
        return _nft_hook(line)
    line = re.sub(r"counter packets \d+ bytes \d+", "counter", line)
    line = re.sub(r"0x[0-9a-f]+", lambda found: str(int(found[0], 16)), line)
    line = re.sub(r'"([A-Za-z0-9_.@:*+-]+)"', r"\1", line)
    line = re.sub(r"meta l4proto (tcp|udp) (?=(.* )?\1 [sd]port )", "", line)
    line = re.sub(r"\bmeta ", "", line)
    for key, read in _NFT_VALUES.items():
        line = re.sub(rf"(?<={key} )(!= )?(\S+)", _nft_value(read), line)
    return re.sub(r"\{ (.*?) \}", lambda found: _ordered(re.split(r",\s*", found[1])), line)


def _nft_hook(line: str) -> str:
    names = "|".join(_PRIORITIES)
    form = rf"type (\w+) hook (\w+) priority (-?\d+|{names})(?: ([-+] \d+))?(?:; policy accept)? ?;?"
    found = re.fullmatch(form, line)
    if found is None:
        return line
    kind, hook, name, offset = found.groups(default="")
    number = _PRIORITIES[name] if name in _PRIORITIES else int(name)
    return f"{kind} {hook} {number + int(offset.replace(' ', '') or 0)}"


def _nft_value(read: Callable[[str], object]) -> Callable[[re.Match[str]], str]:
    """What is found behind a key, perhaps negated, in one spelling; as it stands where it cannot be read."""

    def one(found: re.Match[str]) -> str:
        with contextlib.suppress(ValueError, Refusal):
            return f"{found[1] or ''}{read(found[2])}"
        return found[0]

    return one


def _ordered(values: Iterable[str]) -> str:
    return ",".join(sorted(values))


def foreign_chains(tables: dict[str, Table]) -> Iterator[str]:
    """Chains with our names, as "nat ISTIO_OUTPUT"."""
    for table, content in tables.items():
        for chain in content.ours():
            yield f"{table} {chain}"
