"""`python -m meshdns` is `meshdns`."""

import sys

from meshdns.cli import main

sys.exit(main())
