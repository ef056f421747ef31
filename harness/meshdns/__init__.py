"""Measures how service-mesh sidecars and DNS work together."""

from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parents[2]  # of a checkout; an installation from a wheel has nothing there
