"""`python -m harness.controlplane`: the control plane."""

import sys

from harness.controlplane.command import main

sys.exit(main())
