"""Messages as bytes: anything at all is answered or dropped, and what is answered can be read."""

from __future__ import annotations

import gc
import json
import random
import socket
import struct
import time
import weakref
from pathlib import Path

import dns.exception
import dns.message
import dns.name
import dns.rrset
import fuzz
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshdns.dnsproxy import answer, cache, nametable, wire
from meshdns.dnsproxy.metrics import Metrics
from meshdns.dnsproxy.proxy import Proxy
from meshdns.dnsproxy.reactor import Reactor
from meshdns.dnsproxy.stream import Stream
from meshdns.dnsproxy.upstream import Forwarder

QUESTION = b"\3api\7example\3com\0\0\1\0\1"
MIXED = st.sampled_from(
    [b"\0", b"\xc0\x0c", b"\xc0\x0d", b"\xc0\x21", b"\xff\xff", b"\3api", b"\7example\3com\0", QUESTION, b"\0\1\0\1",
     b"\0\0\x29\x04\xd0\0\0\0\0\0\0", b"\0\0\x29\xff\xff\0\0\x80\0\0\0", b"\x3f" + b"a" * 63,
     b"\0\x10\0\1\0\0\0\x1e\0\3\2hi"]
) | st.binary(max_size=12)  # fmt: skip
HEADER = st.builds(
    lambda n, flags, counts: struct.pack(">HHHHHH", n, flags, *counts),
    st.integers(0, 65_535),
    st.sampled_from([0x0100, 0x0000, 0x0110, 0x8180, 0x2800, 0x0900]) | st.integers(0, 65_535),
    st.tuples(*[st.sampled_from([0, 1, 1, 1, 2, 65_535])] * 1, *[st.sampled_from([0, 0, 0, 1, 2, 65_535])] * 3),
)
MESSAGE = st.binary(max_size=64) | st.builds(lambda h, parts: h + b"".join(parts), HEADER, st.lists(MIXED, max_size=8))


def work(table: object) -> nametable.NameTable:
    reading = nametable.read(json.dumps(table), nametable.Scope("shop", "cluster.local", ("svc.cluster.local",)))
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "all-options"])
def proxy(request: pytest.FixtureRequest) -> Proxy:
    reactor = Reactor()
    metrics = Metrics(request.param)
    forwarder = Forwarder(reactor, [], 1.0, 16, metrics, parallel=request.param)
    kept = cache.Cache(60) if request.param else None
    made = Proxy(reactor, forwarder, metrics, answer.Style(soa=request.param), kept)
    made.swap(
        work({"table": {"api.example.com": {"ips": ["192.0.2.1", "192.0.2.2", "::1"]}, "*.com": {"ips": ["::2"]}}})
    )
    return made


@given(message=MESSAGE, tcp=st.booleans())
@example(message=b"\0\0\1\0\0\1\0\0\0\0\0\0" + QUESTION, tcp=False)
@example(message=b"\0\0\1\0\0\1\0\0\0\0\0\0" + b"\7example\3com\0\0\1\0\1", tcp=True)
def test_any_message_gets_one_readable_answer_or_none(proxy: Proxy, message: bytes, tcp: bool) -> None:
    sent: list[bytes] = []
    proxy.answer(message, tcp, sent.append)
    assert len(sent) == int(len(message) >= wire.HEADER and not message[2] & 0x80)
    for reply in sent:
        assert reply[:2] == message[:2]
        assert len(reply) <= (65_535 if tcp else 4096)
        try:
            read = dns.message.from_wire(reply, one_rr_per_rrset=True)
        except dns.exception.DNSException as error:
            pytest.fail(f"{reply.hex()}: {error}")
        assert read.flags & 0x8000
        proxy.answer(message, tcp, sent.append)
        assert sent[1][3] == reply[3]
        assert sorted(sent[1]) == sorted(reply)  # the same, in another order perhaps
        sent.clear()


@given(MESSAGE)
def test_what_is_taken_for_a_query_is_one_for_dnspython_too(message: bytes) -> None:
    try:
        query = wire.read_query(message)
    except wire.RefusedError:
        return
    theirs = dns.message.from_wire(message, ignore_trailing=True, question_only=True)
    assert theirs.question[0].name.canonicalize().to_wire() == query.name
    assert theirs.question[0].rdtype == query.qtype


def test_a_message_costs_no_more_than_its_length(proxy: Proxy) -> None:
    """Each of thousands of names leads down one chain of thousands of pointers."""
    start = wire.HEADER + len(QUESTION) + 11
    places = [start, *range(start + 1, 16_000, 2)]
    chain = b"\0" + b"".join(struct.pack(">H", 0xC000 | place) for place in places[:-1])
    for pointers, others, code in ((1, 4000, 1), (len(places) - 1, 4000, 1), (126, 30, 0), (127, 30, 1)):
        used = chain[: 1 + 2 * pointers]
        records = b"\0" + struct.pack(">HHIH", 65_400, 1, 0, len(used)) + used
        records += struct.pack(">HHHIH", 0xC000 | places[pointers - 1], 65_400, 1, 0, 0) * others
        message = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 1 + others) + QUESTION + records
        sent: list[bytes] = []
        begin_s = time.process_time()
        proxy.answer(message, True, sent.append)
        assert time.process_time() - begin_s < 0.5
        assert [reply[3] & 15 for reply in sent] == [code]


def test_answers_kept_ready_take_a_bounded_amount(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshdns.dnsproxy.proxy.READY_BYTES", 50_000)
    for n in range(1000):
        name = wire.encode_name(f"{'x' * 60}.{'y' * 60}.{n}.example.com")
        sent: list[bytes] = []
        proxy.answer(
            struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">HH", 28, 1), False, sent.append
        )
        assert 1 <= len(proxy.ready) <= 100
        assert sent[0][3] & 15 == wire.NOERROR


def test_a_closed_stream_lets_go_of_its_owner_without_the_collector() -> None:
    """Every table freezes what there is: a cycle would stay for ever."""

    class Owner:
        def __init__(self) -> None:
            self.stream = Stream(reactor, ours, self.received, self.received)

        def received(self, _: Stream) -> None:
            pass

    reactor = Reactor()
    ours, theirs = socket.socketpair()
    gc.disable()
    try:
        with theirs:
            owner = Owner()
            gone = weakref.ref(owner)
            owner.stream.close()
            del owner
            assert gone() is None
    finally:
        gc.enable()
        reactor.close()


_LABELS = st.lists(st.binary(min_size=1, max_size=20), max_size=6)


@given(_LABELS)
def test_names_are_shown_so_that_they_can_be_read_again(labels: list[bytes]) -> None:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    assert wire.skip_name(b"\0" * 12 + name, 12) == 12 + len(name)
    text = wire.show_name(name)
    assert dns.name.from_text(text if text == "." else text + ".").to_wire() == name


@given(st.integers(1, 300), st.integers(512, 1400), st.booleans())
def test_an_answer_fits_and_says_so_when_it_is_cut(count: int, size: int, six: bool) -> None:
    query = wire.read_query(
        struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + QUESTION[:-4] + struct.pack(">HH", 28 if six else 1, 1)
    )
    packed = b"".join(n.to_bytes(16 if six else 4, "big") for n in range(count))
    found = nametable.Found(
        nametable.Addresses(b"" if six else packed, packed if six else b""), wire.encode_name("api.example")
    )
    made = answer.build(query, found, answer.Style(), limit=size, tally=answer.Tally(), serial=1)
    reply = query.message[:2] + (made.rest or made.shuffled())
    assert len(reply) <= size
    read = dns.message.from_wire(reply, one_rr_per_rrset=True)
    records = [s for s in read.answer if s.rdtype != 5]
    assert read.answer[0].rdtype == 5  # CNAME first
    assert len({str(s[0]) for s in records}) == len(records)
    assert bool(read.flags & 0x0200) == (len(records) < count)
    assert len(reply) + (28 if six else 16) > size or len(records) == count  # no room was wasted


@given(st.integers(100, 240), st.sampled_from(["svc.cluster.local", "x." * 4 + "test"]), st.booleans())
@example(230, "shop.svc.cluster.local", False)
def test_no_name_is_too_long_for_an_answer_that_fits(length: int, search: str, six: bool) -> None:
    host = ("a" * 60 + ".") * 3 + "b" * 60
    host = host[:length].removesuffix(".")
    try:
        name = wire.encode_name(f"{host}.{search}")
    except ValueError:
        return
    query = wire.read_query(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">HH", 1 + 27 * six, 1))
    found = nametable.Found(nametable.Addresses(b"\x0a\0\0\1", b""), wire.encode_name(host))
    for style in (answer.Style(), answer.Style(soa=True, domain=wire.encode_name("c" * 60 + "." + "d" * 60))):
        made = answer.build(query, found, style, limit=512, tally=answer.Tally(), serial=1)
        reply = query.message[:2] + (made.rest or made.shuffled())
        assert len(reply) <= 512
        read = dns.message.from_wire(reply, one_rr_per_rrset=True)
        assert read.flags & 0x0200 or [s.rdtype for s in read.answer] == ([] if six else [5, 1])


def test_a_short_storm_on_every_socket_leaves_nothing_behind(tmp_path: Path) -> None:
    """`fuzz.py` is the same for as long as wanted."""
    before = fuzz.descriptors()
    assert fuzz.play(seed=7, seconds=1.5, folder=tmp_path) > 0
    assert fuzz.descriptors() <= before


def answer_message(kind: str, data: str) -> bytes:
    query = dns.message.make_query("a.test", kind, use_edns=-1)
    made = dns.message.make_response(query)
    made.answer.append(dns.rrset.from_text("a.test.", 60, "IN", kind, data))
    return made.to_wire()


RECORDS = {
    "A": "192.0.2.1", "AAAA": "2001:db8::1", "CNAME": "b.test.", "NS": "ns.a.test.",
    "SOA": "ns.test. me.test. 1 2 3 4 5",
    "MX": "10 mx.a.test.", "TXT": '"one" "" "two"', "SRV": "1 2 3 b.test.", "PTR": "b.a.test.", "HINFO": '"a" "b"',
    "NAPTR": '1 2 "a" "b" "" x.test.', "CAA": '0 issue "ca.test"', "HTTPS": "1 . alpn=h2", "SVCB": "0 b.test.",
    "DS": "1 8 2 " + "ab" * 32, "DNSKEY": "257 3 8 AQPS", "TYPE65400": "\\# 3 010203", "RP": "a.test. b.test.",
    "NSEC": "b.test. A RRSIG", "RRSIG": "A 8 2 60 20300101000000 20200101000000 1 test. AQPS", "DNAME": "b.test.",
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
def test_answers_are_checked_down_to_the_data_of_records(kind: str) -> None:
    message = answer_message(kind, RECORDS[kind])
    wire.check(message)
    wire.check(message + b"\0\1")
    for length in range(wire.HEADER, len(message)):
        with pytest.raises(wire.MalformedError):
            wire.check(message[:length])
    _, at = wire.questions(message)
    (record,) = wire.records(message, at)
    if kind in ("A", "AAAA", "CNAME", "SOA", "MX", "SRV", "PTR", "RP", "NAPTR", "DNAME"):
        for more in (-1, 1):  # the record is whole, and its data is not
            length = record.end - record.data + more
            odd = (
                message[: record.data - 2]
                + length.to_bytes(2, "big")
                + (message + b"\1")[record.data : record.end + more]
            )
            with pytest.raises(wire.MalformedError):
                wire.check(odd)


@given(st.sampled_from(["A", "CNAME", "SOA", "MX", "TXT", "SRV"]), st.randoms(use_true_random=False))
def test_what_passes_the_check_can_be_read(kind: str, rng: random.Random) -> None:
    damaged = fuzz.mutated(rng, answer_message(kind, RECORDS[kind]))
    try:
        wire.check(damaged)
        _, at = wire.questions(damaged)
        kinds = {record.kind for record in wire.records(damaged, at)}
    except (wire.MalformedError, struct.error):
        return
    if kinds <= {1, 2, 5, 6, 15, 16, 28, 33} and len(damaged) > wire.HEADER:
        dns.message.from_wire(damaged, ignore_trailing=True)
