"""A trial is valid only if load, answers and path are as planned; each way to go wrong is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from meshdns.core.world import NOBODY, Nets
from meshdns.measure import validity
from meshdns.measure.cell import Cell
from meshdns.measure.plan import Trial
from meshdns.store import samples
from shipped import WORLD

NETS = Nets()
ADDRESS = WORLD.backends["plain"].cluster_ip
COUNT, WARMUP = 20, 3
ALL = COUNT + WARMUP


def trial(arm: str = "plain", **factors: Any) -> Trial:
    base = {
        "kind": "request", "backend": "plain", "connection": "new", "body_bytes": 1024,
        "arrival": "constant", "rate_hz": 100.0,
    }  # fmt: skip
    return Trial(Cell("request", arm, **{**base, **factors}), COUNT, WARMUP, 2000, False)


def table(**columns: Any) -> Any:
    start = np.arange(COUNT, dtype=np.int64) * 10_000_000
    base: dict[str, Any] = {
        "cell": np.zeros(COUNT), "seq": np.arange(COUNT), "due_ns": start, "start_ns": start, "dns_ns": start + 1,
        "connect_ns": start + 2, "tls_ns": start + 2, "first_byte_ns": start + 3, "end_ns": start + 4,
        "outcome": ["ok"] * COUNT, "rcode": np.zeros(COUNT), "status": np.full(COUNT, 200),
        "queries": np.ones(COUNT), "address": [ADDRESS] * COUNT, "replica": ["legacy-1"] * COUNT,
        "bytes": np.full(COUNT, 1024), "local_port": np.arange(COUNT), "wire_dns_ns": np.full(COUNT, -1),
        "wire_total_ns": np.full(COUNT, -1),
    }  # fmt: skip
    return samples.table({**base, **columns})


AGENT = {
    "connections_opened": COUNT, "queries_sent": COUNT, "wall_ns": 10**9, "gap_ns": 0,
    "warmup": {"connections_opened": WARMUP, "queries_sent": WARMUP},
}  # fmt: skip
PLAIN = {
    "pod/rule/dns_client": ALL, "pod/rule/dns_proxy": 0, "pod/rule/clusterip_tcp": ALL, "pod/rule/escaped_vip": 0,
    "pod/rule/escaped_clusterip": 0, "dnsdist/from_pod": ALL, "servers/nginx_rq": ALL,
}  # fmt: skip
MODE2 = {
    "pod/rule/dns_client": ALL, "pod/rule/dns_proxy": 4, "dnsdist/from_pod": 4, "pod/dnsproxy/queries": ALL,
    "pod/rule/redirect_tcp": ALL, "pod/envoy/cluster_rq": ALL, "servers/nginx_rq": ALL,
}  # fmt: skip


def judge(what: Trial, rows: Any, counts: dict[str, float], **agent: Any) -> list[str]:
    return validity.reasons(what, rows, counts, {**AGENT, **agent}, world=WORLD, nets=NETS)


def test_what_agrees_is_valid() -> None:
    assert judge(trial(), table(), PLAIN) == []
    assert judge(trial("mode2-envoy"), table(), MODE2) == []


def test_a_service_entrys_name_is_answered_with_its_virtual_ip_in_mode_2_and_with_nobodys_in_mode_1() -> None:
    entry = WORLD.backends["resolved"]
    where = {"mode1": f"{NETS.world}.{NOBODY}", "mode2-envoy": entry.virtual_ip}
    for arm, right in where.items():
        for address in (*where.values(), WORLD.backends["meshed"].cluster_ip):
            rows = table(address=[address] * COUNT, replica=["web-2"] * COUNT)
            said = [] if address == right else [f"wrong address: {address}"]
            asked = trial(arm, backend="resolved", lookup="wire", name_kind="fqdn")
            assert [*validity._answers(asked.cell, rows, WORLD, NETS)] == said, (arm, address)


@pytest.mark.parametrize("counter", [key for key, value in PLAIN.items() if value])
def test_each_counter_that_disagrees_makes_the_trial_invalid(counter: str) -> None:
    [*found] = judge(trial(), table(), {**PLAIN, counter: PLAIN[counter] - 1})
    assert found and all(reason.startswith("path not taken") for reason in found)


@pytest.mark.parametrize("counter", [key for key in MODE2 if key != "pod/rule/dns_proxy"])
def test_each_counter_of_mode_2_counts(counter: str) -> None:
    assert judge(trial("mode2-envoy"), table(), {**MODE2, counter: MODE2[counter] + 1})


def test_escaped_packets_make_the_trial_invalid() -> None:
    assert any("escaped" in reason for reason in judge(trial(), table(), {**PLAIN, "pod/rule/escaped_vip": 1}))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"status": np.full(COUNT, 503)}, "wrong status: 503"),
        ({"outcome": ["ok"] * 18 + ["timeout"] * 2}, "2 of 20 requests: timeout"),
        ({"address": [WORLD.backends["resolved"].virtual_ip] * COUNT}, "wrong address: 240.240.0.10"),
        ({"replica": ["web-1"] * COUNT}, "wrong replica: web-1"),
        ({"bytes": np.full(COUNT, 12)}, "wrong bytes: 12"),
        ({"rcode": np.full(COUNT, 3)}, "wrong rcode: 3"),
    ],
)
def test_wrong_answers_are_told(columns: dict[str, Any], said: str) -> None:
    assert said in judge(trial(), table(**columns), PLAIN)


def test_load_that_was_not_offered_is_told() -> None:
    assert any("19 of 20 requests were made" in r for r in judge(trial(), table().slice(0, 19), PLAIN))
    due = np.arange(COUNT, dtype=np.int64) * 10_000_000
    late = dict.fromkeys(("start_ns", "dns_ns", "connect_ns", "tls_ns", "first_byte_ns", "end_ns"), due + 20000000)
    assert any("20 of 20 requests started more than 10 ms late" in r for r in judge(trial(), table(**late), PLAIN))
    assert any("lost its CPU" in r for r in judge(trial(), table(), PLAIN, gap_ns=2 * 10**8))


def test_a_run_says_how_many_trials_were_invalid_and_mostly_why_and_where() -> None:
    def record(arm: str, *reasons: str) -> samples.CellRecord:
        return samples.CellRecord(0, {"arm": arm}, not reasons, list(reasons), 1, 0, 1.0)

    valid = [record("plain")] * 17
    assert validity.summary(valid) == "0 of 17 trials invalid (0 %)"
    lost = "path not taken: requests at the servers: {}, expected 23"
    invalid = [record("mode1", lost.format(3), "3 of 20 requests: timeout"), record("mode1", lost.format("1e+06"))]
    invalid += [record("plain", "wrong replica: web-3"), record("plain", "wrong replica: web-1, web-2")]
    invalid += [record("mode1", "the agent lost its CPU for 12% of the time")]
    assert validity.summary([*valid, *invalid]) == (
        "5 of 22 trials invalid (22.7 %), mostly: path not taken: requests at the servers (2), wrong replica (2), "
        "timeout (1); 3 of them in arm mode1"
    )
    assert validity.summary([*valid, *invalid[2:4], *invalid[:2]]).endswith("timeout (1)")  # no arm has more than half


def test_counters_agree_to_the_packet_however_many_there_are() -> None:
    """2 of 200,000 is a hundred-thousandth: no tolerance is small enough."""
    many = 200_000
    what = Trial(Cell("lookup", "plain", connection="keepalive"), many, 0, 2000, capture=False)
    agent = {"queries_sent": many, "connections_opened": 0}
    right = {"pod/rule/dns_client": many, "dnsdist/from_pod": many}
    assert [*validity._path(what, right, agent, WORLD)] == []
    [said] = validity._path(what, right | {"dnsdist/from_pod": many - 2}, agent, WORLD)
    assert said.endswith(f"{many - 2}, expected {many}")
