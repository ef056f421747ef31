"""YAML text as documents that know their lines.

Stricter than YAML where a configuration is never meant that way: a key twice, a tag of one's own are faults. An alias
stands for its value, up to a size that no configuration reaches. Nodes are composed here: libyaml's composer recurses
in C, and would end the process where a text nests deeply.
Scalars are typed as Kubernetes' reader does it (YAML 1.2): `yes`, `on` and `1:30` are text, not truth or sixty-fold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yaml.composer import Composer

from meshdns.core.schema import Document, Fault, Place

Scalar = str | int | float | bool | None
MAX_REPEATED = 10_000  # values of one document that aliases repeat
MAX_DEPTH = 60  # published resources nest to 12; far deeper is an accident or an attack on the reader
MOST_DEPTH = 1000  # nor worth reading on behind: libyaml's time grows with the square of it
TOO_DEEP = "nested too deeply to be a configuration"
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is there in every published wheel
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {_TAG + name for name in ("str", "timestamp", "value")}
# Not 012, which is ten to some readers and twelve to others, and no number so long that no field could take it.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30}|0x[0-9a-fA-F]{1,16})")
_FLOAT = re.compile(r"[-+]?([0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30}|[0-9]{1,30})([eE][-+]?[0-9]{1,3})?")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def parse(text: str, file: str, faults: list[Fault]) -> list[Document]:
    """The documents that are not empty; what cannot be read is added to `faults`."""
    found: list[Document] = []
    number = 0
    try:
        for number, node in enumerate(_nodes(text), start=1):
            builder = _Builder(file, number, faults)
            if node is not None and (root := builder.value(node, 0)) is not None:
                found.append(Document(file, number, root, node.start_mark.line + 1, builder.lines))
    except _DeepError as error:
        faults.append(Fault(Place(file, number + 1, error.line), "", TOO_DEEP))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        faults.append(Fault(Place(file, number + 1, mark.line + 1 if mark else 0), "", f"not YAML: {what}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, text.find(chr(error.character))) + 1  # it may stand nowhere, so this is the first
        what = f"not YAML: the character U+{error.character:04X} may not stand here"
        faults.append(Fault(Place(file, 0, line), "", what))
    except yaml.YAMLError as error:
        faults.append(Fault(Place(file), "", f"not YAML: {' '.join(str(error).split())}"))
    return found


def _nodes(text: str) -> Iterator[yaml.Node | None]:
    """Nodes of each document; unlike `compose_all`, an empty document is counted too."""
    loader = _Loader(text)
    try:
        while loader.check_node():
            yield loader.get_node()
    finally:
        loader.dispose()


class _DeepError(Exception):
    """Deeper than what is passed over."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


class _Composer(Composer):
    """Nodes from a parser's events; a collection below `MAX_DEPTH` is passed over, and stands for nothing."""

    get_event: Callable[[], Any]  # the parser's
    _depth = 0

    def compose_sequence_node(self, anchor: Any) -> Any:  # the stubs call the anchor's name a mapping
        return self._composed(super().compose_sequence_node, anchor)

    def compose_mapping_node(self, anchor: Any) -> Any:
        return self._composed(super().compose_mapping_node, anchor)

    def _composed(self, compose: Callable[[Any], yaml.Node], anchor: Any) -> yaml.Node:
        if self._depth > MAX_DEPTH:
            return self._passed_over(anchor)
        self._depth += 1
        node = compose(anchor)
        self._depth -= 1
        return node

    def _passed_over(self, anchor: Any) -> yaml.Node:
        start = event = self.get_event()
        depth = self._depth + 1
        while depth > self._depth:
            if depth > MOST_DEPTH:
                raise _DeepError(event.start_mark.line + 1)
            event = self.get_event()
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        node = yaml.ScalarNode(f"{_TAG}null", "", start.start_mark, event.end_mark)
        if anchor:
            self.anchors[anchor] = node
        return node


class _Loader(_Composer, _PARSER):  # type: ignore[misc, valid-type]  # known at run time only
    def __init__(self, text: str) -> None:
        _PARSER.__init__(self, text)
        Composer.__init__(self)


class _Builder:
    def __init__(self, file: str, number: int, faults: list[Fault]) -> None:
        self.file, self.number, self.faults = file, number, faults
        self.seen: set[int] = set()
        self.lines: dict[tuple[int, str | int], int] = {}
        self.repeated = 0

    def fault(self, line: int, fact: str, step: str = "") -> None:
        self.faults.append(Fault(Place(self.file, self.number, line), "", fact, step))

    def value(self, node: yaml.Node, depth: int) -> Any:
        line = node.start_mark.line + 1
        if id(node) in self.seen and self.full(line):
            return None
        self.seen.add(id(node))
        if depth > MAX_DEPTH:
            self.fault(line, TOO_DEEP)
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if not isinstance(node, yaml.SequenceNode):
            return self.scalar(node)
        found = [self.value(child, depth + 1) for child in node.value]
        self.lines.update(((id(found), n), child.start_mark.line + 1) for n, child in enumerate(node.value))
        return found

    def full(self, line: int) -> bool:
        """Whether aliases have repeated all that they may."""
        self.repeated += 1
        if self.repeated == MAX_REPEATED:
            self.fault(line, f"aliases repeat more than {MAX_REPEATED} values", "write them out")
        return self.repeated >= MAX_REPEATED

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.fault(line, "a key must be text")
                continue
            if key.tag == f"{_TAG}merge":
                self.fault(line, "the merge key << is not supported", "write its fields out")
                continue
            if key.value in found:
                first = self.lines[id(found), key.value]
                self.fault(line, f"the key {key.value} stands here twice, first in line {first}", "keep one")
                continue
            found[key.value], self.lines[id(found), key.value] = self.value(child, depth + 1), line
        return found

    def scalar(self, node: yaml.Node) -> Scalar:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        if node.tag in _TEXT_TAGS:
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return _TRUTH.get(text, text)
        if kind == "int":
            return int(text, 0) if _INTEGER.fullmatch(text) else text
        if kind == "float":
            return float(text) if _FLOAT.fullmatch(text) else text
        self.fault(node.start_mark.line + 1, f"the YAML tag {node.tag} is not supported", "write a plain value")
        return None
