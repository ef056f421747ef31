"""Holds the programs that intercept by eBPF: they stay as long as the container that loaded them."""

from __future__ import annotations

import json

from meshdns.core.world import Pod
from meshdns.lab import ports
from meshdns.lab.parts.component import At, Component, Container, Counts, Mount, Page


class Loader(Component):
    image = "observer"
    carries = False

    def container(self, at: At) -> Container:
        return Container(
            ("python3", "-m", "interception.ebpf", "--config", "/rules/options.json"),
            capabilities=("SYS_ADMIN",),  # bpf(2): older engines know no narrower capability for it
            # Programs are attached to the engine's cgroup and filter by namespace.
            mounts=(Mount("cgroup2", "/cgroup2"), Mount(f"state/{at.pod.pod}", "/rules")),
        )

    def page(self, at: At) -> Page:
        return at.inner(f"{ports.PORT_LOADER}/counters")

    def counts(self, body: str, at: At, client: Pod) -> Counts:
        """The programs count what rules count elsewhere, by the same names."""
        return {f"pod/rule/{name}": count for name, count in json.loads(body)["counters"].items()}


PART = Loader()
