"""Serves what istiod answered for this world, as it was recorded, to the sidecars of Istio's pods."""

from __future__ import annotations

import json

from meshdns.lab import ports, recording
from meshdns.lab.parts.component import NOBODY, At, Component, Container, Mount, Page


class Recorded(Component):
    image = "recorded"
    carries = False

    def container(self, at: At) -> Container:
        command = ("--answers=/answers", f"--listen=0.0.0.0:{ports.PORT_XDS}", f"--ready={ports.PORT_PLANE}")
        mounts = (Mount(f"state/{at.service}", "/answers"),)
        return Container(command, user=NOBODY, mounts=mounts, environment={"PYTHONUNBUFFERED": "1"}, abrupt=True)

    def ready(self, at: At) -> Page:
        return at.outer(f"{ports.PORT_PLANE}/ready")

    def files(self, at: At) -> dict[str, str]:
        if at.world.live:
            return {}
        held = recording.read()
        pods = (pod.pod for pod in at.world.injected)
        return {f"{at.service}/{pod}.json": json.dumps(held.answers(pod, at.nets), indent=1) for pod in pods}


PART = Recorded()
