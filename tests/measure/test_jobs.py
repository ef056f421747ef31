"""A trial as the agent's job, put together by the factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from meshdns.agent import job as agent_job
from meshdns.core import plans
from meshdns.core.world import Nets
from meshdns.measure import factors, jobs, plan
from meshdns.measure.factors.factor import Factor
from shipped import WORLD


def trials(name: str) -> Iterator[plan.Trial]:
    what = plan.find(name, WORLD)
    numbers = itertools.islice(range(what.blocks), 2)
    return (trial for n in numbers for trial in what.block(n) if trial.cell.tool == "agent")


@pytest.mark.parametrize("name", plans.shipped())
def test_the_agent_takes_every_job_of_a_plan(name: str) -> None:
    for trial in trials(name):
        cell, read = trial.cell, agent_job.read(jobs.job(trial, WORLD, Nets(), 7))
        assert (read.kind, read.lookup, read.seed, read.count) == (cell.kind, cell.lookup, 7, trial.count)
        assert bool(read.wire) == (cell.lookup == "wire")
        assert bool(read.tls) == cell.tls
        if cell.kind == "request" and not read.tcp:
            line, host = read.request.decode().split("\r\n")[:2]
            assert line.startswith("GET /")
            assert line.endswith(f"/bytes/{cell.body_bytes} HTTP/1.1")
            assert host == f"Host: {WORLD.backends[cell.backend].host}"


class Header(Factor):
    """Invented: a header, and the time that the server takes for it."""

    def job(self, so_far, cell, world, nets):
        return replace(so_far, head=(*so_far.head, "Priority: u=7")).having(wait="block")

    def request_s(self, so_far_s, cell, world, timeout_s):
        return so_far_s + 1


def test_a_factor_says_for_itself_what_it_means_for_jobs_and_durations(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [trial for trial in trials("quick") if trial.cell.kind == "request" and trial.cell.answer == "none"]
    before = [(jobs.job(trial, WORLD, Nets(), 7), trial.measuring_s(None, WORLD)) for trial in few]
    monkeypatch.setattr(factors, "ALL", (*factors.ALL, Header()))
    for trial, (usual, usual_s) in zip(few, before, strict=True):
        changed = jobs.job(trial, WORLD, Nets(), 7)
        assert changed["wait"] == "block"
        if usual["request"]:
            assert changed["request"] == usual["request"][:-2] + "Priority: u=7\r\n\r\n"
        requests = trial.warmup + (0 if trial.cell.rate_hz else trial.count)
        assert trial.measuring_s(None, WORLD) == pytest.approx(usual_s + requests)
