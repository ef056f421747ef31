"""What comes from outside, read as what it must be: the one checker of plans, stored runs, worlds and configurations.

A `Field` is a value at its path. Reading never stops at a fault: a stand-in takes the value's place and the fault is
kept, so that one run shows all. It is asked for by name, where a mapping knows which of its fields were asked for (the
others are unsupported, and the asked ones say what is); or `read` takes all from a type.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ipaddress
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

from meshdns.core import errors

Labels = tuple[tuple[str, str], ...]  # sorted pairs: records stay hashable and comparable
_KINDS = {
    str: "text", bool: "a truth value", int: "a number", float: "a number", tuple: "a list", list: "a list",
    dict: "a mapping",
}  # fmt: skip
_WANTED = _KINDS | {bool: "true or false", int: "a whole number", type(None): "nothing"}
_MAX_SHOWN = 80  # characters of a value in a message
_LEVELS = "levels"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|h|m|s)")
_UNIT_MS = {
    "h": Fraction(3_600_000), "m": Fraction(60_000), "s": Fraction(1_000), "ms": Fraction(1),
    "us": Fraction(1, 1_000), "µs": Fraction(1, 1_000), "ns": Fraction(1, 1_000_000),
}  # fmt: skip
# The largest that is certainly inside Envoy's range, which ends at 292 years.
MAX_DURATION_MS = 876_000 * 3_600_000
_HEADER = re.compile(r":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2, and HTTP/2's pseudo headers
HEADER_STEP = "use letters, digits and dashes"
MAX_HOST = 253  # RFC 1035, in the text form without the final dot


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
    """One fact that makes what was given unusable, and the next step."""

    place: Place
    path: str  # of the field, as `spec.ports[0].name`; empty: the document itself
    fact: str
    step: str = ""

    def where(self) -> str:
        """Place and field."""
        return f"{self.place}: {self.path}" if self.path else str(self.place)

    def __str__(self) -> str:
        return f"{self.where()}: {self.fact}" + (f"; {self.step}" if self.step else "")


def refuse(faults: Sequence[Fault], what: str = "the mesh configuration") -> None:
    """Return if there is no fault; else InputError with one line for each, in the order of the files."""
    found = sorted(set(faults))
    if len(found) == 1:
        raise errors.InputError(found[0].fact, place=found[0].where(), step=found[0].step)
    if found:
        lines = "".join(f"\n  {fault}" for fault in found)
        raise errors.InputError(f"{what} has {len(found)} faults, so none of it is used:{lines}")


@dataclass(frozen=True)
class Document:
    """Mappings, sequences and scalars, as YAML, JSON and TOML have them; `lines` by container's identity and key."""

    file: str
    number: int = 0  # from 1
    root: Any = None
    line: int = 0
    lines: Mapping[tuple[int, str | int], int] = dataclasses.field(default_factory=dict)


class Bounds(NamedTuple):
    """The least and the greatest value, in a type's `Annotated` or from the caller."""

    low: float
    high: float


Limits = Mapping[str, Bounds | tuple[Any, ...]]  # field -> bounds or choices that its type cannot tell
Kind = TypeVar("Kind")
Member = TypeVar("Member")
Levels = typing.Annotated[tuple[Member, ...], _LEVELS]  # at least one, each once; a single one may stand alone


def read(kind: type[Kind], tree: object, place: str, limits: Limits | None = None) -> Kind:
    """The tree as a dataclass says; `place` names it in messages. InputError names every fault."""
    faults: list[Fault] = []
    found = Field(tree, "", Document(place), faults).record(kind, limits)
    refuse(faults, place)
    return typing.cast(Kind, found)


def stored(kind: type[Kind], tree: object, place: str) -> Kind:
    """What a meshdns wrote and nobody edits. Raises DataError."""
    faults: list[Fault] = []
    found = Field(tree, "", Document(place), faults).record(kind)
    step = "read it with the meshdns that wrote it (run.json has its commit), or copy or measure it again"
    for fault in faults[:1]:
        raise errors.DataError(fault.fact, place=fault.where(), step=step)
    return typing.cast(Kind, found)


@functools.cache
def _hints(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each field, and whether it must be there."""
    hints, none = typing.get_type_hints(kind, include_extras=True), dataclasses.MISSING
    return {
        each.name: (hints[each.name], each.default is none and each.default_factory is none)
        for each in dataclasses.fields(kind)
    }


def is_label(text: str) -> bool:
    """Whether text is a DNS label in lower case (RFC 1123), as Kubernetes asks of names."""
    return _LABEL.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Whether text is a DNS name in lower case without a final dot, and not an IP address."""
    return len(text) <= MAX_HOST and all(map(is_label, text.split("."))) and not is_address(text)


def is_header(text: str) -> bool:
    """Whether text is the name of a header, or of a pseudo header such as `:authority`."""
    return _HEADER.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def described(data: object) -> str:
    """What the value is, for messages."""
    if data is None:
        return "nothing"
    if isinstance(data, str):
        shown = repr(data)
    elif isinstance(data, tuple | list | dict):
        shown = f"{len(data)} {'entry' if len(data) == 1 else 'entries'}"
    else:
        shown = (
            str(data).lower() if isinstance(data, bool) else f"{data:.15g}" if isinstance(data, float) else str(data)
        )
    return f"{shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '...'} ({_KINDS.get(type(data), 'no value')})"


class Field:
    """One value, where it stands, and where its faults go."""

    def __init__(self, data: Any, path: str, document: Document, faults: list[Fault], line: int = 0) -> None:
        self.data, self.path, self.document, self.faults = data, path, document, faults
        self.line = line or document.line

    @property
    def place(self) -> Place:
        """File, document and line."""
        return Place(self.document.file, self.document.number, self.line)

    @property
    def faulty(self) -> bool:
        """Whether something is wrong with it, or inside."""
        inside = (f"{self.path}.", f"{self.path}[")
        return any(
            one.path == self.path or one.path.startswith(inside)
            for one in self.faults
            if (one.place.file, one.place.document) == (self.document.file, self.document.number)
        )

    def fault(self, fact: str, step: str = "") -> None:
        """Keep a fault of this field."""
        self.faults.append(Fault(self.place, self.path, fact, step))

    def _mismatch(self, wanted: str, step: str = "") -> None:
        self.fault(f"{described(self.data)} is not {wanted}", step)

    def _child(self, key: str | int) -> Field:
        path = f"{self.path}[{key}]" if isinstance(key, int) else f"{self.path}.{key}" if self.path else key
        line = self.document.lines.get((id(self.data), key), self.line)
        return Field(self.data[key], path, self.document, self.faults, line)

    def pairs(self) -> dict[str, Field]:
        """The value as a mapping whose keys are free."""
        if isinstance(self.data, dict):
            return {key: self._child(key) for key in self.data}
        self._mismatch("a mapping")
        return {}

    def fields(self) -> Fields:
        """The value as a mapping; use with `with`, which refuses what was not asked for."""
        return Fields(self, self.pairs())

    def items(self) -> list[Field]:
        """The value as a list."""
        if isinstance(self.data, tuple | list):
            return [self._child(number) for number in range(len(self.data))]
        self._mismatch("a list")
        return []

    def into(self, kind: Any, limit: Bounds | tuple[Any, ...] | None = None) -> Any:
        """The value as a type says; `limit` is of scalars, and stands before that of the type."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated and inner[1] == _LEVELS:
            return self._levels(typing.get_args(inner[0])[0], limit)
        if origin is typing.Annotated:
            return self.into(inner[0], limit or inner[1])
        if dataclasses.is_dataclass(kind):
            return self.record(kind)
        if origin in (tuple, list):
            return origin(each.into(inner[0], limit) for each in self.items())
        if origin in (dict, Mapping):
            known = {*typing.get_args(inner[1])} or {inner[1]}
            sound = isinstance(self.data, dict) and (Any in known or {*map(type, self.data.values())} <= known)
            return self.data if sound else {key: each.into(inner[1]) for key, each in self.pairs().items()}
        return self._scalar(inner if isinstance(kind, types.UnionType) else (kind,), limit)

    def record(self, kind: Any, limits: Limits | None = None) -> Any:
        """The value as a dataclass, or nothing where there is a fault."""
        hints, limits = _hints(kind), limits or {}
        data = self.data if isinstance(self.data, dict) else self.pairs()
        if unknown := sorted(data.keys() - hints.keys()):
            self.fault(f"unknown key {', '.join(unknown)}", f"known keys are {', '.join(sorted(hints))}")
        elif missing := [name for name, (_, needed) in hints.items() if needed and name not in data]:
            self.fault(f"{', '.join(missing)} is missing", "add it")
        values = {}
        for name, each in data.items():
            wanted = hints[name][0] if name in hints else type(each)
            sound = type(each) is wanted and name not in limits
            values[name] = each if sound else self._child(name).into(wanted, limits.get(name))
        return None if self.faults else kind(**values)

    def _levels(self, kind: Any, limit: Bounds | tuple[Any, ...] | None) -> tuple[Any, ...]:
        each = [one.into(kind, limit) for one in (self.items() if isinstance(self.data, tuple | list) else [self])]
        if not each:
            self.fault("has no levels", "give at least one")
        elif len(set(each)) != len(each) and not self.faulty:
            self.fault("names a level twice", "leave one of them out")
        return tuple(each)

    def _scalar(self, kinds: tuple[Any, ...], limit: Bounds | tuple[Any, ...] | None) -> Any:
        data = self.data
        step = "put it in quotes" if str in kinds and isinstance(data, bool | int | float) else ""
        if isinstance(limit, Bounds):
            step = f"give {limit.low:.12g} to {limit.high:.12g}"
        if Any in kinds:
            return data
        if type(data) not in kinds and not (type(data) is int and float in kinds):
            self._mismatch(" or ".join(_WANTED[kind] for kind in kinds), step)
        elif isinstance(limit, Bounds) and not limit.low <= data <= limit.high:
            self._mismatch("in range", step)
        elif limit and not isinstance(limit, Bounds) and data not in limit:
            self.fault(f"{described(data)} is unknown", f"choose from {', '.join(map(str, limit))}")
        elif type(data) not in kinds and abs(data) > sys.float_info.max:
            self._mismatch("in range", "give a smaller one")
        else:
            return data if type(data) in kinds else float(data)
        return None

    def text(self) -> str:
        """The value as text; a number is refused, because `1` and "1" are not the same label."""
        return self._scalar((str,), None) or ""

    def integer(self, low: int, high: int) -> int:
        """The value as a whole number in a range."""
        found = self._scalar((int,), Bounds(low, high))
        return low if found is None else int(found)

    def number(self, low: float, high: float) -> float:
        """The value as a number in a range."""
        found = self._scalar((float,), Bounds(low, high))
        return low if found is None else float(found)

    def boolean(self) -> bool:
        """The value as true or false."""
        return self._scalar((bool,), None) is True

    def choice(self, allowed: Sequence[str]) -> str:
        """The value as one of the words."""
        if self.data in allowed:
            return str(self.data)
        self.fault(f"{described(self.data)} is not supported here", f"supported: {', '.join(allowed)}")
        return allowed[0]

    def duration_ms(self, *, zero: bool = False) -> int:
        """The value as a duration in Go's form, in milliseconds; Istio takes whole ones from 1 ms on, some from 0."""
        text = self.text()
        parts = _DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) != text or not parts:
            if text:
                self._mismatch("a duration", "write it as 5s, 250ms or 1m30s")
            return 1
        total = sum((Fraction(number) * _UNIT_MS[unit] for number, unit in parts), Fraction())
        if (total < 1 and not (zero and total == 0)) or total.denominator != 1:
            self.fault(f"{text} is not a whole number of milliseconds above zero", "give 1ms or more")
            return 1
        if total > MAX_DURATION_MS:
            self.fault(f"{text} is longer than 100 years", f"give {MAX_DURATION_MS // 3_600_000}h at most")
            return 1
        return int(total)

    def address(self) -> str:
        """The value as an IP address in its shortest form."""
        text = self.text()
        if not text:
            return "0.0.0.0"  # noqa: S104  a stand-in, never used: there is a fault
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            self._mismatch("an IP address")
            return "0.0.0.0"  # noqa: S104

    def network(self) -> str:
        """The value as an address or a CIDR block; a block of one address is that address."""
        text = self.text()
        if "/" not in text:
            return self.address()
        try:
            net = ipaddress.ip_network(text, strict=False)  # as Istio: 192.0.2.1/24 is all of 192.0.2.0/24
        except ValueError as error:
            self.fault(f"{text!r} is not a CIDR block: {error}")
            return "0.0.0.0/0"
        return str(net.network_address) if net.num_addresses == 1 else str(net)

    def host(self) -> str:
        """The value as a DNS name in lower case, with or without `*.` in front."""
        text = self.text()
        if text and not is_host(text.removeprefix("*.")):
            step = "a host has lower-case letters, digits and dashes between dots, and `*.` at most in front"
            self._mismatch("a host name", step)
        return text

    def labels(self) -> Labels:
        """The value as a mapping of text to text, sorted."""
        return tuple(sorted((key, each.text()) for key, each in self.pairs().items()))

    def time_s(self) -> int:
        """The value as an RFC 3339 time, in seconds since 1970."""
        text = self.text()
        try:
            time = datetime.datetime.fromisoformat(text)
            return int((time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp())
        except (ValueError, OverflowError):
            if text:
                self._mismatch("a time", "write it as 2026-01-31T12:00:00Z")
            return 0


class Fields:
    """A mapping being read field by field."""

    def __init__(self, at: Field, data: dict[str, Field]) -> None:
        self.at, self.data = at, data
        self.asked: dict[str, None] = {}  # a set that keeps the order of asking

    def __enter__(self) -> Fields:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            for name in self.data.keys() - self.asked.keys():
                self.data[name].fault("this field is not supported", f"supported: {', '.join(self.asked)}")

    def ignore(self, *names: str) -> None:
        """Fields that may be there and change nothing in this model."""
        self.asked.update(dict.fromkeys(names))

    def get(self, name: str) -> Field | None:
        """The field, or None where it is absent or null."""
        self.asked[name] = None
        found = self.data.get(name)
        return found if found and found.data is not None else None

    def pairs(self, name: str) -> dict[str, Field]:
        """The field as a mapping whose keys are free, an empty one where it is absent."""
        field = self.get(name)
        return field.pairs() if field else {}

    def need(self, name: str) -> Field | None:
        """The field; absent is a fault."""
        if (field := self.get(name)) is None:
            self.at.fault(f"the field {name} is missing")
        return field

    def within(self, name: str) -> Fields:
        """The field as a mapping, an empty one where it is absent."""
        field = self.get(name)
        return field.fields() if field else Fields(self.at, {})

    def each(self, name: str) -> list[Field]:
        """The field as a list, an empty one where it is absent."""
        field = self.get(name)
        return field.items() if field else []

    def some(self, name: str) -> list[Field]:
        """The field as a list with at least one entry."""
        field = self.need(name)
        items = field.items() if field else []
        if field and not items and isinstance(field.data, tuple | list):
            field.fault("the list is empty", "give at least one entry")
        return items

    def text(self, name: str, default: str = "") -> str:
        """The field as text."""
        return field.text() if (field := self.get(name)) else default

    def boolean(self, name: str, default: bool = False) -> bool:
        """The field as true or false."""
        return field.boolean() if (field := self.get(name)) else default

    def integer(self, name: str, low: int, high: int) -> int | None:
        """The field as a whole number, None where it is absent."""
        return field.integer(low, high) if (field := self.get(name)) else None

    def duration_ms(self, name: str) -> int | None:
        """The field as a duration in milliseconds, None where it is absent."""
        return field.duration_ms() if (field := self.get(name)) else None

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """The field as one of the words; absent is the first."""
        return field.choice(allowed) if (field := self.get(name)) else allowed[0]

    def labels(self, name: str) -> Labels:
        """The field as labels."""
        return field.labels() if (field := self.get(name)) else ()
