"""The observer's reading of pages, against real servers on loopback."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from meshdns.observer.pages import Pages


class Handler(http.server.BaseHTTPRequestHandler):
    """Says its path, after a while where the path asks for that, and with whom it speaks."""

    protocol_version = "HTTP/1.1"
    peers: set[int]

    def do_GET(self) -> None:
        self.server.peers.add(self.client_address[1])  # type: ignore[attr-defined]
        if self.path == "/slow":
            time.sleep(0.5)
        body = self.path.encode()
        self.send_response(404 if self.path == "/absent" else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/last":
            self.close_connection = True  # without a word, as a server that is stopped
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class Server(http.server.ThreadingHTTPServer):
    """Counts the connections that asked something."""

    peers: set[int]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.peers = set()
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def read(pages: Pages, *urls: str, timeout_s: float = 5) -> list[str | None]:
    return [question.answer() for question in pages.ask([{"url": url, "timeout_s": timeout_s} for url in urls])]


def test_connections_are_kept_one_for_each_page_asked_for_at_a_time(server: Server) -> None:
    pages = Pages()
    for _ in range(3):
        assert read(pages, server.url("/a?filter=x"), server.url("/b")) == ["/a?filter=x", "/b"]
    assert len(server.peers) == 2


def test_a_page_that_is_not_there_is_no_answer_and_its_connection_serves_the_next(server: Server) -> None:
    pages = Pages()
    for _ in range(2):  # also on a connection that was kept
        assert read(pages, server.url("/absent"), server.url("/b"), server.url("/absent")) == [None, "/b", None]
    assert read(pages, *map(server.url, ("/1", "/2", "/3"))) == ["/1", "/2", "/3"]
    assert len(server.peers) == 3


def test_a_connection_that_is_gone_by_now_is_opened_anew(server: Server) -> None:
    pages = Pages()
    assert read(pages, server.url("/last")) == ["/last"]
    time.sleep(0.05)
    assert read(pages, server.url("/again")) == ["/again"]
    assert len(server.peers) == 2


def test_who_is_slow_or_not_there_is_no_answer_and_holds_up_no_other(server: Server) -> None:
    pages = Pages()
    nowhere = "http://127.0.0.1:1/"
    assert read(pages, server.url("/slow"), nowhere, server.url("/b"), timeout_s=0.1) == [None, None, "/b"]
    assert read(pages, server.url("/c"), nowhere) == ["/c", None]  # not the late answer to another question
