"""Resources as JSON to the bytes that Envoy reads, each content once.

What is the same in many sidecars is converted and kept once. A version is a hash of the content: it survives a restart
of the control plane, so that a sidecar that reconnects is sent nothing it already has.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import marshal
import pkgutil
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, json_format

from meshdns.core import errors
from meshdns.xds import api, collector, hickory, messages
from meshdns.xds.api import Json

CDS, EDS, LDS, RDS, SDS = api.CLUSTER, api.ENDPOINT, api.LISTENER, api.ROUTE, api.SECRET
SHORT = {CDS: "CDS", EDS: "EDS", LDS: "LDS", RDS: "RDS", SDS: "SDS"}
_VERSION_BYTES = 8  # two contents of one name meet by chance once in 2^32 changes


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Encoded:
    """One resource as it goes over the wire."""

    name: str
    version: str
    value: bytes
    endpoints: str = ""  # of a cluster: the name under which its endpoints are asked for


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Group:
    """All resources of one type for one node; equal groups are one object."""

    version: str
    resources: Mapping[str, Encoded]


Snapshot = Mapping[str, Group]  # by type URL
NOTHING = Group("", {})


class Encoder:
    """Keeps what somebody still uses, and nothing else."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[bytes, Encoded] = weakref.WeakValueDictionary()
        self._groups: weakref.WeakValueDictionary[tuple[str, str], Group] = weakref.WeakValueDictionary()
        self._seen: dict[int, tuple[Json, Encoded]] | None = (
            None  # by the dict itself, which lives as long as the entry
        )

    def snapshot(self, given: Mapping[str, Mapping[str, Json]]) -> dict[str, Group]:
        """Every resource of a node; DataError names the first that the protocol does not know."""
        return {type_url: self.group(type_url, resources) for type_url, resources in given.items()}

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Meanwhile, a dict that comes again is known by itself; it must not be changed."""
        self._seen = {}
        try:
            with collector.still():
                yield
        finally:
            self._seen = None

    def group(self, type_url: str, given: Mapping[str, Json]) -> Group:
        """The resources of one type."""
        resources = {name: self._encoded(type_url, name, body) for name, body in given.items()}
        version = digest(resources.values())
        key = type_url, version
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = Group(version, resources)
        return found

    def _encoded(self, type_url: str, name: str, body: Json) -> Encoded:
        if self._seen is not None and (seen := self._seen.get(id(body))):
            return seen[1]
        # Version 2 of marshal depends on nothing but the values and their order: five times as fast as JSON.
        key = hashlib.blake2b(marshal.dumps((type_url, name, body), 2), digest_size=16).digest()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = encode(type_url, name, body)
        if self._seen is not None:
            self._seen[id(body)] = body, found
        return found


def encode(type_url: str, name: str, body: Json) -> Encoded:
    """One resource; DataError says what in it the protocol does not know."""
    message = type_url.rpartition("/")[2]
    try:
        target = messages.parse(message, body)
    except (KeyError, json_format.ParseError):  # wrong, or of a type that was not needed before
        for wanted in {type_url, *_types(body)}:
            _load(wanted, name)
        try:
            target = messages.parse(message, body)
        except json_format.ParseError as error:
            raise errors.DataError(str(error), place=f"{SHORT.get(type_url, type_url)} resource {name}") from error
    value = target.SerializeToString(deterministic=True)
    identity = f"{type_url}\0{name}\0".encode()
    version = hashlib.blake2b(identity + value, digest_size=_VERSION_BYTES).hexdigest()
    return Encoded(name, version, value, _endpoints(target) if type_url == CDS else "")


def digest(resources: Iterable[Encoded]) -> str:
    """The version of a set of resources: the same for the same contents in any order."""
    return f"{sum(int(one.version, 16) for one in resources) % (1 << 8 * _VERSION_BYTES):016x}"


def _endpoints(cluster: Any) -> str:
    if cluster.type != type(cluster).EDS:
        return ""
    return str(cluster.eds_cluster_config.service_name or cluster.name)


def _types(value: object) -> Iterator[str]:
    """The types of every packed message."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "@type":
                yield str(one)
            else:
                yield from _types(one)
    elif isinstance(value, list):
        for one in value:
            yield from _types(one)


def _descriptor(type_url: str) -> Any:
    return descriptor_pool.Default().FindMessageTypeByName(type_url.rpartition("/")[2])


_LOADED: set[str] = set()


def _load(type_url: str, name: str) -> None:
    """The type is known to protobuf: the bindings of its package are imported when first needed."""
    if type_url in _LOADED:
        return
    package = ".".join(part for part in type_url.rpartition("/")[2].split(".")[:-1])
    try:
        if package == hickory.PACKAGE:
            hickory.register()
            _LOADED.add(type_url)
            return
        found = importlib.import_module(package)
        for one in pkgutil.iter_modules(found.__path__):
            if one.name.endswith("_pb2"):
                importlib.import_module(f"{package}.{one.name}")
        _descriptor(type_url)
    except (ImportError, KeyError, ValueError) as error:
        raise errors.DataError(f"no such type: {type_url}", place=f"resource {name}") from error
    _LOADED.add(type_url)
