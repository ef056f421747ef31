"""An application server."""

from __future__ import annotations

import re
from typing import ClassVar

from meshdns.core.world import Pod
from meshdns.lab import ports
from meshdns.lab.parts.component import NOBODY, At, Component, Container, Counts, Made, Mount, Page, Pairs

_REQUESTS = re.compile(r"server accepts handled requests\s+\d+ \d+ (\d+)")


class Web(Component):
    image = "web"
    versions: ClassVar = {"nginx": "nginx -v"}
    counts_itself = "servers/nginx_rq"
    configuration = "web/nginx.conf"

    def container(self, at: At) -> Container:
        mounts = (
            Mount("files/web/start.sh", "/etc/meshdns/start.sh"),
            Mount(f"files/{self.configuration}", "/etc/nginx/nginx.conf"),
            Mount("volume/tls-key", "/tls/key"),
            Mount("volume/tls-certificate", "/tls/certificate"),
        )
        known = {"REPLICA": at.pod.pod} | ({} if at.pod.ready else {"READY": "no"})
        return Container(("sh", "/etc/meshdns/start.sh"), user=NOBODY, mounts=mounts, environment=known)

    def page(self, at: At) -> Page:
        return at.outer(f"{ports.PORT_PAGES}/status")

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        match = _REQUESTS.search(body)
        return {"servers/nginx_rq": float(match[1]) if match else 0.0}

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if made.requests:
            yield "requests at the servers", counts.get("servers/nginx_rq", 0), made.requests


PART = Web()
