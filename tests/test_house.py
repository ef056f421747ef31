"""What is promised in words exists, and nothing of one particular machine is written down."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

pytest_plugins = "pytester"
ROOT = Path(__file__).resolve().parent.parent

# Split, so that this file does not hold what it forbids.
FORBIDDEN = {
    "the host of a package registry": re.compile(
        r"pypi\.(?:org)|python(?:hosted)\.org|deb\.(?:debian)\.org|registry-1\.(?:docker)|(?:ghcr|quay|gcr)\.(?:io)\b"
        r"|archive\.(?:ubuntu)\.com|(?:anaconda)\.org|registry\.(?:npmjs)"
    ),
    "a path of one machine": re.compile(
        r"/(?:work)/|/(?:root)/(?!\.cache/)|/(?:home)/\w|/(?:Users)/\w|/opt/(?:wheels)"
    ),
}


def tracked() -> list[Path]:
    """The files git knows or would take, but for data and the lock's hashes."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file() and not name.startswith("data/sample/")]


def makefile_targets() -> dict[str, str]:
    """Target -> its help, of those that have one."""
    return dict(re.findall(r"^([a-z]+):[^\n]*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_nothing_names_a_registry_or_a_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            found += [f"{path.relative_to(ROOT)}: {what}: {hit[0]}" for hit in pattern.finditer(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_the_documents_exist(name):
    said = set(re.findall(r"(?:`|^    |^)make ([a-z]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert said <= set(makefile_targets())


def test_the_makefile_explains_its_targets():
    targets = makefile_targets()
    assert list(targets) == [
        "help",
        "report",
        "test",
        "quick",
        "lab",
        "conformance",
        "bench",
        "sample",
        "up",
        "down",
        "lint",
        "clean",
    ]
    printed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert all(f"make {name}" in printed and text in printed for name, text in targets.items())


# What tries several modules at once, and why.
OF_SEVERAL = {
    "agent/test_agent_wire.py": "the three readers of answers, by the same bytes",
    "lab/test_mesh.py": "names, rules and configurations of one world",
    "lab/test_recording_place.py": "the place in memory, which lies in tests/worlds",
    "studies/test_tables.py": "the tables of one made-up world",
}
KINDS = ("kernel", "unit")  # what the other tests of a module need, or do without


def test_tests_lie_where_the_modules_lie_that_they_try():
    package = ROOT / "harness" / "meshdns"
    sources = (each.parent if each.stem == "__init__" else each for each in package.rglob("*.py"))
    modules = [each.relative_to(package) for each in sources]
    there = Counter(each.stem for each in modules)
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*/test_*.py")):
        room, name = path.relative_to(ROOT / "tests").parent, path.stem.removeprefix("test_")
        if not (package / room).is_dir():  # of the whole, or in a browser
            continue
        inside = {each.stem for each in modules if each.parent == room}
        fitting = (
            {each for each in inside if there[each] == 1} | {f"{room.name}_{each}" for each in inside} | {room.name}
        )
        kinds = {f"{each}_{kind}" for each in fitting for kind in KINDS}
        if name not in fitting | kinds and path.relative_to(ROOT / "tests").as_posix() not in OF_SEVERAL:
            wrong.append(f"{path.relative_to(ROOT)}: no module, or several, of {room} are called so")
    assert not wrong, "\n".join(wrong)
    assert all((ROOT / "tests" / each).exists() for each in OF_SEVERAL)


def test_hooks_need_no_network():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert {"ruff", "ruff-format", "mypy", "nbstripout"} <= set(hooks)
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks.values())
    assert "--keep-id" in hooks["nbstripout"]["entry"]


@pytest.mark.parametrize("package", ["agent", "observer"])
def test_what_runs_in_bare_containers_needs_only_the_standard_library(package):
    for path in sorted((ROOT / "harness" / "meshdns" / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
            assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(foreign)}"


@pytest.mark.parametrize(("ci", "workers"), [("true", "0"), ("true", "1"), ("", "0")])
def test_a_skip_fails_in_ci_only(pytester, monkeypatch, ci, workers):
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest((ROOT / "tests/plugins/no_skips.py").read_text())
    pytester.makepyfile(
        test_cases="import pytest\n"
        "@pytest.mark.skip(reason='no engine')\ndef test_marked(): pass\n"
        "def test_asked(): pytest.skip('no browser')\n"
        "@pytest.mark.xfail(strict=True)\ndef test_known(): assert False\n",
        test_module="import pytest\npytest.importorskip('no_such_module_here')\n",
    )
    result = pytester.runpytest("-p", "no:hypothesispytest", "-n", workers, "--continue-on-collection-errors")
    # A mark skips in the set-up and a whole module while it is collected: pytest calls the failure of either an error.
    result.assert_outcomes(**({"failed": 1, "errors": 2, "xfailed": 1} if ci else {"skipped": 3, "xfailed": 1}))


def test_only_the_place_by_compose_names_the_engine():
    """A word for people, too: who runs the pods elsewhere is told by the place that does."""
    harness = ROOT / "harness" / "meshdns"
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(harness.rglob("*"))
        if path.suffix in (".py", ".toml", ".html") and harness / "lab" / "compose" not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(docker|kubectl)\b", line, re.IGNORECASE)
    ]
    assert found == []
