"""What happens when something is in the way or breaks: one message, the right code, nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker.errors
import pytest

from meshdns import cli, store
from meshdns.core import errors, paths, process
from meshdns.core.world import Nets
from meshdns.lab import locks, readiness
from meshdns.lab.compose import engine
from meshdns.lab.compose.testbed import Testbed, images_of
from shipped import WORLD

ROOT = Path(__file__).parents[2]
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
PLAN = """
name = "faults"
seed = 1
blocks = 3
[[experiment]]
name = "lookup"
arm = ["plain", "mode2-envoy"]
arrival = "constant"
rate_hz = 100.0
count = 200
"""

CALLING = """
name = "faults"
seed = 1
blocks = 3
[[experiment]]
name = "faults"
kind = "request"
arm = "mode1"
backend = "shop"
connection = "new"
body_bytes = 1024
arrival = "constant"
rate_hz = 100.0
count = 400
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "faults.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def partials() -> Iterator[list[Path]]:
    """Unfinished runs that the test leaves; removed afterwards."""
    before = set(paths.RUNS.glob("faults-*"))
    found: list[Path] = []
    yield found
    for folder in set(paths.RUNS.glob("faults-*")) - before:
        process.run("rm", "-rf", str(folder), timeout_s=10)


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "meshdns", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip


def unfinished() -> list[Path]:
    return sorted(paths.RUNS.glob("faults-*.partial"))


def wait_for_blocks(count: int) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in unfinished():
            if len(store.stored(folder)) >= count:
                return folder
        time.sleep(0.05)
    raise AssertionError("no block was stored in time")


def running_in(bed: Testbed, service: str) -> str:
    """Its processes' command lines."""
    return bed.exec(service, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], timeout_s=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_keep_what_is_complete_and_are_resumed(
    bed: Testbed, plan_file: Path, partials: list[Path], number: signal.Signals
) -> None:
    running = start("run", "--plan", str(plan_file))
    folder = wait_for_blocks(1)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == cli.INTERRUPTED
    assert "Traceback" not in said
    assert f"go on with `meshdns run --resume {folder}`" in said
    assert "agent" not in running_in(bed, "client-plain-app")  # the load has stopped with its driver
    kept = {path.name: path.read_bytes() for path in folder.glob("blocks/*")}
    resumed = start("run", "--resume", str(folder))
    out, said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    finished = Path(out.strip())
    assert finished.name == folder.name.removesuffix(".partial")
    assert all((finished / "blocks" / name).read_bytes() == content for name, content in kept.items())
    assert len(store.load(finished).cells.drop_duplicates(["block", "arm"])) == 6  # a noisy trial is measured again


def test_a_killed_run_is_recognised_and_left_alone_by_readers(
    bed: Testbed, plan_file: Path, partials: list[Path]
) -> None:
    running = start("run", "--plan", str(plan_file))
    folder = wait_for_blocks(1)
    running.kill()
    running.communicate()
    with pytest.raises(errors.DataError, match="no finished run"):
        store.load(_only(folder))
    deadline = time.monotonic() + 5
    while "agent" in running_in(bed, "client-plain-app"):
        assert time.monotonic() < deadline, "the load outlived its driver"
        time.sleep(0.1)
    assert len(store.load(folder).cells) >= 2  # asked for by name it is read, as far as it goes


def _only(folder: Path) -> Path:
    """A folder of runs that holds just this one."""
    root = folder.parent / f"faults-only-{os.getpid()}"
    root.mkdir()
    process.run("cp", "-r", str(folder), str(root), timeout_s=10)
    return root


class EngineDoor:
    """A way to the engine that can be shut, so that the engine seems to die."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(ENGINE)
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def shut(self) -> None:
        self.path.unlink()
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_an_engine_that_dies_during_a_run_is_told_and_the_run_can_go_on(
    bed: Testbed, plan_file: Path, partials: list[Path], tmp_path: Path
) -> None:
    door = EngineDoor(tmp_path / "engine.sock")
    running = start("run", "--plan", str(plan_file), DOCKER_HOST=f"unix://{door.path}")
    folder = wait_for_blocks(1)
    door.shut()
    _, said = running.communicate(timeout=120)
    assert running.returncode == errors.TestbedError.exit_code, said
    assert "Traceback" not in said
    assert f"go on with `meshdns run --resume {folder}`" in said
    assert errors.AGAIN not in said  # it would begin another run
    again = start("run", "--resume", str(folder))
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said


def test_a_half_written_header_is_told(bed: Testbed, plan_file: Path, partials: list[Path]) -> None:
    running = start("run", "--plan", str(plan_file))
    folder = wait_for_blocks(1)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    whole = (folder / "run.json").read_text()
    (folder / "run.json").write_text(whole[: len(whole) // 2])
    done = start("run", "--resume", str(folder))
    _, said = done.communicate(timeout=60)
    assert done.returncode == errors.DataError.exit_code
    assert "run.json" in said
    assert "Traceback" not in said


def test_a_second_run_at_the_same_time_is_refused(bed: Testbed, plan_file: Path, partials: list[Path]) -> None:
    first = start("run", "--plan", str(plan_file))
    wait_for_blocks(1)
    second = start("run", "--plan", str(plan_file))
    _, said = second.communicate(timeout=60)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert second.returncode == errors.EnvironmentProblem.exit_code
    assert f"(process {first.pid}, meshdns run, plan faults, testbed {bed.project}) from {ROOT} since" in said


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Testbed]:
    """A testbed of another name, on other networks: for starts that are meant to fail."""
    nets = Nets("198.18.77", "198.19.77")
    images = engine.images(print, images_of(WORLD, ()))
    other = Testbed(images, nets, project="meshdns-fault", state=tmp_path / "x" / "state")
    with locks.testbed("tests", other.project).hold("tests of the testbed"):
        yield other
        other.down()


# The command line on the testbed of `small`, which has networks, containers and a state of its own.
ELSEWHERE = """
import sys
from pathlib import Path
from meshdns import cli
from meshdns.core import paths
from meshdns.core.world import Nets
from meshdns.lab import world as worlds
from meshdns.lab.compose import engine
from meshdns.lab.compose.testbed import Testbed, images_of

def bed(world=None, groups=()):
    nets = Nets("198.18.77", "198.19.77")
    world = world or worlds.shipped()
    images = engine.images(cli.say, images_of(world, groups))
    return Testbed(images, nets, project="meshdns-fault", state=state, groups=frozenset(groups), world=world)

state = Path(sys.argv[1])
paths.RUNS, cli._bed = state.parent / "runs", bed
sys.exit(cli.main(sys.argv[2:]))
"""


def start_elsewhere(small: Testbed, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(small.state), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip


def wait_until(running: subprocess.Popen[str], holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 180  # images are there; a testbed of its own beside the other, and a block
    while not holds():
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            raise AssertionError(f"{what}: {running.communicate()[1]}")
        time.sleep(0.05)


def blocks_in(runs: Path) -> list[int]:
    return [block for folder in runs.glob("*.partial") for block in store.stored(folder)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["up", "block"])
def test_an_interrupted_run_takes_down_the_testbed_that_it_has_started(
    small: Testbed, plan_file: Path, number: signal.Signals, moment: str
) -> None:
    runs = small.state.parent / "runs"
    holds = {"up": small.containers, "block": lambda: blocks_in(runs)}
    running = start_elsewhere(small, "run", "--plan", str(plan_file))
    wait_until(running, holds[moment], f"no {moment}")
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    assert running.returncode == cli.INTERRUPTED, said
    assert "Traceback" not in said
    assert small.containers() == []
    assert not small.state.exists()
    assert ("go on with `meshdns run --resume" in said) == (moment == "block")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Another checkout of this tree."""
    for folder in ("harness", "compose"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "checkout"


def down_from(checkout: Path, small: Testbed, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meshdns", "down", *arguments],
        capture_output=True, text=True, cwd=checkout, env=os.environ | {"MESHDNS_PROJECT": small.project}, timeout=120,
        check=False,
    )  # fmt: skip


def ended(running: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and the last line of what was said; not before it has ended."""
    _, said = running.communicate(timeout=180)
    assert "Traceback" not in said
    return running.returncode, said.splitlines()[-1]


def test_a_run_names_the_part_that_it_loses_keeps_its_blocks_and_is_resumed(
    small: Testbed, plan_file: Path, checkout: Path
) -> None:
    runs = small.state.parent / "runs"
    running = start_elsewhere(small, "run", "--plan", str(plan_file))
    wait_until(running, lambda: blocks_in(runs), "no block")
    [folder] = runs.glob("*.partial")

    refused = down_from(checkout, small)
    assert refused.returncode == errors.EnvironmentProblem.exit_code
    assert f"(process {running.pid}, meshdns run, plan faults) from {ROOT} since" in refused.stderr
    small.kill("client-plain")  # holds the pod's namespaces
    code, last = ended(running)
    assert code == errors.LostPartError.exit_code, last
    assert last.startswith("meshdns: client-plain: the container was killed by SIGKILL (exit code 137) while block ")
    assert last.endswith(f"go on with `meshdns run --resume {folder}`")
    assert small.containers() == []

    running = start_elsewhere(small, "run", "--resume", str(folder))
    wait_until(running, lambda: "resumed;" in (folder / "log.txt").read_text(), "not resumed")
    count = len(small.parts())
    forced = down_from(checkout, small, "--force")
    assert f"(process {running.pid}, meshdns run, plan faults)" in forced.stderr.splitlines()[0]
    assert (
        f"removed {count} containers and 2 networks of project {small.project}, started from {ROOT} at" in forced.stderr
    )
    code, last = ended(running)
    assert (code, f"testbed {small.project}: somebody removed it while block" in last) == (8, True), last
    assert "there was nothing of project" in down_from(checkout, small).stderr

    finished = start_elsewhere(small, "run", "--resume", str(folder))
    out, said = finished.communicate(timeout=180)
    assert finished.returncode == 0, said
    assert len(store.load(Path(out.strip())).cells.drop_duplicates(["block", "arm"])) == 6
    assert " trials invalid (" in said
    assert small.containers() == []


def state_of(small: Testbed, service: str) -> str:
    return next((each.state for each in small.parts() if each.service == service), "")


def test_a_control_plane_and_a_server_that_end_are_told_by_a_run_that_goes_on_without_them(
    small: Testbed, plan_file: Path
) -> None:
    plan_file.write_text(CALLING)
    runs = small.state.parent / "runs"
    running = start_elsewhere(small, "run", "--plan", str(plan_file))
    wait_until(running, lambda: blocks_in(runs), "no block")
    small.client.api.kill(f"{small.project}-plane-istiod-1", "SIGTERM")
    wait_until(running, lambda: state_of(small, "plane-istiod") == "exited", "istiod runs")
    small.kill("legacy-1")
    code, last = ended(running)
    assert code == errors.LostPartError.exit_code, last
    assert last.startswith("meshdns: plane-istiod: the container ended with exit code ")
    assert "lost too: legacy-1; " in last


def test_an_engine_that_dies_while_the_testbed_starts_is_told(small: Testbed, plan_file: Path, tmp_path: Path) -> None:
    door = EngineDoor(tmp_path / "engine.sock")
    running = start_elsewhere(small, "run", "--plan", str(plan_file), DOCKER_HOST=f"unix://{door.path}")
    wait_until(running, small.containers, "no container")
    door.shut()
    _, said = running.communicate(timeout=120)
    assert running.returncode == errors.TestbedError.exit_code, said
    assert "Traceback" not in said
    assert f"start it and {errors.AGAIN}" in said


def test_a_busy_subnet_is_told_with_a_way_out(tmp_path: Path) -> None:
    nets = Nets("198.18.78", "198.19.78")  # not those of `small`: an earlier test's network may have been kept
    images = engine.images(print, images_of(WORLD, ()))
    bed = Testbed(images, nets, project="meshdns-busy", state=tmp_path / "state")
    pool = {"Subnet": nets.cidrs()[0]}
    network = bed.client.api.create_network("meshdns-in-the-way", ipam={"Config": [pool]}, internal=True)
    try:
        with pytest.raises(errors.EnvironmentProblem, match="the container network meshdns-in-the-way") as caught:
            bed.up(lambda line: None)
        assert "MESHDNS_PODS" in str(caught.value)
        assert bed.containers() == []
    finally:
        bed.down()
        bed.client.api.remove_network(network["Id"])


def test_down_names_whoever_keeps_a_network(tmp_path: Path) -> None:
    tags = engine.images(print, images_of(WORLD, ()))
    bed = Testbed(tags, project="meshdns-kept", state=tmp_path / "state")
    pool = {"Subnet": "198.18.79.0/24"}
    labels = {"com.docker.compose.project": bed.project}
    network = bed.client.api.create_network("meshdns-kept_pods", ipam={"Config": [pool]}, internal=True, labels=labels)
    other = bed.client.containers.run(
        tags["observer"], ["sleep", "infinity"], name="meshdns-other", network="meshdns-kept_pods", detach=True
    )
    try:
        [said] = bed.down()
        assert said.startswith("network meshdns-kept_pods stayed: containers of others are on it (meshdns-other)")
    finally:
        other.remove(force=True)
        bed.client.api.remove_network(network["Id"])


def test_an_envoy_that_never_becomes_ready_is_named_and_everything_is_removed(
    small: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = small._render

    def broken() -> None:
        render()
        path = small.state / "recorded" / "client-mode1.json"
        path.write_text(path.read_text().replace('"web-headless.', '"nobody-here.'))

    monkeypatch.setattr(small, "_render", broken)
    monkeypatch.setattr(readiness, "TIMEOUT_S", 5)
    with pytest.raises(
        errors.TestbedError,
        match=r"client-mode1-istio-proxy: .* after 5 s",
    ):
        small.up(lambda line: None)
    assert small.containers() == []
    assert not small.state.exists()


def test_a_sidecar_that_is_told_nonsense_is_named(small: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    render = small._render

    def broken() -> None:
        render()
        path = small.state / "recorded" / "web-2.json"
        path.write_text(path.read_text().replace('"virtualInbound"', '""').replace("0.0.0.0", "no address"))

    monkeypatch.setattr(small, "_render", broken)
    monkeypatch.setattr(readiness, "TIMEOUT_S", 8)
    with pytest.raises(errors.TestbedError, match="web-2-istio-proxy: does not answer after 8 s; its log ends"):
        small.up(lambda line: None)
    assert small.containers() == []


def let_go(bed: Testbed) -> list[str]:
    """Networks that are left although the engine removes them; 20.10 at times keeps one for endpoints that are gone."""
    found = []
    for network in bed.client.networks.list(filters={"label": f"com.docker.compose.project={bed.project}"}):
        try:
            network.remove()
        except docker.errors.APIError as refused:
            if "active endpoints" not in str(refused):
                raise
        else:
            found.append(network.name)
    return found


def test_interrupted_up_leaves_nothing(small: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(readiness, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small.up(lambda line: None)
    assert small.containers() == []
    label = f"com.docker.compose.project={small.project}"
    assert let_go(small) == []
    assert small.client.volumes.list(filters={"label": label}) == []
