"""Makes modules shared by tests (`synthetic`) importable from any test."""

import gc
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started us in the background had it ignored

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "worlds")]


def pytest_collection_finish() -> None:
    gc.freeze()  # a tenth of the time was spent on looking for garbage among modules, which stay
