"""`python -m meshdns.xds`: the control plane."""

import sys

from meshdns.xds.command import main

sys.exit(main())
