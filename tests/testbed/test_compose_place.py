"""The place by Compose does what every place must; what is said of processes there; a block by another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from contract import AGENT, JOB, PlaceContract
from meshdns.core import errors
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.place import Place

PROGRAM = """
import time
from meshdns import cli
from meshdns.lab.compose import engine, testbed
from meshdns.lab import world
images = engine.images(cli.say, testbed.images_of(world.shipped(), ()))
place = testbed.Testbed(images, cli._nets(), cli._project(), testbed.state_of(cli._project()))
"""
LONG = JOB | {"arrival": {"process": "constant", "rate_hz": 10.0}, "count": 600, "wait": "spin"}  # a minute
BLOCK = """
import dataclasses
from meshdns.measure import plan
from meshdns.measure.block import measure_block
what = plan.find("quick", place.world)
few = [dataclasses.replace(each, count=20) for each in what.experiments if each.name in ("lookup", "request")]
found = measure_block(dataclasses.replace(what, blocks=1, experiments=tuple(few)), 0, place)
print(found.table.num_rows, sum(each.offered for each in found.records), sum(each.valid for each in found.records))
"""


@pytest.fixture(scope="module")
def place(bed: Testbed) -> Place:
    return bed


def agents(bed: Testbed, service: str) -> int:
    """How many run in a service."""
    found = bed.exec(service, ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], timeout_s=10)
    return found.count(" ".join(AGENT))


def gone(bed: Testbed, service: str) -> bool:
    deadline = time.monotonic() + 10
    while agents(bed, service):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class TestCompose(PlaceContract):
    def test_whom_nobody_could_join_leaves_nothing(self, bed: Testbed) -> None:
        with pytest.raises(errors.TestbedError, match=r"^nobody: "):
            bed.exec("nobody", ["true"], timeout_s=5, image="client")
        assert [each["Names"] for each in bed.containers() if "attached" in str(each["Names"])] == []

    def test_a_program_ends_with_its_conversation(self, bed: Testbed) -> None:
        with bed.talk("client-ip-app", AGENT) as agent:
            agent.ask({"kind": "ping"}, 30)
            assert agents(bed, "client-ip-app") == 1
        assert gone(bed, "client-ip-app")

    @pytest.mark.parametrize("meanwhile", ["time.sleep(60)", f"agent.ask({LONG!r}, 90)"], ids=["idle", "busy"])
    def test_a_program_ends_with_our_process_however_that_ends(self, bed: Testbed, meanwhile: str) -> None:
        talk = f"{PROGRAM}\nagent = place.talk('client-ip-app', {AGENT!r})\n"
        talk += "print(agent.ask({'kind': 'ping'}, 30), flush=True)"
        running = subprocess.Popen(
            [sys.executable, "-c", f"{talk}\n{meanwhile}"], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert running.stdout is not None
        assert "pong" in running.stdout.readline()
        time.sleep(0.5)  # it has asked by then
        assert agents(bed, "client-ip-app") == 1
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert gone(bed, "client-ip-app")

    def test_a_block_is_measured_by_another_process_than_started_the_place(self, bed: Testbed) -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + BLOCK],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        rows, offered, valid = map(int, done.stdout.split())
        assert rows == offered > 0
        assert valid > 0
