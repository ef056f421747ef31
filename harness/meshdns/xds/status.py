"""A page on HTTP: /status is everything as JSON, /ready is 200 once sidecars have a configuration to ask for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from meshdns.core import errors

PATIENCE_S = 5.0  # for a request to arrive
_HEAD_BYTES = 16_384


async def serve(
    host: str, port: int, document: Callable[[], dict[str, Any]], ready: Callable[[], bool]
) -> asyncio.Server:
    """Listening; EnvironmentProblem if the address cannot be had."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, document, ready))
                await writer.drain()
        writer.close()

    try:
        return await asyncio.start_server(answer, host, port, limit=_HEAD_BYTES)
    except OSError as error:
        raise errors.EnvironmentProblem(
            f"cannot listen there for status: {error.strerror}", place=f"{host}:{port}",
            step="give another address or a free port",
        ) from error  # fmt: skip


def _answer(head: bytes, document: Callable[[], dict[str, Any]], ready: Callable[[], bool]) -> bytes:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
    if len(words) != 3 or words[0] not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", b"GET /status or /ready\n", "text/plain")
    path = words[1].partition("?")[0]
    if path == "/status":
        return _response("200 OK", json.dumps(document(), indent=1).encode(), "application/json")
    if path == "/ready":
        if ready():
            return _response("200 OK", b"ready\n", "text/plain")
        return _response("503 Service Unavailable", b"no configuration yet; see /status\n", "text/plain")
    return _response("404 Not Found", b"there are /status and /ready\n", "text/plain")


def _response(status: str, body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
