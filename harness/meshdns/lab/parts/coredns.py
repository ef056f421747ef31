"""CoreDNS with the Corefile of a ConfigMap that its Pod mounts, as Kubernetes has it.

Where no API server is there, what plugin `kubernetes` would hear from one stands in zone files, which plugin `file` in
its place reads.
"""

from __future__ import annotations

import re
from typing import ClassVar

from meshdns.core.world import Pod, World
from meshdns.lab import keys, ports, zones
from meshdns.lab.parts import apiserver
from meshdns.lab.parts.component import FROM_ALL, NOBODY, At, Container, Counts, Made, Mount, NameServer, Page, Pairs

COREFILE = "Corefile"  # the key of the ConfigMap
FOLDER = "/etc/coredns"
QUERIES = "coredns/queries"
_PLUGIN = re.compile(r"^(?P<indent>[ \t]*)kubernetes\b[^{\n]*(?:\{(?P<options>[^}]*)\})?", re.MULTILINE)
_REFERENCE = re.compile(r"^[ \t]*(\w+)[^\n#]*[ \t]@kubernetes\b", re.MULTILINE)
_TTL = re.compile(r"^\s*ttl\s+(\d+)", re.MULTILINE)
_CONFIG = "kubeconfig"
_TTL_S = 5  # the plugin's own


class CoreDns(NameServer):
    image = "coredns"
    versions: ClassVar = {"coredns": "coredns -version"}
    configured_by = COREFILE

    def container(self, at: At) -> Container:
        return running(at, user=NOBODY)

    def ready(self, at: At) -> Page:
        return at.outer(f"{ports.PORT_COREDNS_READY}/ready")

    def files(self, at: At) -> dict[str, str]:
        """See `Component`; its own resolv.conf is the node's, as `dnsPolicy: Default` has it."""
        text = at.world.configuration(at.pod.pod, COREFILE)
        outside = {"resolv.conf": own_resolv_conf(at)}
        files = outside | (_live(at, text) if at.world.live else _replayed(at, text))
        return {f"{at.service}/{name}": text for name, text in files.items()}

    def needs_live(self, configuration: str) -> str:
        """See `Component`: zone files take the place of plugin `kubernetes` only where no other plugin asks it."""
        found = _REFERENCE.search(configuration)
        return f"its plugin {found[1]} asks the API server" if found else ""

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if at.pod == at.world.dns_pod(client):
            yield (
                "queries that CoreDNS counted, against those that came",
                counts.get(QUERIES, 0),
                counts.get(FROM_ALL, 0),
            )


def running(at: At, *, user: str) -> Container:
    """CoreDNS with what was rendered for it; its own name server is the node's."""
    mounts = (Mount(f"state/{at.service}", FOLDER), Mount(f"state/{at.service}/resolv.conf", "/etc/resolv.conf"))
    command = ("-conf", f"{FOLDER}/{COREFILE}")
    return Container(command, entrypoint=("coredns",), user=user, mounts=mounts, abrupt=True)


def own_resolv_conf(at: At) -> str:
    """As `dnsPolicy: Default` has it."""
    return f"nameserver {at.world.address(at.nets, 'world-dns')}\n"


def _live(at: At, text: str) -> dict[str, str]:
    """Plugin `kubernetes` as it stands, told where the API server is: in a cluster its Pod would know."""
    if not at.keys.plane:
        return {COREFILE: text}
    config = keys.kubeconfig(at.keys.plane, apiserver.url(at.world, at.nets))
    told = f"kubeconfig {FOLDER}/{_CONFIG} {keys.CONTEXT}"
    return {COREFILE: _PLUGIN.sub(lambda plugin: _with(told, plugin), text), _CONFIG: config}


def _with(option: str, plugin: re.Match[str]) -> str:
    indent, head = plugin["indent"], plugin[0].partition("{")[0].rstrip()
    rest = plugin["options"] or f"\n{indent}"
    return f"{head} {{\n{indent}   {option}{rest}}}"


def _replayed(at: At, text: str) -> dict[str, str]:
    """Plugin `file` in its place."""
    found = _PLUGIN.search(text)
    told = _TTL.search(found["options"] or "") if found else None
    ttl_s = int(told[1]) if told else _TTL_S
    return {
        COREFILE: _PLUGIN.sub(lambda plugin: _file(plugin["indent"], at.world), text),
        "cluster.zone": zones.cluster(at.world, at.nets, ttl_s),
        "reverse.zone": zones.reverse(at.world, at.nets, ttl_s),
    }


def counted(body: str) -> float:
    """Queries in all, by its own page."""
    lines = (line for line in body.splitlines() if line.startswith("coredns_dns_requests_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _file(indent: str, world: World) -> str:
    """What stands in the place of plugin `kubernetes`: nothing is read again, and other reverse names are passed on."""
    lines = (
        f"file {FOLDER}/cluster.zone {world.domain} {{", "   reload 0", "}",
        f"file {FOLDER}/reverse.zone {zones.REVERSE} {{", "   reload 0", f"   fallthrough {zones.REVERSE}", "}",
    )  # fmt: skip
    return "\n".join(f"{indent}{line}" for line in lines)


PART = CoreDns()
