"""The whole without a compiler of its own: what comes into force, when, and what a fault leaves as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from serverdriver import Peer, Serving, assignment, cluster, listener, until

from meshdns.core import errors
from meshdns.istio import reader
from meshdns.istio.nametable import Name
from meshdns.istio.outbound import Conflict
from meshdns.istio.records import Record
from meshdns.istio.registry import Registry
from meshdns.xds import announcements, authority, command, state, status
from meshdns.xds.announcements import Names, Sinks
from meshdns.xds.authority import Certificates
from meshdns.xds.encoding import CDS, EDS, LDS, SDS
from meshdns.xds.namefiles import NameFiles
from meshdns.xds.probes import Probe
from meshdns.xds.server import Node
from meshdns.xds.state import Compiled, State

NOW_S = 1_800_000_000.0
SERVICE = """\
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: {ip}, ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}, {{addresses: [127.0.0.2]}}]
"""
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {name: pod-1, namespace: shop}
status: {podIP: 127.0.0.1}
"""
ENTRY = """\
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec: {{hosts: [{name}.example.com], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}
"""


def compiler(model: Registry) -> Callable[[Node], Compiled]:
    """A cluster per service with its ready endpoints, and a listener; one named `broken` cannot be compiled."""

    def compile_one(node: Node) -> Compiled:
        if "refused" in node.metadata:
            raise errors.InputError("this sidecar says nothing of use", place=node.id)
        clusters, endpoints, listeners = {}, {}, {}
        for service in model.services:
            if service.name == "broken":
                raise KeyError("broken")
            if service.name == "odd":
                clusters["odd"] = {"name": "odd", "no_such_field": 1}
                continue
            clusters[service.host] = cluster(service.host)
            listeners[service.host] = listener(service.host, 80, "80")
            ends = [one.address for one in service.endpoints if one.ready]
            port = next((one.port("http") for one in service.endpoints), 80)
            endpoints[service.host] = assignment(service.host)
            endpoints[service.host]["endpoints"] = [
                {"lb_endpoints": assignment("", port, host=end)["endpoints"][0]["lb_endpoints"]} for end in ends
            ]
        conflicts = [Conflict("0.0.0.0_80", "first", one.host, "so it is") for one in model.services[1:]]
        return Compiled({CDS: clusters, EDS: endpoints, LDS: listeners}, 1, tuple(conflicts))

    return compile_one


def identify(_: Registry, node: Node) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{node.id.rpartition('/')[2]}"


def yaml(*names: str, entries: tuple[str, ...] = (), port: int = 8080) -> Any:
    text = "".join(SERVICE.format(name=name, ip=f"10.96.1.{ord(name[0])}", port=port) for name in names)
    return reader.parse({"mesh.yaml": text + POD + "".join(ENTRY.format(name=name) for name in entries)})


@contextlib.asynccontextmanager
async def plane(
    folder: Path | None = None,
    *,
    life_s: float = 3600.0,
    probe: Probe | None = None,
    names: Path | None = None,
    identify_: Callable[[Registry, Node], str] = identify,
) -> AsyncIterator[tuple[State, Serving]]:
    made = State(
        compiler,
        identify_,
        Certificates(authority.make(NOW_S), life_s),
        Sinks(NameFiles([names] if names else [])),
        folder=folder,
        probe=probe,
    )
    served = Serving(made.server, await made.server.start("127.0.0.1:0"), [])
    task = asyncio.create_task(made.run())
    try:
        yield made, served
    finally:
        for channel in served.channels:
            await channel.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def in_force(made: State, number: int) -> None:
    await until(lambda: made.to_json()["configuration"]["number"] == number, f"configuration {number} in force")


async def faulty(made: State, *words: str) -> None:
    def told() -> bool:
        return all(word in made.to_json()["configuration"]["error"] for word in words)

    await until(told, f"an error with {words}")


async def clusters(peer: Peer) -> set[str]:
    """The names in the next answer."""
    message = await peer.read()
    await peer.accept(message)
    return {one.name.partition(".")[0] for one in message.resources}


def test_a_sidecar_may_come_before_the_first_configuration() -> None:
    async def scenario() -> None:
        async with plane() as (made, served):
            peer = served.peer()
            await peer.ask(CDS)
            await until(lambda: len(made.server.nodes()) == 1, "the sidecar came")
            assert not made.ready
            made.loaded(yaml("web"))
            assert await clusters(peer) == {"web"}
            assert made.ready

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: yaml("web", "broken"), ("KeyError", "please report")),
        (lambda: yaml("web", "odd"), ("CDS resource odd", "no_such_field")),
    ],
)
def test_what_cannot_be_compiled_changes_nothing_for_anybody(
    tmp_path: Path, bad: Callable[[], Any], words: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        names = tmp_path / "names"
        async with plane(tmp_path, names=names) as (made, served):
            made.loaded(yaml("web"))
            first, second = served.peer("shop/a"), served.peer("shop/b")
            for peer in (first, second):
                await peer.ask(CDS)
                assert await clusters(peer) == {"web"}
            await until(lambda: not made.to_json()["names_pending"], "names are told")
            before = (names / "names.json").read_bytes()
            made.loaded(bad())
            await faulty(made, *words)
            assert (names / "names.json").read_bytes() == before
            third = served.peer("shop/c")  # who comes now gets what is in force
            await third.ask(CDS)
            assert await clusters(third) == {"web"}
            made.loaded(yaml("web", "x"))
            assert await clusters(first) == await clusters(second) == {"x"}
            assert made.to_json()["configuration"]["error"] == ""

    asyncio.run(scenario())


def test_yaml_that_cannot_be_read_leaves_what_is_in_force_and_is_shown() -> None:
    async def scenario() -> None:
        async with plane() as (made, served):
            made.loaded(yaml("web"))
            await in_force(made, 1)
            made.failed("mesh.yaml: document 1, line 2: no")
            shown = made.to_json()["configuration"]
            assert (shown["number"], shown["error"]) == (1, "mesh.yaml: document 1, line 2: no")
            peer = served.peer()
            await peer.ask(CDS)
            assert await clusters(peer) == {"web"}

    asyncio.run(scenario())


def test_a_change_of_readiness_reaches_endpoints_and_names_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(names=tmp_path, probe=Probe("tcp", period_s=0.02, timeout_s=0.5, failures=1)) as (
            made,
            served,
        ):
            pod = await asyncio.start_server(lambda _, write: write.close(), "127.0.0.1", 0)
            port = pod.sockets[0].getsockname()[1]
            made.loaded(yaml("web", "other", port=port))
            peer = served.peer()
            await peer.ask(CDS)
            assert await clusters(peer) == {"web", "other"}
            await peer.ask(EDS, "web.shop.svc.cluster.local")
            first = await peer.read()
            assert b"127.0.0.1" in first.resources[0].resource.value
            assert b"127.0.0.2" in first.resources[0].resource.value  # no pod: ready, as its slice says
            await peer.accept(first)
            pod.close()
            await pod.wait_closed()
            change = await peer.read()
            assert change.type_url == EDS
            assert [one.name for one in change.resources] == ["web.shop.svc.cluster.local"]
            assert b"127.0.0.1" not in change.resources[0].resource.value
            assert made.to_json()["probes"]["127.0.0.1"]["ready"] is False

    asyncio.run(scenario())


def test_virtual_ips_survive_a_restart_and_other_entries(tmp_path: Path) -> None:
    async def first() -> dict[str, str]:
        async with plane(tmp_path, names=tmp_path / "names") as (made, _):
            made.loaded(yaml("web", entries=("b", "c")))
            await in_force(made, 1)
            return dict(made.to_json()["virtual_ips"])

    async def second() -> dict[str, str]:
        async with plane(tmp_path, names=tmp_path / "names") as (made, _):
            made.loaded(yaml("web", entries=("a", "c")))
            await in_force(made, 1)
            await until((tmp_path / "names" / "names.json").exists, "names written")
            return dict(made.to_json()["virtual_ips"])

    before, after = asyncio.run(first()), asyncio.run(second())
    assert after["shop/c/c.example.com"] == before["shop/c/c.example.com"]
    assert after["shop/a/a.example.com"] not in before.values()
    table = json.loads((tmp_path / "names" / "names.json").read_text())["table"]
    assert table["c.example.com"]["ips"] == [after["shop/c/c.example.com"]]


def test_virtual_ips_that_cannot_be_kept_are_not_given_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = tmp_path / "state"
        async with plane(state) as (made, served):
            made.loaded(yaml("web"))
            await in_force(made, 1)
            state.write_text("a file where the folder should be")
            made.loaded(yaml("web", entries=("a",)))
            await until(lambda: "cannot be written" in made.to_json()["configuration"]["fault"], "a fault")
            peer = served.peer()  # who comes meanwhile gets what is in force
            await peer.ask(CDS)
            assert await clusters(peer) == {"web"}
            assert made.to_json()["virtual_ips"] == {}
            state.unlink()
            await in_force(made, 2)  # without being written again
            assert list(made.to_json()["virtual_ips"]) == ["shop/a/a.example.com"]
            assert made.to_json()["configuration"]["fault"] == ""

    asyncio.run(scenario())


def table(folder: Path) -> set[str]:
    """The names that DNS proxies know."""
    return set(json.loads((folder / "names.json").read_text())["table"])


async def follower(served: Serving) -> Peer:
    """A sidecar that takes clusters and listeners."""
    peer = served.peer()
    for type_url in (CDS, LDS):
        await peer.ask(type_url)
        await peer.accept(await peer.read())
    return peer


async def listeners(peer: Peer) -> Any:
    """The next answer with listeners, not accepted; all before it is."""
    while (message := await peer.read()).type_url != LDS:
        await peer.accept(message)
        if message.type_url == CDS:
            await peer.ask(EDS, *(one.name for one in message.resources))
    return message


WEB, ENTERED = "web.shop.svc.cluster.local", "a.example.com"


def test_a_name_is_told_when_its_listener_is_accepted_and_forgotten_before_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "PATIENCE_S", 1000.0)

    async def scenario() -> None:
        async with plane(names=tmp_path) as (made, served):
            made.loaded(yaml("web"))
            peer = await follower(served)
            await until(lambda: not made.to_json()["names_pending"], "the first names")
            made.loaded(yaml("web", entries=("a",)))
            message = await listeners(peer)
            await in_force(made, 2)
            assert table(tmp_path) == {WEB}  # nobody has told so far that the listener is there
            assert made.to_json()["names_pending"]
            made.loaded(yaml("web", entries=("a",), port=8081))  # another change does not tell it either
            await in_force(made, 3)
            assert table(tmp_path) == {WEB}
            await peer.accept(message)
            await until(lambda: table(tmp_path) == {WEB, ENTERED}, "the name is told")
            await until(lambda: not made.to_json()["names_pending"], "all is told")
            made.loaded(yaml("web"))
            message = await listeners(peer)
            assert message.removed_resources == [ENTERED]
            assert table(tmp_path) == {WEB}

    asyncio.run(scenario())


def test_a_sidecar_that_accepts_nothing_holds_names_up_for_a_while_only_and_endpoints_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with plane(names=tmp_path, probe=Probe("tcp", period_s=0.02, timeout_s=0.5, failures=1)) as (
            made,
            served,
        ):
            pod = await asyncio.start_server(lambda _, write: write.close(), "127.0.0.1", 0)
            port = pod.sockets[0].getsockname()[1]
            made.loaded(yaml("web", port=port))
            peer = await follower(served)
            await peer.ask(EDS, WEB)
            await peer.accept(await peer.read())
            monkeypatch.setattr(announcements, "PATIENCE_S", 1000.0)
            made.loaded(yaml("web", entries=("a",), port=port))
            await listeners(peer)  # and no word about them
            pod.close()
            await pod.wait_closed()
            change = await peer.read()
            assert change.type_url == EDS
            assert b"127.0.0.1" not in change.resources[0].resource.value
            assert made.to_json()["names_pending"]
            assert table(tmp_path) == {WEB}
            monkeypatch.setattr(announcements, "PATIENCE_S", 0.01)
            made.loaded(yaml("web", entries=("a", "b"), port=port))
            await until(lambda: table(tmp_path) == {WEB, ENTERED, "b.example.com"}, "told all the same")

    asyncio.run(scenario())


def test_between_two_states_a_name_that_stays_keeps_the_addresses_that_stay() -> None:
    def known(**ips: str) -> Names:
        table = {host: Name(tuple(those.split()), "Kubernetes") for host, those in ips.items()}
        return Names(table, [Record(f"{host}.", "A", ip) for host, name in table.items() for ip in name.ips])

    before, after = known(gone="1", moved="2", some="3 4", same="5"), known(new="6", moved="7", some="4 8", same="5")
    assert before.between(after).addresses == known(moved="2", some="4", same="5").addresses


def test_a_name_table_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "RETRY_S", 0.05)

    async def scenario() -> None:
        names = tmp_path / "names"
        names.write_text("a file where the folder should be")
        async with plane(names=names) as (made, _):
            made.loaded(yaml("web"))
            await until(lambda: made.to_json()["name_tables"][str(names)]["error"] != "", "an error is shown")
            names.unlink()
            await until(lambda: not made.to_json()["names_pending"], "told")
            assert table(names) == {WEB}
            assert made.to_json()["name_tables"][str(names)]["error"] == ""

    asyncio.run(scenario())


def test_a_configuration_is_counted_when_every_sidecar_is_offered_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the number and then for sidecars to accept must not find them content with the old."""

    async def scenario() -> None:
        async with plane() as (made, served):
            made.loaded(yaml("web"))
            await follower(served)
            await in_force(made, 1)
            publish, numbers = made.server.publish, []

            def counting(*given: Any) -> None:
                numbers.append(made.to_json()["configuration"]["number"])
                publish(*given)

            monkeypatch.setattr(made.server, "publish", counting)
            made.loaded(yaml("web", "x"))
            await in_force(made, 2)
            assert numbers == [1]

    asyncio.run(scenario())


def test_services_that_lose_their_listener_are_counted_and_named() -> None:
    async def scenario() -> None:
        async with plane() as (made, served):
            made.loaded(yaml("api", "web"))
            for name in ("shop/a", "shop/b"):  # one conflict, however many sidecars have it
                peer = served.peer(name)
                await peer.ask(CDS)
                await clusters(peer)
            shown = made.to_json()["conflicts"]
            lost = {"mode": 1, "listener": "0.0.0.0_80", "loser": WEB, "winner": "first", "why": "so it is"}
            assert shown == {"count": 1, "first": [lost]}

    asyncio.run(scenario())


def test_a_sidecar_that_cannot_be_compiled_for_hinders_no_other() -> None:
    async def scenario() -> None:
        async with plane() as (made, served):
            made.loaded(yaml("web"))
            bad, good = served.peer("shop/bad"), served.peer("shop/good")
            bad.first = False
            await bad.ask(CDS, node={"id": "shop/bad", "metadata": {"refused": True}})
            await good.ask(CDS)
            assert await clusters(good) == {"web"}
            await until(lambda: "shop/bad" in made.to_json()["sidecar_faults"], "the fault is shown")
            assert made.to_json()["configuration"]["error"] == ""

    asyncio.run(scenario())


def test_certificates_are_pushed_again_before_they_end_and_nothing_else_is() -> None:
    async def scenario() -> None:
        async with plane(life_s=1.0) as (made, served):
            made.loaded(yaml("web"))
            peer = served.peer()
            await peer.ask(CDS)
            await clusters(peer)
            await peer.ask(SDS, "default", "ROOTCA")
            message = await peer.read()
            assert [one.name for one in message.resources] == ["ROOTCA", "default"]
            for _ in range(2):
                await peer.accept(message)
                message = await peer.read()
                assert message.type_url == SDS
                assert [one.name for one in message.resources] == ["default"]
            shown = made.to_json()
            assert shown["certificates"]["shop/web-1"]["rotations"] >= 2
            assert "PRIVATE KEY" not in json.dumps(shown)

    asyncio.run(scenario())


def test_a_sidecar_whose_pod_is_gone_gets_no_more_certificates_and_keeps_nobody_busy() -> None:
    async def scenario() -> None:
        rounds = 0
        named = {"shop/web-1", "shop/web-2"}

        def identify_named(_: Registry, node: Node) -> str:
            nonlocal rounds
            rounds += 1
            return f"spiffe://cluster.local/ns/shop/sa/{node.id}" if node.id in named else ""

        async with plane(life_s=0.4, identify_=identify_named) as (made, served):
            made.loaded(yaml("web"))
            for name in sorted(named):
                peer = served.peer(name)
                await peer.ask(CDS)
                await clusters(peer)
            await until(lambda: len(made.to_json()["certificates"]) == 2, "both have one")
            named.discard("shop/web-2")
            made.loaded(yaml("web", "x"))
            await until(lambda: list(made.to_json()["certificates"]) == ["shop/web-1"], "one is forgotten")
            before = rounds
            await asyncio.sleep(1.0)
            assert rounds - before < 40  # five rotations, not a loop over one that is due for ever
            assert "no Pod of this name" in made.to_json()["sidecar_faults"]["shop/web-2"]

    asyncio.run(scenario())


def test_a_certificate_that_cannot_be_made_hinders_no_other_sidecar_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "RETRY_S", 0.1)

    async def scenario() -> None:
        broken = True

        good = Certificates.of

        def of(self: Certificates, node_id: str, identity: str, now_s: float) -> authority.Certificate:
            if broken and node_id == "shop/a":
                raise ValueError("no key")
            return good(self, node_id, identity, now_s)

        async with plane() as (made, served):
            with monkeypatch.context() as patched:
                patched.setattr(Certificates, "of", of)
                made.loaded(yaml("web"))
                first, second = served.peer("shop/a"), served.peer("shop/b")
                for peer in (first, second):
                    await peer.ask(CDS)
                assert await clusters(second) == {"web"}
                await until(lambda: "no key" in made.to_json()["configuration"]["fault"], "the fault is shown")
                broken = False
                assert await clusters(first) == {"web"}
                await until(lambda: made.to_json()["configuration"]["fault"] == "", "in order")

    asyncio.run(scenario())


def test_the_page_tells_everything_and_whether_it_is_ready() -> None:
    async def scenario() -> None:
        async with plane() as (made, _):
            page = await status.serve("127.0.0.1", 0, made.to_json, lambda: made.ready)
            port = page.sockets[0].getsockname()[1]
            assert (await asyncio.to_thread(_get, port, "/ready"))[0] == 503
            made.loaded(yaml("web"))
            await in_force(made, 1)
            assert (await asyncio.to_thread(_get, port, "/ready"))[0] == 200
            assert (await asyncio.to_thread(_get, port, "/secrets"))[0] == 404
            code, body = await asyncio.to_thread(_get, port, "/status")
            assert code == 200
            assert json.loads(body)["configuration"]["resources"] == {"Service": 1, "EndpointSlice": 1, "Pod": 1}
            page.close()

    asyncio.run(scenario())


def _get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--listen", "nowhere"], 2, "this is not ADDR:PORT"),
        (["--status", "127.0.0.1"], 2, "this is not ADDR:PORT"),
        (["--probe", "udp:1"], 2, "this is not a probe"),
        (["--dns", "127.0.0.1:53", "--dns-key", "/nonexistent"], 2, "give what `tsig-keygen` prints"),
        (["--state", "/dev/null/state"], 7, "the authority's"),
        (["--listen", "192.0.2.1:1", "--status", "127.0.0.1:0"], 3, "cannot listen there for sidecars"),
        (["--listen", "127.0.0.1:0", "--status", "192.0.2.1:1"], 3, "cannot listen there for status"),
    ],
)
def test_what_cannot_be_started_says_why_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    assert command.main(["--mesh", str(tmp_path), *options]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
