"""Options beyond Istio's agent, each against the default: cache, stale answers, SOA, TTL, all search domains, metrics.

Only what needs a clock or a count runs without sockets.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import dnsdriver
import pytest
from dnsdriver import addresses, free_port, make, reply, running, until, upstream

from meshdns.dnsproxy import cache, metrics, nametable, wire
from meshdns.dnsproxy.answer import Style
from meshdns.dnsproxy.metrics import Metrics
from meshdns.dnsproxy.proxy import Proxy
from meshdns.dnsproxy.reactor import Reactor

SOA = "test. 60 SOA ns.test. admin.test. 1 2 3 4 50"


def answer(query: bytes, tcp: bool) -> bytes:
    """By the first label: an address, an alias to nowhere, nothing, no such name; with an SOA but for `bare`."""
    name = str(dns.message.from_wire(query).question[0].name)
    first = name.split(".", maxsplit=1)[0]
    authority = () if first.startswith("bare") else (SOA,)
    if first.startswith("known"):
        return reply(query, "@ 77 A 198.51.100.7", "Other.test. 20 A 198.51.100.8")
    if first == "alias":
        return reply(query, "@ 77 CNAME nowhere.test.", authority=authority)
    if first == "failing":
        return reply(query, rcode=2)
    if first == "large":
        return reply(query, *(f"@ 77 A 198.51.100.{n}" for n in range(60)))
    return reply(query, rcode=3 if "absent" in first else 0, authority=authority)


def test_without_the_cache_every_question_is_forwarded(tmp_path: Path) -> None:
    with upstream(answer) as server, running(tmp_path, *server.option) as proxy:
        for _ in range(3):
            proxy.udp("known.test")
        assert len(server.asked) == 3


def test_the_cache_keeps_what_may_be_kept(tmp_path: Path) -> None:
    asked_again = {
        "known": 1,
        "KNOWN": 0,
        "alias": 1,
        "absent": 1,
        "nodata": 1,
        "bareabsent": 3,
        "barenodata": 3,
        "failing": 3,
    }
    with upstream(answer) as server, running(tmp_path, *server.option, "--cache") as proxy:
        for name, count in asked_again.items():
            before = len(server.asked)
            for _ in range(3):
                proxy.udp(f"{name}.test")
            assert len(server.asked) - before == count, name


class Clocked:
    """A proxy with a cache, without sockets: a clock that is set by hand and servers that answer at once, or never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stale_s: float = 0) -> None:
        self.now_s = 1000.0
        self.asked = 0
        self.answer: Callable[[bytes], bytes | None] | None = lambda query: answer(query, False)
        monkeypatch.setattr(cache, "time", types.SimpleNamespace(monotonic=lambda: self.now_s))
        reactor = Reactor()
        self.proxy = Proxy(reactor, self, Metrics(enabled=True), Style(), cache.Cache(stale_s))  # type: ignore[arg-type]
        self.proxy.swap(nametable.NameTable())

    def ask(self, query: wire.Query, tcp: bool, done: Callable[[bytes | None], None]) -> None:
        self.asked += 1
        if self.answer is not None:
            done(self.answer(query.message))

    def send(self, query: bytes, *, tcp: bool = False) -> list[bytes]:
        sent: list[bytes] = []
        self.proxy.answer(query, tcp, sent.append)
        return sent

    def udp(self, name: str, qtype: str = "A", **how: Any) -> dns.message.Message:
        (sent,) = self.send(make(name, qtype, **how))
        return dns.message.from_wire(sent, one_rr_per_rrset=True)


def test_ttls_count_down_and_id_and_spelling_are_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Clocked(monkeypatch)
    first = bed.udp("known.test")
    bed.now_s += 12.5
    query = make("KnOwN.test")
    (sent,) = bed.send(query)
    second = dns.message.from_wire(sent, one_rr_per_rrset=True)
    assert sent[:2] == query[:2]
    assert sent[12 : len(query)] == query[12:]
    assert [s.ttl for s in first.answer] == [77, 20]
    assert [s.ttl for s in second.answer] == [65, 8]
    assert addresses(second) == addresses(first)
    assert bed.asked == 1
    bed.now_s += 8  # the shorter TTL is over
    bed.udp("known.test")
    assert bed.asked == 2


def test_negative_answers_live_as_long_as_the_soa_says(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Clocked(monkeypatch)
    for name in ("absent.test", "nodata.test", "alias.test"):
        bed.udp(name)
    bed.now_s += 49  # the SOA's minimum is 50 s, its TTL 60 s
    assert bed.udp("absent.test").rcode() == dns.rcode.NXDOMAIN
    assert bed.udp("nodata.test").authority[0].ttl == 11
    assert len(bed.udp("alias.test").answer) == 1
    assert bed.asked == 3
    bed.now_s += 1
    for name in ("absent.test", "nodata.test", "alias.test"):
        bed.udp(name)
    assert bed.asked == 6


def test_answers_are_kept_apart_by_what_they_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Clocked(monkeypatch)
    for how in ({}, {"edns": 1232}, {"qtype": "AAAA"}, {"qclass": "CH"}):
        bed.udp("nodata.test", **how)
    assert bed.asked == 4
    (large,) = bed.send(make("large.test", edns=4096))
    assert bed.asked == 5
    (again,) = bed.send(make("large.test", edns=4096), tcp=True)
    assert again[2:] == large[2:]
    assert bed.asked == 5
    bed.send(make("large.test", edns=600))  # what is kept is too large for this one
    assert bed.asked == 6


def test_what_is_one_clients_is_given_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Clocked(monkeypatch)
    echo = dns.edns.OptionType.COOKIE

    def cookie_back(query: bytes) -> bytes:
        back = dns.message.from_wire(answer(query, False))
        back.use_edns(0, options=dns.message.from_wire(query).options)
        return back.to_wire()

    bed.answer = cookie_back
    for cookie in (b"first  .", b"second .", b"first  ."):
        query = dns.message.make_query("known.test", "A", use_edns=0, options=[dns.edns.GenericOption(echo, cookie)])
        (sent,) = bed.send(query.to_wire())
        assert [option.to_wire() for option in dns.message.from_wire(sent).options] == [cookie]
    assert dns.message.from_wire(*bed.send(make("known.test", edns=1232))).options == ()
    assert bed.asked == 4


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ENTRIES", 50)
    bed = Clocked(monkeypatch)
    for n in range(200):
        bed.udp(f"known{n}.test")
        bed.udp("known0.test")
    assert bed.asked == 200  # what is used is kept
    assert bed.proxy.text().count("dns_cache_entries 50") == 1


def test_the_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 100_000)
    bed = Clocked(monkeypatch, stale_s=60)

    def entries() -> int:
        lines = bed.proxy.text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("dns_cache_entries "))

    held = set()
    for _ in range(5):  # each time the old answers are stale, and new ones take their places
        for n in range(30):
            bed.send(make(f"known{n}.test"))
            bed.send(make("large.test", edns=4096))  # takes the place of ten
        held.add(entries())
        bed.now_s += 100
    assert held == {31}
    for n in range(1000):
        bed.udp(f"known{n}.test")
    assert 50 < entries() < 150


@pytest.mark.parametrize("failure", [None, 2, 5])
def test_stale_answers_serve_while_no_server_does(monkeypatch: pytest.MonkeyPatch, failure: int | None) -> None:
    bed = Clocked(monkeypatch, stale_s=60)
    bed.udp("known.test")
    bed.answer = lambda query: None if failure is None else reply(query, rcode=failure)
    bed.now_s += 21
    for _ in range(3):
        assert [s.ttl for s in bed.udp("known.test").answer] == [30, 30]
    assert bed.asked == 2  # the servers are left alone for 30 s
    bed.now_s += 30
    bed.udp("known.test")
    assert bed.asked == 3
    bed.now_s += 30  # 61 s over its time
    assert bed.udp("known.test").rcode() == (failure or dns.rcode.SERVFAIL)
    assert bed.udp("unknown.test").rcode() == (failure or dns.rcode.SERVFAIL)


def test_a_stale_answer_comes_before_a_client_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Clocked(monkeypatch, stale_s=60)
    bed.udp("known.test")
    bed.answer = None  # under way for ever
    bed.now_s += 21
    sent = bed.send(make("known.test"))
    patience = bed.proxy._patience
    patience.run(time.monotonic() + cache.STALE_WAIT_S - 0.1)
    assert sent == []
    patience.run(time.monotonic() + cache.STALE_WAIT_S)
    assert len(sent) == 1
    assert addresses(dns.message.from_wire(sent[0], one_rr_per_rrset=True))[0] == "198.51.100.7"


def test_stale_answers_over_the_wire(tmp_path: Path) -> None:
    healthy = True

    def fickle(query: bytes, tcp: bool) -> bytes | None:
        return reply(query, "@ 1 A 198.51.100.7") if healthy else None

    options = ("--cache", "--serve-stale-s", "60", "--timeout-ms", "300")
    with upstream(fickle) as server, running(tmp_path, *server.option, *options) as proxy:
        proxy.udp("known.test")
        healthy = False
        until(lambda: proxy.udp("known.test").answer[0].ttl == 30, "the answer is stale")
        assert proxy.udp("unknown.test").rcode() == dns.rcode.SERVFAIL


def test_soa_in_negative_answers(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        assert proxy.udp("api.example.com", "AAAA").authority == []
    with running(tmp_path, "--soa", "--ttl-s", "7") as proxy:
        outside = proxy.udp("api.example.com", "AAAA")
        inside = proxy.udp("reviews.shop.svc.cluster.local", "AAAA")
        assert [str(s.name) for s in (*outside.authority, *inside.authority)] == ["api.example.com.", "cluster.local."]
        for message in (outside, inside):
            assert message.rcode() == dns.rcode.NOERROR
            (soa,) = message.authority
            assert soa.rdtype == dns.rdatatype.SOA
            assert soa.ttl == soa[0].minimum == 7  # RFC 2308: the lesser of both
        assert proxy.udp("api.example.com").authority == []


def test_ttl_as_configured(tmp_path: Path) -> None:
    with running(tmp_path, "--ttl-s", "0") as proxy:
        assert {s.ttl for s in proxy.udp("api.example.com.shop.svc.cluster.local").answer} == {0}
    with running(tmp_path) as proxy:
        assert {s.ttl for s in proxy.udp("api.example.com.shop.svc.cluster.local").answer} == {30}


def test_all_search_domains(tmp_path: Path) -> None:
    names = [f"api.example.com.{domain}" for domain in dnsdriver.SEARCH]
    with running(tmp_path) as proxy:
        assert [proxy.udp(name).rcode() for name in names] == [0, 2, 2]  # forwarded, and there is no server
    with running(tmp_path, "--all-search") as proxy:
        for name in names:
            message = proxy.udp(name)
            assert message.answer[0].rdtype == dns.rdatatype.CNAME
            assert addresses(message) == ["240.240.0.1"]


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=dnsdriver.PATIENCE_S)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def value(page: str, metric: str, /, **labels: str) -> float:
    total = 0.0
    for line in page.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == metric:
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            if all(found.get(key) == wanted for key, wanted in labels.items()):
                total += float(match[3])
    return total


def test_metrics_count_every_request_once(tmp_path: Path) -> None:
    port = free_port()
    with upstream(answer) as server:
        options = (*server.option, "--cache", "--metrics", f"127.0.0.1:{port}")
        with running(tmp_path, *options, table=None) as proxy:
            assert get(port, "/healthz/ready")[0] == 503
            proxy.udp("api.example.com")  # SERVFAIL
            proxy.write(dnsdriver.TABLE)
            until(lambda: get(port, "/healthz/ready")[0] == 200, "ready")
            for _ in range(5):
                proxy.udp("api.example.com")
            proxy.udp("api.example.com", "AAAA")
            with proxy.tcp() as sock:
                dnsdriver.ask_tcp(sock, make("api.example.com"))
            for _ in range(3):
                proxy.udp("absent.test")
            proxy.udp('we"ird\\.test', "TXT")
            proxy.raw(b"\0\0\1\0\0\1\0\0\0\0\0\0")
            status, page = get(port, "/metrics")
            assert get(port, "/")[0] == 404
    assert status == 200
    assert value(page, "dns_requests_total") == 13
    assert value(page, "dns_requests_total", source="local", transport="udp", qtype="A", rcode="NOERROR") == 5
    assert value(page, "dns_requests_total", source="local", transport="udp", qtype="AAAA") == 1
    assert value(page, "dns_requests_total", source="local", transport="tcp") == 1
    assert value(page, "dns_requests_total", source="cache", rcode="NXDOMAIN") == 2
    assert value(page, "dns_requests_total", source="upstream") == 2
    assert value(page, "dns_requests_total", source="error", rcode="SERVFAIL") == 1
    assert value(page, "dns_requests_total", source="error", rcode="FORMERR") == 1
    assert value(page, "dns_name_requests_total", name="api.example.com") == 8
    assert value(page, "dns_name_requests_total") == 13
    assert value(page, "dns_cache_hits_total", kind="fresh") == 2
    assert value(page, "dns_upstream_requests_total") == 2
    assert value(page, "dns_upstream_failures_total") == 0
    assert value(page, "dns_upstream_request_duration_seconds_count") == 2
    assert value(page, "dns_upstream_request_duration_seconds_bucket", le="+Inf") == 2
    assert re.findall(r'le="([^"]+)"', page) == ["0.001", "0.005", "0.01", "0.1", "1.0", "5.0", "+Inf"]
    assert value(page, "dns_name_table_generation") == 1
    assert value(page, "dns_name_table_hosts") == 4


def test_metrics_of_names_are_bounded() -> None:
    counts = metrics.Metrics(enabled=True)
    for n in range(3 * metrics.NAMES):
        query = wire.read_query(make(f"n{n}.test"))
        counts.tally(query, False, 0, "upstream").hits += 1
    page = counts.text(0, 0, 0)
    assert page.count("dns_name_requests_total{") == metrics.NAMES + 1
    assert value(page, "dns_name_requests_total", name="other") == 2 * metrics.NAMES


def test_the_page_bears_with_bad_clients(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, "--metrics", f"127.0.0.1:{port}") as proxy:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        with socket.create_connection(("127.0.0.1", port), dnsdriver.PATIENCE_S) as endless:
            try:
                for _ in range(100):
                    endless.sendall(b"x" * 10_000)
                assert endless.recv(1) == b""
            except ConnectionError:
                pass
        assert get(port, "/metrics")[0] == 200
        assert addresses(proxy.udp("api.example.com")) == ["240.240.0.1"]
        for sock in idle:
            sock.close()
