"""The command `make conformance`, on made-up findings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.conformance import __main__ as command
from tests.conformance import binary, dnsproxies
from tests.conformance.section import Section

from meshdns.lab.compose import engine


@pytest.mark.parametrize(("wrong", "code"), [([], 0), (["one | thing"], 1)])
def test_what_is_not_as_stated_is_on_the_page_and_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str], code: int
) -> None:
    section = Section("DNS", "What was asked.", wrong, ["a", "b"], [["x|y", "z"]])
    monkeypatch.setattr(command, "DIFFERENTIALS", (lambda _: section,))
    monkeypatch.setattr(dnsproxies, "lacking", lambda: "")
    monkeypatch.setattr(binary, "find", lambda folder, announce, version: folder / "pilot-agent")
    monkeypatch.setattr(sys, "argv", ["conformance", "--istio", "v9", "--page", str(tmp_path / "page.md")])
    assert command.main() == code
    page = (tmp_path / "page.md").read_text()
    assert "Istio v9" in page
    assert ("All is as stated." in page, "- one | thing" in page) == (not wrong, bool(wrong))
    assert r"| x\|y | z |" in page


def test_another_version_is_another_line_of_the_same_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed = {}

    def build(announce: object, tag: str, change: object) -> str:
        folder = engine.DOCKERFILE.parent
        for path in ("Dockerfile", "istio/go.mod", "istio/go.sum", "coredns/go.mod"):
            before = (folder / path).read_bytes().decode().splitlines()
            after = change(path, (folder / path).read_bytes()).decode().splitlines()
            changed[path] = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        return tag

    monkeypatch.setattr(binary, "_build", build)
    monkeypatch.setattr(engine, "ensure", lambda announce: None)
    monkeypatch.setattr(binary, "_take", lambda image, path, folder: folder / image)
    monkeypatch.delenv(binary.GIVEN, raising=False)
    assert binary.find(tmp_path, print, "v1.99.0").name == "sidecar:istio-v1.99.0"
    assert [b for _, b in changed["istio/go.mod"]] == ["require istio.io/istio v1.99.0"]
    assert ["-mod=mod" in b for _, b in changed["Dockerfile"]] == [True]
    assert not changed["istio/go.sum"]
    assert not changed["coredns/go.mod"]
