"""Counters of rules, and a page of the same moment."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from meshdns.observer import counted


@pytest.fixture
def beside() -> Iterator[str]:
    """A page that says how often it was asked for."""

    class Page(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            type(self).asked += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(str(type(self).asked).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_page_beside_is_of_a_moment_without_a_packet(beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([{"all": n} for n in (1, 2, 3, 3)])  # a packet comes before the second and the third reading
    monkeypatch.setattr(counted, "counted", lambda _: next(readings))
    with counted.Server(("127.0.0.1", 0), beside) as server:
        assert server.told() == {"rules": {"all": 3}, "beside": "3"}


def test_packets_that_come_all_the_time_keep_nobody_waiting(beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([{"all": n} for n in range(100)])
    monkeypatch.setattr(counted, "counted", lambda _: next(readings))
    with counted.Server(("127.0.0.1", 0), beside) as server:
        assert server.told()["rules"]["all"] < 10


def test_without_a_page_beside_rules_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "counted", lambda _: {"all": 7})
    with counted.Server(("127.0.0.1", 0), "") as server:
        assert server.told() == {"rules": {"all": 7}, "beside": None}
