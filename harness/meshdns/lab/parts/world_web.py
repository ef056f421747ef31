"""A web server outside the mesh."""

from __future__ import annotations

from meshdns.lab.parts.component import NOBODY, At, Component, Container, Mount


class WorldWeb(Component):
    """See the module."""

    image = "world"

    def container(self, at: At) -> Container:
        """See `Component`."""
        return Container(
            ("nginx", "-g", "daemon off;"),
            user=NOBODY,
            sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
            mounts=(Mount("files/world/nginx.conf", "/etc/nginx/nginx.conf"),),
        )

    def ready(self, at: At) -> None:
        """See `Component`."""


PART = WorldWeb()
