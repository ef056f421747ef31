"""dnsdist before a cluster DNS: counts queries by pod, and delays answers where a plan asks for it."""

from __future__ import annotations

import json
from typing import ClassVar

from meshdns.core.world import Pod
from meshdns.lab.parts.component import FROM_POD, NOBODY, At, ClusterDns, Command, Container, Counts, Mount, Page

RULE = "from-"  # how its counting rules begin, each named after a pod
_CONFIGURATION = "/etc/meshdns/dnsdist.conf"


class Dnsdist(ClusterDns):
    image = "dns"
    versions: ClassVar = {"dnsdist": "dnsdist --version"}

    def container(self, at: At) -> Container:
        command = ("dnsdist", "--supervised", "--disable-syslog", "-C", _CONFIGURATION)
        return Container(command, user=NOBODY, mounts=(Mount(f"state/{at.service}", "/etc/meshdns"),))

    def files(self, at: At) -> dict[str, str]:
        named = {f"{RULE}{client.pod}": at.nets.pod(client.host) for client in at.world.clients}
        rules = [f'addAction(makeRule("{host}/32"), NoneAction(), {{name = "{name}"}})' for name, host in named.items()]
        text = at.rendered(
            "dns/dnsdist.conf",
            dns_host=str(at.pod.host),
            console_key=at.keys.console_key,
            web_password=at.keys.web_password,
            pod_rules="\n".join(rules),
        )
        return {f"{at.service}/dnsdist.conf": text}

    def page(self, at: At) -> Page:
        return {
            "url": f"http://{at.address}:8083/api/v1/servers/localhost",
            "headers": {"X-API-Key": at.keys.web_password},
            "timeout_s": 2,
        }

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        matches = {rule["name"]: rule["matches"] for rule in json.loads(body)["rules"]}
        total = sum(count for name, count in matches.items() if name.startswith(RULE))
        return {FROM_POD: matches[f"{RULE}{client.pod}"], "dnsdist/queries": total}

    def delaying(self, delay_ms: float) -> Command:
        """The command by which each UDP answer is so much later from now on."""
        return ("dnsdist", "-C", _CONFIGURATION, "-c", "-e", f"delay_ms={delay_ms:g}")


PART = Dnsdist()
