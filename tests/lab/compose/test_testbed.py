"""The testbed's driver against an engine that dies or says no, and against signals."""

import dataclasses
import os
import signal

import docker
import pytest
import requests

from meshdns.core import errors, paths, process
from meshdns.lab import readiness, status
from meshdns.lab.compose import testbed
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.place import REFUSED, Part


class Dead:
    """The SDK's client of an engine that has died: whatever is asked of it raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _: str) -> "Dead":
        return self

    def __call__(self, *_: object, **__: object) -> None:
        raise self._error


ASKED = {
    "list containers": lambda bed: bed.containers(),
    "is it up": lambda bed: bed.is_up(),
    "status": status.rows,
    "program": lambda bed: bed.exec("dns-coredns", ["true"], timeout_s=1),
    "conversation": lambda bed: bed.talk("dns-coredns", ["true"]),
    "beside a pod": lambda bed: bed.talk("dns", ["true"], image="client"),
    "start": lambda bed: bed.start("dns-coredns"),
    "end": lambda bed: bed.kill("dns-coredns"),
    "usage": lambda bed: bed.usage(["dns-coredns"]),
    "account": lambda bed: bed.account(Part("dns-coredns", "x", "running", None)),
    "networks": lambda bed: bed._refuse_busy_networks(),
    "up": lambda bed: bed._start(lambda _: None),
    "facts": lambda bed: bed.facts(),
}


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("Connection aborted."),
        requests.exceptions.ReadTimeout("timed out"),
        docker.errors.DockerException("Error while fetching server API version"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("ask", ASKED)
def test_an_engine_that_dies_is_one_message_wherever_it_is_asked(ask, error, tmp_path):
    bed = Testbed({"client": "meshdns/client:x"}, state=tmp_path / "state")
    bed.client = Dead(error)
    with pytest.raises(
        errors.TestbedError, match=f"container engine: it stopped answering .*; start it and {errors.AGAIN}"
    ):
        ASKED[ask](bed)


def test_an_engine_that_dies_between_two_questions_is_told(tmp_path, monkeypatch):
    bed = Testbed({}, state=tmp_path / "state")
    bed.client = Dead(requests.exceptions.ConnectionError("Connection aborted."))
    monkeypatch.setattr(bed, "parts", lambda: [Part("client-ebpf-loader", "x", "exited", REFUSED)])
    with pytest.raises(errors.TestbedError, match="stopped answering"):
        readiness.refusals(bed)
    assert readiness.log_ends(bed, "client-ebpf-loader") == ""


def test_what_the_engine_refuses_is_not_taken_for_its_end(tmp_path):
    refusal = docker.errors.APIError("409 Client Error", explanation="container is paused")
    bed = Testbed({"client": "meshdns/client:x"}, state=tmp_path / "state")
    bed.client = Dead(refusal)
    with pytest.raises(errors.TestbedError, match="container is paused"):
        bed.facts()


def test_a_testbed_is_up_once_its_start_was_completed_from_this_checkout(tmp_path, monkeypatch):
    bed = Testbed({}, state=tmp_path / "state")
    bed._render()
    parts = [Part(service, service, "running", None, 0.0, str(paths.HOME)) for service in bed._services()]
    monkeypatch.setattr(bed, "parts", lambda: parts)
    assert not bed.is_up()  # all run, and whoever started them was killed before they answered
    (bed.state / testbed.READY).touch()
    assert bed.is_up()
    parts[-1] = dataclasses.replace(parts[-1], state="paused")
    assert not bed.is_up()
    parts[:] = [dataclasses.replace(part, state="running", folder="/another/checkout") for part in parts]
    assert not bed.is_up()  # they have its keys and files


@pytest.mark.parametrize(
    ("listed", "words", "right"),
    [
        ({"State": "running", "Status": "Up 2 seconds"}, "running", True),
        ({"State": "exited", "Status": "Exited (137) 2 seconds ago"}, "exited", False),
        ({"State": "exited", "Status": "Exited (0) 2 seconds ago", "service": "client-mode1-rules"}, "done", True),
        ({"State": "exited", "Status": "Exited (1) 2 seconds ago", "service": "client-mode1-rules"}, "exited", False),
        ({"State": "exited", "Status": "Exited (0) 2 seconds ago"}, "exited", False),
        ({"State": "exited", "Status": "Exited (3) 2 seconds ago", "service": "client-ebpf-loader"}, "refused", True),
        ({"State": "restarting", "Status": "Restarting (1) 2 seconds ago"}, "restarting", False),
    ],
)
def test_what_the_engine_lists_tells_whether_a_part_is_as_it_must_be(listed, words, right):
    labels = {"service": listed.pop("service", "legacy-1"), "project.working_dir": "/a/checkout"}
    named = {f"com.docker.compose.{name}": value for name, value in labels.items()}
    part = testbed._part({"Id": "x", "Created": 1, "Labels": named, **listed})
    assert (part.words, part.is_as_it_must_be, part.folder) == (words, right, "/a/checkout")


@pytest.mark.parametrize(
    ("status", "earliest_s"),
    [
        ("Up Less than a second", 2),
        ("Up 1 second", 2),
        ("Up 59 seconds (Paused)", 60),
        ("Up About a minute", 120),
        ("Up 3 minutes (healthy)", 240),
        ("Up About an hour", None),
        ("Up 2 weeks", None),
        ("Exited (137) 2 seconds ago", None),
    ],
)
def test_a_start_is_not_dated_later_than_it_was(monkeypatch, status, earliest_s):
    monkeypatch.setattr(testbed.time, "time", lambda: 10_000.0)
    assert testbed._began_s(status) == (10_000.0 - earliest_s if earliest_s else 0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_tidying_up_is_not_interrupted_and_afterwards_signals_mean_what_they_did(number):
    arrived: list[int] = []
    before = signal.signal(number, lambda received, _: arrived.append(received))
    try:
        with testbed._uninterrupted():
            os.kill(os.getpid(), number)
        assert arrived == []
        os.kill(os.getpid(), number)
        assert arrived == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("there", "step"), [([], "run `meshdns up`"), ([Part("dns", "x", "running", None)], "`meshdns status` lists")]
)
def test_a_name_that_no_container_has_is_told_by_what_is_there(monkeypatch, there, step):
    monkeypatch.setattr(Testbed, "parts", lambda _: there)
    with pytest.raises(errors.TestbedError, match=f"^dns-bin: there is no such container; {step}"):
        Testbed({}).require("dns-bin")


def test_a_group_that_needs_istio_itself_is_not_started_without_it(tmp_path):
    bed = Testbed({}, state=tmp_path, groups=frozenset({"shop", "outside"}))
    with pytest.raises(errors.InputError, match=r"groups: shop need.*add live"):
        bed.up(print)


def test_what_compose_cannot_do_is_told_with_a_next_step(tmp_path, monkeypatch):
    failed = process.Finished(("docker",), 1, "", "Error response from daemon: No such container: 0123")
    monkeypatch.setattr(process, "run", lambda *_, **__: failed)
    with pytest.raises(errors.TestbedError, match=r"No such container: 0123; .*run the same command again"):
        Testbed({}, state=tmp_path)._compose_up()
