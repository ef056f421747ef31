"""Makes modules shared by tests (`synthetic`) importable from any test."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
