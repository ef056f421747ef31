"""The cluster DNS: what changes are made of which difference, and a real BIND that takes or refuses them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.tsig
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serverdriver import until

from meshdns.core import errors
from meshdns.istio.records import Record
from meshdns.lab.compose import engine
from meshdns.xds import nameserver
from meshdns.xds.nameserver import NameServer, Target, batches, key

KEY = 'key "meshdns" {\n\talgorithm hmac-sha256;\n\tsecret "c2VjcmV0c2VjcmV0c2VjcmV0";\n};\n'
_RECORDS = st.sets(
    st.builds(Record, st.sampled_from(["a.", "b.", "c."]), st.just("A"), st.sampled_from(["1", "2", "3", "4"]))
)


@given(_RECORDS, _RECORDS, st.integers(1, 6))
def test_batches_are_the_difference_and_no_name_is_split(old: set[Record], new: set[Record], size: int) -> None:
    have, seen = set(old), set()
    for removed, added in batches(old - new, new - old, size):
        names = {one.name for one in (*removed, *added)}
        assert not names & seen
        seen |= names
        have = (have - set(removed)) | set(added)
    assert have == new


def test_a_key_is_read_as_bind_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    assert key(file) == dns.tsig.Key("meshdns", "c2VjcmV0c2VjcmV0c2VjcmV0", "hmac-sha256")


@pytest.mark.parametrize("text", ["", "key x {};", KEY.replace("c2Vj", "!"), KEY.replace("algorithm", "alg"), "\xff"])
def test_what_is_not_a_key_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(errors.InputError, match="give what `tsig-keygen` prints") as caught:
        key(file)
    assert str(file) in str(caught.value)


def test_names_of_somebody_else_are_not_written_either() -> None:
    made = NameServer(Target("127.0.0.1", 53, keep=("answer-*",)))
    made.want([WEB, replace(WEB, name="answer-odd.shop.svc.cluster.local.")])
    assert made.to_json()["wanted"] == 1


def test_it_ends_when_it_is_cancelled_in_the_moment_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def transfer(_: NameServer) -> set[Record]:
            return set()

        async def asked(_: NameServer) -> int:
            return await asyncio.wait_for(answer, 5)  # as dnspython does

        monkeypatch.setattr(NameServer, "_transfer", transfer)
        monkeypatch.setattr(NameServer, "_asked_serial", asked)
        made = NameServer(Target("127.0.0.1", 53))
        task = asyncio.create_task(made.run())
        made.want([])
        await until(lambda: made.to_json()["held"] == 0, "the answer is waited for")
        await asyncio.sleep(0)
        answer.set_result(1)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        assert done

    asyncio.run(scenario())


# ---- against BIND

NETS = tuple(f"198.18.{third}.0/24" for third in range(241, 254))  # one of these, inside the benchmarking range
ZONE = """\
$TTL 30
@ IN SOA ns.dns hostmaster 1 7200 1800 86400 30
@ IN NS ns.dns
ns.dns IN A 10.96.0.10
stale.shop.svc IN A 10.96.9.9
answer-odd.shop.svc IN A 192.0.2.7
"""
CONFIGURATION = """\
include "/etc/meshdns/key";
options {{ directory "/tmp"; pid-file none; session-keyfile "/tmp/session.key"; listen-on port 5300 {{ any; }};
  listen-on-v6 {{ none; }}; recursion no; allow-query {{ any; }}; }};
controls {{ }};
zone "cluster.local" {{
  type primary; file "/tmp/cluster.local.zone";
  {policy}
}};
"""
POLICY = "update-policy { grant meshdns wildcard *.svc.cluster.local. A AAAA SRV; }; allow-transfer { key meshdns; };"
WEB = Record("web.shop.svc.cluster.local.", "A", "10.96.1.10")
API = Record("api.shop.svc.cluster.local.", "A", "10.96.1.11")
SRV = Record("_http._tcp.web.shop.svc.cluster.local.", "SRV", "0 100 80 web.shop.svc.cluster.local.")


@dataclass
class Bind:
    name: str
    address: str
    folder: Path

    def target(self, **how: Any) -> Target:
        return replace(Target(self.address, 5300, key(self.folder / "key"), keep=("answer-*",)), **how)

    def answer(self, name: str, rtype: str = "A") -> list[str]:
        query = dns.message.make_query(name, rtype)
        with contextlib.suppress(dns.exception.Timeout):
            reply = dns.query.udp(query, self.address, 1, 5300)
            return sorted(one.to_text() for rrset in reply.answer for one in rrset)
        return ["no answer"]

    def restart(self) -> None:
        """Without what was updated: the zone is the file's again."""
        docker("restart", "-t", "1", self.name)
        end = time.monotonic() + 20
        while self.answer("ns.dns.cluster.local.") != ["10.96.0.10"]:
            assert time.monotonic() < end
            time.sleep(0.05)


def docker(*arguments: str) -> str:
    found = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    name = f"meshdns-test-cp-{uuid.uuid4().hex[:8]}"
    for net in random.sample(NETS, len(NETS)):  # another run of these tests may have one
        with contextlib.suppress(AssertionError):
            docker("network", "create", "--internal", "--subnet", net, name)
            break
    else:
        pytest.fail(f"no subnet of {NETS[0]} to {NETS[-1]} is free")
    try:
        yield name
    finally:
        docker("network", "rm", name)


@contextlib.contextmanager
def bind(network: str, folder: Path, policy: str = POLICY) -> Iterator[Bind]:
    engine.ensure(lambda _: None)
    image = engine.images(lambda _: None, ["dns"]).tags["dns"]
    folder.chmod(0o755)  # the server runs as nobody
    (folder / "key").write_text(KEY)
    (folder / "cluster.local.zone").write_text(ZONE)
    (folder / "named.conf").write_text(CONFIGURATION.format(policy=policy))
    name = f"meshdns-test-cp-{uuid.uuid4().hex[:8]}"
    start = (
        "cp /etc/meshdns/cluster.local.zone /tmp && rm -f /tmp/*.jnl && exec named -g -n 1 -c /etc/meshdns/named.conf"
    )
    docker("run", "-d", "--name", name, "--network", network, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
           "--user", "65534:65534", "-v", f"{folder}:/etc/meshdns:ro", image, "sh", "-c", start)  # fmt: skip
    try:
        address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
        assert address, docker("logs", name)  # it has ended
        made = Bind(name, address, folder)
        end = time.monotonic() + 20
        while made.answer("ns.dns.cluster.local.") != ["10.96.0.10"]:
            assert time.monotonic() < end, docker("logs", name)
            time.sleep(0.05)
        yield made
    finally:
        docker("rm", "-f", name)


@contextlib.asynccontextmanager
async def keeping(target: Target, check_s: float = 0.0) -> AsyncIterator[tuple[NameServer, list[str]]]:
    said: list[str] = []
    made = NameServer(target, said.append, check_s)
    task = asyncio.create_task(made.run())
    try:
        yield made, said
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def current(made: NameServer, count: int) -> bool:
    shown = made.to_json()
    return shown["held"] == shown["wanted"] == count and not shown["error"]


@pytest.mark.testbed
def test_bind_holds_what_is_wanted_and_stale_records_go(network: str, tmp_path: Path) -> None:
    async def scenario(server: Bind) -> None:
        async with keeping(server.target()) as (made, said):
            assert server.answer("stale.shop.svc.cluster.local.") == ["10.96.9.9"]
            made.want([WEB, SRV])
            await until(lambda: current(made, 2), "the first state")
            assert server.answer(WEB.name) == ["10.96.1.10"]
            assert server.answer(SRV.name, "SRV") == [SRV.data]
            assert server.answer("stale.shop.svc.cluster.local.") == []
            assert server.answer("answer-odd.shop.svc.cluster.local.") == ["192.0.2.7"]  # somebody else's
            assert server.answer("ns.dns.cluster.local.") == ["10.96.0.10"]
            before = made.to_json()
            made.want([replace(WEB, data="10.96.1.99"), API, SRV])
            await until(lambda: current(made, 3), "the second state")
            after = made.to_json()
            assert (after["added"] - before["added"], after["removed"] - before["removed"]) == (2, 1)
            assert (after["messages"] - before["messages"], after["transfers"]) == (1, 1)
            assert server.answer(WEB.name) == ["10.96.1.99"]
            assert said == []

    with bind(network, tmp_path) as server:
        asyncio.run(scenario(server))


@pytest.mark.testbed
def test_a_server_that_comes_back_without_the_updates_gets_them_again(network: str, tmp_path: Path) -> None:
    async def scenario(server: Bind) -> None:
        async with keeping(server.target(), check_s=0.2) as (made, said):
            made.want([WEB])
            await until(lambda: current(made, 1), "the first state")
            server.restart()
            await until(lambda: server.answer(WEB.name) == ["10.96.1.10"], "the record is there again")
            await until(lambda: current(made, 1), "in order")
            if said:  # a look while it was down
                assert "see whether the server is up" in said[0]

    with bind(network, tmp_path) as server:
        asyncio.run(scenario(server))


@pytest.mark.testbed
def test_a_server_that_came_back_unnoticed_gets_all_with_the_next_change(network: str, tmp_path: Path) -> None:
    async def scenario(server: Bind) -> None:
        async with keeping(server.target()) as (made, _):
            made.want([WEB])
            await until(lambda: current(made, 1), "the first state")
            server.restart()
            made.want([WEB, API])
            await until(lambda: current(made, 2), "the second state")
            assert server.answer(WEB.name) == ["10.96.1.10"]
            assert server.answer("stale.shop.svc.cluster.local.") == []

    with bind(network, tmp_path) as server:
        asyncio.run(scenario(server))


@pytest.mark.testbed
@pytest.mark.parametrize(
    ("policy", "change", "reason"),
    [
        ("allow-transfer { key meshdns; };", "", "the update was answered with REFUSED; allow the key"),
        ("update-policy { grant meshdns wildcard *.svc.cluster.local. A; };", "transfer", "(allow-transfer)"),
        (POLICY, "secret", "the key is not accepted"),
        (POLICY, "name", "the key is not accepted"),
        (POLICY, "port", "see whether the server is up"),
        (POLICY, "zone", "cluster.test."),
    ],
)
def test_a_refused_update_says_why_and_is_tried_again(
    network: str, tmp_path: Path, policy: str, change: str, reason: str
) -> None:
    if change == "transfer":
        policy += " allow-transfer { none; };"

    async def scenario(server: Bind) -> None:
        secret = {"secret": dns.tsig.Key("meshdns", "d3Jvbmc=", "hmac-sha256"),
                  "name": dns.tsig.Key("other", "c2VjcmV0c2VjcmV0c2VjcmV0", "hmac-sha256")}  # fmt: skip
        how: dict[str, Any] = {"key": secret[change]} if change in secret else {}
        how |= {"port": 5301} if change == "port" else {}
        how |= {"zone": "cluster.test."} if change == "zone" else {}
        async with keeping(server.target(**how)) as (made, said):
            made.want([WEB])
            await until(lambda: made.to_json()["failures_in_a_row"] >= 2, "tried again")
            assert reason in made.to_json()["error"]
            assert f"cluster DNS {server.address}:{'5301' if change == 'port' else '5300'}" in made.to_json()["error"]
            assert len(said) == 1  # once, not at each try

    with bind(network, tmp_path, policy) as server:
        asyncio.run(scenario(server))


@pytest.mark.testbed
def test_updates_go_on_when_the_server_allows_them_again(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nameserver, "LAST_RETRY_S", 0.5)

    async def scenario(server: Bind) -> None:
        async with keeping(server.target()) as (made, said):
            made.want([WEB])
            await until(lambda: "REFUSED" in made.to_json()["error"], "refused")
            (server.folder / "named.conf").write_text(CONFIGURATION.format(policy=POLICY))
            server.restart()
            await until(lambda: current(made, 1), "in order")
            assert server.answer(WEB.name) == ["10.96.1.10"]
            assert said[-1].endswith("is as it should be again")

    with bind(network, tmp_path, "allow-transfer { key meshdns; };") as server:
        asyncio.run(scenario(server))
