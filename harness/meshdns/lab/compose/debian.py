"""What Debian and Ubuntu can give: packages, Compose's plugins, a root file system.

The machine's own package sources decide the mirror; nothing is added to them. Only `engine` calls these, and only after
it has said so.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshdns.core import errors, process

INSTALL_TIMEOUT_S = 900.0  # chromium is 100 MB to fetch; a slow line must still get it
UPDATE_TIMEOUT_S = 300.0
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BASE_SUITE = "trixie"  # the Debian release of every image; also the first whose docker-compose is Compose v2
_PLUGINS = {"compose": "docker-compose", "buildx": "docker-buildx"}  # CLI plugin: its package in BASE_SUITE
_FIRST_WITH_PLUGINS = 13  # Debian 12's docker-compose is the Python v1 and it has no docker-buildx


@dataclass(frozen=True)
class Distribution:
    """Which system this is, as far as its packages are concerned."""

    family: str  # "debian", "ubuntu", or "" for all others
    version: float  # 12.0, 24.04; infinity for testing and unstable, which have no number

    @property
    def has_plugins(self) -> bool:
        """Its own packages hold Compose v2 and buildx."""
        return self.family == "ubuntu" or (self.family == "debian" and self.version >= _FIRST_WITH_PLUGINS)

    @property
    def can_install(self) -> bool:
        """It is a system we know, and we are root."""
        return bool(self.family) and os.geteuid() == 0

    def plugin_packages(self, plugins: Sequence[str]) -> list[str]:
        """The packages with these CLI plugins, by their names here."""
        if _installed("docker-ce-cli"):  # Docker's own packages refuse to stand beside the distribution's
            return [f"docker-{plugin}-plugin" for plugin in plugins]
        names = _PLUGINS | ({"compose": "docker-compose-v2"} if self.family == "ubuntu" else {})
        return [names[plugin] for plugin in plugins]

    def engine_packages(self) -> list[str]:
        """The packages with the container engine, beside a client that may be there."""
        if _installed("docker-ce-cli"):  # as for the plugins
            return ["docker-ce", "containerd.io"]
        return ["docker.io"]

    def client_packages(self) -> list[str]:
        """Those with its command line, where the engine's package does not hold it."""
        return ["docker-cli"] if self.family == "debian" and self.has_plugins else []


def distribution() -> Distribution:
    """What this machine runs."""
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        return Distribution("", 0.0)
    kin = [facts["ID"], *facts.get("ID_LIKE", "").split()]
    family = next((name for name in ("ubuntu", "debian") if name in kin), "")
    try:
        version = float(facts.get("VERSION_ID", "inf"))
    except ValueError:
        version = float("inf")
    return Distribution(family, version)


def install(packages: Sequence[str], *, recommended: bool = False) -> None:
    """The packages are installed; without what they merely recommend unless asked."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    process.run("apt-get", "update", "-qq", timeout_s=UPDATE_TIMEOUT_S, env=quiet)  # the install below judges
    options = [] if recommended else ["--no-install-recommends"]
    # Another apt may be at work on a machine that has just started.
    lock = ["-o", "DPkg::Lock::Timeout=120"]
    done = process.run(
        "apt-get", "install", "-qq", "-y", *lock, *options, *packages, timeout_s=INSTALL_TIMEOUT_S, env=quiet
    )
    if not done.ok:
        raise errors.EnvironmentProblem(
            f"apt-get could not install {' '.join(packages)}:\n{done.last_lines(5)}",
            step=f"mend the package sources and run: apt-get install {' '.join(packages)}",
        )


def fetch_plugins(plugins: Sequence[str], folder: Path) -> None:
    """The CLI plugins from BASE_SUITE are in `folder`; the system's packages are as before."""
    source = mirror()
    if source is None:
        raise errors.EnvironmentProblem(
            "no Debian mirror found in the machine's package sources",
            place="/etc/apt",
            step=f"put docker-{' and docker-'.join(plugins)} into {folder} yourself",
        )
    with tempfile.TemporaryDirectory(prefix="meshdns-apt-") as name:
        scratch = Path(name)
        scratch.chmod(0o755)  # apt downloads as the user _apt
        packages = [_PLUGINS[plugin] for plugin in plugins]
        for archive in _download(packages, source, scratch):
            _expect(process.run("dpkg-deb", "-x", str(archive), f"{scratch}/root", timeout_s=60))
        folder.mkdir(parents=True, exist_ok=True)
        for plugin in plugins:
            program = scratch / "root/usr/libexec/docker/cli-plugins" / f"docker-{plugin}"
            partial = folder / f".docker-{plugin}.partial"
            shutil.copy2(program, partial)
            partial.replace(folder / f"docker-{plugin}")


def _download(packages: Sequence[str], source: str, scratch: Path) -> list[Path]:
    for part in ("lists/partial", "cache/archives/partial", "parts", "debs"):
        (scratch / part).mkdir(parents=True)
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYRING}] {source} {BASE_SUITE} main\n")
    state = {
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": scratch / "parts",
        "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",  # the temporary folder is ours alone
    }
    options = [word for key, value in state.items() for word in ("-o", f"{key}={value}")]
    update = ("apt-get", *options, "-o", "APT::Update::Error-Mode=any", "-qq", "update")
    fetch = ("apt-get", *options, "-qq", "download", *packages)
    for argv in (update, fetch):
        _expect(process.run_all([process.Command(argv, UPDATE_TIMEOUT_S, cwd=scratch / "debs")])[0])
    return sorted((scratch / "debs").glob("*.deb"))


def root_filesystem(archive: Path) -> None:
    """`archive` is a tar of a minimal BASE_SUITE with CA certificates."""
    source = mirror()  # on Ubuntu none is configured: mmdebstrap then knows Debian's own
    done = process.run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=ca-certificates",
        f"--keyring={KEYRING}",
        BASE_SUITE,
        str(archive),
        *([source] if source else []),
        timeout_s=INSTALL_TIMEOUT_S,
    )
    if "NO_PUBKEY" in done.last_lines(20):  # Ubuntu 22.04's keys end with Debian 11
        raise errors.EnvironmentProblem(
            f"debian-archive-keyring here is older than the keys of Debian {BASE_SUITE}",
            place=str(KEYRING),
            step=f"make `docker pull debian:{BASE_SUITE}-slim` work, or install debian-archive-keyring 2023.3 or newer",
        )
    _expect(done)


def mirror(apt: Path = Path("/etc/apt")) -> str | None:
    """The Debian mirror this machine uses, or None where its sources name none."""
    suites: dict[str, list[str]] = {}
    for uri, words in _sources(apt):
        # Debian's cloud images name a file that lists mirrors; every mirror's own path ends in "debian".
        if uri.startswith("mirror+file:") or uri.rstrip("/").endswith("/debian"):
            suites.setdefault(uri, []).extend(words)
    # Third parties serve ".../debian" too, but none has the archive's own -updates.
    likely = sorted(suites, key=lambda uri: not any(word.endswith("-updates") for word in suites[uri]))
    resolved = (_first_of_list(uri) for uri in likely if "main" in suites[uri])
    return next((uri for uri in resolved if uri is not None), None)


def _first_of_list(uri: str) -> str | None:
    """The mirror itself where `uri` is a file that lists some: a new root file system has no such file."""
    if not uri.startswith("mirror+file:"):
        return uri
    try:
        lines = Path("/" + uri.removeprefix("mirror+file:").lstrip("/")).read_text().splitlines()
    except OSError:
        return None
    words = (line.split() for line in lines if not line.startswith("#"))
    return next((first[0] for first in words if first), None)


def _sources(apt: Path) -> Iterator[tuple[str, list[str]]]:
    """(URI, suites and components) of every enabled binary source, one-line and deb822."""
    parts = apt / "sources.list.d"
    for path in [apt / "sources.list", *sorted(parts.glob("*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            words = line.partition("#")[0].replace("[", " [ ").replace("]", " ] ").split()
            if words[:1] != ["deb"]:
                continue
            rest = words[words.index("]") + 1 :] if "]" in words else words[1:]
            if rest:
                yield rest[0], rest[1:]
    for path in sorted(parts.glob("*.sources")):
        for stanza in path.read_text().split("\n\n"):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            pairs = (line.partition(":") for line in lines)
            fields = {key.strip().lower(): value.split() for key, _, value in pairs}
            if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
                for uri in fields.get("uris", []):
                    yield uri, fields.get("suites", []) + fields.get("components", [])


def _installed(package: str) -> bool:
    status = process.run("dpkg-query", "-W", "-f", "${Status}", package, timeout_s=10)
    return status.ok and status.out.endswith(" installed")


def _expect(done: process.Finished) -> None:
    if not done.ok:
        raise errors.EnvironmentProblem(
            f"{done.argv[0]} failed:\n{done.last_lines(5)}", step="check the network and the package sources"
        )
