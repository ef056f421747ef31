"""The fast way from JSON to protobuf says what protobuf's own reader says."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format, message_factory
from hypothesis import given, settings
from test_compile import build, nodes

import generators
from meshdns.xds import encoding, messages
from meshdns.xds.compile import Compiler
from meshdns.xds.encoding import CDS, LDS
from meshdns.xds.node import Node

CLUSTER, LISTENER = CDS.rpartition("/")[2], LDS.rpartition("/")[2]


def slowly(name: str, body: dict[str, Any]) -> Any:
    return json_format.ParseDict(body, message_factory.GetMessageClass(messages._descriptor(name))())


@settings(max_examples=40, deadline=None)
@given(mesh=generators.meshes(), node=nodes())
def test_every_resource_of_any_mesh_is_read_alike(mesh: list[generators.Document], node: Node) -> None:
    for type_url, resources in Compiler(build(*mesh)).snapshot(node).items():
        for name, body in resources.items():
            encoding.encode(type_url, name, body)  # loads the types
            message = type_url.rpartition("/")[2]
            assert messages.parse(message, body) == slowly(message, body)


_TYPED = {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "cluster": "a"}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (CLUSTER, {"name": "a", "connect_timeout": "1.5s", "dns_refresh_rate": "0.000000001s"}),
        (CLUSTER, {"name": "a", "connectTimeout": "1s", "type": "STATIC"}),  # JSON's other spelling
        (CLUSTER, {"name": "a", "type": 3, "lb_policy": "MAGLEV"}),
        (CLUSTER, {"name": None, "alt_stat_name": "x"}),
        (CLUSTER, {"name": "a", "ring_hash_lb_config": {"minimum_ring_size": "7"}}),
        (CLUSTER, {"name": "a", "common_lb_config": {"healthy_panic_threshold": {"value": "NaN"}}}),
        (CLUSTER, {"name": "a", "metadata": {"filter_metadata": {"x": {"a": [1, {"b": None}, "c", True, 2.5]}}}}),
        (CLUSTER, {"name": "a", "per_connection_buffer_limit_bytes": 5}),
        (LISTENER, {"name": "l", "filter_chains": [{"filters": [{"name": "t", "typed_config": _TYPED}]}]}),
        (LISTENER, {"name": "l", "filter_chains": []}),
    ],
)
def test_every_form_of_a_value_is_read_alike(name: str, body: dict[str, Any]) -> None:
    encoding.encode(f"type.googleapis.com/{name}", "x", {key: one for key, one in body.items() if one is not None})
    assert str(messages.parse(name, body)) == str(slowly(name, body))  # as text, since NaN equals nothing


@pytest.mark.parametrize(
    "body",
    [{"nope": 1}, {"name": 5}, {"type": "NO"}, {"connect_timeout": "soon"}, {"connect_timeout": 5},
     {"ring_hash_lb_config": {"minimum_ring_size": 1.5}}, {"per_connection_buffer_limit_bytes": -1},
     {"load_assignment": {"endpoints": {"a": 1}}}],
)  # fmt: skip
def test_what_is_wrong_is_said_in_protobufs_words(body: dict[str, Any]) -> None:
    with pytest.raises(json_format.ParseError):
        messages.parse(CLUSTER, body)
