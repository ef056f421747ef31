"""dockerd on this machine: whether it is installed, and how it is started, with or without a service manager."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from meshdns.core import errors, process

LOG = Path("/var/log/docker.log")  # where Debian's init script has it written too
DEFAULTS = Path("/etc/default/docker")  # a shell fragment with DOCKER_OPTS, which that script reads
START_TIMEOUT_S = 30.0  # it restores its networks before it answers
_POLL_S = 0.2

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on the PATH of every user
_RUN = Path("/var/run")
# Who wrote it -> what a killed one leaves. A number in it that is another process's by now keeps dockerd from starting.
_PID_FILES = {"dockerd": _RUN / "docker.pid", "containerd": _RUN / "docker/containerd/containerd.pid"}
# dockerd uses a containerd of the system where this exists, and waits in vain where nobody listens any more.
_SYSTEM_CONTAINERD = Path("/run/containerd/containerd.sock")


def program() -> Path | None:
    """The engine's program; a machine may have the client alone."""
    found = shutil.which("dockerd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))
    return Path(found) if found else None


def service_command() -> tuple[str, ...] | None:
    """How this machine's service manager starts it; None where it has none."""
    if Path("/run/systemd/system").is_dir():
        return ("systemctl", "start", "docker")
    return ("service", "docker", "start") if Path("/etc/init.d/docker").exists() and shutil.which("service") else None


def start_step() -> str:
    """The command that starts it, for a person who may."""
    by_hand = ("sh", "-c", f"'setsid dockerd >>{LOG} 2>&1 </dev/null &'")
    return " ".join(service_command() or by_hand)


def start(answers: Callable[[], bool], announce: process.Announce) -> None:
    """It answers: started by the service manager or, where that is missing or fails, directly and detached.

    Also after one that was killed. Raises EnvironmentProblem; needs root.
    """
    reason = "no service manager starts it"
    if command := service_command():
        announce(f"starting the container engine: {' '.join(command)}")
        done = process.run(*command, timeout_s=START_TIMEOUT_S)
        if done.ok and _wait(answers):
            return
        vain = f"`{' '.join(command)}` was in vain"
        reason = vain if done.ok else done.last_lines(1) or vain
    if number := _running("dockerd"):
        if _wait(answers):
            return
        raise errors.EnvironmentProblem(
            f"dockerd runs (process {number}) and does not answer",
            place="engine",
            step=f"see why in {LOG} or `journalctl -u docker`; end it with `kill {number}` and {errors.AGAIN}",
        )
    announce(f"starting dockerd itself ({reason}); its log is {LOG}")
    clear_leftovers()
    _start_directly(answers)


def clear_leftovers() -> None:
    """What a killed engine has left no longer keeps the next one from starting."""
    for name, path in _PID_FILES.items():
        if path.exists() and not _running(name):
            path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(_SYSTEM_CONTAINERD)) == errno.ECONNREFUSED:
            _SYSTEM_CONTAINERD.unlink(missing_ok=True)


def _start_directly(answers: Callable[[], bool]) -> None:
    found = program()
    if found is None:
        raise errors.EnvironmentProblem("there is no dockerd on this machine", place="engine", step=errors.AGAIN)
    # The machine's own options apply, as they would by its init script.
    script = f'[ ! -r {DEFAULTS} ] || . {DEFAULTS}; exec "$0" $DOCKER_OPTS'
    env = {"PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))}
    child = process.detach(("sh", "-c", script, str(found)), log=LOG, env=env)
    # Somebody else may have started one at the same time: then ours ends, and theirs will answer.
    if not _wait(answers, meanwhile=lambda: child.poll() is None or _running("dockerd") is not None):
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        raise errors.EnvironmentProblem(
            f"dockerd did not start: {_last_line(LOG)}", place="engine", step=f"see why with `tail {LOG}`"
        )


def _wait(answers: Callable[[], bool], meanwhile: Callable[[], bool] = lambda: True) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while meanwhile() and time.monotonic() < deadline:
        if answers():
            return True
        time.sleep(_POLL_S)
    return answers()


def _running(name: str) -> int | None:
    """The process that the pid file of `name` speaks of, if it is one of that name and not merely uncollected."""
    try:
        number = int(_PID_FILES[name].read_text())
        comm, _, rest = Path(f"/proc/{number}/stat").read_text().partition("(")[2].rpartition(")")
    except (OSError, ValueError):
        return None
    return number if comm == name and rest.split()[0] != "Z" else None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError as problem:
        return problem.strerror or str(problem)
    return lines[-1] if lines else "it said nothing"
