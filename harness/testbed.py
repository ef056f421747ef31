"""The testbed: containers up, ready, inspected, down. The only user of the container engine during a run.

It drives and does not judge: counters are read by `counters`, validity is decided by `run`.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import docker
import docker.errors
import yaml
from docker.models.containers import Container

from harness import errors, process, rendering
from harness.channel import Channel
from harness.mesh import topology

PROJECT = "meshdns"
ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "compose"
STATE = ROOT / ".meshdns" / "state"
READY_TIMEOUT_S = 60  # proxies and name servers answer within a few seconds of their start
UP_TIMEOUT_S = 300
DOWN_TIMEOUT_S = 180
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One line of `meshdns status`."""

    pod: str
    container: str
    state: str
    address: str
    intercepted: str


def cpu_sets() -> tuple[str, str]:
    """(client, everything else): the client has the last CPU to itself, since it spins."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        return str(cpus[0]), str(cpus[0])
    return str(cpus[-1]), ",".join(map(str, cpus[:-1]))


@dataclass
class Testbed:
    """Containers of one Compose project on this machine's engine."""

    __test__ = False  # the name is the domain's; pytest must not collect it

    images: Mapping[str, str]
    nets: topology.Nets = field(default_factory=topology.Nets)
    project: str = PROJECT
    state: Path = STATE
    _client: docker.DockerClient | None = None
    _lock: IO[str] | None = None

    # -- the engine ------------------------------------------------------------------------------------------------

    @property
    def client(self) -> docker.DockerClient:
        """The engine's API. Raises EnvironmentProblem."""
        if self._client is None:
            try:
                self._client = docker.from_env(timeout=60)
            except docker.errors.DockerException as error:
                raise errors.EnvironmentProblem(
                    f"the container engine does not answer ({error})", step="run `meshdns doctor`"
                ) from None
        return self._client

    def container(self, service: str) -> Container:
        """The container of a Compose service. Raises TestbedError."""
        found = [c for c in self.containers() if c.labels.get("com.docker.compose.service") == service]
        if not found:
            raise errors.TestbedError("there is no such container", place=service, step="run `meshdns up`")
        return found[0]

    def containers(self) -> list[Container]:
        """All containers of the project, stopped ones too. Raises TestbedError when the engine is gone."""
        label = f"com.docker.compose.project={self.project}"
        try:
            return self.client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        except (docker.errors.DockerException, OSError) as error:
            raise engine_gone(error) from None

    def name(self, service: str) -> str:
        """Container name of a service (Compose v2's scheme)."""
        return f"{self.project}-{service}-1"

    def channel(self, service: str, argv: list[str], env: Mapping[str, str] | None = None) -> Channel:
        """Start a program in a service's container and talk to it."""
        return Channel(self.name(service), argv, env)

    # -- up and down -----------------------------------------------------------------------------------------------

    def is_up(self) -> bool:
        """Every container of the project runs, or is an init container that succeeded, in the state we would render."""
        found = self.containers()
        if not found or len(found) != len(self._services()) or not self._state_is_current():
            return False
        return all(
            c.status == "running" or (_is_init(c) and c.attrs["State"]["ExitCode"] == 0) for c in map(_reloaded, found)
        )

    def up(self, announce: Announce) -> None:
        """Every pod is up and every proxy and name server answers. Raises EnvironmentProblem or TestbedError.

        What an earlier run left half-way is removed first; on failure nothing is left running.
        """
        if problem := self.nets.problem():
            raise errors.InputError(problem, place="MESHDNS_PODS, MESHDNS_WORLD", step="use e.g. 198.18.7 and 198.19.7")
        with self.exclusive():
            if not self.is_up():
                self._start(announce)

    def _start(self, announce: Announce) -> None:
        if self.containers():
            announce("removing what is left of an earlier testbed")
            self.down()
        self._refuse_busy_networks()
        self._render()
        announce(f"starting {len(self._services())} containers")
        try:
            self._compose_up()
            self.wait_ready()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """No container, network or volume of the project is left. Safe to call at any time, also twice."""
        env = os.environ | self._environment(partial=True)
        with _uninterrupted():
            done = process.run(
                *self._compose("down", "--volumes", "--remove-orphans", "--timeout", "2"),
                timeout_s=DOWN_TIMEOUT_S,
                env=env,
            )
        if not done.ok and self.containers():
            raise errors.TestbedError(
                f"the containers could not be removed ({done.last_lines(1)})",
                place=self.project,
                step=f"try `docker rm -f $(docker ps -aq --filter label=com.docker.compose.project={self.project})`",
            )
        shutil.rmtree(self.state, ignore_errors=True)

    def _compose(self, *arguments: str) -> tuple[str, ...]:
        return ("docker", "compose", "-p", self.project, "-f", str(COMPOSE / "compose.yaml"), *arguments)

    def _environment(self, partial: bool = False) -> dict[str, str]:
        client, mesh = cpu_sets()
        images = {f"MESHDNS_IMAGE_{name.upper()}": tag for name, tag in self.images.items()}
        if partial:  # `down` needs no image, but Compose wants every variable
            images = {
                f"MESHDNS_IMAGE_{name}": "none" for name in ("WEB", "OBSERVER", "CLIENT", "ENVOY", "DNS")
            } | images
        return {
            "MESHDNS_STATE": str(self.state),
            "MESHDNS_PODS": self.nets.pods,
            "MESHDNS_WORLD": self.nets.world,
            "MESHDNS_CPU_CLIENT": client,
            "MESHDNS_CPU_MESH": mesh,
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
            raise errors.StorageError("the disk is full", place="container engine", step="free some space")
        raise errors.TestbedError(f"Compose failed: {done.last_lines(1)}", place="compose/compose.yaml")

    def _services(self) -> list[str]:
        return list(yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"])

    # -- rendered state --------------------------------------------------------------------------------------------

    def keys(self) -> rendering.Secrets:
        """The passwords of the testbed that is up."""
        return rendering.Secrets(**json.loads((self.state / "secrets.json").read_text()))

    def _render(self) -> None:
        keys = rendering.new_secrets()
        shutil.rmtree(self.state, ignore_errors=True)
        for path, content in rendering.files(COMPOSE, self.nets, keys).items():
            target = self.state / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        secret = self.state / "secrets.json"
        secret.touch(mode=0o600)
        secret.write_text(json.dumps({"console_key": keys.console_key, "web_password": keys.web_password}))
        (self.state / "environment.json").write_text(json.dumps(self._environment()))

    def _state_is_current(self) -> bool:
        """What is mounted equals what we would render now, and the images are the same."""
        try:
            rendered = rendering.files(COMPOSE, self.nets, self.keys())
            same = json.loads((self.state / "environment.json").read_text()) == self._environment()
            return same and all((self.state / path).read_text() == text for path, text in rendered.items())
        except (OSError, ValueError, TypeError):
            return False

    # -- what may stand in the way ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else starts or measures meanwhile: two runs would measure each other. Raises EnvironmentProblem."""
        if self._lock is not None:  # ours already
            yield
            return
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with (self.state.parent / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                place = str(self.state.parent)
                fact = "another meshdns is using the testbed"
                raise errors.EnvironmentProblem(fact, place=place, step="wait for it, or stop it") from None
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def _busy(self, whom: str) -> errors.EnvironmentProblem:
        return errors.EnvironmentProblem(
            f"the subnet is taken by {whom}",
            place=" and ".join(self.nets.cidrs()),
            step="set MESHDNS_PODS and MESHDNS_WORLD to other ones, e.g. 198.18.7 and 198.19.7",
        )

    def _refuse_busy_networks(self) -> None:
        wanted = [ipaddress.ip_network(cidr) for cidr in self.nets.cidrs()]
        for network in self.client.networks.list():
            for config in (network.attrs.get("IPAM") or {}).get("Config") or []:
                taken = ipaddress.ip_network(config.get("Subnet", "0.0.0.0/32"))
                if any(taken.version == 4 and taken.overlaps(one) for one in wanted):
                    raise self._busy(f"the container network {network.name}")

    # -- readiness -------------------------------------------------------------------------------------------------

    def wait_ready(self) -> None:
        """Init containers succeeded, everything else runs and answers. Raises TestbedError that names who does not."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        with self.observers() as observers:
            while True:
                waiting = self._not_ready(observers)
                if not waiting:
                    return
                if time.monotonic() > deadline:
                    service, fact = next(iter(waiting.items()))
                    raise errors.TestbedError(
                        f"{fact} after {READY_TIMEOUT_S} s", place=service, step=self._last_words(service)
                    )
                time.sleep(0.2)

    def _not_ready(self, observers: Mapping[str, Channel]) -> dict[str, str]:
        """Services that do not answer, each with what is wrong."""
        waiting: dict[str, str] = {}
        for container in map(_reloaded, self.containers()):
            service, state = container.labels["com.docker.compose.service"], container.attrs["State"]
            if state["Status"] == "exited" and (not _is_init(container) or state["ExitCode"] != 0):
                raise errors.TestbedError(
                    f"the container ended with code {state['ExitCode']}", place=service, step=self._last_words(service)
                )
        for service, (pod, page) in self._probes().items():
            reply, _ = observers[pod].ask({"op": "snapshot", "pages": [page]}, timeout_s=15)
            if reply["pages"][0] is None:
                waiting[service] = "does not answer"
        for client in topology.CLIENTS:
            if client.sidecar and f"{client.pod}-envoy" not in waiting and self._endpoints(observers, client.pod) < 3:
                waiting[f"{client.pod}-envoy"] = "has not resolved its endpoints"
        return waiting

    def _endpoints(self, observers: Mapping[str, Channel], pod: str) -> int:
        """Fewest healthy members among the client sidecar's service clusters."""
        page = {"url": f"http://127.0.0.1:{topology.PORT_ADMIN}/stats?format=json&filter=-http.membership_healthy"}
        reply, _ = observers[pod].ask({"op": "snapshot", "pages": [page]}, timeout_s=15)
        stats = json.loads(reply["pages"][0] or '{"stats": []}')["stats"]
        return min((int(s["value"]) for s in stats if "value" in s), default=0)

    def _probes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Service -> (who asks, page): what must answer before anything is measured."""
        probes: dict[str, tuple[str, dict[str, Any]]] = {}
        for client in topology.CLIENTS:
            if client.sidecar:
                ready = {"url": f"http://127.0.0.1:{topology.PORT_ADMIN}/ready", "timeout_s": 1}
                probes[f"{client.pod}-envoy"] = (client.pod, ready)
        for number, host in enumerate(topology.MESHED_HOSTS, 1):
            base = f"http://{self.nets.pod(host)}"
            stats = {"url": f"{base}:{topology.PORT_STATS}/stats?filter=^server.live$", "timeout_s": 1}
            probes[f"web-{number}-envoy"] = ("observer", stats)
            status = {"url": f"{base}:{topology.PORT_STATUS}/status", "timeout_s": 1}
            probes[f"web-{number}-app"] = ("observer", status)
        for number, host in enumerate(topology.PLAIN_HOSTS, 1):
            status = {"url": f"http://{self.nets.pod(host)}:{topology.PORT_STATUS}/status", "timeout_s": 1}
            probes[f"legacy-{number}"] = ("observer", status)
        probes["dns-bind"] = ("observer", self.bind_page())
        probes["dns-dnsdist"] = ("observer", self.dnsdist_page())
        return probes

    def bind_page(self) -> dict[str, Any]:
        """BIND's statistics."""
        return {"url": f"http://{self.nets.pod(topology.DNS_HOST)}:8053/json/v1/server", "timeout_s": 2}

    def dnsdist_page(self) -> dict[str, Any]:
        """dnsdist's statistics and rules."""
        return {
            "url": f"http://{self.nets.pod(topology.DNS_HOST)}:8083/api/v1/servers/localhost",
            "headers": {"X-API-Key": self.keys().web_password},
            "timeout_s": 2,
        }

    def _last_words(self, service: str) -> str:
        with contextlib.suppress(errors.MeshdnsError, docker.errors.DockerException):
            lines = self.container(service).logs(tail=3).decode(errors="replace").strip().splitlines()
            if lines:
                return f"its log ends: {' / '.join(line.strip()[:200] for line in lines)}"
        return f"see `meshdns logs {service}`"

    @contextlib.contextmanager
    def observers(self) -> Iterator[dict[str, Channel]]:
        """A channel to every observer: by client pod name, and `observer` for servers and name servers."""
        services = {client.pod: f"{client.pod}-observer" for client in topology.CLIENTS} | {"observer": "observer"}
        with contextlib.ExitStack() as stack:
            yield {
                key: stack.enter_context(self.channel(service, ["python3", "-m", "observer"]))
                for key, service in services.items()
            }

    # -- conditions and looking in ---------------------------------------------------------------------------------

    def set_dns_delay(self, delay_ms: float) -> None:
        """From now on dnsdist delays each UDP answer by this much. Raises TestbedError."""
        done = process.run(
            "docker", "exec", self.name("dns-dnsdist"), "dnsdist", "-C", "/etc/meshdns/dnsdist.conf", "-c",
            "-e", f"delay_ms={delay_ms:g}", timeout_s=10,
        )  # fmt: skip
        if not done.ok:
            raise errors.TestbedError(f"the delay was not set ({done.last_lines(1)})", place="dns-dnsdist")

    def status(self) -> list[Row]:
        """A row per container."""
        rows = []
        taken = {client.pod: client.intercepted() for client in topology.CLIENTS}
        taken |= {f"web-{n}": "tcp in and out" for n, _ in enumerate(topology.MESHED_HOSTS, 1)}
        for container in self.containers():
            service = container.labels["com.docker.compose.service"]
            pod = next((p for p in sorted(taken, key=len, reverse=True) if service.startswith(p)), service)
            networks = container.attrs["NetworkSettings"]["Networks"].values()
            address = " ".join(filter(None, (n.get("IPAddress", "") for n in networks)))
            state = container.attrs["State"]
            words = "done" if _is_init(container) and state.get("ExitCode") == 0 else state["Status"]
            rows.append(Row(pod, service, words, address, taken.get(pod, "nothing") if service == pod else ""))
        return sorted(rows, key=lambda row: (row.pod, row.container))

    def interactive(self, *arguments: str) -> int:
        """`docker compose` with our project and the terminal; its exit code."""
        return subprocess.call(self._compose(*arguments), env=os.environ | self._environment(partial=True))


def engine_gone(error: Exception) -> errors.TestbedError:
    """The engine died or was stopped while we used it."""
    return errors.TestbedError(
        f"the container engine stopped answering ({error})",
        place="container engine",
        step="start it and run the same command again: it resumes",
    )


def _is_init(container: Container) -> bool:
    """One that does its work and ends: rules, certificate."""
    service = container.labels["com.docker.compose.service"]
    return bool(service.endswith("-rules") or service == "tls")


def _reloaded(container: Container) -> Container:
    try:
        container.reload()
    except (docker.errors.DockerException, OSError) as error:
        raise engine_gone(error) from None
    return container


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not stop the tidying up that the first one asked for."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: signals do not arrive here anyway
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
