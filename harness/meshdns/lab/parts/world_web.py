"""A web server outside the mesh."""

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, Alike, Container, Mount

CONFIGURATION = Mount("files/world/nginx.conf", "/etc/nginx/nginx.conf")
PART = Alike(
    "world", Container(("nginx", "-g", "daemon off;"), user=NOBODY, sysctls=LOW_PORTS, mounts=(CONFIGURATION,))
)
