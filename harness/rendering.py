"""Files the containers mount: rules, proxy and name server configuration, rendered for this machine's networks."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from string import Template

from harness.mesh import envoy, rules, topology


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


def files(compose: Path, nets: topology.Nets, keys: Secrets) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    mapping = {
        "pod_net": nets.pods,
        "world_net": nets.world,
        "console_key": keys.console_key,
        "web_password": keys.web_password,
        "pod_rules": _dnsdist_rules(nets),
    }

    def template(name: str) -> str:
        return Template((compose / "dns" / name).read_text()).substitute(mapping)

    out = {
        "resolv.conf": (compose / "dns" / "resolv.conf").read_text(),
        "dns-bind/named.conf": template("named-cluster.conf"),
        "dns-bind/cluster.local.zone": template("cluster.local.zone"),
        "dns-dnsdist/dnsdist.conf": template("dnsdist.conf"),
        "world-dns/named.conf": template("named-world.conf"),
        "world-dns/example.com.zone": template("example.com.zone"),
        "world-dns/root.zone": template("root.zone"),
    }
    for client in topology.CLIENTS:
        pod = rules.PodRules(nets, nets.pod(client.host), client.sidecar, client.dns_proxy, cluster_ips=True)
        out |= _pod(client.pod, pod)
        if client.sidecar:
            config = envoy.bootstrap(nets, client.pod, outbound=True, dns_proxy=client.dns_proxy)
            out[f"{client.pod}/envoy.json"] = json.dumps(config, indent=1)
    for number, host in enumerate(topology.MESHED_HOSTS, 1):
        name = f"web-{number}"
        out |= _pod(name, rules.PodRules(nets, nets.pod(host), sidecar=True, dns_proxy=False, cluster_ips=False))
        out[f"{name}/envoy.json"] = json.dumps(envoy.bootstrap(nets, name, outbound=False, dns_proxy=False), indent=1)
    return out


def _pod(name: str, pod: rules.PodRules) -> dict[str, str]:
    return {f"{name}/iptables": rules.restore_input(pod), f"{name}/routes": rules.route_commands(pod)}
