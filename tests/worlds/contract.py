"""What every place must do, whoever it is (`lab.place`): tests to be inherited, with a fixture `place` that is up."""

from __future__ import annotations

import pytest

from meshdns.core import errors, resolver
from meshdns.lab import observers, ports
from meshdns.lab.place import Part, Place
from shipped import WORLD

AGENT = ("python3", "-m", "agent")
APP = "client-ip-app"  # nothing rests on it
JOB = {
    "kind": "lookup", "lookup": "wire", "wire": resolver.wire(f"{WORLD.looked_up.host}.", "A", 5, WORLD.search),
    "count": 5,
    "resolver": [WORLD.dns_cluster_ip, 53], "timeout_ms": 2000, "wait": "block",
}  # fmt: skip


def part(place: Place, service: str) -> Part:
    return next(each for each in place.parts() if each.service == service)


class PlaceContract:
    """Inherited by the tests of each place."""

    def test_every_part_is_there_once_and_as_it_must_be(self, place: Place) -> None:
        parts = place.parts()
        services = [each.service for each in parts]
        assert len({each.id for each in parts}) == len(services) == len(set(services))
        pods = {client.pod for client in observers.clients(place)}
        assert {"dns-coredns", "legacy-1", "web-1-istio-proxy", *pods} <= set(services)
        assert {f"{pod}-observer" for pod in pods} <= set(services)
        assert [each.service for each in parts if not each.is_as_it_must_be] == []

    def test_a_program_gets_its_input_and_what_it_prints_comes_back(self, place: Place) -> None:
        given = "a line\n" * 50_000  # more than any buffer on the way
        assert place.exec(APP, ["cat"], timeout_s=30, given=given) == given
        assert place.exec(APP, ["cat"], timeout_s=30) == ""

    def test_a_program_that_fails_or_takes_too_long_is_told_with_its_service(self, place: Place) -> None:
        with pytest.raises(errors.TestbedError, match=f"^{APP}: false failed"):
            place.exec(APP, ["false"], timeout_s=30)
        with pytest.raises(errors.TestbedError, match=f"^{APP}: sleep did not end in 0.5 s"):
            place.exec(APP, ["sleep", "20"], timeout_s=0.5)

    def test_what_is_not_there_is_told_by_its_name(self, place: Place) -> None:
        for ask in (
            lambda: place.exec("nobody", ["true"], timeout_s=5),
            lambda: place.talk("nobody", AGENT),
            lambda: place.talk("nobody", observers.PROGRAM, image="observer"),
            lambda: place.kill("nobody"),
            lambda: place.start("nobody"),
            lambda: place.address("nobody"),
            lambda: place.read("nobody"),
        ):
            with pytest.raises(errors.TestbedError, match=r"^nobody: "):
                ask()
        assert "nobody" not in " ".join(each.service for each in place.parts())

    def test_a_conversation_is_a_line_each_way_and_the_bytes_that_the_line_announces(self, place: Place) -> None:
        with place.talk("client-plain-app", AGENT, env={"RES_OPTIONS": "ndots:5"}) as agent:
            assert agent.ask({"kind": "ping"}, 30)[0]["pong"] is True
            for _ in range(2):
                header, body = agent.ask(JOB, 30)
                assert (header["rows"], len(body)) == (5, header["nbytes"])
                assert header["strings"]["address"] == [WORLD.looked_up.cluster_ip]
            with pytest.raises(errors.TestbedError, match=r"^client-plain-app: kind: "):
                agent.ask({"kind": "nonsense"}, 30)
            assert agent.ask({"kind": "ping"}, 30)[0]["pong"] is True  # a refusal ends nothing

    def test_an_answer_that_does_not_come_in_time_is_told(self, place: Place) -> None:
        with place.talk("client-plain-app", AGENT) as agent, pytest.raises(errors.TestbedError, match="no answer in"):
            agent.receive(0.05)

    def test_an_observer_joins_a_pod_for_a_while(self, place: Place) -> None:
        before = {each.service for each in place.parts()}
        with place.talk("legacy-1", observers.PROGRAM, image="observer") as observer:
            page = {"url": f"http://{place.address('legacy-1')}:{ports.PORT_PAGES}/status"}
            assert "accepts" in (observers.page(observer, page) or "")
        assert {each.service for each in place.parts()} == before

    def test_what_was_killed_has_ended_and_what_was_started_runs(self, place: Place) -> None:
        talking = place.talk(APP, AGENT)
        talking.ask({"kind": "ping"}, 30)
        place.kill(APP)
        try:
            ended = part(place, APP)
            assert (ended.state, ended.code, ended.is_as_it_must_be) == ("exited", 137, False)
            assert place.account(ended).code == 137
            with pytest.raises(errors.TestbedError, match=f"^{APP}: the program in the container ended"):
                talking.ask({"kind": "ping"}, 30)
        finally:
            talking.close()
            place.start(APP)
        place.start(APP)  # as it is already
        assert part(place, APP).state == "running"
        assert place.exec(APP, ["cat"], timeout_s=30, given="x") == "x"

    def test_usage_is_of_what_runs_and_grows(self, place: Place) -> None:
        wanted = ["dns-coredns", "client-plain-app", "tls", "nobody"]
        before = place.usage(wanted)
        with place.talk("client-plain-app", AGENT) as agent:
            agent.ask(JOB, 30)
        after = place.usage(wanted)
        assert before.keys() == after.keys() == {"dns-coredns", "client-plain-app"}
        assert after["client-plain-app"].cpu_us > before["client-plain-app"].cpu_us

    def test_a_file_of_the_world_is_changed_and_gone(self, place: Place) -> None:
        for text in ("one", "two"):
            place.put("mesh/contract.txt", text)
            assert place.read("mesh/contract.txt") == text
        place.put("mesh/contract.txt", None)
        place.put("mesh/contract.txt", None)
        with pytest.raises(errors.TestbedError, match=r"^mesh/contract\.txt: there is no such file"):
            place.read("mesh/contract.txt")

    def test_facts_are_those_of_a_run(self, place: Place) -> None:
        assert place.facts().keys() == {"engine", "images", "cpu_sets", "versions"}
