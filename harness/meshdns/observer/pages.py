"""Pages of statistics over connections that are kept: to open one costs more than most answers."""

from __future__ import annotations

import http.client
import urllib.parse
from typing import Any

TIMEOUT_S = 5  # a statistics page that takes longer is as good as down


class Pages:
    """Asks for pages and keeps the connections, by server."""

    def __init__(self) -> None:
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}

    def ask(self, requests: list[dict[str, Any]]) -> list[Question]:
        """Every request is under way, so that the servers work at the same time.

        A request has `url` (http), and may have `headers` and `timeout_s` (5 if absent).
        """
        return [Question(self._idle, request) for request in requests]


class Question:
    """A request under way. A connection that was kept, and is gone by now, is opened anew, once."""

    def __init__(self, idle: dict[str, list[http.client.HTTPConnection]], request: dict[str, Any]) -> None:
        parts = urllib.parse.urlsplit(request["url"])
        self._server, self._idle = parts.netloc, idle
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._headers, self._timeout_s = request.get("headers", {}), request.get("timeout_s", TIMEOUT_S)
        kept = idle.setdefault(self._server, [])
        self._may_be_gone = bool(kept)
        self._connection = kept.pop() if kept else http.client.HTTPConnection(self._server)
        self._sent = self._send()

    def answer(self) -> str | None:
        """The body, or None where no page came with status 200."""
        while self._sent:
            try:
                reply = self._connection.getresponse()
                body = reply.read()
            except TimeoutError:
                self._connection.close()
                return None
            except (OSError, http.client.HTTPException):
                self._sent = self._send_anew()
                continue
            self._idle[self._server].append(self._connection)
            return body.decode() if reply.status == http.client.OK else None
        return None

    def _send(self) -> bool:
        self._connection.timeout = self._timeout_s
        if self._connection.sock:
            self._connection.sock.settimeout(self._timeout_s)
        try:
            self._connection.request("GET", self._path, headers=self._headers)
        except (OSError, http.client.HTTPException):
            return self._send_anew()
        return True

    def _send_anew(self) -> bool:
        self._connection.close()
        if not self._may_be_gone:
            return False
        self._may_be_gone = False
        return self._send()
