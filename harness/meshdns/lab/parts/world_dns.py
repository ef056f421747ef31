"""The name server of the world outside, which a cluster DNS asks."""

from __future__ import annotations

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, At, Container, Mount, NameServer

_NOBODY_THERE = 90  # an address of the world outside where no pod is


class WorldDns(NameServer):
    image = "dns"

    def container(self, at: At) -> Container:
        return Container(
            ("named", "-g", "-n", "1", "-c", "/etc/meshdns/named.conf"),
            user=NOBODY,
            sysctls=LOW_PORTS,
            mounts=(Mount(f"state/{at.service}", "/etc/meshdns"),),
        )

    def ready(self, at: At) -> None:
        return None

    def files(self, at: At) -> dict[str, str]:
        """See `Component`; nobody is at the last address: who calls it was taken there by a sidecar."""
        served = {
            each.host: at.world.address(at.nets, each.served_by)
            if each.served_by
            else f"{at.nets.world}.{_NOBODY_THERE}"
            for each in at.world.services
            if each.external
        }
        records = "\n".join(f"{host}. IN A {address}" for host, address in served.items())
        host = str(at.pod.host)
        return {
            f"{at.service}/named.conf": at.rendered("dns/named-world.conf"),
            f"{at.service}/example.com.zone": at.rendered(
                "dns/example.com.zone", world_dns_host=host, outside_records=records
            ),
            f"{at.service}/root.zone": at.rendered("dns/root.zone", world_dns_host=host),
        }


PART = WorldDns()
