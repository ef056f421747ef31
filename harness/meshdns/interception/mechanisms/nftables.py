"""The same rules by nftables, as Istio has them natively."""

from __future__ import annotations

from typing import ClassVar

from .. import nftables
from ..options import Options
from ..ruleset import build
from .mechanism import RULES, Command, Mechanism


class Nftables(Mechanism):
    """See the module."""

    counters: ClassVar = (
        (("nft", "list", "ruleset", "inet"), r'counter packets (\d+) bytes \d+.*comment "meshdns:(\w+)"'),
    )

    def files(self, options: Options) -> dict[str, str]:
        """See `Mechanism`."""
        return {"nftables": nftables.render(build(options, "ipv4"), first=True, named=True)}

    def load(self, files: dict[str, str]) -> list[str]:
        """See `Mechanism`."""
        return [f"nft -f {RULES}/{name}" for name in files]

    def extra_rules(self, count: int) -> list[Command]:
        """See `Mechanism`."""
        lines = "".join(f"ip daddr 192.0.2.1 tcp dport {number} return\n" for number in range(1, count + 1))
        chain = f"chain out {{\ntype nat hook output priority -102;\n{lines}}}"
        table = f"table ip meshdns\ndelete table ip meshdns\ntable ip meshdns {{\n{chain}\n}}\n"
        return [Command(("nft", "-f", "-"), table)]


MECHANISM = Nftables()
