"""Asks an istiod what it would tell each sidecar of a world, as the agent in its pod would ask."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import json_format

from meshdns.ads import answers
from meshdns.ads.types import CDS, EDS, LDS, NDS, RDS, Resource, hosts
from meshdns.core import errors
from meshdns.core.world import Nets, Pod, World
from meshdns.interception.conventions import ISTIO
from meshdns.lab import recording
from meshdns.lab.recording import Recording

TIMEOUT_S = 20
_META = "ISTIO_META_"  # what begins so in its environment, an agent says of its pod
Answer = TypeVar("Answer")
_PACKED = re.compile(rb"type\.googleapis\.com/([\w.]+)")


def record(world: World, nets: Nets, istiod: str, version: str) -> Recording:
    """What every injected pod is told by the istiod at this address, of this version. Raises TestbedError."""
    nodes = {pod.pod: node(world, nets, pod) for pod in world.injected}
    told = {pod: _asked(istiod, pod, partial(_ask, known=known)) for pod, known in nodes.items()}
    return recording.of(world, version, nodes, told, nets)


def names(world: World, nets: Nets, pod: Pod, istiod: str) -> dict[str, list[str]]:
    """What a pod's agent is told of names: host -> addresses. Raises TestbedError."""
    return hosts(_asked(istiod, pod.pod, lambda channel: _Stream(channel, node(world, nets, pod)).ask(NDS)))


def _asked(istiod: str, pod: str, ask: Callable[[grpc.Channel], Answer]) -> Answer:
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
    try:
        with grpc.insecure_channel(istiod, options=options) as channel:
            return ask(channel)
    except grpc.RpcError as error:
        fact, step = f"does not answer for {pod} ({error.code()})", "see `meshdns logs istiod`"
        raise errors.TestbedError(fact, place=istiod, step=step) from None


def node(world: World, nets: Nets, pod: Pod) -> Resource:
    """What the agent of a pod says of it: what the injector and the node have given it."""
    address = world.address(nets, pod.pod)
    metadata = {
        "APP_CONTAINERS": "app",
        "CLUSTER_ID": "Kubernetes",
        "ENVOY_PROMETHEUS_PORT": ISTIO.stats_port,
        "ENVOY_STATUS_PORT": ISTIO.ready_port,
        "INSTANCE_IPS": address,
        "INTERCEPTION_MODE": "REDIRECT",  # as for Istio's own rules; what else captures is ours
        "LABELS": dict(sorted(pod.labels.items())),
        "MESH_ID": world.domain,
        "METADATA_DISCOVERY": "false",
        "NAME": pod.pod,
        "NAMESPACE": world.namespace,
        "NODE_NAME": "node",
        "PROXY_CONFIG": {"concurrency": 1, "statusPort": ISTIO.status_port},
        "SERVICE_ACCOUNT": pod.account,
        "WORKLOAD_NAME": pod.pod,
    } | ({"DNS_CAPTURE": "true"} if pod.told_virtual_ips else {})
    metadata |= {key.removeprefix(_META): value for key, value in pod.proxy_metadata.items() if key.startswith(_META)}
    return {
        "id": f"sidecar~{address}~{pod.pod}.{world.namespace}~{world.search[0]}",
        "cluster": f"{pod.labels.get('app', 'istio-proxy')}.{world.namespace}",
        "metadata": metadata,
    }


class _Stream:
    """State of the world: each type asked for, once what it depends on is known."""

    def __init__(self, channel: grpc.Channel, known: Resource) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._node = json_format.ParseDict(known, base_pb2.Node())
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        self._responses = stub.StreamAggregatedResources(iter(self._requests.get, None), timeout=TIMEOUT_S)

    def ask(self, url: str, names: Iterable[str] = ()) -> list[Resource]:
        """All resources of a type, or those of these names."""
        self._requests.put(discovery_pb2.DiscoveryRequest(type_url=url, resource_names=[*names], node=self._node))
        response = next(each for each in self._responses if each.type_url == url)
        return [_json(each) for each in response.resources]

    def close(self) -> None:
        """Nobody asks any more."""
        self._requests.put(None)
        self._responses.cancel()


def _ask(channel: grpc.Channel, known: Resource) -> dict[str, list[Resource]]:
    """Everything that one pod is told."""
    stream = _Stream(channel, known)
    clusters = stream.ask(CDS)
    endpoints = sorted(_endpoints(clusters))
    listeners = stream.ask(LDS)
    routes = sorted(_routes(listeners))
    found = {
        CDS: clusters,
        EDS: stream.ask(EDS, endpoints) if endpoints else [],
        LDS: listeners,
        RDS: stream.ask(RDS, routes) if routes else [],  # nothing would be answered
        NDS: stream.ask(NDS),
    }
    stream.close()
    return found


def _json(message: Any) -> Resource:
    """As JSON; what is packed in it says its type in plain text."""
    answers.know(name.decode() for name in _PACKED.findall(message.value))
    return answers.unpacked(message)


def _endpoints(clusters: Iterable[Resource]) -> Iterator[str]:
    """The names under which clusters ask for their endpoints."""
    for cluster in clusters:
        if cluster.get("type") == "EDS":
            yield cluster.get("edsClusterConfig", {}).get("serviceName") or cluster["name"]


def _routes(value: object) -> Iterator[str]:
    """The names of route tables that listeners ask for."""
    if isinstance(value, Mapping):
        if "routeConfigName" in value:
            yield value["routeConfigName"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _routes(each)
