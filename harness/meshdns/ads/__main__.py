"""Serve recorded answers until the process ends."""

from __future__ import annotations

import argparse
import http.server
import signal
import threading
from pathlib import Path

from .answers import read
from .server import serve


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Whoever is answered knows that sidecars are."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Nothing is written of questions."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="ads", description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="folder with a file POD.json for each pod")
    parser.add_argument("--listen", default="0.0.0.0:15010", help="address and port for sidecars")
    parser.add_argument("--ready", type=int, default=15014, help="port of a page that answers once sidecars are served")
    given = parser.parse_args()
    server = serve(read(given.answers), given.listen)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    page = http.server.HTTPServer(("", given.ready), _Ready)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    server.wait_for_termination()


main()
