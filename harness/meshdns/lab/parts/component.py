"""What a part says of itself, once for everybody who starts it, asks it, reads what it counted or judges by that.

A module of this folder is one part and holds it as `PART`; a world names it by its file, with - for _.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import Template
from typing import ClassVar

from meshdns.core import paths
from meshdns.core.world import Nets, Pod, World
from meshdns.lab import observers

NOBODY = "65534:65534"
LOW_PORTS = {"net.ipv4.ip_unprivileged_port_start": "0"}  # who has no capability listens on them as well
LOOPBACK = "http://127.0.0.1"
FROM_POD = "dnsdist/from_pod"  # queries of the client's pod at its cluster DNS, whichever: stored runs have this name
IDENTITY = "volume/identity-"  # and a service account: its certificate, the key and the root (SPIFFE)
FROM_ALL = "dns/queries"  # of all pods
ASKED, PASSED_ON = "pod/rule/dns_client", "pod/rule/dns_proxy"  # queries that rules saw: the client's, the sidecar's
Page = observers.Page
Command = tuple[str, ...]
Counts = Mapping[str, float]
Pairs = Iterator[tuple[str, float, float]]


@dataclass(frozen=True)
class Secrets:
    """Passwords of the name server's console and statistics, and keys; made at `up`, valid until `down`."""

    console_key: str = ""
    web_password: str = ""
    plane: Mapping[str, str] = field(default_factory=dict)  # of Istio's own control plane, where it is live: files


@dataclass(frozen=True)
class Mount:
    """A file or folder of the place: `files/…` as the package has them, `state/…` as rendered; `volume/…` is shared."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Container:
    """How a part runs; nothing is writable but /tmp, its own folders and what a mount says."""

    command: Command = ()  # the image's own
    entrypoint: Command = ()
    user: str = ""
    capabilities: tuple[str, ...] = ()  # of none otherwise
    mounts: tuple[Mount, ...] = ()
    writable: tuple[str, ...] = ()  # folders in memory, of its user
    environment: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    cpus: str = "mesh"  # or `client`: load generators have one to themselves; or `all`
    abrupt: bool = False  # it keeps nothing, so nobody waits for its end


@dataclass(frozen=True)
class At:
    """A part in one pod of a world."""

    part: Component
    service: str  # by which the place knows it
    pod: Pod
    world: World
    nets: Nets
    address: str  # the pod's
    keys: Secrets

    @property
    def resolv_conf(self) -> str:
        """Where the pod's is among the rendered files."""
        return f"{self.pod.pod}/resolv.conf" if self.pod.name_server else "resolv.conf"

    def rendered(self, name: str, **values: str) -> str:
        """A file of the package with these values and the networks' in it."""
        text = Template((paths.COMPOSE / name).read_text())
        return text.substitute(pod_net=self.nets.pods, world_net=self.nets.world, **values)

    def outer(self, page: str) -> Page:
        """A page on the pod's address."""
        return {"url": f"http://{self.address}:{page}"}

    def inner(self, page: str) -> Page:
        """One on its loopback, for its own observer alone."""
        return {"url": f"{LOOPBACK}:{page}"}


@dataclass(frozen=True)
class Made:
    """What a load has made, by its own count and with its warm-up."""

    requests: int
    connections: int
    queries: int | None  # None: the C library made them, and nobody has counted
    by_name: bool
    tls: bool


class Component(ABC):
    """A part; what it does not say is as here."""

    image: str  # a stage of compose/images/Dockerfile
    carries: bool = True  # traffic passes it, so its CPU time is of interest
    versions: ClassVar[Mapping[str, str]] = {}  # of programs in it -> the command that says it
    counts_itself: ClassVar[str] = ""  # the counter in which a question for its page counts too
    configured_by: ClassVar[str] = ""  # the key of a ConfigMap that its Pod must mount

    @abstractmethod
    def container(self, at: At) -> Container:
        """How it runs."""

    def files(self, at: At) -> dict[str, str]:
        """Rendered files -> content."""
        return {}

    def needs_live(self, configuration: str) -> str:
        """Why it does not do without Istio's own control plane, where it is configured so; empty where it does."""
        return ""

    def page(self, at: At) -> Page | None:
        """Where it says what it counted; on the loopback its pod's own observer asks."""
        return None

    def ready(self, at: At) -> Page | Command | None:
        """What answers once it does: a page, or a command that then prints `yes`; None: it need only run."""
        return self.page(at)

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        """What such a page says, by our names."""
        return {}

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        """What must be equal after a load of this client, as (what, counted, expected)."""
        return iter(())


class Alike(Component):
    """A part that is the same in every pod, and ready as soon as it runs."""

    def __init__(self, image: str, container: Container, *, carries: bool = True) -> None:
        self.image, self.carries, self._container = image, carries, container

    def container(self, at: At) -> Container:
        return self._container


class NameServer(Component):
    """A part whose configuration is kept with each run."""
