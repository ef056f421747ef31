"""What a way to capture says of itself; what a module does not say is as rules of iptables have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from ..options import Options

RULES = "/rules"  # where the pod's rules stand in the containers that load them
COUNTED = r'^\[(\d+):\d+\].*--comment "?meshdns:(\w+)'  # in what iptables-save prints


class Command(NamedTuple):
    """A program that ends, and what it reads."""

    argv: tuple[str, ...]
    given: str = ""


class Mechanism(ABC):
    """See the module."""

    # The proxy is handed connections with their addresses as they were, which takes a privilege.
    transparent: ClassVar[bool] = False
    # It lasts as long as the container that loaded it, which may not be allowed, and which counts what rules count.
    programs: ClassVar[bool] = False
    # What prints the counters of its rules, beside iptables-save, and how they stand there.
    counters: ClassVar[tuple[tuple[tuple[str, ...], str], ...]] = ()
    table: ClassVar[str] = "nat"  # of iptables: where rules decide
    captures: ClassVar[str] = ""  # the chain there that captures outbound traffic, if it can be taken out of a pod

    def options(self) -> dict[str, Any]:
        """Options that it asks for."""
        return {}

    @abstractmethod
    def files(self, options: Options) -> dict[str, str]:
        """File of the pod's rules -> content."""

    @abstractmethod
    def load(self, files: dict[str, str]) -> list[str]:
        """Lines of a shell that load these files."""

    def extra_rules(self, count: int) -> list[Command]:
        """So many rules that match nothing stand before those that capture."""
        chain, jump = "MESHDNS_EXTRA", ("OUTPUT", "-j", "MESHDNS_EXTRA")
        lines = "".join(f"-A {chain} -d 192.0.2.1/32 -p tcp --dport {n} -j RETURN\n" for n in range(1, count + 1))
        given = f"*{self.table}\n:{chain} - [0:0]\n{lines}COMMIT\n"
        again = f"iptables -t {self.table} -C {' '.join(jump)} 2>/dev/null || iptables -t {self.table} -I OUTPUT 1 "
        return [
            Command(("iptables-restore", "--noflush"), given),
            Command(("sh", "-c", again + " ".join(jump[1:]))),
        ]

    def capture(self, on: bool) -> list[Command]:
        """Outbound traffic is captured from now on, or no longer; nothing where that cannot be."""
        where = ("-I", "OUTPUT", "1") if on else ("-D", "OUTPUT")
        return [Command(("iptables", "-t", self.table, *where, "-j", self.captures))] if self.captures else []
