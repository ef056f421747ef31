"""The name table: which names are ours, under which other forms, and where they point. After Istio's agent.

`read` takes the JSON text piece by piece, so that a large table can be taken over between two queries; `NameTable.find`
answers one name. Reference: Istio pkg/dns/client (lookup) and pkg/dns/server (contents).
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import wire

KUBERNETES = "Kubernetes"
SLICE = 16  # hosts taken over between two looks at the sockets: some 0.2 ms
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(parse_int=float)  # nothing here is a number, and int() refuses long ones


class TableError(Exception):
    """The text is not a name table; the message says what and where."""


class Addresses(NamedTuple):
    """A host's addresses, packed one after the other."""

    v4: bytes
    v6: bytes


class Found(NamedTuple):
    """What is known about a name."""

    addresses: Addresses
    alias: bytes  # name of the CNAME's target, or b"" where the name itself owns the addresses


@dataclass(frozen=True)
class Scope:
    """Where the proxy stands: what decides which short forms of a service are its own."""

    namespace: str
    domain: str  # the cluster's, e.g. cluster.local
    search: tuple[str, ...]  # resolv.conf's list
    all_search: bool = False  # answer every search domain, not the first only as Istio


@dataclass
class NameTable:
    """Names in wire form and lower case -> addresses."""

    searches: list[bytes] = field(default_factory=list)
    names: dict[bytes, Addresses] = field(default_factory=dict)
    wildcards: dict[bytes, Addresses] = field(default_factory=dict)  # by the name without its `*` label
    hosts: int = 0
    left_out: list[str] = field(default_factory=list)  # hosts and addresses that cannot be used

    def find(self, name: bytes) -> Found | None:
        """Exact name, then a name of ours below a search domain, then the longest wildcard; None if it is not ours."""
        if exact := self.names.get(name):
            return Found(exact, b"")
        for search in self.searches:
            base = _below(name, search)
            if base and (known := self.names.get(base)):
                return Found(known, base)
        return self._wildcard(name) if self.wildcards else None

    def _wildcard(self, name: bytes) -> Found | None:
        bases = [base for search in self.searches if (base := _below(name, search))]
        for place in wire.parents(name)[1:]:
            parent = name[place:]
            if known := self.wildcards.get(parent):
                return Found(known, b"")
            for base in bases:
                # The same parent without the search domain: `*.example.com` also owns a.example.com.<search>.
                if place < len(base) - 1 and (known := self.wildcards.get(base[place:])):
                    return Found(known, base)
        return None


def _below(name: bytes, search: bytes) -> bytes:
    """The name without the search domain; b"" unless it ends in it once.

    Where the bytes match within a label, what remains ends in half a label, which no table holds.
    """
    if not name.endswith(search):
        return b""
    base = name[: -len(search)] + b"\0"
    return b"" if base == b"\0" or base.endswith(search) else base


def read(text: str, scope: Scope) -> Generator[None, None, NameTable]:
    """Takes the table over in slices; returns it at the end. Raises TableError."""
    searches = []
    for search in scope.search[: None if scope.all_search else 1]:
        try:
            searches.append(wire.encode_name(search))
        except ValueError:
            continue  # no query can end in it
    table = NameTable(searches)
    aliases: list[tuple[list[str], Addresses]] = []
    for number, (host, entry) in enumerate(_entries(text), 1):
        _take(table, aliases, host, entry, scope)
        if number % SLICE == 0:
            yield
    # Other forms come last: none may hide a host of the table.
    for number, (forms, known) in enumerate(aliases, 1):
        for form in forms:
            try:
                table.names.setdefault(wire.encode_name(form), known)
            except ValueError as error:
                table.left_out.append(str(error))
        if number % SLICE == 0:
            yield
    return table


def _take(table: NameTable, aliases: list[tuple[list[str], Addresses]], host: str, entry: Any, scope: Scope) -> None:
    if not isinstance(entry, dict):
        raise TableError(f"the entry of {host!r} is not an object")
    found = addresses(table, host, _strings(host, entry, "ips"))
    try:
        name = wire.encode_name(host)
    except ValueError as error:
        table.left_out.append(str(error))
        return
    forms = _forms(host, entry, scope)
    if not (found.v4 or found.v6):  # as in Istio: the name is asked upstream
        return
    table.hosts += 1
    if name.startswith(b"\1*") and name != b"\1*\0":  # a lone `*` stands for nothing
        table.wildcards[name[2:]] = found
    table.names[name] = found
    if forms:
        aliases.append((forms, found))


def _forms(host: str, entry: dict[str, Any], scope: Scope) -> list[str]:
    """Other names of a Kubernetes service: name.ns, name.ns.svc, alt_hosts, and name in its namespace; no others."""
    kubernetes = _string(host, entry, "registry") == KUBERNETES
    namespace, short = _string(host, entry, "namespace"), _string(host, entry, "shortname")
    alternatives = _strings(host, entry, "alt_hosts")
    if not kubernetes or not host.lower().endswith(f".svc.{scope.domain.lower()}"):
        return []  # another cluster's short names would clash with ours; nor has a host that ends in a dot any
    forms = [f"{short}.{namespace}", f"{short}.{namespace}.svc"] if short and namespace else []
    if short and namespace == scope.namespace:
        forms.append(short)
    return forms + alternatives


def addresses(table: NameTable, host: str, texts: list[str]) -> Addresses:
    """Those that are some, each once; the table is told of the others."""
    v4, v6 = [], []
    for text in texts:
        try:
            if ":" not in text:
                v4.append(socket.inet_pton(socket.AF_INET, text))
            else:  # as in Istio also where it is an IPv4 address in IPv6's clothes
                v6.append(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):
            table.left_out.append(f"{text!r} of {host!r} is not an address")
    return Addresses(b"".join(dict.fromkeys(v4)), b"".join(dict.fromkeys(v6)))


def _string(host: str, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise TableError(f"{key} of {host!r} is not a string")
    return value


def _strings(host: str, entry: dict[str, Any], key: str) -> list[str]:
    value = entry.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TableError(f"{key} of {host!r} is not a list of strings")
    return value


def _entries(text: str) -> Iterator[tuple[str, Any]]:
    """The members of the object under "table", one at a time: the whole is never held as objects."""
    reader = _Reader(text)
    seen = False
    try:
        for key in reader.members():
            if key != "table":
                reader.value()
                continue
            seen = True
            for host in reader.members():
                yield host, reader.value()
        reader.finish()
    except json.JSONDecodeError as error:
        raise TableError(f"not JSON: {error}") from None
    except RecursionError:
        raise TableError("nested too deeply") from None
    if not seen:
        raise TableError('there is no "table"')


class _Reader:
    """Steps through a JSON text; where a value is expected, the caller reads it before the next step."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def members(self) -> Iterator[str]:
        """The names of the object that stands here."""
        self._expect("{")
        if self._peek() == "}":
            self._expect("}")
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                raise json.JSONDecodeError("a name in quotes is missing", self._text, self._at)
            self._expect(":")
            yield name
            if self._expect(",}") == "}":
                return

    def value(self) -> Any:
        """The value that stands here."""
        self._skip()
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        return value

    def finish(self) -> None:
        """Nothing else may follow."""
        self._skip()
        if self._at != len(self._text):
            raise json.JSONDecodeError("something follows the object", self._text, self._at)

    def _skip(self) -> None:
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches anywhere

    def _peek(self) -> str:
        self._skip()
        return self._text[self._at : self._at + 1]

    def _expect(self, characters: str) -> str:
        here = self._peek()
        if not here or here not in characters:
            raise json.JSONDecodeError(f"{' or '.join(characters)} is missing", self._text, self._at)
        self._at += 1
        return here
