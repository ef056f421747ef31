"""`python -m harness` is `meshdns`."""

import sys

from meshdns.cli import main

sys.exit(main())
