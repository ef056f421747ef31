"""`python -m harness` is `meshdns`."""

import sys

from harness.cli import main

sys.exit(main())
