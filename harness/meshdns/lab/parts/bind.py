"""BIND 9, where the control plane keeps the records of its Services, by dynamic updates; CoreDNS takes none."""

from __future__ import annotations

from typing import ClassVar

from meshdns.core.world import Pod, World
from meshdns.lab.parts.component import NOBODY, At, Container, Mount, NameServer, Page


class Bind(NameServer):
    image = "dns"
    versions: ClassVar = {"bind": "named -v"}

    def container(self, at: At) -> Container:
        command = "cp /etc/meshdns/cluster.local.zone /tmp/ && exec named -g -n 1 -c /etc/meshdns/named.conf"
        return Container(("sh", "-c", command), user=NOBODY, mounts=(Mount(f"state/{at.service}", "/etc/meshdns"),))

    def ready(self, at: At) -> Page:
        return {**at.outer("8053/json/v1/server"), "timeout_s": 2}

    def files(self, at: At) -> dict[str, str]:
        host = str(at.pod.host)
        return {
            f"{at.service}/named.conf": at.rendered("dns/named-records.conf", host=host, domain=at.world.domain),
            f"{at.service}/cluster.local.zone": at.rendered("dns/cluster.local.zone", host=host),
            f"{at.service}/update.key": at.rendered("dns/update.key", update_key=at.keys.update_key),
        }


def keeper(world: World) -> Pod | None:
    """The pod where records are kept."""
    return next((pod for pod in world.pods if pod.part == "bind"), None)


PART = Bind()
