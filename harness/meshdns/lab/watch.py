"""Whether every part of a place is still as it must be while a run needs it, and what became of one that is not."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from meshdns.core import errors
from meshdns.lab.place import Account, Ended, Part, Place

# A conversation with a container breaks before the engine's list says that it ended; and who takes a testbed down ends
# its containers before removing them: what is told is what it was like at the end.
_LATE_S, _STILL_S, _LONGEST_S, _PAUSE_S = 1.0, 3.0, 30.0, 0.25
_SLACK_S = 1.0  # between what the engine's list is made from and our own look at the clock
_SHOWN = 3  # parts that are named beside the first
# What a conversation with a part that is gone raises, and what comes of half an answer.
_BROKEN = (errors.TestbedError, OSError, ValueError, LookupError)


@dataclass(frozen=True)
class _Lost:
    """A part that is not as it must be: what it was, and what is listed of it now."""

    part: Part
    now: Part | None  # None: it is gone


class Watch:
    """The parts of a place that is up, as they were when a run began."""

    def __init__(self, place: Place) -> None:
        """Remembers what is there. Raises TestbedError."""
        self._place = place
        self._since_s = time.time()  # by the clock that the place goes by, also where somebody sets it
        self._parts = {part.id: part for part in place.parts()}

    @contextlib.contextmanager
    def during(self, what: str, ended: Callable[[], Ended] = Ended) -> Iterator[None]:
        """Raises LostPartError if a part is lost when this is left, also in place of an error that may come of that.

        `ended`: what is down, or was, on purpose. One question to the place, where all is well.
        """
        try:
            yield
        except _BROKEN:
            deadline = time.monotonic() + _LATE_S
            while not self._lost(ended()) and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)
            self._look(what, ended())
            raise
        self._look(what, ended())

    def _look(self, what: str, ended: Ended) -> None:
        if lost := self._lost(ended):
            raise self._told(self._settled(lost, ended), what)

    def _lost(self, ended: Ended) -> list[_Lost]:
        now = {part.id: part for part in self._place.parts()}
        return [
            _Lost(part, now.get(part.id))
            for part in self._parts.values()
            if part.service not in ended.now and not self._is_the_same(now.get(part.id), ended)
        ]

    def _is_the_same(self, part: Part | None, ended: Ended) -> bool:
        """It is as it must be, and was not started anew: then it has forgotten what it was told."""
        if part is None or not part.is_as_it_must_be:
            return False
        return part.service in ended.ever or part.began_s <= self._since_s + _SLACK_S

    def _settled(self, lost: list[_Lost], ended: Ended) -> list[_Lost]:
        """What is lost, once it becomes no more."""
        since = time.monotonic()
        deadline = since + _LONGEST_S
        while time.monotonic() < min(since + _STILL_S, deadline):
            time.sleep(_PAUSE_S)
            if (found := self._lost(ended)) and found != lost:  # one that came back was lost all the same
                lost, since = found, time.monotonic()
        return lost

    def _told(self, lost: Collection[_Lost], what: str) -> errors.LostPartError:
        removed = any(one.now is None for one in lost)
        if removed and 2 * len(lost) > len(self._parts):  # an engine with much to remove may stop for a while half-way
            place = f"testbed {self._place.name}"
            return errors.LostPartError(f"somebody removed it {what}", place=place, step=errors.AGAIN)
        accounts = [(one, self._place.account(one.part)) for one in lost]
        # The first to end may have ended the others; what was removed says nothing of when.
        (first, account), *others = sorted(accounts, key=lambda each: each[1].ended)
        facts = [f"{_how(first, account)} {what}", _beside([one for one, _ in others])]
        facts += [account.log_ends] if first.now else []
        return errors.LostPartError("; ".join(filter(None, facts)), place=first.part.service, step=errors.AGAIN)


def _how(lost: _Lost, account: Account) -> str:
    if lost.now is None:
        return "somebody removed the container"
    if lost.now.state == "running":
        return "somebody started the container anew"
    if lost.now.state not in ("exited", "dead"):
        return f"the container was {lost.now.state}"
    code = (lost.now.code or 0) if account.code is None else account.code
    if account.no_memory:
        return f"the container was killed for want of memory (exit code {code})"
    with contextlib.suppress(ValueError):  # 128 and the signal, as in the shell
        return f"the container was killed by {signal.Signals(code - 128).name} (exit code {code})"
    return f"the container ended with exit code {code}"


def _beside(others: Collection[_Lost]) -> str:
    if not others:
        return ""
    names = sorted(one.part.service for one in others)
    return f"lost too: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")
