"""Reads HTTP/1.1 responses: status, end of the body, and which replica sent it. Called after the clock was stamped."""

from __future__ import annotations

import functools
from typing import NamedTuple

CHUNKED, UNTIL_CLOSE = -2, -1
MAX_HEAD = 65536  # servers refuse larger ones themselves; a peer that never ends its head must not fill our memory
MAX_CHUNK_LINE = 1024  # a size and its extensions; larger is not a chunk
CACHED_HEADS = 256  # heads differ by their date once a second


class MalformedError(Exception):
    """The bytes are not an HTTP/1.1 response."""


class Head(NamedTuple):
    """What the status line and the headers say."""

    status: int
    length: int  # bytes of body, or CHUNKED, or UNTIL_CLOSE
    replica: str
    keep: bool  # the connection may carry another request


@functools.lru_cache(CACHED_HEADS)
def read_head(block: bytes) -> Head:
    """The head in the bytes before the empty line; raises MalformedError for anything else."""
    lines = block.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    code = rest.partition(b" ")[0]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit() or len(code) != 3:
        raise MalformedError("not a status line")
    status = int(code)
    length, replica, keep = UNTIL_CLOSE, "", version == b"HTTP/1.1"
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise MalformedError("not a header line")
        name, value = name.lower(), value.strip()
        if name == b"content-length" and length != CHUNKED:
            if not value.isdigit() or len(value) > 15 or length not in (UNTIL_CLOSE, int(value)):
                raise MalformedError("not a length")
            length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise MalformedError("a coding we do not read")
            length = CHUNKED
        elif name == b"connection":
            keep = keep and b"close" not in value.lower()
        elif name == b"x-replica":
            replica = value.decode("latin-1")
    if status < 200 or status in (204, 304):
        length = 0
    return Head(status, length, replica, keep and length != UNTIL_CLOSE)


class Body:
    """Counts the bytes of one body and knows when it is complete."""

    __slots__ = ("_left", "_line", "_state", "done", "length", "size")

    def __init__(self, length: int) -> None:
        self.length = length
        self.size = 0
        self.done = length == 0
        self._state = "size"
        self._left = 0
        self._line = b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; raises MalformedError for a bad chunk or for bytes after the end."""
        if self.length == CHUNKED:
            self._chunks(data)
            return
        self.size += len(data)
        if self.length >= 0:
            self.done = self.size >= self.length
            if self.size > self.length:
                raise MalformedError("bytes after the body")

    def _chunks(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self.done:
                raise MalformedError("bytes after the last chunk")
            if self._state == "data":
                took = min(self._left, len(data) - at)
                self._left -= took
                self.size += took
                at += took
                if self._left == 0:
                    self._state = "gap"
                continue
            end = data.find(b"\n", at)
            self._line += data[at : len(data) if end < 0 else end + 1]
            if len(self._line) > MAX_CHUNK_LINE:
                raise MalformedError("a chunk line without end")
            if end < 0:
                return
            at = end + 1
            line, self._line = self._line, b""
            self._next(line)

    def _next(self, line: bytes) -> None:
        """Acts on one whole line between chunk data."""
        if not line.endswith(b"\r\n"):
            raise MalformedError("a line without return")
        text = line[:-2]
        if self._state == "gap":
            if text:
                raise MalformedError("a chunk longer than it said")
            self._state = "size"
        elif self._state == "size":
            digits = text.partition(b";")[0].strip()
            if not digits or len(digits) > 12 or digits.strip(b"0123456789abcdefABCDEF"):
                raise MalformedError("not a chunk size")
            self._left = int(digits, 16)
            self._state = "data" if self._left else "trailer"
        elif not text:
            self.done = True
