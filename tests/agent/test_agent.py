"""The agent as a process against real servers on loopback: what it reports is what happened."""

import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from driver import AGENT, GET, Agent, tcp_server, udp_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Replica: r1\r\n\r\nhello"


@pytest.fixture(scope="module")
def shared():
    agent = Agent()
    yield agent
    assert agent.close() == 0


@pytest.fixture(params=["block", "spin"])
def wait(request):
    return request.param


def wire(name="web.test.", qtype="A"):
    return dns.message.make_query(name, qtype).to_wire().hex()


def requests(connection):
    """Yields once per request head received."""
    data = b""
    while more := connection.recv(65536):
        data += more
        while b"\r\n\r\n" in data:
            data = data.partition(b"\r\n\r\n")[2]
            yield


def say(reply=OK):
    def handle(connection, _number):
        for _ in requests(connection):
            connection.sendall(reply)
            if b"close" in reply:
                return

    return handle


def zone(query):
    """web.test. has an address, nodata.test. none, servfail.test. fails, others do not exist."""
    asked = dns.message.from_wire(query)
    name, qtype = asked.question[0].name.to_text(), asked.question[0].rdtype
    response = dns.message.make_response(asked)
    if name == "web.test.":
        if qtype == 1:
            response.answer = [dns.rrset.from_text(name, 5, "IN", "A", "127.0.0.1")]
    elif name == "cut.test.":
        response.flags |= dns.flags.TC
    elif name == "garbage.test.":
        return query[:2] + b"\x80\0\0\1\0\1" + b"\xc0" * 40
    elif name == "other.test.":
        return dns.message.make_response(dns.message.make_query("web.test.", "A", id=asked.id)).to_wire()
    elif name == "stray.test.":
        return [b"", b"\0", bytes([query[0] ^ 255]) + response.to_wire()[1:]]
    elif name == "silent.test.":
        return []
    elif name == "servfail.test.":
        response.set_rcode(dns.rcode.SERVFAIL)
    elif name != "nodata.test.":
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response.to_wire()


def lookup(agent, *candidates, **job):
    with udp_server(zone) as port:
        return agent.run(kind="lookup", lookup="wire", wire=list(candidates), resolver=["127.0.0.1", port], **job)


def test_ping_clock_and_bad_jobs_keep_serving(shared):
    shared.send('{"kind":"ping"}')
    assert shared.read().header["pong"] is True
    for bad in (
        "nonsense",
        "[]",
        '{"kind":"lookup"}',
        '{"kind":"request","count":1,"typo":2}',
        '{"kind":"lookup","lookup":"getaddrinfo","name":"x","count":1,"arrival":{"process":"poisson","rate_hz":1}}',
        '{"kind":"lookup","lookup":"wire","wire":[["00"]],"resolver":["x",1],"count":1}',
        f'{{"kind":"lookup","lookup":"wire","wire":[["{wire()}"]],"resolver":["not-an-ip",1],"count":1}}',
    ):
        shared.send(bad)
        assert shared.read().header["error"]
    shared.send('{"kind":"clock"}')
    facts = shared.read().header["clock"]
    assert 0 < facts["cost_p50_ns"] <= facts["cost_p99_ns"] and facts["backwards"] == 0


@pytest.mark.parametrize(
    ("name", "outcome", "rcode"),
    [
        ("web", "ok", 0),
        ("nodata", "dns_error", 0),
        ("servfail", "dns_error", 2),
        ("absent", "dns_error", 3),
        ("cut", "bad_answer", 0),
        ("garbage", "bad_answer", 0),
        ("other", "bad_answer", 0),
    ],
)
def test_outcome_of_lookups(shared, name, outcome, rcode, wait):
    result = lookup(shared, [wire(f"{name}.test.")], count=3, wait=wait)
    assert result.words("outcome") == [outcome] * 3
    assert list(result.columns["rcode"]) == [rcode] * 3
    assert result.words("address") == ["127.0.0.1" if outcome == "ok" else ""] * 3
    assert len(set(result.columns["local_port"])) == 3 and min(result.columns["local_port"]) > 0


def test_no_answer_is_a_timeout_and_stray_answers_are_ignored(shared, wait):
    result = lookup(shared, [wire("silent.test.")], count=2, timeout_ms=60, wait=wait)
    assert result.words("outcome") == ["timeout"] * 2
    c = result.columns
    assert all(60e6 <= end - start < 1e9 for start, end in zip(c["start_ns"], c["end_ns"], strict=True))
    result = lookup(shared, [wire("stray.test.")], timeout_ms=400, wait=wait)
    assert result.words("outcome") == ["timeout"] and result.facts["stray_answers"] == 3


def test_candidates_pairs_and_policies(shared):
    pair = [wire(), wire(qtype="AAAA")]
    result = lookup(shared, [wire("web.test.ns.test."), wire("web.test.ns.test.", "AAAA")], pair, [wire("cut.test.")])
    assert result.words("address") == ["127.0.0.1"] and list(result.columns["queries"]) == [4]
    absent = lookup(shared, [wire("a.test.")], [wire("b.test.")], accept_nxdomain=True)
    assert absent.words("outcome") == ["ok"] and list(absent.columns["rcode"]) == [3]
    nodata = lookup(shared, [wire("nodata.test.")], [wire()], accept_nodata=True)
    assert nodata.words("outcome") == ["ok"] and list(nodata.columns["queries"]) == [1]
    assert lookup(shared, [wire("nodata.test.")], [wire()]).words("address") == ["127.0.0.1"]


def test_queries_arrive_as_counted_with_changing_ids(shared):
    seen = []
    with udp_server(lambda query: seen.append(query) or zone(query)) as port:
        result = shared.run(
            kind="lookup",
            lookup="wire",
            wire=[[wire(), wire(qtype="AAAA")]],
            resolver=["127.0.0.1", port],
            count=20,
            warmup=3,
        )
    assert result.facts["queries_sent"] == sum(result.columns["queries"]) == 40
    assert len(seen) == 46 and len({query[:2] for query in seen}) == 46


def test_new_connections_with_lookup(shared, wait):
    with udp_server(zone) as dns_port, tcp_server(say()) as port:
        result = shared.run(
            kind="request",
            lookup="wire",
            wire=[[wire()]],
            resolver=["127.0.0.1", dns_port],
            port=port,
            request=GET,
            count=10,
            wait=wait,
        )
    c = result.columns
    assert result.words("outcome") == ["ok"] * 10 and result.words("replica") == ["r1"] * 10
    assert set(c["bytes"]) == {5} and set(c["status"]) == {200} and result.facts["connections_opened"] == 10
    assert all(a < b < d for a, b, d in zip(c["start_ns"], c["dns_ns"], c["connect_ns"], strict=True))
    assert len(set(c["local_port"])) == 10


def test_keepalive_reuses_the_connections_of_the_warm_up(shared, wait):
    with tcp_server(say()) as port:
        result = shared.run(
            kind="request",
            address="127.0.0.1",
            port=port,
            request=GET,
            connection="keepalive",
            count=40,
            warmup=8,
            arrival={"process": "closed", "concurrency": 4},
            wait=wait,
        )
    c = result.columns
    assert result.facts["connections_opened"] == 0 and len(set(c["local_port"])) == 4
    assert c["start_ns"] == c["tls_ns"] and result.words("outcome") == ["ok"] * 40


def test_connection_closed_while_idle_is_reopened_without_a_failure(shared, wait):
    def handle(connection, _number):
        for _ in requests(connection):
            connection.sendall(OK)
            return  # although it said nothing of closing

    with tcp_server(handle) as port:
        result = shared.run(
            kind="request",
            address="127.0.0.1",
            port=port,
            request=GET,
            connection="keepalive",
            count=6,
            arrival={"process": "constant", "rate_hz": 20},
            wait=wait,
        )
    assert result.words("outcome") == ["ok"] * 6 and result.facts["connections_opened"] == 6


def test_connection_closed_on_a_request_is_a_reset(shared):
    def handle(connection, number):
        for k, _ in enumerate(requests(connection)):
            if number == 0 and k == 2:
                return
            connection.sendall(OK)

    with tcp_server(handle) as port:
        result = shared.run(
            kind="request", address="127.0.0.1", port=port, request=GET, connection="keepalive", count=5
        )
    assert result.words("outcome") == ["ok", "ok", "reset", "ok", "ok"] and result.facts["connections_opened"] == 2


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "outcome", "status", "size"),
    [
        (CHUNKED, "ok", 200, 7),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", "ok", 200, 13),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "ok", 200, 5),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "http_error", 503, 2),
        (b"SSH-2.0-x close\r\n\r\n", "http_error", 0, 0),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nx", "reset", 200, 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, "ok", 200, 300_000),
    ],
)
def test_bodies(shared, reply, outcome, status, size):
    with tcp_server(say(reply)) as port:
        result = shared.run(kind="request", address="127.0.0.1", port=port, request=GET, count=2)
    assert result.words("outcome") == [outcome] * 2
    assert set(result.columns["status"]) == {status} and set(result.columns["bytes"]) == {size}


def test_reply_in_crumbs(shared):
    def handle(connection, _number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in requests(connection):
            for k in range(len(CHUNKED)):
                connection.sendall(CHUNKED[k : k + 1])

    with tcp_server(handle) as port:
        result = shared.run(
            kind="request", address="127.0.0.1", port=port, request=GET, connection="keepalive", count=3
        )
    assert result.words("outcome") == ["ok"] * 3 and set(result.columns["bytes"]) == {7}
    assert all(a < b for a, b in zip(result.columns["first_byte_ns"], result.columns["end_ns"], strict=True))


def test_refused_and_reset(shared, wait):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = shared.run(kind="request", address="127.0.0.1", port=port, request=GET, count=2, wait=wait)
        assert result.words("outcome") == ["connect_error"] * 2 and set(result.columns["status"]) == {0}
        result = shared.run(kind="lookup", lookup="wire", wire=[[wire()]], resolver=["127.0.0.1", port], wait=wait)
        assert result.words("outcome") == ["dns_error"] and list(result.columns["rcode"]) == [-1]

    def handle(connection, _number):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        next(requests(connection))

    with tcp_server(handle) as port:
        result = shared.run(kind="request", address="127.0.0.1", port=port, request=GET, count=2, wait=wait)
    assert result.words("outcome") == ["reset"] * 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
            "-subj",
            "/CN=web.test",
            "-addext",
            "subjectAltName=DNS:web.test",
        ],
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("connection", ["new", "keepalive"])
def test_tls(shared, certificate, connection):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    job = {"kind": "request", "address": "127.0.0.1", "request": GET, "connection": connection, "count": 5}
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    with tcp_server(say(big), context) as port:
        result = shared.run(**job, port=port, tls={"server_name": "web.test", "cafile": str(certificate[0])})
        wrong = shared.run(**job, port=port, tls={"server_name": "else.test", "cafile": str(certificate[0])})
    assert result.words("outcome") == ["ok"] * 5 and set(result.columns["bytes"]) == {100_000}
    handshakes = sum(a < b for a, b in zip(result.columns["connect_ns"], result.columns["tls_ns"], strict=True))
    assert handshakes == result.facts["connections_opened"] == (5 if connection == "new" else 1)
    assert wrong.words("outcome") == ["tls_error"] * 5


def stalling(stall_s, at):
    """A server, over all its connections, that does nothing for a while on its request number `at`."""
    lock, served = threading.Lock(), [0]

    def handle(connection, _number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in requests(connection):
            with lock:
                served[0] += 1
                if served[0] == at:
                    time.sleep(stall_s)
            connection.sendall(OK)

    return handle


def test_open_loop_keeps_its_schedule_while_the_server_stalls(shared, wait):
    stall_s, rate_hz = 0.1, 200
    with tcp_server(stalling(stall_s, 30)) as port:
        result = shared.run(
            kind="request",
            address="127.0.0.1",
            port=port,
            request=GET,
            count=100,
            wait=wait,
            arrival={"process": "constant", "rate_hz": rate_hz, "concurrency": 64},
        )
    c, t0 = result.columns, result.facts["t0_ns"]
    assert list(c["due_ns"]) == [t0 + round(k * 1e9 / rate_hz) for k in range(100)]
    latency = [end - due for due, end in zip(c["due_ns"], c["end_ns"], strict=True)]
    # requests due k periods after the stall began waited for the rest of it: 100, 95, ... 5 ms
    first = max(range(100), key=latency.__getitem__)
    for k in range(19):
        assert latency[first + k] >= stall_s * 1e9 - k * 1e9 / rate_hz - 3e6
    ends_of_stall = sorted(c["end_ns"][first : first + 19])
    assert sum(start < ends_of_stall[0] for start in c["start_ns"][first:]) >= 10  # sent on time, not after the stall


def test_cap_holds_requests_back_but_keeps_their_due_time(shared, wait):
    with tcp_server(stalling(0.1, 10)) as port:
        result = shared.run(
            kind="request",
            address="127.0.0.1",
            port=port,
            request=GET,
            count=60,
            connection="keepalive",
            wait=wait,
            arrival={"process": "constant", "rate_hz": 200, "concurrency": 1},
        )
    c, facts = result.columns, result.facts
    hidden = [start - due for due, start in zip(c["due_ns"], c["start_ns"], strict=True)]
    assert sum(each > 1e6 for each in hidden) >= 15 and max(hidden) > 80e6
    assert result.words("outcome") == ["ok"] * 60 and facts["connections_opened"] == 1


def test_poisson_is_the_seeds(shared):
    arrival = {"process": "poisson", "rate_hz": 2000, "seed": 7, "concurrency": 32}
    result = lookup(shared, [wire()], count=50, arrival=arrival)
    chance, at = random.Random(7), 0.0
    for due in result.columns["due_ns"]:
        at += chance.expovariate(2000)
        assert due == result.facts["t0_ns"] + round(at * 1e9)


def test_closed_loop_keeps_its_workers_busy_and_stops_at_the_limit(shared, wait):
    def handle(connection, _number):
        for _ in requests(connection):
            time.sleep(0.02)
            connection.sendall(OK)

    with tcp_server(handle) as port:
        result = shared.run(
            kind="request",
            address="127.0.0.1",
            port=port,
            request=GET,
            count=100_000,
            wait=wait,
            connection="keepalive",
            duration_limit_s=0.5,
            warmup=5,
            arrival={"process": "closed", "concurrency": 5},
        )
    c, facts = result.columns, result.facts
    busy = sum(end - start for start, end in zip(c["start_ns"], c["end_ns"], strict=True))
    assert c["due_ns"] == c["start_ns"] and facts["not_started"] == 100_000 - result.header["rows"] > 0
    assert busy / facts["wall_ns"] > 4 and facts["wall_ns"] < 2e9


def test_getaddrinfo(shared):
    with tcp_server(say()) as port:
        result = shared.run(
            kind="request", lookup="getaddrinfo", name="localhost", family="inet", port=port, request=GET, count=3
        )
    assert result.words("address") == ["127.0.0.1"] * 3 and set(result.columns["queries"]) == {-1}
    absent = shared.run(kind="lookup", lookup="getaddrinfo", name="absent..invalid")
    assert absent.words("outcome") == ["dns_error"]


LOADS = {
    "spinning": {"wait": "spin", "arrival": {"process": "closed", "concurrency": 1}},
    "blocking": {"wait": "block", "arrival": {"process": "closed", "concurrency": 1}},
    "pausing": {"wait": "spin", "arrival": {"process": "constant", "rate_hz": 0.5, "concurrency": 4}},
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("end", ["eof", "driver", signal.SIGTERM, signal.SIGINT])
def test_load_ends_with_its_driver(load, end):
    job = {
        "kind": "lookup",
        "lookup": "wire",
        "wire": [[wire("silent.test.")]],
        "count": 1000,
        "timeout_ms": 60_000,
        "duration_limit_s": 600,
    } | LOADS[load]
    asked = threading.Event()
    with udp_server(lambda _query: asked.set()) as port:
        text = json.dumps(job | {"resolver": ["127.0.0.1", port]}).encode() + b"\n"
        if end == "driver":  # a process that holds the agent's input dies by force
            command = [sys.executable, "-m", "agent"]
            script = (
                f"import subprocess;p=subprocess.Popen({command!r},stdin=-1,cwd={str(AGENT.parent)!r});"
                f"p.stdin.write({text!r});p.stdin.flush();print(p.pid,flush=True);p.wait()"
            )
            driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
            pid = int(driver.stdout.readline())
            assert asked.wait(10) and Path(f"/proc/{pid}").exists()
            driver.kill()
            driver.wait()
            assert gone(pid, 1.0)
            driver.stdout.close()
            return
        agent = Agent()
        agent.process.stdin.write(text)
        agent.process.stdin.flush()
        assert asked.wait(10) and agent.process.poll() is None
        if end == "eof":
            agent.process.stdin.close()
        else:
            agent.process.send_signal(end)
        assert agent.process.wait(1.0) == (130 if end == "eof" else 128 + end)
        agent.process.stdin.close()
        agent.process.stdout.close()


def gone(pid, within_s):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            with Path(f"/proc/{pid}/stat").open() as stat:
                if stat.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_null_target_waits_as_asked(shared):
    command = [sys.executable, AGENT / "null_target.py", "--port", "0", "--idle-s", "0.2"]
    target = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        job = {"kind": "lookup", "lookup": "wire", "resolver": ["127.0.0.1", int(target.stdout.readline())], "count": 5}
        result = shared.run(**job, wire=[[wire("d3000.null.test."), wire("d3000.null.test.", "AAAA")]])
        c = result.columns
        assert result.words("outcome") == ["ok"] * 5
        assert all(end - start >= 6e6 for start, end in zip(c["start_ns"], c["end_ns"], strict=True))
    finally:
        target.terminate()
        assert target.wait(2) == 0
        target.stdout.close()


def test_lookups_that_keep_their_socket_use_one_port(shared, wait):
    result = lookup(shared, [wire()], connection="keepalive", count=20, warmup=3, wait=wait)
    assert result.words("outcome") == ["ok"] * 20 and len(set(result.columns["local_port"])) == 1
    assert result.facts["queries_sent"] == 20 and result.facts["warmup"] == {"connections_opened": 0, "queries_sent": 3}
    fresh = lookup(shared, [wire()], count=20, wait=wait)
    assert len(set(fresh.columns["local_port"])) > 15


WHO = {"payload": b"\x16\x03\n?".hex(), "answers": {"postgres": ["53", "1503"], "redis": ["2b504f4e47", "2d455252"]}}


def tell(*pieces, then="close"):
    """A server that answers the payload in pieces, and then closes, resets or waits for the client to close."""

    def handle(connection, _number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if connection.recv(64) != bytes.fromhex(WHO["payload"]):
            return
        for k, piece in enumerate(pieces):
            time.sleep(0.02 * (k > 0))
            connection.sendall(piece)
        if then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif then == "wait":
            connection.recv(64)

    return handle


@pytest.mark.parametrize(
    ("pieces", "outcome", "replica"),
    [
        ([b"S"], "ok", "postgres"),
        ([b"\x15", b"\x03\x03\0\2\2\n"], "ok", "postgres"),
        ([b"-ERR unknown command\r\n"], "ok", "redis"),
        ([b"+P", b"O", b"NG\r\n"], "ok", "redis"),
        ([b"+PO"], "bad_answer", ""),
        ([b"+P", b"X"], "bad_answer", ""),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "bad_answer", ""),
        ([], "reset", ""),
    ],
)
def test_tcp_exchange_tells_the_server(shared, pieces, outcome, replica, wait):
    with tcp_server(tell(*pieces)) as port:
        result = shared.run(kind="request", address="127.0.0.1", port=port, tcp=WHO, count=6, wait=wait)
    c = result.columns
    assert result.words("outcome") == [outcome] * 6 and result.words("replica") == [replica] * 6
    assert set(c["bytes"]) == {len(b"".join(pieces))} and set(c["status"]) == {0} and min(c["local_port"]) > 0
    pauses_ns = 0.9 * 20e6 * max(len(pieces) - 1, 0)
    assert all(end - start >= pauses_ns for start, end in zip(c["start_ns"], c["end_ns"], strict=True))
    # A client that lost its CPU meanwhile finds several pieces at once; it does not lose it six times.
    spans_ns = [end - first for first, end in zip(c["first_byte_ns"], c["end_ns"], strict=True)]
    assert min(spans_ns) >= 0 and max(spans_ns) >= pauses_ns


def test_tcp_exchange_that_breaks_or_stays_silent(shared, wait):
    job = {"kind": "request", "address": "127.0.0.1", "tcp": WHO, "count": 2, "wait": wait}
    for pieces, then, outcome in (
        ([], "reset", "reset"),
        ([], "wait", "timeout"),
        ([b"+PO"], "wait", "timeout"),
        ([b"S"], "wait", "ok"),
    ):
        with tcp_server(tell(*pieces, then=then)) as port:
            result = shared.run(**job, port=port, timeout_ms=80)
        assert result.words("outcome") == [outcome] * 2 and set(result.columns["bytes"]) == {len(b"".join(pieces))}
    result = shared.run(**job, port=port)
    assert result.words("outcome") == ["connect_error"] * 2


@pytest.mark.parametrize("arrival", ["closed", "constant"])
def test_tcp_exchanges_with_lookup_use_a_connection_each(shared, arrival, wait):
    with udp_server(zone) as dns_port, tcp_server(tell(b"+PONG\r\n", then="wait")) as port:
        result = shared.run(
            kind="request",
            lookup="wire",
            wire=[[wire()]],
            resolver=["127.0.0.1", dns_port],
            port=port,
            tcp=WHO,
            count=40,
            warmup=4,
            wait=wait,
            arrival={"process": arrival, "rate_hz": 200, "concurrency": 4},
        )
    c = result.columns
    assert result.words("outcome") == ["ok"] * 40 and result.words("replica") == ["redis"] * 40
    assert result.words("address") == ["127.0.0.1"] * 40 and result.facts["connections_opened"] == 40
    instants = zip(c["start_ns"], c["dns_ns"], c["connect_ns"], c["first_byte_ns"], strict=True)
    assert all(a < b < d < e for a, b, d, e in instants) and c["first_byte_ns"] == c["end_ns"]


def test_tcp_exchange_over_tls(shared, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    tls = {"server_name": "web.test", "cafile": str(certificate[0])}
    with tcp_server(tell(b"+PO", b"NG\r\n"), context) as port:
        result = shared.run(kind="request", address="127.0.0.1", port=port, tcp=WHO, tls=tls, count=3)
    assert result.words("outcome") == ["ok"] * 3 and result.words("replica") == ["redis"] * 3


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tcp": {"payload": "00"}}, "payload and answers"),
        ({"tcp": {"payload": "0", "answers": {"a": ["53"]}}}, "hex"),
        ({"tcp": {"payload": "00", "answers": {}}}, "answers"),
        ({"tcp": {"payload": "00", "answers": {"a": []}}}, "answers"),
        ({"tcp": {"payload": "00", "answers": {"a": [""]}}}, "fits any answer"),
        ({"tcp": {"payload": "00", "answers": {"a": ["53"], "b": ["5300"]}}}, "begins like"),
        ({"request": GET}, "beside"),
        ({"connection": "keepalive"}, "new"),
    ],
)
def test_impossible_tcp_jobs_are_refused(shared, wrong, told):
    job = {"kind": "request", "address": "127.0.0.1", "port": 1, "count": 1, "tcp": WHO}
    shared.send(json.dumps(job | wrong))
    assert told in shared.read().header["error"]
