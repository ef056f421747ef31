"""The application of a client pod: the load agent, and the other load generators."""

from __future__ import annotations

from typing import ClassVar

from meshdns.lab.parts.component import At, Component, Container, Mount


class Client(Component):
    image = "client"
    versions: ClassVar = {
        "client python": "python3 --version",
        "h2load": "h2load --version",
        "dnsperf": "dpkg-query -W -f '${Version}' dnsperf",
    }

    def container(self, at: At) -> Container:
        mounts = (
            Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"),
            Mount("volume/tls-certificate", "/tls/certificate"),
        )
        return Container(mounts=mounts, cpus="client", abrupt=True)

    def files(self, at: At) -> dict[str, str]:
        search, server = " ".join(at.world.search), at.world.dns_address(at.pod)
        return {at.resolv_conf: at.rendered("dns/resolv.conf", search=search, name_server=server)}


PART = Client()
