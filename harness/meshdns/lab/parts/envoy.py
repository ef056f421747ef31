"""The sidecar of a pod that our own control plane configures."""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import ClassVar

from meshdns.core.world import Nets, Pod, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import ports
from meshdns.lab.parts.component import LOOPBACK, At, Component, Container, Counts, Made, Mount, Page, Pairs, answered
from meshdns.xds import bootstrap, node

# Envoy statistic -> our name; several may add up to one. Clusters are named as Istio names them.
# The same again below `external` says who called, not something more.
_OUTBOUND = r"cluster\.outbound\|\d+\|\w*\|[\w.-]+(?<!\.external)(?<!\.internal)"
_CLIENT = {
    r"dns_filter\.mesh\.downstream_rx_queries": "dnsproxy/queries",
    r"dns_filter\.mesh\.external_a+_record_queries": "dnsproxy/forwarded",
    r"listener\.0\.0\.0\.0_15001\.downstream_cx_total": "envoy/outbound_cx",
    rf"{_OUTBOUND}\.upstream_cx_total": "envoy/cluster_cx",
    rf"{_OUTBOUND}\.upstream_cx_connect_fail": "envoy/upstream_cx_fail",
    rf"{_OUTBOUND}\.upstream_rq_completed": "envoy/cluster_rq",
    # Sent, or not because no connection came about; what a breaker refuses is in neither. `completed` lacks what was
    # given up to be tried again.
    rf"{_OUTBOUND}\.upstream_rq_(total|pending_failure_eject)": "envoy/tries",
    rf"{_OUTBOUND}\.upstream_rq_retry": "envoy/retries",
    rf"{_OUTBOUND}\.upstream_rq_retry_success": "envoy/retry_success",
    rf"{_OUTBOUND}\.upstream_rq_(pending_overflow|active_overflow)": "envoy/breaker_overflow",
    rf"{_OUTBOUND}\.upstream_rq_timeout": "envoy/rq_timeout",
    rf"{_OUTBOUND}\.upstream_rq_per_try_timeout": "envoy/per_try_timeout",
    rf"{_OUTBOUND}\.outlier_detection\.ejections_enforced_total": "envoy/ejections",
    r"cluster\.passthrough\.upstream_cx_total": "envoy/passthrough_cx",
}
_CLIENT_FILTER = (
    r"^(cluster\.(outbound\|.*\.(upstream_|outlier_)|passthrough\.)|listener\.0\.0\.0\.0_15001\."
    r"|dns_filter\.mesh\.(downstream_rx|external_a))"
)
# What a replica's sidecar counts. Its nginx also counts probes, so requests are those passed on to it, also those that
# the caller gave up before they were answered.
_SERVER = {
    "http.inbound.downstream_rq_completed": "servers/envoy_rq",
    "cluster.inbound.upstream_rq_total": "servers/nginx_rq",
    "listener.0.0.0.0_15006.no_filter_chain_match": "servers/no_chain",
    "listener.0.0.0.0_15006.ssl.handshake": "servers/mtls_cx",
}


class Envoy(Component):
    image = "envoy"
    versions: ClassVar = {"envoy": "envoy --version"}

    def container(self, at: At) -> Container:
        mounts = [Mount(f"state/{at.pod.pod}", "/etc/envoy")]
        if at.pod.resolver == "getaddrinfo":  # the one that reads it
            mounts.append(Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"))
        quiet = ("--log-level", "warning", "--disable-hot-restart")
        command = ("-c", "/etc/envoy/envoy.json", "--concurrency", "1", *quiet)
        if not mechanisms.ALL[at.pod.mechanism].transparent:
            return Container(command, mounts=tuple(mounts))
        # A socket option that is a privilege: Envoy starts as root and keeps NET_ADMIN alone, as the proxy's user.
        kept = ("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin")
        return Container(
            command,
            entrypoint=("setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", *kept, "envoy"),
            user="0:0",
            capabilities=("NET_ADMIN", "SETUID", "SETGID", "SETPCAP"),
            mounts=tuple(mounts),
        )

    def ready(self, at: At) -> Page:
        if at.pod.arm:
            return {"url": f"{LOOPBACK}:{ISTIO.admin_port}/ready"}
        return at.outer(f"{ISTIO.stats_port}/stats?filter=^server.live$")

    def files(self, at: At) -> dict[str, str]:
        plane = f"{at.world.address(at.nets, 'control-plane')}:{ports.PORT_XDS}"
        started = bootstrap.bootstrap(_node(at.world, at.nets, at.pod), plane)
        return {f"{at.pod.pod}/envoy.json": json.dumps(started, indent=1)}

    def page(self, at: At) -> Page:
        if at.pod.arm:
            return {"url": f"{LOOPBACK}:{ISTIO.admin_port}/stats?format=json&filter={_quoted(_CLIENT_FILTER)}"}
        wanted = "|".join(f"^{re.escape(name)}$" for name in _SERVER)
        return {"url": f"http://{at.address}:{ISTIO.stats_port}/stats?format=json&filter={_quoted(wanted)}"}

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        values = {stat["name"]: stat["value"] for stat in json.loads(body)["stats"] if "value" in stat}
        if not at.pod.arm:
            return {ours: values.get(theirs, 0) for theirs, ours in _SERVER.items()}
        found: dict[str, float] = {}
        for name, value in values.items():
            for pattern, ours in _CLIENT.items():
                if re.fullmatch(pattern, name):
                    found[f"pod/{ours}"] = found.get(f"pod/{ours}", 0) + value
        return found

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if at.pod != client:
            if made.requests and not made.tls:
                yield "requests at the servers' sidecars", counts.get("servers/envoy_rq", 0), made.requests
            return
        if client.dns == "envoy":
            yield from answered(counts)
        if made.requests:
            yield "connections passed through unrouted", counts.get("pod/envoy/passthrough_cx", 0), 0
            if not made.tls:
                yield "requests in the sidecar", counts.get("pod/envoy/cluster_rq", 0), made.requests


def _quoted(pattern: str) -> str:
    return urllib.parse.quote(pattern, safe="")


def _node(world: World, nets: Nets, pod: Pod) -> node.Node:
    """A sidecar, as it introduces itself to the control plane."""
    if not pod.arm:
        return node.Node(pod.pod, world.namespace, nets.pod(pod.host))
    choices = node.Choices(resolver=pod.resolver, dns_server=world.dns_address(pod))
    return node.Node(pod.pod, world.namespace, nets.pod(pod.host), dns=pod.dns, choices=choices)


PART = Envoy()
