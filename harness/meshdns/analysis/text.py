"""How tables read: their headings, their cells, and the phrases of which answers are made.

Tables that are computed have identifiers as columns (`p50`, `delay_ms`) and values as cells; what people read in their
place is here, and what is of one study in the `Words` of its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from IPython.display import Markdown
from jinja2 import Template

from meshdns.analysis import absent, stats
from meshdns.core import units

ABSENT = "–"  # not measured, or too few samples; never a zero
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def interval(each: stats.Interval | None, *, signed: bool = False) -> str:
    """`143 ± 4 µs`; the estimate is in nanoseconds."""
    return ABSENT if each is None or not each.n else units.interval(each, signed=signed)


def microseconds(each: stats.Interval) -> str:
    """`143 ± 4 µs`, in µs whatever the size: for columns that are compared by eye."""
    return ABSENT if not each.n else units.interval(each, "µs")


def percent(each: stats.Interval) -> str:
    """`+3.1 % [2.0, 4.2]`; of nothing there is no share."""
    return ABSENT if not each.n or not np.isfinite(each.estimate) else units.percent_interval(each)


def word(difference: stats.Difference) -> str:
    """`less` or `more`: the sign of the mean difference, and the only place that decides it."""
    return "less" if difference.absolute.estimate < 0 else "more"


def size(difference: stats.Difference) -> str:
    """`61 % [58, 64] less` or `3.1 % [2.0, 4.2] more`; where the ratios of the blocks tell another story, that too.

    Each block counts alike in the ratio, and by its slowness in the mean difference, so that the two can disagree.
    """
    said, relative = word(difference), difference.relative
    sign = -1 if said == "less" else 1
    if not np.isfinite(relative.estimate):
        return f"{interval(turned(difference.absolute, sign))} {said}"
    if sign * relative.estimate < 0:
        beside = f"the mean of the blocks' ratios is {percent(relative)}"
        return f"{interval(turned(difference.absolute, sign))} {said} ({beside})"
    share = f"{units.percent_interval(turned(relative, sign)).lstrip('+')} {said}"
    doubtful = difference.clear and relative.holds(0.0)
    return f"{share} (clear in µs, not as a share)" if doubtful else share


def turned(each: stats.Interval, sign: int) -> stats.Interval:
    """The same told the other way round if `sign` is -1."""
    low, high = sorted((sign * each.low, sign * each.high))
    return stats.Interval(sign * each.estimate, low, high, each.n)


UNRESOLVED = "not resolved"  # how the reading of a difference begins whose sign the data do not tell
BASELINE = "the baseline"  # reading of what the others are compared with
TWIN = "the noise floor"  # reading of an arm against its equal: what they differ by is noise, whatever it is
CLEAR = ("less", "more")  # readings that tell a difference


def reading(difference: stats.Difference | None, floor: stats.NoiseFloor | None) -> str:
    """What may be said of a difference: the one place that decides it, for tables, sentences and claims alike."""
    if difference is None:
        return "not measured"
    if difference.absolute.n < 2:
        return "one block: no interval"
    span = units.span(difference.absolute)
    if not difference.clear:
        return f"{UNRESOLVED} ({span})"
    if floor is not None and floor.hides(difference):
        told = units.duration(floor.absolute) if floor.hides_duration(difference) else units.percent(floor.relative)
        return f"{UNRESOLVED} ({span}; noise floor {told})"
    return word(difference)


class Shown(pd.DataFrame):
    """A table that a notebook shows whole, with words of its own: pandas would cut long sentences and long tables."""

    _metadata = ("words",)
    words: str = ""

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            whole = self.to_html(border=0)
        return str(_WITH_WORDS.render(table=whole, words=self.words)) if self.words else whole


_WITH_WORDS = Template("{{ table|safe }}<p>{{ words }}</p>", autoescape=True)


_UNITS = {"ns": "ns", "us": "µs", "ms": "ms", "s": "s", "mb": "MB", "kb": "kB", "percent": "%", "hz": "/s"}


@dataclass(frozen=True)
class Words:
    """What people read in the place of a table's identifiers."""

    headings: Mapping[str, str] = field(default_factory=dict)  # of columns, where `heading` does not say it
    values: Mapping[str, Mapping[Any, object]] = field(default_factory=dict)  # column -> value -> as it is read
    left_out: str = ""  # why a table leaves arms out

    def heading(self, column: str) -> str:
        """`delay_ms` is read as `delay, ms`, and `name_kind` as `name kind`, where nothing else is said."""
        words, _, unit = column.rpartition("_")
        usual = f"{words.replace('_', ' ')}, {_UNITS[unit]}" if words and unit in _UNITS else column.replace("_", " ")
        return self.headings.get(column, usual)

    def value(self, column: str, value: object) -> object:
        """As it is read in that column."""
        return self.values.get(column, {}).get(value, value)


def shown(table: pd.DataFrame, words: Words = Words(), columns: Sequence[str] | None = None) -> Shown | absent.Absent:
    """The table, or these columns of it, as people read it: intervals with units, differences in µs and in %.

    Columns of raw values are left out. Without a row it says whether that was not measured, as the table knows, or
    nothing is there.
    """
    arms = table.attrs.get(absent.LEFT_OUT, ())
    beside = f"Left out here: {', '.join(arms)}. {words.left_out}".rstrip() if arms else ""
    if table.empty:
        missing = absent.known(table)
        if missing and not arms:
            return absent.Absent(missing)
        table = pd.DataFrame({"": ["nothing to list"]})
        columns = None
    out: dict[str, Any] = {}
    for column, cells in (table if columns is None else table[[*columns]]).items():
        name = str(column)
        values: list[Any] = [words.value(name, each) for each in cells] if name in words.values else [*cells]
        said, kinds = words.heading(name), {type(value) for value in values} - {type(None)}
        if kinds == {np.ndarray}:
            continue
        if kinds == {stats.Difference}:
            out[f"{said}, µs"] = [ABSENT if each is None else interval(each.absolute, signed=True) for each in values]
            out[f"{said}, %"] = [ABSENT if each is None else percent(each.relative) for each in values]
        else:
            out[said] = [_cell(value) for value in values]
    whole = Shown(out, index=[""] * len(table))  # row numbers would read as data
    whole.words = beside
    return whole


_READ: Mapping[type, Callable[[Any], str]] = {
    stats.Interval: microseconds,  # one of something else than time reads itself
    stats.Pooled: lambda each: (
        ABSENT if np.isnan(each.value_ns) else f"{units.duration(each.value_ns, 'µs')} (blocks pooled)"
    ),
    **dict.fromkeys((bool, np.bool_), lambda each: "yes" if each else "no"),
    tuple: lambda each: ", ".join(map(str, each)) or ABSENT,
    dict: lambda each: ", ".join(f"{count} {name}" for name, count in each.items()) or ABSENT,
}


def _cell(value: object) -> object:
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return ABSENT
    if read := _READ.get(type(value)):
        return read(value)
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else units.number(value)
    return value


def said(sentences: Sequence[str]) -> Markdown:
    """Sentences as paragraphs of a page; what they quote of stored runs is text, neither HTML nor a link."""
    words = (re.sub(r"[\\<]|(?<=\])\(|(?<=:)/(?=/)", r"\\\g<0>", each) for each in sentences if each)
    return Markdown("\n\n".join(words))  # type: ignore[no-untyped-call]


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, both in their order."""
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def blocks(n: int) -> str:
    """`20 blocks`."""
    return f"{n} block{'s' * (n != 1)}"


def listed(names: Iterable[str], last: str = "and") -> str:
    """`a, b and c`."""
    *front, end = [*names] or [""]
    return f" {last} ".join([*filter(None, [", ".join(front)]), end])
