"""The conformance suite against this proxy, over the wire; and against Envoy's dns_filter, whose deviations show."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dnsdriver
import pytest

from meshdns.dnsproxy import conformance, differences

SHOWN = {
    "flag-ra",
    "owner-case",
    "wildcard-search",
    "class",
    "compressed",
}  # differences that a case of the suite shows


def answer(query: bytes, tcp: bool) -> bytes:
    """An upstream that knows one name, and says NXDOMAIN to the rest."""
    name = str(dnsdriver.dns.message.from_wire(query).question[0].name).rstrip(".").lower()
    if name == "known.upstream.test":
        return dnsdriver.reply(query, "@ 77 A 198.51.100.7")
    return dnsdriver.reply(query, rcode=3)


@pytest.fixture(scope="module")
def behind() -> Iterator[dnsdriver.Upstream]:
    with dnsdriver.upstream(answer) as server:
        yield server


def world(behind: dnsdriver.Upstream) -> conformance.World:
    return conformance.World(upstream=f"127.0.0.1:{behind.port}")


def test_this_proxy_agrees_but_for_what_is_listed(tmp_path: Path, behind: dnsdriver.Upstream) -> None:
    where = world(behind)
    with dnsdriver.running(tmp_path, *behind.option, table=where.name_table()) as proxy:
        rows = conformance.run(proxy.addresses[0], where)
    assert len(rows) == len(conformance.CASES)
    wrong = {row.id: row.observed for row in rows if not row.agrees}
    assert set(wrong) == SHOWN, wrong
    assert {difference.id for difference in differences.DIFFERENCES} >= SHOWN
    assert wrong["wildcard-search"] == "NOERROR, CNAME a.b.wild.example.com., A 240.240.0.3"
    assert wrong["class"] == "NXDOMAIN, empty"


def test_the_suite_runs_alone(tmp_path: Path) -> None:
    copy = tmp_path / "conformance.py"
    copy.write_bytes((dnsdriver.PACKAGE / "conformance.py").read_bytes())
    given = {"upstream": None, "pod": None, "service": {"name": "api.example.com", "ips": ["240.240.0.1"]}}
    (tmp_path / "world.json").write_text(json.dumps(given))
    with dnsdriver.running(tmp_path) as proxy:
        command = [
            dnsdriver.sys.executable,
            str(copy),
            "--server",
            proxy.addresses[0],
            "--world",
            str(tmp_path / "world.json"),
        ]
        rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seen = {row["id"]: row for row in rows}
    assert seen["udp"]["agrees"]
    assert not {"pod", "forward", "alt-host"} & set(seen)


def test_a_server_that_is_not_there_agrees_with_nothing() -> None:
    with dnsdriver.dead_port() as port:
        where = dataclasses.replace(conformance.World(), headless=None)
        client = conformance.Client(f"127.0.0.1:{port}", 0.01)
        assert not any(
            case.observe(client, where) == case.expected for case in conformance.CASES if case.applies(where)
        )


def dns_filter(where: conformance.World, port: int) -> dict[str, object]:
    """Envoy with the world's names in a dns_filter, as far as it can hold them."""
    domains = [
        {"name": host.name, "answer_ttl": "30s", "endpoint": {"address_list": {"address": list(host.ips)}}}
        for host in where.hosts()
    ]
    kind = "type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig"
    config = {"@type": kind, "stat_prefix": "c", "server_config": {"inline_dns_table": {"virtual_domains": domains}}}
    address = {"socket_address": {"address": "0.0.0.0", "port_value": port, "protocol": "UDP"}}
    listener = {"name": "dns", "address": address,
                "listener_filters": [{"name": "envoy.filters.udp.dns_filter", "typed_config": config}]}  # fmt: skip
    return {"static_resources": {"listeners": [listener]}}


@contextlib.contextmanager
def envoy(where: conformance.World) -> Iterator[str]:
    """Envoy from the testbed's image in a container without a network but its own loopback; yields its name."""
    from meshdns.lab.compose import engine

    engine.ensure(lambda _: None)
    images = engine.images(lambda _: None, ["sidecar"])
    text = json.dumps(dns_filter(where, 5300))
    alone = ["docker", "run", "--detach", "--rm", "--network", "none", "--entrypoint", "envoy"]
    run = [*alone, images["sidecar"], "--config-yaml", text]
    name = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


@pytest.mark.testbed
def test_dns_filter_shows_its_known_deviations() -> None:
    where = conformance.World()
    with envoy(where) as name, inside(name):
        client = conformance.Client("127.0.0.1:5300")
        dnsdriver.until(lambda: client.ask(where.external.name).message is not None, "Envoy answers")
        rows = {row.id: row for row in conformance.run("127.0.0.1:5300", where)}
    assert {row.id for row in rows.values() if row.agrees} >= {"udp", "ttl", "wildcard", "wildcard-longest"}
    assert rows["nodata"].observed == "NXDOMAIN, empty"
    assert rows["case"].observed == "NXDOMAIN, empty"
    assert rows["tcp"].observed.startswith("no TCP")
    assert rows["flag-aa"].observed == "AA=0"
    assert rows["truncated"].observed == "8 records, no TC"
    assert rows["search"].observed == "NXDOMAIN, empty"


@contextlib.contextmanager
def inside(container: str) -> Iterator[None]:
    """This thread in the container's network."""
    import os

    pid = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.Pid}}", container], check=True, capture_output=True, text=True
    ).stdout.strip()
    setns = getattr(os, "setns", None)
    if setns is None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)

        def setns(fd: int, kind: int) -> None:
            if libc.setns(fd, kind):
                raise OSError(ctypes.get_errno(), "setns")

    clone_newnet = 0x40000000
    with Path("/proc/self/ns/net").open() as home, Path(f"/proc/{pid}/ns/net").open() as there:
        setns(there.fileno(), clone_newnet)
        try:
            yield
        finally:
            setns(home.fileno(), clone_newnet)
