"""One model in; sidecars, DNS proxies and the cluster DNS are told from it.

It probes the replicas as a kubelet does, only more often than the kubelet's ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from meshdns.core.world import Nets, World
from meshdns.lab import ports
from meshdns.lab.objects import OURS
from meshdns.lab.parts import bind
from meshdns.lab.parts.component import NOBODY, At, Component, Container, Mount, Page

_STATE = (Mount("volume/names", "/names", writable=True), Mount("volume/authority", "/state", writable=True))


class ControlPlane(Component):
    image = "controlplane"
    carries = False

    def container(self, at: At) -> Container:
        records = bind.keeper(at.world) or at.pod  # a world that needs one has it
        own = (f"{service.host}." for service in at.world.services if not service.managed)
        kept = (f"--dns-keep={names}" for names in (*own, "answer-*"))
        return Container(
            (
                "--mesh=/mesh",
                "--state=/state",
                "--names=/names",
                f"--dns={at.world.address(at.nets, records.pod)}:{ports.PORT_RECORDS}",
                "--dns-key=/keys/update.key",
                f"--dns-ttl-s={at.world.record_ttl_s}",
                *kept,
                f"--probe=http:{ports.PORT_PAGES}/ready",
                f"--probe-period-s={at.world.probe_period_s}",
                "--probe-failures=1",
                # Replaced every half hour, so that a long plan meets ordinary rotations. The plan `change` makes one
                # by hand, so that the moment is known.
                "--certificate-life-s=3600",
            ),
            user=NOBODY,
            environment={"PYTHONUNBUFFERED": "1"},
            mounts=(
                Mount("state/mesh", "/mesh"),
                Mount(f"state/{records.pod}/update.key", "/keys/update.key"),
                *_STATE,
            ),
        )

    def ready(self, at: At) -> Page:
        return at.outer(f"{ports.PORT_PLANE}/ready")

    def files(self, at: At) -> dict[str, str]:
        """What it is told, as YAML for these networks."""
        found: dict[str, list[str]] = {}
        for each in at.world.manifests:
            if _is_told(at.world, each.document):
                text = yaml.safe_dump(each.document, sort_keys=False, width=120)
                found.setdefault(each.file, []).append(text.replace(f"{Nets().pods}.", f"{at.nets.pods}."))
        return {f"mesh/{file}": "---\n".join(texts) for file, texts in found.items()}


def _is_told(world: World, document: Mapping[str, Any]) -> bool:
    kind, metadata = document["kind"], document["metadata"]
    if (metadata.get("annotations") or {}).get(f"{OURS}told") == "false":
        return False
    if kind == "Pod":
        return any(pod.managed for pod in world.pods if pod.pod == metadata["name"])
    known = {service.name for service in world.services if not service.managed}
    owner = (metadata.get("labels") or {}).get("kubernetes.io/service-name", metadata["name"])
    return kind not in ("Namespace", "ConfigMap", "ServiceAccount", "EnvoyFilter") and owner not in known


PART = ControlPlane()
