"""Tells which server answered by the first bytes it sent. Called after the clock was stamped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class AmbiguousError(Exception):
    """The same bytes would name two servers."""


class Answers:
    """How the answers of the servers begin that may be met."""

    __slots__ = ("_prefixes",)

    def __init__(self, prefixes: Mapping[str, Sequence[bytes]]) -> None:
        """Takes server -> prefixes; raises AmbiguousError when one server's fits in front of another's, or is empty."""
        self._prefixes = [(prefix, server) for server, several in prefixes.items() for prefix in several]
        for prefix, server in self._prefixes:
            if not prefix:
                raise AmbiguousError(f"an empty prefix of {server} fits any answer")
            for longer, other in self._prefixes:
                if other != server and longer.startswith(prefix):
                    raise AmbiguousError(f"{longer.hex()} of {other} begins like {prefix.hex()} of {server}")

    def read(self, data: bytes) -> str | None:
        """The server whose answer begins like this, "" if none does, None while more bytes can still decide."""
        undecided = False
        for prefix, server in self._prefixes:
            if data.startswith(prefix):
                return server
            undecided = undecided or prefix.startswith(data)
        return None if undecided else ""
