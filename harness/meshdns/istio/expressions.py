"""Regular expressions for Envoy, whose RE2 takes less than Python's `re`: what it would refuse, found by one scan.

Python's own parser has judged the form before; here are the words that RE2 does not have (its "Syntax" page). What
only RE2 takes, as `\\pL` or `\\z`, is refused with the rest, because Python does not know it.
"""

from __future__ import annotations

import re
import warnings

MAX_REPEAT = 1000  # RE2's limit of a count, also of counts inside one another together
_ESCAPES = set("dDsSwWaAbBfnrtvx")  # letters that both know; digits are looked at apart
_GROUP = re.compile(r"\(\?(?:P<[A-Za-z0-9_]+>|[ims]*(?:-[ims]+)?[:)])")
_COUNT = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")
_OCTAL = re.compile(r"[0-7]{3}")


def refusal(text: str) -> str:
    """What the proxy has against an expression; empty if nothing is known."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a set that may become nested in Python is none in RE2
            re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{text!r} is not a regular expression: {error}"
    fact = _Scan(text).run()
    return f"{text!r} uses {fact}, which the proxy's RE2 does not have" if fact else ""


class _Scan:
    """From left to right; `counts` has the largest product of counts inside each open group."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._counts = [1]
        self._inside = 1  # of the atom that was read last

    def run(self) -> str:
        while self._at < len(self._text):
            if fact := self._one():
                return fact
        return ""

    def _one(self) -> str:
        char = self._text[self._at]
        if char == "\\":
            return self._escape("an escape")
        if char == "[":
            return self._set()
        if char == "(":
            return self._open()
        if char == ")":
            self._inside = self._counts.pop()
            self._counts[-1] = max(self._counts[-1], self._inside)
        elif char in "*+?" or (char == "{" and _COUNT.match(self._text, self._at)):
            return self._repeat()
        else:
            self._inside = 1
        self._at += 1
        return ""

    def _escape(self, what: str, *, of_set: bool = False) -> str:
        char = self._text[self._at + 1]
        octal = char == "0" or (char in "1234567" and _OCTAL.match(self._text, self._at + 1))
        if char.isdigit() and not octal:
            return f"the back-reference \\{char}"
        if (char.isalpha() and (char not in _ESCAPES or (of_set and char == "b"))) or not char.isascii():
            return f"{what} \\{char}"
        self._at, self._inside = self._at + 2, 1
        return ""

    def _set(self) -> str:
        self._at += 2 if self._text.startswith("[^", self._at) else 1
        first = True
        while self._text[self._at] != "]" or first:
            first = False
            if self._text[self._at] == "\\":
                if fact := self._escape("in a set the escape", of_set=True):
                    return fact
            elif named := re.compile(r"\[:\^?[a-z]+:\]").match(self._text, self._at):
                self._at = named.end()
            else:
                self._at += 1
        self._at, self._inside = self._at + 1, 1
        return ""

    def _open(self) -> str:
        if self._text.startswith("(?", self._at):
            group = _GROUP.match(self._text, self._at)
            if not group:
                return f"the group {self._text[self._at : self._at + 3]}"
            self._at = group.end()
            if group[0].endswith(")"):  # flags for what follows
                return ""
        else:
            self._at += 1
        self._counts.append(1)
        return ""

    def _repeat(self) -> str:
        count = _COUNT.match(self._text, self._at)
        most = max((int(one) for one in count.group(1, 3) if one), default=1) if count else 1
        if most * self._inside > MAX_REPEAT:
            return f"more than {MAX_REPEAT} repetitions"
        self._inside *= max(1, most)
        self._counts[-1] = max(self._counts[-1], self._inside)
        self._at = count.end() if count else self._at + 1
        if self._text.startswith("+", self._at):
            return "a possessive repetition"
        if self._text.startswith("?", self._at):
            self._at += 1
        return ""
