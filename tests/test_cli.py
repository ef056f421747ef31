"""The command line: one clear message, a documented exit code, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import errno
import importlib.metadata
import io
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import synthetic
from meshdns import __version__, cli, report, store
from meshdns.core import errors, paths
from meshdns.lab import locks, recording
from meshdns.lab.compose import testbed
from meshdns.lab.place import Part
from meshdns.measure import plan, run
from meshdns.store import samples
from shipped import WORLD

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures on this machine is not asked, and not disturbed."""
    monkeypatch.setattr(locks, "FOLDERS", (tmp_path,))


Done = subprocess.CompletedProcess[str]


def meshdns(*arguments: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "meshdns", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The same in this process, which has imported everything already; a traceback would be this test's own."""

    def called(*arguments: str, **environment: str) -> Done:
        monkeypatch.chdir(ROOT)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = cli.main(arguments)
        said = capfd.readouterr()
        return Done(arguments, code, said.out, said.err)

    return called


def test_help_fits_a_screen_and_names_every_exit_code() -> None:
    said = meshdns("--help").stdout
    assert len(said.splitlines()) <= 32
    codes = {kind.exit_code for kind in errors.MeshdnsError.__subclasses__()} | {cli.INTERRUPTED}
    assert all(f"{code} " in said for code in codes)


def test_without_a_verb_the_help_says_what_there_is() -> None:
    done = meshdns()
    assert done.returncode == errors.InputError.exit_code
    assert done.stderr == meshdns("--help").stdout


def test_the_version_tells_release_commit_istio_and_python() -> None:
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    done = meshdns("--version")
    assert done.returncode == 0
    release = importlib.metadata.version("meshdns")
    istio = f"Istio {recording.read().istio} (development, not a release)"
    assert done.stdout == f"meshdns {release} (commit {commit}), {istio}, Python {platform.python_version()}\n"
    assert release == __version__


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--plan", "nonsense"], 2, "nonsense: no such plan"),
        (["run", "--resume", "data/runs/nowhere.partial"], 5, "nowhere.partial"),
        (["report", "--runs", "data/nowhere"], 5, "nowhere"),
        (["report", "-p", "percentil", "9"], 2, "percentil"),
        (["report", "-p", "runs", "elsewhere"], 2, "give the folder as --runs"),
        (["exec", "dns-coredns"], 2, "no command is given"),
    ],
)
def test_bad_input_is_one_message(here: Callable[..., Done], arguments: list[str], code: int, said: str) -> None:
    done = here(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_parameter_of_a_page_that_the_plan_does_not_fill_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_measuring", lambda *_: pytest.fail("it measures"))
    assert cli.main(["report", "--plan", "quick", "-p", "change", "added"]) == errors.InputError.exit_code
    assert "no notebook of this report takes 'change'; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["up", "status", "down", "run", "logs"])
def test_without_an_engine_every_verb_says_so_and_what_to_do(
    here: Callable[..., Done], verb: str, tmp_path: Path
) -> None:
    done = here(verb, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock")
    assert done.returncode == errors.EnvironmentProblem.exit_code, done.stderr


def test_dry_run_prints_cells_and_duration_and_starts_nothing(here: Callable[..., Done]) -> None:
    done = here("run", "--dry-run", DOCKER_HOST="unix:///nowhere.sock")
    assert done.returncode == 0
    assert "mode2-envoy" in done.stdout
    assert "minutes in all" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("name", ["Mesh", "-x", "a b", "ä", "", "x" * 41, "../x"])
def test_a_testbed_cannot_have_any_name(here: Callable[..., Done], name: str) -> None:
    done = here("status", MESHDNS_PROJECT=name, DOCKER_HOST="unix:///nowhere.sock")
    assert done.returncode == 2
    assert done.stderr.startswith(f"meshdns: MESHDNS_PROJECT: {name!r} cannot name a testbed; use")
    assert len(done.stderr.splitlines()) == 1


def test_a_testbed_of_another_name_has_a_state_of_its_own() -> None:
    assert testbed.state_of("meshdns") == ROOT / ".meshdns" / "state"
    assert testbed.state_of("mine") == ROOT / ".meshdns" / "state-mine"


def test_networks_outside_the_benchmarking_range_are_refused(here: Callable[..., Done]) -> None:
    done = here("up", MESHDNS_PODS="10.1.2")
    assert done.returncode == 2
    assert "outside 198.18.0.0/15" in done.stderr


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "get access to it"),
        (errno.EPERM, "get access to it"),
    ],
)
def test_a_disk_that_cannot_be_written_is_one_message_with_its_own_code(
    number: int, step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> int:
        raise OSError(number, os.strerror(number), "/somewhere/block")

    monkeypatch.setattr(cli, "_down", fails)
    assert cli.main(["down"]) == errors.StorageError.exit_code
    said = f"meshdns: /somewhere/block: {os.strerror(number)}; {step} and run the same command again\n"
    assert capsys.readouterr().err == said


class Bed:
    """A testbed in name only; what was asked of it."""

    world = WORLD

    def __init__(self, there: Sequence[Part] = (), up: BaseException | None = None) -> None:
        self.there, self.failure, self.asked = list(there), up, list[tuple[str, ...]]()

    @property
    def lock(self) -> locks.Lock:
        return locks.testbed("an engine", "meshdns")

    def exclusive(self, use: str, **how: Any) -> contextlib.AbstractContextManager[None]:
        return self.lock.hold(use, **how)

    def is_up(self) -> bool:
        return False

    def up(self, _: object) -> None:
        if self.failure:
            raise self.failure

    def down(self) -> list[str]:
        self.asked.append(("down",))
        return []

    def parts(self) -> list[Part]:
        return self.there

    def require(self, service: str) -> None:
        if service not in {part.service for part in self.there}:
            raise errors.TestbedError("there is no such container", place=service, step="run `meshdns up`")

    def interactive(self, *arguments: str) -> int:
        self.asked.append(arguments)
        return 7


PART = Part("dns-coredns", "1", "running", None, address="198.18.0.53")


@pytest.mark.parametrize(
    ("arguments", "code", "asked"),
    [
        (["logs"], 7, ("logs",)),
        (["logs", "dns-coredns"], 7, ("logs", "dns-coredns")),
        (
            ["exec", "dns-coredns", "rndc", "-s", "::1", "status"],
            7,
            ("exec", "-T", "dns-coredns", "rndc", "-s", "::1", "status"),
        ),
        (["logs", "nobody"], 4, None),
        (["exec", "nobody", "sh"], 4, None),
        (["status"], 0, None),
    ],
)
def test_looking_in_names_a_container_that_is_there(
    arguments: list[str], code: int, asked: tuple[str, ...] | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bed = Bed([PART])
    monkeypatch.setattr(cli, "_bed", lambda: bed)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # not a terminal: Compose must not ask for one
    assert cli.main(arguments) == code
    assert bed.asked == ([asked] if asked else [])
    said = capsys.readouterr()
    if arguments == ["status"]:
        assert [line.split() for line in said.out.splitlines()][1] == [
            "dns-coredns",
            "dns-coredns",
            "running",
            "198.18.0.53",
            "nothing",
        ]
    elif code == errors.TestbedError.exit_code:
        assert said.err == "meshdns: nobody: there is no such container; run `meshdns up`\n"


def test_status_of_what_is_not_up_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_bed", Bed)
    assert cli.main(["status"]) == errors.TestbedError.exit_code
    assert capsys.readouterr().err == "meshdns: the testbed is not up; run `meshdns up`\n"


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[str]:
    """Another process measures on this machine, and on the testbed."""
    program = f"""
import sys
from pathlib import Path
from meshdns.lab import locks
locks.FOLDERS = (Path({str(tmp_path)!r}),)
with locks.machine().hold("another run"), locks.testbed("an engine", "meshdns").hold("another run"):
    print(flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert other.stdout is not None
    other.stdout.readline()
    yield f"(process {other.pid}, another run) from {ROOT} since "
    other.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        ["up"],
        ["down"],
        ["exec", "dns-coredns", "sh"],
        ["run"],
        ["trace", "http://web/"],
        ["report"],
        ["report", "--runs", "."],
    ],
    ids=" ".join,
)
def test_what_somebody_measures_is_left_alone_unless_it_is_forced(
    arguments: list[str], somebody: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bed, reached = Bed([PART]), list[str]()

    def reach(*_: object, **__: object) -> Path:
        reached.append("")
        raise errors.TestbedError("reached")

    monkeypatch.setattr(cli, "_bed", lambda *_: bed)
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(bed, "up", reach)
    monkeypatch.setattr(report, "publish", reach)
    assert cli.main(arguments) == errors.EnvironmentProblem.exit_code
    said = capsys.readouterr().err
    assert somebody in said
    assert len(said.splitlines()) == 1
    assert not (bed.asked or reached)
    cli.main([arguments[0], "--force", *arguments[1:]])
    assert bed.asked or reached
    assert f"{somebody}" in (said := capsys.readouterr().err)
    assert "passed over, as --force says" in said


def test_down_says_what_it_has_removed_and_what_has_stayed() -> None:
    part = Part("dns-coredns", "1", "running", None, 0.0, "/a/checkout")
    said = list(testbed.removed("mine", [part, part], ["mine_pods", "mine_world"], {"mine_pods": ()}))
    assert said[0].startswith("removed 2 containers and 1 network of project mine, started from /a/checkout at 19")
    assert said[1].startswith("network mine_pods stayed: ")
    assert "restart the engine and run `docker network rm mine_pods`" in said[1]
    [used] = testbed.removed("mine", [], ["mine_pods"], {"mine_pods": ["theirs"]})
    assert "containers of others are on it (theirs)" in used
    assert "docker network disconnect mine_pods theirs" in used
    assert list(testbed.removed("mine", [], [], {})) == ["there was nothing of project mine to remove"]


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert cli.main(["report", "--out", str(tmp_path / "file" / "reports")]) == errors.StorageError.exit_code
    assert f"{tmp_path}/file: is not a folder" in capsys.readouterr().err


GONE = errors.TestbedError("it stopped answering", place="container engine", step=f"start it and {errors.AGAIN}")
DENIED = PermissionError(errno.EACCES, "Permission denied", "/data/runs")


@pytest.mark.parametrize(
    ("problem", "code"),
    [(GONE, 4), (DENIED, 7), (KeyboardInterrupt(), cli.INTERRUPTED)],
    ids=["engine", "disk", "ctrl-c"],
)
@pytest.mark.parametrize("begun", [True, False])
def test_what_ends_a_run_says_how_to_go_on(
    problem: BaseException, code: int, *, begun: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bed = Bed()

    def execute(*_: object) -> Path:
        if begun:
            synthetic.partial(tmp_path, blocks=90, written=1, samples_per_cell=2, name="quick-x")
        raise copy.copy(problem)

    monkeypatch.setattr(cli, "_bed", lambda *_: bed)
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(run, "execute", execute)
    assert cli.main(["run"]) == code
    assert bed.asked == [("down",)]
    said, go_on = capsys.readouterr().err, f"go on with `meshdns run --resume {tmp_path}/quick-x.partial`"
    assert (f"1 of {plan.find('quick', WORLD).blocks} blocks are stored; {go_on}\n" in said) == begun
    if code != cli.INTERRUPTED:
        last = said.splitlines()[-1]
        assert last.endswith(go_on if begun else errors.AGAIN)


def test_a_group_that_asks_the_api_server_starts_live_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording, "serves", lambda _: True)
    options = argparse.Namespace(live=False)
    assert cli._groups(options, WORLD, {"autopath"}) == {"autopath", "live"}
    assert "dns-autopath: its plugin autopath asks the API server, so Istio's own" in capsys.readouterr().err
    assert cli._groups(options, WORLD, {"dns", "interception"}) == {"dns", "interception"}
    assert capsys.readouterr().err == ""


def test_a_plan_that_calls_what_nobody_has_recorded_starts_live_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(live=False)
    assert cli._groups(options, WORLD, {"shop", "outside"}) == {"shop", "outside", "live"}
    assert "was not recorded: its own control plane starts" in capsys.readouterr().err
    assert cli._groups(options, WORLD, {"outside"}) == {"outside"}
    assert cli._groups(argparse.Namespace(live=True), WORLD, ()) == {"live"}
    assert cli._groups(options, dataclasses.replace(WORLD, live=True), ()) == {"live"}  # as an unfinished run's was
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("arguments", "left_out"), [(["up"], WORLD.live_groups | {"live"}), (["up", "--live"], set())])
def test_a_testbed_that_is_left_running_has_live_groups_where_it_is_live(
    arguments: list[str], left_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def made(_: object, groups: frozenset[str]) -> Bed:
        asked.append(groups)
        return Bed()

    monkeypatch.setattr(cli, "_bed", made)
    assert cli.main(arguments) == 0
    assert asked == [(WORLD.groups | {"live"}) - left_out]


def test_a_testbed_that_an_interrupt_finds_half_way_up_is_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(up=KeyboardInterrupt())
    monkeypatch.setattr(cli, "_bed", lambda *_: bed)
    assert cli.main(["run"]) == cli.INTERRUPTED
    assert bed.asked == [("down",)]


def test_an_interrupt_while_publishing_says_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_measure", lambda *_: tmp_path / "quick-x")
    monkeypatch.setattr(report, "publish", interrupted)
    way = f"the run is finished and stored; publish it with `meshdns report --runs {tmp_path}/quick-x`\n"
    assert cli.main(["report"]) == cli.INTERRUPTED
    assert way in capsys.readouterr().err
    assert cli.main(["report", "--runs", str(tmp_path / "other")]) == cli.INTERRUPTED
    assert "publish it" not in capsys.readouterr().err


@pytest.mark.parametrize("given", [".", "../quick-x", "../quick-x/blocks/.."])
def test_a_report_is_named_by_its_runs_however_they_are_given(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []

    def published(_: Path, out: Path, *__: object) -> Path:
        places.append(out)
        return out

    (tmp_path / "quick-x" / "blocks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "quick-x")
    monkeypatch.setattr(report, "publish", published)
    assert cli.main(["report", "--runs", given, "--out", "reports"]) == 0
    assert places == [Path("reports/quick-x")]


def test_a_resumed_runs_dry_run_counts_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    what = plan.find("quick", WORLD)
    writer = store.create(tmp_path, store.RunHeader("r", what.to_json(), what.seed, "now", what.blocks), WORLD)
    for number in range(what.blocks - 2):
        writer.write_block(number, samples.SCHEMA.empty_table(), [], "now")
    assert cli.main(["run", "--dry-run", "--resume", str(writer.path)]) == 0
    left_s = what.measuring_s([what.blocks - 2, what.blocks - 1])
    assert left_s < what.measuring_s(range(what.blocks)) / 10
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"about {left_s / 60:.1f} minutes in all, 2 blocks")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_end_of_the_terminal_is_an_interruption_unless_it_is_not_to_be_heeded(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, ignored: bool
) -> None:
    monkeypatch.setattr(cli, "_status", lambda _: os.kill(os.getpid(), number))
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        # What a signal does to a process that has no handler would end the tests.
        signal.signal(number, signal.SIG_IGN if ignored else lambda *_: None)
        assert cli.main(["status"]) == (0 if ignored else cli.INTERRUPTED)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
