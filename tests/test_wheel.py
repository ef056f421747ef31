"""An installation from a wheel: what needs no checkout works, and what needs one says so."""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fresh
from meshdns import cli
from meshdns.core import errors

NEEDS_CHECKOUT = errors.EnvironmentProblem.exit_code
EXAMPLES = fresh.ROOT / "data" / "examples"
SAMPLE = fresh.ROOT / "data" / "sample"
CASES = [
    ([], errors.InputError.exit_code),
    (["--help"], 0),
    (["--version"], 0),
    (["doctor"], NEEDS_CHECKOUT),
    (["engine"], NEEDS_CHECKOUT),
    (["up"], NEEDS_CHECKOUT),
    (["status"], NEEDS_CHECKOUT),
    (["logs"], NEEDS_CHECKOUT),
    (["exec", "dns-bind", "true"], NEEDS_CHECKOUT),
    (["down"], NEEDS_CHECKOUT),
    (["run"], NEEDS_CHECKOUT),
    (["run", "--plan", "change", "--dry-run"], 0),
    (["trace", "http://web/"], NEEDS_CHECKOUT),
    (["report"], NEEDS_CHECKOUT),
    (["report", "--runs", str(SAMPLE)], NEEDS_CHECKOUT),
    (["validate", str(EXAMPLES / "mesh")], 0),
    (["explain", "cart:80", "--mode", "1"], NEEDS_CHECKOUT),
    (["explain", "cart:80", "--mode", "1", "--mesh", str(EXAMPLES / "mesh")], 0),
    (["rules", "--mechanism", "iptables", "--config", str(EXAMPLES / "rules.json")], 0),
    (["rules", "--mechanism", "ebpf"], 0),
    (["dns-proxy", "--differences"], 0),
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `meshdns` of an environment that holds our wheel, and beside it what this one's packages are."""
    place = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools builds in the tree, and takes what an earlier build has left there.
    source = fresh.copy(place / "source", "harness", "pyproject.toml", "README.md", "LICENSE")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python, [wheel] = place / "venv" / "bin" / "python", place.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    [packages] = (place / "venv" / "lib").glob("python*/site-packages")
    # Python reads no .pth file in a folder that a .pth file names: this checkout itself stays out.
    (packages / "of-the-tests.pth").write_text(sysconfig.get_path("purelib"))
    return place / "venv" / "bin" / "meshdns"


def run(installed: Path, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [installed, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def test_every_verb_is_tried() -> None:
    verbs = cli._parser()._subparsers._group_actions[0].choices
    assert set(verbs) == {"dns-proxy", *(arguments[0] for arguments, _ in CASES[3:])}


@pytest.mark.parametrize(("arguments", "code"), CASES, ids=lambda it: " ".join(it) if isinstance(it, list) else None)
def test_no_verb_ends_in_a_traceback(arguments: list[str], code: int, installed: Path, tmp_path: Path) -> None:
    done = run(installed, arguments, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == NEEDS_CHECKOUT:
        assert len(done.stderr.splitlines()) == 1
        assert str(installed.parents[1]) in done.stderr  # where it is
        assert "clone the project" in done.stderr


def test_the_version_is_not_that_of_a_checkout_around_it(installed: Path, tmp_path: Path) -> None:
    around = installed.parents[2]
    subprocess.run(["git", "init", "--quiet", around], check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=around, check=True)
    assert "commit" not in run(installed, ["--version"], tmp_path).stdout


def test_the_dns_proxy_serves(installed: Path, tmp_path: Path) -> None:
    command = [installed, "dns-proxy", "--name-table", EXAMPLES / "names.json", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        assert proxy.stdout.readline().startswith("127.0.0.1:")
        proxy.send_signal(signal.SIGTERM)
    assert proxy.returncode == 0
