"""Files the containers mount: rules, proxy and name server configuration, rendered for this machine's networks."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from meshdns.lab import envoy, names, pods, rules, topology
from meshdns.xds import bootstrap, node

UNGOVERNED = ("web", "legacy")  # described in compose/mesh as well; their sidecars have static bootstraps


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


def pod_rule(pod: str) -> str:
    """The name of dnsdist's counting rule for a pod."""
    return f"from-{pod}"


def _dnsdist_rules(nets: topology.Nets) -> str:
    lines = [
        f'addAction(makeRule("{nets.pod(client.host)}/32"), NoneAction(), {{name = "{pod_rule(client.pod)}"}})'
        for client in topology.CLIENTS
    ]
    return "\n".join(lines)


def composition(compose: Path, groups: Collection[topology.Group]) -> str:
    """The whole Compose file: what compose/compose.yaml holds, and the pods."""
    document = yaml.safe_load((compose / "compose.yaml").read_text())
    parts = {key: document.pop(key) for key in list(document) if key.startswith("x-")}
    document["services"] |= pods.services(parts, groups)
    return yaml.safe_dump(document, sort_keys=False, width=120)


def name_table(nets: topology.Nets) -> dict[str, Any]:
    """What a pod's own DNS proxy answers, in the form in which Istio's control plane hands names to its agent."""
    services = {
        service.fqdn: {
            "ips": [service.virtual_ip],
            "registry": "Kubernetes",
            "namespace": topology.NAMESPACE,
            "shortname": service.name,
        }
        for service in topology.SERVICES
    }
    return {"table": services | names.conformance_world(nets).name_table()["table"]}


def _answers(nets: topology.Nets) -> str:
    """Zone records of names that are answered in unusual ways."""
    return "\n".join(
        f"{topology.answer_name(kind, client).removesuffix(f'.{topology.DOMAIN}')} IN A {answer.of(nets, client)}"
        for client in map(topology.ARMS.__getitem__, topology.ANSWERING)
        for kind, answer in topology.ANSWERS.items()
    )


def mesh(compose: Path, nets: topology.Nets) -> dict[str, str]:
    """What the control plane governs, as YAML for these networks: file -> content."""
    usual = topology.Nets().pods
    return {
        path.name: path.read_text().replace(f"{usual}.", f"{nets.pods}.")
        for path in sorted((compose / "mesh").glob("*.yaml"))
        if path.stem not in UNGOVERNED
    }


def _node(nets: topology.Nets, pod: topology.ClientPod | topology.ServerPod) -> node.Node:
    """A governed sidecar, as it introduces itself to the control plane."""
    if isinstance(pod, topology.ServerPod):
        return node.Node(pod.pod, topology.NAMESPACE, nets.pod(pod.host))
    choices = node.Choices(resolver=pod.resolver)
    return node.Node(pod.pod, topology.NAMESPACE, nets.pod(pod.host), dns=pod.dns, choices=choices)


def _bootstrap(nets: topology.Nets, pod: topology.ClientPod | topology.ServerPod) -> dict[str, Any]:
    """What a pod's Envoy starts with."""
    if pod.governed:
        return bootstrap.bootstrap(_node(nets, pod), f"{nets.pod(topology.PLANE_HOST)}:{topology.PORT_XDS}")
    transparent = pod.mechanism == "tproxy"
    if isinstance(pod, topology.ServerPod):
        return envoy.bootstrap(nets, envoy.Sidecar(pod.pod, transparent=transparent))
    entry = pod.arm in topology.ANSWERING
    sidecar = envoy.Sidecar(pod.pod, True, pod.dns, pod.guarded, transparent, pod.virtual_ips, entry)
    return envoy.bootstrap(nets, sidecar)


def files(compose: Path, nets: topology.Nets, keys: Secrets, groups: Collection[topology.Group]) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    mapping = {
        "pod_net": nets.pods,
        "world_net": nets.world,
        "console_key": keys.console_key,
        "web_password": keys.web_password,
        "pod_rules": _dnsdist_rules(nets),
        "answers": _answers(nets),
        "update_key": keys.update_key,
    }

    def template(name: str) -> str:
        return Template((compose / "dns" / name).read_text()).substitute(mapping)

    out = {
        "compose.yaml": composition(compose, groups),
        "world.json": json.dumps(dataclasses.asdict(names.conformance_world(nets)), indent=1),
        "resolv.conf": (compose / "dns" / "resolv.conf").read_text(),
        "dns-bind/named.conf": template("named-cluster.conf"),
        "dns-bind/cluster.local.zone": template("cluster.local.zone"),
        "dns-dnsdist/dnsdist.conf": template("dnsdist.conf"),
        "world-dns/named.conf": template("named-world.conf"),
        "world-dns/example.com.zone": template("example.com.zone"),
        "world-dns/root.zone": template("root.zone"),
        "dns-bind/update.key": template("update.key"),
        **{f"mesh/{name}": text for name, text in mesh(compose, nets).items()},
    }
    for client in topology.CLIENTS:
        out |= {f"{client.pod}/{name}": text for name, text in rules.files(nets, client).items()}
        if client.sidecar:
            out[f"{client.pod}/envoy.json"] = json.dumps(_bootstrap(nets, client), indent=1)
        if client.dns == "agent" and not client.governed:
            out[f"{client.pod}/names.json"] = json.dumps(name_table(nets), indent=1)
    for server in topology.MESHED:
        out |= {f"{server.pod}/{name}": text for name, text in rules.files(nets, server).items()}
        out[f"{server.pod}/envoy.json"] = json.dumps(_bootstrap(nets, server), indent=1)
    return out
