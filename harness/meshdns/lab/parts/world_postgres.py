"""PostgreSQL outside the mesh; Redis is on the same port."""

from meshdns.lab.parts.component import NOBODY, Alike, At, Command, Container, Mount

START = Mount("files/world/postgres.sh", "/etc/meshdns/postgres.sh")
COMMAND = ("sh", "/etc/meshdns/postgres.sh")


class Postgres(Alike):
    def ready(self, at: At) -> Command:  # the slowest of those outside, and no observer is there
        return "sh", "-c", "/usr/lib/postgresql/*/bin/pg_isready -q -h 127.0.0.1 -p 6000 && echo yes || echo no"


PART = Postgres("world", Container(COMMAND, user=NOBODY, environment={"PORT": "6000"}, mounts=(START,), abrupt=True))
