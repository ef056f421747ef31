"""Whatever is given, it is read as its type says or refused with its place; nothing else is raised."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns import store
from meshdns.core import errors, schema
from meshdns.core.schema import Bounds, Levels
from meshdns.core.world import World
from meshdns.store import samples

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Part:
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    name: str
    count: Annotated[int, Bounds(1, 5)] = 1
    rate_hz: Levels[float] = (0.0,)
    words: Levels[str] = ("a",)
    flag: bool = False
    until: str | None = None
    shares: dict[str, int | float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def said(**given: object) -> str:
    with pytest.raises(errors.InputError) as caught:
        schema.read(Whole, given, "file", {"words": ("a", "b")})
    return str(caught.value)


def test_values_have_the_types_that_were_asked_for() -> None:
    tree = {"name": "x", "rate_hz": [1, 2.5], "words": "b", "shares": {"a": 1, "b": 2.0}, "parts": [{"at": [1, 2]}]}
    read = schema.read(Whole, tree | {"more": {"any": [None]}, "until": None}, "file", {"words": ("a", "b")})
    assert read == Whole("x", 1, (1.0, 2.5), ("b",), False, None, {"a": 1, "b": 2.0}, [Part((1, 2))], {"any": [None]})
    assert [type(each) for each in read.rate_hz] == [float, float]
    assert schema.read(Whole, {"name": "x", "rate_hz": 3}, "file").rate_hz == (3.0,)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "file: name is missing; add it"),
        ({"name": "x", "nmae": 1}, "file: unknown key nmae; known keys are count, flag, more, name, parts, rate_hz,"),
        ({"name": 5}, "file: name: 5 (a number) is not text; put it in quotes"),
        ({"name": "x", "count": "many"}, "file: count: 'many' (text) is not a whole number; give 1 to 5"),
        ({"name": "x", "count": True}, "file: count: true (a truth value) is not a whole number; give 1 to 5"),
        ({"name": "x", "count": 6}, "file: count: 6 (a number) is not in range; give 1 to 5"),
        ({"name": "x", "rate_hz": [1, "2"]}, "file: rate_hz[1]: '2' (text) is not a number"),
        ({"name": "x", "rate_hz": 10**400}, "is not in range; give a smaller one"),
        ({"name": "x", "rate_hz": []}, "file: rate_hz: has no levels; give at least one"),
        ({"name": "x", "rate_hz": [1, 1.0]}, "file: rate_hz: names a level twice; leave one of them out"),
        ({"name": "x", "words": "c"}, "file: words: 'c' (text) is unknown; choose from a, b"),
        ({"name": "x", "until": 1}, "file: until: 1 (a number) is not text or nothing"),
        ({"name": "x", "shares": {"a": None}}, "file: shares.a: nothing is not a whole number or a number"),
        ({"name": "x", "parts": [{}, {"at": 1}]}, "file: parts[1].at: 1 (a number) is not a list"),
        ({"name": "x" * 5000, "count": "y" * 5000}, f"file: count: '{'y' * 79}... (text) is not a whole number"),
        ({"name": 1, "count": 0}, "file has 2 faults, so none of it is used:\n  file: count: 0 (a number)"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_what_to_do(tree: dict[str, object], message: str) -> None:
    assert message in said(**tree)


@pytest.mark.parametrize("kind", [Whole, World, samples.CellRecord, store.RunHeader])
@given(data=st.data())
def test_any_tree_is_read_or_refused(kind: type, data: st.DataObject) -> None:
    names = st.sampled_from([*schema._hints(kind), "other"])
    tree = data.draw(TREES | st.dictionaries(names, TREES | st.lists(st.dictionaries(names, TREES), max_size=2)))
    for read, problem in ((schema.read, errors.InputError), (schema.stored, errors.DataError)):
        try:
            assert isinstance(read(kind, tree, "file"), kind)
        except problem as refused:
            assert "file" in str(refused)
