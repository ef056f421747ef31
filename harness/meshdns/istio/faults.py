"""What is wrong with a configuration, and where: collected while reading, reported all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshdns.core import errors


@dataclass(frozen=True, order=True)
class Place:
    """A line of a document of a file; documents and lines count from 1, 0 means the whole."""

    file: str
    document: int = 0
    line: int = 0

    def __str__(self) -> str:
        parts = [f"document {self.document}"] if self.document else []
        parts += [f"line {self.line}"] if self.line else []
        return f"{self.file}: {', '.join(parts)}" if parts else self.file


@dataclass(frozen=True, order=True)
class Fault:
    """One fact that makes the configuration unusable, and the next step."""

    place: Place
    path: str  # of the field, as `spec.ports[0].name`; empty: the document itself
    fact: str
    step: str = ""

    def where(self) -> str:
        """Place and field."""
        return f"{self.place}: {self.path}" if self.path else str(self.place)

    def __str__(self) -> str:
        return f"{self.where()}: {self.fact}" + (f"; {self.step}" if self.step else "")


def refuse(faults: Sequence[Fault]) -> None:
    """Return if there is no fault; else InputError with one line for each, in the order of the files."""
    found = sorted(set(faults))
    if len(found) == 1:
        raise errors.InputError(found[0].fact, place=found[0].where(), step=found[0].step)
    if found:
        lines = "".join(f"\n  {fault}" for fault in found)
        raise errors.InputError(f"the mesh configuration has {len(found)} faults, so none of it is used:{lines}")
