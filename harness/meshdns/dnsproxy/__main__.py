"""`python -m dnsproxy`: the proxy where nothing else of meshdns is."""

import sys

from .command import main

sys.exit(main())
