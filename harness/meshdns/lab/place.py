"""What the laboratory asks of the place where a world's pods run.

A pod is named as the world names it. A service is one of its parts, a program of one image: `client-mode1-envoy`; the
part that holds the pod's network has the pod's own name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from meshdns.core import errors, process
from meshdns.core.world import Nets, World
from meshdns.lab.channel import Channel

if TYPE_CHECKING:
    from meshdns.lab import live

REFUSED = 3  # exit code of a loader whose mechanism is not allowed here


@dataclass(frozen=True)
class Part:
    """One service of a place that is up, as a listing shows it: cheap to look at."""

    service: str
    id: str  # another one once it was made anew
    state: str  # running, exited, paused, ...
    code: int | None  # of one that has exited
    created_s: float = 0.0
    folder: str = ""  # checkout, or installation's home, that it was started from; "" where that is not known
    # It was not started before this, by the place's clock; 0 where it is hours ago.
    began_s: float = field(default=0.0, compare=False)
    address: str = field(default="", compare=False)  # of one that has a network of its own

    @property
    def is_done(self) -> bool:
        """It did its work and ended well: rules, certificate."""
        return self.state == "exited" and self.code == 0 and (self.service.endswith("-rules") or self.service == "tls")

    @property
    def is_refused(self) -> bool:
        """A loader that says the kernel or the place does not allow its way of capturing."""
        return self.state == "exited" and self.code == REFUSED and self.service.endswith("-loader")

    @property
    def words(self) -> str:
        """Its state, as `meshdns status` has it."""
        return "done" if self.is_done else "refused" if self.is_refused else self.state

    @property
    def is_as_it_must_be(self) -> bool:
        """It runs, or is one of those that need not."""
        return self.state == "running" or self.is_done or self.is_refused


@dataclass(frozen=True)
class Account:
    """What a place knows of a part beside its state; empty where the part is gone."""

    code: int | None = None  # exit code
    no_memory: bool = False  # it was killed for want of it
    ended: str = ""  # when, in a form that sorts
    log: tuple[str, ...] = ()  # its last lines, three at most

    @property
    def log_ends(self) -> str:
        """Its last words, as the end of a sentence; empty where it has none."""
        return f"its log ends: {' / '.join(line.strip()[:200] for line in self.log)}" if self.log else ""


@dataclass(frozen=True)
class Usage:
    """What one part has used."""

    cpu_us: float  # since its start
    memory_bytes: int | None  # now; None where the kernel counts none: Raspberry Pi OS switches it off


@dataclass(frozen=True)
class Ended:
    """Services that a run itself has ended."""

    now: AbstractSet[str] = frozenset()
    ever: AbstractSet[str] = frozenset()  # also those that it has started again


class Place(Protocol):
    """A testbed: the core of the world's pods, and the pods of `groups`.

    Whatever is asked of it raises TestbedError where the place has stopped answering, there is no such service, or the
    place refuses; the message names which.
    """

    @property
    def name(self) -> str:
        """What tells it from others of its kind."""

    @property
    def world(self) -> World:
        """What it is made of."""

    @property
    def nets(self) -> Nets:
        """The networks of its pods."""

    @property
    def groups(self) -> frozenset[str]:
        """Of pods, beside the core."""

    def up(self, announce: process.Announce) -> None:
        """Every part runs and answers, as `readiness` has it. Raises EnvironmentProblem or TestbedError.

        What an earlier start left half-way is removed first; after a failure, or an interrupt, nothing is left.
        """

    def down(self) -> list[str]:
        """Nothing of it is left that could be removed; what there was and what stayed, in words. Safe to call twice."""

    def exec(self, where: str, argv: Sequence[str], *, timeout_s: float, given: str = "", image: str = "") -> str:
        """What a program prints once it has ended well in a service, with `given` as its standard input.

        With `image`, the role of one, `where` is a pod: the program then runs beside its parts as an application would,
        sees the files of the world in /state, and is gone afterwards. Raises TestbedError with its last line where it
        ends with another code than 0, and where it has not ended after `timeout_s`.
        """

    def talk(
        self, where: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, image: str = ""
    ) -> Channel:
        """A conversation with a program that is started for it; `image` as for `exec`.

        The program's standard input ends with the channel, and with this process, however that ends.
        """

    def kill(self, *services: str) -> int:
        """They have ended, by SIGKILL; the instant right before that, in nanoseconds of CLOCK_MONOTONIC."""

    def start(self, *services: str) -> None:
        """They run, those that had ended from their beginning; nobody waits until they answer."""

    def usage(self, services: Collection[str]) -> dict[str, Usage]:
        """CPU time and memory of these services, but for those that were not running when they were first asked for."""

    def address(self, pod: str) -> str:
        """A pod's IPv4 address."""

    def put(self, path: str, text: str | None) -> None:
        """The parts that have this file of the world see it whole as it is now, or see it gone."""

    def read(self, path: str) -> str:
        """A file of the world as its parts have it."""

    def plane(self) -> live.Plane:
        """Istio's own control plane, of a place where it is live."""

    def parts(self) -> list[Part]:
        """All of what is there, by one question."""

    def account(self, part: Part) -> Account:
        """What is known of a part, also of one that has ended."""

    def facts(self) -> dict[str, Any]:
        """What was true of the place: trees `engine`, `images`, `cpu_sets` and `versions` of `run.json`."""


def address(world: World, nets: Nets, pod: str) -> str:
    """A pod's address where the place gives pods those that the world wants. Raises TestbedError."""
    if pod not in {each.pod for each in world.pods}:
        raise errors.TestbedError("there is no such pod", place=pod, step="see `meshdns status`")
    return world.address(nets, pod)
