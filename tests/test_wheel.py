"""An installation from a wheel, in environments that hold what its metadata asks for and nothing else."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fresh
from meshdns import cli
from meshdns.core import errors

LACKS = errors.EnvironmentProblem.exit_code
EXAMPLES = fresh.ROOT / "data" / "examples"
BARE_BYTES = 80e6
TOOLS = [
    ["--help"],
    ["--version"],
    ["validate", str(EXAMPLES / "mesh")],
    ["explain", "cart:80", "--mode", "1", "--mesh", str(EXAMPLES / "mesh")],
    ["explain", "web.shop:80", "--mode", "2"],  # of the testbed's own mesh
    ["rules", "--mechanism", "iptables", "--config", str(EXAMPLES / "rules.json")],
    ["rules", "--mechanism", "ebpf"],
    ["dns-proxy", "--differences"],
    ["run", "--dry-run"],
    ["run", "--plan", "change", "--dry-run"],
]
MORE = {  # what needs an extra, and which
    "doctor": "lab",
    "up": "lab",
    "status": "lab",
    "logs": "lab",
    "exec dns-coredns true": "lab",
    "down": "lab",
    "record": "lab",
    "run": "lab",
    "trace http://web/": "lab",
    "report": "notebooks",
    "report --runs data/sample": "notebooks",
}
IMPORT_ALL = """
import importlib, pkgutil, meshdns
for module in pkgutil.walk_packages(meshdns.__path__, "meshdns."):
    if module.name.split(".")[1] in {rooms} and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
# What runs in containers finds its packages beside itself there.
LAB_ROOMS = "{'core', 'dnsproxy', 'interception', 'istio', 'lab', 'measure', 'store'}"

pytestmark = pytest.mark.slow


def reached(ours: Distribution, *extras: str) -> dict[str, Distribution]:
    """The distributions that an installation with these extras brings, by name."""
    found: dict[str, Distribution] = {}
    seen, left = set(), [(ours, frozenset(extras))]
    while left:
        package, wanted = left.pop()
        for need in map(Requirement, package.requires or []):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                name, more = canonicalize_name(need.name), frozenset(need.extras)
                if (name, more) not in seen:
                    seen.add((name, more))
                    found[name] = importlib.metadata.distribution(name)
                    left.append((found[name], more))
    return found


class Installation:
    """A virtual environment that holds our wheel and what it asks for with these extras; the latter as links."""

    def __init__(self, place: Path, wheel: Path, *extras: str) -> None:
        self.python = place / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", self.python]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
        [self.packages] = (place / "lib").glob("python*/site-packages")
        [ours] = importlib.metadata.distributions(path=[str(self.packages)])
        self.brought = reached(ours, *extras)
        source = Path(sysconfig.get_path("purelib"))
        for file in {file.parts[0] for each in self.brought.values() for file in each.files or []} - {".."}:
            (self.packages / file).symlink_to(source / file)
        if extras:  # pages of nbconvert, settings of Jupyter
            (place / "share").symlink_to(Path(sys.prefix) / "share")

    def size(self) -> int:
        """Bytes of all that is installed."""
        folders = os.walk(self.packages, followlinks=True)
        return sum((Path(folder) / name).stat().st_size for folder, _, names in folders for name in names)

    def start(self, *command: object, cwd: Path) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["DOCKER_HOST"] = "unix:///nowhere.sock"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([self.python, *command], text=True, cwd=cwd, env=environment, **pipes)

    def run(self, *command: object, cwd: Path) -> tuple[int, str, str]:
        with self.start(*command, cwd=cwd) as running:
            said, complaints = running.communicate(timeout=200)
        assert "Traceback" not in complaints, complaints
        return running.returncode, said, complaints

    def meshdns(self, *arguments: str, cwd: Path) -> tuple[int, str, str]:
        return self.run(self.python.with_name("meshdns"), *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    source = fresh.copy(
        place / "source", "harness", "compose", "notebooks", "data", "*.md", "LICENSE", "pyproject.toml"
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, source], check=True)
    [built] = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("bare") / "venv", wheel)


@pytest.fixture(scope="module")
def lab(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("lab") / "venv", wheel, "lab")


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("all") / "venv", wheel, "all")


def verbs() -> set[str]:
    return set(cli._parser()._subparsers._group_actions[0].choices)


def test_every_verb_is_tried() -> None:
    # `engine` needs no package: it finds and builds with what the machine has.
    assert verbs() == {each[0] for each in TOOLS[2:]} | {each.split()[0] for each in MORE} | {"engine"}


def test_the_tools_need_little(bare: Installation) -> None:
    assert len(bare.brought) <= 6, sorted(bare.brought)
    assert bare.size() < BARE_BYTES


@pytest.mark.parametrize("arguments", TOOLS, ids=" ".join)
def test_a_tool_works(arguments: list[str], bare: Installation, tmp_path: Path) -> None:
    code, said, _ = bare.meshdns(*arguments, cwd=tmp_path)
    assert code == 0
    assert said
    assert not list(tmp_path.iterdir())


def test_the_dns_proxy_serves(bare: Installation, tmp_path: Path) -> None:
    command = ["-m", "meshdns", "dns-proxy", "--name-table", EXAMPLES / "names.json", "--listen", "127.0.0.1:0"]
    with bare.start(*command, cwd=tmp_path) as proxy:
        assert proxy.stdout
        assert proxy.stdout.readline().startswith("127.0.0.1:")
        proxy.send_signal(signal.SIGTERM)
    assert proxy.returncode == 0


@pytest.mark.parametrize(("line", "extra"), MORE.items())
def test_what_needs_more_names_the_extra(line: str, extra: str, bare: Installation, tmp_path: Path) -> None:
    code, _, said = bare.meshdns(*line.split(), cwd=tmp_path)
    verb, *_ = line.split()
    wanted = rf"meshdns: {verb} needs packages that are not installed \(.+\); run: pip install 'meshdns\[{extra}\]'\n"
    assert (code, bool(re.fullmatch(wanted, said))) == (LACKS, True), said


def test_the_laboratory_needs_no_notebooks(lab: Installation, tmp_path: Path) -> None:
    assert lab.run("-c", IMPORT_ALL.format(rooms=LAB_ROOMS), cwd=tmp_path)[0] == 0
    assert lab.run("-c", "import meshdns.studies.path.answer", cwd=tmp_path)[0] == 0
    code, _, said = lab.meshdns("report", cwd=tmp_path)
    assert (code, "pip install 'meshdns[notebooks]'" in said, "docker" in said) == (LACKS, True, False), said
    code, _, said = lab.meshdns("status", cwd=tmp_path)
    assert (code, "docker does not answer" in said) == (LACKS, True), said


def test_with_all_extras_every_verb_and_module_is_there(whole: Installation, tmp_path: Path) -> None:
    for verb in verbs():
        code, said, _ = whole.meshdns(verb, "--help", cwd=tmp_path)
        assert (code, said.startswith(f"usage: meshdns {verb}")) == (0, True)
    every = f"{LAB_ROOMS} | {{'analysis', 'report', 'studies'}}"
    assert whole.run("-c", IMPORT_ALL.format(rooms=every), cwd=tmp_path)[0] == 0


def test_the_sample_that_comes_along_is_published_where_one_stands(whole: Installation, tmp_path: Path) -> None:
    # By force: whoever measures on this machine meanwhile is none of the test's business.
    code, said, complaints = whole.meshdns("report", "--runs", "data/sample", "--force", cwd=tmp_path)
    assert code == 0, complaints
    assert said.strip() == str(tmp_path / "reports" / "sample" / "index.html")
    assert len(list((tmp_path / "reports" / "sample").glob("*.html"))) > 5


def test_the_version_is_not_that_of_a_checkout_around_it(bare: Installation, tmp_path: Path) -> None:
    around = bare.packages.parents[2]
    subprocess.run(["git", "init", "--quiet", around], check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=around, check=True)
    assert "commit" not in bare.meshdns("--version", cwd=tmp_path)[1]
