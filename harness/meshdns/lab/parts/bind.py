"""BIND 9, which knows the cluster's names and asks the world's name server for the others."""

from __future__ import annotations

import json
from typing import ClassVar

from meshdns.core.world import Nets, Pod, Service, World
from meshdns.lab.parts.component import NOBODY, At, Container, Counts, Mount, NameServer, Page


class Bind(NameServer):
    image = "dns"
    versions: ClassVar = {"bind": "named -v"}

    def container(self, at: At) -> Container:
        command = "cp /etc/meshdns/cluster.local.zone /tmp/ && exec named -g -n 1 -c /etc/meshdns/named.conf"
        return Container(("sh", "-c", command), user=NOBODY, mounts=(Mount(f"state/{at.service}", "/etc/meshdns"),))

    def ready(self, at: At) -> Page:
        return self.page(at)

    def files(self, at: At) -> dict[str, str]:
        dns, outside = str(at.pod.host), str(at.world.named("world-dns").host)
        return {
            f"{at.service}/named.conf": at.rendered(
                "dns/named-cluster.conf", dns_host=dns, world_dns_host=outside, domain=at.world.domain
            ),
            f"{at.service}/cluster.local.zone": zone(at),
            f"{at.service}/update.key": at.rendered("dns/update.key", update_key=at.keys.update_key),
        }

    def page(self, at: At) -> Page:
        return {"url": f"http://{at.address}:8053/json/v1/server", "timeout_s": 2}

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        return {"bind/queries": json.loads(body)["opcodes"]["QUERY"]}


def zone(at: At) -> str:
    """The cluster's names, but for those that the control plane adds."""
    return at.rendered(
        "dns/cluster.local.zone",
        dns_cluster_ip=at.world.dns_cluster_ip,
        cluster_records=_records(at.world, at.nets),
        answers=_answers(at.world, at.nets),
    )


def _records(world: World, nets: Nets) -> str:
    """As the Kubernetes DNS specification asks for: a ClusterIP per Service, pod addresses for headless Services."""
    kept = [service for service in world.services if not (service.managed or service.by_address)]
    records = [(service, address) for service in kept for address in _addresses(nets, service)]
    return "\n".join(f"{service.host.removesuffix(f'.{world.domain}')} IN A {address}" for service, address in records)


def _addresses(nets: Nets, service: Service) -> list[str]:
    return [service.cluster_ip] if service.cluster_ip else [nets.pod(host) for host in service.hosts]


def _answers(world: World, nets: Nets) -> str:
    """Names that are answered in unusual ways."""
    return "\n".join(
        f"{world.answer_name(kind, client).removesuffix(f'.{world.domain}')} IN A {answer.of(nets, client)}"
        for client in map(world.arms.__getitem__, world.answering)
        for kind, answer in world.answers.items()
    )


PART = Bind()
