"""Applies a pod's rules before anybody else starts, and ends."""

from __future__ import annotations

from meshdns.core.world import Pod
from meshdns.lab import rules
from meshdns.lab.parts.component import ASKED, At, Component, Container, Counts, Made, Mount, Pairs


class Rules(Component):
    """What they count, the pod's observer reads."""

    image = "observer"
    carries = False

    def container(self, at: At) -> Container:
        mounts = (Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"), Mount(f"state/{at.pod.pod}", "/rules"))
        return Container(("sh", "-e", "/rules/apply"), capabilities=("NET_ADMIN",), mounts=mounts)

    def files(self, at: At) -> dict[str, str]:
        return {f"{at.pod.pod}/{name}": text for name, text in rules.files(at.world, at.nets, at.pod).items()}

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if at.pod != client:
            return
        yield "packets that escaped to a virtual address", counts.get("pod/rule/escaped_vip", 0), 0
        yield "packets that escaped to a ClusterIP", counts.get("pod/rule/escaped_clusterip", 0), 0
        if made.queries is not None:
            yield "DNS packets of the client, against its own count", counts.get(ASKED, 0), made.queries
        if made.requests and client.sidecar:
            redirected = counts.get("pod/rule/redirect_tcp", 0)
            yield "connections redirected to the sidecar", redirected, made.connections
        elif made.requests and made.by_name:
            translated = counts.get("pod/rule/clusterip_tcp", 0)
            yield "connections translated from the ClusterIP", translated, made.connections


PART = Rules()
