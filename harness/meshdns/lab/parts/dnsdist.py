"""dnsdist before a cluster DNS: it delays answers, and is asked only where a plan wants that."""

from __future__ import annotations

from typing import ClassVar

from meshdns.lab.parts.component import NOBODY, At, Command, Container, Mount, NameServer, Page

_CONFIGURATION = "/etc/meshdns/dnsdist.conf"


class Dnsdist(NameServer):
    image = "dns"
    versions: ClassVar = {"dnsdist": "dnsdist --version"}

    def container(self, at: At) -> Container:
        command = ("dnsdist", "--supervised", "--disable-syslog", "-C", _CONFIGURATION)
        return Container(command, user=NOBODY, mounts=(Mount(f"state/{at.service}", "/etc/meshdns"),))

    def files(self, at: At) -> dict[str, str]:
        text = at.rendered(
            "dns/dnsdist.conf",
            dns_host=str(at.pod.host),
            console_key=at.keys.console_key,
            web_password=at.keys.web_password,
        )
        return {f"{at.service}/dnsdist.conf": text}

    def ready(self, at: At) -> Page:
        key = {"X-API-Key": at.keys.web_password}
        return {**at.outer("8083/api/v1/servers/localhost"), "headers": key, "timeout_s": 2}

    def delaying(self, delay_ms: float) -> Command:
        """The command by which each UDP answer is so much later from now on."""
        return ("dnsdist", "-C", _CONFIGURATION, "-c", "-e", f"delay_ms={delay_ms:g}")


PART = Dnsdist()
