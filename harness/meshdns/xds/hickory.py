"""Envoy's Hickory resolver (since 1.38), whose message the bindings do not have yet: the one field of it that is used.

Reference: `envoy/extensions/network/dns_resolver/hickory/v3/hickory_dns_resolver.proto`.
"""

from __future__ import annotations

from envoy.config.core.v3 import address_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "envoy.extensions.network.dns_resolver.hickory.v3"


def register() -> None:
    """From now on protobuf knows the message; nothing happens where the bindings brought it."""
    pool = descriptor_pool.Default()
    try:
        pool.FindMessageTypeByName(f"{PACKAGE}.HickoryDnsResolverConfig")
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto(
            name="envoy/extensions/network/dns_resolver/hickory/v3/hickory_dns_resolver.proto",
            package=PACKAGE,
            syntax="proto3",
            dependency=[address_pb2.DESCRIPTOR.name],
        )
        message = file.message_type.add(name="HickoryDnsResolverConfig")
        message.field.add(
            name="resolvers",
            number=1,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
            type_name=".envoy.config.core.v3.Address",
        )
        pool.Add(file)
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.HickoryDnsResolverConfig"))
