"""One family of user errors, caught once in `cli.main`.

A message says the fact, the place and the next step, in that order and once. The class decides the exit code.
"""

from __future__ import annotations


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
