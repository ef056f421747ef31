"""What a sidecar of Istio's counted, from its agent's page: lines as Istio's agent and Envoy print them."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from typing import Any

import pytest

from meshdns.core.world import Nets
from meshdns.lab import parts
from meshdns.lab.parts import istio_proxy
from meshdns.lab.parts.component import At
from recording import series
from shipped import WORLD

# After five questions, two of them passed on, and calls of two Services, a ServiceEntry, an address and itself.
PAGE = """\
# TYPE istio_agent_dns_requests_total counter
istio_agent_dns_requests_total 5
istio_agent_dns_upstream_failures_total 2
istio_agent_dns_upstream_request_duration_seconds_bucket{le="+Inf"} 2
istio_agent_dns_upstream_request_duration_seconds_sum 10.001678652999999
istio_agent_dns_upstream_requests_total 2
istio_agent_process_start_time_seconds 1.79601384211e+09
istio_agent_go_gc_duration_seconds{quantile="0"} 3.6e-05
# TYPE envoy_cluster_update_attempt counter
envoy_cluster_update_attempt{cluster_name="PassthroughCluster"} 0
envoy_cluster_update_attempt{cluster_name="outbound|80||web.example.com"} 3
envoy_cluster_update_attempt{cluster_name="outbound|80||web.shop.svc.cluster.local"} 2
# TYPE envoy_cluster_upstream_cx_connect_fail counter
envoy_cluster_upstream_cx_connect_fail{cluster_name="PassthroughCluster"} 0
envoy_cluster_upstream_cx_connect_fail{cluster_name="outbound|80||web.shop.svc.cluster.local"} 1
envoy_listener_downstream_global_cx_overflow{listener_address="0.0.0.0_15001"} 0
envoy_listener_downstream_global_cx_overflow{listener_address="0.0.0.0_15006"} 7
envoy_cluster_upstream_cx_total{cluster_name="PassthroughCluster"} 4
envoy_cluster_upstream_cx_total{cluster_name="outbound|80||legacy.example.com"} 1
envoy_cluster_upstream_cx_total{cluster_name="outbound|80||legacy.shop.svc.cluster.local"} 1
envoy_cluster_upstream_cx_total{cluster_name="outbound|80||web.shop.svc.cluster.local"} 2
envoy_cluster_upstream_rq_completed{cluster_name="PassthroughCluster"} 4
envoy_cluster_upstream_rq_completed{cluster_name="outbound|80||legacy.example.com"} 2
envoy_cluster_upstream_rq_completed{cluster_name="outbound|80||legacy.shop.svc.cluster.local"} 2
envoy_cluster_upstream_rq_completed{cluster_name="outbound|80||web.shop.svc.cluster.local"} 0
envoy_http_downstream_rq_completed{http_conn_manager_prefix="outbound_0.0.0.0_80"} 4
envoy_http_downstream_rq_completed{http_conn_manager_prefix="outbound_0.0.0.0_8080"} 1
envoy_listener_downstream_cx_total{listener_address="0.0.0.0_15001"} 6
envoy_listener_downstream_cx_total{listener_address="0.0.0.0_15006"} 9
envoy_tcp_downstream_cx_total{tcp_prefix="BlackHoleCluster"} 1
"""
FILTER = """\
envoy_dns_filter_mesh_downstream_rx_queries{} 5
envoy_dns_filter_mesh_external_a_record_queries{} 2
envoy_dns_filter_mesh_external_aaaa_record_queries{} 1
"""
SERVER = """\
envoy_http_downstream_rq_completed{http_conn_manager_prefix="inbound_0.0.0.0_8080"} 12
envoy_http_downstream_rq_completed{http_conn_manager_prefix="outbound_0.0.0.0_80"} 4
envoy_listener_no_filter_chain_match{listener_address="0.0.0.0_15001"} 8
envoy_listener_ssl_handshake{listener_address="0.0.0.0_15006"} 3
"""
# As Envoy 1.40 counted 60 requests of which 59 were given up at one replica and then refused by another; more were
# refused by its breaker.
POLICIES = """\
envoy_cluster_external_upstream_rq_completed{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 60
envoy_cluster_outlier_detection_ejections_enforced_success_rate{cluster_name="outbound|80||shop.example.com"} 1
envoy_cluster_outlier_detection_ejections_enforced_total{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 1
envoy_cluster_upstream_rq_active_overflow{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 2
envoy_cluster_upstream_rq_completed{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 60
envoy_cluster_upstream_rq_pending_failure_eject{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 59
envoy_cluster_upstream_rq_pending_overflow{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 5
envoy_cluster_upstream_rq_pending_total{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 178
envoy_cluster_upstream_rq_per_try_timeout{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 58
envoy_cluster_upstream_rq_retry{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 117
envoy_cluster_upstream_rq_retry{cluster_name="outbound|80|v1|shop.shop.svc.cluster.local"} 1
envoy_cluster_upstream_rq_retry_backoff_exponential{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 118
envoy_cluster_upstream_rq_retry_success{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 3
envoy_cluster_upstream_rq_timeout{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 4
envoy_cluster_upstream_rq_total{cluster_name="PassthroughCluster"} 1000
envoy_cluster_upstream_rq_total{cluster_name="inbound|8080||"} 1000
envoy_cluster_upstream_rq_total{cluster_name="outbound|80||shop.shop.svc.cluster.local"} 118
envoy_cluster_upstream_rq_total{cluster_name="outbound|80|v1|shop.shop.svc.cluster.local"} 1
"""


def of(pod: str, *, live: bool = False) -> At:
    world = dataclasses.replace(WORLD, live=live)
    return next(at for at in parts.of(world, Nets(), world.named(pod)) if at.part is istio_proxy.PART)


def counted(pod: str, page: str) -> dict[str, float]:
    at = of(pod)
    return dict(at.part.counts(page, at, WORLD.arms["mode2-agent"]))


def test_each_series_is_counted_under_its_name() -> None:
    assert counted("client-mode2-agent", PAGE) == {
        "pod/dnsproxy/queries": 5, "pod/dnsproxy/forwarded": 2, "pod/envoy/outbound_cx": 6, "pod/envoy/listener_rq": 5,
        "pod/envoy/cluster_cx": 4, "pod/envoy/upstream_cx_fail": 1, "pod/envoy/cluster_rq": 4,
        "pod/envoy/passthrough_cx": 4, "pod/envoy/passthrough_overflow": 0, "pod/envoy/blackhole_cx": 1,
        "pod/envoy/cluster_resolutions": 3,
    }  # fmt: skip


def test_what_policies_make_a_sidecar_do_is_counted_over_outbound_clusters() -> None:
    found = counted("client-mode1", POLICIES)
    assert found == {
        "pod/envoy/tries": 60 + 118, "pod/envoy/retries": 118, "pod/envoy/retry_success": 3,
        "pod/envoy/breaker_overflow": 7, "pod/envoy/rq_timeout": 4, "pod/envoy/per_try_timeout": 58,
        "pod/envoy/ejections": 1, "pod/envoy/cluster_rq": 60,
    }  # fmt: skip
    assert found["pod/envoy/tries"] == 60 + found["pod/envoy/retries"]


def test_envoys_dns_filter_counts_as_the_agents_proxy_does() -> None:
    assert counted("client-mode2-envoy", FILTER) == {"pod/dnsproxy/queries": 5, "pod/dnsproxy/forwarded": 3}


def test_a_server_counts_what_comes_in_and_what_never_happened_as_none() -> None:
    assert counted("web-1", SERVER) == {"servers/envoy_rq": 12, "servers/no_chain": 0, "servers/mtls_cx": 3}


# As Envoy itself calls what the pages above hold, before a label is made of a part.
STATISTICS = (
    "cluster.PassthroughCluster;.upstream_cx_total", "listener.0.0.0.0_15001.downstream_global_cx_overflow",
    "cluster.outbound|80||web.example.com;.update_attempt", "cluster.outbound|80|v1|web.example.com;.upstream_cx_total",
    "cluster.outbound|80||web.example.com;.upstream_cx_connect_fail",
    "cluster.outbound|80||web.example.com;.upstream_rq_completed", "tcp.BlackHoleCluster.downstream_cx_total",
    "http.outbound_0.0.0.0_80;.downstream_rq_completed", "listener.0.0.0.0_15001.downstream_cx_total",
    "dns_filter.mesh.downstream_rx_queries", "dns_filter.mesh.external_a_record_queries",
    "dns_filter.mesh.external_aaaa_record_queries",
)  # fmt: skip
OF_SERVERS = (
    "http.inbound_0.0.0.0_8080;.downstream_rq_completed", "listener.0.0.0.0_15006.no_filter_chain_match",
    "listener.0.0.0.0_15006.ssl.handshake",
)  # fmt: skip
OF_POLICIES = tuple(
    f"cluster.outbound|80||shop.shop.svc.cluster.local;.{name}" for name in (
        "upstream_rq_total", "upstream_rq_pending_failure_eject", "upstream_rq_retry", "upstream_rq_retry_success",
        "upstream_rq_pending_overflow", "upstream_rq_active_overflow", "upstream_rq_timeout",
        "upstream_rq_per_try_timeout", "outlier_detection.ejections_enforced_total",
    )
)  # fmt: skip


def wanted_by(at: At) -> re.Pattern[str]:
    url = at.part.page(at)
    assert url is not None
    return re.compile(urllib.parse.unquote(url["url"].partition("filter=")[2]))


def test_what_policies_do_is_asked_for_where_istio_itself_tells_sidecars_and_hardly_more() -> None:
    live, repeated = wanted_by(of("client-mode1", live=True)), wanted_by(of("client-mode1"))
    assert [name for name in (*STATISTICS, *OF_POLICIES) if not live.search(name)] == []
    assert [name for name in OF_POLICIES if repeated.search(name)] == []
    for name in OF_POLICIES:
        [(_, value)] = counted("client-mode1", f"{series(name)} 17\n").items()
        assert value == 17
    for other in ("upstream_rq_pending_total", "upstream_rq_retry_limit_exceeded", "upstream_rq_per_try_idle_timeout"):
        assert not live.search(f"cluster.outbound|80||x;.{other}")
    assert not live.search("cluster.inbound|8080||;.upstream_rq_total")


@pytest.mark.parametrize(("pod", "names"), [("client-mode1", STATISTICS), ("web-1", OF_SERVERS)])
def test_what_is_counted_is_asked_for_and_hardly_more(pod: str, names: tuple[str, ...]) -> None:
    wanted = wanted_by(of(pod))
    assert [name for name in names if not wanted.search(name)] == []
    for name in names:  # each of them is counted
        [(_, value)] = counted(pod, f"{series(name)} 17\n").items() if pod != "web-1" else [("", 17.0)]
        assert value == 17
    assert pod != "web-1" or sum(counted(pod, "".join(f"{series(name)} 1\n" for name in names)).values()) == len(names)
    for other in ("cluster.outbound|80||x;.upstream_rq_200", "server.live", "http.admin.downstream_rq_completed"):
        assert not wanted.search(other)


def environment(pod: str) -> dict[str, Any]:
    return dict(of(pod).part.container(of(pod)).environment)


def test_dns_is_captured_where_the_agent_or_envoy_answers_it_and_only_one_of_them_has_the_port() -> None:
    asked = {pod: environment(pod) for pod in ("client-mode1", "client-mode2-agent", "client-mode2-envoy", "web-1")}
    assert {pod for pod, each in asked.items() if "ISTIO_META_DNS_CAPTURE" in each} == {
        "client-mode2-agent", "client-mode2-envoy"}  # fmt: skip
    assert {pod for pod, each in asked.items() if "DNS_PROXY_ADDR" in each} == {"client-mode2-envoy"}


def test_what_a_pods_annotation_gives_its_agent_is_the_last_word() -> None:
    pod = dataclasses.replace(WORLD.named("client-mode1"), proxy_metadata={"SECRET_TTL": "20s", "POD_NAME": "other"})
    at = dataclasses.replace(of("client-mode1"), pod=pod)
    given = dict(at.part.container(at).environment)
    assert (given["SECRET_TTL"], given["POD_NAME"]) == ("20s", "other")
    assert json.loads(given["PROXY_CONFIG"])["proxyMetadata"] == pod.proxy_metadata
