"""What is measured: one combination of factor levels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One combination of factor levels. What does not apply is "none", 0 or false, never absent."""

    experiment: str
    arm: str
    backend: str = "none"
    kind: str = "lookup"
    lookup: str = "wire"
    name_kind: str = "fqdn"
    qtype: str = "A"
    ndots: int = 5
    connection: str = "none"
    arrival: str = "constant"
    rate_hz: float = 0.0
    concurrency: int = 1
    dns_delay_ms: float = 0.0
    body_bytes: int = 0
    wait: str = "spin"
    tool: str = "agent"
    null_delay_us: float = 0.0
    tls: bool = False
    extra_rules: int = 0  # that match nothing, before those that capture
    answer: str = "none"  # what the name is answered with, where that is the question
    intercepted: bool = True
    sidecar: str = "up"
    policy: str = "none"  # what the mesh's configuration says beyond the services themselves
    fault: str = "none"  # of the replicas
    change: str = "none"  # while the load runs
    debounce: str = "100ms"  # of istiod, its own default

    def state(self) -> tuple[str, int, bool, str, str, str]:
        """What must be brought about before this cell can be measured."""
        own = self.arm if self.answer != "none" else ""
        return own, self.extra_rules, self.intercepted, self.sidecar, self.policy, self.debounce
