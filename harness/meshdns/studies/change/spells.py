"""What became of a change in every block, as cells of tables: they read themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meshdns.analysis import cells, stats, text
from meshdns.core import units


@dataclass(frozen=True)
class Spell:
    """A duration in every block, read as its median; infinite where it did not end within the load."""

    values: cells.Values  # ns

    @property
    def n(self) -> int:
        """Blocks that have one."""
        return len(self.values)

    @property
    def never(self) -> int:
        """Blocks in which it did not end."""
        return int(np.isinf(self.values).sum())

    @property
    def p50(self) -> float:
        """The median, ns; infinite if it did not end in half of the blocks, NaN without any."""
        return float(np.median(self.values)) if self.n else np.nan

    @property
    def late(self) -> bool:
        """Whether it did not end in half of the blocks."""
        return bool(np.isinf(self.p50))

    @property
    def interval(self) -> stats.Interval | None:
        """Of the mean; None where it did not always end, as there is no mean."""
        return stats.interval(self.values) if self.n and not self.never else None

    @property
    def mean(self) -> Mean:
        """The same, read as its mean."""
        return Mean(self.values)

    def __str__(self) -> str:
        """`0.426 s`."""
        if not self.n:
            return text.ABSENT
        return "never" if self.late else units.duration(self.p50, "s")


class Mean(Spell):
    """A spell that is read as its mean."""

    def __str__(self) -> str:
        """`0.43 ± 0.06 s`, or in how many blocks it never ended."""
        if self.never:
            return f"never in {self.never} of {text.blocks(self.n)}"
        return text.ABSENT if self.interval is None else units.interval(self.interval, "s")
