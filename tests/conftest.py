"""Makes modules shared by tests (`synthetic`) importable from any test."""

import signal
import sys
from pathlib import Path

import hypothesis

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started us in the background had it ignored

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "worlds")]

hypothesis.settings.register_profile("unhurried", deadline=None)  # others may use the machine too
hypothesis.settings.load_profile("unhurried")
