"""The name server of the world outside, which a cluster DNS asks: CoreDNS with a zone file."""

from __future__ import annotations

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, At, Container, Mount, NameServer


class WorldDns(NameServer):
    image = "coredns"

    def container(self, at: At) -> Container:
        return Container(
            ("-conf", "/etc/coredns/Corefile"),
            entrypoint=("coredns",),
            user=NOBODY,
            sysctls=LOW_PORTS,
            mounts=(Mount(f"state/{at.service}", "/etc/coredns"),),
            abrupt=True,
        )

    def files(self, at: At) -> dict[str, str]:
        world, nets = at.world, at.nets
        served = {each.host: world.answered(nets, each, in_pod=False) for each in world.services if each.external}
        served[world.external_name] = world.address(nets, world.external_pod)
        records = "\n".join(f"{host}. IN A {address}" for host, address in served.items())
        return {
            f"{at.service}/Corefile": at.rendered("dns/world.Corefile"),
            f"{at.service}/example.com.zone": at.rendered("dns/example.com.zone", outside_records=records),
            f"{at.service}/root.zone": at.rendered("dns/root.zone"),
        }


PART = WorldDns()
