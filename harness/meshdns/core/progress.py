"""Progress of long work: what runs, elapsed and remaining time, live medians. Silent when nobody watches."""

from __future__ import annotations

import sys
from typing import Self

from tqdm import tqdm


class Progress:
    """A bar over seconds of work on a terminal; nothing elsewhere."""

    def __init__(self, total: float, label: str, unit: str = "s") -> None:
        """`total` is the expected amount, in `unit`."""
        self._total = total
        layout = "{desc} {percentage:3.0f} %|{bar:24}| {elapsed} elapsed, {remaining} left{postfix}"
        self._bar = tqdm(
            total=total, desc=label, unit=unit, bar_format=layout, disable=not sys.stderr.isatty(), leave=False,
            dynamic_ncols=True,
        )  # fmt: skip

    def doing(self, what: str) -> None:
        """What runs now."""
        self._bar.set_description_str(what)

    def advance(self, amount: float, note: str = "") -> None:
        """Work done, with a word on how it stands (live medians)."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(min(amount, max(0.0, self._total - self._bar.n)))

    def stage(self, what: str, done: int, total: int) -> None:
        """`done` of `total` are done, and what comes next."""
        self._total = self._bar.total = total
        self._bar.set_description_str(what, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        """The bar shows."""
        return self

    def __exit__(self, *_: object) -> None:
        """The bar is gone."""
        self._bar.close()
