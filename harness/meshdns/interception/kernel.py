"""Loads and removes rules in the current network namespace.

A second load of the same rules changes nothing; what a killed loader left half done is completed, or removed. Marks and
conntrack zones are loaded before what redirects, and removed after it. Rules with our names that are not these are left
alone unless `replace` is asked for, and then exchanged so that no packet meets half of either: nft exchanges all tables
at once, iptables each table by itself. What the kernel refuses leaves everything as it was. Removal takes out what
loading put in, down to the empty tables that loading made. Loaders of one namespace work one after the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import iptables, loaded, nftables, routing
from .options import Family
from .refusal import Refusal, Unavailable
from .ruleset import TABLES, RuleSet

_TIMEOUT_S = 30  # a loader that takes longer waits for a lock that nobody gives back
_PAUSE_S = 0.02  # between two looks at whether another loader has ended
_IPTABLES: dict[Family, str] = {"ipv4": "iptables", "ipv6": "ip6tables"}
_NFT_FAMILY: dict[Family, str] = {"ipv4": "ip", "ipv6": "ip6"}
_PACKAGES = {"nft": "nftables", "ip": "iproute2"}
_NEEDS = "NET_ADMIN in the network namespace, and a kernel with nat, conntrack and owner matches"
_NEEDS_OF_IP = "NET_ADMIN in the network namespace, and policy routing; with enable_ipv6 also IPv6 on lo"
_STEP = "give --replace to exchange them, or remove them first"
_OTHERS = (
    "{tool}: the rules loaded are not these ({names}); give the options they were loaded with, "
    "or --replace to remove them all the same"
)


@dataclass(frozen=True)
class Loader:
    """Loads by one mechanism, "iptables" or "nftables"; `first` and `named` as the renderers take them."""

    mechanism: str
    first: bool = False
    named: bool = False

    def apply(self, rules: RuleSet, *, replace: bool = False) -> str:
        """The rules are loaded; says what was done. Raises Refusal, Unavailable."""
        loaded.check_groups(rules)
        with _alone():
            needed = _routes(rules, there=False)
            if self.mechanism == "nftables":
                plan = self._nft_plan(rules, replace)
                changed = [plan] if plan else []
            else:
                changed = [text for family in rules.families if (text := self._iptables_plan(rules, family, replace))]
            if not changed and not any(needed.values()):
                return "the rules are loaded already: nothing changed"
            stale = {family: self._stale_routes(rules, family) for family in rules.families}
            try:
                _batch(needed)
                self._load(rules, changed)
            except Refusal:
                _batch({f: _inverse([line for line in lines if _there(line, f)]) for f, lines in needed.items()})
                raise
            _batch(stale)
            return f"rules loaded: {self.mechanism}, {', '.join(rules.families)}"

    def remove(self, rules: RuleSet, *, replace: bool = False) -> str:
        """The rules are gone, and nothing else; says what was done. Raises Refusal, Unavailable."""
        with _alone():
            present = _routes(rules, there=True)
            nothing = RuleSet(rules.families, ())
            if self.mechanism == "nftables":
                plan = self._nft_removal(rules, replace)
                changed = [plan] if plan else []
            else:
                changed = [text for f in rules.families if (text := self._iptables_removal(rules, f, replace))]
            self._load(nothing, changed)
            if self.mechanism == "iptables":
                for family in rules.families:  # also what a removal that was killed has emptied
                    _sweep(family, nothing)
            _batch({family: _inverse(lines) for family, lines in present.items()})
            done = changed or any(present.values())
            return f"rules removed: {self.mechanism}, {', '.join(rules.families)}" if done else "nothing to remove"

    def _load(self, rules: RuleSet, texts: list[str]) -> None:
        if self.mechanism == "nftables":
            for text in texts:
                _run("nft", "-f", "-", given=text)
            return
        families = [family for family in _IPTABLES if any(text.startswith(f"# {family}\n") for text in texts)]
        before = {family: _run(f"{_IPTABLES[family]}-save", "-c") for family in families}
        try:
            for family, text in zip(families, texts, strict=True):
                _run(f"{_IPTABLES[family]}-restore", "--noflush", "--wait", "10", given=text)
        except Refusal:
            for family, state in before.items():
                _restore(family, state)
            raise
        for family in families:
            _sweep(family, rules)

    def _stale_routes(self, rules: RuleSet, family: Family) -> list[str]:
        """What removes the routes of TPROXY rules that are loaded and that `rules` do without."""
        if self.mechanism == "nftables":
            marks = loaded.nft_tproxy_marks("".join(_nft_tables(rules).values()))
        else:
            marks = loaded.tproxy_marks(loaded.saved(_run(f"{_IPTABLES[family]}-save")))
        marks -= {mark for mark, _ in rules.mark_routes}
        shown = _run("ip", routing.OPTION[family], "rule", "show") if marks else ""
        pairs = [(int(mark, 16), table) for mark, table in re.findall(r"fwmark (0x[0-9a-f]+) lookup (\d+)", shown)]
        gone = [(mark, table) for mark, table in pairs if mark in marks]
        used = {table for mark, table in pairs if mark not in marks} | {str(table) for _, table in rules.mark_routes}
        lines = [f"rule delete fwmark {mark} lookup {table}" for mark, table in gone]
        return lines + [f"route delete local default dev lo table {t}" for t in sorted({t for _, t in gone} - used)]

    def _iptables_plan(self, rules: RuleSet, family: Family, replace: bool) -> str:
        """The text that leads from what is loaded to the rules of one family; empty if that is the same."""
        mine = rules.of(family)
        tables = loaded.saved(_run(f"{_IPTABLES[family]}-save"))
        missing = loaded.missing(tables, mine, named=self.named)
        if missing is not None:
            lacking = RuleSet(mine.families, tuple(step for step in mine.steps if step.table in missing))
            return self._exchange({}, lacking, family, {}) if missing else ""
        if not replace:
            strangers = ", ".join(loaded.foreign_chains(tables))
            raise Refusal(f"{_IPTABLES[family]}: other rules have our names ({strangers}); {_STEP}")
        return self._exchange(tables, mine, family, loaded.left_over(tables, mine, named=self.named))

    def _iptables_removal(self, rules: RuleSet, family: Family, replace: bool) -> str:
        mine = rules.of(family)
        tables = loaded.saved(_run(f"{_IPTABLES[family]}-save"))
        strangers = list(loaded.foreign_chains(tables))
        if not strangers:
            return ""
        missing = loaded.missing(tables, mine, named=self.named)
        if missing is not None:
            tables = {name: table for name, table in tables.items() if name not in missing}
            old = loaded.put_in(tables, mine, first=self.first, named=self.named)
        elif replace:
            old = loaded.left_over(tables, mine, named=self.named)
        else:
            raise Refusal(_OTHERS.format(tool=_IPTABLES[family], names=", ".join(strangers)))
        return self._exchange(tables, RuleSet(rules.families, ()), family, old)

    def _exchange(
        self, tables: dict[str, loaded.Table], new: RuleSet, family: Family, old: dict[str, list[tuple[str, str]]]
    ) -> str:
        """One text, one transaction per table: our chains and the `old` rules that lead there out, the new ones in."""
        lines = [f"# {family}"]
        before_nat = [table for table in ("raw", "mangle") if table in new.ordered]
        for table in dict.fromkeys([*before_nat, "nat", *TABLES]):
            had = tables[table].ours() if table in tables else []
            want = iptables.own_chains(new, table)
            steps = [step for step in new.steps if step.table == table]
            changes = [f"-D {chain} {spec}" for chain, spec in old.get(table, [])]
            changes += [f"-F {chain}" for chain in had]
            changes += [f"-N {chain}" for chain in want if chain not in had]
            changes += [f"-X {chain}" for chain in had if chain not in want]
            changes += iptables.spelled(steps, first=self.first, named=self.named)
            if changes:
                lines += [f"*{table}", *changes, "COMMIT"]
        return "\n".join(lines) + "\n"

    def _nft_plan(self, rules: RuleSet, replace: bool) -> str:
        have = _nft_tables(rules)
        if self._nft_holds(rules, have):
            return ""
        if have and not replace:
            names = ", ".join(f"inet {name}" for name in have)
            raise Refusal(f"nftables: other rules have our names ({names}); {_STEP}")
        names_of = nftables.table_names(rules)
        wanted = {names_of[table] for table in rules.ordered}
        gone = [f"delete table inet {name}\n" for name in have if name not in wanted]
        return "".join(gone) + nftables.render(rules, first=self.first, named=self.named)

    def _nft_removal(self, rules: RuleSet, replace: bool) -> str:
        have = _nft_tables(rules)
        if have and not self._nft_holds(rules, have) and not replace:
            raise Refusal(_OTHERS.format(tool="nftables", names=", ".join(f"inet {name}" for name in have)))
        return "".join(f"delete table inet {name}\n" for name in have)

    def _nft_holds(self, rules: RuleSet, have: dict[str, str]) -> bool:
        wanted = {nftables.table_names(rules)[table]: table for table in rules.ordered}
        return set(have) == set(wanted) and all(
            loaded.nft_saved(text) == loaded.nft_wanted(rules, wanted[name], first=self.first, named=self.named)
            for name, text in have.items()
        )


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other loader is at work in this namespace. The kernel gives the lock back when its holder ends, however."""
    with Path("/proc/thread-self/ns/net").open("rb") as namespace:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(namespace, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise Unavailable(f"another loader has been at work here for {_TIMEOUT_S} s; wait for it or end it")
            time.sleep(_PAUSE_S)
        yield


def _run(*argv: str, given: str = "") -> str:
    """What a program printed. Raises Unavailable with the program's own words."""
    if shutil.which(argv[0]) is None:
        raise Unavailable(f"{argv[0]}: no such program; install the package {_PACKAGES.get(argv[0], 'iptables')}")
    try:
        done = _called(argv, given)
    except subprocess.TimeoutExpired as late:
        raise Unavailable(f"{argv[0]}: no answer within {_TIMEOUT_S} s; another loader may hold the lock") from late
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if not line.startswith(("Try ", "#"))), f"exit code {done.returncode}")
        needs = _NEEDS_OF_IP if argv[0] == "ip" else _NEEDS
        raise Unavailable(f"{' '.join(argv)}: {reason}; nothing was changed: this needs {needs}")
    return done.stdout


def _called(argv: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """In comments of others any bytes may stand: they are given back as they were printed."""
    return subprocess.run(argv, input=given, capture_output=True, timeout=_TIMEOUT_S, check=False,
                          encoding="utf-8", errors="surrogateescape")  # fmt: skip


def _restore(family: Family, state: str) -> None:
    """Tables that are no longer what `iptables-save -c` said are that again, or gone if they were not there."""
    had, now = loaded.saved(state), loaded.saved(_run(f"{_IPTABLES[family]}-save", "-c"))
    changed = [table for table in TABLES if table in now and now[table] != had.get(table)]
    sections = re.findall(r"^(\*(\w+)\n.*?^COMMIT\n)", state, re.MULTILINE | re.DOTALL)
    texts = {table: text for text, table in sections}
    given = "".join(texts.get(table, f"*{table}\nCOMMIT\n") for table in changed)
    _run(f"{_IPTABLES[family]}-restore", "-c", "--wait", "10", given=given)
    _sweep(family, RuleSet((family,), ()))


def _sweep(family: Family, rules: RuleSet) -> None:
    """Base chains and tables of iptables-nft that have nothing in them are gone.

    iptables makes them with the first rule and leaves them behind; where nft is not installed they stay, harmlessly.
    """
    if shutil.which("nft") is None or "nf_tables" not in _run(_IPTABLES[family], "-V"):
        return
    for table in (table for table in TABLES if table not in rules.ordered):
        place = f"{_NFT_FAMILY[family]} {table}"
        listed = _called(["nft", "list", "table", *place.split()])
        if listed.returncode:
            continue
        chains = loaded.nft_chains(listed.stdout)
        empty = [c for c, lines in chains.items() if c in ("PREROUTING", "OUTPUT") and _is_empty_base(lines)]
        gone = [f"delete chain {place} {chain}" for chain in empty]
        if len(empty) == len(chains) and "set " not in listed.stdout:
            gone = [f"delete table {place}"]
        if gone:
            _run("nft", "-f", "-", given="\n".join(gone) + "\n")


def _is_empty_base(lines: list[str]) -> bool:
    return len(lines) == 1 and lines[0].startswith("type ") and "policy accept" in lines[0]


def _nft_tables(rules: RuleSet) -> dict[str, str]:
    """Tables with our names that are there for the families of these rules, as listed."""
    there = _run("nft", "list", "tables").splitlines() if rules.families else []
    have = [name for name in nftables.rival_names(rules) if f"table inet {name}" in there]
    return {name: _run("nft", "list", "table", "inet", name) for name in have}


def _routes(rules: RuleSet, *, there: bool) -> dict[Family, list[str]]:
    """What adds those that are there, or those that are missing."""
    return {family: [line for line in routing.commands(rules, "add", family) if _there(line, family) == there]
            for family in rules.families}  # fmt: skip


def _there(line: str, family: Family) -> bool:
    """A rule, route or address of ours is there."""
    kind, *words = line.split()
    option = routing.OPTION[family]
    if kind == "rule":
        shown = _run("ip", option, "rule", "show").splitlines()
        return any(f"fwmark {int(words[2]):#x} lookup {words[4]}" in one for one in shown)
    if kind == "address":
        return f" {words[1]} " in _run("ip", option, "address", "show", "dev", "lo")
    shown = _run("ip", option, "route", "show", "table", "all", "type", "local").splitlines()
    return any(one.startswith("local default dev lo") and f"table {words[-1]}" in one for one in shown)


def _inverse(lines: Iterable[str]) -> list[str]:
    return [line.replace(" add ", " delete ", 1) for line in lines]


def _batch(lines: dict[Family, list[str]]) -> None:
    for family, commands in lines.items():
        if commands:
            _run("ip", routing.OPTION[family], "-batch", "-", given="".join(f"{line}\n" for line in commands))
