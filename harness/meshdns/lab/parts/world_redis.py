"""Redis outside the mesh; PostgreSQL is on the same port."""

from meshdns.lab.parts.component import NOBODY, Alike, Container, Mount

COMMAND = ("redis-server", "/etc/meshdns/redis.conf", "--port", "6000")
CONFIGURATION = Mount("files/world/redis.conf", "/etc/meshdns/redis.conf")
PART = Alike("world", Container(COMMAND, user=NOBODY, mounts=(CONFIGURATION,)))
