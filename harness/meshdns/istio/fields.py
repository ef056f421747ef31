"""A value at its path, read as what it must be.

Reading never stops at a fault: a stand-in takes the value's place and the fault is kept, so that one run shows all.
A mapping knows which of its fields were asked for: the others are unsupported, and the asked ones say what is.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType

from meshdns.istio.documents import Document, Value
from meshdns.istio.faults import Fault, Place

Labels = tuple[tuple[str, str], ...]  # sorted pairs: records stay hashable and comparable
_KINDS = {str: "text", bool: "a truth value", int: "a number", float: "a number", tuple: "a list", dict: "a mapping"}
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


def described(value: Value) -> str:
    """What the value is, for messages."""
    if isinstance(value.data, str):
        return f"{value.data!r} (text)"
    return "nothing" if value.data is None else f"{_shown(value)} ({_KINDS[type(value.data)]})"


def _shown(value: Value) -> str:
    if isinstance(value.data, bool):
        return str(value.data).lower()
    return f"{len(value.data)} entries" if isinstance(value.data, tuple | dict) else str(value.data)


class Field:
    """One value, where it stands, and where its faults go."""

    def __init__(self, value: Value, path: str, document: Document, faults: list[Fault]) -> None:
        self.value, self.path, self.document, self.faults = value, path, document, faults

    @property
    def place(self) -> Place:
        """File, document and line."""
        return Place(self.document.file, self.document.number, self.value.line)

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
        self.fault(f"{described(self.value)} is not {wanted}", step)

    def fields(self) -> Fields:
        """The value as a mapping; use with `with`, which refuses what was not asked for."""
        data = self.value.data
        if not isinstance(data, dict):
            self._mismatch("a mapping")
            data = {}
        return Fields(self, data)

    def items(self) -> list[Field]:
        """The value as a list."""
        data = self.value.data
        if not isinstance(data, tuple):
            self._mismatch("a list")
            return []
        return [Field(item, f"{self.path}[{n}]", self.document, self.faults) for n, item in enumerate(data)]

    def text(self) -> str:
        """The value as text; a number is refused, because `1` and "1" are not the same label."""
        if isinstance(self.value.data, str):
            return self.value.data
        scalar = not isinstance(self.value.data, tuple | dict)
        self._mismatch("text", "put it in quotes" if scalar and self.value.data is not None else "")
        return ""

    def integer(self, low: int, high: int) -> int:
        """The value as a whole number in a range."""
        data = self.value.data
        if isinstance(data, int) and not isinstance(data, bool) and low <= data <= high:
            return data
        self._mismatch("a whole number" if not isinstance(data, int) else "in range", f"give {low} to {high}")
        return low

    def number(self, low: float, high: float) -> float:
        """The value as a number in a range."""
        data = self.value.data
        if isinstance(data, int | float) and not isinstance(data, bool) and low <= data <= high:
            return float(data)
        self._mismatch("such a number", f"give {low:g} to {high:g}")
        return low

    def boolean(self) -> bool:
        """The value as true or false."""
        if not isinstance(self.value.data, bool):
            self._mismatch("true or false")
        return self.value.data is True

    def choice(self, allowed: Sequence[str]) -> str:
        """The value as one of the words."""
        if self.value.data in allowed:
            return str(self.value.data)
        self.fault(f"{described(self.value)} is not supported here", f"supported: {', '.join(allowed)}")
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
        data = self.value.data
        if not isinstance(data, dict):
            self._mismatch("a mapping of text to text")
            return ()
        return tuple(sorted((key, child.text()) for key, child in self.children(data)))

    def children(self, data: dict[str, Value]) -> list[tuple[str, Field]]:
        """Keys and values of a mapping whose keys are free."""
        return [(key, Field(child, f"{self.path}.{key}", self.document, self.faults)) for key, child in data.items()]

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

    def __init__(self, at: Field, data: dict[str, Value]) -> None:
        self.at, self.data = at, data
        self.asked: dict[str, None] = {}  # a set that keeps the order of asking

    def __enter__(self) -> Fields:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            for name in self.data.keys() - self.asked.keys():
                self._field(name).fault("this field is not supported", f"supported: {', '.join(self.asked)}")

    def _field(self, name: str) -> Field:
        path = f"{self.at.path}.{name}" if self.at.path else name
        return Field(self.data[name], path, self.at.document, self.at.faults)

    def ignore(self, *names: str) -> None:
        """Fields that may be there and change nothing in this model."""
        self.asked.update(dict.fromkeys(names))

    def get(self, name: str) -> Field | None:
        """The field, or None where it is absent or null."""
        self.asked[name] = None
        return self._field(name) if name in self.data and self.data[name].data is not None else None

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
        if field and not items and isinstance(field.value.data, tuple):
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
