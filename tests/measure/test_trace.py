"""Observing one request: what is read, from which pod and in which order, with a kernel that forgets."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from test_capture import frame, pcap

from meshdns.core.world import Nets
from meshdns.interception import mechanisms
from meshdns.lab import place
from meshdns.measure import jobs, trace
from shipped import WORLD

CLIENT, SERVER, SIDECAR = "198.18.0.44", "198.18.0.21", "127.0.0.1"
REMEMBERED = 2  # questions to any observer for which a connection that was reset is still known
MECHANISMS = {each.pod: each.mechanism for each in WORLD.clients}


def entry(source: str, asked: tuple[str, int], reached: tuple[str, int], port: int) -> str:
    return (
        f"ipv4     2 tcp      6 9 CLOSE src={source} dst={asked[0]} sport={port} dport={asked[1]} "
        f"src={reached[0]} dst={source} sport={reached[1]} dport={port} [ASSURED] mark=0 use=1"
    )


APP = entry(CLIENT, ("10.96.1.10", 80), (SIDECAR, 15001), 4000)
PROXY = entry(CLIENT, (SERVER, 8080), (SERVER, 15006), 4001)
OTHER = entry(CLIENT, ("10.96.1.20", 80), ("198.18.0.31", 8080), 4000)  # the same port, to another address
PACKETS = {"client-mode1": [(CLIENT, SIDECAR, (4000, 15001)), (CLIENT, SERVER, (4001, 8080))],
           "web-1": [(CLIENT, SERVER, (4001, 8080))]}  # fmt: skip
DUMP = {
    "configs": [
        {
            "dynamic_listeners": [
                {
                    "active_state": {
                        "listener": {
                            "address": {"socket_address": {"address": "10.96.1.10", "port_value": 80}},
                            "filter_chains": [
                                {"name": "http", "filters": [{"typed_config": {"stat_prefix": "out_web"}}]},
                                {"filters": [{"typed_config": {"stat_prefix": "rest"}}, {"typed_config": {}}]},
                            ],
                            "default_filter_chain": {"filters": [{"typed_config": {"stat_prefix": "rest"}}]},
                        }
                    }
                },
                {"error_state": {}},
            ]
        },
        {"static_listeners": [{"listener": {"stat_prefix": "named", "filter_chains": []}}]},
    ]
}


@dataclass
class World:
    """Pods with observers; what they know depends on whether the request was made, and for how long ago."""

    standing: dict[str, list[str]] = field(default_factory=dict)  # entries of before
    since: int = -1  # questions since the request; -1 before it

    world = WORLD

    def talk(self, pod: str, *_: object, image: str) -> contextlib.AbstractContextManager[Observer]:
        assert image == "observer"
        return contextlib.nullcontext(Observer(self, pod))

    def address(self, pod: str) -> str:
        return place.address(WORLD, Nets(), pod)


@dataclass
class Observer:
    world: World
    pod: str

    def ask(self, request: dict[str, Any], _: float) -> tuple[dict[str, Any], bytes]:
        world = self.world
        world.since += world.since >= 0
        if request["op"] == "tracked":
            standing = world.standing.get(self.pod, [])
            made = {"client-mode1": [APP, PROXY], "web-1": [PROXY]}.get(self.pod, [])
            known = made if 0 <= world.since <= REMEMBERED else []
            return {"entries": list(dict.fromkeys([*standing, *known]))}, b""
        if request["op"] == "captured":
            frames = [(n, frame(a, b, 6, ports, 0)) for n, (a, b, ports) in enumerate(PACKETS.get(self.pod, []))]
            return {"pcap": {"eth0": base64.b64encode(pcap(frames)).decode()}}, b""
        pages = [self.page(each["url"]) for each in request.get("pages", [])]
        return {"rules": self.rules(request.get("rules", [])), "pages": pages}, b""

    def rules(self, asked: list[Any]) -> dict[str, int]:
        own = mechanisms.ALL[MECHANISMS.get(self.pod, "iptables")].counters
        assert not asked or asked == [(("iptables-save", "-c"), mechanisms.COUNTED), *own]
        return {"inbound_tcp": 7 + (self.world.since >= 0)} if self.pod.startswith("web") else {"dns_client": 3}

    def page(self, url: str) -> str | None:
        after = self.world.since >= 0
        if ":15099/" in url:
            return json.dumps({"counters": {"redirect_tcp": 5 + after}})
        if not self.pod.startswith(("client", "web")):
            return None
        name, count = "listener.10.96.1.10_80.downstream_cx_total", 1 + after
        return json.dumps(DUMP if url.endswith("config_dump") else {"stats": [{"name": name, "value": count}]})


@dataclass
class Agent:
    world: World

    def ask(self, *_: object) -> tuple[dict[str, Any], bytes]:
        self.world.since = 0
        return {}, b""


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "table", lambda *_: pa.table({"outcome": ["ok"], "replica": ["web-1"]}))


def observe(arm: str = "mode1", standing: dict[str, list[str]] | None = None) -> trace.Trace:
    world = World(standing or {})
    pod = WORLD.arms[arm].pod
    found = trace.observe(world, {pod: Observer(world, pod)}, Agent(world), arm, "http://web/")  # type: ignore[arg-type,dict-item]
    json.dumps(found.to_json())
    return found


def test_entries_are_read_before_the_kernel_forgets_them() -> None:
    assert observe().tracked["client-mode1"] == [APP, PROXY]


def test_an_entry_belongs_to_the_request_by_its_packets_and_not_by_being_new() -> None:
    """A source port comes again: the entry's last use stands in the table, and is renewed."""
    found = observe(standing={"client-mode1": [OTHER, APP]})
    assert found.tracked["client-mode1"] == [APP, PROXY]


def test_counters_are_those_of_the_servers_pod_too_and_of_programs_in_the_place_of_rules() -> None:
    assert observe().rules["web-1"] == {"inbound_tcp": 1}
    assert observe().rules["dns"] == {}
    assert observe("ebpf").rules["client-ebpf"] == {"redirect_tcp": 1}


def test_filter_chains_are_what_envoy_says_of_the_listeners_that_moved() -> None:
    chains = {"10.96.1.10_80": {"out_web": ["http"], "rest": ["number 2", "number 3"]}}
    found = observe()
    assert found.chains == dict.fromkeys(("client-mode1", "web-1", "web-2", "web-3"), chains)
    assert set(found.proxies) == set(found.chains)
