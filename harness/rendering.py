"""Files the containers mount: rules, proxy and name server configuration, rendered for this machine's networks."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from harness.mesh import envoy, names, pods, rules, topology


@dataclass(frozen=True)
class Secrets:
    """Passwords of the name server's console and statistics; made at `up`, valid until `down`."""

    console_key: str
    web_password: str


def new_secrets() -> Secrets:
    """Fresh ones; dnsdist wants 32 bytes in base64 for its console."""
    return Secrets(base64.b64encode(secrets.token_bytes(32)).decode(), secrets.token_urlsafe(18))


def pod_rule(pod: str) -> str:
    """The name of dnsdist's counting rule for a pod."""
    return f"from-{pod}"


def _dnsdist_rules(nets: topology.Nets) -> str:
    lines = [
        f'addAction(makeRule("{nets.pod(client.host)}/32"), NoneAction(), {{name = "{pod_rule(client.pod)}"}})'
        for client in topology.CLIENTS
    ]
    return "\n".join(lines)


def composition(compose: Path, *, whole: bool) -> str:
    """The whole Compose file: what compose/compose.yaml holds, and the pods."""
    document = yaml.safe_load((compose / "compose.yaml").read_text())
    parts = {key: document.pop(key) for key in list(document) if key.startswith("x-")}
    document["services"] |= pods.services(parts, whole=whole)
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


def files(compose: Path, nets: topology.Nets, keys: Secrets, *, whole: bool) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    mapping = {
        "pod_net": nets.pods,
        "world_net": nets.world,
        "console_key": keys.console_key,
        "web_password": keys.web_password,
        "pod_rules": _dnsdist_rules(nets),
        "answers": _answers(nets),
    }

    def template(name: str) -> str:
        return Template((compose / "dns" / name).read_text()).substitute(mapping)

    out = {
        "compose.yaml": composition(compose, whole=whole),
        "world.json": json.dumps(dataclasses.asdict(names.conformance_world(nets)), indent=1),
        "resolv.conf": (compose / "dns" / "resolv.conf").read_text(),
        "dns-bind/named.conf": template("named-cluster.conf"),
        "dns-bind/cluster.local.zone": template("cluster.local.zone"),
        "dns-dnsdist/dnsdist.conf": template("dnsdist.conf"),
        "world-dns/named.conf": template("named-world.conf"),
        "world-dns/example.com.zone": template("example.com.zone"),
        "world-dns/root.zone": template("root.zone"),
    }
    for client in topology.CLIENTS:
        out |= {f"{client.pod}/{name}": text for name, text in rules.files(nets, client).items()}
        if client.sidecar:
            transparent = client.mechanism == "tproxy"
            sidecar = envoy.Sidecar(client.pod, True, client.dns, client.guarded, transparent)
            out[f"{client.pod}/envoy.json"] = json.dumps(envoy.bootstrap(nets, sidecar), indent=1)
        if client.dns == "agent":
            out[f"{client.pod}/names.json"] = json.dumps(name_table(nets), indent=1)
    for server in topology.MESHED:
        out |= {f"{server.pod}/{name}": text for name, text in rules.files(nets, server).items()}
        sidecar = envoy.Sidecar(server.pod, transparent=server.mechanism == "tproxy")
        out[f"{server.pod}/envoy.json"] = json.dumps(envoy.bootstrap(nets, sidecar), indent=1)
    return out
