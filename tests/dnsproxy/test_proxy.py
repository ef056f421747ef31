"""The proxy as a process: command line, table file, forwarding, TCP, bad input and faults."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dnsdriver
import pytest
from dnsdriver import addresses, ask_tcp, free_port, make, rcode, read_tcp, reply, running, until, upstream

from meshdns.dnsproxy import command, differences, options
from meshdns.dnsproxy.reactor import Reactor
from meshdns.dnsproxy.upstream import Forwarder, Server

FAST = ("--timeout-ms", "200")
NEVER = ("--timeout-ms", "600000")  # so that a test which waits for it fails


def known(query: bytes, tcp: bool) -> bytes:
    return reply(query, "@ 77 A 198.51.100.7")


# ---- command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--name-table"),
        (("--name-table", "t", "--listen", "127.0.0.1"), "--listen: '127.0.0.1' is not ADDR:PORT"),
        (("--name-table", "t", "--listen", "localhost:53"), "is not ADDR:PORT"),
        (("--name-table", "t", "--listen", "127.0.0.1:65536"), "is not ADDR:PORT"),
        (("--name-table", "t", "--listen", "::1:53"), "is not ADDR:PORT"),
        (("--name-table", "t", "--listen", "192.0.2.1:0"), "give an address of this machine"),
        (("--name-table", "t", "--upstream", "127.0.0.1:0"), "--upstream: '127.0.0.1:0'"),
        (("--name-table", "t", "--timeout-ms", "0"), "--timeout-ms: '0'"),
        (("--name-table", "t", "--timeout-ms", "1e3"), "--timeout-ms: '1e3'"),
        (("--name-table", "t", "--ttl-s", "-1"), "--ttl-s"),
        (("--name-table", "t", "--domain", "a..b"), "--domain"),
        (("--name-table", "t", "--serve-stale-s", "5"), "add --cache"),
        (("--name-table", "t", "--resolv-conf", "/no/such/file"), "/no/such/file"),
        (("--name-table", "t", "--no-such-option"), "--no-such-option"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_2(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    try:
        code: object = command.main(arguments)
    except SystemExit as left:
        code = left.code
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_the_differences_are_printed_as_they_are_listed(tmp_path: Path) -> None:
    asked = dnsdriver.command("--differences")
    done = subprocess.run(asked, env=dnsdriver.bare(tmp_path), capture_output=True, text=True, check=True)
    lines = iter(done.stdout.splitlines())
    printed = []
    for line in lines:
        if line.startswith("  "):
            printed[-1].append(line.removeprefix(" " * 17) if line.startswith("   ") else line[17:])
        elif line:
            printed.append([line])
    listed = [(f"{d.id} ({d.topic})", " ".join((d.istio, d.here, d.reason))) for d in differences.DIFFERENCES]
    assert [(head, " ".join(said)) for head, *said in printed] == listed


@pytest.mark.parametrize(
    ("servers", "addresses"),
    [
        ((), ["127.0.0.1:15053"]),
        (("192.0.2.1", "192.0.2.2"), ["127.0.0.1:15053"]),
        (("2001:db8::1",), ["[::1]:15053"]),
        (("fe80::1%eth0", "192.0.2.1"), ["127.0.0.1:15053", "[::1]:15053"]),
    ],
)
def test_it_listens_in_the_families_of_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: tuple[str, ...], addresses: list[str]
) -> None:
    asked = []

    def bind(family: socket.AddressFamily, address: str, port: int) -> object:
        asked.append((family, address, port))
        return bound.pop(0)

    bound = [command.listener.bind(socket.AF_INET, "127.0.0.1", 0) for _ in addresses]
    monkeypatch.setattr(command.listener, "bind", bind)
    monkeypatch.setattr(command.Reactor, "run", lambda _: None)
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("search shop.svc.cluster.local\nnameserver\n" + "".join(f"nameserver {s}\n" for s in servers))
    assert command.main(["--name-table", "t", "--resolv-conf", str(resolv)]) == 0
    families = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
    shown = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for _, address, port in asked]
    assert shown == addresses
    assert all(families[address] == family for family, address, _ in asked)


ELSEWHERE = "every name that is not in the table is SERVFAIL; give --upstream to forward them"


@pytest.mark.parametrize(
    ("resolv", "servers", "said"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver ::ffff:192.0.2.2\n",
         "192.0.2.1:53, [2001:db8::1]:53, 192.0.2.2:53", "other names are forwarded to {servers}, as {file} says"),
        ("nameserver fe80::1%lo\nnameserver 127.0.0.1\nnameserver nobody\nnameserver fe80::1%nil", "[fe80::1%1]:53",
         "other names are forwarded to {servers}, as {file} says (nobody is no address here; fe80::1%nil is no address "
         "here; 127.0.0.1:53 is this proxy itself)"),
        ("nameserver 127.0.0.11\n", "127.0.0.11:53",  # where a container engine leads elsewhere
         "other names are forwarded to {servers}, as {file} says"),
        ("nameserver ::ffff:127.0.0.1\nsearch a.test", "",
         f"{{file}} names no DNS server (127.0.0.1:53 is this proxy itself), so {ELSEWHERE}"),
        ("search a.test\n#nameserver 192.0.2.1\n", "", f"{{file}} names no DNS server, so {ELSEWHERE}"),
    ],
)  # fmt: skip
def test_without_upstream_the_servers_of_resolv_conf_are_asked_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolv: str, servers: str, said: str
) -> None:
    asked: list[str] = []
    printed = io.StringIO()

    def forwarder(reactor: Reactor, servers: list[Server], *rest: Any, **more: Any) -> Forwarder:
        asked.append(", ".join(map(str, servers)))
        return Forwarder(reactor, servers, *rest, **more)

    monkeypatch.setattr(command, "Forwarder", forwarder)
    monkeypatch.setattr(command.Reactor, "run", lambda _: None)
    monkeypatch.setattr(command, "_own", lambda _: Server(socket.AF_INET, "0.0.0.0", 53))
    monkeypatch.setattr("sys.stderr", printed)
    file, table = tmp_path / "resolv.conf", tmp_path / "table.json"
    file.write_text(resolv)
    table.write_text('{"table": {}}')
    arguments = ["--name-table", str(table), "--listen", "127.0.0.1:0", "--resolv-conf", str(file)]
    assert command.main(arguments) == 0
    assert printed.getvalue() == f"dns-proxy: {said.format(file=file, servers=servers)}\n"
    assert command.main([*arguments, "--upstream", "192.0.2.9"]) == 0
    assert asked == [servers, "192.0.2.9:53"]
    assert printed.getvalue().count("\n") == 1


ITSELF = [
    ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "0.0.0.0"),
    ("0.0.0.0", "[::ffff:127.0.0.1]"), ("[::ffff:127.0.0.1]", "127.0.0.1"), ("[::]", "[::1]"), ("[::1]", "[::]"),
]  # fmt: skip


@pytest.mark.parametrize(("listen", "server"), ITSELF)
def test_an_upstream_that_is_the_proxy_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], listen: str, server: str
) -> None:
    monkeypatch.setattr(command.Reactor, "run", lambda _: None)
    port = free_port()
    upstreams = ["--upstream", "192.0.2.1:53", "--upstream", f"{server}:{port}"]
    assert command.main(["--name-table", "t", "--listen", f"{listen}:{port}", *upstreams]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"dns-proxy: --upstream \S+:{port} is the proxy itself; name the real DNS server\n", err)


def test_a_taken_port_is_one_line_and_exit_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        asked = dnsdriver.command("--name-table", "t", "--listen", address)
        done = subprocess.run(
            asked, env=dnsdriver.bare(tmp_path), capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 3
    assert "give another port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_verb_can_be_wired_into_another_parser(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    assert command.serve(parser.parse_args(["--name-table", "t", "--listen", "nowhere"])) == 2
    assert "ADDR:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path: Path, number: int) -> None:
    with running(tmp_path) as proxy:
        proxy.process.send_signal(number)
        assert proxy.process.wait(dnsdriver.PATIENCE_S) == 0
        assert proxy.process.stderr is not None
        assert dnsdriver.later(proxy.process.stderr.read()) == ""


def test_it_serves_on_both_families_and_udp_and_tcp_share_the_port(tmp_path: Path) -> None:
    with running(tmp_path, listen=("127.0.0.1:0", "[::1]:0")) as proxy:
        for address in proxy.addresses:
            asked = dataclasses.replace(proxy, addresses=[address])
            assert addresses(asked.udp("api.example.com")) == ["240.240.0.1"]
            with asked.tcp() as sock:
                assert addresses(dns.message.from_wire(ask_tcp(sock, make("api.example.com")))) == ["240.240.0.1"]


def test_on_a_wildcard_address_the_answer_leaves_from_the_address_asked(tmp_path: Path) -> None:
    with running(tmp_path, listen=("0.0.0.0:0", "[::]:0")) as proxy:
        v4, v6 = (address.rpartition(":")[2] for address in proxy.addresses)
        for address in (f"127.0.0.2:{v4}", f"127.0.0.3:{v4}", f"[::1]:{v6}"):
            asked = dataclasses.replace(proxy, addresses=[address])
            for _ in range(2):  # the second comes from what was prepared
                assert addresses(asked.udp("api.example.com")) == ["240.240.0.1"]  # a connected socket takes no other


# ---- the table's file


def test_without_the_file_servfail_until_it_appears(tmp_path: Path) -> None:
    with upstream(known) as server, running(tmp_path, *server.option, table=None) as proxy:
        assert proxy.udp("api.example.com").rcode() == dns.rcode.SERVFAIL
        assert proxy.udp("unknown.test").rcode() == dns.rcode.SERVFAIL  # nor is anything forwarded
        assert server.asked == []
        proxy.write(dnsdriver.TABLE)
        until(lambda: addresses(proxy.udp("api.example.com")) == ["240.240.0.1"], "the table is in force")
        assert addresses(proxy.udp("unknown.test")) == ["198.51.100.7"]
        assert "SERVFAIL until it is there" in proxy.stop()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_change_is_taken_over(tmp_path: Path, in_place: bool) -> None:
    with running(tmp_path) as proxy:
        for last in range(2, 6):  # same size, and within one tick of the kernel's clock perhaps
            table = {"table": {"api.example.com": {"ips": [f"240.240.0.{last}"]}}}
            if in_place:
                proxy.table.write_text(json.dumps(table))
            else:
                proxy.write(table)
            want = [f"240.240.0.{last}"]
            until(lambda want=want: addresses(proxy.udp("api.example.com")) == want, "the new address is answered")
        assert proxy.udp("reviews").rcode() == dns.rcode.SERVFAIL  # gone: asked upstream, and there is none
        assert proxy.stop() == ""


def test_a_change_under_the_same_times_and_size_is_taken_over(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        for last in range(2, 4):
            proxy.table.write_text(json.dumps({"table": {"api.example.com": {"ips": [f"240.240.0.{last}"]}}}))
            os.utime(proxy.table, (1e9, 1e9))
            want = [f"240.240.0.{last}"]
            until(lambda want=want: addresses(proxy.udp("api.example.com")) == want, "the new address is answered")
            time.sleep(0.3)


def test_a_table_that_is_a_pipe_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "table.json")
    with running(tmp_path, table=None) as proxy:
        assert proxy.udp("api.example.com").rcode() == dns.rcode.SERVFAIL
        proxy.write(dnsdriver.TABLE)
        until(lambda: addresses(proxy.udp("api.example.com")) == ["240.240.0.1"], "the table is in force")


def test_a_wrong_table_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        proxy.write('{"table": {"a": {"ips": "192.0.2.1"}}}')
        marker = time.monotonic() + 0.5
        while time.monotonic() < marker:
            assert addresses(proxy.udp("api.example.com")) == ["240.240.0.1"]
        proxy.write({"table": {"api.example.com": {"ips": ["240.240.0.9"]}}})
        until(lambda: addresses(proxy.udp("api.example.com")) == ["240.240.0.9"], "the next good table is in force")
        proxy.table.unlink()
        time.sleep(0.3)
        assert addresses(proxy.udp("api.example.com")) == ["240.240.0.9"]
        wrong, gone = proxy.stop().splitlines()
    assert wrong.endswith("ips of 'a' is not a list of strings; the last good table stays")
    assert gone.endswith("No such file or directory; the last table stays")


def test_bad_hosts_and_addresses_are_left_out_and_told(tmp_path: Path) -> None:
    table = {
        "table": {
            "good.test": {"ips": ["192.0.2.1", "nonsense", "192.0.2.300", "fe80::1%eth0", "192.0.2.1"]},
            "mapped.test": {"ips": ["::ffff:192.0.2.9"]},
            "x" * 64 + ".test": {"ips": ["192.0.2.2"]},
            "a..test": {"ips": ["192.0.2.2"]},
            "grün.test": {"ips": ["192.0.2.2"]},
            "empty.test": {"ips": ["nothing"]},
        }
    }
    with running(tmp_path, table=table) as proxy:
        assert addresses(proxy.udp("good.test")) == ["192.0.2.1"]
        assert addresses(proxy.udp("mapped.test", "AAAA")) == ["::ffff:192.0.2.9"]
        assert proxy.udp("empty.test").rcode() == dns.rcode.SERVFAIL  # not ours, and no upstream
        assert "7 hosts or addresses are left out" in proxy.stop()


def test_no_query_is_lost_or_mixed_while_tables_are_swapped(tmp_path: Path) -> None:
    """Every answer is whole, of one table: both names have the address of the same generation."""
    stop = threading.Event()

    def table(generation: int) -> dict[str, object]:
        filler = {f"svc{n}.test": {"ips": ["192.0.2.1"]} for n in range(3000)}
        return {"table": filler | {"two.test": {"ips": [f"10.0.0.{generation}", f"10.0.1.{generation}"]}}}

    with running(tmp_path, table=table(1)) as proxy:

        def swap() -> None:
            generation = 1
            while not stop.is_set():
                generation = generation % 250 + 1
                proxy.write(table(generation))
                stop.wait(0.12)

        thread = threading.Thread(target=swap)
        thread.start()
        seen = set()
        try:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                pair = {ip.split(".")[3] for ip in addresses(proxy.udp("two.test"))}
                assert len(pair) == 1
                seen |= pair
        finally:
            stop.set()
            thread.join()
        assert len(seen) > 1


# ---- local answers


def test_the_same_bytes_get_the_same_answer_but_for_the_id(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        query = make("api.example.com")
        replies = {proxy.raw(n.to_bytes(2, "big") + query[2:])[2:] for n in range(5)}
        assert len(replies) == 1
        assert proxy.raw(b"\x12\x34" + query[2:])[:2] == b"\x12\x34"


@pytest.mark.parametrize(("name", "orders"), [("three.example.com", 6), ("many.example.com", 40)])
def test_every_order_of_the_addresses_is_given(tmp_path: Path, name: str, orders: int) -> None:
    with running(tmp_path) as proxy, proxy.client() as sock:
        seen = set()
        for _ in range(60 if orders == 40 else 200):
            sock.send(make(name))
            seen.add(tuple(addresses(dns.message.from_wire(sock.recv(4096)))))
        assert len({frozenset(order) for order in seen}) == 1
        assert len(seen) >= orders


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"])
def test_queries_that_waited_together_are_each_answered_to_its_sender(tmp_path: Path, listen: str) -> None:
    """Stopped, so that they are taken in batches: prepared answers among others, of several clients."""
    names = ["api.example.com", "three.example.com", "unknown.test", "reviews", "API.example.com"]
    with upstream(known) as server, running(tmp_path, *server.option, listen=(listen,)) as proxy:
        proxy.addresses[0] = proxy.addresses[0].replace("0.0.0.0", "127.0.0.1")
        for name in names:
            proxy.udp(name)
        clients = [proxy.client() for _ in range(4)]
        proxy.process.send_signal(signal.SIGSTOP)
        for n in range(40):
            for k, client in enumerate(clients):
                client.send((n * 4 + k).to_bytes(2, "big") + make(names[n % len(names)])[2:])
        clients[3].close()  # its answers go nowhere
        proxy.process.send_signal(signal.SIGCONT)
        for k, client in enumerate(clients[:3]):
            got = [dns.message.from_wire(client.recv(4096)) for _ in range(40)]
            assert sorted(m.id for m in got) == [n * 4 + k for n in range(40)]
            for m in got:
                name = names[m.id // 4 % len(names)]
                assert str(m.question[0].name) == f"{name}."
                assert m.rcode() == dns.rcode.NOERROR
                assert len(addresses(m)) == (3 if name.startswith("three") else 1)
            client.close()


def test_recursion_desired_and_checking_disabled_are_echoed(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        query = bytearray(make("api.example.com"))
        for flags in (0x0000, 0x0100, 0x0110, 0x0010, 0x0120):
            query[2:4] = flags.to_bytes(2, "big")
            got = int.from_bytes(proxy.raw(bytes(query))[2:4], "big")
            assert got == 0x8480 | (flags & 0x0110)


# ---- forwarding


def test_the_upstream_answer_is_untouched_but_for_the_id(tmp_path: Path) -> None:
    sent: list[bytes] = []

    def answer(query: bytes, tcp: bool) -> bytes:
        # Flags and records nobody expects, names in mixed case, a record type of the future.
        body = reply(
            query, "@ 77 TYPE65400 \\# 3 010203", "Other.TEST. 1 A 192.0.2.9", authority=("test. 9 NS ns.test.",)
        )
        sent.append(body[:2] + b"\xa5\xb3" + body[4:])
        return sent[-1]

    with upstream(answer) as server, running(tmp_path, *server.option) as proxy:
        query = make("UnKnown.test", "TXT", edns=4096)
        got = proxy.raw(query)
        assert got[:2] == query[:2]
        assert got[2:] == sent[0][2:]
        assert server.asked[0][0][2:] == query[2:]
        with proxy.tcp() as sock:
            assert ask_tcp(sock, query)[2:] == sent[1][2:]
        assert [tcp for _, tcp in server.asked] == [False, True]


def test_ids_and_ports_of_upstream_queries_are_random(tmp_path: Path) -> None:
    with upstream(known) as server, running(tmp_path, *server.option) as proxy:
        for _ in range(40):
            proxy.raw(b"\0\1" + make("unknown.test")[2:])
        ids = {query[:2] for query, _ in server.asked}
        assert len(ids) > 30


def test_forged_datagrams_are_passed_over(tmp_path: Path) -> None:
    def answer(query: bytes, tcp: bool) -> list[bytes]:
        return [*foreign(query), known(query, tcp)]

    with upstream(answer) as server, running(tmp_path, *server.option, *NEVER) as proxy:
        assert addresses(proxy.udp("unknown.test")) == ["198.51.100.7"]
        with proxy.tcp() as sock:  # where nobody forges, the server has answered something else
            assert rcode(ask_tcp(sock, make("unknown.test"))) == dns.rcode.SERVFAIL


def foreign(query: bytes) -> list[bytes]:
    """Messages that do not answer the question."""
    forged = reply(query, "@ 77 A 203.0.113.66")
    wrong_id = bytes([forged[0] ^ 1]) + forged[1:]
    wrong_question = query[:2] + reply(make("other.test"), "@ 77 A 203.0.113.66")[2:]
    wrong_type = query[:2] + reply(make("unknown.test", "AAAA"), "@ 77 AAAA 2001:db8::66")[2:]
    no_response = query[:2] + b"\x01\x00" + forged[4:]
    return [wrong_id, wrong_id[:20], wrong_question, wrong_type, no_response]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 9])
def test_a_header_alone_is_an_answer(tmp_path: Path, code: int) -> None:
    """Servers refuse so."""

    def answer(query: bytes, tcp: bool) -> bytes:
        return query[:2] + header(0x8180 | code, 0, 0, 0, 0)[2:]

    with upstream(answer) as server, running(tmp_path, *server.option, *NEVER) as proxy:
        query = make("unknown.test")
        assert proxy.raw(query) == answer(query, False)
        with proxy.tcp() as sock:
            assert ask_tcp(sock, query) == answer(query, True)


A_RECORD = b"\xc0\x0c\0\1\0\1\0\0\0\x4d\0\4\xc6\x33\x64\7"
BROKEN = {
    "nothing": lambda q: b"",
    "four bytes": lambda q: q[:4],
    "counts beyond the header": lambda q: q[:2] + header(0x8180, 1, 0, 0, 0)[2:],
    "nine records promised": lambda q: q[:2] + header(0x8180, 1, 9, 0, 0)[2:] + q[12:],
    "one of two records": lambda q: q[:2] + header(0x8180, 1, 2, 0, 0)[2:] + q[12:] + A_RECORD,
    "a record cut": lambda q: q[:2] + header(0x8180, 1, 1, 0, 0)[2:] + q[12:] + A_RECORD[:-1],
    "a question cut": lambda q: q[:2] + header(0x8180, 1, 0, 0, 0)[2:] + q[12:-1],
    "three bytes of address": lambda q: (
        q[:2] + header(0x8180, 1, 1, 0, 0)[2:] + q[12:] + A_RECORD[:10] + b"\0\3" + A_RECORD[12:-1]
    ),
    "a pointer forward": lambda q: q[:2] + header(0x8180, 1, 1, 0, 0)[2:] + q[12:] + b"\xc0\x40" + A_RECORD[2:],
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_never_handed_on(tmp_path: Path, what: str) -> None:
    def broken(query: bytes, tcp: bool) -> bytes:
        return BROKEN[what](query)

    with upstream(broken) as bad, upstream(known) as good:
        with running(tmp_path, *bad.option, *good.option, *NEVER) as proxy:
            for _ in range(8):
                assert addresses(proxy.udp("unknown.test")) == ["198.51.100.7"]
                with proxy.tcp() as sock:
                    assert rcode(ask_tcp(sock, make("unknown.test"))) == dns.rcode.NOERROR
        assert {tcp for _, tcp in bad.asked} == {False, True}  # by chance it is never first once in 2**8 times
        with running(tmp_path, *bad.option, *NEVER) as proxy, proxy.tcp() as sock:
            assert proxy.udp("unknown.test").rcode() == dns.rcode.SERVFAIL
            assert rcode(ask_tcp(sock, make("unknown.test"))) == dns.rcode.SERVFAIL


def test_an_answer_from_another_address_is_not_taken(tmp_path: Path) -> None:
    with (
        dnsdriver.dead_port() as port,
        running(tmp_path, "--upstream", f"127.0.0.1:{port}", *FAST) as proxy,
        proxy.client() as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar,
    ):
        client.send(make("unknown.test"))
        time.sleep(0.05)
        for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
            remote = line.split()[2]
            if remote.endswith(f":{port:04X}"):
                liar.sendto(known(make("unknown.test"), False), ("127.0.0.1", int(line.split()[1][-4:], 16)))
        assert rcode(client.recv(4096)) == dns.rcode.SERVFAIL


def test_the_next_server_is_asked_on_a_transport_error_only(tmp_path: Path) -> None:
    def refused(query: bytes, tcp: bool) -> bytes:
        return reply(query, rcode=5)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed, dnsdriver.dead_port() as silent:
        closed.bind(("127.0.0.1", 0))
        gone = closed.getsockname()[1]
        closed.close()  # ICMP says so
        with upstream(known) as server:
            options = [*server.option, "--upstream", f"127.0.0.1:{gone}", "--upstream", f"127.0.0.1:{silent}", *FAST]
            with running(tmp_path, *options) as proxy:
                for _ in range(12):
                    assert addresses(proxy.udp("unknown.test")) == ["198.51.100.7"]
    with (
        upstream(known) as first,
        upstream(refused) as second,
        running(tmp_path, *first.option, *second.option) as proxy,
    ):
        codes = {proxy.udp("unknown.test").rcode() for _ in range(30)}
        assert codes == {dns.rcode.NOERROR, dns.rcode.REFUSED}  # shuffled, and any rcode is an answer


def test_when_all_fail_or_there_are_none_servfail(tmp_path: Path) -> None:
    with dnsdriver.dead_port() as one, dnsdriver.dead_port() as two:
        options = ["--upstream", f"127.0.0.1:{one}", "--upstream", f"127.0.0.1:{two}", *FAST]
        for more in ([], ["--parallel"]):
            with running(tmp_path, *options, *more) as proxy:
                begin = time.monotonic()
                answer = proxy.udp("unknown.test")
                assert answer.rcode() == dns.rcode.SERVFAIL
                assert str(answer.question[0].name) == "unknown.test."
                assert time.monotonic() - begin >= (0.2 if more else 0.4)
                with proxy.tcp() as sock:  # nobody listens there
                    assert rcode(ask_tcp(sock, make("unknown.test"))) == dns.rcode.SERVFAIL
    for more in ([], ["--parallel"]):
        with running(tmp_path, *more) as proxy:
            assert proxy.udp("unknown.test").rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("more", [(), ("--parallel",), ("--cache",)])
@pytest.mark.parametrize("by", ["udp", "tcp"])
def test_a_question_that_comes_back_is_not_asked_again(tmp_path: Path, by: str, more: tuple[str, ...]) -> None:
    port = free_port()
    loops = [part for last in (2, 11) for part in ("--upstream", f"127.0.0.{last}:{port}")]
    everywhere = (f"0.0.0.0:{port}",)

    def ask(proxy: dnsdriver.Proxy) -> dns.message.Message:
        if by == "udp":
            return proxy.udp("unknown.test")
        with proxy.tcp() as sock:
            return dns.message.from_wire(ask_tcp(sock, make("unknown.test")))

    with running(tmp_path, *loops, *more, listen=everywhere) as proxy:
        before = proxy.sockets()
        assert {ask(proxy).rcode() for _ in range(20)} == {dns.rcode.SERVFAIL}
        until(lambda: proxy.sockets() == before, "no socket is left")
        said = proxy.stop().splitlines()
    assert sorted(said) == [
        f"dns-proxy: the server 127.0.0.{last}:{port} leads back to this proxy; name the real DNS server"
        for last in (11, 2)
    ]
    with upstream(known) as server, running(tmp_path, *loops, *server.option, *more, listen=everywhere) as proxy:
        for _ in range(20):
            assert addresses(ask(proxy)) == ["198.51.100.7"]
        assert len(server.asked) == (1 if more == ("--cache",) else 20)


@pytest.mark.parametrize("by", ["udp", "tcp"])
def test_a_question_that_comes_back_was_asked_once(tmp_path: Path, by: str) -> None:
    port, page = free_port(), free_port()
    options = ("--upstream", f"127.0.0.2:{port}", "--metrics", f"127.0.0.1:{page}")
    with running(tmp_path, *options, listen=(f"0.0.0.0:{port}",)) as proxy:
        with proxy.tcp() as sock:
            code = rcode(ask_tcp(sock, make("unknown.test")) if by == "tcp" else proxy.raw(make("unknown.test")))
        assert code == dns.rcode.SERVFAIL
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/metrics") as response:
            lines = response.read().decode().splitlines()
    assert "dns_upstream_requests_total 1" in lines
    assert [line for line in lines if line.startswith("dns_requests_total{")] == [
        f'dns_requests_total{{transport="{by}",rcode="SERVFAIL",qtype="A",source="error"}} 1'
    ]


def test_in_parallel_the_first_reply_wins_even_a_negative_one(tmp_path: Path) -> None:
    held = threading.Event()

    def slow(query: bytes, tcp: bool) -> bytes:
        held.wait(dnsdriver.PATIENCE_S)
        return known(query, tcp)

    def negative(query: bytes, tcp: bool) -> bytes:
        return reply(query, rcode=3)

    with (
        upstream(slow) as one,
        upstream(negative) as two,
        running(tmp_path, *one.option, *two.option, "--parallel") as proxy,
    ):
        assert [proxy.udp("unknown.test").rcode() for _ in range(8)] == [dns.rcode.NXDOMAIN] * 8
        held.set()


def test_what_the_client_cannot_take_is_a_failure(tmp_path: Path) -> None:
    def large(query: bytes, tcp: bool) -> bytes:
        return reply(query, *(f"@ 77 A 198.51.100.{n}" for n in range(100)))

    with upstream(large) as server, running(tmp_path, *server.option) as proxy:
        assert proxy.udp("unknown.test").rcode() == dns.rcode.SERVFAIL
        assert len(addresses(proxy.udp("unknown.test", edns=4096))) == 100
        with proxy.tcp() as sock:
            assert len(addresses(dns.message.from_wire(ask_tcp(sock, make("unknown.test"))))) == 100


def test_a_flood_of_unknown_names_is_bounded_and_local_names_are_served_meanwhile(tmp_path: Path) -> None:
    with (
        dnsdriver.dead_port() as port,
        running(tmp_path, "--upstream", f"127.0.0.1:{port}", "--timeout-ms", "700") as proxy,
    ):
        with proxy.client() as sock:
            sock.setblocking(False)
            counted = 0
            for n in range(4000):
                sock.send(make(f"n{n}.unknown.test"))
                counted = max(counted, proxy.sockets()) if n % 1000 == 999 else counted
            assert addresses(proxy.udp("api.example.com")) == ["240.240.0.1"]
        assert 100 < counted <= 2100
        until(lambda: proxy.sockets() < 10, "every upstream socket is closed again")


# ---- TCP


def test_many_queries_on_one_connection_in_one_piece_and_in_crumbs(tmp_path: Path) -> None:
    with upstream(known) as server, running(tmp_path, *server.option) as proxy, proxy.tcp() as sock:
        names = [("api.example.com", "240.240.0.1"), ("unknown.test", "198.51.100.7")] * 50
        whole = b"".join(len(q).to_bytes(2, "big") + n.to_bytes(2, "big") + q[2:]
                         for n, (name, _) in enumerate(names) for q in [make(name)])  # fmt: skip
        sock.sendall(whole)
        got = {}
        for _ in names:
            message = dns.message.from_wire(read_tcp(sock))
            got[message.id] = addresses(message)
        assert got == {n: [ip] for n, (_, ip) in enumerate(names)}
        query = make("api.example.com")
        for byte in len(query).to_bytes(2, "big") + query:
            sock.sendall(bytes([byte]))
        assert rcode(read_tcp(sock)) == dns.rcode.NOERROR


def test_a_client_that_sent_its_last_still_gets_its_answers(tmp_path: Path) -> None:
    with upstream(known) as server, running(tmp_path, *server.option) as proxy, proxy.tcp() as sock:
        for name in ("unknown.test", "api.example.com"):
            query = make(name)
            sock.sendall(len(query).to_bytes(2, "big") + query)
        sock.shutdown(socket.SHUT_WR)
        assert sorted(addresses(dns.message.from_wire(read_tcp(sock)))[0] for _ in range(2)) == [
            "198.51.100.7",
            "240.240.0.1",
        ]
        assert read_tcp(sock) == b""


def test_connections_are_bounded_and_the_longest_idle_one_goes(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        sockets = [proxy.tcp() for _ in range(256)]
        ask_tcp(sockets[0], make("api.example.com"))  # no longer the one that idled longest
        more = proxy.tcp()
        assert rcode(ask_tcp(more, make("api.example.com"))) == dns.rcode.NOERROR
        assert sockets[1].recv(1) == b""
        assert rcode(ask_tcp(sockets[0], make("api.example.com"))) == dns.rcode.NOERROR
        for sock in [*sockets, more]:
            sock.close()
        until(lambda: proxy.sockets() <= 2, "connections of the gone are closed")


def test_a_client_that_takes_nothing_costs_a_bounded_amount(tmp_path: Path) -> None:
    table = {"table": {"large.test": {"ips": [f"10.{a}.{b}.1" for a in range(16) for b in range(250)]}}}
    with running(tmp_path, table=table) as proxy, proxy.tcp() as sock:
        before = proxy.rss_mb()
        query = make("large.test")
        sock.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 50_000_000:
                sent += sock.send((len(query).to_bytes(2, "big") + query) * 100)
        assert addresses(proxy.udp("large.test", edns=1232))  # others are served
        assert proxy.rss_mb() < before + 30


def test_every_address_has_its_turn_in_answers_that_are_cut(tmp_path: Path) -> None:
    table = {"table": {"large.test": {"ips": [f"10.0.0.{n}" for n in range(64)]}}}
    with running(tmp_path, table=table) as proxy:
        query = make("large.test")
        seen: set[str] = set()
        for _ in range(60):  # by chance one is missing once in 10**14 times
            message = dns.message.from_wire(proxy.raw(query))
            assert dnsdriver.is_truncated(message)
            seen |= set(addresses(message))
        assert len(seen) == 64


def test_an_answer_is_no_longer_than_a_datagram_can_be(tmp_path: Path) -> None:
    table = {"table": {"huge.test": {"ips": [f"10.0.{a}.{b}" for a in range(20) for b in range(250)]}}}
    with running(tmp_path, table=table) as proxy:
        message = proxy.udp("huge.test", edns=65_535)
        assert dnsdriver.is_truncated(message)
        assert len(addresses(message)) > 4000


def test_a_version_of_edns_that_is_not_ours(tmp_path: Path) -> None:
    with upstream(known) as server, running(tmp_path, *server.option) as proxy:
        for name, wanted in (("api.example.com", dns.rcode.BADVERS), ("unknown.test", dns.rcode.NOERROR)):
            query = dns.message.make_query(name, "A", use_edns=1)
            for _ in range(2):  # nor is such an answer kept ready
                message = dns.message.from_wire(proxy.raw(query.to_wire()))
                assert message.rcode() == wanted
        assert message.question == query.question
        answer = dns.message.from_wire(proxy.raw(dns.message.make_query("api.example.com", "A", use_edns=7).to_wire()))
        assert (answer.edns, answer.answer) == (0, [])  # the version that is ours
        assert len(server.asked) == 2
        assert dns.message.from_wire(server.asked[0][0]).edns == 1  # passed on as it came


# ---- bad input


def header(flags: int, *counts: int) -> bytes:
    return b"\x12\x34" + flags.to_bytes(2, "big") + b"".join(n.to_bytes(2, "big") for n in counts)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dnsdriver.Proxy]:
    """One proxy for the cases below: what one of them breaks, the next one sees."""
    with running(tmp_path_factory.mktemp("shared")) as proxy:
        yield proxy


QUESTION = b"\3api\7example\3com\0\0\1\0\1"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (header(0x0100, 1, 0, 0, 0) + QUESTION[:-3], 1),  # cut short
        (header(0x0100, 1, 0, 0, 1) + QUESTION, 1),  # a record is promised and not there
        (header(0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", 1),  # a pointer to itself
        (header(0x0100, 1, 0, 0, 1) + QUESTION + b"\xc0\x21\0\1\0\1\0\0\0\0\0\0", 1),  # and in a record
        (header(0x0100, 1, 0, 0, 0) + b"\x40api\0\0\1\0\1", 1),  # an unknown kind of label
        (header(0x0100, 1, 0, 0, 0) + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 3 + b"\0\0\1\0\1", 1),  # 257 bytes
        (header(0x0100, 1, 0, 0, 2) + QUESTION + (b"\0\0\x29\x04\xd0" + b"\0" * 6) * 2, 1),  # two OPT records
        (header(0x0100, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF) + QUESTION, 1),
        (header(0x0100, 0, 0, 0, 0), 1),  # no question
        (header(0x2900, 1, 0, 0, 0) + QUESTION, 4),  # UPDATE
        (header(0x2100, 1, 0, 0, 0) + QUESTION, 4),  # NOTIFY
        (header(0x1000, 0, 0, 0, 0), 4),  # STATUS
        (header(0x0100, 1, 0, 0, 0) + b"\0\0\1\0\1", 2),  # the root: unknown, and no upstream
        (header(0x0100, 1, 0, 0, 0) + QUESTION[:-1] + b"\3", 2),  # class CH: likewise
    ],
)
def test_bad_messages_get_the_rcode_they_deserve(shared: dnsdriver.Proxy, message: bytes, code: int) -> None:
    got = shared.raw(message)
    assert rcode(got) == code
    assert got[:2] == message[:2]
    assert got[2] & 0x80
    with shared.tcp() as sock:
        assert rcode(ask_tcp(sock, message)) == code


@pytest.mark.parametrize("message", [b"", b"x", header(0x0100, 1, 0, 0, 0)[:11], header(0x8180, 1, 0, 0, 0) + QUESTION])
def test_what_must_not_be_answered_is_dropped(shared: dnsdriver.Proxy, message: bytes) -> None:
    with shared.client() as sock, shared.tcp() as stream:
        sock.send(message)
        query = make("api.example.com")
        sock.send(query)
        assert sock.recv(4096)[:2] == query[:2]  # the first answer is to the second
        stream.sendall(len(message).to_bytes(2, "big") + message)
        assert read_tcp(stream) == b""


def test_oversized_and_random_datagrams_do_no_harm(shared: dnsdriver.Proxy) -> None:
    with shared.client() as sock:
        for size in (512, 4096, 4097, 60_000):
            sock.send(os.urandom(size))
            sock.send(b"\0\0\1\0\0\1\0\0\0\0\0\0" + QUESTION + b"\0" * size)
        assert addresses(shared.udp("api.example.com")) == ["240.240.0.1"]
