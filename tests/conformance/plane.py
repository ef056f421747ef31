"""The least that Istio's agent needs to get a name table: a discovery server, and who asks it as Envoy would.

The agent asks for its table only once Envoy has asked for listeners (pkg/istio-agent/xds_proxy.go).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2

TABLE = "type.googleapis.com/istio.networking.nds.v1.NameTable"
LISTENERS = "type.googleapis.com/envoy.config.listener.v3.Listener"
PATIENCE_S = 20.0
_FIELDS = {"ips": 1, "registry": 2, "shortname": 3, "namespace": 4, "alt_hosts": 5}  # of NameInfo


def encoded(table: Mapping[str, Any]) -> bytes:
    """istio.networking.nds.v1.NameTable: a map from host to NameInfo, all of it strings."""
    return b"".join(
        _field(1, _field(1, host.encode()) + _field(2, b"".join(_info(entry)))) for host, entry in table.items()
    )


def _info(entry: Mapping[str, Any]) -> Iterator[bytes]:
    for key, number in _FIELDS.items():
        value = entry.get(key) or []
        for text in [value] if isinstance(value, str) else value:
            yield _field(number, text.encode())


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    made = b""
    while value > 0x7F:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


class Plane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]  # ships no types
    """Tells the agent its table, and anew when there is another; of all else there is nothing."""

    def __init__(self) -> None:
        self._table: bytes | None = None
        self._version = 0
        self._taken: dict[int, str] = {}  # version -> what was wrong with it
        self._changed = threading.Condition()
        self._streams: list[queue.Queue[Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def put(self, table: Mapping[str, Any]) -> None:
        """The agent has taken this table when it returns."""
        self.offer(table)
        self.taken()

    def offer(self, table: Mapping[str, Any]) -> None:
        """From now on the table is this."""
        with self._changed:
            self._table, self._version = encoded(table), self._version + 1
            for stream in self._streams:
                stream.put(None)

    def taken(self) -> None:
        """Waits until the agent has the last one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._version in self._taken, PATIENCE_S):
                raise TimeoutError("the agent has not taken its name table")
            if wrong := self._taken[self._version]:
                raise ValueError(f"the agent refused its name table: {wrong}")

    def close(self) -> None:
        """No more."""
        self._server.stop(None)

    def StreamAggregatedResources(self, requests: Any, _: Any) -> Iterator[Any]:  # noqa: N802  gRPC's name
        """One agent."""
        work: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=_pour, args=(requests, work), daemon=True).start()
        with self._changed:
            self._streams.append(work)
        subscribed = False
        while (got := work.get()) is not StopIteration:
            if got is not None and got.response_nonce:
                self._note(got)
            elif got is not None and got.type_url != TABLE:
                yield discovery_pb2.DiscoveryResponse(type_url=got.type_url, version_info="1", nonce="other")
            else:
                subscribed |= got is not None
                if subscribed and self._table is not None:
                    yield self._response()

    def _response(self) -> Any:
        version = str(self._version)
        held = [any_pb2.Any(type_url=TABLE, value=self._table)]
        return discovery_pb2.DiscoveryResponse(type_url=TABLE, version_info=version, nonce=version, resources=held)

    def _note(self, request: Any) -> None:
        if request.type_url == TABLE:
            with self._changed:
                self._taken[int(request.response_nonce)] = request.error_detail.message
                self._changed.notify_all()


def _pour(requests: Any, work: queue.Queue[Any]) -> None:
    try:
        for request in requests:
            work.put(request)
    except grpc.RpcError:
        pass
    finally:
        work.put(StopIteration)


def ask_as_envoy(path: Path, stop: threading.Event) -> None:
    """Asks for listeners on the agent's socket, once it is there, and stays."""
    while not path.exists():
        if stop.wait(0.01):
            return

    def requests() -> Iterator[Any]:
        yield discovery_pb2.DiscoveryRequest(type_url=LISTENERS, node=base_pb2.Node(id="sidecar~127.0.0.1~a.b~b"))
        stop.wait()

    while not stop.is_set():
        with grpc.insecure_channel(f"unix:{path}") as channel:
            try:
                for _ in ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources(requests()):
                    pass
            except grpc.RpcError:
                time.sleep(0.02)
