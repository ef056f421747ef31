"""One traced request, hop by hop: every way it can take or end, from packets as the kernel shows them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces
from meshdns.studies.path import answer, hops, tables
from shipped import WORLD


def route(path: hops.Path, kind: str) -> list[tuple[str, str, str, str]]:
    return [
        (each.source, each.target, each.asked, each.reached) for each in path.hops if each.kind == kind and not each.own
    ]


def test_mode_1_asks_the_cluster_dns_and_passes_three_connections() -> None:
    path = hops.read(traces.mode1(), WORLD)
    assert route(path, "DNS") == [
        ("application", "CoreDNS", "10.96.0.10:53", "198.18.0.10:53"),
    ]
    assert route(path, "TCP") == [
        ("application", "sidecar", "10.96.1.10:80", "127.0.0.1:15001"),
        ("sidecar", "server sidecar", traces.WEB, traces.WEB),
        ("server sidecar", "server", traces.WEB, traces.WEB),
    ]
    assert [each.inside for each in path.of("TCP")] == [True, False, True]
    assert [each.kept for each in path.of("TCP")] == [False, False, True]
    assert all(each.ending == "answered" for each in path.hops)
    app, proxy, _ = path.of("TCP")
    assert app.taken == "listener 10.96.1.10_80, filter chain web-http, filter out_web, cluster web-http"
    assert proxy.taken == "listener 0.0.0.0_15006, filter chain inbound-http, filter inbound, cluster inbound"
    assert (app.said, app.answer) == (traces.REQUEST, traces.RESPONSE)


def test_the_sidecars_own_lookup_is_shown_and_not_counted() -> None:
    path = hops.read(traces.mode1(), WORLD)
    own = [(each.source, each.said) for each in path.hops if each.own]
    assert own == [("sidecar", "web-headless.shop.svc.cluster.local. A?")]
    assert tables.totals(path)["dns_exchanges"] == 1


def test_packets_seen_twice_are_counted_once() -> None:
    path = hops.read(traces.mode1(), WORLD)
    _, proxy, server = path.of("TCP")
    assert [(each.what, each.packets, each.forward) for each in proxy.messages] == [
        ("connects", 3, True), ("requests", 1, True), ("responds", 1, False)]  # fmt: skip
    assert proxy.bytes == 160 + 1010
    assert server.packets == 2
    assert path.hops[0].packets == 2


def test_mode_2_answers_inside_the_pod_and_ends_at_the_same_port() -> None:
    path = hops.read(traces.mode2(), WORLD)
    assert route(path, "DNS") == [("application", "DNS proxy", "10.96.0.10:53", "127.0.0.1:15053")]
    assert route(path, "TCP")[0] == ("application", "sidecar", "240.240.0.10:80", "127.0.0.1:15001")
    total = tables.totals(path)
    assert (total["dns_exchanges"], total["dns_leaving"], total["connections"], total["connections_leaving"]) == (
        1,
        0,
        3,
        1,
    )


def test_names_of_the_search_list_are_told_once_and_counted_each() -> None:
    one, two = hops.read(traces.mode1(*traces.ABSENT), WORLD), hops.read(traces.mode2(*traces.ABSENT), WORLD)
    assert [(row.times, row.hop.target) for row in one.rows()][:2] == [(3, "CoreDNS"), (1, "CoreDNS")]
    first, second = tables.totals(one), tables.totals(two)
    assert (first["dns_exchanges"], second["dns_exchanges"]) == (4, 7)
    assert (first["exchanges_each"], second["exchanges_each"]) == (1, 2)
    assert (first["exchanges_found"], second["exchanges_found"]) == (1, 1)
    assert first["names_not_found"] == second["names_not_found"] == 3


def test_without_a_mesh_the_call_is_direct_and_others_questions_are_left_out() -> None:
    path = hops.read(traces.direct(), WORLD)
    assert route(path, "TCP") == [("application", "server", "10.96.1.20:80", traces.LEGACY)]
    assert len(path.of("DNS")) == 1


def test_capture_that_leaves_no_entry_is_told_by_what_the_application_knows() -> None:
    trace = traces.mode2()
    pod = "client-mode2-agent"
    plain = [line.replace("dst=240.240.0.10", "dst=127.0.0.1").replace("dport=80", "dport=15001") for line in
             trace["tracked"][pod] if " tcp " in line]  # fmt: skip
    path = hops.read(trace | {"tracked": {pod: plain}}, WORLD)  # as with eBPF, whose entry has the new address alone
    assert route(path, "DNS")[0][2:] == ("10.96.0.10:53", "127.0.0.1:15053")
    assert route(path, "TCP")[0][2:] == ("240.240.0.10:80", "127.0.0.1:15001")


def test_a_loop_is_one_row_with_its_rounds_and_the_guard_ends_it_at_once() -> None:
    looped, guarded = hops.read(traces.loop(40), WORLD), hops.read(traces.loop(guarded=True), WORLD)
    rows = [
        (row.times, row.hop.source, row.hop.target, row.hop.ending) for row in looped.rows() if row.hop.kind == "TCP"
    ]
    assert rows == [(1, "application", "sidecar", "closed"), (39, "sidecar", "sidecar", "closed")]
    rows = [(row.times, row.hop.source, row.hop.target) for row in guarded.rows() if row.hop.kind == "TCP"]
    assert rows == [(1, "application", "sidecar")]
    assert "filter blackhole" in guarded.of("TCP")[0].taken


@pytest.mark.parametrize(
    ("trace", "target", "ending", "whats"),
    [
        (traces.refused(), "sidecar", "refused", ["connects", "refuses"]),
        (traces.lost(), "nobody", "lost", ["connects"]),
    ],
)
def test_failed_connections_say_how(trace: dict[str, Any], target: str, ending: str, whats: list[str]) -> None:
    hop = hops.read(trace, WORLD).of("TCP")[0]
    assert (hop.target, hop.ending, [each.what for each in hop.messages]) == (target, ending, whats)
    assert ending in answer.traced(trace, WORLD)


def test_names_that_fail_make_no_connection() -> None:
    assert hops.read(traces.unknown(), WORLD).of("TCP") == []
    assert hops.read(traces.unknown(), WORLD).hops[0].answer == "NXDOMAIN"
    mute = hops.read(traces.mute(), WORLD).hops
    assert [(each.ending, each.packets) for each in mute] == [("lost", 2)]


def test_a_cluster_dns_of_another_make_has_its_own_name() -> None:
    recursor = dataclasses.replace(WORLD.named("dns"), pod="recursor", part="recursor", parts=())
    client = dataclasses.replace(WORLD.arms["mode1"], name_server="10.96.0.11")
    pods = tuple({"dns": recursor, client.pod: client}.get(each.pod, each) for each in WORLD.pods)
    world = dataclasses.replace(WORLD, pods=pods, cluster_dns={"10.96.0.10": "dns", "10.96.0.11": "recursor"})
    trace = json.loads(json.dumps(traces.mode1()).replace('"dns"', '"recursor"').replace("10.96.0.10", "10.96.0.11"))
    assert route(hops.read(trace, world), "DNS") == [
        ("application", "recursor", "10.96.0.11:53", "198.18.0.10:53"),
    ]


def test_tls_is_told_as_such() -> None:
    hop = hops.read(traces.mode1(says=("TLS handshake", "TLS data")), WORLD).of("TCP")[0]
    assert (hop.said, hop.answer) == ("TLS handshake", "TLS data")


def test_last_words_of_an_older_connection_are_no_hop() -> None:
    assert len(hops.read(traces.mode1(kept=True), WORLD).hops) == len(hops.read(traces.mode1(), WORLD).hops)


@given(st.integers(0, 10**6), st.integers(0, 30))
def test_no_packet_of_a_connection_is_lost_or_counted_twice(seed: int, length: int) -> None:
    trace = traces.lost() | {"packets": traces.random_stages(seed, length)}
    path = hops.read(trace, WORLD)
    assert sum(hop.packets for hop in path.hops) == length + 1
    assert sum(hop.bytes for hop in path.hops) == sum(each["size"] for each in trace["packets"])


def test_the_text_tells_everything_once() -> None:
    lines = answer.traced(traces.mode1(*traces.ABSENT), WORLD).splitlines()
    assert lines[0] == "GET http://web.shop.svc.cluster.local/ from client-mode1: ok, 200 from web-1, told 10.96.1.10"
    assert lines[1] == "dns 1.00 µs, connect 1.00 µs, tls 1.00 µs, first byte 1.00 µs, transfer 1.00 µs, total 5.00 µs"
    whole = "\n".join(lines)
    assert whole.count("10.96.1.10:80 → 127.0.0.1:15001") == 1
    assert "rules      client-mode1: redirect_tcp 1" in whole
    assert "rules      web-1: inbound_tcp 1" in whole
    assert "conntrack  web-1: tcp 198.18.0.44:4001: 198.18.0.21:8080 → 198.18.0.21:15006 (zone 1)" in whole
    assert "envoy      web-1: listener 0.0.0.0_15006" in whole
    assert "4 DNS exchanges (4 leaving a pod) and used 3 connections (1 leaving)" in whole
    assert "admin" not in whole


def test_the_answer_compares_the_modes_or_says_that_it_cannot() -> None:
    said = answer.modes(tables.paths(traces.traced(traces.mode1(*traces.ABSENT), traces.mode2(*traces.ABSENT))))
    assert said.startswith("Mode 2 costs 3 hops more: for one request mode 1 took 7 (5 from pod to pod,")
    assert "Mode 1 made 4 DNS exchanges (4 leaving a pod)" in said
    assert "mode 2 made 7 DNS exchanges (3 leaving a pod)" in said
    assert "The name itself took 1 and 1, each one of the search list that does not exist 1 and 2." in said
    assert said.endswith("both connections ended at 127.0.0.1:15001.")
    assert "not traced in both modes" in answer.modes(tables.paths(traces.traced(traces.mode1())))
    assert tables.hops({}, "mode1").empty


def test_mode_2_costs_a_hop_for_each_name_of_the_search_list() -> None:
    def said(*found: dict[str, Any]) -> str:
        return answer.modes(tables.paths(traces.traced(*found)))

    assert said(traces.mode1(), traces.mode2()).startswith(
        "Mode 2 takes as many hops as mode 1: for one request mode 1"
    )
    assert said(traces.mode1(traces.ABSENT[0]), traces.mode2(traces.ABSENT[0])).startswith("Mode 2 costs 1 hop more")
    assert said(traces.mode1(traces.ABSENT[0]), traces.mode2()).startswith("Mode 2 saves 1 hop: for one request mode 1")


def test_every_arm_has_a_row_of_what_each_part_saw() -> None:
    table = tables.seen(tables.paths(traces.traced(traces.mode1(), traces.mode2(), traces.direct())))
    assert table["arm"].tolist() == ["mode1", "mode2-agent", "plain"]
    mode2 = table.set_index("arm").loc["mode2-agent"].to_dict()
    assert mode2 == {
        "hops": 4,
        "between_pods": 1,
        "packets": 16,
        "questions": "web.shop.svc.cluster.local. A: 240.240.0.10",
        "rules": "client: redirect_tcp 1; server: inbound_tcp 1",
        "conntrack_client": "udp 10.96.0.10:53 → 127.0.0.1:15053; tcp 240.240.0.10:80 → 127.0.0.1:15001; "
        "tcp 198.18.0.21:8080",
        "conntrack_server": "tcp 198.18.0.21:8080 → 198.18.0.21:15006",
        "listener": "client: 240.240.0.10_80; server: 0.0.0.0_15006",
        "filter_chain": "client: web-http; server: inbound-http",
        "cluster": "client: web-http; server: inbound",
        "rewritten": "10.96.0.10:53 → 127.0.0.1:15053; 240.240.0.10:80 → 127.0.0.1:15001; "
        "198.18.0.21:8080 → 198.18.0.21:15006",
    }


def test_a_filter_chain_is_told_where_the_connection_stood_already_and_never_guessed() -> None:
    trace = traces.mode1()
    kept = {"listener.0.0.0.0_15006.http.inbound.downstream_rq_completed": 1, "http.inbound.downstream_rq_total": 1}
    read = hops.read(trace | {"proxies": trace["proxies"] | {"web-1": kept}}, WORLD)
    assert (read.pods["web-1"].taken.listener, read.pods["web-1"].taken.chain) == ("0.0.0.0_15006", "inbound-http")
    shared = {"web-1": {"0.0.0.0_15006": {"inbound": ["mtls", "plaintext"]}}}
    assert hops.read(trace | {"chains": shared}, WORLD).pods["web-1"].taken.chain == "mtls or plaintext"


def test_the_table_has_a_row_per_hop_and_the_newest_run_wins() -> None:
    runs = traces.traced(traces.mode1(), earlier=(traces.mode1(*traces.ABSENT), traces.mode2()))
    table = tables.hops(tables.paths(runs), "mode1", "mode2-agent")
    assert table["arm"].tolist() == ["mode1"] * 5 + ["mode2-agent"] * 4
    assert table["own"].tolist()[:3] == [False, True, False]
    assert table["source"].tolist()[:2] == ["application", "sidecar"]
    assert tables.counts(runs)["run"].tolist() == ["r0", "r0", "r1"]
