"""Who uses a testbed, and who measures on this machine: locks that every checkout, terminal and user of it shares.

The kernel keeps them (flock) and frees them when their holder ends, however it ends. Nobody waits for one, so that
their order cannot matter. A lock's file says who holds it, for those who are refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import re
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from meshdns.core import errors, paths, process

# The same for all users, whatever their TMPDIR says; the second where the first is not for everybody.
FOLDERS = (Path("/run/lock"), Path("/tmp"))  # noqa: S108  nothing in it is trusted, see `_open`
_STICKY_FOR_ALL = stat.S_ISVTX | stat.S_IWOTH
_FOR_ALL = 0o666  # whoever comes next may be another user
_LONGEST = 4096  # bytes of a file in a folder that everybody may write to
_WORDS = re.compile(r".+ \(process \d+, .+\) from .+ since .+", re.DOTALL)  # of a holder, see `_say`
# Somebody who merely looks has a lock for microseconds, and one who has just taken it has not said yet who it is.
_TRIES, _PAUSE_S = 5, 0.02


@dataclass
class _Held:
    descriptor: int | None  # None: somebody else's, passed over
    depth: int = 0


_held: dict[Path, _Held] = {}  # by this process, whichever thread
_guard = threading.Lock()


@dataclass(frozen=True)
class Lock:
    """One thing that only one may do at a time."""

    path: Path
    place: str  # what it is about, and what is said of it while it is held
    taken: str
    step: str

    @contextlib.contextmanager
    def hold(self, use: str, *, force: bool = False, announce: process.Announce = print) -> Iterator[None]:
        """Nobody else has it meanwhile; `use` tells others what for. Raises EnvironmentProblem where somebody has it.

        With `force` that is said, and it goes on without. One process holds it once, however often it is asked for.
        """
        with _guard:
            ours = _held.get(self.path)
            if ours is None:
                ours = _held[self.path] = _Held(None)
                try:
                    with _passed_over(force, announce):
                        ours.descriptor = self._take(use)
                except BaseException:
                    del _held[self.path]
                    raise
            ours.depth += 1
        try:
            yield
        finally:
            with _guard:
                ours.depth -= 1
                if not ours.depth and _held.get(self.path) is ours:  # not so in a fork: it is its parent's
                    del _held[self.path]
                    if ours.descriptor is not None:
                        os.ftruncate(ours.descriptor, 0)
                        os.close(ours.descriptor)

    def ask(self, *, force: bool = False, announce: process.Announce = print) -> None:
        """Nobody else has it. Raises EnvironmentProblem, or with `force` says who has it."""
        with _passed_over(force, announce):
            if self.path not in _held and (holder := self.holder()):
                raise self._refusal(holder)

    def holder(self) -> str | None:
        """Who has it, if anybody. Raises EnvironmentProblem."""
        descriptor = _open(self.path, create=False)
        if descriptor is None:
            return None
        try:
            return None if _flock(descriptor, fcntl.LOCK_SH) else _said(descriptor)
        finally:
            os.close(descriptor)

    def _take(self, use: str) -> int:
        holder = ""
        for attempt in range(_TRIES):
            time.sleep(_PAUSE_S if attempt else 0)
            descriptor = _open(self.path, create=True)
            if descriptor is None:
                continue
            if _flock(descriptor, fcntl.LOCK_EX) and _is_at(descriptor, self.path):
                _say(descriptor, use)
                return descriptor
            holder = _said(descriptor)
            os.close(descriptor)
        raise self._refusal(holder) if holder else _unusable(self.path, "no access to it")

    def _refusal(self, holder: str) -> errors.EnvironmentProblem:
        return errors.EnvironmentProblem(f"{self.taken} {holder}", place=self.place, step=self.step)


@contextlib.contextmanager
def _passed_over(force: bool, announce: process.Announce) -> Iterator[None]:
    """With `force` a refusal is only said."""
    try:
        yield
    except errors.EnvironmentProblem as refusal:
        if not force:
            raise
        announce(f"{refusal.place}: {refusal.fact}; passed over, as --force says")


def machine() -> Lock:
    """Held by whoever measures: two would measure each other, whatever their testbeds."""
    step = "wait for it, or disturb it with --force"
    return Lock(_folder() / "meshdns-measuring.lock", "this machine", "is measured on by", step)


def testbed(engine: str, project: str) -> Lock:
    """Held by whoever changes or uses the testbed of this Compose project on this engine (its id)."""
    digest = hashlib.sha256(engine.encode()).hexdigest()[:12]
    step = "wait for it, name one of your own with MESHDNS_PROJECT, or disturb it with --force"
    return Lock(_folder() / f"meshdns-{digest}-{project}.lock", f"testbed {project}", "is used by", step)


def _folder() -> Path:
    def is_for_all(folder: Path) -> bool:
        with contextlib.suppress(OSError):
            return folder.stat().st_mode & _STICKY_FOR_ALL == _STICKY_FOR_ALL
        return False

    return next(filter(is_for_all, FOLDERS), FOLDERS[-1])


def _open(path: Path, *, create: bool) -> int | None:
    """A descriptor of the file, which programs that we start do not inherit; None where it is not there (yet).

    With O_CREAT the kernel keeps everybody, root too, from another's file in a sticky folder (fs.protected_regular);
    and what somebody else may have put there is neither followed nor written through.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    for more in (0, os.O_CREAT | os.O_EXCL) if create else (0,):
        try:
            descriptor = os.open(path, flags | more, _FOR_ALL)
        except (FileNotFoundError, FileExistsError):
            continue
        except PermissionError as problem:
            if not create:
                raise _unusable(path, problem.strerror or "") from None
            continue  # its maker may be about to open it to all
        except OSError as problem:
            if errors.is_storage(problem):
                raise _unusable(path, problem.strerror or "", errors.storage(problem).step) from None
            link = problem.errno in (errno.ELOOP, errno.EMLINK)
            raise _unusable(path, "it is a link" if link else problem.strerror or "") from None
        if more:
            os.fchmod(descriptor, _FOR_ALL)  # whatever the umask says
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return descriptor
        os.close(descriptor)
        raise _unusable(path, "it is no plain file of its own")
    return None


def _unusable(path: Path, why: str, step: str = "remove it") -> errors.EnvironmentProblem:
    return errors.EnvironmentProblem(f"cannot be used as a lock ({why})", place=str(path), step=step)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Nobody has removed it meanwhile: then the next would lock another file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    return False


def _say(descriptor: int, use: str) -> None:
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    words = f"{_user()} (process {os.getpid()}, {use}) from {paths.HOME} since {since}"
    os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):  # where the disk is full it is held without saying by whom
        os.pwrite(descriptor, words.encode(), 0)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return f"user {os.getuid()}"


def _said(descriptor: int) -> str:
    """Who holds it; the file is anybody's to write, so it is read with care."""
    said = os.pread(descriptor, _LONGEST, 0).decode(errors="replace")
    if not _WORDS.fullmatch(said):
        return "somebody who does not say who"
    return "".join(letter if letter.isprintable() else "?" for letter in said)


def _forked() -> None:
    """A fork is another process: what its parent holds is not its to keep or to free."""
    for held in _held.values():
        if held.descriptor is not None:
            os.close(held.descriptor)
    _held.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forked)
