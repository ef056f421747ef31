"""The engine's program, started for real as far as that needs no engine of this machine's own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshdns.core import errors
from meshdns.lab.compose import daemon


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """A machine without a service manager whose `dockerd` makes a file "answers", and notes what it was given."""
    program = tmp_path / "dockerd"
    program.write_text(
        f"#!/bin/sh\ncd {tmp_path}\n"
        "[ -e pid ] && echo 'pid file found' && exit 1\n"
        "[ -e broken ] && echo no storage && exit 1\n"
        'echo "$@" >options; echo $$ >pid; echo ready; : >answers; exec sleep 60\n'
    )
    program.chmod(0o755)
    (tmp_path / "docker").write_text("DOCKER_OPTS='--iptables=false --mtu 1400'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(daemon, "LOG", tmp_path / "docker.log")
    monkeypatch.setattr(daemon, "DEFAULTS", tmp_path / "docker")
    monkeypatch.setattr(daemon, "_PID_FILES", {"dockerd": tmp_path / "pid", "containerd": tmp_path / "containerd.pid"})
    monkeypatch.setattr(daemon, "_SYSTEM_CONTAINERD", tmp_path / "containerd.sock")
    monkeypatch.setattr(daemon, "service_command", lambda: None)
    yield tmp_path
    if (tmp_path / "answers").exists():
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def _start(place: Path) -> list[str]:
    said: list[str] = []
    daemon.start((place / "answers").exists, said.append)
    return said


def test_without_a_service_manager_it_is_started_itself_and_outlives_us(place):
    said = _start(place)
    assert any(str(place / "docker.log") in line for line in said)
    number = int((place / "pid").read_text())
    assert os.getsid(number) == number, "Ctrl-C in our terminal is not for it"
    assert (place / "options").read_text() == "--iptables=false --mtu 1400\n"


def test_a_service_manager_that_fails_is_told_and_replaced(place, monkeypatch):
    failing = ("sh", "-c", "echo ulimit: Operation not permitted >&2; exit 2")
    monkeypatch.setattr(daemon, "service_command", lambda: failing)
    assert any("ulimit: Operation not permitted" in line for line in _start(place))
    assert (place / "answers").exists()


def test_a_service_manager_that_works_is_enough(place, monkeypatch):
    monkeypatch.setattr(
        daemon, "service_command", lambda: ("sh", "-c", f"sleep 60 & echo $! >{place}/pid; : >{place}/answers")
    )
    _start(place)
    assert not (place / "options").exists()


def test_a_service_manager_that_is_content_with_nothing_is_replaced(place, monkeypatch):
    monkeypatch.setattr(daemon, "service_command", lambda: ("sh", "-c", "echo 'Starting Docker: docker.'"))
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        monkeypatch.setattr(daemon, "START_TIMEOUT_S", 30.0 if "dockerd itself" in line else 1.0)

    daemon.start((place / "answers").exists, announce)
    assert any("was in vain" in line for line in said), "what it said is no reason"
    assert (place / "options").exists()


def test_the_pid_file_of_a_killed_one_is_no_hindrance(place):
    (place / "pid").write_text(str(os.getpid()))  # a number that another process has by now
    (place / "containerd.pid").write_text("no number")
    _start(place)
    assert not (place / "containerd.pid").exists()


def test_the_pid_file_of_an_uncollected_one_is_no_hindrance(place):
    killed = subprocess.Popen(["sh", "-c", f"exec {_copy(place)} 60"])
    (place / "pid").write_text(str(killed.pid))
    killed.kill()
    while b") Z" not in Path(f"/proc/{killed.pid}/stat").read_bytes():
        time.sleep(0.01)
    _start(place)
    killed.wait()


def test_one_that_runs_and_does_not_answer_is_named(place, monkeypatch):
    monkeypatch.setattr(daemon, "START_TIMEOUT_S", 0.5)
    hung = subprocess.Popen([_copy(place), "60"])
    (place / "pid").write_text(str(hung.pid))
    while daemon._running("dockerd") is None:  # until it is the program
        time.sleep(0.01)
    try:
        with pytest.raises(errors.EnvironmentProblem, match=f"process {hung.pid}.*does not answer"):
            _start(place)
        assert (place / "pid").exists()
    finally:
        hung.kill()
        hung.wait()


def test_one_that_somebody_else_starts_at_the_same_time_is_waited_for(place, monkeypatch):
    others = list[subprocess.Popen[bytes]]()

    def overtakes() -> None:
        others.append(subprocess.Popen([_copy(place), "60"]))
        (place / "pid").write_text(str(others[0].pid))
        while daemon._running("dockerd") is None:
            time.sleep(0.01)
        others.append(subprocess.Popen(["sh", "-c", f"sleep 1; : >{place}/answers"]))

    monkeypatch.setattr(daemon, "clear_leftovers", overtakes)
    _start(place)
    assert "pid file found" in (place / "docker.log").read_text()
    for other in others:
        other.kill()
        other.wait()
    (place / "answers").unlink()


def _copy(place: Path) -> Path:
    """A program of the engine's name that does nothing."""
    program = place / "hung" / "dockerd"
    program.parent.mkdir()
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("listens", [True, False])
def test_the_systems_containerd_is_used_where_it_listens(place, listens):
    path = place / "containerd.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        if listens:
            server.listen()
        _start(place)
    assert path.exists() == listens


def test_why_it_did_not_start_is_told_with_its_log(place):
    (place / "broken").touch()
    with pytest.raises(errors.EnvironmentProblem, match=r"no storage.*docker\.log"):
        _start(place)
