"""The sidecar as Istio injects it: its agent gets configuration and certificates, answers DNS, and runs Envoy."""

from __future__ import annotations

import functools
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

from meshdns.core.world import Pod, World
from meshdns.interception import mechanisms
from meshdns.interception.conventions import ISTIO
from meshdns.lab import ports
from meshdns.lab.parts.component import ASKED, IDENTITY, At, Component, Container, Counts, Made, Mount, Page, Pairs

_SECRETS = "/var/run/secrets"
_OUTBOUND = r'cluster_name="outbound\|\d+\|[\w-]*\|[\w.-]+"'
# A series of the agent's page (its own, and Envoy's with the labels that Istio's bootstrap gives them) -> our name;
# several may add up to one.
_CLIENT = {
    r"istio_agent_dns_requests_total": "dnsproxy/queries",
    r"istio_agent_dns_upstream_requests_total": "dnsproxy/forwarded",
    r"envoy_dns_filter_mesh_downstream_rx_queries": "dnsproxy/queries",
    r"envoy_dns_filter_mesh_external_a+_record_queries": "dnsproxy/forwarded",
    r'envoy_listener_downstream_cx_total{listener_address="0.0.0.0_15001"}': "envoy/outbound_cx",
    r'envoy_http_downstream_rq_completed{http_conn_manager_prefix="outbound_.*"}': "envoy/listener_rq",
    rf"envoy_cluster_upstream_cx_total{{{_OUTBOUND}}}": "envoy/cluster_cx",
    rf"envoy_cluster_upstream_cx_connect_fail{{{_OUTBOUND}}}": "envoy/upstream_cx_fail",
    rf"envoy_cluster_upstream_rq_completed{{{_OUTBOUND}}}": "envoy/cluster_rq",
    r'envoy_cluster_upstream_cx_total{cluster_name="PassthroughCluster"}': "envoy/passthrough_cx",
    r'envoy_listener_downstream_global_cx_overflow{listener_address="0.0.0.0_15001"}': "envoy/passthrough_overflow",
    r'envoy_tcp_downstream_cx_total{tcp_prefix="BlackHoleCluster"}': "envoy/blackhole_cx",
    # Sent, or not because no connection came about; what a breaker refuses is in neither. `completed` lacks what was
    # given up to be tried again.
    rf"envoy_cluster_upstream_rq_(total|pending_failure_eject){{{_OUTBOUND}}}": "envoy/tries",
    rf"envoy_cluster_upstream_rq_retry{{{_OUTBOUND}}}": "envoy/retries",
    rf"envoy_cluster_upstream_rq_retry_success{{{_OUTBOUND}}}": "envoy/retry_success",
    rf"envoy_cluster_upstream_rq_(pending_overflow|active_overflow){{{_OUTBOUND}}}": "envoy/breaker_overflow",
    rf"envoy_cluster_upstream_rq_timeout{{{_OUTBOUND}}}": "envoy/rq_timeout",
    rf"envoy_cluster_upstream_rq_per_try_timeout{{{_OUTBOUND}}}": "envoy/per_try_timeout",
    rf"envoy_cluster_outlier_detection_ejections_enforced_total{{{_OUTBOUND}}}": "envoy/ejections",
}
_CLIENT_FILTER = (
    r"dns_filter\.mesh\.(downstream_rx_queries|external_a+_record_queries)"
    r"|listener\.0\.0\.0\.0_15001\.downstream_(cx_total|global_cx_overflow)"
    r"|http\.outbound_.*\.downstream_rq_completed|tcp\.BlackHoleCluster\.downstream_cx_total"
    r"|cluster\.(outbound\|.*|PassthroughCluster);\.(upstream_(cx_total|cx_connect_fail|rq_completed)"
    r"|update_attempt)"
)
# What policies make a sidecar do: asked for where there are any, since the page is read around every trial.
_POLICIES_FILTER = (
    r"cluster\.outbound\|.*;\.(upstream_rq_(total|pending_(failure_eject|overflow)|active_overflow|retry(_success)?"
    r"|(per_try_)?timeout)|outlier_detection\.ejections_enforced_total)"
)
_SERVER = {
    r'envoy_http_downstream_rq_completed{http_conn_manager_prefix="inbound_0.0.0.0_8080;?"}': "servers/envoy_rq",
    r'envoy_listener_no_filter_chain_match{listener_address="0.0.0.0_15006"}': "servers/no_chain",
    r'envoy_listener_ssl_handshake{listener_address="0.0.0.0_15006"}': "servers/mtls_cx",
}
_SERVER_FILTER = (
    r"http\.inbound_.*\.downstream_rq_completed|listener\.0\.0\.0\.0_15006\.(no_filter_chain_match|ssl\.handshake)"
)
# A sidecar that connects to itself without end takes all descriptors there are, and ends: Istio sets no limit.
_LIMITED = {"runtimeValues": {"overload.global_downstream_max_connections": "1000"}}
# Of a Prometheus page: name with labels, value. The agent's other series are of its own memory.
_SERIES = re.compile(r"^((?:envoy|istio_agent_dns)_\w+(?:\{.+\})?)(?:\{\})? ([0-9.e+]+)$", re.MULTILINE)


class IstioProxy(Component):
    image = "sidecar"
    versions: ClassVar = {"envoy": "envoy --version", "istio": "pilot-agent version --short"}

    def container(self, at: At) -> Container:
        quiet = ("--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:warn")
        own = ("proxy", "sidecar", "--domain", at.world.search[0], *quiet)
        common: dict[str, Any] = {
            "mounts": (
                Mount(f"state/{at.resolv_conf}", "/etc/resolv.conf"),
                Mount(f"state/{at.service}", "/etc/istio/pod"),
                *_identity(at),
            ),
            "environment": dict(_environment(at)),
            "writable": ("/etc/istio/proxy", f"{_SECRETS}/workload-spiffe-uds"),
        }
        if not mechanisms.ALL[at.pod.mechanism].transparent:
            return Container(own, **common)
        # A socket option that is a privilege: the agent starts as root and keeps NET_ADMIN alone, as the proxy's user.
        kept = ("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin")
        return Container(
            own,
            entrypoint=("setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", *kept, "pilot-agent"),
            user="0:0",
            capabilities=("NET_ADMIN", "SETUID", "SETGID", "SETPCAP"),
            **common,
        )

    def files(self, at: At) -> dict[str, str]:
        """See `Component`: what the node would tell of the pod."""
        labels = "".join(f'{key}="{value}"\n' for key, value in sorted(at.pod.labels.items()))
        return {f"{at.service}/labels": labels}

    def ready(self, at: At) -> Page:
        page = f"{ISTIO.ready_port}/healthz/ready"
        return at.inner(page) if at.pod.arm else at.outer(page)

    def page(self, at: At) -> Page:
        client = (_CLIENT_FILTER, *[_POLICIES_FILTER] * at.world.live)
        wanted = "|".join(client) if at.pod.arm else _SERVER_FILTER
        # The agent's page is Envoy's and its own, and takes twice as long: it is asked where its DNS proxy counts.
        port = ISTIO.status_port if at.pod.dns == "agent" else ISTIO.stats_port
        page = f"{port}/stats/prometheus?filter={urllib.parse.quote(f'^({wanted})$', safe='')}"
        return at.inner(page) if at.pod.arm else at.outer(page)

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        names, front = (_CLIENT | _resolving(at.world), "pod/") if at.pod.arm else (_SERVER, "")
        found: dict[str, float] = {} if at.pod.arm else dict.fromkeys(names.values(), 0.0)
        for series, value in _SERIES.findall(body):
            for pattern, ours in names.items():
                if _compiled(pattern).fullmatch(series):
                    found[front + ours] = found.get(front + ours, 0) + float(value)
        return found

    def equal(self, at: At, client: Pod, counts: Counts, made: Made) -> Pairs:
        if at.pod != client:
            if made.requests and not made.tls:
                yield "requests at the servers' sidecars", counts.get("servers/envoy_rq", 0), made.requests
            return
        if client.dns_proxy:
            asked = counts.get("pod/dnsproxy/queries", 0), counts.get(ASKED, 0)
            yield "queries at the DNS proxy, against the client's", *asked
        if made.requests:
            yield "connections passed through unrouted", counts.get("pod/envoy/passthrough_cx", 0), 0
            if not made.tls:
                yield "requests in the sidecar", counts.get("pod/envoy/cluster_rq", 0), made.requests


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Of a series, whose braces are none of the pattern's."""
    return re.compile(pattern.replace("{", r"\{").replace("}", r"\}"))


def handed(service: str, file: str) -> str:
    """Where, among the files of the place, a live plane puts what a node would mount into a sidecar."""
    return f"{service}-live/{file}"


def _identity(at: At) -> Iterator[Mount]:
    """Who it is: a certificate that was made for it, or what it gets one with from Istio's authority."""
    if not at.world.live:
        yield Mount(IDENTITY + at.pod.account, f"{_SECRETS}/workload-spiffe-credentials")
        return
    for folder in ("tokens", "istio"):
        yield Mount(f"state/{handed(at.service, folder)}", f"{_SECRETS}/{folder}")


def _resolving(world: World) -> dict[str, str]:
    """How often Envoy resolved endpoints itself, in the clusters that do."""
    hosts = "|".join(re.escape(service.host) for service in world.told if service.resolved)
    return {rf'envoy_cluster_update_attempt{{cluster_name="outbound\|\d+\|\|({hosts})"}}': "envoy/cluster_resolutions"}


def _environment(at: At) -> Iterator[tuple[str, str]]:
    """As the injector and the node give it."""
    pod, address = at.pod, at.address
    config: dict[str, Any] = {}
    if not at.world.live:  # else Istio's own default
        config["discoveryAddress"] = f"{at.world.address(at.nets, 'recorded')}:{ports.PORT_XDS}"
        config["controlPlaneAuthPolicy"] = "NONE"
    config |= {
        "binaryPath": "/usr/local/bin/envoy",
        "proxyBootstrapTemplatePath": "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json",
        "concurrency": 1,
        "terminationDrainDuration": "0s",
        "proxyStatsMatcher": {"inclusionRegexps": [".*"]},
        "proxyMetadata": {**pod.proxy_metadata},
    } | ({} if pod.guarded else _LIMITED)
    yield "PROXY_CONFIG", json.dumps(config)
    if not at.world.live:
        yield "ISTIO_DELTA_XDS", "false"
    yield "POD_NAME", pod.pod
    yield "POD_NAMESPACE", at.world.namespace
    yield "SERVICE_ACCOUNT", pod.account
    yield "INSTANCE_IP", address
    yield "HOST_IP", address
    yield "TRUST_DOMAIN", at.world.domain
    yield "ISTIO_META_CLUSTER_ID", "Kubernetes"
    yield "ISTIO_META_MESH_ID", at.world.domain
    yield "ISTIO_META_APP_CONTAINERS", "app"
    yield "ISTIO_META_WORKLOAD_NAME", pod.pod
    yield "ISTIO_META_NODE_NAME", "node"
    yield "ISTIO_META_INTERCEPTION_MODE", "REDIRECT"  # as for Istio's own rules; what else captures is ours
    yield "CLOUD_PLATFORM", "none"  # else the agent asks three clouds for it
    if pod.told_virtual_ips:
        yield "ISTIO_META_DNS_CAPTURE", "true"
    if pod.told_virtual_ips and pod.dns != "agent":  # its own proxy is in nobody's way
        yield "DNS_PROXY_ADDR", f"127.0.0.1:{ports.PORT_DNS_ASIDE}"
    yield from pod.proxy_metadata.items()


PART = IstioProxy()
