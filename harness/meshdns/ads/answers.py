"""What each pod is told: files of JSON to messages. A file is a pod's, NAME.json: type URL -> its resources."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory

from .types import NDS, TYPES, URL, Resource, name_of

_TYPE = re.compile(r'"@type": *"[^"]*/([\w.]+)"')
Told = Mapping[str, Mapping[str, any_pb2.Any]]  # type URL -> name of the resource -> it


def read(folder: Path) -> dict[str, Told]:
    """What stands in a folder, by pod."""
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.json"))}
    know(
        [*(url.removeprefix(URL) for url in TYPES), *(name for text in texts.values() for name in _TYPE.findall(text))]
    )
    return {pod: told(json.loads(text)) for pod, text in texts.items()}


def told(resources: Mapping[str, Iterable[Resource]]) -> Told:
    """Their messages."""
    return {url: {name_of(each): packed({"@type": url, **each}) for each in few} for url, few in resources.items()}


def packed(resource: Resource) -> any_pb2.Any:
    """Its message; ParseError if it is none."""
    return json_format.ParseDict(resource, any_pb2.Any())


def unpacked(message: any_pb2.Any) -> Resource:
    """Its JSON."""
    know([message.type_url.removeprefix(URL)])
    found: Resource = json_format.MessageToDict(message)
    return found


def know(names: Iterable[str]) -> None:
    """The messages of these full names can be read: their packages are imported, where they are not yet."""
    for package in sorted({name.rpartition(".")[0] for name in names}):
        if package == NDS.removeprefix(URL).rpartition(".")[0]:
            name_table()
        elif not package.startswith("google."):
            for module in _modules(package):
                importlib.import_module(module)


def _modules(package: str) -> Iterator[str]:
    found = importlib.import_module(package)
    yield from (f"{package}.{each.name}" for each in pkgutil.iter_modules(found.__path__) if each.name.endswith("_pb2"))


def name_table() -> Any:
    """Istio's own message, which no package holds (pkg/dns/proto/nds.proto)."""
    package = NDS.removeprefix(URL).rpartition(".")[0]
    pool = descriptor_pool.Default()
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="nds.proto", package=package, syntax="proto3")
    table = file.message_type.add(name="NameTable")
    info = table.nested_type.add(name="NameInfo")
    repeated = ("ips", "alt_hosts")
    for number, name in enumerate(("ips", "registry", "shortname", "namespace", "alt_hosts"), 1):
        label = field.LABEL_REPEATED if name in repeated else field.LABEL_OPTIONAL
        info.field.add(name=name, number=number, type=field.TYPE_STRING, label=label)
    entry = table.nested_type.add(name="TableEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    kind = {"type": field.TYPE_MESSAGE, "label": field.LABEL_OPTIONAL}
    entry.field.add(name="value", number=2, type_name=f".{package}.NameTable.NameInfo", **kind)
    whole = {"type": field.TYPE_MESSAGE, "label": field.LABEL_REPEATED}
    table.field.add(name="table", number=1, type_name=f".{package}.NameTable.TableEntry", **whole)
    pool.Add(file)  # the same again is nothing new
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.NameTable"))
