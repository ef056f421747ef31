"""`make conformance`: every differential against one version of Istio, and a page of what is not as stated.

Ends with 1 if something is not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.conformance import binary, dnsproxies, rules
from tests.conformance.section import Section

DIFFERENTIALS: tuple[Callable[[Path], Section], ...] = (dnsproxies.section, rules.section)  # each is given the agent
PAGE = dnsproxies.ROOT / "docs" / "conformance.md"
HEAD = """# What this project says of Istio, asked of Istio

Istio {version}: its own agent `pilot-agent`. Written by `make conformance`; `ISTIO=version` asks another version.

{verdict}
"""


def main() -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    parser.add_argument("--istio", default="", metavar="VERSION", help="of the Go module istio.io/istio")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if lacks := dnsproxies.lacking():
        parser.error(lacks)
    with tempfile.TemporaryDirectory(prefix="meshdns-conformance-") as folder:
        agent = binary.find(Path(folder), _say, options.istio)
        version = options.istio or binary.stamp(agent)
        version += " (a commit of its development, no release)" if version.startswith("v0.0.0-") else ""
        sections = [make(agent) for make in DIFFERENTIALS]
    wrong = sum(len(section.wrong) for section in sections)
    verdict = f"**{wrong} findings are not as stated.**" if wrong else "All is as stated."
    options.page.write_text("\n".join([HEAD.format(version=version, verdict=verdict), *(s.text() for s in sections)]))
    _say(f"{verdict} {options.page}")
    return 1 if wrong else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
