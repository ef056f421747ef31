"""A world is manifests and a few annotations; what nobody would honour is refused before anything starts."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshdns import cli
from meshdns.core import errors, schema
from meshdns.core.world import World
from meshdns.istio import reader
from meshdns.lab import world
from shipped import WORLD

KUBERNETES = "1.31"
FILES = sorted(world.SHIPPED.glob("*.yaml"))


def documents() -> list[dict[str, Any]]:
    return [each for path in FILES for each in yaml.safe_load_all(path.read_text())]


def test_kubernetes_and_istio_take_it() -> None:
    for document in documents():
        if not document["apiVersion"].partition("/")[0].endswith("istio.io"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert reader.read([world.SHIPPED]).pods


def test_it_survives_json_and_explains_itself_in_it() -> None:
    again = schema.stored(World, json.loads(json.dumps(WORLD.to_json())), "x")
    assert schema.stored(World, json.loads(json.dumps(again.to_json())), "x") == again
    assert again.arms == WORLD.arms
    assert [dataclasses.replace(each, replicas=dict(each.replicas)) for each in again.services] == list(WORLD.services)


def test_one_file_more_is_one_arm_more(tmp_path: Path) -> None:
    pod = next(each for each in documents() if each["metadata"]["name"] == "client-mode1")
    pod["metadata"]["name"], pod["status"]["podIP"] = "client-other", "198.18.0.99"
    pod["metadata"]["annotations"]["meshdns/arm"] = "other"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(pod))
    more = world.read([world.SHIPPED, tmp_path / "mine.yaml"])
    assert list(more.arms) == [*WORLD.arms, "other"]
    assert dataclasses.replace(more.arms["other"], pod="client-mode1", host=44, arm="mode1") == WORLD.arms["mode1"]


def annotate(**notes: str) -> Callable[[dict[str, Any]], None]:
    def change(pod: dict[str, Any]) -> None:
        pod["metadata"]["annotations"] |= {
            key.replace("__", "/").replace("_", "."): each for key, each in notes.items()
        }

    return change


def unnamed(service: dict[str, Any]) -> None:
    del service["spec"]["ports"][0]["name"]


def moved(pod: dict[str, Any]) -> None:
    pod["status"]["podIP"] = "10.0.0.1"


def taken(pod: dict[str, Any]) -> None:
    pod["status"]["podIP"] = "198.18.0.21"


def other_part(pod: dict[str, Any]) -> None:
    pod["spec"]["containers"][0]["image"] = "meshdns/toaster"


def unreferenced(endpoints: dict[str, Any]) -> None:
    del endpoints["endpoints"][0]["targetRef"]["namespace"]


def nobody(endpoints: dict[str, Any]) -> None:
    endpoints["endpoints"][0]["addresses"] = ["198.18.0.201"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("client-mode1", annotate(meshdns__colour="red"), "a Pod has no annotation meshdns/colour"),
        (
            "client-mode1",
            annotate(meshdns__mechanism="magic"),
            "mechanism: 'magic' (text) is unknown; choose from ebpf, iptables",
        ),
        (
            "client-mode1",
            annotate(sidecar_istio_io__logLevel="debug"),
            "sidecar.istio.io/logLevel is not honoured",
        ),
        ("client-mode1", annotate(proxy_istio_io__config="concurrency: 2"), "concurrency: this field is not supported"),
        ("client-mode1", annotate(proxy_istio_io__config="proxyMetadata: {A: 1}"), "A: 1 (a number) is not text"),
        ("client-mode1", annotate(meshdns__arm="plain"), "the arm plain is there already"),
        ("client-mode1", moved, "10.0.0.1 is not an address of the testbed"),
        ("client-mode1", taken, "another Pod has this address"),
        ("client-mode1", other_part, "toaster is no part of a testbed"),
        ("web", unnamed, "a port has no name, so its protocol is not known"),
        ("web", annotate(meshdns__backend="plain"), "two things have the backend plain"),
        ("web", annotate(meshdns__served_by="web-1"), "a Service has no annotation meshdns/served.by"),
        ("legacy", unreferenced, "the reference to legacy-1 has no namespace"),
        ("legacy", nobody, "no Pod has the address 198.18.0.201"),
    ],
)
def test_what_nobody_would_honour_is_refused_with_its_place(
    name: str, change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = documents()
    kind = "EndpointSlice" if change in (unreferenced, nobody) else ("Pod" if name.startswith("client") else "Service")
    change(next(each for each in changed if (each["kind"], each["metadata"]["name"]) == (kind, name)))
    file = tmp_path / "world.yaml"
    file.write_text(yaml.safe_dump_all(changed, sort_keys=False))
    assert cli.main(["run", "--dry-run", "--world", str(file)]) == errors.InputError.exit_code
    printed = capsys.readouterr()
    assert said in printed.err
    assert f"{file}: document" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the world has no ConfigMap meshdns"),
        ("- 1\n", "is not a mapping"),
        ("kind: [\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_world_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text(text)
    with pytest.raises(errors.InputError, match=said):
        world.read([tmp_path / "world.yaml"])
    with pytest.raises(errors.InputError, match="cannot be read"):
        world.read([tmp_path / "none.yaml"])


def paths_of(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, each in pairs:
        yield from paths_of(each, (*path, key))


NEEDED = {
    "meshdns",
    "kube-dns",
    "dns",
    "world-dns",
    "observer",
    "recorded",
    "client-mode1",
    "web-1",
    "web-2",
    "web-3",
    "web",
    "api",
    "world-web",
}
SMALL = [each for each in documents() if each["metadata"]["name"].partition("-slice")[0] in NEEDED]
ANY = st.sampled_from(
    [None, True, -1, 10**25, 1.5, "", "x", "²", "9" * 5000, [], [1], {}, {"a": []}, "{", "- 1", "2026-99-99"]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(paths_of(SMALL))[1:]), ANY)
def test_any_value_anywhere_is_a_world_or_an_input_error(path: tuple[Any, ...], value: object) -> None:
    changed = copy.deepcopy(SMALL)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.dump_all(changed, Dumper=yaml.CSafeDumper))
        file.flush()
        with contextlib.suppress(errors.InputError):
            assert world.read([Path(file.name)]).answers
