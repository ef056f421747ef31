"""Locks that every checkout, terminal and user shares, against real processes."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshdns.core import errors
from meshdns.lab import locks

ROOT = Path(__file__).parents[2]
# Holds the lock, with a program beside it that outlives it, until its standard input ends.
HOLDER = """
import os, subprocess, sys
from pathlib import Path
from meshdns.lab import locks
locks.FOLDERS = (Path(sys.argv[1]),)
os.umask(0o077)
os.setuid(int(sys.argv[2]))
try:
    with locks.machine().hold("meshdns run, plan quick"):
        beside = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, start_new_session=True)
        print(beside.pid, flush=True)
        sys.stdin.read()
except locks.errors.EnvironmentProblem as refusal:
    print(refusal, flush=True)
"""
NOBODY = 65534
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As /run/lock is: of everybody, and nobody may remove another's files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(locks, "FOLDERS", (Path(name),))
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts another process that holds the lock, or says why not in `said`."""
    running: list[subprocess.Popen[str]] = []
    besides: list[int] = []

    def started(user: int = os.getuid()) -> subprocess.Popen[str]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), str(user)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        running.append(holder)
        assert holder.stdout is not None
        holder.said = holder.stdout.readline().strip()
        if holder.said.isdigit():
            besides.append(int(holder.said))
        return holder

    yield started
    for holder in running:
        holder.kill()
        holder.communicate()
    for beside in besides:
        os.kill(beside, signal.SIGKILL)


def test_a_refusal_says_who_where_since_when_and_what_to_do(start: Start) -> None:
    holder = start()
    with pytest.raises(errors.EnvironmentProblem) as caught, locks.machine().hold("meshdns run, plan standard"):
        pass
    assert re.fullmatch(
        rf"this machine: is measured on by \w+ \(process {holder.pid}, meshdns run, plan quick\) "
        rf"from {re.escape(str(ROOT))} "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; wait for it, or disturb it with --force",
        str(caught.value),
    )
    assert caught.value.exit_code == 3
    with pytest.raises(errors.EnvironmentProblem, match="is measured on by"):
        locks.machine().ask()


def test_a_killed_holder_frees_it_at_once_though_a_program_that_it_started_lives_on(start: Start) -> None:
    holder = start()
    holder.kill()
    holder.wait()
    os.kill(int(holder.said), 0)  # the program beside
    locks.machine().ask()
    with locks.machine().hold("meshdns run"):
        assert start().said.startswith("this machine: is measured on by")
    assert start().said.isdigit()  # and it is free again when it is left


def test_with_force_it_goes_on_and_says_whom_it_passes_over(start: Start) -> None:
    holder, said = start(), list[str]()
    with locks.machine().hold("meshdns run", force=True, announce=said.append):
        with locks.machine().hold("meshdns up"):  # a part of the same does not ask again
            pass
        locks.machine().ask()
    locks.machine().ask(force=True, announce=said.append)
    assert len(said) == 2
    assert all(f"(process {holder.pid}, meshdns run, plan quick)" in line for line in said)
    assert locks.machine().holder() is not None  # still the other's


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize(("first", "second"), [(NOBODY, 0), (0, NOBODY)])
def test_users_take_turns_whatever_their_umask(start: Start, folder: Path, first: int, second: int) -> None:
    holder = start(first)
    assert "is measured on by" in start(second).said
    holder.kill()
    holder.wait()
    assert start(second).said.isdigit()
    [path] = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


@pytest.mark.parametrize(
    "put", [Path.symlink_to, Path.hardlink_to, lambda path, _: os.mkfifo(path)], ids=["symlink", "hard link", "fifo"]
)
def test_nothing_is_written_through_what_somebody_has_put_there(
    folder: Path, put: Callable[[Path, Path], None]
) -> None:
    precious = folder / "precious"
    precious.write_text("kept")
    put(locks.machine().path, precious)
    refused = pytest.raises(errors.EnvironmentProblem, match=r"cannot be used as a lock .*; remove it")
    with refused, locks.machine().hold("meshdns run"):
        pass
    assert precious.read_text() == "kept"


def test_another_users_file_is_opened_as_kernels_allow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fs.protected_regular nobody, root neither, may open it with O_CREAT."""
    locks.machine().path.touch()
    opening = os.open

    def protecting(path: Path, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_CREAT and path.exists():
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", protecting)
    with locks.machine().hold("meshdns run"):
        assert locks.machine().path.read_text()


def test_a_full_disk_is_told_as_one_or_leaves_the_holder_without_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(errors.EnvironmentProblem, match="free some space"), locks.machine().hold("meshdns run"):
            pass
    monkeypatch.setattr(os, "pwrite", full)
    with locks.machine().hold("meshdns run"):
        assert locks.machine().path.read_text() == ""


def test_what_a_file_says_is_not_believed_to_be_harmless(start: Start) -> None:
    holder = start()
    locks.machine().path.write_text("\u001b[2J (process 1, x) from y since z")
    assert locks.machine().holder() == "?[2J (process 1, x) from y since z"
    locks.machine().path.write_text("[" * 5000)
    assert locks.machine().holder() == "somebody who does not say who"
    holder.kill()


def test_a_fork_neither_frees_nor_keeps_what_its_parent_holds(start: Start) -> None:
    reader, writer = os.pipe()
    with locks.machine().hold("meshdns report"):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # until the parent lets go
            os._exit(0)
        leaving = os.fork()
        if not leaving:
            with locks.machine().hold("nothing", force=True, announce=lambda _: None):
                pass
            os._exit(0)
        os.waitpid(leaving, 0)
        assert not start().said.isdigit()
    assert start().said.isdigit()
    os.close(writer)
    os.waitpid(child, 0)


def test_testbeds_of_different_engines_or_names_are_apart(folder: Path) -> None:
    with locks.testbed("engine", "meshdns").hold("meshdns up"):
        for other in (locks.testbed("engine", "mine"), locks.testbed("other", "meshdns"), locks.machine()):
            with other.hold("meshdns up"):
                assert other.path.parent == folder
    assert len(list(folder.iterdir())) == 4
