"""`python3 -m observer.counted`: loads rules that count, and tells on a page what they counted, until it is ended.

The page is `{"rules": {NAME: PACKETS}, "beside": TEXT}`: TEXT is another page of the same moment, by no packet between
two readings of the rules, or null where there is none.
"""

from __future__ import annotations

import argparse
import http.server
import json
import sys
from pathlib import Path
from typing import Any

from .pages import Pages
from .rules import counted, said

_COUNTERS = [(["iptables-save", "-c", "-t", "raw"], r'^\[(\d+):\d+\].*--comment "?meshdns:(\w+)')]
_TRIES = 5  # packets that come all the time would keep us for ever


class Server(http.server.ThreadingHTTPServer):
    """The page."""

    def __init__(self, address: tuple[str, int], beside: str) -> None:
        super().__init__(address, _Page)
        self._beside = beside

    def told(self) -> dict[str, Any]:
        """What it says now."""
        found = counted(_COUNTERS)
        if not self._beside:
            return {"rules": found, "beside": None}
        page = None
        for _ in range(_TRIES):
            [question] = Pages().ask([{"url": self._beside}])
            page, before, found = question.answer(), found, counted(_COUNTERS)
            if found == before:
                break
        return {"rules": found, "beside": page}


class _Page(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # whoever asks keeps the connection

    def do_GET(self) -> None:
        body = json.dumps(self.server.told()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: it is asked before and after each load."""


def main(argv: list[str]) -> None:
    """Until it is ended."""
    parser = argparse.ArgumentParser(prog="counted", description="Count packets by rules, and tell on a page.")
    parser.add_argument("--rules", type=Path, required=True, help="input of iptables-restore")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--beside", default="", metavar="URL", help="a page to be told with them")
    options = parser.parse_args(argv)
    said("iptables-restore", "--noflush", given=options.rules.read_text())
    address, _, port = options.listen.rpartition(":")
    Server((address, int(port)), options.beside).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
