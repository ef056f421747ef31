"""Runs inside an observer container: reads rule counters, statistics pages and conntrack; captures packets.

Standard library only. One JSON request per line on standard input, one JSON answer per line on standard output.
"""
