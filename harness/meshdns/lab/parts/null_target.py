"""The calibration target: it answers by itself, after a delay that its question names."""

from __future__ import annotations

from meshdns.lab.parts.component import NOBODY, At, Component, Container


class NullTarget(Component):
    """See the module."""

    image = "observer"

    def container(self, at: At) -> Container:
        """See `Component`."""
        return Container(
            ("python3", "/opt/meshdns/null_target.py", "--idle-s", "0.02"),
            user=NOBODY,
            sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
        )

    def ready(self, at: At) -> None:
        """See `Component`."""


PART = NullTarget()
