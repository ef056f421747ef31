"""Tags change with what an image is made of, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meshdns.core import paths
from meshdns.lab.compose import engine, recipe

DOCKERFILE = """\
ARG BASE=base:1
ARG GO_IMAGE=go-built
# about apt
FROM ${BASE} AS apt
RUN install
FROM apt AS go-built
COPY go /src
RUN --mount=type=cache,id=x,target=/cache build
FROM ${GO_IMAGE} AS go
# image
FROM apt AS agent
COPY meshdns/agent meshdns/errors.py /opt/
# image
FROM ${BASE} AS proxy
COPY --from=go /a /b
"""
STAGES = ("apt", "go-built", "go", "agent", "proxy")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package, and a Dockerfile that copies of it and of its own folder."""
    (tmp_path / "images/go").mkdir(parents=True)
    (tmp_path / "meshdns/agent/__pycache__").mkdir(parents=True)
    for name in ("images/go/go.sum", "images/other", "meshdns/agent/clock.py", "meshdns/cli.py", "meshdns/errors.py"):
        (tmp_path / name).write_text("a = 1")
    (tmp_path / "meshdns/agent/__pycache__/clock.pyc").write_bytes(b"x")
    (tmp_path / "images/Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def tags(root: Path, base: str = "id", **values: str) -> dict[str, str]:
    made = recipe.read(root / "images/Dockerfile", root / "meshdns", values)
    return {name: made.tag(name, base) for name in STAGES}


def test_the_build_context_is_what_the_dockerfile_copies(root: Path) -> None:
    made = recipe.read(root / "images/Dockerfile", root / "meshdns", {})
    assert {*made.files} == {"go/go.sum", "meshdns/agent/clock.py", "meshdns/errors.py"}


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (edit("meshdns/agent/clock.py", "1", "2"), "agent"),
        (lambda root: (root / "meshdns/agent/clock.py").rename(root / "meshdns/agent/clock2.py"), "agent"),
        (lambda root: (root / "meshdns/agent/clock.py").chmod(0o700), ""),
        (edit("meshdns/cli.py", "1", "2"), ""),
        (edit("images/other", "1", "2"), ""),
        (edit("images/go/go.sum", "1", "2"), "go-built go proxy"),
        (edit("images/Dockerfile", "build", "build -v"), "go-built go proxy"),
        (edit("images/Dockerfile", "RUN install", "RUN install more"), "apt go-built go agent proxy"),
        (edit("images/Dockerfile", "/a /b", "/a /c"), "proxy"),
        (edit("images/Dockerfile", "# about apt", "# about\n# apt"), ""),
    ],
)
def test_a_tag_changes_with_what_its_image_is_made_of_alone(
    root: Path, change: Callable[[Path], object], changed: str
) -> None:
    before = tags(root)
    change(root)
    after = tags(root)
    assert {name for name in STAGES if before[name] != after[name]} == {*changed.split()}


def test_a_tag_changes_with_the_base_and_with_the_image_that_is_taken_instead(root: Path) -> None:
    before = tags(root)
    assert all(before[name] != tags(root, "another")[name] for name in STAGES)
    other = tags(root, GO_IMAGE="official:2")
    assert {name for name in STAGES if before[name] != other[name]} == {"go", "proxy"}
    assert tags(root, "another", GO_IMAGE="official:2")["go"] == other["go"]  # nothing of it is built on the base
    assert all(len(tag) == 12 for tag in before.values())


def test_python_that_changes_does_not_compile_go_again() -> None:
    made = engine._recipe()
    changed = {path: content + b"#" if path.startswith("meshdns/") else content for path, content in made.files.items()}
    other = recipe.Recipe(made.arguments, made.stages, changed)
    same = {name for name in made.stages if made.tag(name, "") == other.tag(name, "")}
    assert {"istio", "sidecar", "istiod", "apiserver", "etcd", "coredns"} <= same
    assert not {"observer", "client", "controlplane"} & same


def test_nothing_but_the_programs_is_demanded_of_an_official_image() -> None:
    texts = [line for line in engine.DOCKERFILE.read_text().splitlines() if "/share/doc/" in line and "--from=" in line]
    assert len(texts) == 4
    # What fits no pattern is no error, if the pattern's own folder is there: the root is in every image.
    assert all(line.split()[2].startswith("/us[r]/") for line in texts)


@pytest.mark.parametrize("folder", ["istio", "coredns", "kubernetes"])
def test_sums_travel_with_their_modules(folder: str) -> None:
    there = {path.name for path in (paths.COMPOSE / "images" / folder).iterdir()}
    assert {"go.mod", "go.sum"} < there
    assert {path.removeprefix(f"{folder}/") for path in engine._recipe().files if path.startswith(folder)} == there


def test_what_an_image_is_made_of_is_known_however_far_away(root: Path) -> None:
    made = recipe.read(root / "images/Dockerfile", root / "meshdns", {})
    assert made.uses("proxy", "go-built")
    assert not made.uses("agent", "go-built")
    shipped = engine._recipe()
    assert [name for name in ("client", "coredns", "sidecar") if shipped.uses(name, engine._GO)] == [
        "coredns",
        "sidecar",
    ]
