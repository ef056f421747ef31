"""Aggregated discovery, state of the world: each pod is told what was recorded for it; nothing changes afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from .answers import Told

_STREAMS = 256  # each holds a thread: one for a sidecar
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # The agent asks every half minute whether the connection stands; who does is hung up on, by default.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
]


@dataclass
class Stream:
    """What one sidecar has asked for, and is answered."""

    answers: Mapping[str, Told]
    pod: str = ""
    sent: int = 0
    asked: dict[str, list[str]] = field(default_factory=dict)  # type URL -> names, as asked last

    def answer(self, request: Any) -> Any | None:
        """The response to a request; None where it acknowledges, or rejects, the last one."""
        if request.node.id:
            self.pod = pod_of(request.node.id)
        names = list(request.resource_names)
        if request.HasField("error_detail"):
            said = f"{self.pod} rejects {request.type_url}: {request.error_detail.message}"
            print(said, file=sys.stderr, flush=True)
            return None
        if request.response_nonce and self.asked.get(request.type_url) == names:
            return None
        known = self.answers.get(self.pod, {}).get(request.type_url)
        if known is None:
            return None
        self.asked[request.type_url] = names
        self.sent += 1
        found = [known[name] for name in names if name in known] if names else known.values()
        return discovery_pb2.DiscoveryResponse(
            type_url=request.type_url, version_info="recorded", nonce=str(self.sent), resources=found
        )


class Plane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # generated, without types
    """The service."""

    def __init__(self, answers: Mapping[str, Told]) -> None:
        self._answers = answers

    def StreamAggregatedResources(self, requests: Iterable[Any], context: Any) -> Iterator[Any]:  # noqa: N802  gRPC's name
        """One sidecar's stream."""
        stream = Stream(self._answers)
        for request in requests:
            response = stream.answer(request)
            if response is not None:
                yield response


def pod_of(node: str) -> str:
    """The pod that a node is in: `sidecar~198.18.0.44~client-mode1.shop~shop.svc.cluster.local`."""
    parts = node.split("~")
    return parts[2].rpartition(".")[0] if len(parts) == 4 else node


def serve(answers: Mapping[str, Told], listen: str) -> Any:
    """A server that has started."""
    server = grpc.server(futures.ThreadPoolExecutor(_STREAMS), options=_OPTIONS)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Plane(answers), server)
    server.add_insecure_port(listen)
    server.start()
    return server
