"""PostgreSQL outside the mesh; Redis is on the same port."""

from __future__ import annotations

from meshdns.lab.parts.component import NOBODY, At, Command, Component, Container, Mount


class WorldPostgres(Component):
    """See the module."""

    image = "world"

    def container(self, at: At) -> Container:
        """See `Component`."""
        return Container(
            ("sh", "/etc/meshdns/postgres.sh"),
            user=NOBODY,
            environment={"PORT": "6000"},
            mounts=(Mount("files/world/postgres.sh", "/etc/meshdns/postgres.sh"),),
            abrupt=True,
        )

    def ready(self, at: At) -> Command:
        """See `Component`: the slowest of those outside, and no observer is there."""
        ask = "/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1 -p 6000 && echo yes || echo no"
        return "sh", "-c", ask


PART = WorldPostgres()
