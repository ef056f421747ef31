"""Traces and cells of answers made by hand, in the form that the testbed stores them in.

The kernel's ways are kept: a reply to a redirected connection carries the address that was asked for, a packet that
crosses the network is seen in both namespaces, one on loopback once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from meshdns import store
from meshdns.core.world import Nets, Pod
from shipped import WORLD

WEB, LEGACY = "198.18.0.21:8080", "198.18.0.31:8080"
NAME = "web.shop.svc.cluster.local."
RESOLVER, SERVER = "10.96.0.10:53", "198.18.0.10:53"
REQUEST, RESPONSE = "GET / HTTP/1.1", "HTTP/1.1 200 OK"

# What the search list makes of the name, and nobody has.
ABSENT = ("web.shop.svc.cluster.local.shop.svc.cluster.local.", "web.shop.svc.cluster.local.svc.cluster.local.",
          "web.shop.svc.cluster.local.cluster.local.")  # fmt: skip


@dataclass
class Wire:
    """Packets of one request in the order in which they are added, a microsecond apart."""

    arm: str
    url: str = "http://web.shop.svc.cluster.local./"
    packets: list[dict[str, Any]] = field(default_factory=list)
    tracked: dict[str, list[str]] = field(default_factory=dict)
    rules: dict[str, float] = field(default_factory=dict)
    proxies: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def client(self) -> Pod:
        return WORLD.arms[self.arm]

    @property
    def address(self) -> str:
        return Nets().pod(self.client.host)

    def packet(self, places: tuple[str, ...], ends: tuple[str, str], flags: str = "", *, size: int = 0, says: str = "",
               protocol: str = "tcp") -> None:  # fmt: skip
        """Seen in each place, `pod/interface`, in turn."""
        for place in places:
            namespace, interface = place.split("/")
            self.packets.append(
                {
                    "at_us": float(len(self.packets)),
                    "namespace": namespace,
                    "interface": interface,
                    "protocol": protocol,
                    "source": ends[0],
                    "target": ends[1],
                    "flags": flags,
                    "size": size,
                    "says": says,
                }
            )

    def ask(self, places: tuple[str, ...], ends: tuple[str, str], name: str = NAME) -> None:
        self.packet(places, ends, size=40, says=f"{name} A?", protocol="udp")

    def tell(self, places: tuple[str, ...], ends: tuple[str, str], answer: str, name: str = NAME) -> None:
        self.packet(places[::-1], ends, size=60, says=f"{name} A: {answer}", protocol="udp")

    def syn(self, places: tuple[str, ...], ends: tuple[str, str], back: str = "") -> None:
        """A handshake; `back` is where its answer seems to come from."""
        self.packet(places, ends, "SYN")
        self.packet(places[::-1], (back or ends[1], ends[0]), "SYN")
        self.packet(places, ends)

    def translate(self, protocol: str, source: str, asked: str, reached: str, pod: str = "") -> None:
        """An entry in a pod, the client's by default; nothing is rewritten if `reached` is what was asked for."""
        (src, sport), (dst, dport), (new, nport) = (each.split(":") for each in (source, asked, reached))
        self.tracked.setdefault(pod or self.client.pod, []).append(
            f"ipv4     2 {protocol}      6 119 TIME_WAIT src={src} dst={dst} sport={sport} dport={dport} "
            f"src={new} dst={src} sport={nport} dport={sport} [ASSURED] mark=0 zone=1 use=1"
        )

    def json(self, outcome: str = "ok", address: str = "", status: int = 0) -> dict[str, Any]:
        """The trace."""
        instants = ("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns")
        request = {name: 1000 * n for n, name in enumerate(instants)}
        replica = "web-1" if status else ""
        pods = {self.client.pod: self.address, "dns": "198.18.0.10", "web-1": "198.18.0.21", "legacy-1": "198.18.0.31"}
        return {
            "arm": self.arm,
            "url": self.url,
            "pods": pods,
            "request": {**request, "outcome": outcome, "status": status, "address": address, "replica": replica},
            "packets": self.packets,
            "tracked": {pod: self.tracked.get(pod, []) for pod in pods},
            "rules": {pod: {} for pod in pods} | {self.client.pod: self.rules, "web-1": {"inbound_tcp": 1}},
            "proxies": self.proxies,
            "chains": {
                self.client.pod: {
                    "10.96.1.10_80": {"out_web": ["web-http"]},
                    "240.240.0.10_80": {"out_web": ["web-http"]},
                    "0.0.0.0_15001": {"blackhole": ["to-itself"], "passthrough": ["passthrough"]},
                },
                "web-1": {"0.0.0.0_15006": {"inbound": ["inbound-http"], "inbound_passthrough": ["rest"]}},
            },
        }


def _cluster_dns(wire: Wire, answer: str, port: int, name: str = NAME) -> None:
    """Both ends of the pod network see the exchange."""
    places, source = (f"{wire.client.pod}/eth0", "dns/eth0"), f"{wire.address}:{port}"
    wire.ask(places, (source, SERVER), name)
    wire.tell(places, (SERVER, source), answer, name)
    wire.translate("udp", source, RESOLVER, SERVER)


def _request(wire: Wire, asked: str, *, says: tuple[str, str] = (REQUEST, RESPONSE)) -> None:
    """Through both sidecars; the server's own connection stood already."""
    inside, out = (f"{wire.client.pod}/lo",), (f"{wire.client.pod}/eth0", "web-1/eth0")
    app, proxy = (f"{wire.address}:4000", "127.0.0.1:15001"), (f"{wire.address}:4001", WEB)
    wire.syn(inside, app, asked)
    wire.packet(inside, app, size=100, says=says[0])
    wire.syn(out, proxy)
    wire.packet(out, proxy, size=160, says=REQUEST)
    wire.packet(("web-1/lo",), ("127.0.0.6:4002", WEB), size=160, says=REQUEST)
    wire.packet(("web-1/lo",), (WEB, "127.0.0.6:4002"), size=1000, says=RESPONSE)
    wire.packet(out[::-1], (WEB, proxy[0]), size=1010, says=RESPONSE)
    wire.packet(inside, (asked, app[0]), size=1020, says=says[1])
    wire.packet(inside, (asked, app[0]), "FIN")
    wire.packet(inside, app, "FIN")
    wire.translate("tcp", app[0], asked, app[1])
    wire.translate("tcp", proxy[0], WEB, WEB)
    wire.translate("tcp", proxy[0], WEB, "198.18.0.21:15006", "web-1")
    wire.rules["redirect_tcp"] = 1
    name = asked.replace(":", "_")
    wire.proxies = {
        wire.client.pod: {
            f"listener.{name}.downstream_cx_total": 1,
            f"listener.{name}.worker_0.downstream_cx_total": 1,
            "http.out_web.downstream_rq_total": 1,
            "cluster.web-http.upstream_cx_total": 1,
            "listener.admin.downstream_cx_total": 1,
            "http.admin.downstream_rq_total": 1,
        },
        "web-1": {"listener.0.0.0.0_15006.downstream_cx_total": 1, "http.inbound.downstream_cx_total": 1,
                  "cluster.inbound.upstream_rq_total": 1},
    }  # fmt: skip


def mode1(*absent: str, says: tuple[str, str] = (REQUEST, RESPONSE), kept: bool = False) -> dict[str, Any]:
    """Served in mode 1; these names are tried before and do not exist."""
    url = "http://web.shop.svc.cluster.local/" if absent else "http://web.shop.svc.cluster.local./"
    wire = Wire("mode1", url)
    for name in absent:
        _cluster_dns(wire, "NXDOMAIN", 3000, name)
    if kept:  # an old connection's last words
        wire.packet((f"{wire.client.pod}/lo",), ("127.0.0.1:15001", f"{wire.address}:2000"), "FIN")
    _cluster_dns(wire, "10.96.1.10", 3000)
    _cluster_dns(wire, "198.18.0.21, 198.18.0.22", 3333, "web-headless.shop.svc.cluster.local.")  # the sidecar's own
    _request(wire, "10.96.1.10:80", says=says)
    return wire.json(address="10.96.1.10", status=200)


def mode2(*absent: str, arm: str = "mode2-agent") -> dict[str, Any]:
    """Served in mode 2; what its proxy does not know it passes on."""
    wire = Wire(arm, "http://web.shop.svc.cluster.local/" if absent else "http://web.shop.svc.cluster.local./")
    inside, app = (f"{wire.client.pod}/lo",), f"{wire.address}:3000"
    for n, name in enumerate(absent):
        wire.ask(inside, (app, "127.0.0.1:15053"), name)
        _cluster_dns(wire, "NXDOMAIN", 3100 + n, name)
        wire.tell(inside, (RESOLVER, app), "NXDOMAIN", name)
    wire.ask(inside, (app, "127.0.0.1:15053"))
    wire.tell(inside, (RESOLVER, app), "240.240.0.10")
    wire.translate("udp", app, RESOLVER, "127.0.0.1:15053")
    _request(wire, "240.240.0.10:80")
    return wire.json(address="240.240.0.10", status=200)


def direct() -> dict[str, Any]:
    """Served without a mesh; another pod asks the name server meanwhile."""
    wire = Wire("plain", "http://legacy.shop.svc.cluster.local./")
    name = "legacy.shop.svc.cluster.local."
    wire.ask(("dns/eth0",), ("198.18.0.99:1", SERVER), "other.")
    _cluster_dns(wire, "10.96.1.20", 3000, name)
    out, ends = (f"{wire.client.pod}/eth0", "legacy-1/eth0"), (f"{wire.address}:4000", LEGACY)
    wire.syn(out, ends)
    wire.packet(out, ends, size=100, says=REQUEST)
    wire.packet(out[::-1], ends[::-1], size=1000, says=RESPONSE)
    wire.translate("tcp", ends[0], "10.96.1.20:80", LEGACY)
    return wire.json(address="10.96.1.20", status=200)


def loop(rounds: int = 40, *, guarded: bool = False) -> dict[str, Any]:
    """Answered with the sidecar's own port: it connects to itself until something ends it."""
    wire = Wire("answers" if guarded else "unguarded", "http://loop.shop.svc.cluster.local.:15001/")
    _cluster_dns(wire, "127.0.0.1", 3000, "loop.shop.svc.cluster.local.")
    inside = (f"{wire.client.pod}/lo",)
    for n in range(1 if guarded else rounds):
        wire.syn(inside, (f"127.0.0.1:{5000 + n}", "127.0.0.1:15001"))
        wire.packet(inside, (f"127.0.0.1:{5000 + n}", "127.0.0.1:15001"), size=100, says=REQUEST)
    for n in reversed(range(1 if guarded else rounds)):
        wire.packet(inside, ("127.0.0.1:15001", f"127.0.0.1:{5000 + n}"), "RST")
    part = "blackhole" if guarded else "passthrough"
    wire.proxies = {wire.client.pod: {"listener.0.0.0.0_15001.downstream_cx_total": float(rounds),
                                      f"tcp.{part}.downstream_cx_total": float(rounds)}}  # fmt: skip
    return wire.json("reset", "127.0.0.1")


def refused() -> dict[str, Any]:
    """Captured, but the sidecar is down."""
    wire = Wire("answers")
    _cluster_dns(wire, "10.96.1.10", 3000)
    app, inside = f"{wire.address}:4000", (f"{wire.client.pod}/lo",)
    wire.packet(inside, (app, "127.0.0.1:15001"), "SYN")
    wire.packet(inside, ("10.96.1.10:80", app), "RST")
    wire.translate("tcp", app, "10.96.1.10:80", "127.0.0.1:15001")
    return wire.json("connect_error", "10.96.1.10")


def lost() -> dict[str, Any]:
    """A virtual address that nothing translates: the SYN and its repetition leave, nothing comes back."""
    wire = Wire("plain")
    _cluster_dns(wire, "240.240.0.10", 3000)
    for _ in range(2):
        wire.packet((f"{wire.client.pod}/eth0",), (f"{wire.address}:4000", "240.240.0.10:80"), "SYN")
    return wire.json("timeout", "240.240.0.10")


def unknown() -> dict[str, Any]:
    """A name that does not exist: no connection."""
    wire = Wire("mode1", "http://absent.shop.svc.cluster.local./")
    _cluster_dns(wire, "NXDOMAIN", 3000, "absent.shop.svc.cluster.local.")
    return wire.json("dns_error")


def mute() -> dict[str, Any]:
    """A name server that does not answer, asked twice."""
    wire = Wire("plain")
    for _ in range(2):
        wire.ask((f"{wire.client.pod}/eth0", "dns/eth0"), (f"{wire.address}:3000", SERVER))
    return wire.json("timeout")


def traced(*found: dict[str, Any], earlier: tuple[dict[str, Any], ...] = ()) -> store.Runs:
    """Runs that hold these traces; `earlier` those of a run before."""
    headers = [
        store.RunHeader(f"r{n}", {}, 1, "", 1, {"traces": {trace["arm"]: trace for trace in some}})
        for n, some in enumerate((earlier, found))
        if some
    ]
    return store.Runs(pd.DataFrame(), pd.DataFrame(), headers, [], WORLD)


# --- cells of the experiment `answers` ---

PROXIED = {"pod/rule/redirect_tcp": 4, "pod/envoy/cluster_rq": 4, "pod/envoy/listener_rq": 4}
PASSED = {"pod/rule/redirect_tcp": 4, "pod/envoy/passthrough_cx": 4, "pod/envoy/outbound_cx": 4}
REDIRECTED = {"pod/rule/redirect_tcp": 4}
GUARD = {"pod/envoy/blackhole_cx": 4, "pod/envoy/outbound_cx": 4}
OVERFLOW = {"pod/envoy/passthrough_cx": 4000, "pod/envoy/passthrough_overflow": 4, "pod/envoy/outbound_cx": 4000}


@dataclass(frozen=True)
class Cell:
    """What one cell of four requests came to."""

    answer: str
    counters: dict[str, int] = field(default_factory=dict)
    outcomes: tuple[str, ...] = ("ok",) * 4
    intercepted: bool = True
    sidecar: str = "up"
    arm: str = "answers"
    valid: bool = True


TOLD, SILENT = ("connect_error",) * 4, ("timeout",) * 4
RESET = ("reset",) * 4
USUAL = (  # as Istio's rules and Envoy's configuration would have it
    Cell("pod", PASSED), Cell("clusterip", PROXIED), Cell("virtual", PASSED, SILENT), Cell("loopback", {}, TOLD),
    Cell("own", {}, TOLD), Cell("unroutable", PASSED, SILENT), Cell("service-entry", PROXIED),
    Cell("loopback-sidecar", GUARD, RESET), Cell("own-sidecar", GUARD, RESET),
    *(Cell(answer, REDIRECTED, TOLD, sidecar="down") for answer in ("pod", "clusterip", "virtual", "unroutable")),
    *(Cell(answer, {}, TOLD, sidecar="down") for answer in ("loopback", "own", "loopback-sidecar", "own-sidecar")),
    *(Cell(answer, {}, intercepted=False, sidecar=state) for answer in ("pod", "clusterip")
      for state in ("up", "down")),
    *(Cell(answer, {"pod/rule/escaped_vip": 4}, SILENT, False, state) for answer in ("virtual", "unroutable")
      for state in ("up", "down")),
    *(Cell(answer, {}, TOLD, False, state) for answer in ("loopback", "own") for state in ("up", "down")),
    Cell("loopback-sidecar", OVERFLOW, RESET, arm="unguarded"), Cell("own-sidecar", OVERFLOW, SILENT, arm="unguarded"),
    *(Cell(answer, PROXIED, arm="answers-mode2") for answer in ("clusterip", "virtual", "service-entry")),
    *(Cell(answer, {}, TOLD, arm="answers-mode2") for answer in ("loopback", "own")),
    Cell("virtual", REDIRECTED, TOLD, sidecar="down", arm="answers-mode2"),
    Cell("virtual", {"pod/rule/escaped_vip": 4}, SILENT, False, arm="answers-mode2"),
)  # fmt: skip


def answered(*cells: Cell, blocks: int = 2) -> store.Runs:
    """Runs in which every block holds these cells."""
    rows, found = [], []
    for block in range(blocks):
        for number, cell in enumerate(cells):
            place = {"run": "r", "block": block, "cell": number, "experiment": "answers"}
            levels = {"answer": cell.answer, "arm": cell.arm, "intercepted": cell.intercepted, "sidecar": cell.sidecar}
            record = {"valid": cell.valid, "reasons": [], "offered": 4, "counters": cell.counters}
            found.append(place | levels | record)
            for outcome in cell.outcomes:
                status = 200 if outcome == "ok" else 0
                rows.append(place | {"outcome": "ok" if status else outcome, "status": status})
    header = store.RunHeader("r", {"experiment": [{"name": "answers", "warmup": 0}]}, 1, "", blocks)
    columns = ["run", "block", "cell", "experiment", "outcome", "status"]
    return store.Runs(pd.DataFrame(rows, columns=columns), pd.DataFrame(found), [header], [], WORLD)


def changed(*cells: Cell) -> store.Runs:
    """The usual cells, but for these."""
    keys = [(each.answer, each.arm, each.intercepted, each.sidecar) for each in cells]
    kept = [each for each in USUAL if (each.answer, each.arm, each.intercepted, each.sidecar) not in keys]
    return answered(*kept, *cells)


def random_stages(seed: int, length: int) -> list[dict[str, Any]]:
    """Packets of one connection with any flags and sizes, in any order, beginning with a SYN."""
    rng = np.random.default_rng(seed)
    wire = Wire("plain")
    ends = (f"{wire.address}:4000", LEGACY)
    wire.packet((f"{wire.client.pod}/eth0",), ends, "SYN")
    for _ in range(length):
        flags = str(rng.choice(["", "", "", "SYN", "FIN", "RST"]))
        size, forward = int(rng.choice([0, 100])), bool(rng.integers(0, 2))
        wire.packet((f"{wire.client.pod}/eth0",), ends if forward else ends[::-1], flags, size=size)
    return wire.packets
