"""Redis outside the mesh; PostgreSQL is on the same port."""

from __future__ import annotations

from meshdns.lab.parts.component import NOBODY, At, Component, Container, Mount


class WorldRedis(Component):
    """See the module."""

    image = "world"

    def container(self, at: At) -> Container:
        """See `Component`."""
        return Container(
            ("redis-server", "/etc/meshdns/redis.conf", "--port", "6000"),
            user=NOBODY,
            mounts=(Mount("files/world/redis.conf", "/etc/meshdns/redis.conf"),),
        )

    def ready(self, at: At) -> None:
        """See `Component`."""


PART = WorldRedis()
