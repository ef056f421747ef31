"""Kubernetes' API server: istiod and the cluster DNS learn from it, and the place tells it the world."""

from __future__ import annotations

from typing import ClassVar

from meshdns.core.world import Nets, World
from meshdns.lab import keys
from meshdns.lab.parts import etcd
from meshdns.lab.parts.component import NOBODY, At, Component, Container, Mount

PORT = 6443
AUDIENCE = "istio-ca"
_ISSUER = f"https://{keys.API_SERVER}.cluster.local"
# Of what is not here: nodes, volumes, and the controller that would make accounts and their tokens.
_WITHOUT = (
    "ServiceAccount", "DefaultStorageClass", "StorageObjectInUseProtection", "RuntimeClass", "Priority",
    "TaintNodesByCondition",
)  # fmt: skip


def url(world: World, nets: Nets) -> str:
    """Where it is, of a world that has one."""
    pod = next(each for each in world.pods if "apiserver" in each.parts)
    return f"https://{nets.plane}.{pod.host}:{PORT}"


class ApiServer(Component):
    image = "apiserver"
    carries = False
    versions: ClassVar = {"kubernetes": "kube-apiserver --version"}

    def container(self, at: At) -> Container:
        address = f"{at.nets.plane}.{at.pod.host}"
        command = (
            f"--etcd-servers={etcd.CLIENTS}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={PORT}",
            "--endpoint-reconciler-type=none",  # EndpointSlices are those of the manifests
            f"--service-cluster-ip-range={at.world.cluster_ips}",
            "--authorization-mode=RBAC",
            f"--disable-admission-plugins={','.join(_WITHOUT)}",
            f"--tls-cert-file=/keys/{keys.CERTIFICATE}",
            f"--tls-private-key-file=/keys/{keys.KEY}",
            f"--token-auth-file=/keys/{keys.TOKENS}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-signing-key-file=/keys/{keys.ACCOUNTS}",
            f"--service-account-key-file=/keys/{keys.ACCOUNTS_PUBLIC}",
            f"--api-audiences={AUDIENCE},{_ISSUER}",
            "--cert-dir=/tmp/certificates",
            "--profiling=false",
        )
        return Container(command, user=NOBODY, mounts=(Mount(f"state/{at.service}", "/keys"),), abrupt=True)

    def files(self, at: At) -> dict[str, str]:
        return {f"{at.service}/{name}": text for name, text in at.keys.plane.items() if name != keys.ADMIN}


PART = ApiServer()
