"""The name server of the world outside, which a cluster DNS asks: CoreDNS with a zone file."""

from __future__ import annotations

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, At, Container, Mount, NameServer

_NOBODY_THERE = 90  # an address of the world outside where no pod is


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
        return {
            f"{at.service}/Corefile": at.rendered("dns/world.Corefile"),
            f"{at.service}/example.com.zone": at.rendered("dns/example.com.zone", outside_records=records),
            f"{at.service}/root.zone": at.rendered("dns/root.zone"),
        }


PART = WorldDns()
