"""The testbed: containers up, ready, inspected, down. The only user of the container engine during a run.

It drives and does not judge: counters are read by `counters`, validity is decided by `run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
import yaml
from docker.models.containers import Container

from meshdns.core import errors, paths, process
from meshdns.core.world import CORE, Nets, Pod, World
from meshdns.interception.conventions import ISTIO
from meshdns.lab import ports
from meshdns.lab import world as worlds
from meshdns.lab.compose import engine, locks, rendering
from meshdns.lab.compose.channel import Channel

PROJECT = "meshdns"
PROJECTS = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # Compose's rule; the length is for names made of it
COMPOSE = paths.COMPOSE
STATE = paths.WORK / "state"
IMAGES = ("WEB", "OBSERVER", "CLIENT", "ENVOY", "DNS", "DNSPROXY", "CONTROLPLANE", "WORLD")
UNRESOLVED_S = 5  # then, and again, a sidecar whose names are not resolved is started anew (`_ask_again`)
READY_TIMEOUT_S = 60  # proxies and name servers answer within a few seconds of their start
UP_TIMEOUT_S = 300
REFUSED = 3  # exit code of a loader whose mechanism is not allowed here
READY = "ready"  # file of a testbed whose start was completed; one that a kill left half-way has none
DOWN_TIMEOUT_S = 180


@dataclass(frozen=True)
class Row:
    """One line of `meshdns status`."""

    pod: str
    container: str
    state: str
    address: str
    intercepted: str


@dataclass(frozen=True)
class Part:
    """One container as a listing shows it: cheap to look at, unlike the container itself."""

    service: str
    id: str
    state: str  # in the engine's words: running, exited, paused, ...
    code: int | None  # of one that has exited
    created_s: float
    folder: str  # checkout, or installation's home, that it was started from; "" where that is not known
    # It was not started before this, by the engine's clock; words like `Up 3 minutes` say no more.
    began_s: float = field(default=0.0, compare=False)

    @property
    def is_done(self) -> bool:
        """It did its work and ended well: rules, certificate."""
        return self.state == "exited" and self.code == 0 and (self.service.endswith("-rules") or self.service == "tls")

    @property
    def is_refused(self) -> bool:
        """A loader that says the kernel or the engine does not allow its way of capturing."""
        return self.state == "exited" and self.code == REFUSED and self.service.endswith("-loader")

    @property
    def words(self) -> str:
        """Its state, as `meshdns status` has it."""
        return "done" if self.is_done else "refused" if self.is_refused else self.state

    @property
    def is_as_it_must_be(self) -> bool:
        """It runs, or is one of those that need not."""
        return self.state == "running" or self.is_done or self.is_refused


@dataclass(frozen=True)
class Ended:
    """Services that a run itself has ended."""

    now: AbstractSet[str] = frozenset()
    ever: AbstractSet[str] = frozenset()  # also those that it has started again


@dataclass(frozen=True)
class Removed:
    """What `down` has found, and what it could not remove."""

    project: str
    parts: tuple[Part, ...]
    networks: tuple[str, ...]
    kept: Mapping[str, tuple[str, ...]]  # of these networks -> containers of others that are on it

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        gone = len(self.networks) - len(self.kept)
        if self.parts or gone:
            what = f"{_counted(len(self.parts), 'container')} and {_counted(gone, 'network')}"
            yield f"removed {what} of project {self.project}{origin(self.parts)}"
        elif not self.kept:
            yield f"there was nothing of project {self.project} to remove"
        for name, others in self.kept.items():
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
        return World.from_json(json.loads((state / "world.json").read_text()))
    except (OSError, ValueError, TypeError, KeyError):
        return worlds.shipped()


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
    """Containers of one Compose project on this machine's engine."""

    __test__ = False  # the name is the domain's; pytest must not collect it

    images: Mapping[str, str]
    nets: Nets = field(default_factory=Nets)
    project: str = PROJECT
    state: Path = STATE
    groups: frozenset[str] = frozenset()  # of pods, beside the core
    world: World = field(default_factory=worlds.shipped)
    _client: docker.DockerClient | None = None
    _lock: locks.Lock | None = None

    # -- the engine ------------------------------------------------------------------------------------------------

    @property
    def client(self) -> docker.DockerClient:
        """The engine's API. Raises EnvironmentProblem."""
        if self._client is None:
            try:
                # The SDK itself knows DOCKER_HOST and no contexts; certificates are found by the environment.
                self._client = docker.from_env(timeout=60, environment=os.environ | {"DOCKER_HOST": engine.endpoint()})
            except docker.errors.DockerException as error:
                raise errors.EnvironmentProblem(
                    f"the container engine does not answer ({error})", step="run `meshdns doctor`"
                ) from None
        return self._client

    def container(self, service: str) -> Container:
        """The container of a Compose service. Raises TestbedError."""
        there = self.containers()
        found = [c for c in there if c.labels.get("com.docker.compose.service") == service]
        if not found:
            step = "`meshdns status` lists those that are there" if there else "run `meshdns up`"
            raise errors.TestbedError("there is no such container", place=service, step=step)
        return found[0]

    def containers(self) -> list[Container]:
        """All containers of the project, stopped ones too. Raises TestbedError when the engine is gone."""
        label = f"com.docker.compose.project={self.project}"
        with _engine():
            return self.client.containers.list(all=True, filters={"label": label}, ignore_removed=True)

    def engine_facts(self) -> dict[str, Any]:
        """What the engine says of itself. Raises TestbedError."""
        with _engine():
            return dict(self.client.info())

    def image_ids(self) -> dict[str, str]:
        """Role -> id of its image. Raises TestbedError."""
        with _engine():
            return {role: str(self.client.images.get(tag).id) for role, tag in sorted(self.images.items())}

    def parts(self) -> list[Part]:
        """What is there, by one question to the engine. Raises TestbedError."""
        label = f"com.docker.compose.project={self.project}"
        with _engine():
            found = self.client.api.containers(all=True, filters={"label": label})
        return [_part(one) for one in found if one["Labels"].get("com.docker.compose.oneoff") != "True"]

    def ending(self, part: Part) -> Mapping[str, Any]:
        """The engine's `State` of a container, empty where it is gone. Raises TestbedError."""
        with _engine():
            try:
                return dict(self.client.api.inspect_container(part.id)["State"])
            except docker.errors.NotFound:
                return {}

    def name(self, service: str) -> str:
        """Container name of a service (Compose v2's scheme)."""
        return f"{self.project}-{service}-1"

    def channel(self, service: str, argv: list[str], env: Mapping[str, str] | None = None) -> Channel:
        """Start a program in a service's container and talk to it."""
        return Channel(self.name(service), argv, env)

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

    def refusals(self) -> dict[str, str]:
        """Pods whose way of capturing this kernel or engine does not allow -> why, in the loader's words."""
        found: dict[str, str] = {}
        for part in self.parts():
            if part.is_refused:
                with _engine():
                    lines = self.client.api.logs(part.id, tail=1).decode(errors="replace").strip().splitlines()
                found[part.service.removesuffix("-loader")] = lines[-1] if lines else "no reason given"
        return found

    def has(self, pod: Pod) -> bool:
        """Whether a pod is wanted."""
        return pod.group == CORE or pod.group in self.groups

    def clients(self) -> list[Pod]:
        """The client pods that are wanted."""
        return [client for client in self.world.clients if self.has(client)]

    def up(self, announce: process.Announce) -> None:
        """Every pod is up and every proxy and name server answers. Raises EnvironmentProblem or TestbedError.

        What an earlier run left half-way is removed first; on failure nothing is left running.
        """
        require_nets(self.nets)
        with self.exclusive():
            if not self.is_up():
                self._start(announce)

    def _start(self, announce: process.Announce) -> None:
        if self.containers():
            announce(f"removing what is left of an earlier testbed{origin(self.parts())}")
            self.down()
        self._refuse_busy_networks()
        self._render()
        announce(f"starting {len(self._services())} containers")
        try:
            self._compose_up()
            self.wait_ready()
            (self.state / READY).touch()
        except BaseException:
            self.down()
            raise

    def down(self) -> Removed:
        """No container or volume of the project is left, nor a network that the engine lets go. Safe to call twice."""
        with _uninterrupted(), self.exclusive():
            parts, networks = self.parts(), self._networks()
            self._remove()
            return Removed(
                self.project, tuple(parts), tuple(networks), {each: self._on(each) for each in self._networks()}
            )

    def _remove(self) -> None:
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
            with contextlib.suppress(*_SDK):
                left.remove(force=True)
        shutil.rmtree(self.state, ignore_errors=True)
        self._remove_networks()

    def _networks(self) -> list[str]:
        label = f"com.docker.compose.project={self.project}"
        with _engine():
            return sorted(str(network.name) for network in self.client.networks.list(filters={"label": label}))

    def _on(self, network: str) -> tuple[str, ...]:
        """The containers on it, but for those that are gone and still counted."""
        with _engine():
            found = self.client.api.inspect_network(network).get("Containers") or {}
        return tuple(sorted(each["Name"] for key, each in found.items() if not key.startswith("ep-")))

    def _remove_networks(self) -> None:
        """What Compose could not remove in time.

        Engine 20.10 at times counts endpoints that are gone, and keeps an empty network until it is restarted. The next
        `up` of this project takes it again; whoever wants its subnet is told by `down`.
        """
        for name in self._networks():
            with contextlib.suppress(*_SDK):  # one that is kept does not keep the others
                self.client.api.remove_network(name)

    def _compose(self, *arguments: str) -> tuple[str, ...]:
        rendered = self.state / "compose.yaml"
        file = rendered if rendered.exists() else COMPOSE / "compose.yaml"
        where = ("--project-directory", str(paths.HOME), "-f", str(file))
        return ("docker", "compose", "-p", self.project, *where, *arguments)

    def _environment(self, partial: bool = False) -> dict[str, str]:
        client, mesh = cpu_sets()
        images = {f"MESHDNS_IMAGE_{name.upper()}": tag for name, tag in self.images.items()}
        if partial:  # `down` needs no image, but Compose wants every variable
            images = {f"MESHDNS_IMAGE_{name}": "none" for name in IMAGES} | images
        return {
            "MESHDNS_COMPOSE": str(COMPOSE),
            "MESHDNS_STATE": str(self.state),
            "MESHDNS_PODS": self.nets.pods,
            "MESHDNS_WORLD": self.nets.world,
            "MESHDNS_CPU_CLIENT": client,
            "MESHDNS_CPU_MESH": mesh,
            "MESHDNS_CGROUP2": _cgroup2(),
            "MESHDNS_RECORD_TTL": str(self.world.record_ttl_s),
            "MESHDNS_PROBE_PERIOD": str(self.world.probe_period_s),
            "MESHDNS_NAMESPACE": self.world.namespace,
            "MESHDNS_DOMAIN": self.world.domain,
            "MESHDNS_DNS_HOST": str(self.world.named("dns").host),
            "MESHDNS_DNS_CLUSTER_IP": self.world.dns_cluster_ip,
            "MESHDNS_CPU_ALL": ",".join(dict.fromkeys((client, *mesh.split(",")))),
            **images,
        }

    def _compose_up(self) -> None:
        done = process.run(
            *self._compose("up", "--detach", "--no-build", "--pull", "never", "--quiet-pull"),
            timeout_s=UP_TIMEOUT_S,
            env=self._environment(),
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
        raise errors.TestbedError(fact, place="compose/compose.yaml", step=step)

    def _services(self) -> list[str]:
        return list(yaml.safe_load(rendering.composition(self.world, COMPOSE, self.groups))["services"])

    # -- rendered state --------------------------------------------------------------------------------------------

    def keys(self) -> rendering.Secrets:
        """The passwords of the testbed that is up."""
        return rendering.Secrets(**json.loads((self.state / "secrets.json").read_text()))

    def _render(self) -> None:
        keys = rendering.new_secrets()
        shutil.rmtree(self.state, ignore_errors=True)
        for path, content in rendering.files(self.world, COMPOSE, self.nets, keys, self.groups).items():
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
            rendered = rendering.files(self.world, COMPOSE, self.nets, self.keys(), groups)
            same = json.loads((self.state / "environment.json").read_text()) == self._environment()
            # A policy that a killed run has left is in force, and is in nobody's plan.
            governed = {f"mesh/{path.name}" for path in (self.state / "mesh").iterdir()}
            same = same and governed <= rendered.keys()
            return same and all((self.state / path).read_text() == text for path, text in rendered.items())
        except (OSError, ValueError, TypeError):
            return False

    # -- what may stand in the way ---------------------------------------------------------------------------------

    @property
    def lock(self) -> locks.Lock:
        """Held by whoever changes or uses this testbed, from whichever checkout. Raises TestbedError."""
        if self._lock is None:  # remembered: an engine that dies is not asked again
            self._lock = locks.testbed(str(self.engine_facts().get("ID", "")), self.project)
        return self._lock

    def exclusive(
        self, use: str = "a Python program", *, force: bool = False, announce: process.Announce = print
    ) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes or uses it meanwhile; held once, however often it is entered."""
        return self.lock.hold(use, force=force, announce=announce)

    def _busy(self, whom: str) -> errors.EnvironmentProblem:
        return errors.EnvironmentProblem(
            f"the subnet is taken by {whom}",
            place=" and ".join(self.nets.cidrs()),
            step="set MESHDNS_PODS and MESHDNS_WORLD to other ones, e.g. 198.18.7 and 198.19.7",
        )

    def _refuse_busy_networks(self) -> None:
        wanted = [ipaddress.ip_network(cidr) for cidr in self.nets.cidrs()]
        with _engine():
            networks = self.client.networks.list()
        for network in networks:
            if (network.attrs.get("Labels") or {}).get("com.docker.compose.project") == self.project:
                continue  # ours, which the engine would not let go (see `down`); Compose takes it again
            for config in (network.attrs.get("IPAM") or {}).get("Config") or []:
                taken = ipaddress.ip_network(config.get("Subnet", "0.0.0.0/32"))
                if any(taken.version == 4 and taken.overlaps(one) for one in wanted):
                    raise self._busy(f"the container network {network.name}")

    # -- readiness -------------------------------------------------------------------------------------------------

    def wait_ready(self) -> None:
        """Init containers succeeded, everything else runs and answers. Raises TestbedError that names who does not."""
        began_s = asked_s = time.monotonic()
        with self.observers() as observers:
            while True:
                waiting = self._not_ready(observers)
                if not waiting:
                    return
                if time.monotonic() - asked_s > UNRESOLVED_S:
                    self._ask_again(waiting.keys())
                    asked_s = time.monotonic()
                if time.monotonic() - began_s > READY_TIMEOUT_S:
                    service, fact = next(iter(waiting.items()))
                    raise errors.TestbedError(
                        f"{fact} after {READY_TIMEOUT_S} s", place=service, step=self._last_words(service)
                    )
                time.sleep(0.2)

    def _not_ready(self, observers: Mapping[str, Channel]) -> dict[str, str]:
        """Services that do not answer, each with what is wrong."""
        waiting: dict[str, str] = {}
        refused = self.refusals()
        for part in self.parts():
            if part.state == "exited" and not part.is_as_it_must_be:
                raise errors.TestbedError(
                    f"the container ended with code {part.code}",
                    place=part.service,
                    step=self._last_words(part.service),
                )
        for service, (pod, page) in self._probes().items():
            if any(service.startswith(f"{each}-") for each in refused):
                continue
            reply, _ = observers[pod].ask({"op": "snapshot", "pages": [page]}, timeout_s=15)
            if reply["pages"][0] is None:
                waiting[service] = "does not answer"
        if "xds" in self.groups and not self._postgres_listens():
            waiting["world-postgres"] = "does not answer"
        for client in self.clients():
            if not client.sidecar or client.pod in refused or f"{client.pod}-envoy" in waiting:
                continue
            if self._endpoints(observers, client.pod) < 3:
                waiting[f"{client.pod}-envoy"] = "has not resolved its endpoints"
        return waiting

    def _ask_again(self, waiting: AbstractSet[str]) -> None:
        """Governed sidecars among these services are started anew.

        One that asked for a name before the replicas were ready, and so before it had records, was told NXDOMAIN: it
        would ask again only after its refresh rate, a minute.
        """
        for service in {f"{client.pod}-envoy" for client in self.clients() if client.governed} & waiting:
            with _engine(service, "could not be started anew"):
                self.container(service).restart(timeout=0)

    def _postgres_listens(self) -> bool:
        """The slowest of the servers outside, where no observer is."""
        ask = f"/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1 -p {self.world.backends['postgres'].ports[0]}"
        return process.run("docker", "exec", self.name("world-postgres"), "sh", "-c", ask, timeout_s=15).ok

    def _endpoints(self, observers: Mapping[str, Channel], pod: str) -> int:
        """Fewest healthy members among the client sidecar's service clusters."""
        governed = self.world.named(pod).governed
        known = [each for each in self.world.backends.values() if each.governed and each.watched]
        hosts = "|".join(re.escape(service.host) for service in known)
        cluster = rf"outbound\|80\|\|({hosts})" if governed else "-http"
        pattern = urllib.parse.quote(rf"{cluster}\.membership_healthy", safe="")
        page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/stats?format=json&filter={pattern}"}
        reply, _ = observers[pod].ask({"op": "snapshot", "pages": [page]}, timeout_s=15)
        stats = json.loads(reply["pages"][0] or '{"stats": []}')["stats"]
        return min((int(s["value"]) for s in stats if "value" in s), default=0)

    def _probes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Service -> (who asks, page): what must answer before anything is measured."""
        probes: dict[str, tuple[str, dict[str, Any]]] = {}
        for client in self.clients():
            probes |= {name: (client.pod, page) for name, page in _own_probes(client).items()}
        for server in filter(self.has, self.world.meshed):
            base = f"http://{self.nets.pod(server.host)}"
            stats = {"url": f"{base}:{ISTIO.stats_port}/stats?filter=^server.live$", "timeout_s": 1}
            probes[f"{server.pod}-envoy"] = ("observer", stats)
            status = {"url": f"{base}:{ISTIO.status_port}/status", "timeout_s": 1}
            probes[f"{server.pod}-app"] = ("observer", status)
        for pod in self.world.alone:
            status = {"url": f"http://{self.nets.pod(pod.host)}:{ISTIO.status_port}/status", "timeout_s": 1}
            probes[pod.pod] = ("observer", status)
        if "xds" in self.groups:
            plane = f"http://{self.nets.pod(self.world.named('control-plane').host)}:{ports.PORT_PLANE}/ready"
            probes["control-plane"] = ("observer", {"url": plane, "timeout_s": 1})
        probes["dns-bind"] = ("observer", self.bind_page())
        probes["dns-dnsdist"] = ("observer", self.dnsdist_page())
        return probes

    def bind_page(self) -> dict[str, Any]:
        """BIND's statistics."""
        return {"url": f"http://{self.nets.pod(self.world.named('dns').host)}:8053/json/v1/server", "timeout_s": 2}

    def dnsdist_page(self) -> dict[str, Any]:
        """dnsdist's statistics and rules."""
        return {
            "url": f"http://{self.nets.pod(self.world.named('dns').host)}:8083/api/v1/servers/localhost",
            "headers": {"X-API-Key": self.keys().web_password},
            "timeout_s": 2,
        }

    def _last_words(self, service: str) -> str:
        return self.log_ends(service) or f"see `meshdns logs {service}`"

    def log_ends(self, service: str) -> str:
        """The last words of a container, as the end of a sentence; empty where it has none."""
        with contextlib.suppress(errors.MeshdnsError, *_SDK):
            lines = self.client.api.logs(self.name(service), tail=3).decode(errors="replace").strip().splitlines()
            return f"its log ends: {' / '.join(line.strip()[:200] for line in lines)}" if lines else ""
        return ""

    @contextlib.contextmanager
    def observers(self) -> Iterator[dict[str, Channel]]:
        """A channel to every observer: by client pod name, and `observer` for servers and name servers."""
        services = {client.pod: f"{client.pod}-observer" for client in self.clients()} | {"observer": "observer"}
        with contextlib.ExitStack() as stack:
            yield {
                key: stack.enter_context(self.channel(service, ["python3", "-m", "observer"]))
                for key, service in services.items()
            }

    @contextlib.contextmanager
    def attached(self, pod: str) -> Iterator[Channel]:
        """A channel to an observer that joins a pod's namespaces for a while. Raises TestbedError."""
        name = f"{self.project}-{pod}-attached-{os.getpid()}"
        # Reading rule counters and connection tracking; capturing packets.
        joined = self._joined(pod, "observer", ["sleep", "infinity"], name=name, cap_add=["NET_ADMIN", "NET_RAW"])
        try:
            with Channel(name, ["python3", "-m", "observer"]) as channel:
                yield channel
        finally:
            with contextlib.suppress(*_SDK):
                joined.remove(force=True)

    def within(self, pod: str, role: str, argv: list[str], timeout_s: float) -> str:
        """What a program of an image prints when it runs in a pod as an application would. Raises TestbedError."""
        mounts = {str(self.state): {"bind": "/state", "mode": "ro"}}
        joined = self._joined(pod, role, argv[1:], entrypoint=argv[:1], user="1000:1000", volumes=mounts)
        try:
            with _engine(pod, f"{argv[0]} did not end"):
                code = joined.wait(timeout=timeout_s)["StatusCode"]
                said, wrong = joined.logs(stderr=False).decode(), joined.logs(stdout=False).decode(errors="replace")
        finally:
            with contextlib.suppress(*_SDK):
                joined.remove(force=True)
        if code:
            raise errors.TestbedError(f"{argv[0]} failed ({wrong.strip().splitlines()[-1:]})", place=pod)
        return said

    def _joined(self, pod: str, role: str, command: list[str], **more: Any) -> Container:
        """A container that shares a pod's namespaces."""
        labels = {"project": self.project, "service": f"{pod}-attached", "oneoff": "True"}
        image, owner = self._image(role), self.container(pod).id
        with _engine(pod, "nobody could join"):
            return self.client.containers.run(
                image,
                command,
                detach=True,
                network_mode=f"container:{owner}",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                read_only=True,
                labels={f"com.docker.compose.{key}": value for key, value in labels.items()},
                **more,
            )

    def _image(self, role: str) -> str:
        """The image of a role; a testbed that is only looked at takes it from what is up."""
        return self.images.get(role) or str(self.container("observer").attrs["Config"]["Image"])

    # -- conditions and looking in ---------------------------------------------------------------------------------

    def set_dns_delay(self, delay_ms: float) -> None:
        """From now on dnsdist delays each UDP answer by this much. Raises TestbedError."""
        done = process.run(
            "docker", "exec", self.name("dns-dnsdist"), "dnsdist", "-C", "/etc/meshdns/dnsdist.conf", "-c",
            "-e", f"delay_ms={delay_ms:g}", timeout_s=10,
        )  # fmt: skip
        if not done.ok:
            raise errors.TestbedError(f"the delay was not set ({done.last_lines(1)})", place="dns-dnsdist")

    def set_sidecar(self, client: Pod, observers: Mapping[str, Channel], *, up: bool) -> None:
        """The pod's Envoy is killed, or started and ready again. Raises TestbedError."""
        service = f"{client.pod}-envoy"
        container = self.container(service)
        with _engine(service, f"could not be {'started' if up else 'killed'}"):
            container.start() if up else container.kill()
        page = _own_probes(client)[service]
        deadline = time.monotonic() + READY_TIMEOUT_S
        while up and (
            observers[client.pod].ask({"op": "snapshot", "pages": [page]}, timeout_s=15)[0]["pages"][0] is None
            or self._endpoints(observers, client.pod) < 3
        ):
            if time.monotonic() > deadline:
                raise errors.TestbedError("is not ready again", place=service, step=self._last_words(service))
            time.sleep(0.05)

    def kill(self, *services: str, signal: str = "SIGKILL") -> int:
        """Signal their first processes; the instant before that (CLOCK_MONOTONIC). Raises TestbedError."""
        at_ns = time.monotonic_ns()  # by name: to look containers up first would take longer than what is measured
        with _engine(", ".join(services), "could not be killed"):
            for service in services:
                self.client.api.kill(self.name(service), signal)
        return at_ns

    def status(self) -> list[Row]:
        """A row per container."""
        rows = []
        taken = {client.pod: client.intercepted() for client in self.world.clients}
        taken |= {server.pod: f"tcp in and out ({server.mechanism})" for server in self.world.meshed}
        parts = {part.id: part for part in self.parts()}
        for container in self.containers():
            service = container.labels["com.docker.compose.service"]
            pod = next((p for p in sorted(taken, key=len, reverse=True) if service.startswith(p)), service)
            networks = container.attrs["NetworkSettings"]["Networks"].values()
            address = " ".join(filter(None, (n.get("IPAddress", "") for n in networks)))
            part = parts.get(str(container.id))
            words = container.status if part is None else part.words
            rows.append(Row(pod, service, words, address, taken.get(pod, "nothing") if service == pod else ""))
        return sorted(rows, key=lambda row: (row.pod, row.container))

    def interactive(self, *arguments: str) -> int:
        """`docker compose` with our project and the terminal; its exit code."""
        return subprocess.call(self._compose(*arguments), env=os.environ | self._environment(partial=True))


# What the engine's SDK raises: its own errors and, where the engine is gone, those of requests (which are OSErrors).
_SDK = (docker.errors.DockerException, OSError)


@contextlib.contextmanager
def _engine(place: str = "container engine", fact: str = "it refused") -> Iterator[None]:
    """What the SDK raises becomes a TestbedError: `fact` where the engine said no, else that it is gone."""
    try:
        yield
    except docker.errors.APIError as error:
        raise errors.TestbedError(
            f"{fact} ({error.explanation or error})", place=place, step="see `meshdns status`"
        ) from None
    except _SDK as error:
        raise errors.TestbedError(
            f"it stopped answering ({error})", place="container engine", step=f"start it and {errors.AGAIN}"
        ) from None


def _own_probes(client: Pod) -> dict[str, dict[str, Any]]:
    """Service -> page on the pod's loopback that answers once it is ready."""
    pages = {}
    if client.sidecar:
        pages["envoy"] = f"{ISTIO.admin_port}/ready"
    if client.dns == "agent":
        pages["dns"] = f"{ports.PORT_DNS_METRICS}/metrics"
    if client.mechanism == "ebpf":
        pages["loader"] = f"{ports.PORT_LOADER}/counters"
    return {f"{client.pod}-{part}": {"url": f"http://127.0.0.1:{page}", "timeout_s": 1} for part, page in pages.items()}


def _part(listed: Mapping[str, Any]) -> Part:
    """From the engine's list, which has the exit code in words only: `Exited (137) 2 seconds ago`."""
    labels, code = listed["Labels"], re.match(r"Exited \((\d+)\)", listed["Status"])
    return Part(
        labels["com.docker.compose.service"],
        listed["Id"],
        listed["State"],
        int(code[1]) if code else None,
        listed["Created"],
        labels.get("com.docker.compose.project.working_dir", ""),
        _began_s(listed["Status"]),
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
