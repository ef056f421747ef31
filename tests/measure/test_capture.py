"""Captures: durations from packet stamps, against packets put together here byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns.core import errors
from meshdns.measure import capture

POD, PEER = "198.18.0.42", "198.18.0.10"


def frame(source: str, target: str, protocol: int, ports: tuple[int, int], payload: int) -> bytes:
    above = struct.pack(">HH", *ports)
    above += b"\0\0\0\0" if protocol == 17 else b"\0" * 8 + bytes([5 << 4]) + b"\0" * 7
    ip = bytes([0x45, 0]) + struct.pack(">H", 20 + len(above) + payload) + b"\0" * 5 + bytes([protocol]) + b"\0\0"
    ip += bytes(map(int, source.split("."))) + bytes(map(int, target.split(".")))
    return b"\0" * 12 + b"\x08\x00" + ip + above + b"\0" * payload


def pcap(packets: list[tuple[int, bytes]]) -> bytes:
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 256, 1)
    for at_ns, data in packets:
        out += struct.pack("<IIII", at_ns // 10**9, at_ns % 10**9, len(data), len(data)) + data
    return out


def dns(at_ns: int, port: int, out: bool) -> tuple[int, bytes]:
    return (at_ns, frame(POD, PEER, 17, (port, 53), 30) if out else frame(PEER, POD, 17, (53, port), 60))


def tcp(at_ns: int, port: int, out: bool, payload: int) -> tuple[int, bytes]:
    return (at_ns, frame(POD, PEER, 6, (port, 8080), payload) if out else frame(PEER, POD, 6, (8080, port), payload))


def test_a_lookup_lasts_from_query_to_answer() -> None:
    data = pcap([dns(1_000, 4000, True), dns(91_000, 4000, False), dns(100_000, 4001, True), dns(300_000, 4001, False)])
    seen = list(capture.packets(data, POD))
    assert capture.lookups(seen, [4001, 4000, 4999]) == [
        capture.Exchange(200_000, 200_000),
        capture.Exchange(90_000, 90_000),
        capture.Exchange(-1, -1),
    ]


def test_a_request_lasts_from_its_query_to_the_last_payload() -> None:
    data = pcap(
        [
            dns(0, 4000, True), dns(90, 4000, False),
            tcp(100, 5000, True, 0), tcp(120, 5000, False, 0), tcp(130, 5000, True, 80),
            tcp(200, 5000, False, 500), tcp(230, 5000, False, 524), tcp(240, 5000, True, 0), tcp(260, 5000, False, 0),
            dns(1000, 4001, True), dns(1050, 4001, False), tcp(1100, 5001, True, 0), tcp(1400, 5001, False, 9),
        ]
    )  # fmt: skip
    seen = list(capture.packets(data, POD))
    assert capture.requests(seen, [5000, 5001]) == [capture.Exchange(90, 230), capture.Exchange(50, 400)]


def test_exchanges_on_a_kept_socket_follow_each_other() -> None:
    """A warm-up request, then two that count; the second answer comes in two pieces."""
    data = pcap(
        [
            dns(0, 4000, True), dns(50, 4000, False), tcp(60, 5000, True, 0), tcp(70, 5000, False, 0),
            tcp(100, 5000, True, 80), tcp(130, 5000, False, 900),
            tcp(200, 5000, True, 80), tcp(205, 5000, False, 0), tcp(240, 5000, False, 500), tcp(260, 5000, False, 400),
            tcp(300, 5000, True, 80), tcp(370, 5000, False, 900), tcp(375, 5000, True, 0),
        ]
    )  # fmt: skip
    seen = list(capture.packets(data, POD))
    assert capture.in_turn(seen, 2) == [capture.Exchange(-1, 60), capture.Exchange(-1, 70)]
    assert capture.in_turn(seen, 9) == [capture.Exchange(-1, -1)] * 9
    lookups = list(capture.packets(pcap([dns(0, 4000, True), dns(50, 4000, False)]), POD))
    assert capture.in_turn(lookups, 1) == [capture.Exchange(50, 50)]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_packets_or_a_data_error(data: bytes, headed: bool) -> None:
    try:
        list(capture.packets(pcap([]) + data if headed else data, POD))
    except errors.DataError:
        return


def test_a_file_that_is_no_capture_is_told_so() -> None:
    with pytest.raises(errors.DataError, match="not a pcap file"):
        list(capture.packets(b"x" * 100, POD))
