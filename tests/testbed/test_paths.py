"""Which way traffic takes in each arm, told by counters, addresses and captured packets of the real components."""

from __future__ import annotations

import json

import dns.flags
import dns.message
import dns.rcode
import pytest

from meshdns.core.world import Pod
from meshdns.interception.conventions import ISTIO
from meshdns.lab import observers, readiness, recorder, rules
from meshdns.lab.compose.testbed import Testbed
from meshdns.measure import block, trace
from meshdns.measure.cell import Cell
from meshdns.measure.load import Agents, Loads
from meshdns.measure.plan import Trial
from meshdns.measure.session import Measured, Session
from shipped import WORLD

# Arms with a sidecar whose trials are judged by every counter; the ANSWERING ones are tried for what goes wrong.
# Other name servers are tried in test_cluster_dns.
TOLD = [client for client in WORLD.clients if not client.name_server]
SIDECARS = [client.arm for client in TOLD if client.sidecar and client.arm not in WORLD.answering]
PROXIED = [client.arm for client in TOLD if client.dns_proxy]
NAMED = ["plain", "plain-aa", "mode1", *PROXIED]  # they resolve names


def trial(arm: str, **factors: object) -> Trial:
    base = {"arrival": "closed", "wait": "block"}
    return Trial(Cell("test", arm, **{**base, **factors}), count=20, warmup=3, timeout_ms=3000, capture=False)


def request(arm: str, backend: str, **factors: object) -> Trial:
    lookup = "none" if arm == "ip" else "wire"
    return trial(arm, backend=backend, kind="request", connection="new", lookup=lookup, body_bytes=1024, **factors)


def wrong(measured: Measured) -> list[str]:
    """What is wrong with a trial beside that the machine was busy, which tests beside it may cause."""
    return [
        reason for reason in measured.record.reasons if not reason.startswith(("the agent lost", "load not offered"))
    ]


def measured_as_in_a_run(session: Session, asked: Trial) -> Measured:
    """Again where it is wrong: a sidecar's own lookup between two readings is seen by one of them only."""
    for _ in range(block.ATTEMPTS):
        measured = session.trial(0, asked, seed=1)
        if not wrong(measured):
            break
    return measured


def in_app(bed: Testbed, arm: str, program: str) -> str:
    """What a Python program says in an arm's application container."""
    return bed.exec(f"client-{arm}-app", ["python3", "-c", program], timeout_s=30).strip()


def test_every_mechanism_works_on_this_machine(bed: Testbed) -> None:
    """A refusal would leave its arm out of everything below without a word."""
    assert readiness.refusals(bed) == {}


@pytest.mark.parametrize("arm", NAMED)
@pytest.mark.parametrize("name_kind", ["fqdn", "short", "external", "absent"])
def test_lookups_are_valid_by_all_counters(session: Session, arm: str, name_kind: str) -> None:
    for factors in ({"qtype": "A"}, {"qtype": "AAAA"}, {"lookup": "getaddrinfo", "qtype": "A+AAAA"}):
        measured = measured_as_in_a_run(session, trial(arm, name_kind=name_kind, **factors))
        assert wrong(measured) == [], (factors, measured.record.counters)


CALLS = [
    *(("ip", backend) for backend in ("plain", "meshed", *(service.backend for service in WORLD.inbound))),
    *((arm, backend) for arm in ("plain", *SIDECARS) for backend in ("plain", "meshed")),
    *((arm, "resolved") for arm in SIDECARS),
]


@pytest.mark.parametrize(
    ("arm", "backend", "tls"),
    [(*call, tls) for call in CALLS for tls in (False, True)[: len(WORLD.backends[call[1]].ports)]],
)
def test_requests_are_valid_by_all_counters(session: Session, arm: str, backend: str, tls: bool) -> None:
    measured = measured_as_in_a_run(session, request(arm, backend, tls=tls))
    assert wrong(measured) == [], measured.record.counters
    assert measured.record.counters["servers/nginx_rq"] == 23


@pytest.mark.parametrize(("version", "passed"), [("1.1", 0), ("1.0", 1)])
def test_http_1_0_is_passed_through(bed: Testbed, session: Session, version: str, passed: int) -> None:
    """Istio's listeners take it for bytes: it goes to the ClusterIP as it was called, without route or policy."""
    host = WORLD.backends["plain"].host
    program = f"""
import socket
with socket.create_connection(({host!r}, 80), 5) as there:
    there.sendall(b"GET / HTTP/{version}\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n")
    print(there.recv(100).split()[1].decode())
"""
    asked = request("mode1", "plain").cell
    (before,) = session.reader.counts(asked)
    assert in_app(bed, "mode1", program) == "200"
    (after,) = session.reader.counts(asked)
    name = "pod/envoy/passthrough_cx"  # Envoy shows it from the first one on
    assert after.get(name, 0) - before.get(name, 0) == passed


@pytest.mark.parametrize("arm", [arm for arm in SIDECARS if WORLD.arms[arm].group == "core"])
def test_istiod_was_asked_as_a_pods_agent_asks(bed: Testbed, arm: str) -> None:
    """What a recording is made with is what the agent tells of its pod, but for labels that the injector would add."""
    with observers.opened(bed) as asking:
        page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/config_dump?mask=bootstrap.node"}
        dump = json.loads(observers.page(asking[f"client-{arm}"], page) or "{}")
    said = next(each["bootstrap"]["node"] for each in dump["configs"] if "bootstrap" in each)
    asked = recorder.node(WORLD, bed.nets, WORLD.arms[arm])
    assert said["id"] == asked["id"]
    # Where servers outside are up, this pod has an address on their network too.
    said["metadata"]["INSTANCE_IPS"] = said["metadata"]["INSTANCE_IPS"].partition(",")[0]
    given = {key: value for key, value in asked["metadata"].items() if key not in ("PROXY_CONFIG", "LABELS")}
    assert {key: said["metadata"].get(key) for key in given} == given
    assert said["metadata"]["LABELS"].items() >= asked["metadata"]["LABELS"].items()
    assert said["metadata"].get("DNS_CAPTURE") == asked["metadata"].get("DNS_CAPTURE")


def test_keep_alive_uses_the_connections_of_the_warm_up(session: Session) -> None:
    asked = request("mode1", "meshed")
    kept = Trial(Cell(**{**vars(asked.cell), "connection": "keepalive"}), 20, 3, 3000, False)
    measured = session.trial(0, kept, seed=1)
    assert wrong(measured) == []
    assert measured.record.counters["pod/rule/redirect_tcp"] == 1


def test_mode_2_saves_the_cluster_dns_every_query_for_a_known_name(session: Session) -> None:
    counted = {}
    for arm in ("plain", *PROXIED):
        counted[arm] = session.trial(0, trial(arm), seed=1).record.counters
    assert counted["plain"]["dnsdist/from_pod"] == 23
    for arm in PROXIED:
        forwarded = counted[arm].get("pod/rule/dns_proxy", 0)  # what is zero is not stored
        assert counted[arm].get("dnsdist/from_pod", 0) == forwarded
        assert counted[arm]["pod/dnsproxy/queries"] == 23
    assert "pod/rule/dns_proxy" not in counted["mode2-agent"]


def test_delay_reaches_the_client_and_is_taken_back(session: Session) -> None:
    slow = session.trial(0, trial("plain", dns_delay_ms=20.0), seed=1).table
    fast = session.trial(0, trial("plain"), seed=1).table
    took_ms = [
        (end - start) / 1e6 for end, start in zip(slow["end_ns"].to_pylist(), slow["start_ns"].to_pylist(), strict=True)
    ]
    assert min(took_ms) >= 20
    took_ms = [
        (end - start) / 1e6 for end, start in zip(fast["end_ns"].to_pylist(), fast["start_ns"].to_pylist(), strict=True)
    ]
    assert min(took_ms) < 20


def test_captured_packets_lie_inside_what_the_agent_measured(session: Session) -> None:
    asked = request("plain", "plain")
    table = session.trial(0, Trial(asked.cell, 20, 3, 3000, True), seed=1).table
    for row in table.to_pylist():
        assert 0 < row["wire_dns_ns"] <= row["dns_ns"] - row["start_ns"]
        assert row["wire_dns_ns"] < row["wire_total_ns"] <= row["end_ns"] - row["start_ns"]


def test_a_trial_whose_path_was_not_taken_is_invalid(
    session: Session, bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else asks the name server from the pod while the load runs: the counts must disagree."""
    make = Loads.make

    def disturbed(loads: Loads, *arguments: object) -> object:
        in_app(bed, "plain", "import socket; socket.getaddrinfo('web', 80, socket.AF_INET)")
        return make(loads, *arguments)

    monkeypatch.setattr(Loads, "make", disturbed)
    record = session.trial(0, trial("plain"), seed=1).record
    assert not record.valid
    assert any(reason.startswith("path not taken: DNS packets of the client") for reason in record.reasons)


@pytest.mark.parametrize("arm", NAMED)
def test_dns_over_tcp_answers(bed: Testbed, arm: str) -> None:
    query = dns.message.make_query("web.shop.svc.cluster.local.", "A").to_wire()
    said = in_app(
        bed,
        arm,
        "import socket, struct\n"
        f"s = socket.create_connection(('10.96.0.10', 53), timeout=3); q = bytes.fromhex('{query.hex()}')\n"
        "s.sendall(struct.pack('>H', len(q)) + q); print(s.recv(4096)[2:].hex())",
    )
    answer = dns.message.from_wire(bytes.fromhex(said))
    assert answer.rcode() == dns.rcode.NOERROR
    assert "10.96.1.10" in answer.answer[0].to_text()


@pytest.mark.parametrize("arm", NAMED)
def test_a_service_has_its_cluster_ip_everywhere_and_an_entry_a_virtual_ip_in_mode_2(bed: Testbed, arm: str) -> None:
    program = "import socket; print(socket.getaddrinfo('{}', 80, socket.AF_INET)[0][4][0])"
    assert in_app(bed, arm, program.format("web")) == "10.96.1.10"
    outside = f"{bed.nets.world}.90"
    assert in_app(bed, arm, program.format("web.example.com")) == ("240.240.0.10" if arm in PROXIED else outside)


@pytest.mark.parametrize("arm", [arm for arm in SIDECARS if WORLD.arms[arm].dns == "agent"])
@pytest.mark.parametrize("connection", ["new", "keepalive"])
def test_rules_in_front_change_no_path_and_are_taken_away(session: Session, arm: str, connection: str) -> None:
    for count in (1000, 0):
        asked = request(arm, "plain", extra_rules=count).cell
        kept = Trial(Cell(**{**vars(asked), "connection": connection}), 20, 3, 3000, False)
        measured = session.trial(0, kept, seed=1)
        assert wrong(measured) == [], (count, measured.record.counters)


OUTCOMES = [
    # answer, intercepted, sidecar -> outcome of every request, and a counter that says why
    ("clusterip", True, "up", "ok", "pod/envoy/cluster_rq"),
    ("pod", True, "up", "ok", "pod/rule/redirect_tcp"),
    ("clusterip", False, "up", "ok", "pod/rule/clusterip_tcp"),
    ("pod", False, "down", "ok", "servers/nginx_rq"),
    ("clusterip", True, "down", "connect_error", "pod/rule/redirect_tcp"),
    ("virtual", False, "up", "timeout", "pod/rule/escaped_vip"),
    ("own-sidecar", True, "up", "reset", "pod/envoy/blackhole_cx"),
]


@pytest.mark.parametrize("case", OUTCOMES, ids=str)
def test_what_becomes_of_a_request_by_what_its_name_is_answered_with(
    session: Session, case: tuple[str, bool, str, str, str]
) -> None:
    answer, intercepted, sidecar, outcome, counter = case
    asked = request("answers", "plain", answer=answer, intercepted=intercepted, sidecar=sidecar).cell
    measured = session.trial(0, Trial(asked, 4, 0, 400, False), seed=1)
    assert wrong(measured) == []
    assert set(measured.table["outcome"].to_pylist()) == {outcome}
    counted = measured.record.counters[counter]
    assert counted == 4 or (counter == "pod/rule/escaped_vip" and counted > 4)  # SYNs to nowhere are sent again


def test_without_its_guard_a_sidecar_that_is_called_by_its_own_address_calls_itself(session: Session) -> None:
    asked = request("unguarded", "plain", answer="own-sidecar").cell
    measured = session.trial(0, Trial(asked, 2, 0, 1000, False), seed=1)
    assert "ok" not in measured.table["outcome"].to_pylist()
    assert measured.record.counters["pod/envoy/passthrough_cx"] > 20  # two requests
    assert measured.record.counters["pod/envoy/passthrough_overflow"] >= 1  # what stopped it


@pytest.mark.parametrize("arm", NAMED)
def test_a_trace_shows_every_namespace_and_the_address_asked_for(bed: Testbed, arm: str) -> None:
    with observers.opened(bed) as asking, Agents(bed) as agents:
        seen = trace.observe(bed, asking, agents.of(arm, 5), arm, "http://web/bytes/1024")
    assert (seen.request["outcome"], seen.request["status"]) == ("ok", 200)
    assert {packet.namespace for packet in seen.packets} >= {f"client-{arm}", seen.request["replica"]}
    assert any("web.shop.svc.cluster.local. A?" in packet.says for packet in seen.packets)
    asked = "10.96.1.10"
    assert seen.request["address"] == asked
    if arm in SIDECARS and WORLD.arms[arm].mechanism in ("iptables", "nftables"):
        assert any(f"dst={asked} " in line and "sport=15001" in line for line in seen.tracked[f"client-{arm}"])
    if arm in SIDECARS:
        assert "outbound_0.0.0.0_80;" in seen.chains[f"client-{arm}"]["0.0.0.0_80"]
    elif arm == "plain":  # a sidecar may use a connection that stood already
        assert seen.rules[seen.request["replica"]] == {"inbound_tcp": 1}
    assert not [each["Names"] for each in bed.containers() if "-attached-" in str(each["Names"])]


def test_a_trace_of_a_name_that_does_not_exist_says_so(bed: Testbed) -> None:
    with observers.opened(bed) as asking, Agents(bed) as agents:
        seen = trace.observe(bed, asking, agents.of("mode1", 5), "mode1", "http://absent/")
    assert seen.request["outcome"] == "dns_error"
    assert any("NXDOMAIN" in packet.says for packet in seen.packets)


def test_an_address_without_a_listener_goes_nowhere_and_is_counted(bed: Testbed) -> None:
    """240.240.9.9 belongs to nobody: without a mesh the packet may not leave the pod."""
    program = (
        "import socket\ntry: socket.create_connection(('240.240.9.9', 80), timeout=1)\nexcept OSError as e: print('no')"
    )
    assert in_app(bed, "plain", program) == "no"
    with observers.opened(bed) as asking:
        counters = rules.counters(WORLD.named("client-plain"))
        counted = asking["client-plain"].ask({"op": "snapshot", "rules": counters}, 10)[0]["rules"]
    assert counted["escaped_vip"] > 0


@pytest.mark.parametrize("arm", SIDECARS)
def test_a_connection_to_the_proxy_port_itself_does_not_loop(bed: Testbed, arm: str) -> None:
    address = bed.nets.pod(WORLD.arms[arm].host)
    for port in (15001, 15006):
        program = (
            f"import socket\ns = socket.create_connection(('{address}', {port}), timeout=3)\n"
            "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
            "try: print(len(s.recv(100)))\nexcept ConnectionResetError: print(0)"
        )
        assert in_app(bed, arm, program) == "0"
    page = {"url": f"http://127.0.0.1:{ISTIO.admin_port}/stats?format=json&filter=^server.total_connections$"}
    with observers.opened(bed) as asking:
        reply = observers.page(asking[f"client-{arm}"], page) or ""
    assert json.loads(reply)["stats"][0]["value"] < 50  # a loop would hold hundreds


@pytest.mark.parametrize("server", WORLD.of(WORLD.groups - WORLD.live_groups).meshed, ids=lambda server: server.pod)
def test_inbound_connections_to_meshed_replicas_pass_their_sidecar(bed: Testbed, server: Pod) -> None:
    host = bed.nets.pod(server.host)
    program = (
        f"import http.client as h\nc = h.HTTPConnection('{host}', 8080, timeout=3)\n"
        "c.request('GET', '/'); r = c.getresponse()\n"
        "print(r.getheader('X-Replica'), r.getheader('server'))"
    )
    assert in_app(bed, "ip", program) == f"{server.pod} istio-envoy"


def test_nothing_leaves_the_machine(bed: Testbed) -> None:
    """Internal networks: a route that exists leads nowhere."""
    program = (
        "import socket\n"
        "try: socket.create_connection(('192.0.2.1', 80), timeout=1); print('out')\n"
        "except OSError: print('in')"
    )
    for arm in ("ip", "plain"):
        assert in_app(bed, arm, program) == "in"
    for network in bed.client.networks.list(filters={"label": f"com.docker.compose.project={bed.project}"}):
        assert network.attrs["Internal"] is True


def test_containers_hold_no_more_privilege_than_they_need(bed: Testbed) -> None:
    label = f"com.docker.compose.project={bed.project}"
    for container in bed.client.containers.list(all=True, filters={"label": label}):
        host = container.attrs["HostConfig"]
        service = container.labels["com.docker.compose.service"]
        assert host["CapDrop"] == ["ALL"], service
        assert host["ReadonlyRootfs"] and not host["Privileged"], service
        assert not any("docker.sock" in bind for bind in host["Binds"] or []), service
        assert not host["PortBindings"], service
        wanted = set(host["CapAdd"] or [])
        allowed = {"NET_ADMIN", "NET_RAW"} if service.endswith("observer") else set()
        allowed |= {"NET_ADMIN"} if service.endswith(("-rules", "-queries")) else set()
        allowed |= {"SYS_ADMIN"} if service.endswith("-loader") else set()
        allowed |= {"NET_ADMIN", "SETUID", "SETGID", "SETPCAP"} if service.endswith("-tproxy-istio-proxy") else set()
        assert {cap.removeprefix("CAP_") for cap in wanted} <= allowed, service
