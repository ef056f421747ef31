"""The container engine and the images: found, installed, built.

`ensure` makes the engine answer and `images` makes those images exist that are asked for; both say through `announce`
what takes time, and cost a fraction of a second when all is there. No container of the testbed is started here: that is
`testbed`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshdns.core import errors, paths, process
from meshdns.lab import parts
from meshdns.lab.compose import daemon, debian, recipe

BASE_TAG = "meshdns/base:trixie"
_REGISTRY_BASE = f"debian:{debian.BASE_SUITE}-slim"
DOCKERFILE = paths.COMPOSE / "images/Dockerfile"
_OLDEST_ENGINE = (20, 10)  # the first with Compose v2's API and the build secrets we use

_ASK_TIMEOUT_S = 20.0  # a healthy engine answers in 0.2 s; one that is loaded with builds may need seconds
_READY_TIMEOUT_S = 3.0  # one that has just started answers in 0.1 s
_REGISTRY_SILENCE_S = 8.0  # a registry that is there answers in 1 s; who has none should not wait
_PULL_TIMEOUT_S = 300.0  # 30 MB on a slow line
_BUILD_TIMEOUT_S = 3600.0  # eight minutes on two cores: of those that compile Go one waits for the other
_GO, _SWEEP, _SWEEP_TIMEOUT_S = "go", "swept", 120.0  # stages: what programs are built by, and what is left by that
_BUILDX = ("buildx", "build", "--builder", "default")  # another one does not see the engine's own base image
_BUILDS_AT_ONCE = 2  # the builds wait for the network; more than two cores would gain little

_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian and kin
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and kin
)
_OWN_SOCKETS = ("", "unix:///var/run/docker.sock", "unix:///run/docker.sock")
_CONTROLLERS = {"cpuset": "CPUSet", "memory": "MemoryLimit"}  # cgroup controller: its flag in `docker info`
_WITHOUT = (
    f"without an engine these work: {paths.LAB}; meshdns report --runs data/sample; "
    "meshdns explain, validate, rules, dns-proxy"
)
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Engine:
    """What `docker` says of itself; a version is "" where the thing is missing."""

    client: str
    server: str
    compose: str  # the CLI plugin, so always v2
    buildx: str
    cgroup: int  # 1 or 2; 0 without a server
    cgroup_driver: str  # "none" where a rootless engine may not make any
    controllers: frozenset[str]  # of "cpuset" and "memory", those it can give to containers
    storage: str  # storage driver
    kernel: str  # of the server: with Docker Desktop it is not the host's
    cpus: int
    memory_bytes: int
    rootless: bool
    system: str  # that the server says it runs on, e.g. "Debian GNU/Linux 12 (bookworm)" or "Docker Desktop"
    maker: str  # "docker", or "podman", which answers like it
    named: str  # by DOCKER_HOST or a context, so not ours to install or start; "" for this machine's own
    broken: Mapping[str, str]  # CLI plugin that is there and does not work -> where, and why
    mute: bool  # the client is there and failed before it could tell of anything, its plugins included
    program: bool  # this machine has dockerd
    refusal: str  # why the server did not answer, in its own words


@dataclass(frozen=True)
class Browser:
    """What the tests drive."""

    chromium: Path
    driver: Path


def look() -> Engine:
    """What is there, without judging it."""
    version = process.run("docker", "--version", timeout_s=_ASK_TIMEOUT_S)
    answer = process.run("docker", "info", "--format", "{{json .}}", timeout_s=_ASK_TIMEOUT_S)
    info = _object(answer.out)
    plugins = (info.get("ClientInfo") or {}).get("Plugins") or []
    versions = {plugin["Name"]: plugin.get("Version", "") for plugin in plugins if not plugin.get("Err")}
    server = info.get("ServerVersion") or ""
    refusal = "; ".join(info.get("ServerErrors") or []) or answer.last_lines(1)
    found = re.search(r"version ([^\s,]+)", version.out)
    broken = {
        plugin["Name"]: f"{plugin.get('Path') or plugin['Name']} ({plugin['Err']})"
        for plugin in plugins
        if plugin.get("Err")
    }
    return Engine(
        client=found[1] if version.ok and found else "",
        server=server,
        compose=versions.get("compose", "").removeprefix("v"),
        buildx=versions.get("buildx", "").removeprefix("v"),
        cgroup=int(info.get("CgroupVersion") or (1 if server else 0)),  # 20.10 leaves it out on some systems
        cgroup_driver=info.get("CgroupDriver") or "",
        controllers=frozenset(name for name, flag in _CONTROLLERS.items() if info.get(flag)),
        storage=info.get("Driver") or "",
        kernel=info.get("KernelVersion") or "",
        cpus=info.get("NCPU") or 0,
        memory_bytes=info.get("MemTotal") or 0,
        rootless="name=rootless" in (info.get("SecurityOptions") or []),
        system=info.get("OperatingSystem") or "",
        # podman-docker's command `docker` says podman; podman's socket says so of its parts.
        maker="podman" if "podman" in (version.out + (_parts() if server else "")).lower() else "docker",
        named=_named((info.get("ClientInfo") or {}).get("Context") or _context()),
        broken=broken,
        mute=version.ok and not info,
        program=daemon.program() is not None,
        refusal="" if server else refusal,
    )


def _named(context: str) -> str:
    host = os.environ.get("DOCKER_HOST", "")
    if host or context == "default":
        return "" if host in _OWN_SOCKETS else host
    return f"the context {context}"


def _context() -> str:
    """What the client goes by, which fails without telling it where there is no such context."""
    told = _object(paths.text(_configuration() / "config.json")).get("currentContext")
    return os.environ.get("DOCKER_CONTEXT") or str(told or "default")


def _leave() -> str:
    """How this machine's own engine is asked instead of the one that is named."""
    variable = next((name for name in ("DOCKER_HOST", "DOCKER_CONTEXT") if os.environ.get(name)), "")
    return f"unset {variable}" if variable else "docker context use default"


def _parts() -> str:
    """What the server is made of: podman's socket, which `docker info` cannot tell from docker's, says so here."""
    return process.run("docker", "version", "--format", "{{json .Server}}", timeout_s=_ASK_TIMEOUT_S).out


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def endpoint() -> str:
    """Where docker's command line finds the engine, which the SDK must ask too; "" for both's default."""
    if host := os.environ.get("DOCKER_HOST"):
        return host
    form = "{{.Endpoints.docker.Host}}"
    found = process.run("docker", "context", "inspect", "--format", form, timeout_s=_ASK_TIMEOUT_S)
    return found.out.strip() if found.ok else ""


def problems(engine: Engine) -> list[errors.EnvironmentProblem]:
    """What is missing, each with the one command that mends it; `place` is "engine", "compose" or "buildx"."""
    here = debian.distribution()
    if platform.system() != "Linux":
        step = "use a Linux machine, or a virtual one, with an engine of its own"
        return [errors.EnvironmentProblem("containers are measured on Linux only", place="engine", step=step)]
    if not engine.client:
        step = _install_step(here)
        return [errors.EnvironmentProblem("there is no docker command on this machine", place="engine", step=step)]
    if reason := _unfit(engine):
        step = f"use Docker's own engine on this machine{f': {_leave()}' if engine.named else ''}"
        # A client that is podman's goes when docker's is installed.
        step = _install_step(here) if engine.maker == "podman" and not engine.server else step
        return [errors.EnvironmentProblem(reason, place="engine", step=step)]
    found = []
    if not engine.server:
        found.append(_refused(engine, here))
    elif _numbers(engine.server) < _OLDEST_ENGINE:
        fact = f"docker {engine.server} answers, {'.'.join(map(str, _OLDEST_ENGINE))} or newer is needed"
        found.append(errors.EnvironmentProblem(fact, place="engine", step=_install_step(here)))
    for plugin in _missing_plugins(engine):
        fact = "docker has no Compose v2" if plugin == "compose" else "docker has no buildx"
        step = _plugin_step(here, plugin)
        if plugin in engine.broken:  # it stands in the way of any other
            fact, step = f"docker's plugin does not work: {engine.broken[plugin]}", "reinstall it or remove it"
        found.append(errors.EnvironmentProblem(fact, place=plugin, step=step))
    return found


def _unfit(engine: Engine) -> str:
    """Why an engine that answers, or would, cannot do the work; "" where nothing is known against it."""
    if engine.maker == "podman":
        version = engine.server or engine.client
        return f"podman {version} answers in docker's place, and has no BuildKit to build the images with"
    if engine.cgroup_driver == "none":
        kind = "rootless engine" if engine.rootless else "engine"
        return f"this {kind} gives its containers no cgroups: their CPU time and memory cannot be read"
    try:
        where = urllib.parse.urlsplit(endpoint())
    except ValueError:  # the client says so itself
        where = urllib.parse.urlsplit("")
    far = where.scheme == "ssh" or (where.scheme == "tcp" and where.hostname not in ("localhost", "127.0.0.1", "::1"))
    # Docker Desktop and its like have a virtual machine for it; under WSL it shares the kernel, not the processes.
    if far or engine.system == "Docker Desktop" or engine.kernel not in ("", platform.release()):
        return (
            f"the engine is not of this machine ({engine.system or where.netloc}): "
            "CPU time and memory of its containers cannot be read here"
        )
    return ""


def find() -> Engine:
    """The engine, which answers and has all we use of it."""
    engine = look()
    for problem in problems(engine):
        raise _none_to_be_had(problem)
    return engine


def ensure(announce: process.Announce) -> Engine:
    """The engine answers: found, started or, where we are root on Debian or Ubuntu, installed."""
    engine = look()
    if problems(engine) and not _unfit(engine):
        try:
            _mend(engine, announce)
        except errors.EnvironmentProblem as problem:
            raise _none_to_be_had(problem) from None
    return find()


def _none_to_be_had(problem: errors.EnvironmentProblem) -> errors.EnvironmentProblem:
    return errors.EnvironmentProblem(problem.fact, place=problem.place, step=f"{problem.step}\n{_WITHOUT}")


def _mend(engine: Engine, announce: process.Announce) -> None:
    here = debian.distribution()
    if here.can_install:
        _ensure_packages(engine, here, announce)
    answers = _answers()
    if os.geteuid() == 0 and not engine.named and daemon.program() and not answers:
        daemon.start(_answers, announce)
        answers = True
    if answers and here.family and not here.has_plugins:  # else there is nothing that they are of use to
        _ensure_plugins(announce)  # into the user's own folder: needs no root


def _answers() -> bool:
    return process.run("docker", "version", "--format", "{{.Server.Version}}", timeout_s=_READY_TIMEOUT_S).ok


def _ensure_packages(engine: Engine, here: debian.Distribution, announce: process.Announce) -> None:
    there = engine.client and (engine.server or engine.program)
    packages = [] if engine.named or there else here.engine_packages()
    if not engine.client:
        packages += here.client_packages()
    if here.has_plugins:
        packages += here.plugin_packages(_missing_plugins(engine))
    if not packages:
        return
    announce(f"installing the distribution's packages: {' '.join(packages)}")
    debian.install(packages, recommended=True)  # apparmor among them, without which some engines start nothing


def _ensure_plugins(announce: process.Announce) -> None:
    engine = look()
    missing = _missing_plugins(engine)
    if missing and engine.client:
        announce(f"fetching Debian {debian.BASE_SUITE}'s docker {' and '.join(missing)} into {plugin_folder()}")
        debian.fetch_plugins(missing, plugin_folder())


def _missing_plugins(engine: Engine) -> list[str]:
    if engine.mute:
        return []
    return [name for name, version in (("compose", engine.compose), ("buildx", engine.buildx)) if not version]


def plugin_folder() -> Path:
    """Where docker looks for this user's CLI plugins."""
    return _configuration() / "cli-plugins"


def _configuration() -> Path:
    """Where docker's command line keeps what is this user's."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def ensure_browser(announce: process.Announce) -> Browser:
    """Chromium and its driver, which only the tests need, are there."""
    browser = find_browser()
    if browser is None and debian.distribution().can_install:
        # Ubuntu has no such packages, only a snap: apt then says so and we pass it on.
        announce("installing the distribution's packages: chromium chromium-driver")
        debian.install(["chromium", "chromium-driver"])
        browser = find_browser()
    if browser is None:
        raise errors.EnvironmentProblem(
            "the browser tests need chromium and chromedriver", step=f"run: {browser_step(debian.distribution())}"
        )
    return browser


def find_browser() -> Browser | None:
    """Chromium with its driver, if both are on PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for path in map(shutil.which, names) if path), None)
    driver = shutil.which("chromedriver")
    return Browser(Path(chromium), Path(driver)) if chromium and driver else None


def browser_step(here: debian.Distribution) -> str:
    """The command that installs them."""
    if here.family == "debian":
        return _as_root("apt-get install chromium chromium-driver")
    if here.family == "ubuntu":
        return _as_root("snap install chromium")
    return "brew install --cask chromium chromedriver" if platform.system() == "Darwin" else "dnf install chromedriver"


def base_image(announce: process.Announce) -> None:
    """BASE_TAG exists: pulled, or made from Debian's packages where no registry answers."""
    if BASE_TAG in _image_ids():
        return
    announce(f"pulling {_REGISTRY_BASE}")
    # -q would be silent until the end; without it the first line comes once the registry has answered.
    pull = process.run("docker", "pull", _REGISTRY_BASE, timeout_s=_PULL_TIMEOUT_S, hush_s=_REGISTRY_SILENCE_S)
    if pull.ok:
        _docker("tag", _REGISTRY_BASE, BASE_TAG)
        return
    announce("no registry answered: making the same base from Debian's packages")
    _ensure_mmdebstrap(announce, pull)
    with tempfile.TemporaryDirectory(prefix="meshdns-base-") as folder:
        archive = Path(folder) / "base.tar"
        debian.root_filesystem(archive)
        _docker("import", "--change", 'CMD ["bash"]', str(archive), BASE_TAG, timeout_s=_PULL_TIMEOUT_S)


def _ensure_mmdebstrap(announce: process.Announce, pull: process.Finished) -> None:
    # Ubuntu does not know Debian's keys by itself.
    there = {"mmdebstrap": shutil.which("mmdebstrap"), "debian-archive-keyring": debian.KEYRING.exists()}
    packages = [name for name, found in there.items() if not found]
    if not packages:
        return
    if not debian.distribution().can_install:
        raise errors.EnvironmentProblem(
            f"no base image: {pull.last_lines(1)}",
            step=f"make `docker pull {_REGISTRY_BASE}` work, or install {' and '.join(packages)}: "
            "mmdebstrap builds it without a registry",
        )
    announce(f"installing the distribution's packages: {' '.join(packages)}")
    debian.install(packages)


def images(announce: process.Announce, wanted: Collection[str]) -> dict[str, str]:
    """These images of the Dockerfile exist; image -> tag, which names its content, "web" -> "meshdns/web:0123456789ab".

    No others are built, as some take minutes.
    """
    base_image(announce)
    made = _recipe()
    tags, missing = _tags(made, wanted)
    if not missing:
        return tags
    announce(f"building images: {' '.join(missing)}")
    _build({name: tags[name] for name in missing}, {DOCKERFILE.name: DOCKERFILE.read_bytes(), **made.files})
    if any(made.uses(name, _GO) for name in missing):
        _sweep()
    return tags


def _sweep() -> None:
    """Nearly two gigabytes of Go modules are gone, which the next build of a Go program fetches again."""
    with tempfile.TemporaryDirectory(prefix="images-", dir=paths.WORK) as folder:
        context = Path(folder)
        (context / DOCKERFILE.name).write_bytes(DOCKERFILE.read_bytes())
        command = ("--target", _SWEEP, "--output", "type=cacheonly", "--build-arg", f"WHEN={time.time_ns()}")
        process.run("docker", *_BUILDX, *_dockerfile(context), *command, str(context), timeout_s=_SWEEP_TIMEOUT_S)


def _build(tags: Mapping[str, str], files: Mapping[str, bytes]) -> None:
    """Stages of a Dockerfile, from a context of these files."""
    logs = paths.WORK / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="images-", dir=paths.WORK) as folder:  # not every client sees /tmp
        context = Path(folder) / "context"
        for path, content in files.items():
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            (context / path).write_bytes(content)
        commands = [
            process.Command(_build_argv(name, tag, context), _BUILD_TIMEOUT_S, log=logs / f"build-{name}.log")
            for name, tag in tags.items()
        ]
        built = process.run_all(commands, _BUILDS_AT_ONCE)
    for tag, command, done in zip(tags.values(), commands, built, strict=True):
        if not done.ok:
            raise errors.EnvironmentProblem(
                f"the image was not built:\n{done.last_lines(8)}",
                place=tag,
                step=f"the whole log is {command.log}",
            )


def missing_images() -> list[str]:
    """The images of these sources that are not built."""
    return _tags(_recipe(), targets(DOCKERFILE))[1]


def _recipe() -> recipe.Recipe:
    return recipe.read(DOCKERFILE, paths.PACKAGE, {"BASE": BASE_TAG, **_official()})


def _official() -> dict[str, str]:
    """Images that a person wants instead of what is built here; build argument -> image."""
    named = re.findall(r"^ARG (\w+_IMAGE)=", DOCKERFILE.read_text(), re.MULTILINE)
    return {name: image for name in named if (image := os.environ.get(f"MESHDNS_{name}"))}


def _tags(made: recipe.Recipe, wanted: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Image -> tag, and those without one yet."""
    present = _image_ids()
    base = present.get(BASE_TAG, "")
    tags = {name: f"meshdns/{name}:{made.tag(name, base)}" for name in targets(DOCKERFILE) if name in wanted}
    return tags, [name for name, tag in tags.items() if tag not in present]


def targets(dockerfile: Path) -> list[str]:
    """Its images, one at least."""
    # Marked above: a comment on the FROM line itself is an error to Docker.
    if not (names := parts.stages(dockerfile)):
        raise errors.EnvironmentProblem("no stage is marked `# image`", place=str(dockerfile), step="restore the file")
    return names


def ca_bundle() -> Path | None:
    """The certificates this host trusts, so that a build behind a TLS proxy trusts them too."""
    certifi = importlib.util.find_spec("certifi")
    own = Path(certifi.origin).with_name("cacert.pem") if certifi and certifi.origin else None
    candidates = [os.environ.get("SSL_CERT_FILE"), *_CA_BUNDLES, own]
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def _build_argv(name: str, tag: str, context: Path) -> tuple[str, ...]:
    bundle = ca_bundle()
    return (
        "docker",
        *_BUILDX,
        *("--load", "--progress", "plain", *_dockerfile(context), "--target", name),
        *(word for name, image in _official().items() for word in ("--build-arg", f"{name}={image}")),
        *(["--secret", f"id=ca,src={bundle}"] if bundle else []),
        # Without a value docker takes the variable's: a proxy's password stays out of the process list.
        *(word for variable in _PROXY_VARIABLES if variable in os.environ for word in ("--build-arg", variable)),
        *("--tag", tag, str(context)),
    )


def _dockerfile(context: Path) -> tuple[str, ...]:
    return "--file", str(context / DOCKERFILE.name), "--build-arg", f"BASE={BASE_TAG}"


def _image_ids() -> dict[str, str]:
    form = "{{.Repository}}:{{.Tag}} {{.ID}}"
    listing = _docker("image", "ls", "--no-trunc", "--filter", "reference=meshdns/*", "--format", form)
    return dict(line.split() for line in listing.splitlines())


def _docker(*argv: str, timeout_s: float = _ASK_TIMEOUT_S) -> str:
    done = process.run("docker", *argv, timeout_s=timeout_s)
    if not done.ok:
        raise errors.EnvironmentProblem(
            f"docker {argv[0]} failed: {done.last_lines(2)}", step="meshdns doctor says what is missing"
        )
    return done.out


def _refused(engine: Engine, here: debian.Distribution) -> errors.EnvironmentProblem:
    start = "meshdns engine" if os.geteuid() == 0 else _as_root(daemon.start_step())
    fact, step = f"docker does not answer ({engine.refusal})", f"run: {start}"
    if "permission denied" in engine.refusal.lower():
        fact, step = "docker runs but refuses this user", "run: sudo usermod -aG docker $USER, and log in again"
        step = f"get access to {engine.named}, or run: {_leave()}" if engine.named else step
    elif engine.named:
        step = f"start the engine of {engine.named}, or run: {_leave()}"
    elif not engine.program:
        fact, step = f"there is docker's client ({engine.client}) and no engine on this machine", _install_step(here)
    return errors.EnvironmentProblem(fact, place="engine", step=step)


def _install_step(here: debian.Distribution) -> str:
    if here.family:
        packages = here.engine_packages() + here.client_packages()
        return "run: " + _as_root(f"apt-get install {' '.join(packages)}")
    return "install Docker Engine 20.10 to 28 as its documentation describes for this system"


def _plugin_step(here: debian.Distribution, plugin: str) -> str:
    if here.has_plugins:
        return "run: " + _as_root(f"apt-get install {' '.join(here.plugin_packages([plugin]))}")
    if here.family:
        return f"run: meshdns engine, which fetches it from Debian {debian.BASE_SUITE}"
    return f"put the plugin docker-{plugin} into {plugin_folder()}, as Docker's documentation describes"


def _as_root(command: str) -> str:
    return command if os.geteuid() == 0 else f"sudo {command}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
