"""The watched folder: whole states only, each once, and a wrong one does not take the right one away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from serverdriver import until

from meshdns.istio import reader
from meshdns.istio.resources import Resources
from meshdns.xds import watch

PERIOD_S = 0.02
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}
"""


@dataclass
class Seen:
    states: list[Resources] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        return {one.meta.name for one in self.states[-1].services} if self.states else set()


@contextlib.asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Seen]:
    seen = Seen()
    task = asyncio.create_task(watch.Folder(folder, seen.states.append, seen.faults.append).run(PERIOD_S))
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def service(name: str, number: int) -> str:
    return SERVICE.format(name=name, address=f"10.96.1.{number}")


def test_files_that_come_change_and_go_are_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "web.yaml").write_text(service("web", 1))
        async with watched(tmp_path) as seen:
            await until(lambda: seen.hosts() == {"web"}, "the first state")
            below = tmp_path / "below"
            below.mkdir()
            (below / "api.yml").write_text(service("api", 2))
            await until(lambda: seen.hosts() == {"web", "api"}, "a file in a new folder")
            fresh = tmp_path / "fresh"
            fresh.write_text(service("net", 1))
            fresh.replace(tmp_path / "web.yaml")
            await until(lambda: seen.hosts() == {"net", "api"}, "a file renamed over another of the same size")
            (below / "api.yml").unlink()
            await until(lambda: seen.hosts() == {"net"}, "a file that went")
            count = len(seen.states)
            (tmp_path / "notes.txt").write_text("not ours")
            await asyncio.sleep(10 * PERIOD_S)
            assert len(seen.states) == count  # what has not changed is not read again
            assert seen.faults == []

    asyncio.run(scenario())


def test_a_wrong_state_is_told_once_with_its_place_and_the_next_right_one_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "web.yaml"
        file.write_text(service("web", 1))
        async with watched(tmp_path) as seen:
            await until(lambda: len(seen.states) == 1, "the first state")
            file.write_text(service("web", 1).replace("Service", "Servitude"))
            await until(lambda: len(seen.faults) == 1, "the fault")
            await asyncio.sleep(10 * PERIOD_S)
            assert len(seen.faults) == 1
            assert "web.yaml" in seen.faults[0]
            assert "Servitude is not supported" in seen.faults[0]
            file.write_text(service("web", 1))
            await until(lambda: len(seen.states) == 2, "the state put right")

    asyncio.run(scenario())


def test_a_file_that_nests_without_end_is_told_and_what_was_read_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "web.yaml").write_text(service("web", 1))
        async with watched(tmp_path) as seen:
            await until(lambda: len(seen.states) == 1, "the first state")
            (tmp_path / "deep.yaml").write_text("[" * 30_000)
            await until(lambda: len(seen.faults) == 1, "the fault")
            assert "deep.yaml: document 1, line 1: nested too deeply" in seen.faults[0]
            assert len(seen.states) == 1
            (tmp_path / "deep.yaml").unlink()
            await until(lambda: len(seen.states) == 2, "the state put right")

    asyncio.run(scenario())


def test_an_empty_or_missing_folder_is_a_fault_not_an_empty_mesh(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path / "none") as seen:
            await until(lambda: len(seen.faults) == 1, "the fault")
            assert seen.states == []

    asyncio.run(scenario())


def test_a_fault_of_ours_is_said_and_the_next_state_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = reader.read

    def fails_once(paths: list[Path]) -> Resources:
        monkeypatch.setattr(reader, "read", good)
        raise KeyError("ours")

    async def scenario() -> None:
        monkeypatch.setattr(reader, "read", fails_once)
        (tmp_path / "web.yaml").write_text(service("web", 1))
        async with watched(tmp_path) as seen:
            await until(lambda: bool(seen.faults), "the fault")
            assert "KeyError: 'ours'; please report it" in seen.faults[0]
            (tmp_path / "web.yaml").write_text(service("api", 1))
            await until(lambda: seen.hosts() == {"api"}, "the next state")

    asyncio.run(scenario())
