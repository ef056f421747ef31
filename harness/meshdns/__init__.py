"""Measures how service-mesh sidecars and DNS work together."""

__version__ = "0.1.0"
