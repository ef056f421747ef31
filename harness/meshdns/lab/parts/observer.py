"""Reads counters and captures packets in a pod, between loads; it does nothing until it is talked to."""

from typing import ClassVar

from meshdns.lab.parts.component import Alike, Container


class Observer(Alike):
    versions: ClassVar = {"iptables": "iptables --version"}

    def __init__(self, capabilities: tuple[str, ...]) -> None:
        waiting = Container(("sleep", "infinity"), capabilities=capabilities, cpus="all", abrupt=True)
        super().__init__("observer", waiting, carries=False)


PART = Observer(capabilities=("NET_ADMIN", "NET_RAW"))  # reading rule counters; capturing packets
