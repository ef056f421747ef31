"""The engine as seen through recorded answers of `docker`, and programs that misbehave."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meshdns.core import errors, process
from meshdns.lab.compose import daemon, debian, engine
from meshdns.lab.compose.testbed import Testbed, images_of
from shipped import WORLD

ROOT = Path(__file__).resolve().parents[3]
INFO = {
    "ServerVersion": "20.10.24+dfsg1",
    "CgroupVersion": "1",
    "CPUSet": True,
    "MemoryLimit": False,
    "Driver": "overlay2",
    "NCPU": 2,
    "ClientInfo": {"Plugins": [{"Name": "compose", "Version": "v2.26.1"}, {"Name": "buildx", "Version": "0.13.1"}]},
}


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Puts a `docker` in front that answers `docker info` as given, and nothing else on PATH but the shell's own."""

    def answer(info: dict[str, object], code: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "docker"
        quoted = json.dumps(info).replace("'", "'\\''")
        script.write_text(
            "#!/bin/sh\n"
            "[ \"$1\" = --version ] && echo 'Docker version 28.2.2, build e6534b4' && exit\n"
            f"echo '{quoted}'; exit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return answer


def test_find_reads_what_docker_says(docker):
    docker(INFO)
    found = engine.find()
    assert (found.client, found.server, found.compose, found.buildx) == ("28.2.2", "20.10.24+dfsg1", "2.26.1", "0.13.1")
    assert (found.cgroup, found.storage, found.cpus) == (1, "overlay2", 2)
    assert found.controllers == {"cpuset"}


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"ServerVersion": "", "ServerErrors": ["permission denied while trying"]}, "engine", "usermod -aG docker"),
        ({"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon"]}, "engine", "does not answer"),
        ({"ServerVersion": "19.03.15"}, "engine", "20.10 or newer"),
        ({"ClientInfo": {"Plugins": INFO["ClientInfo"]["Plugins"][1:]}}, "compose", "Compose v2"),
        ({"ClientInfo": {"Plugins": INFO["ClientInfo"]["Plugins"][:1]}}, "buildx", "buildx"),
        (
            {"ClientInfo": {"Plugins": [{"Name": "compose", "Path": "/x/docker-compose", "Err": "no executable"}]}},
            "compose",
            "/x/docker-compose (no executable); reinstall it or remove it",
        ),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the steps are Linux's")
def test_each_thing_that_is_missing_has_its_message_and_step(docker, monkeypatch, change, place, words):
    monkeypatch.setattr(daemon, "program", lambda: Path("/usr/sbin/dockerd"))
    docker(INFO | change, code=1 if "ServerErrors" in change else 0)
    with pytest.raises(errors.EnvironmentProblem) as caught:
        engine.find()
    assert caught.value.place == place
    assert words in caught.value.text()
    assert caught.value.step
    assert caught.value.exit_code == 3


def test_no_docker_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.EnvironmentProblem, match="no docker command"):
        engine.find()


def test_ensure_leaves_alone_what_works(docker, monkeypatch):
    docker(INFO)
    monkeypatch.setattr(debian, "install", lambda *_, **__: pytest.fail("installed something"))
    said: list[str] = []
    assert engine.ensure(said.append).server
    assert said == []


ABSENT = INFO | {"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon"]}


@pytest.fixture
def machine(monkeypatch):
    """A Debian 12 where we are root; what would be installed and started is collected instead."""
    did: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(debian, "distribution", lambda: debian.Distribution("debian", 12.0))
    monkeypatch.setattr(daemon, "program", lambda: Path("/usr/sbin/dockerd") if "docker.io" in did else None)
    monkeypatch.setattr(debian, "install", lambda packages, **_: did.extend(packages))
    monkeypatch.setattr(daemon, "start", lambda *_: did.append("start"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return did


def test_a_client_alone_is_no_engine(docker, machine):
    docker(ABSENT, code=1)
    said: list[str] = []
    with pytest.raises(errors.EnvironmentProblem):  # the client here goes on saying that nobody answers
        engine.ensure(said.append)
    assert machine == ["docker.io", "start"]
    assert any("docker.io" in line for line in said), "what is installed is said before"


def test_an_engine_that_is_installed_is_started_and_not_installed_again(docker, machine, monkeypatch):
    docker(ABSENT, code=1)
    monkeypatch.setattr(daemon, "program", lambda: Path("/usr/bin/dockerd"))
    with pytest.raises(errors.EnvironmentProblem):
        engine.ensure(lambda _: None)
    assert machine == ["start"]


@pytest.mark.parametrize(
    ("host", "context"),
    [("tcp://127.0.0.1:1", "default"), ("", "desktop-linux"), ("unix:///run/other.sock", "default")],
)
def test_an_engine_that_is_named_is_not_ours_to_start(docker, machine, monkeypatch, host, context):
    docker(ABSENT | {"ClientInfo": INFO["ClientInfo"] | {"Context": context}}, code=1)
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(errors.EnvironmentProblem, match=host or context):
        engine.ensure(lambda _: None)
    assert machine == []


@pytest.mark.parametrize(
    ("told", "mend"),
    [
        ("DOCKER_HOST", "unset DOCKER_HOST"),
        ("DOCKER_CONTEXT", "unset DOCKER_CONTEXT"),
        ("", "docker context use default"),
    ],
)
def test_a_client_that_fails_by_what_it_was_told_is_left_alone(docker, machine, monkeypatch, told, mend):
    docker({}, code=1)  # "Failed to initialize": no such context, or no address
    if told:
        monkeypatch.setenv(told, "tcp://[nowhere")
    else:
        monkeypatch.setattr(engine.paths, "text", lambda _: '{"currentContext": "nowhere"}')
    with pytest.raises(errors.EnvironmentProblem, match=f"nowhere, or run: {mend}"):
        engine.ensure(lambda text: pytest.fail(f"tried: {text}"))
    assert machine == []


def test_plugins_are_fetched_also_for_an_engine_that_is_named(docker, machine, monkeypatch):
    docker(INFO | {"ClientInfo": {"Plugins": []}})
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    monkeypatch.setattr(debian, "fetch_plugins", lambda plugins, _: machine.extend(plugins))
    with pytest.raises(errors.EnvironmentProblem):  # the client here goes on saying that it has none
        engine.ensure(lambda _: None)
    assert machine == ["compose", "buildx"]


def test_nothing_is_fetched_for_an_engine_that_does_not_let_this_user_in(docker, machine, monkeypatch):
    refused = {"ServerVersion": "", "ServerErrors": ["permission denied"], "ClientInfo": {"Plugins": []}}
    docker(INFO | refused, code=1)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(debian, "fetch_plugins", lambda plugins, _: machine.extend(plugins))
    with pytest.raises(errors.EnvironmentProblem, match="usermod"):
        engine.ensure(lambda text: pytest.fail(f"tried: {text}"))
    assert machine == []


def test_a_podman_that_is_called_docker_is_refused_with_the_command_that_replaces_it(docker, machine, tmp_path):
    docker({"host": {"arch": "amd64"}})
    script = tmp_path / "bin/docker"
    script.write_text(script.read_text().replace("Docker version 28.2.2", "podman version 4.3.1"))
    assert [(each.place, each.step) for each in engine.problems(engine.look())] == [
        ("engine", "run: apt-get install docker.io")
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Components": [{"Name": "Podman Engine"}], "ServerVersion": "4.3.1"}, "podman 4.3.1 .* no BuildKit"),
        ({"OperatingSystem": "Docker Desktop"}, "not of this machine"),
        ({"CgroupDriver": "none", "SecurityOptions": ["name=rootless"]}, "rootless engine gives .* no cgroups"),
        ({"KernelVersion": "6.6.1-linuxkit"}, "not of this machine"),
    ],
)
def test_an_engine_that_cannot_do_the_work_is_refused_with_the_reason(docker, machine, change, words):
    docker(INFO | change)
    with pytest.raises(errors.EnvironmentProblem, match=words) as caught:
        engine.ensure(lambda _: None)
    assert machine == []
    assert caught.value.place == "engine"


def test_a_far_engine_with_the_same_kernel_is_refused(docker, monkeypatch):
    docker(INFO)
    monkeypatch.setenv("DOCKER_HOST", "ssh://root@build.example")
    with pytest.raises(errors.EnvironmentProblem, match=r"build\.example.*cannot be read here"):
        engine.find()


def test_the_sdk_asks_the_engine_that_the_command_line_asks(tmp_path, monkeypatch):
    address = tmp_path / "context.sock"
    script = tmp_path / "docker"
    script.write_text(f"#!/bin/sh\n[ \"$1 $2\" = 'context inspect' ] && echo unix://{address}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        server.settimeout(10)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(_hang_up, server)
            with pytest.raises(errors.EnvironmentProblem, match="does not answer"):
                _ = Testbed({}).client
            asked.result()


def _hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_where_no_engine_is_to_be_had_it_is_said_what_works_without(docker, machine, monkeypatch):
    docker(ABSENT, code=1)

    def nothing(packages: list[str], **_: object) -> None:
        raise errors.EnvironmentProblem("apt-get could not install docker.io", step="mend the package sources")

    monkeypatch.setattr(debian, "install", nothing)
    with pytest.raises(
        errors.EnvironmentProblem, match=r"mend the package sources\nwithout an engine .*make lab"
    ) as caught:
        engine.ensure(lambda _: None)
    assert "explain, validate, rules, dns-proxy" in str(caught.value)


def test_no_root_no_install(docker, machine, monkeypatch):
    docker(ABSENT, code=1)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(errors.EnvironmentProblem, match=r"run: sudo apt-get install docker\.io"):
        engine.ensure(lambda text: pytest.fail(f"tried: {text}"))
    assert machine == []


def test_targets_are_the_marked_stages():
    names = engine.targets(ROOT / "compose/images/Dockerfile")
    assert {"client", "dns", "web", "observer", "sidecar"} <= set(names)
    assert not {"apt", "wheels", "fetch"} & set(names)


def test_an_official_image_is_taken_where_one_is_named(monkeypatch):
    monkeypatch.delenv("MESHDNS_COREDNS_IMAGE", raising=False)
    here = engine._recipe()
    assert not any("COREDNS_IMAGE" in word for word in engine._build_argv("coredns", "meshdns/coredns:x", Path()))
    monkeypatch.setenv("MESHDNS_COREDNS_IMAGE", "example/coredns:1.14.3")
    argv, there = engine._build_argv("coredns", "meshdns/coredns:x", Path()), engine._recipe()
    assert argv[argv.index("COREDNS_IMAGE=example/coredns:1.14.3") - 1] == "--build-arg"
    changed = {name for name in engine.targets(engine.DOCKERFILE) if here.tag(name, "") != there.tag(name, "")}
    assert changed == {"coredns"}


def test_a_proxy_reaches_the_build_without_showing_its_password(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy:3128")
    argv = engine._build_argv("dns", "meshdns/dns:x", Path("context"))
    assert "https_proxy" in argv
    assert not any("secret@" in word for word in argv)


def test_ca_bundle_prefers_the_variable(monkeypatch, tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert engine.ca_bundle() == bundle
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    assert engine.ca_bundle() != bundle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n', ("debian", False)),
        ('ID=debian\nVERSION_ID="13"\n', ("debian", True)),
        ("ID=debian\nVERSION_CODENAME=forky\n", ("debian", True)),  # testing has no number
        ('ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n', ("ubuntu", True)),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n', ("ubuntu", True)),
        ('ID=fedora\nVERSION_ID="42"\n', ("", False)),
    ],
)
def test_distribution(tmp_path, monkeypatch, text, expected):
    path = tmp_path / "os-release"
    path.write_text(text)
    monkeypatch.setattr(platform, "_os_release_candidates", (str(path),))
    monkeypatch.setattr(platform, "_os_release_cache", None)
    found = debian.distribution()
    assert (found.family, found.has_plugins) == expected


SOURCES = {
    "one line": ("sources.list", "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main contrib\n"),
    "deb822": (
        "sources.list.d/debian.sources",
        "Types: deb\n# a note\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://m.example/debian-security\nSuites: bookworm-security\nComponents: main\n",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_mirror_is_the_machines_own(tmp_path, kind):
    name, text = SOURCES[kind]
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert debian.mirror(tmp_path) == "http://m.example/debian"


def test_the_mirror_is_not_a_third_partys_nor_ubuntus(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://off.example/debian bookworm main\n"
        "deb-src http://src.example/debian bookworm main\n"
        "deb http://ubuntu.example/ubuntu noble main\n"
        "deb http://engine.example/linux/debian bookworm stable\n"
    )
    assert debian.mirror(tmp_path) is None
    (tmp_path / "sources.list.d/a.list").write_text("deb http://third.example/debian bookworm main\n")
    mirrors = tmp_path / "mirrors.txt"
    mirrors.write_text("# list\nhttp://own.example/debian\tpriority:1\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(
        f"Types: deb deb-src\nURIs: mirror+file://{mirrors}\nSuites: bookworm bookworm-updates\nComponents: main\n"
    )
    assert debian.mirror(tmp_path) == "http://own.example/debian"


@pytest.fixture
def mmdebstrap(tmp_path, monkeypatch):
    """Puts an `mmdebstrap` in front that says what it is told to, and how it was called, and fails."""

    def answer(says: str) -> None:
        script = tmp_path / "mmdebstrap"
        script.write_text(f"#!/bin/sh\necho \"$@\"; echo '{says}' >&2; exit 1\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return answer


def test_keys_older_than_the_base_are_told(mmdebstrap, tmp_path):
    mmdebstrap("W: GPG error: trixie InRelease: NO_PUBKEY 6ED0E7B82643E131")
    with pytest.raises(errors.EnvironmentProblem, match="older than the keys of Debian trixie") as caught:
        debian.root_filesystem(tmp_path / "base.tar")
    assert "docker pull" in caught.value.step


def test_a_program_out_of_time_is_gone_with_its_children(tmp_path):
    marker = tmp_path / "pid"
    done = process.run("sh", "-c", f"sleep 60 & echo $! > {marker}; wait", timeout_s=1)
    assert (done.code, done.ok) == (124, False)
    assert _ends(int(marker.read_text()))


def test_silence_is_not_waited_for_but_slowness_is():
    assert process.run("sleep", "30", timeout_s=30, hush_s=0.2).code == 124
    assert process.run("sh", "-c", "echo here; sleep 0.5", timeout_s=30, hush_s=0.2).ok


def test_an_absent_program_is_a_result_not_an_exception():
    done = process.run("no-such-program-here", timeout_s=1)
    assert done.code == 127
    assert "no-such-program-here" in done.last_lines(1)


def test_results_keep_their_order_and_logs_their_output(tmp_path):
    slow = process.Command(("sh", "-c", "sleep 0.2; echo slow; echo oops >&2"), 10, log=tmp_path / "log")
    fast = process.Command(("echo", "fast"), 10)
    assert [done.out.split()[0] for done in process.run_all([slow, fast], at_once=2)] == ["slow", "fast"]
    assert (tmp_path / "log").read_text() == "slow\noops\n"


def test_ctrl_c_leaves_no_program_behind(tmp_path):
    marker = tmp_path / "pid"
    code = (
        f"from meshdns.core import process; process.run('sh', '-c', 'echo $$ > {marker}; exec sleep 60', timeout_s=60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (marker.exists() and marker.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert b"KeyboardInterrupt" in said
    assert _ends(int(marker.read_text()))


def _ends(pid: int) -> bool:
    """Within five seconds: what was killed ends when it next has a processor."""
    deadline = time.monotonic() + 5
    while (lives := _lives(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives


def _lives(pid: int) -> bool:
    """Still running; a zombie, which its parent has yet to collect, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.testbed
def test_images_of_this_tree_exist_and_a_second_call_says_nothing():
    wanted = images_of(WORLD, ())
    first = engine.images(lambda _: None, wanted)
    assert first.keys() == wanted
    said: list[str] = []
    assert engine.images(said.append, wanted) == first
    assert said == []
    assert not wanted & {*engine.missing_images()}


@pytest.mark.testbed
def test_a_failed_build_is_one_message_with_its_log(tmp_path, monkeypatch):
    (tmp_path / "Dockerfile").write_text(f"# image\nFROM {engine.BASE_TAG} AS broken\nRUN echo the-reason && exit 7\n")
    monkeypatch.setattr(engine, "DOCKERFILE", tmp_path / "Dockerfile")
    monkeypatch.setattr(engine.paths, "WORK", tmp_path / "work")
    with pytest.raises(errors.EnvironmentProblem) as caught:
        engine.images(lambda _: None, ["broken"])
    assert "the-reason" in caught.value.text()
    assert "the-reason" in (tmp_path / "work/logs/build-broken.log").read_text()
