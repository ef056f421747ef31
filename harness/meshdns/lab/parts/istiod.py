"""Istio's control plane: it configures sidecars, tells agents names, and signs certificates."""

from __future__ import annotations

from typing import ClassVar

from meshdns.lab import keys, ports
from meshdns.lab.parts import apiserver
from meshdns.lab.parts.component import At, Component, Container, Mount

READY_PORT, WEBHOOK_PORT, SECURE_PORT = 8080, 15017, 15012
# Upstream Envoy lacks three of Istio's extensions: two are switched off here, the third is not in an empty mesh config.
_SWITCHES = {"PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false"}
_CONFIG = "kubeconfig"


class Istiod(Component):
    image = "istiod"
    carries = False
    versions: ClassVar = {"istiod": "pilot-discovery version --short"}

    def container(self, at: At) -> Container:
        own = f"{at.nets.plane}.{at.pod.host}"
        command = (
            "discovery",
            f"--kubeconfig=/keys/{_CONFIG}",
            "--meshConfig=/keys/mesh",
            f"--domain={at.world.domain}",
            f"--grpcAddr=:{ports.PORT_XDS}",
            f"--secureGRPCAddr=:{SECURE_PORT}",
            f"--httpAddr={own}:{READY_PORT}",  # not for pods, as the two below
            f"--monitoringAddr={own}:{ports.PORT_PLANE}",
            f"--httpsAddr=127.0.0.1:{WEBHOOK_PORT}",
            "--log_output_level=default:warn",
        )
        known = {
            "POD_NAME": at.pod.pod,
            "POD_NAMESPACE": "istio-system",
            "CLUSTER_ID": "Kubernetes",
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
            "ISTIOD_CUSTOM_HOST": "localhost",  # by which the API server asks it what is valid
            "PILOT_ENABLE_GATEWAY_API": "false",
        }
        mounts = (Mount(f"state/{at.service}", "/keys"),)
        return Container(command, mounts=mounts, environment=known | _SWITCHES, abrupt=True)

    def ready(self, at: At) -> None:
        return None  # see `apiserver`

    def files(self, at: At) -> dict[str, str]:
        if not at.keys.plane:
            return {}
        config = keys.kubeconfig(at.keys.plane, apiserver.url(at.world, at.nets))
        return {f"{at.service}/{_CONFIG}": config, f"{at.service}/mesh": "{}\n"}


PART = Istiod()
