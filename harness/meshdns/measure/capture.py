"""Packet captures: the duration of each exchange between the kernel's own packet stamps.

Reads the classic pcap format with nanosecond stamps as tcpdump writes it (Ethernet, IPv4). Used for closed loops with
one request at a time, where exchanges follow each other and need no matching but their order and ports.
"""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from meshdns.core import errors
from meshdns.lab.channel import Channel
from meshdns.measure.cell import Cell

ASK_TIMEOUT_S = 30
_MAGIC_NS = 0xA1B23C4D
_UDP, _TCP = 17, 6
_FILE_HEADER, _PACKET_HEADER = 24, 16
_ETHERNET = 14


@dataclass(frozen=True)
class Frame:
    """One IPv4 packet as it was on an interface."""

    at_ns: int
    protocol: int
    source: str
    source_port: int
    target: str
    target_port: int
    flags: int  # TCP's; 0 for UDP
    size: int  # bytes above UDP or TCP
    payload: bytes  # of these, what was captured


@dataclass(frozen=True)
class Packet:
    """One IPv4 packet, seen from the pod."""

    at_ns: int
    outgoing: bool
    protocol: int
    local_port: int
    remote_port: int
    payload: int  # bytes above UDP or TCP


@dataclass(frozen=True)
class Exchange:
    """Durations on the wire of one request; -1 where there was no such phase."""

    dns_ns: int
    total_ns: int


def taken(observer: Channel) -> dict[str, bytes]:
    """What it has captured, by interface. Raises TestbedError."""
    reply = observer.ask({"op": "captured"}, ASK_TIMEOUT_S)[0]
    return {interface: base64.b64decode(pcap) for interface, pcap in reply["pcap"].items()}


def frames(pcap: bytes) -> Iterator[Frame]:
    """UDP and TCP packets over IPv4. Raises DataError for a file that is not such a capture."""
    if len(pcap) < _FILE_HEADER or struct.unpack_from("<I", pcap)[0] != _MAGIC_NS:
        raise errors.DataError("not a pcap file with nanosecond stamps", place="capture")
    offset = _FILE_HEADER
    while offset + _PACKET_HEADER <= len(pcap):
        seconds, nanoseconds, length, _ = struct.unpack_from("<IIII", pcap, offset)
        offset += _PACKET_HEADER
        frame = _frame(pcap[offset : offset + length], seconds * 1_000_000_000 + nanoseconds)
        offset += length
        if frame is not None:
            yield frame


def _frame(raw: bytes, at_ns: int) -> Frame | None:
    ip = raw[_ETHERNET:]
    if raw[12:14] != b"\x08\x00" or len(ip) < 28:
        return None
    header, total, protocol = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big"), ip[9]
    if protocol not in (_UDP, _TCP) or len(ip) < header + (20 if protocol == _TCP else 8):
        return None
    source_port, target_port = struct.unpack_from(">HH", ip, header)
    above = header + ((ip[header + 12] >> 4) * 4 if protocol == _TCP else 8)
    source, target = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
    flags = ip[header + 13] if protocol == _TCP else 0
    size = total - above
    return Frame(at_ns, protocol, source, source_port, target, target_port, flags, size, ip[above : above + size])


def packets(pcap: bytes, pod: str) -> Iterator[Packet]:
    """The packets as `pod` (its IPv4 address) sees them. Raises DataError as `frames` does."""
    for each in frames(pcap):
        outgoing = each.source == pod
        local, remote = each.source_port, each.target_port
        local, remote = (local, remote) if outgoing else (remote, local)
        yield Packet(each.at_ns, outgoing, each.protocol, local, remote, each.size)


def lookups(seen: list[Packet], ports: list[int]) -> list[Exchange]:
    """One exchange per lookup, by the UDP port it used: first query out to last answer in."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for packet in seen:
        if packet.protocol == _UDP and packet.remote_port == 53:
            if packet.outgoing:
                first.setdefault(packet.local_port, packet.at_ns)
            else:
                last[packet.local_port] = packet.at_ns
    return [
        Exchange(duration := last[port] - first[port], duration) if port in first and port in last else Exchange(-1, -1)
        for port in ports
    ]


def requests(seen: list[Packet], ports: list[int]) -> list[Exchange]:
    """One exchange per request on a new connection: from its DNS query (or SYN) out to the last payload in."""
    connections = {port: [p for p in seen if p.protocol == _TCP and p.local_port == port] for port in set(ports)}
    queries = [p for p in seen if p.protocol == _UDP and p.remote_port == 53]
    out: list[Exchange] = []
    for port in ports:
        packets_in = [p.at_ns for p in connections[port] if not p.outgoing and p.payload > 0]
        if not packets_in:
            out.append(Exchange(-1, -1))
            continue
        begin = connections[port][0].at_ns
        lookup = _lookup_before(queries, begin)
        if lookup is None:
            out.append(Exchange(-1, packets_in[-1] - begin))
        else:
            asked, answered = lookup
            out.append(Exchange(answered - asked, packets_in[-1] - asked))
    return out


def in_turn(seen: list[Packet], count: int) -> list[Exchange]:
    """The last `count` exchanges on a socket that is kept, one after the other: payload out to last payload in.

    The first packets of the capture may be a warm-up's; the last exchanges are the recorded ones.
    """
    spans: list[tuple[int, int]] = []
    asked, answered = -1, -1
    for packet in (p for p in seen if p.payload > 0):
        if packet.outgoing:
            if answered >= 0:
                spans.append((asked, answered))
            asked, answered = packet.at_ns, -1
        elif asked >= 0:
            answered = packet.at_ns
    if answered >= 0:
        spans.append((asked, answered))
    if len(spans) < count:
        return [Exchange(-1, -1)] * count  # packets are missing: none can be told from another
    dns = all(p.protocol == _UDP for p in seen)
    return [Exchange(end - begin if dns else -1, end - begin) for begin, end in spans[-count:]]


def joined(table: pa.Table, cell: Cell, pcap: bytes, pod: str) -> pa.Table:
    """The samples with `wire_dns_ns` and `wire_total_ns` where packets were found; `pod` is the client's address."""
    seen = list(packets(pcap, pod))
    ports = table.column("local_port").to_pylist()
    if cell.connection == "keepalive" and cell.concurrency == 1:
        found = in_turn(seen, table.num_rows)
    else:
        found = lookups(seen, ports) if cell.kind == "lookup" else requests(seen, ports)
    columns = {"wire_dns_ns": [one.dns_ns for one in found], "wire_total_ns": [one.total_ns for one in found]}
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, pa.int64()))
    return table


def _lookup_before(queries: list[Packet], begin_ns: int) -> tuple[int, int] | None:
    """Stamps of the last query and its answer before a connection began."""
    answers = [p for p in queries if not p.outgoing and p.at_ns <= begin_ns]
    if not answers:
        return None
    answer = answers[-1]
    asked = [p.at_ns for p in queries if p.outgoing and p.local_port == answer.local_port and p.at_ns < answer.at_ns]
    return (asked[-1], answer.at_ns) if asked else None
