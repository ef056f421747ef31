"""The place by Docker Compose: the world's pods as containers of this machine's engine."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import docker.errors

from meshdns.core import errors, paths, process, schema
from meshdns.core.world import LIVE, Nets, World
from meshdns.lab import locks, readiness
from meshdns.lab import parts as components
from meshdns.lab import world as worlds
from meshdns.lab.channel import Channel
from meshdns.lab.compose import cgroups, containers, sdk
from meshdns.lab.parts.component import Secrets
from meshdns.lab.place import Account, Part, Usage, address

if TYPE_CHECKING:
    from meshdns.lab import live

PROJECT = "meshdns"
PROJECTS = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # Compose's rule; the length is for names made of it
STATE = paths.WORK / "state"
UP_TIMEOUT_S = 300
READY = "ready"  # file of a testbed whose start was completed; one that a kill left half-way has none
DOWN_TIMEOUT_S = 180
_LOG_LINES = 3
# What runs beside a pod's own parts: as an application would, but for the observer, which reads rule counters and
# connection tracking, and captures packets.
_BESIDE: Mapping[str, Mapping[str, Any]] = {"observer": {"cap_add": ["NET_ADMIN", "NET_RAW"]}}
_APPLICATION: Mapping[str, Any] = {"user": "1000:1000"}
_ATTACHED = frozenset({"dnsproxy", "observer"})  # images of what runs beside any pod, for a while
_ENGINE_FACTS = ("ServerVersion", "Driver", "CgroupVersion", "CgroupDriver", "KernelVersion", "OperatingSystem")


def removed(
    project: str, parts: Collection[Part], networks: Collection[str], kept: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """What `down` has found, in words, and what it could not remove: `kept` are networks, with containers of others."""
    gone = len(networks) - len(kept)
    if parts or gone:
        what = f"{_counted(len(parts), 'container')} and {_counted(gone, 'network')}"
        yield f"removed {what} of project {project}{origin(parts)}"
    elif not kept:
        yield f"there was nothing of project {project} to remove"
    for name, others in kept.items():
        if others:
            yield (
                f"network {name} stayed: containers of others are on it ({', '.join(others)}); take them off, e.g. "
                f"by `docker network disconnect {name} {others[0]}`, and run `meshdns down` again"
            )
        else:
            yield (
                f"network {name} stayed: the engine counts containers on it that are gone; restart the engine and "
                f"run `docker network rm {name}`, or take other subnets by MESHDNS_PODS and MESHDNS_WORLD"
            )


def origin(parts: Collection[Part]) -> str:
    """Where and when these were started, as the end of a sentence."""
    if not parts:
        return ""
    folders = sorted({part.folder for part in parts} - {""})
    where = f" from {' and '.join(folders)}" if folders else ""
    return f", started{where} at {datetime.fromtimestamp(min(part.created_s for part in parts)):%Y-%m-%d %H:%M:%S}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def require_nets(nets: Nets) -> None:
    """Raises InputError unless a testbed can have these networks."""
    if problem := nets.problem():
        raise errors.InputError(problem, place="MESHDNS_PODS, MESHDNS_WORLD", step="use e.g. 198.18.7 and 198.19.7")


def state_of(project: str) -> Path:
    """The folder of what is rendered for a project."""
    return STATE if project == PROJECT else STATE.with_name(f"{STATE.name}-{project}")


def world_of(state: Path) -> World:
    """What a testbed that is there was made of, by what `up` has left; what comes with the project where nothing is."""
    try:
        return schema.stored(World, json.loads((state / "world.json").read_text()), "world.json")
    except (OSError, ValueError, errors.DataError):
        return worlds.shipped()


def images_of(world: World, groups: Collection[str]) -> frozenset[str]:
    """The images that a testbed needs with these groups of its pods, beside the core."""
    return _ATTACHED | {at.part.image for pod in world.up(groups) for at in components.of(world, Nets(), pod)}


def cpu_sets() -> tuple[str, str]:
    """(client, everything else): the client has the last CPU to itself, since it spins."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        return str(cpus[0]), str(cpus[0])
    return str(cpus[-1]), ",".join(map(str, cpus[:-1]))


def _cgroup2() -> str:
    """Where the cgroup 2 tree is mounted; beside version 1 it is not at the usual place (proc(5), mounts)."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next((fields[1] for fields in mounts if fields[2] == "cgroup2"), "/sys/fs/cgroup")


@dataclass
class Testbed:
    """Containers of one Compose project on this machine's engine: a `place.Place`, which says what it is asked."""

    __test__ = False  # the name is the domain's; pytest must not collect it

    images: Mapping[str, str]  # those of its groups, at least -> tag
    nets: Nets = field(default_factory=Nets)
    project: str = PROJECT
    state: Path = STATE
    groups: frozenset[str] = frozenset()  # of pods, beside the core
    world: World = field(default_factory=worlds.shipped)
    _groups: dict[str, cgroups.Group | None] = field(default_factory=dict)  # service -> its cgroup, once asked for

    def __post_init__(self) -> None:
        self.world = self.world.of(self.groups)

    @property
    def name(self) -> str:
        """The Compose project's."""
        return self.project

    @cached_property
    def client(self) -> docker.DockerClient:
        """The engine's API. Raises EnvironmentProblem."""
        return sdk.client()

    # -- what runs, and in it --------------------------------------------------------------------------------------

    def exec(self, where: str, argv: Sequence[str], *, timeout_s: float, given: str = "", image: str = "") -> str:
        with sdk.asked(where, f"{argv[0]} was not started"), self._container(where, image) as container:
            return sdk.run(sdk.Program(self.client.api, container, argv), where, argv[0], timeout_s, given)

    def talk(
        self, where: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, image: str = ""
    ) -> Channel:
        with sdk.asked(where, f"{argv[0]} was not started"), contextlib.ExitStack() as stack:
            container = stack.enter_context(self._container(where, image))
            return Channel(sdk.Program(self.client.api, container, argv, env, stack.pop_all), where)

    @contextlib.contextmanager
    def _container(self, where: str, image: str) -> Iterator[str]:
        """The name of a service's container, or of one that shares a pod's namespaces meanwhile."""
        own = f"{self.project}-{where}-1"  # Compose v2's scheme
        if not image:
            yield own
            return
        labels = {"project": self.project, "service": f"{where}-attached", "oneoff": "True"}
        joined = self.client.containers.create(
            self.images[image],
            ["infinity"],
            entrypoint=["sleep"],
            name=f"{self.project}-{where}-attached-{secrets.token_hex(4)}",
            network_mode=f"container:{own}",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            read_only=True,
            volumes={str(self.state): {"bind": "/state", "mode": "ro"}},
            labels={f"com.docker.compose.{key}": value for key, value in labels.items()},
            **_BESIDE.get(image, _APPLICATION),
        )
        try:
            joined.start()
            yield str(joined.name)
        finally:
            with contextlib.suppress(*sdk.ERRORS):
                joined.remove(force=True)

    def kill(self, *services: str) -> int:
        at_ns = time.monotonic_ns()  # by name: to look containers up first would take longer than what is measured
        with sdk.asked(", ".join(services), "could not be killed"):
            for service in services:
                self.client.api.kill(f"{self.project}-{service}-1", "SIGKILL")
        return at_ns

    def start(self, *services: str) -> None:
        with sdk.asked(", ".join(services), "could not be started"):
            for service in services:
                self.client.api.start(f"{self.project}-{service}-1")

    def usage(self, services: Collection[str]) -> dict[str, Usage]:
        """See `Place`: two small files a service, once its cgroup is known."""
        if unknown := set(services) - self._groups.keys():
            running = {part.service: part.id for part in self.parts() if part.state == "running"}
            with sdk.asked():
                known = {each: self.client.api.inspect_container(running[each]) for each in unknown & {*running}}
            self._groups |= dict.fromkeys(unknown)
            self._groups |= {each: cgroups.of_process(found["State"]["Pid"]) for each, found in known.items()}
        return {each: group.read() for each in services if (group := self._groups[each])}

    def address(self, pod: str) -> str:
        return address(self.world, self.nets, pod)

    def put(self, path: str, text: str | None) -> None:
        target = self.state / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            target.unlink(missing_ok=True)
            return
        fresh = target.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(target)

    def read(self, path: str) -> str:
        try:
            return (self.state / path).read_text()
        except FileNotFoundError:
            raise errors.TestbedError("there is no such file", place=path, step="see `meshdns status`") from None

    def plane(self) -> live.Plane:
        from meshdns.lab import live  # noqa: PLC0415  Kubernetes' client library takes a second, also of every `down`

        return live.Plane(self, self.state)

    # -- what is there ---------------------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        return [_part(one) for one in self.containers() if one["Labels"].get("com.docker.compose.oneoff") != "True"]

    def account(self, part: Part) -> Account:
        with sdk.asked():
            try:
                state = self.client.api.inspect_container(part.id)["State"]
                log = self.client.api.logs(part.id, tail=_LOG_LINES).decode(errors="replace").strip().splitlines()
            except docker.errors.NotFound:
                return Account()
        return Account(int(state["ExitCode"]), bool(state["OOMKilled"]), state["FinishedAt"], tuple(log))

    def facts(self) -> dict[str, Any]:
        with sdk.asked():
            info = self.client.info()
            ids = {role: str(self.client.images.get(tag).id) for role, tag in sorted(self.images.items())}
        client, mesh = cpu_sets()
        return {
            "engine": {key: info.get(key, "") for key in _ENGINE_FACTS},
            "images": {role: {"tag": self.images[role], "id": found} for role, found in ids.items()},
            "cpu_sets": {"client": client, "mesh": mesh},
            "versions": {"docker": importlib.metadata.version("docker")},
        }

    def containers(self) -> list[dict[str, Any]]:
        """The engine's list of the project's, stopped and attached ones too. Raises TestbedError where it is gone."""
        label = f"com.docker.compose.project={self.project}"
        with sdk.asked():
            found: list[dict[str, Any]] = self.client.api.containers(all=True, filters={"label": label})
            return found

    def require(self, service: str) -> None:
        """Raises TestbedError unless there is a container of this service."""
        there = {part.service for part in self.parts()}
        if service not in there:
            step = "`meshdns status` lists those that are there" if there else "run `meshdns up`"
            raise errors.TestbedError("there is no such container", place=service, step=step)

    def interactive(self, *arguments: str) -> int:
        """`docker compose` with our project and the terminal; its exit code."""
        return subprocess.call(self._compose(*arguments), env=os.environ | self._environment(partial=True))

    # -- up and down -----------------------------------------------------------------------------------------------

    def is_up(self) -> bool:
        """A start was completed: every container wanted is as it must be, in the state we would render.

        More pods than wanted are idle, and in nobody's way.
        """
        found = self.parts()
        if not set(self._services()) <= {part.service for part in found} or not self._state_is_current():
            return False
        if not {part.folder for part in found} <= {str(paths.HOME), ""}:  # another's, with its own keys and files
            return False
        return (self.state / READY).exists() and all(part.is_as_it_must_be for part in found)

    def up(self, announce: process.Announce) -> None:
        """Every pod is up and every proxy and name server answers. Raises InputError, EnvironmentProblem, TestbedError.

        What an earlier run left half-way is removed first; on failure nothing is left running.
        """
        require_nets(self.nets)
        if not self.world.live and (alone := self.world.live_groups & self.groups):
            fact = f"{', '.join(sorted(alone))} need Istio's own control plane"
            raise errors.InputError(fact, place="groups", step=f"add {LIVE}")
        with self.exclusive():
            if not self.is_up():
                self._start(announce)

    def _start(self, announce: process.Announce) -> None:
        self._make_room(announce)
        announce(f"starting {len(self._services())} containers")
        try:
            if LIVE in self.groups:
                self._start_plane().hand_out()
            self._compose_up()
            readiness.wait(self)
            (self.state / READY).touch()
        except BaseException:
            self.down()
            raise

    def _make_room(self, announce: process.Announce) -> None:
        """Nothing is left of an earlier testbed, and everything is rendered."""
        if self.containers():
            announce(f"removing what is left of an earlier testbed{origin(self.parts())}")
            self.down()
        self._refuse_busy_networks()
        self._render()

    def _start_plane(self) -> live.Plane:
        """Istio's own control plane, told the world."""
        from meshdns.lab import live  # noqa: PLC0415  as above

        *before, istiod = live.services(self.world, self.nets)
        self._compose_up(*before)
        plane = self.plane()
        plane.tell(lambda: self._compose_up(istiod))
        return plane

    @contextlib.contextmanager
    def plane_alone(self, announce: process.Announce) -> Iterator[live.Plane]:
        """Istio's own control plane, told the world, and none of its pods; afterwards nothing is left."""
        require_nets(self.nets)
        with self.exclusive():
            self._make_room(announce)
            try:
                announce("starting Istio's control plane")
                yield self._start_plane()
            finally:
                self.down()

    def down(self) -> list[str]:
        """No container or volume of the project is left, nor a network that the engine lets go. Safe to call twice."""
        with _uninterrupted(), self.exclusive():
            parts, networks = self.parts(), self._networks()
            self._remove()
            return [*removed(self.project, parts, networks, {each: self._on(each) for each in self._networks()})]

    def _remove(self) -> None:
        self._groups.clear()
        env = os.environ | self._environment(partial=True)
        down = self._compose("down", "--volumes", "--remove-orphans", "--timeout", "2")
        for _ in range(2):  # what an interrupted start was still making is in the way only once
            done = process.run(*down, timeout_s=DOWN_TIMEOUT_S, env=env)
            if done.ok or not self.containers():
                break
        if not done.ok and self.containers():
            raise errors.TestbedError(
                f"the containers could not be removed ({done.last_lines(1)})",
                place=self.project,
                step=f"try `docker rm -f $(docker ps -aq --filter label=com.docker.compose.project={self.project})`",
            )
        for left in self.containers():  # observers that were attached when their run was killed
            with contextlib.suppress(*sdk.ERRORS):
                self.client.api.remove_container(left["Id"], force=True)
        shutil.rmtree(self.state, ignore_errors=True)
        # What Compose could not remove in time: engine 20.10 at times counts endpoints that are gone, and keeps an
        # empty network until it is restarted. The next `up` takes it again; who wants its subnet is told by `down`.
        for name in self._networks():
            with contextlib.suppress(*sdk.ERRORS):  # one that is kept does not keep the others
                self.client.api.remove_network(name)

    def _networks(self) -> list[str]:
        label = f"com.docker.compose.project={self.project}"
        with sdk.asked():
            return sorted(str(network.name) for network in self.client.networks.list(filters={"label": label}))

    def _on(self, network: str) -> tuple[str, ...]:
        """The containers on it, but for those that are gone and still counted."""
        with sdk.asked():
            found = self.client.api.inspect_network(network).get("Containers") or {}
        return tuple(sorted(each["Name"] for key, each in found.items() if not key.startswith("ep-")))

    def _compose(self, *arguments: str) -> tuple[str, ...]:
        rendered = self.state / "compose.yaml"
        if not rendered.exists():  # of a testbed that another checkout has started, or of none
            self.state.mkdir(parents=True, exist_ok=True)
            rendered.write_text(containers.rendered(self.world, self.nets, self.world.groups))
        where = ("--project-directory", str(paths.HOME), "-f", str(rendered))
        return ("docker", "compose", "-p", self.project, *where, *arguments)

    def _environment(self, partial: bool = False) -> dict[str, str]:
        client, mesh = cpu_sets()
        images = {f"MESHDNS_IMAGE_{name.upper()}": tag for name, tag in self.images.items()}
        if partial:  # Compose wants every variable, also those of services that nobody asks it to start
            images = {f"MESHDNS_IMAGE_{each.image.upper()}": "none" for each in components.ALL.values()} | images
        return {
            "MESHDNS_COMPOSE": str(paths.COMPOSE),
            "MESHDNS_STATE": str(self.state),
            "MESHDNS_PODS": self.nets.pods,
            "MESHDNS_WORLD": self.nets.world,
            "MESHDNS_PLANE": self.nets.plane,
            "MESHDNS_CPU_CLIENT": client,
            "MESHDNS_CPU_MESH": mesh,
            "MESHDNS_CGROUP2": _cgroup2(),
            "MESHDNS_CPU_ALL": ",".join(dict.fromkeys((client, *mesh.split(",")))),
            **images,
        }

    def _compose_up(self, *services: str) -> None:
        done = process.run(
            *self._compose("up", "--detach", "--no-build", "--pull", "never", "--quiet-pull", *services),
            timeout_s=UP_TIMEOUT_S,
            env=self._environment(partial=True),
        )
        if done.ok:
            return
        said = done.last_lines(40)
        if "overlaps" in said:
            raise self._busy("another network")
        if "no space left" in said:
            step = f"free some space and {errors.AGAIN}"
            raise errors.StorageError("the disk is full", place="container engine", step=step)
        fact, step = f"Compose failed: {done.last_lines(1)}", f"look into it with `meshdns doctor`, and {errors.AGAIN}"
        raise errors.TestbedError(fact, place=str(self.state / "compose.yaml"), step=step)

    def _services(self) -> list[str]:
        return list(containers.composition(self.world, self.nets, self.groups)["services"])

    # -- rendered state --------------------------------------------------------------------------------------------

    def _render(self) -> None:
        keys = containers.new_secrets(live=LIVE in self.groups)
        shutil.rmtree(self.state, ignore_errors=True)
        for path, content in containers.files(self.world, self.nets, keys, self.groups).items():
            target = self.state / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        secret = self.state / "secrets.json"
        secret.touch(mode=0o600)
        secret.write_text(json.dumps(dataclasses.asdict(keys)))
        (self.state / "environment.json").write_text(json.dumps(self._environment()))
        (self.state / "groups.json").write_text(json.dumps(sorted(self.groups)))

    def _state_is_current(self) -> bool:
        """What is mounted equals what we would render now, and the images are the same."""
        try:
            groups = frozenset(json.loads((self.state / "groups.json").read_text()))
            keys = Secrets(**json.loads((self.state / "secrets.json").read_text()))
            rendered = containers.files(self.world, self.nets, keys, groups)
            # One with more groups has more images.
            same = self._environment().items() <= json.loads((self.state / "environment.json").read_text()).items()
            return same and all((self.state / path).read_text() == text for path, text in rendered.items())
        except (OSError, ValueError, TypeError):
            return False

    # -- what may stand in the way ---------------------------------------------------------------------------------

    @cached_property  # an engine that dies is not asked again
    def lock(self) -> locks.Lock:
        """Held by whoever changes or uses this testbed, from whichever checkout. Raises TestbedError."""
        with sdk.asked():
            return locks.testbed(str(self.client.info().get("ID", "")), self.project)

    def exclusive(
        self, use: str = "a Python program", *, force: bool = False, announce: process.Announce = print
    ) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes or uses it meanwhile; held once, however often it is entered."""
        return self.lock.hold(use, force=force, announce=announce)

    def _busy(self, whom: str) -> errors.EnvironmentProblem:
        return errors.EnvironmentProblem(
            f"the subnet is taken by {whom}",
            place=" and ".join(self.nets.cidrs(live=LIVE in self.groups)),
            step="set MESHDNS_PODS, MESHDNS_WORLD and MESHDNS_PLANE to other ones, e.g. 198.18.7, 198.19.7, 198.19.129",
        )

    def _refuse_busy_networks(self) -> None:
        wanted = [ipaddress.ip_network(cidr) for cidr in self.nets.cidrs(live=LIVE in self.groups)]
        with sdk.asked():
            networks = self.client.networks.list()
        for network in networks:
            if (network.attrs.get("Labels") or {}).get("com.docker.compose.project") == self.project:
                continue  # ours, which the engine would not let go (see `down`); Compose takes it again
            for config in (network.attrs.get("IPAM") or {}).get("Config") or []:
                taken = ipaddress.ip_network(config.get("Subnet", "0.0.0.0/32"))
                if any(taken.version == 4 and taken.overlaps(one) for one in wanted):
                    raise self._busy(f"the container network {network.name}")


def _part(listed: Mapping[str, Any]) -> Part:
    """From the engine's list, which has the exit code in words only: `Exited (137) 2 seconds ago`."""
    labels, code = listed["Labels"], re.match(r"Exited \((\d+)\)", listed["Status"])
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    return Part(
        labels["com.docker.compose.service"],
        listed["Id"],
        listed["State"],
        int(code[1]) if code else None,
        listed["Created"],
        labels.get("com.docker.compose.project.working_dir", ""),
        _began_s(listed["Status"]),
        " ".join(filter(None, (each.get("IPAddress") for each in networks.values()))),
    )


def _began_s(status: str) -> float:
    """The earliest start that `Up 2 minutes` may speak of; 0 where it is hours ago."""
    found = re.match(r"Up (?:(\d+)|About a|Less than a) (second|minute)", status)
    if not found:
        return 0.0
    most_s = (int(found[1] or 1) + 1) * {"second": 1, "minute": 60}[found[2]]
    return time.time() - most_s


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second signal that means Ctrl-C does not stop the tidying up that the first one asked for."""
    if threading.current_thread() is not threading.main_thread():  # signals do not arrive here anyway
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
