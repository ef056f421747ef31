"""A place in memory that does what `lab.place` says and remembers what was asked of it.

Its agents make no request: they make samples from the job, and every component on the path counts what the job would
have caused, so that a trial is valid by all counters. Nothing waits: instants are made up, and those of an
open loop may lie ahead.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import random
import re
import struct
import threading
import time
import urllib.parse
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from string import Template
from typing import Any

import dns.message
import pytest
import yaml

from meshdns.ads.types import CDS, EDS, LDS, NDS, RDS
from meshdns.core import errors, resolver
from meshdns.core.world import LIVE, Nets, Pod, Service, World
from meshdns.lab import controlplane, parts, place, ports, readiness, watch
from meshdns.lab.channel import Channel
from meshdns.lab.compose import containers
from meshdns.lab.controlplane import READY
from meshdns.lab.parts import istiod
from meshdns.lab.place import REFUSED, Account, Part, Usage
from meshdns.measure.factors import fault
from shipped import WORLD


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here takes time, so nothing is waited for."""
    monkeypatch.setitem(fault.LEVELS, "overload", fault.Fault("/overload"))
    for wait in ("GRACE_S", "STAY_S"):
        monkeypatch.setattr(controlplane, wait, 0.0)
    monkeypatch.setattr(controlplane, "_answers", _usual)
    for wait in ("_LATE_S", "_STILL_S", "_PAUSE_S"):
        monkeypatch.setattr(watch, wait, 0.0)


def _usual(_: str, host: str) -> set[str]:
    """A name server that keeps nothing: what it would be asked for over a network that is not there."""
    [service] = [each for each in WORLD.services if each.host == host]
    return {WORLD.address(Nets(), pod) for pod in service.replicas}


def groups_of(world: World, groups: Collection[str]) -> frozenset[str]:
    """These, and that of Istio's own control plane where they need it, as `meshdns run` has it."""
    return frozenset(groups) | ({LIVE} if world.live_groups & {*groups} else set())


INTEGERS = ("due_ns", "start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")
WORDS = ("outcome", "address", "replica")
NUMBERS = ("rcode", "status", "queries", "bytes", "local_port")
LOOKUP_NS, REQUEST_NS = 50_000, 300_000
Answer = tuple[dict[str, Any], bytes]
Asked = Callable[[dict[str, Any]], Answer]


class Line:
    """A program's input and output, where the program is a function."""

    def __init__(self, answer: Asked, runs: Callable[[], bool]) -> None:
        self._answer, self._runs, self._printed = answer, runs, b""

    def write(self, data: bytes) -> None:
        if not self._runs():
            raise BrokenPipeError
        header, body = self._answer(json.loads(data))
        self._printed += json.dumps(header).encode() + b"\n" + body

    def read(self, timeout_s: float) -> bytes:
        if not self._printed and self._runs():
            raise TimeoutError
        printed, self._printed = self._printed, b""
        return printed

    def close(self) -> str:
        self._runs = lambda: False
        return ""


@dataclass
class Plane:
    """Istio's own control plane, as `lab.live` has it: whom it tells has accepted it before the next question."""

    place: Recording
    service: str
    there: dict[str, str] = field(default_factory=dict)  # file -> manifests
    states: dict[str, str] = field(default_factory=dict)  # of pods that were told of
    sent_s: dict[str, float] = field(default_factory=dict)  # by type URL

    def put(self, text: str, file: str) -> None:
        self.place.asked.append(("manifests", file, text))
        self.there[file] = text
        self.tell(*_ALL_TYPES)

    def remove(self, text: str, file: str) -> None:
        self.place.asked.append(("manifests", file, ""))
        assert self.there.pop(file) == text
        self.tell(*_ALL_TYPES)

    def report(self, pods: Mapping[str, str]) -> int:
        self.place.asked.append(("report", *(f"{pod} {state}" for pod, state in pods.items())))
        at_ns = time.monotonic_ns()
        self.states |= pods
        self.tell(EDS, NDS)
        return at_ns

    def tell(self, *types: str) -> None:
        """Everybody is sent these."""
        self.sent_s |= dict.fromkeys(types, time.time())

    def sidecars(self) -> dict[str, dict[str, Any]]:
        self.place._require(self.service)
        known = [pod for pod in self.place.world.up(self.place.groups) if self.place._runs(parts.sidecar(pod))]
        return {pod.pod: {kind: self._of(kind) for kind in _ALL_TYPES if kind != NDS or pod.dns == "agent"}
                for pod in known}  # fmt: skip

    def _of(self, kind: str) -> dict[str, Any]:
        at = datetime.fromtimestamp(self.sent_s[kind], UTC)
        return {"sent": str(at), "acked": str(at), "sentTime": at.isoformat()}

    def names(self, pod: Pod) -> dict[str, list[str]]:
        self.place._require(parts.sidecar(pod))
        return {each.host: [each.cluster_ip or each.virtual_ip] for each in self.place.world.told}

    def is_ready(self) -> bool:
        return self.place._runs(self.service)

    def replicas(self, service: Service) -> list[str]:
        """Those that it tells of."""
        known = {**dict.fromkeys(service.replicas, READY), **self.states}
        return [pod for pod, state in known.items() if state == READY]


@dataclass
class Recording:
    """A `place.Place`; `asked` holds every verb that was asked of it, in order."""

    groups: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()  # pods whose loader is not allowed
    lost: set[str] = field(default_factory=set)  # client pods where nobody counts a load's first query
    name: str = "recording"
    world: World = WORLD
    nets: Nets = field(default_factory=Nets)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    states: dict[str, Part] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)  # by address
    counted: Counter[str] = field(default_factory=Counter)  # `<pod>/<what>`
    lock: threading.RLock = field(default_factory=threading.RLock)  # a change comes about beside a load

    def __post_init__(self) -> None:
        self.world = self.world.of(self.groups)

    # -- the verbs -------------------------------------------------------------------------------------------------

    def up(self, announce: Callable[[str], None]) -> None:
        self.asked.append(("up",))
        keys = containers.new_secrets(live=self.world.live)
        self.files = dict(containers.files(self.world, self.nets, keys, self.groups))
        self.files["secrets.json"] = json.dumps(dataclasses.asdict(keys))
        services = yaml.safe_load(self.files["compose.yaml"])["services"]
        self.states = {service: self._begun(service) for service in services}
        for service, part in services.items():
            for network in part.get("networks", {}).values():
                prefixes = {f"MESHDNS_{net.upper()}": each for net, each in dataclasses.asdict(self.nets).items()}
                self.pods[Template(network["ipv4_address"]).substitute(prefixes)] = service
        if self.world.live:
            self.istiod.tell(*_ALL_TYPES)
        readiness.wait(self)

    def _begun(self, service: str) -> Part:
        refused = service.removesuffix("-loader") in self.refused and service.endswith("-loader")
        done = service.endswith("-rules") or service == "tls"
        code = REFUSED if refused else 0 if done else None
        return Part(service, f"id of {service}", "running" if code is None else "exited", code)

    def down(self) -> list[str]:
        self.asked.append(("down",))
        count = len(self.states)
        self.states = {}
        return [f"removed {count} parts"]

    def exec(self, where: str, argv: Sequence[str], *, timeout_s: float, given: str = "", image: str = "") -> str:
        self.asked.append(("exec", where, *argv))
        self._require(where)
        if argv[0] == "false":
            raise errors.TestbedError("false failed (exit code 1)", place=where)
        if argv[0] == "sleep":
            raise errors.TestbedError(f"sleep did not end in {timeout_s:g} s", place=where)
        if argv[0] == "cat" and len(argv) == 1:
            return given
        with self.lock:
            return self._said(where, " ".join(argv))

    def talk(
        self, where: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, image: str = ""
    ) -> Channel:
        self.asked.append(("talk", where, *argv))
        self._require(where)
        pod = where.removesuffix("-app").removesuffix("-observer")
        answer = self._agent if argv[-1] == "agent" else self._observer
        return Channel(Line(lambda request: answer(pod, request), lambda: self._runs(where)), where)

    def kill(self, *services: str) -> int:
        self.asked.append(("kill", *services))
        at_ns = time.monotonic_ns()
        for service in services:
            self._require(service)
            self.states[service] = dataclasses.replace(self.states[service], state="exited", code=137)
        return at_ns

    def start(self, *services: str) -> None:
        self.asked.append(("start", *services))
        for service in services:
            if service not in self.states:
                raise errors.TestbedError("there is no such service", place=service)
            anew = {"code": None} | ({"began_s": time.time() + 60} if self.states[service].state == "exited" else {})
            self.states[service] = dataclasses.replace(self.states[service], state="running", **anew)
            if self.world.live and service == self.istiod.service:
                self.istiod.tell(*_ALL_TYPES)

    def usage(self, services: Collection[str]) -> dict[str, Usage]:
        self.asked.append(("usage", *services))
        there = [each for each in services if each in self.states and self._runs(each)]
        return {each: Usage(self.counted[f"{each}/cpu"], 30_000_000) for each in there}

    def address(self, pod: str) -> str:
        return place.address(self.world, self.nets, pod)

    def put(self, path: str, text: str | None) -> None:
        self.asked.append(("put", path, "" if text is None else text))
        self.files.pop(path, None)
        if text is not None:
            self.files[path] = text

    # -- what is there ---------------------------------------------------------------------------------------------

    def read(self, path: str) -> str:
        if path not in self.files:
            raise errors.TestbedError("there is no such file", place=path)
        return self.files[path]

    @functools.cached_property
    def istiod(self) -> Plane:
        every = [at for pod in self.world.up(self.groups) for at in parts.of(self.world, self.nets, pod)]
        [service] = [at.service for at in every if at.part is istiod.PART]
        return Plane(self, service)

    def plane(self) -> Plane:
        return self.istiod

    def parts(self) -> list[Part]:
        return list(self.states.values())

    def account(self, part: Part) -> Account:
        if part.service not in self.states:
            return Account()
        words = "not allowed here" if part.is_refused else f"{part.service} says goodbye"
        return Account(self.states[part.service].code or 0, log=(words,))

    def facts(self) -> dict[str, Any]:
        images = {"client": {"tag": "made up", "id": "sha256:0"}}
        return {"engine": {}, "images": images, "cpu_sets": {"client": "1", "mesh": "0"}, "versions": {}}

    def _require(self, service: str) -> None:
        if not self._runs(service):
            raise errors.TestbedError("there is no such service that runs", place=service)

    def _runs(self, service: str) -> bool:
        return service in self.states and self.states[service].state == "running"

    # -- programs that end -----------------------------------------------------------------------------------------

    def _said(self, where: str, command: str) -> str:
        if "h2load --h1" in command:
            return "".join(f"{n * 300}\t200\t290\n" for n in range(int(re.findall(r"-n (\d+)", command)[0])))
        if "dnsperf -s" in command:
            asked = int(re.findall(r"head -n (\d+)", command)[0])
            return "> NOERROR web.shop. A 0.000090\n" * asked + "Run time (s): 0.5\n"
        if "names.json" in command:
            return json.dumps({"table": {host: {"ips": [ip]} for host, ip in self._table("agent").items()}})
        fixed = {"pg_isready": "yes", "dnsproxy.conformance": "[]", "dns.zone": "{}", "dnsdist -C": ""}
        return next((said for part, said in fixed.items() if part in command), "version 1.2.3")

    # -- the load agent --------------------------------------------------------------------------------------------

    def _agent(self, pod: str, job: dict[str, Any]) -> Answer:
        if job["kind"] == "ping":
            return {"pong": True}, b""
        if job["kind"] == "clock":
            known = {"resolution_ns": 1.0, "cost_p50_ns": 60, "cost_p99_ns": 90, "gaps_over_50us": 1}
            return {"clock": {**known, "gap_share": 8e-5, "longest_gap_ns": 80_000, "backwards": 0}}, b""
        if job["kind"] not in ("lookup", "request"):
            return {"error": f"kind: {job['kind']!r} is not one of lookup, request"}, b""
        client = next(each for each in self.world.clients if each.pod == pod)
        with self.lock:
            return Load(self, client, job).answer()

    def _table(self, dns: str) -> dict[str, str]:
        """What a pod's DNS proxy knows."""
        known = {each.host: each.cluster_ip or each.virtual_ip for each in self.world.backends.values()}
        return {host: address or "240.240.0.99" for host, address in known.items() if dns != "cluster"}

    # -- observers -------------------------------------------------------------------------------------------------

    def _observer(self, pod: str, request: dict[str, Any]) -> Answer:
        with self.lock:
            replies: dict[str, Callable[[], dict[str, Any]]] = {
                "snapshot": lambda: self._snapshot(pod, request),
                "loaded": lambda: {"text": f"rules of {pod}"},
                "tracked": lambda: {"entries": []},
                "captured": lambda: {"pcap": dict.fromkeys(("eth0", "lo"), _NO_PACKETS)},
            }
            quiet = ("capture", "run")
            if request["op"] not in (*replies, *quiet):
                return {"error": f"unknown op {request['op']!r}"}, b""
            return replies.get(request["op"], dict[str, Any])(), b""

    def _snapshot(self, pod: str, request: dict[str, Any]) -> dict[str, Any]:
        rules = {"dns_client": 0, "dns_proxy": 0} | self._of(f"{pod}/rule/") if request.get("rules") else {}
        pages = [self._page(pod, each["url"]) for each in request.get("pages", [])]
        return {"rules": rules, "conntrack": 0, "pages": pages}

    def _of(self, prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): n for name, n in self.counted.items() if name.startswith(prefix)}

    def _page(self, pod: str, url: str) -> str | None:
        asked = urllib.parse.urlsplit(url)
        if asked.hostname != "127.0.0.1":
            return self._outer(self.pods[asked.hostname or ""], asked)
        sidecar = parts.sidecar(self.world.named(pod))
        own = {ports.PORT_LOADER: f"{pod}-loader", ports.PORT_NODE_DNS: f"{pod}-node-dns"}
        if not self._runs(own.get(asked.port or 0, sidecar)):
            return None
        if asked.port == ports.PORT_LOADER:
            return json.dumps({"counters": {}})
        if asked.port == ports.PORT_NODE_DNS:
            return f"coredns_dns_requests_total{{}} {self.counted[f'{pod}/node']}"
        return self._sidecar(pod, asked)

    def _sidecar(self, pod: str, asked: urllib.parse.SplitResult) -> str | None:
        """Envoy's pages, and those of Istio's agent."""
        if asked.path in ("/ready", "/healthz/ready"):
            return "LIVE"
        if asked.path == "/config_dump":
            return json.dumps({"configs": []})
        if asked.path == "/clusters":
            members = {each.host: self._members(each) for each in self.world.told}
            lines = [
                f"outbound|80||{host};::{each}::health_flags::healthy" for host in members for each in members[host]
            ]
            return "\n".join(lines)
        found = {f"cluster.outbound|80||{each.host};.membership_healthy": 3 for each in self.world.told}
        found |= dict.fromkeys(_OF_ISTIO, 0) | self._of(f"{pod}/envoy/")
        wanted = urllib.parse.parse_qs(asked.query).get("filter", [""])[0]
        chosen = {name: value for name, value in found.items() if re.search(wanted, name)}
        if asked.path == "/stats/prometheus":
            lines = [f"{series(name)} {value}" for name, value in chosen.items()]
            return "\n".join([*lines, *(f"{name} {value}" for name, value in self._of(f"{pod}/agent/").items()), ""])
        return json.dumps({"stats": [{"name": name, "value": value} for name, value in chosen.items()]})

    def _members(self, service: Service) -> list[str]:
        replicas = self.istiod.replicas(service) if self.world.live else service.replicas
        return [f"{self.address(each)}:8080" for each in replicas]

    def _outer(self, pod: str, asked: urllib.parse.SplitResult) -> str | None:
        """A page that is asked for over the network."""
        if pod in self.world.cluster_dns.values():
            asking = [each for each in self.world.clients if self.world.dns_pod(each).pod == pod]
            counts = {f"from_{each.host}": self.counted[f"{each.pod}/cluster_dns"] for each in asking}
            total = sum(counts.values())
            return json.dumps({"rules": {**counts, "all": total}, "beside": f"coredns_dns_requests_total{{}} {total}"})
        if not self._runs(f"{pod}-app" if pod in {each.pod for each in self.world.meshed} else pod):
            return None
        if asked.port == ports.PORT_PAGES:
            self.counted[f"{pod}/nginx"] += 1  # the question itself
            return f"server accepts handled requests\n 1 1 {self.counted[f'{pod}/nginx']} \n"
        return self._sidecar(pod, asked)


_ALL_TYPES = (CDS, EDS, LDS, RDS, NDS)
_OF_ISTIO = (
    "cluster.PassthroughCluster;.upstream_cx_total", "cluster.outbound|80||web.example.com;.update_attempt",
    "http.inbound_0.0.0.0_8080;.downstream_rq_completed", "listener.0.0.0.0_15001.downstream_cx_total",
    "listener.0.0.0.0_15006.no_filter_chain_match", "listener.0.0.0.0_15006.ssl.handshake",
)  # fmt: skip
# What Istio's bootstrap makes a label of in a statistic's name -> the label.
_LABELS = {
    r"cluster\.(.+);\.(.+)": ("cluster", "cluster_name"),
    r"http\.(.+?);?\.(downstream_.+)": ("http", "http_conn_manager_prefix"),
    r"listener\.([\d.]+_\d+)\.(.+)": ("listener", "listener_address"),
    r"tcp\.(\w+)\.(.+)": ("tcp", "tcp_prefix"),
}


def series(name: str) -> str:
    """An Envoy's statistic as the agent's page has it."""
    for pattern, (kind, label) in _LABELS.items():
        if found := re.fullmatch(pattern, name):
            return f'envoy_{kind}_{found[2].replace(".", "_")}{{{label}="{found[1]}"}}'
    return f"envoy_{name.replace('.', '_')}{{}}"


_FILTER = ("envoy/dns_filter.mesh.downstream_rx_queries", "envoy/dns_filter.mesh.external_a_record_queries")
_AGENT = ("agent/istio_agent_dns_requests_total", "agent/istio_agent_dns_upstream_requests_total")
_NO_PACKETS = base64.b64encode(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 128, 1)).decode()


class Load:
    """One job of an agent: the samples it would give, and what the components on its path would count of it."""

    def __init__(self, where: Recording, client: Pod, job: Mapping[str, Any]) -> None:
        self.where, self.client = where, client
        self.job = job = {"warmup": 0, "connection": "new", "arrival": {"rate_hz": 0.0}, **job}
        self.count, self.made = job["count"], job["count"] + job["warmup"]
        self.kept = job["connection"] == "keepalive"
        head = re.match(r"GET (\S+) HTTP/1.1\r\nHost: (\S+)", job.get("request", ""))
        self.body_bytes = int(head[1].rpartition("/")[2]) if head else 0
        self.service = self._service(head[2] if head else "")
        self.asked, self.name = self._names()
        self.opened = (1 if self.kept else self.made) if job["kind"] == "request" else 0
        resolutions = self.opened if job["kind"] == "request" else self.made
        self.queries = resolutions * self.asked
        self.usual_ns = LOOKUP_NS * 2 + (REQUEST_NS if self.service else 0)

    def _service(self, host: str) -> Service | None:
        if self.job["kind"] == "lookup":
            return None
        direct = self.job.get("address", "")
        for each in self.where.world.backends.values():
            first = [self.where.address(pod) for pod in [*each.replicas][:1]]
            if direct in first if direct else host in (each.host, each.name):
                return each
        return self.where.world.backends["postgres"]  # what is asked is not HTTP

    def _names(self) -> tuple[int, str]:
        """Queries of one resolution, and the name that its answer is for; "" where none of them exists."""
        if self.job["lookup"] == "none":
            return 0, ""
        if self.job["lookup"] == "getaddrinfo":
            messages = {"inet": 1, "inet6": 1, "unspec": 2}[self.job["family"]]
            candidates = [
                (each.rstrip("."), messages)
                for each in resolver.candidates(self.job["name"], 5, self.where.world.search)
            ]
        else:
            wires = [[bytes.fromhex(one) for one in candidate] for candidate in self.job["wire"]]
            candidates = [
                (dns.message.from_wire(each[0]).question[0].name.to_text().rstrip("."), len(each)) for each in wires
            ]
        asked = 0
        for name, messages in candidates:
            asked += messages
            if self._address(name):
                return asked, name
        return asked, ""

    def _address(self, name: str) -> str:
        unusual = re.match(rf"answer-([a-z-]+?)-{self.client.arm}\.", name)
        if unusual and unusual[1] in self.where.world.answers:
            return self.where.world.answers[unusual[1]].of(self.where.nets, self.client)
        if name.endswith(".null"):
            return "127.0.0.1"
        if self.client.dns_proxy and name != self.where.world.external_name:
            return self.where._table(self.client.dns).get(name, "")
        world, nets = self.where.world, self.where.nets
        zone = {each.host: world.answered(nets, each, in_pod=False) for each in world.backends.values()}
        return {**zone, world.external_name: world.address(nets, world.external_pod)}.get(name, "")

    def answer(self) -> Answer:
        """Header and columns."""
        if self.job.get("resolver", [""])[0] in ("", self.where.world.dns_address(self.client)):
            self._count_dns()
        if self.service:
            self._count_requests(self.service)
        for service in self.where.states:
            self.where.counted[f"{service}/cpu"] += 50 * self.made
        columns, words = self._columns()
        raw = [array("q", columns[name]).tobytes() for name in INTEGERS]
        raw += [array("i", columns[name]).tobytes() for name in (*WORDS, *NUMBERS)]
        kinds = [[name, "q"] for name in INTEGERS] + [[name, "i"] for name in (*WORDS, *NUMBERS)]
        wall_ns = columns["end_ns"][-1] - columns["start_ns"][0]
        warm_up = min(self.job["warmup"], 1)  # the connection that is kept is opened by the first
        warm = self.job["warmup"] if not self.kept or not self.service else warm_up
        cold = self.opened - warm if self.service else 0
        facts = {
            "wall_ns": wall_ns,
            "gap_ns": 0,
            "connections_opened": cold,
            "queries_sent": self.queries,
            "warmup": {"connections_opened": self.opened - cold, "queries_sent": 0},
        }
        header = {"rows": self.count, "columns": kinds, "strings": words, "nbytes": sum(map(len, raw)), "facts": facts}
        return header, b"".join(raw)

    def _columns(self) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
        rate, n = self.job["arrival"]["rate_hz"], self.count
        chance = random.Random(f"{self.client.pod} {len(self.where.asked)} {self.where.counted.total()}")
        took = [round(self.usual_ns * chance.lognormvariate(0, 0.1)) for _ in range(n)]
        starts = itertools.accumulate([round(1e9 / rate)] * n if rate else took, initial=time.monotonic_ns())
        due = list(starts)[:n]
        dns_ns = LOOKUP_NS if self.asked and not (self.kept and self.service) else 0
        ends = [at + each for at, each in zip(due, took, strict=True)]
        looked = [at + dns_ns for at in due]
        columns = {"due_ns": due, "start_ns": due, "dns_ns": looked, "connect_ns": looked, "tls_ns": looked,
                   "first_byte_ns": ends, "end_ns": ends}  # fmt: skip
        if not self.service:
            columns |= dict.fromkeys(("dns_ns", "connect_ns", "tls_ns"), ends)
        replicas = sorted(self.service.replicas or [self.service.name]) if self.service else [""]
        if self.job.get("address"):
            replicas = [each for each in replicas if self.where.address(each) == self.job["address"]]
        aaaa = self.job.get("family") == "inet6" or (self.asked and self._asks_only_aaaa())
        address = self.job.get("address") or ("" if aaaa else self._address(self.name))
        columns |= {"outcome": [0] * n, "address": [0] * n, "replica": [k % len(replicas) for k in range(n)]}
        fixed = {"rcode": -1 if not dns_ns and self.service else 0 if self.name else 3,
                 "status": 200 if self.service else 0, "queries": self.asked * bool(dns_ns or not self.service),
                 "bytes": self.body_bytes, "local_port": 40_000}  # fmt: skip
        columns |= {name: [value] * n for name, value in fixed.items()}
        return columns, {"outcome": ["ok"], "address": [address], "replica": replicas}

    def _asks_only_aaaa(self) -> bool:
        wires = self.job.get("wire") or [[]]
        return [dns.message.from_wire(bytes.fromhex(one)).question[0].rdtype for one in wires[0]] == [28]

    def _count_dns(self) -> None:
        counted, pod = self.where.counted, self.client.pod
        counted[f"{pod}/rule/dns_client"] += self.queries - (pod in self.where.lost)
        if not self.client.dns_proxy:  # a node's own name server knows all answers
            where = "node" if self.where.world.asks_node(self.client) else "cluster_dns"
            counted[f"{pod}/{where}"] += self.queries
            return
        known = self.name in self.where._table(self.client.dns) and self.name != self.where.world.external_name
        forwarded = 0 if known else self.queries
        counted[f"{pod}/rule/dns_proxy"] += forwarded
        counted[f"{pod}/cluster_dns"] += forwarded
        asked, passed_on = _AGENT if self.client.dns == "agent" else _FILTER
        counted[f"{pod}/{asked}"] += self.queries
        counted[f"{pod}/{passed_on}"] += forwarded

    def _count_requests(self, service: Service) -> None:
        counted, pod = self.where.counted, self.client.pod
        first = next(iter(service.replicas), "")
        counted[f"{first}/nginx"] += self.made
        if service.meshed and not self.job["tls"]:
            counted[f"{first}/envoy/http.inbound_0.0.0.0_8080;.downstream_rq_completed"] += self.made
        if self.client.sidecar:
            counted[f"{pod}/rule/redirect_tcp"] += self.opened
            cluster = f"outbound|80||{service.host};"
            counted[f"{pod}/envoy/cluster.{cluster}.upstream_rq_completed"] += 0 if self.job["tls"] else self.made
        elif self.job["lookup"] != "none":
            counted[f"{pod}/rule/clusterip_tcp"] += self.opened
