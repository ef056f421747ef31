"""The bar: what runs, elapsed and remaining time and the medians on a terminal, and not a byte elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from meshdns.core.progress import Progress


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What a bar writes while half of its work is done."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "200")
    with Progress(10, "measuring") as progress:
        progress.doing("lookup plain")
        progress.advance(5, "lookup plain 71 µs, request mode1 402 µs")
        progress.doing("request mode1")
        return stream.getvalue()


def test_a_terminal_shows_what_runs_the_time_and_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = watched(monkeypatch, Terminal())
    assert "lookup plain" in shown
    last = shown.rpartition("request mode1  50 %")[2]
    assert last, shown
    assert " elapsed, " in last
    assert " left" in last
    assert "lookup plain 71 µs, request mode1 402 µs" in last


def test_nobody_watching_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, io.StringIO()) == ""


def test_work_that_was_more_than_expected_stays_within_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(2, "measuring") as progress:
        progress.advance(1.5)
        progress.advance(1.5)
        progress.doing("closing")
        assert "closing 100 %" in stream.getvalue()
        progress.stage("writing pages", 3, 4)  # publishing counts notebooks
        progress.doing("writing pages")
        assert "writing pages  75 %" in stream.getvalue()
