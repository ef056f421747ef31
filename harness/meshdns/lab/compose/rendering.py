"""Files the containers mount: rules, proxy and name server configuration, rendered for this machine's networks."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from meshdns.core.world import Nets, Pod, Service, World
from meshdns.lab import envoy, names, pods, ports, rules
from meshdns.xds import bootstrap, node

NOBODY = 90  # an address of the world outside where no pod is


@dataclass(frozen=True)
class Secrets:
    """Passwords of the name server's console, statistics and updates; made at `up`, valid until `down`."""

    console_key: str
    web_password: str
    update_key: str  # of the control plane's dynamic updates (TSIG)


def new_secrets() -> Secrets:
    """Fresh ones; dnsdist wants 32 bytes in base64 for its console."""
    console, update = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    return Secrets(console, secrets.token_urlsafe(18), update)


def _dnsdist_rules(world: World, nets: Nets) -> str:
    named = {f"{names.DNSDIST_RULE}{client.pod}": nets.pod(client.host) for client in world.clients}
    lines = [f'addAction(makeRule("{host}/32"), NoneAction(), {{name = "{name}"}})' for name, host in named.items()]
    return "\n".join(lines)


def composition(world: World, compose: Path, groups: Collection[str]) -> str:
    """The whole Compose file: what compose/compose.yaml holds, and the pods."""
    document = yaml.safe_load((compose / "compose.yaml").read_text())
    parts = {key: document.pop(key) for key in list(document) if key.startswith("x-")}
    document["services"] |= pods.services(world, parts, groups)
    return yaml.safe_dump(document, sort_keys=False, width=120)


def name_table(world: World, nets: Nets) -> dict[str, Any]:
    """What a pod's own DNS proxy answers, in the form in which Istio's control plane hands names to its agent."""
    services = {
        service.fqdn: {
            "ips": [service.virtual_ip],
            "registry": "Kubernetes",
            "namespace": world.namespace,
            "shortname": service.name,
        }
        for service in world.static
    }
    return {"table": services | names.conformance_world(world, nets).name_table()["table"]}


def _answers(world: World, nets: Nets) -> str:
    """Zone records of names that are answered in unusual ways."""
    return "\n".join(
        f"{world.answer_name(kind, client).removesuffix(f'.{world.domain}')} IN A {answer.of(nets, client)}"
        for client in map(world.arms.__getitem__, world.answering)
        for kind, answer in world.answers.items()
    )


def mesh(world: World, nets: Nets) -> dict[str, str]:
    """What the control plane is told, as YAML for these networks: file -> content."""
    found: dict[str, list[str]] = {}
    for each in world.manifests:
        if _is_told(world, each.document):
            text = yaml.safe_dump(each.document, sort_keys=False, width=120)
            found.setdefault(each.file, []).append(text.replace(f"{Nets().pods}.", f"{nets.pods}."))
    return {file: "---\n".join(texts) for file, texts in found.items()}


def _is_told(world: World, document: Mapping[str, Any]) -> bool:
    kind, metadata = document["kind"], document["metadata"]
    if kind == "Pod":
        return any(pod.governed for pod in world.pods if pod.pod == metadata["name"])
    known = {service.name for service in world.services if not service.governed}
    owner = (metadata.get("labels") or {}).get("kubernetes.io/service-name", metadata["name"])
    return kind not in ("Namespace", "ConfigMap") and owner not in known


def _node(nets: Nets, pod: Pod, world: World) -> node.Node:
    """A governed sidecar, as it introduces itself to the control plane."""
    if not pod.arm:
        return node.Node(pod.pod, world.namespace, nets.pod(pod.host))
    choices = node.Choices(resolver=pod.resolver, dns_server=world.dns_cluster_ip)
    return node.Node(pod.pod, world.namespace, nets.pod(pod.host), dns=pod.dns, choices=choices)


def _bootstrap(world: World, nets: Nets, pod: Pod) -> dict[str, Any]:
    """What a pod's Envoy starts with."""
    if pod.governed:
        plane = f"{world.address(nets, 'control-plane')}:{ports.PORT_XDS}"
        return bootstrap.bootstrap(_node(nets, pod, world), plane)
    return envoy.bootstrap(world, nets, pod)


def _cluster_records(world: World, nets: Nets) -> str:
    """As the Kubernetes DNS specification asks for: a ClusterIP per Service, pod addresses for headless Services."""
    kept = [service for service in world.services if not (service.governed or service.by_address)]
    records = [(service, address) for service in kept for address in _addresses(nets, service)]
    return "\n".join(f"{service.host.removesuffix(f'.{world.domain}')} IN A {address}" for service, address in records)


def _addresses(nets: Nets, service: Service) -> list[str]:
    return [service.cluster_ip] if service.cluster_ip else [nets.pod(host) for host in service.hosts]


def _outside_records(world: World, nets: Nets) -> str:
    """What the world's DNS answers; nobody is at the last address: who calls it was taken there by a sidecar."""
    outside = [service for service in world.services if service.external]
    return "\n".join(
        f"{each.host}. IN A {world.address(nets, each.served_by) if each.served_by else f'{nets.world}.{NOBODY}'}"
        for each in outside
    )


def files(world: World, compose: Path, nets: Nets, keys: Secrets, groups: Collection[str]) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    mapping = {
        "pod_net": nets.pods,
        "world_net": nets.world,
        "console_key": keys.console_key,
        "web_password": keys.web_password,
        "pod_rules": _dnsdist_rules(world, nets),
        "answers": _answers(world, nets),
        "cluster_records": _cluster_records(world, nets),
        "outside_records": _outside_records(world, nets),
        "dns_host": str(world.named("dns").host),
        "world_dns_host": str(world.named("world-dns").host),
        "dns_cluster_ip": world.dns_cluster_ip,
        "search": " ".join(world.search),
        "update_key": keys.update_key,
    }

    def template(name: str) -> str:
        return Template((compose / "dns" / name).read_text()).substitute(mapping)

    out = {
        "compose.yaml": composition(world, compose, groups),
        "world.json": json.dumps(world.to_json(), indent=1),
        "conformance.json": json.dumps(dataclasses.asdict(names.conformance_world(world, nets)), indent=1),
        "resolv.conf": template("resolv.conf"),
        "dns-bind/named.conf": template("named-cluster.conf"),
        "dns-bind/cluster.local.zone": template("cluster.local.zone"),
        "dns-dnsdist/dnsdist.conf": template("dnsdist.conf"),
        "world-dns/named.conf": template("named-world.conf"),
        "world-dns/example.com.zone": template("example.com.zone"),
        "world-dns/root.zone": template("root.zone"),
        "dns-bind/update.key": template("update.key"),
        **{f"mesh/{name}": text for name, text in mesh(world, nets).items()},
    }
    for pod in (each for each in world.pods if each.arm or each.sidecar):
        out |= {f"{pod.pod}/{name}": text for name, text in rules.files(world, nets, pod).items()}
        if pod.sidecar:
            out[f"{pod.pod}/envoy.json"] = json.dumps(_bootstrap(world, nets, pod), indent=1)
        if pod.dns == "agent" and not pod.governed:
            out[f"{pod.pod}/names.json"] = json.dumps(name_table(world, nets), indent=1)
    return out
