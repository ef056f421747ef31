"""What README promises holds in a fresh clone: each command is tried, and what is shown is what it prints."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fresh
from meshdns import cli
from meshdns.core import plans
from meshdns.measure import plan
from shipped import WORLD

ROOT = fresh.ROOT
TEXT = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:^    .*\n(?:\n+(?=    ))?)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
CUT = "…"  # a line of it stands for any number of lines; at the end of a line, for the rest of it
# What may be executed as it stands: it ends, and changes nothing.
HARMLESS = re.compile(
    r"meshdns (--version|doctor|validate|explain|dns-proxy|rules(?!.* --apply)|run(?=.* --dry-run))\b"
    r"|papermill |python -c |kill %1"
)
PROGRAMS = ("meshdns", "make", "papermill", "pip", "python", "dig", "docker", "git")
MINUTE_S = 60


def _verbs() -> dict[str, argparse.ArgumentParser]:
    [found] = [each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(found.choices)


VERBS = _verbs()


@dataclass(frozen=True)
class Held:
    """Why a command is not executed as it stands here, which one is instead, and what executes it."""

    why: str
    instead: str = ""
    by: str = ""  # a file: CI runs it (`make test` runs every test)


LONG, ENGINE, OTHERS = "takes more than a minute", "needs the container engine", "changes rules, and is not ours"
HELD = {
    "meshdns VERB": Held("says how all verbs are written", "meshdns --help"),
    "run --plan quick": Held(LONG, "meshdns run --plan quick --dry-run", "tests/testbed/test_faults.py"),
    "report --plan quick": Held(LONG, "meshdns report --help", "tests/browser/test_sample_report.py"),
    "trace URL --arm mode1": Held(ENGINE, "meshdns trace --help", "tests/testbed/test_paths.py"),
    "meshdns record": Held(ENGINE, "meshdns record --help", "tests/testbed/test_live.py"),
    "meshdns status": Held(ENGINE, "meshdns status --help", "tests/testbed/test_live.py"),
    "pip wheel --no-deps .": Held("builds for some seconds", by="tests/test_wheel.py"),
    "pip install meshdns-0.1.0-py3-none-any.whl": Held("changes the environment", by="tests/test_wheel.py"),
    "meshdns report --runs data/sample": Held("takes half a minute", "meshdns report --help", "tests/test_wheel.py"),
    "tests/other-engine.sh": Held(LONG, "sh -n tests/other-engine.sh"),
    "dig @127.0.0.1 -p 1053 stock-db.example.com.shop.svc.cluster.local": Held(
        "not everybody has it; the block above asks the same", by="tests/test_readme.py"
    ),
    "iptables-restore --noflush": Held(OTHERS, by="tests/interception/test_kernel.py"),
    "nft -f": Held(OTHERS, by="tests/interception/test_kernel.py"),
    ". .venv/bin/activate": Held("changes the shell that it is typed in", "test -f .venv/bin/activate"),
}


@dataclass
class Command:
    """A command of README and what is shown below it."""

    line: str
    shown: list[str] = field(default_factory=list)


def blocks() -> list[list[Command]]:
    """The commands of each block: after `$`, with their output; or one in each line, with words after two spaces."""
    return [_commands([line[4:].rstrip() for line in found[0].splitlines()]) for found in BLOCK.finditer(TEXT)]


def _commands(lines: list[str]) -> list[Command]:
    if not any(line.startswith("$ ") for line in lines):
        return [Command(re.split(r"\s{2,}", line)[0]) for line in lines if line]
    found: list[Command] = []
    for line in lines:
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        else:
            found[-1].shown.append(line)
    return found


def spans() -> list[str]:
    """What stands as code in a sentence."""
    return list(dict.fromkeys(" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", TEXT))))


def is_command(span: str) -> bool:
    """Something that is typed; a word alone is one where it is a verb, a program or a script."""
    word = span.split(maxsplit=1)[0]
    script = ROOT / word
    if span.startswith("-"):
        return False
    return " " in span or word in VERBS or word in PROGRAMS or (script.is_file() and os.access(script, os.X_OK))


def tried(line: str) -> str:
    """What is executed for a command, empty if nothing is. A verb alone shows its help, `make` what it would do."""
    if line in HELD:
        return HELD[line].instead
    first, *rest = line.split()
    if first == "make":
        return f"make --dry-run {' '.join(rest)}"
    if first in VERBS and not rest:
        return f"meshdns {line} --help"
    whole = f"meshdns {line}" if first in VERBS else line
    assert HARMLESS.match(whole), f"README has a new command, {line}: say in HELD how it is tried"
    return whole


def expected(shown: list[str]) -> re.Pattern[str]:
    """The output, with what is cut."""
    parts = []
    for line in shown:
        kept = line.removesuffix(f" {CUT}")
        parts.append(r"(?:.*\n)*?" if line == CUT else re.escape(kept) + (r" .*\n" if kept != line else r"\n"))
    return re.compile("".join(parts))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = fresh.copy(tmp_path_factory.mktemp("clone"))
    (place / ".venv").symlink_to(Path(sys.prefix))  # as `make .venv/ready` leaves it
    return place


class Shell:
    """Executes commands in the clone, one after the other, as somebody who types them."""

    def __init__(self, clone: Path) -> None:
        self._clone, self._started = clone, list[subprocess.Popen[str]]()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path, "PYTHONPATH": str(clone)}  # not the checkout's own code

    def type(self, command: Command) -> None:
        if command.line == "kill %1":
            [behind] = [each for each in self._started if each.poll() is None]
            behind.terminate()
            assert behind.wait(MINUTE_S) == 0, "what was ended did not end well"
        elif command.line.endswith(" &"):
            started = self._start(command.line.removesuffix(" &"))
            said = "".join(started.stdout.readline() for _ in command.shown)  # type: ignore[union-attr]
            self._compare(command, said)
        else:
            started = self._start(command.line)
            said, _ = started.communicate(timeout=MINUTE_S)
            assert started.returncode in self._codes(command.line), said
            self._compare(command, said)

    def _start(self, line: str) -> subprocess.Popen[str]:
        command, both = ["bash", "-c", f"exec {line}"], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started = subprocess.Popen(command, cwd=self._clone, env=self._environment, text=True, **both)
        self._started.append(started)
        return started

    @staticmethod
    def _codes(line: str) -> tuple[int, ...]:
        return (0, 3) if line == "meshdns doctor" else (0,)  # the machine may lack an engine

    @staticmethod
    def _compare(command: Command, said: str) -> None:
        said = "".join(f"{line.rstrip()}\n" for line in said.splitlines())
        if command.shown:
            assert expected(command.shown).fullmatch(said), f"README shows another output of {command.line}:\n{said}"

    def close(self) -> None:
        for each in self._started:
            each.kill()
            each.wait()
            each.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def shell(clone: Path) -> Iterator[Shell]:
    with contextlib.closing(Shell(clone)) as shell:
        yield shell


def _case(commands: list[Command]) -> object:
    slow = any(each.line.startswith("papermill") for each in commands)
    return pytest.param(commands, id=commands[0].line[:60], marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("commands", [_case(each) for each in blocks()])
def test_blocks_show_what_is_printed(commands: list[Command], shell: Shell) -> None:
    for command in _with_a_free_port(commands):
        if does := tried(command.line):
            shell.type(Command(does, command.shown))


def _with_a_free_port(commands: list[Command]) -> list[Command]:
    """README names one; here several tests may run at a time."""
    named = re.search(r"127\.0\.0\.1:(\d+)", " ".join(each.line for each in commands))
    if not named:
        return commands
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    return [
        Command(each.line.replace(named[1], free), [line.replace(named[1], free) for line in each.shown])
        for each in commands
    ]


@pytest.mark.parametrize("line", [span for span in spans() if is_command(span)])
def test_commands_in_sentences_work(line: str, shell: Shell) -> None:
    if does := tried(line):
        shell.type(Command(does))


def test_options_in_sentences_exist() -> None:
    options = {option for verb in VERBS.values() for action in verb._actions for option in action.option_strings}
    named = {span.split()[0] for span in spans() if span.startswith("--")}
    assert named <= options


def test_what_is_not_executed_is_by_something_else() -> None:
    shown = {*spans(), *(command.line for block in blocks() for command in block)}
    assert HELD.keys() <= shown, "README shows it no more"
    for held in HELD.values():
        assert held.instead or held.by, held
        assert (ROOT / held.by).exists(), held


def test_the_times_of_the_plans_are_those_of_the_dry_run() -> None:
    rows = re.findall(r"^\| (`[\w-]+`.*?) \|.*\| (\d.*) minutes? \|$", TEXT, re.MULTILINE)
    named = [zip(re.findall(r"[\w-]+", names), re.findall(r"\d+", minutes), strict=True) for names, minutes in rows]
    said = dict(itertools.chain(*named))
    read = {name: plan.find(name, WORLD) for name in plans.shipped() if name in said}
    assert {name: int(minutes) for name, minutes in said.items()} == {
        name: round(what.measuring_s(range(what.blocks)) / 60) for name, what in read.items()
    }
    report = re.search(r"`make report` takes (\d+) minutes, about (\d+) the first time; (\d+) of them are meas", TEXT)
    assert report
    assert int(report[3]) == int(said["quick"]) < int(report[1]) < int(report[2])
