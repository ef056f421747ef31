"""The name server of the world outside, which a cluster DNS asks."""

from __future__ import annotations

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, At, Container, Mount, NameServer


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
        world, nets = at.world, at.nets
        served = {each.host: world.answered(nets, each, in_pod=False) for each in world.services if each.external}
        served[world.external_name] = world.address(nets, world.external_pod)
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
