"""A sidecar as the control plane sees it: who it is, and what was chosen for it that no resource says.

Envoy carries all of it in its node's metadata, so that a control plane knows a sidecar by its first message.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from meshdns.core import errors
from meshdns.core.schema import Labels
from meshdns.istio.resources import Protocol

Resolver = Literal["c-ares", "getaddrinfo", "hickory"]
Dns = Literal["cluster", "envoy", "agent"]
Headless = Literal["original-dst", "eds"]


@dataclass(frozen=True)
class Choices:
    """How a sidecar finds addresses, and whom it trusts outside the mesh."""

    resolver: str = "c-ares"  # of clusters with DNS discovery and of the DNS listener
    dns_server: str = "10.96.0.10"  # whom that resolver asks, on UDP port 53
    headless: Headless = "original-dst"  # Istio's default: a headless Service is reached where the client goes
    trusted_ca: str = ""  # file in the sidecar's container for TLS mode SIMPLE; empty: servers are not verified


@dataclass(frozen=True)
class Node:
    """One sidecar."""

    pod: str
    namespace: str
    address: str
    labels: Labels = ()
    dns: str = "cluster"  # who answers the pod's DNS: the cluster DNS, this Envoy, or a proxy beside it
    guarded: bool = True  # connections to the sidecar's own ports go nowhere
    transparent: bool = False  # TPROXY hands connections over with their addresses as they were
    ports: tuple[tuple[int, Protocol], ...] = ()  # its application's ports, where no Service names them
    choices: Choices = field(default=Choices())

    @property
    def id(self) -> str:
        """`namespace/pod`, unique in a mesh."""
        return f"{self.namespace}/{self.pod}"

    @property
    def dns_proxy(self) -> bool:
        """Mode 2: virtual IPs are known in this pod."""
        return self.dns != "cluster"

    def metadata(self) -> dict[str, Any]:
        """Everything above, for the bootstrap."""
        return {
            **dataclasses.asdict(self),
            "labels": dict(self.labels),
            "ports": [{"number": number, "protocol": protocol.value} for number, protocol in self.ports],
        }


def parse(metadata: Mapping[str, Any]) -> Node:
    """The node of which this is the metadata; protobuf's JSON makes numbers floats. InputError if it is not one."""
    try:
        choices = Choices(**metadata["choices"])
        ports = tuple((int(one["number"]), Protocol(one["protocol"])) for one in metadata["ports"])
        labels = tuple(sorted(metadata["labels"].items()))
        node = Node(**{**metadata, "labels": labels, "ports": ports, "choices": choices})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refusal(f"the metadata do not describe a sidecar of ours ({error!r})") from None
    for value, allowed in ((node.dns, Dns), (choices.resolver, Resolver), (choices.headless, Headless)):
        if value not in get_args(allowed):
            raise _refusal(f"{value!r} is not one of {', '.join(get_args(allowed))}")
    return node


def _refusal(fact: str) -> errors.InputError:
    return errors.InputError(fact, place="node", step="start the sidecar with the bootstrap of this version")
