"""What captures, where the plans have it, and what is timed with it.

Four mechanisms do the same work for mode 2 with the agent's DNS. iptables, Istio's default, is the one that the others
are compared with, in the same block; what `plain` and its twin differ by is the noise floor. What comes in is captured
in the same four ways at a server, called by a client without a sidecar.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from meshdns import store
from meshdns.analysis import cells, looks, provenance

# How often the kernel asks the table in which extra rules stand: nat once a flow, mangle always.
FLOW, PACKET = "flow", "packet"
_ASKED = {"iptables": FLOW, "nftables": FLOW, "tproxy": PACKET, "ebpf": FLOW}
PLAIN, TWIN = EQUAL = "plain", "plain-aa"


@dataclass(frozen=True)
class Mechanism:
    """A way to capture, and where the plans have it."""

    name: str
    arm: str  # captures what goes out
    backend: str = ""  # captures what comes in
    asked: str | None = None  # None: nobody knows
    captures: bool = True


@dataclass(frozen=True)
class Measure:
    """What is timed."""

    name: str
    experiment: str
    connection: str
    twins: str = ""  # the experiment whose equal arms give the noise floor, where this one has none
    phases: tuple[str, ...] = ()  # those that take time

    @property
    def by(self) -> str:
        """The factor that names the mechanism."""
        return "backend" if self.twins else "arm"

    def of(self, mechanism: Mechanism) -> str:
        """The mechanism's level of that factor."""
        return mechanism.backend if self.twins else mechanism.arm

    def cells(self, runs: store.Runs) -> pd.DataFrame:
        """Where it was timed."""
        return cells.select(runs, self.experiment, connection=self.connection)

    def equal(self, runs: store.Runs) -> pd.DataFrame:
        """Where equal arms do what this times."""
        return cells.select(runs, self.twins or self.experiment)


BASE = Mechanism("iptables", "mode2-agent", "in-iptables", FLOW)
SHIPPED = (BASE, *(Mechanism(name, name, f"in-{name}", _ASKED[name]) for name in ("nftables", "tproxy", "ebpf")))
NEW = Measure("new", "capture", "new", phases=("dns", "connect", "first_byte"))
KEPT = Measure("kept", "capture-keepalive", "keepalive")
LOOKUP = Measure("lookup", "capture-lookup", "none")
IN_NEW = Measure("inbound_new", "inbound", "new", NEW.experiment, ("connect", "first_byte"))
IN_KEPT = Measure("inbound_kept", "inbound", "keepalive", KEPT.experiment)
MEASURES = (NEW, KEPT, LOOKUP, IN_NEW, IN_KEPT)
TIMED = tuple(dict.fromkeys(measure.experiment for measure in MEASURES))
SWEEPS = {"rules": NEW, "rules-keepalive": KEPT, "rules-lookup": LOOKUP}
EXPERIMENTS = (*TIMED, *SWEEPS)


def more_expected(mechanism: Mechanism, measure: Measure) -> bool | None:
    """Whether rules should add to this measure: to a kept connection only where they are asked for each packet."""
    if measure is not KEPT:
        return True
    return None if mechanism.asked is None else mechanism.asked == PACKET


def experiments(runs: store.Runs) -> list[str]:
    """Those that the runs hold."""
    there = set(runs.cells["experiment"])
    return [name for name in EXPERIMENTS if name in there]


def held(runs: store.Runs) -> tuple[Mechanism, ...]:
    """What was measured, by its own name where nobody knows it: first what captures nothing, then iptables."""
    chosen = runs.cells[runs.cells["experiment"].isin(EXPERIMENTS)]
    known = {PLAIN, TWIN, *(each.arm for each in SHIPPED), *(each.backend for each in SHIPPED)}
    seen = looks.of_runs(runs)
    clients = [seen.pod(arm) for arm in seen.held(chosen["arm"]) if arm not in known]
    own = [
        Mechanism(each.arm, each.arm, "", _ASKED.get(each.mechanism), each.sidecar or each.dns_proxy)
        for each in clients
    ]
    inbound = chosen.loc[chosen["experiment"].isin(each.experiment for each in MEASURES if each.twins), "backend"]
    for name in sorted(set(inbound) - known):
        asked = (_ASKED.get(pod.mechanism) for pod in runs.world.pods if pod.backend == name)
        own.append(Mechanism(name, name, name, next(asked, None)))
    nothing = [each for each in own if not each.captures]
    plain = Mechanism(PLAIN, PLAIN, captures=False)
    return (plain, *nothing, *SHIPPED, *(each for each in own if each.captures))


def compared(runs: store.Runs) -> tuple[Mechanism, ...]:
    """Those of them that capture something."""
    return tuple(each for each in held(runs) if each.captures)


def refusal(runs: store.Runs, mechanism: Mechanism) -> str:
    """Why this machine does not allow it, in the loader's words; "" if it does."""
    reasons = [provenance.branch(header.facts, "refused") for header in runs.headers]
    found = [each.get(mechanism.arm) or each.get(mechanism.backend) for each in reasons]
    return "; ".join(dict.fromkeys(str(each) for each in found if each))
