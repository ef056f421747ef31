"""The readers of answers never raise anything but their own error, and read what dnspython writes."""

import contextlib

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns.agent import dnswire, httpwire, tcpwire


def query(name: str = "web.test.", qtype: str = "A") -> dnswire.Query:
    return dnswire.Query(dns.message.make_query(name, qtype).to_wire())


def message(*rrsets: tuple, name: str = "web.test.", qtype: str = "A") -> dns.message.Message:
    response = dns.message.make_response(dns.message.make_query(name, qtype))
    response.answer = [dns.rrset.from_text(*rrset) for rrset in rrsets]
    return response


CHAIN = message(
    ("web.test.", 5, "IN", "CNAME", "a.other.test."),
    ("a.other.test.", 5, "IN", "CNAME", "b.test."),
    ("b.test.", 5, "IN", "A", "10.0.0.9"),
).to_wire()


def test_alias_chain_compressed_and_in_any_order():
    assert query().read(CHAIN) == dnswire.Answer(0, "10.0.0.9", False)
    turned = message(
        ("b.test.", 5, "IN", "A", "10.0.0.9"),
        ("stray.test.", 5, "IN", "A", "6.6.6.6"),
        ("web.test.", 5, "IN", "CNAME", "b.test."),
    )
    assert query().read(turned.to_wire()).address == "10.0.0.9"
    loop = message(("web.test.", 5, "IN", "CNAME", "b.test."), ("b.test.", 5, "IN", "CNAME", "web.test."))
    assert query().read(loop.to_wire()) == dnswire.Answer(0, "", False)


def test_owner_name_written_out_as_envoy_does():
    name = b"\3WEB\4test\0"
    whole = b"\0\0\x80\0\0\1\0\1\0\0\0\0" + name + b"\0\1\0\1" + name + b"\0\1\0\1\0\0\0\5\0\4\xf0\xf0\0\1"
    assert query().read(whole) == dnswire.Answer(0, "240.240.0.1", False)


def test_aaaa():
    answer = message(("web.test.", 5, "IN", "AAAA", "fd00::7"), qtype="AAAA")
    assert query(qtype="AAAA").read(answer.to_wire()).address == "fd00::7"


def test_other_question_truncation_and_queries_are_bad():
    assert query("else.test.").read(CHAIN).bad
    cut = message()
    cut.flags |= dns.flags.TC
    assert query().read(cut.to_wire()).bad
    assert query().read(dns.message.make_query("web.test.", "A").to_wire()).bad


@given(st.data())
def test_dns_reader_survives_everything(data):
    text = bytearray(CHAIN)
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=8)):
        text[place] = data.draw(st.integers(0, 255))
    text = bytes(text[: data.draw(st.integers(0, len(text)))])
    for garbage in (text, data.draw(st.binary(max_size=64)), text[:2] + b"\x80\0\0\1\0\x09" + text[8:]):
        answer = query().read(garbage)
        assert -1 <= answer.rcode <= 15
        assert not (answer.bad and answer.address)


@given(st.binary(max_size=60))
def test_query_reader_refuses_or_accepts(wire):
    with contextlib.suppress(dnswire.MalformedError):
        assert dnswire.Query(wire).question in wire


def test_head():
    head = httpwire.read_head(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nX-Replica:  b2 ")
    assert head == httpwire.Head(200, 12, "b2", True)
    assert httpwire.read_head(b"HTTP/1.1 204 No Content").length == 0
    assert httpwire.read_head(b"HTTP/1.1 200").length == httpwire.UNTIL_CLOSE
    assert not httpwire.read_head(b"HTTP/1.0 200 OK\r\nContent-Length: 1").keep
    assert not httpwire.read_head(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close").keep


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/2 200",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
    ],
)
def test_bad_heads(head):
    with pytest.raises(httpwire.MalformedError):
        httpwire.read_head(head)


@given(st.binary(max_size=80), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length:"]))
def test_head_reader_survives_everything(garbage, start):
    try:
        head = httpwire.read_head(start + garbage)
        assert 0 <= head.status <= 999 and head.length >= httpwire.CHUNKED
    except httpwire.MalformedError:
        pass


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.data())
def test_chunked_body_cut_anywhere(chunks, data):
    text = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\nTrailer: x\r\n\r\n"
    body = httpwire.Body(httpwire.CHUNKED)
    at = 0
    while at < len(text):
        assert not body.done
        step = data.draw(st.integers(1, len(text) - at))
        body.feed(text[at : at + step])
        at += step
    assert body.done and body.size == sum(map(len, chunks))


@given(st.lists(st.binary(max_size=30), max_size=4), st.sampled_from([httpwire.CHUNKED, httpwire.UNTIL_CLOSE, 0, 7]))
def test_body_reader_survives_everything(pieces, length):
    body = httpwire.Body(length)
    try:
        for piece in pieces:
            body.feed(piece)
    except httpwire.MalformedError:
        pass


ANSWERS = tcpwire.Answers({"postgres": [b"S", b"N", b"\x15\x03"], "redis": [b"+PONG", b"-ERR"]})


def test_prefixes_tell_the_server():
    for data, server in (
        (b"S", "postgres"),
        (b"NE\0\0", "postgres"),
        (b"\x15", None),
        (b"\x15\x03\x03", "postgres"),
        (b"+PON", None),
        (b"+PONG\r\n", "redis"),
        (b"-NO", ""),
        (b"HTTP/1.1 400", ""),
        (b"", None),
    ):
        assert ANSWERS.read(data) == server


@pytest.mark.parametrize("prefixes", [{"a": [b""]}, {"a": [b"S"], "b": [b"S"]}, {"a": [b"S", b"N"], "b": [b"Nb"]}])
def test_ambiguous_prefixes_are_refused(prefixes):
    with pytest.raises(tcpwire.AmbiguousError):
        tcpwire.Answers(prefixes)


@given(st.binary(max_size=12), st.integers(0, 12))
def test_more_bytes_never_change_a_decision(data, cut):
    early = ANSWERS.read(data[:cut])
    assert early is None or ANSWERS.read(data) == early
    assert len(data) < 5 or ANSWERS.read(data) is not None
