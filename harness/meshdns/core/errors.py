"""One family of user errors, caught once in `cli.main`.

A message says the fact, the place and the next step, in that order and once. The class decides the exit code.
"""

from __future__ import annotations

import errno

AGAIN = "run the same command again"  # ends a step where nothing was begun that could be gone on with


class MeshdnsError(Exception):
    """What a person can mend; `exit_code` is documented in the README."""

    exit_code = 1

    def __init__(self, fact: str, *, place: str = "", step: str = "") -> None:
        self.fact, self.place, self.step = fact, place, step
        super().__init__(self.text())

    def text(self) -> str:
        """`place: fact; step`, leaving out what is empty."""
        head = f"{self.place}: {self.fact}" if self.place else self.fact
        return f"{head}; {self.step}" if self.step else head

    def go_on(self, how: str) -> None:
        """A run was begun: the same command again would begin another, so the step says how to go on with it."""
        self.step = self.step.replace(AGAIN, how)
        self.args = (self.text(),)


class InputError(MeshdnsError):
    """A plan, a parameter or an argument that cannot be used."""

    exit_code = 2


class EnvironmentProblem(MeshdnsError):
    """The machine lacks something: an engine, Compose, a free subnet, a free port."""

    exit_code = 3


class TestbedError(MeshdnsError):
    """Containers did not become, or did not stay, healthy."""

    __test__ = False  # the name is the domain's; pytest must not collect it
    exit_code = 4


class DataError(MeshdnsError):
    """A run folder or a file in it is missing, cut short or of another schema."""

    exit_code = 5


class ReportError(MeshdnsError):
    """A notebook did not finish, or one of its checks failed, so there is no report."""

    exit_code = 6


class StorageError(MeshdnsError):
    """The disk is full or cannot be written."""

    exit_code = 7


class LostPartError(MeshdnsError):
    """A part of the testbed ended, or was taken away, while a run needed it."""

    exit_code = 8


_MENDED_BY = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "make it writable",
    errno.EACCES: "get access to it",
    errno.EPERM: "get access to it",
}


def is_storage(problem: OSError) -> bool:
    """Whether a person mends it by making room or getting access."""
    return problem.errno in _MENDED_BY


def storage(problem: OSError) -> StorageError:
    """What the operating system says of a file or disk that `is_storage`."""
    step = f"{_MENDED_BY[problem.errno or errno.ENOSPC]} and {AGAIN}"
    return StorageError(problem.strerror or str(problem), place=str(problem.filename or "disk"), step=step)
