"""`python3 -m interception`: the verb `rules` on its own."""

from __future__ import annotations

import argparse
import sys

from . import command


def main() -> int:
    """Parse the command line and do it; the exit code."""
    parser = argparse.ArgumentParser(prog="interception", description=command.DESCRIPTION)
    command.add_arguments(parser)
    return command.run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
