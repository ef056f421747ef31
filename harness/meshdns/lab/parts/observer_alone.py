"""Alone on the pod network: reads the pages of servers and name servers."""

from meshdns.lab.parts.observer import Observer

PART = Observer(capabilities=("NET_RAW",))
