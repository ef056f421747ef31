"""Parts of a testbed that are lost while a run needs them: which is named, how it ended, and what is no loss."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from meshdns.core import errors
from meshdns.lab import watch
from meshdns.lab.place import REFUSED, Account, Ended, Part

NOTHING = Ended()


def part(service: str, state: str = "running", code: int | None = None) -> Part:
    return Part(service, f"id of {service}", state, code, 0.0, "")


WHOLE = [
    part("client-plain"),
    part("client-answers-envoy"),
    part("client-mode1-rules", "exited", 0),
    part("client-ebpf-loader", "exited", REFUSED),
    part("tls", "exited", 0),
    part("recorded"),
]


class Bed:
    """A testbed whose parts change between two looks."""

    name = "meshdns"

    def __init__(self) -> None:
        self.now, self.accounts = list(WHOLE), dict[str, Account]()
        self.later: list[Part] | None = None  # what is seen from the look after the next one

    def parts(self) -> list[Part]:
        found, self.now = self.now, self.now if self.later is None else self.later
        return found

    def ends(self, service: str, state: str = "exited", code: int = 0, **ending: Any) -> None:
        self.now = [replace(each, state=state, code=code) if each.service == service else each for each in self.now]
        self.accounts[service] = Account(code, log=(f"{service} says goodbye",), **ending)

    def account(self, part: Part) -> Account:
        return self.accounts.get(part.service, Account())


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    for wait in ("_LATE_S", "_STILL_S", "_PAUSE_S"):
        monkeypatch.setattr(watch, wait, 0.01)
    return Bed()


def lost(bed: Bed, ends: Any, ended: Ended = NOTHING) -> str:
    with pytest.raises(errors.LostPartError) as caught, watch.Watch(bed).during("in block 3", lambda: ended):  # type: ignore[arg-type]
        ends()
    assert caught.value.exit_code == 8
    caught.value.go_on("go on with `meshdns run --resume x`")
    assert str(caught.value).endswith("; go on with `meshdns run --resume x`")
    return str(caught.value)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ({"code": 137, "no_memory": False}, "the container was killed by SIGKILL (exit code 137) in block 3"),
        ({"code": 137, "no_memory": True}, "the container was killed for want of memory (exit code 137) in block 3"),
        ({"code": 0}, "the container ended with exit code 0 in block 3"),
        ({"code": 1}, "the container ended with exit code 1 in block 3"),
        ({"state": "paused"}, "the container was paused in block 3"),
    ],
)
def test_a_part_that_is_lost_is_named_with_how_it_ended_and_its_last_words(
    bed: Bed, ending: dict[str, Any], said: str
) -> None:
    told = lost(bed, lambda: bed.ends("recorded", **ending))
    assert told.startswith(f"recorded: {said}; its log ends: recorded says goodbye; ")


@pytest.mark.parametrize(
    "error",
    [errors.TestbedError("its cgroup is gone"), ValueError("half an answer"), ConnectionResetError(104, "reset")],
)
def test_what_comes_of_a_lost_part_is_told_as_its_loss_though_it_is_listed_late(bed: Bed, error: Exception) -> None:
    def breaks() -> None:
        bed.later = [
            replace(each, state="exited", code=137) if each.service == "client-plain" else each for each in WHOLE
        ]
        raise error

    assert lost(bed, breaks).startswith("client-plain: the container was killed by SIGKILL")


def test_a_part_that_was_started_anew_is_lost_unless_the_run_did_it(bed: Bed) -> None:
    def renews() -> None:
        bed.now = [replace(each, began_s=time.time() + 60) if each.service == "recorded" else each for each in WHOLE]

    assert lost(bed, renews).startswith("recorded: somebody started the container anew in block 3; ")
    bed.now = list(WHOLE)
    with watch.Watch(bed).during("in block 3", lambda: Ended(ever={"recorded"})):  # type: ignore[arg-type]
        renews()


def test_the_first_that_ended_is_named_and_the_others_beside_it(bed: Bed) -> None:
    def two() -> None:
        bed.ends("client-plain", code=1, ended="2025-01-01T00:00:02Z")
        bed.ends("recorded", code=137, ended="2025-01-01T00:00:01Z")

    assert "recorded: the container was killed by SIGKILL (exit code 137) in block 3; lost too: client-plain; " in lost(
        bed, two
    )


def test_a_testbed_that_is_gone_was_removed_by_somebody(bed: Bed) -> None:
    assert lost(bed, bed.now.clear).startswith("testbed meshdns: somebody removed it in block 3; ")
    bed.now = list(WHOLE)
    replaced = [replace(each, id=f"new {each.id}") for each in WHOLE]
    assert "somebody removed it" in lost(bed, lambda: bed.now.__setitem__(slice(None), replaced))  # and started another
    bed.now = list(WHOLE)
    half_way = [replace(each, state="exited", code=137) for each in WHOLE[:4]]
    assert "somebody removed it" in lost(bed, lambda: bed.now.__setitem__(slice(None), half_way))
    bed.now = list(WHOLE)
    assert lost(bed, lambda: bed.now.pop(0)).startswith("client-plain: somebody removed the container in block 3; ")


def test_what_is_down_on_purpose_is_not_lost(bed: Bed) -> None:
    with watch.Watch(bed).during("in block 3", lambda: Ended({"client-answers-envoy"})):  # type: ignore[arg-type]
        bed.ends("client-answers-envoy", code=137)
    with (
        pytest.raises(errors.TestbedError, match="another reason"),
        watch.Watch(bed).during("in block 3", lambda: Ended({"client-answers-envoy"})),
    ):  # type: ignore[arg-type]
        raise errors.TestbedError("another reason")
    told = lost(bed, lambda: bed.ends("recorded", code=1), Ended({"client-answers-envoy"}))
    assert "client-answers-envoy" not in told
