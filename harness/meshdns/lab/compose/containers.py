"""The Compose file: a world's pods as containers, and the files that they mount.

Every arm is up at once, so that arms can be measured in interleaved blocks. A pod is a container that owns the network
namespace, one that applies rules and exits, and the application with its sidecar; client pods also hold an observer.
There are no health checks here: each would be an exec every few seconds beside the measurement. `meshdns up` waits
until every proxy and name server answers, and asks them itself.

What differs between machines and starts is a variable of `testbed`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from meshdns.core.world import CORE, LIVE, OUTSIDE, Nets, World
from meshdns.lab import names, newkeys, parts
from meshdns.lab.parts.component import IDENTITY, At, Container, Mount, Secrets

Service = dict[str, Any]
_DONE, _STARTED = {"condition": "service_completed_successfully"}, {"condition": "service_started"}
_SHARED = "volume/tls-", IDENTITY  # made by `tls`


def new_secrets(*, live: bool = False) -> Secrets:
    """Fresh ones; dnsdist wants 32 bytes in base64 for its console."""
    console = base64.b64encode(secrets.token_bytes(32)).decode()
    return Secrets(console, secrets.token_urlsafe(18), newkeys.made() if live else {})


def files(world: World, nets: Nets, keys: Secrets, groups: Collection[str]) -> dict[str, str]:
    """Every file of the state folder: path relative to it -> content."""
    found = {
        "compose.yaml": rendered(world, nets, groups),
        "world.json": json.dumps(world.to_json(), indent=1),
        "conformance.json": json.dumps(dataclasses.asdict(names.conformance_world(world, nets)), indent=1),
    }
    for at in (each for pod in world.pods for each in parts.of(world, nets, pod, keys=keys)):
        found |= at.part.files(at)
    return found


def rendered(world: World, nets: Nets, groups: Collection[str]) -> str:
    """The Compose file as it is written."""
    return yaml.safe_dump(composition(world, nets, groups), sort_keys=False, width=120)


def _certificates(world: World) -> Container:
    """One throw-away certificate for all servers, and one for each sidecar's account; new at every `up`."""
    accounts = sorted({pod.account for pod in world.injected})
    own = (Mount(IDENTITY + account, f"/identity/{account}", writable=True) for account in accounts)
    return Container(
        ("sh", "/etc/meshdns/certificate.sh", world.domain, world.namespace, *accounts),
        mounts=(
            Mount("files/web/certificate.sh", "/etc/meshdns/certificate.sh"),
            Mount("volume/tls-key", "/tls/key", writable=True),
            Mount("volume/tls-certificate", "/tls/certificate", writable=True),
            *own,
        ),
    )


def composition(world: World, nets: Nets, groups: Collection[str]) -> dict[str, Any]:
    """The whole file: the core and these groups."""
    pods = {pod.pod: parts.of(world, nets, pod) for pod in world.pods}
    up = world.up(groups)
    certificates = _certificates(world)
    services = {"tls": {**_service(certificates, "web"), "network_mode": "none"}}
    for pod in up:
        dns = pods[world.dns_pod(pod).pod][-1].service
        for at in pods[pod.pod]:
            services[at.service] = _service(at.part.container(at), at.part.image) | _place(at, groups)
            if after := _after(at, [each.service for each in pods[pod.pod]], dns):
                services[at.service]["depends_on"] = after
    every = [certificates, *(at.part.container(at) for each in pods.values() for at in each)]
    sources = {mount.source for container in every for mount in container.mounts}
    return {
        "networks": {
            name: {"internal": True, "ipam": {"config": [{"subnet": f"${{MESHDNS_{name.upper()}}}.0/24"}]}}
            for name in ("pods", "world", *["plane"] * (LIVE in groups))
        },
        "volumes": dict.fromkeys(
            sorted(each.removeprefix("volume/") for each in sources if each.startswith("volume/"))
        ),
        "services": services,
    }


def _service(container: Container, image: str) -> Service:
    found: Service = {
        "restart": "no",
        "read_only": True,
        # What is writable beside /tmp is the proxy's user's.
        "tmpfs": ["/tmp", *(f"{each}:uid=1337,gid=1337,mode=0755" for each in container.writable)],  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "cpuset": f"${{MESHDNS_CPU_{container.cpus.upper()}}}",
        "stop_grace_period": "2s",
        "image": f"${{MESHDNS_IMAGE_{image.upper()}}}",
    }
    more = {
        "command": [*container.command],
        "entrypoint": [*container.entrypoint],
        "user": container.user,
        "cap_add": [*container.capabilities],
        "volumes": [_volume(mount) for mount in container.mounts],
        "environment": {**container.environment},
        "sysctls": {**container.sysctls},
        "stop_signal": "SIGKILL" if container.abrupt else "",
    }
    return found | {key: value for key, value in more.items() if value}


def _volume(mount: Mount) -> str | dict[str, Any]:
    kind, _, name = mount.source.partition("/")
    if kind == "cgroup2":
        bind = {"type": "bind", "source": "${MESHDNS_CGROUP2}", "target": mount.target, "read_only": True}
        return {**bind, "bind": {"create_host_path": False}}
    front = {"state": "${MESHDNS_STATE}/", "files": "${MESHDNS_COMPOSE}/", "volume": ""}[kind]
    return f"{front}{name}:{mount.target}{'' if mount.writable else ':ro'}"


def _place(at: At, groups: Collection[str]) -> Service:
    """The pod's network, which its first part owns and the others share."""
    pod = at.pod
    if at.service != pod.pod:
        return {"network_mode": f"service:{pod.pod}"}
    # Where the servers outside are called, theirs too: the pod's ordinary route to them.
    outside = pod.outside and (not pod.arm or pod.group != CORE or OUTSIDE in groups)
    networks = {pod.network, *["world"] * outside, *["plane"] * (pod.plane and LIVE in groups)}
    return {
        "networks": {name: {"ipv4_address": f"${{MESHDNS_{name.upper()}}}.{pod.host}"} for name in sorted(networks)}
    }


def _after(at: At, services: list[str], dns: str) -> Mapping[str, Mapping[str, str]]:
    """What must be there before it starts; `services` are the pod's, `dns` is what its names are asked for at."""
    pod = at.pod
    ready = {"tls": _DONE} if any(each.source.startswith(_SHARED) for each in at.part.container(at).mounts) else {}
    if at.service == pod.pod:
        return ready
    own = at.service.removeprefix(f"{pod.pod}-")
    rules = f"{pod.pod}-rules"
    if own in ("loader", "observer"):
        return {pod.pod: _STARTED}
    if own == "rules" or rules not in services:
        return ready | {services[services.index(at.service) - 1]: _STARTED}
    asks = {dns: _STARTED} if pod.arm and own != "app" else {}
    return ready | {rules: _DONE} | asks
