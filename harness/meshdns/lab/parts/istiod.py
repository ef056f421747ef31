"""Istio's control plane: it configures sidecars, tells agents names, and signs certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from meshdns.lab import keys, ports
from meshdns.lab.parts import apiserver
from meshdns.lab.parts.component import At, Component, Container, Mount

READY_PORT, WEBHOOK_PORT, SECURE_PORT = 8080, 15017, 15012
# Upstream Envoy lacks three of Istio's extensions: two are switched off here, the third is not in an empty mesh config.
_SWITCHES = {"PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false"}
_CONFIG, _SETTINGS = "kubeconfig", "settings"
# How istiod gathers changes before it tells sidecars of them; what is not said is its own default.
USUAL = "100ms"
DEBOUNCE: Mapping[str, Mapping[str, str]] = {
    USUAL: {},
    "1ms": {"PILOT_DEBOUNCE_AFTER": "1ms"},
    "1s": {"PILOT_DEBOUNCE_AFTER": "1s"},
    "endpoints-at-once": {"PILOT_ENABLE_EDS_DEBOUNCE": "false"},
}


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
        start = ("sh", "-c", f'. /keys/{_SETTINGS} && exec pilot-discovery "$@"', "istiod")
        return Container(command, entrypoint=start, mounts=mounts, environment=known | _SWITCHES, abrupt=True)

    def files(self, at: At) -> dict[str, str]:
        if not at.keys.plane:
            return {}
        config = keys.kubeconfig(at.keys.plane, apiserver.url(at.world, at.nets))
        return {
            f"{at.service}/{_CONFIG}": config,
            f"{at.service}/mesh": "{}\n",
            **settings(at.service, USUAL),
            **in_force(at.service),
        }


def in_force(service: str, policy: str = "none", change: str = "none") -> dict[str, str]:
    """Rendered files -> content: what a run has put in force and not taken back; istiod itself does not read it."""
    return {f"{service}/in-force": f"{policy} {change}\n"}


def settings(service: str, debounce: str) -> dict[str, str]:
    """Rendered files -> content: what it reads when it starts, as shell."""
    lines = (f"export {name}={value}\n" for name, value in DEBOUNCE[debounce].items())
    return {f"{service}/{_SETTINGS}": "".join(lines)}


PART = Istiod()
