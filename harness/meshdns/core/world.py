"""What a testbed is made of, as one value: pods, Services and addresses. It is kept with each run, as world.json.

`lab.world` reads it from Kubernetes manifests; whoever reads a run takes it from there, so that a run is understood by
what it was made of.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

NOBODY = 90  # an address of the world outside where no pod is: who calls it was taken there by a sidecar
LIVE = "live"  # the group of Istio's own control plane; without it sidecars are told what was recorded
RECORDED = "recorded"  # the part that tells them
CORE = "core"  # the group of pods that every testbed has; the others come up for the plans that need them
OUTSIDE = "outside"  # the group of servers on the world's network


def search(namespace: str, domain: str) -> tuple[str, ...]:
    """The search list of a namespace's pods."""
    return f"{namespace}.svc.{domain}", f"svc.{domain}", domain


@dataclass(frozen=True)
class Nets:
    """The networks, each named by the first three octets of its /24."""

    pods: str = "198.18.0"
    world: str = "198.19.0"
    plane: str = "198.19.128"  # of Istio's own control plane, where it is live

    def pod(self, host: int) -> str:
        """Address number `host` on the pod network."""
        return f"{self.pods}.{host}"

    def cidrs(self, *, live: bool = False) -> tuple[str, ...]:
        """Those that a testbed has, as CIDR blocks."""
        return tuple(f"{net}.0/24" for net in (self.pods, self.world, *[self.plane] * live))

    def problem(self) -> str:
        """Why these networks cannot be used, or an empty string."""
        bench = ipaddress.ip_network("198.18.0.0/15")
        every = self.cidrs(live=True)
        for cidr in every:
            try:
                net = ipaddress.ip_network(cidr)
            except ValueError:
                return f"{cidr} is not a network"
            if not net.subnet_of(bench):  # type: ignore[arg-type]
                return f"{cidr} is outside 198.18.0.0/15, the range that never leaves a machine"
        return "" if len({*every}) == len(every) else "two of the networks are the same"


@dataclass(frozen=True)
class Pod:
    """A pod. One that has an arm is a client: the application is the same in all, only what is around it differs."""

    pod: str
    host: int  # its address on the pod network, or on that of the world outside
    part: str  # what runs in it
    parts: tuple[str, ...] = ()  # of several: all of them
    network: str = "pods"
    group: str = CORE
    arm: str = ""  # of a client, the plan's word for it
    backend: str = ""  # the plan's word for the pod alone, called by its address
    sidecar: bool = False  # outbound and inbound TCP go through Envoy
    dns: str = "cluster"  # who answers port 53: the cluster DNS, Envoy's filter, or a proxy with the agent's semantics
    mechanism: str = "iptables"  # what captures
    guarded: bool = True  # the sidecar refuses connections to its own ports
    virtual_ips: bool = False  # the sidecar knows them although no proxy in the pod answers them
    account: str = "default"  # its service account
    labels: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[int, ...] = ()  # ports of its own that are not captured
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)  # its agent's environment, as its annotation has it
    answers: bool = False  # asks for names that are answered in unusual ways
    outside: bool = False  # on the world's network too, where servers outside are up
    plane: bool = False  # on the control plane's network too
    name_server: str = ""  # ClusterIP of its cluster DNS, where it has another one than is usual
    ready: bool = True  # otherwise it is spare: unready until it is wanted
    needs_live: str = ""  # why a part in it does not do without Istio's own control plane
    ports: tuple[int, ...] = ()  # of its containers: plain and TLS

    @property
    def dns_proxy(self) -> bool:
        """Port 53 goes to a DNS proxy inside the pod."""
        return self.dns != "cluster"

    @property
    def told_virtual_ips(self) -> bool:
        """Istio tells its sidecar virtual IPs, as it does where names are captured."""
        return self.dns_proxy or self.virtual_ips

    def intercepted(self) -> str:
        """What is taken, by what, in words."""
        taken = ["tcp out and in"] if self.sidecar else []
        taken += ["dns udp and tcp"] if self.dns_proxy else []
        return f"{', '.join(taken)} ({self.mechanism})" if taken else "nothing"


@dataclass(frozen=True)
class Service:
    """A Service, a ServiceEntry, or a pod that is called by its own address."""

    name: str
    host: str  # its whole name, without the final dot
    backend: str  # the plan's word for it; empty: no plan calls it
    cluster_ip: str = ""
    virtual_ip: str = ""  # of a ServiceEntry, where Istio has allocated one: what mode 2 answers
    replicas: Mapping[str, int] = field(default_factory=dict)  # pods behind it, each with its host number
    meshed: bool = False  # its replicas have a sidecar
    group: str = CORE  # sidecars are told of it where pods of this group are up
    ports: tuple[int, ...] = ()  # plain and TLS, as clients call it
    target_ports: tuple[int, ...] = ()
    external: bool = False  # a name outside the cluster's domain
    served_by: str = ""  # the pod that the world's DNS answers with
    resolved: bool = False  # a sidecar finds its replicas by resolving a name
    watched: bool = False  # a sidecar is told its replicas one by one, or resolves them
    by_address: bool = False  # a pod alone, called by its own address

    @property
    def hosts(self) -> tuple[int, ...]:
        """Endpoints, as host numbers on the pod network."""
        return tuple(self.replicas.values())


@dataclass(frozen=True)
class Answer:
    """An address that a name may be answered with, and the port an application would then use."""

    address: str  # {pods}: the pod network; {own}: the asking pod
    port: int

    def of(self, nets: Nets, client: Pod) -> str:
        """The address as this pod is told it."""
        return self.address.format(pods=nets.pods, own=nets.pod(client.host))


@dataclass(frozen=True)
class Manifest:
    """One document as it was given, for those who hand it on."""

    file: str
    document: Mapping[str, Any]
    group: str = CORE  # as of the Service that it is, or belongs to

    @property
    def api(self) -> str:
        """Its API's group and version."""
        return str(self.document["apiVersion"])

    @property
    def kind(self) -> str:
        """As it says itself."""
        return str(self.document["kind"])

    @property
    def name(self) -> str:
        """Within its namespace."""
        return str(self.document["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Of one that has one."""
        return str(self.document["metadata"].get("namespace", "default"))

    @property
    def service(self) -> str:
        """The Service that an EndpointSlice is of."""
        return str((self.document["metadata"].get("labels") or {}).get("kubernetes.io/service-name", ""))

    @property
    def created(self) -> str:
        """When it says that it was made; among equals Istio lets the oldest win."""
        return str(self.document["metadata"].get("creationTimestamp") or "")


@dataclass(frozen=True)
class World:
    """All of it."""

    namespace: str
    domain: str
    cluster_ips: str
    virtual_ips: str
    unroutable: str  # nobody is there (RFC 5737)
    dns_cluster_ip: str
    external_name: str  # no ServiceEntry has it
    external_pod: str  # that it leads to
    lookup: str  # the Service that lookups ask for
    pods: tuple[Pod, ...]
    services: tuple[Service, ...]
    answers: Mapping[str, Answer]
    manifests: tuple[Manifest, ...] = ()
    live: bool = False  # Istio's own control plane configures sidecars, and not what it was recorded to say
    cluster_dns: Mapping[str, str] = field(default_factory=dict)  # ClusterIP of each -> the pod that answers there

    @cached_property
    def search(self) -> tuple[str, ...]:
        """The search list of a pod's resolv.conf."""
        return search(self.namespace, self.domain)

    @property
    def absent_name(self) -> str:
        """A name of the cluster that is not there."""
        return f"absent.{self.search[0]}"

    @cached_property
    def clients(self) -> tuple[Pod, ...]:
        """Client pods, in the order of the manifests."""
        return tuple(pod for pod in self.pods if pod.arm)

    @cached_property
    def arms(self) -> dict[str, Pod]:
        """Arm -> its client pod."""
        return {pod.arm: pod for pod in self.clients}

    @cached_property
    def meshed(self) -> tuple[Pod, ...]:
        """Replicas with a sidecar."""
        return tuple(pod for pod in self.pods if pod.sidecar and not pod.arm)

    @cached_property
    def backends(self) -> dict[str, Service]:
        """What a plan may call."""
        return {service.backend: service for service in self.services if service.backend}

    @cached_property
    def inbound(self) -> tuple[Service, ...]:
        """Pods that are called by their own address."""
        return tuple(service for service in self.services if service.by_address)

    @cached_property
    def told(self) -> tuple[Service, ...]:
        """What Istio tells sidecars."""
        return tuple(service for service in self.services if not service.by_address)

    @cached_property
    def injected(self) -> tuple[Pod, ...]:
        """Pods whose sidecar Istio configures."""
        return tuple(pod for pod in self.pods if pod.sidecar)

    @property
    def looked_up(self) -> Service:
        """The Service that lookups ask for."""
        return next(service for service in self.services if service.name == self.lookup)

    @property
    def answering(self) -> tuple[str, ...]:
        """Arms that ask for names answered in unusual ways."""
        return tuple(pod.arm for pod in self.clients if pod.answers)

    @property
    def groups(self) -> frozenset[str]:
        """Groups beside the core, but for that of Istio's own control plane."""
        return frozenset(pod.group for pod in self.pods) - {CORE, LIVE}

    @property
    def live_groups(self) -> frozenset[str]:
        """Those that need Istio's own control plane, as a part does, or Services of theirs that nobody has recorded."""
        need = {pod.group for pod in self.pods if pod.needs_live}
        return frozenset({*need, *(service.group for service in self.services)} - {CORE})

    def of(self, groups: Collection[str]) -> World:
        """As a testbed with these groups has it: Services of other groups, and pods beside them, are not there."""
        absent = self.live_groups - {*groups}
        pods = tuple(each for each in self.pods if each.group not in absent)
        names = {each.pod for each in pods}
        return dataclasses.replace(
            self,
            live=self.live or LIVE in groups,
            pods=pods,
            cluster_dns={address: pod for address, pod in self.cluster_dns.items() if pod in names},
            services=tuple(each for each in self.services if each.group not in absent),
            manifests=tuple(each for each in self.manifests if each.group not in absent),
        )

    def up(self, groups: Collection[str]) -> tuple[Pod, ...]:
        """The pods of a testbed with these groups: who is told by Istio itself needs nobody who repeats it."""
        there = (pod for pod in self.pods if pod.group in (CORE, *groups))
        return tuple(pod for pod in there if not (LIVE in groups and pod.part == RECORDED))

    def named(self, pod: str) -> Pod:
        """The pod of that name; it must be there."""
        return next(each for each in self.pods if each.pod == pod)

    def address(self, nets: Nets, pod: str) -> str:
        """A pod's address."""
        there = self.named(pod)
        return f"{getattr(nets, there.network)}.{there.host}"

    def dns_address(self, pod: Pod | None = None) -> str:
        """The ClusterIP of a pod's cluster DNS, or of the usual one."""
        return (pod.name_server if pod else "") or self.dns_cluster_ip

    def dns_pod(self, pod: Pod | None = None) -> Pod:
        """The pod that answers there; behind a node's own, the usual one."""
        usual = self.cluster_dns[self.dns_cluster_ip]
        return self.named(self.cluster_dns.get(self.dns_address(pod), usual))

    def configuration(self, pod: str, key: str, name: str = "") -> str:
        """What a ConfigMap of this name says, or one that the pod mounts; empty where none has this key."""
        own = next(each.document["spec"] for each in self.manifests if (each.kind, each.name) == ("Pod", pod))
        mounted = [volume["configMap"]["name"] for volume in own.get("volumes", ()) if "configMap" in volume]
        named = [name] if name else mounted
        maps = [each.document["data"] for each in self.manifests if each.kind == "ConfigMap" and each.name in named]
        return next((str(each[key]) for each in maps if key in each), "")

    def asks_node(self, pod: Pod) -> bool:
        """Whether its name server is the node's own, which keeps answers and asks the cluster DNS."""
        return bool(pod.name_server) and pod.name_server not in self.cluster_dns

    def answered(self, nets: Nets, service: Service, *, in_pod: bool) -> str:
        """The address by which its name is answered: by a proxy in the pod, or by the cluster DNS."""
        if service.cluster_ip or (in_pod and service.virtual_ip):
            return service.cluster_ip or service.virtual_ip
        return self.address(nets, service.served_by) if service.served_by else f"{nets.world}.{NOBODY}"

    def is_virtual(self, address: str) -> bool:
        """Whether it is of the range from which Istio allocates."""
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.virtual_ips)

    def is_live(self, backend: str) -> bool:
        """Whether a backend is one that sidecars are told of by Istio's own control plane alone."""
        return backend in self.backends and self.backends[backend].group != CORE

    def answer_name(self, answer: str, client: Pod) -> str:
        """The name that is answered so in this pod."""
        return f"answer-{answer}-{client.arm}.{self.search[0]}"

    def to_json(self) -> dict[str, Any]:
        """As JSON; `schema.stored` reads it back."""
        return dataclasses.asdict(self)
