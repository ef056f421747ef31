"""What is said of a claim, and the words and rows that verdicts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshdns.analysis import stats, text
from meshdns.core import units

SUPPORTED: Literal["supported"] = "supported"
REFUTED: Literal["refuted"] = "refuted"
DEPENDS: Literal["depends"] = "depends"
UNDECIDED: Literal["undecided"] = "undecided"
UNMEASURED: Literal["not yet measured"] = "not yet measured"
NAMES, COST, WAY = "01-name-resolution", "02-request-cost", "03-traffic-path"  # notebooks
BUYS, FOLLOWING = "04-what-the-sidecar-buys", "05-following-change"
TEXTS = {
    "C1": "Without interception, a DNS answer with the real address makes the call bypass the proxy.",
    "C2": "Interception is a network-layer act, independent of how the name was resolved.",
    "C3": "If DNS returns the sidecar's own address, a loop can result.",
    "C4": "In mode 1 the call goes ClusterIP → redirect to 15001 → the sidecar resolves again → endpoint.",
    "C5": "Mode 1 is compatible with non-mesh environments: if the sidecar fails, traffic can go direct (strict mode "
    "off).",
    "C6": "Mode 1 makes the sidecar resolve names, which may add latency.",
    "C7": "In mode 2 the name resolves inside the pod to a virtual address, and the connection is redirected to the "
    "local sidecar.",
    "C8": "Mode 2 saves network hops.",
    "C9": "Mode 2 depends on the sidecar's DNS, and is more complex: what fails with it?",
    "C10": "Istio's DNS proxying may answer with a virtual IP such as 127.0.0.1, or with ServiceEntry addresses.",
    "C11": "A ServiceEntry brings an external name (api.example.com) into the mesh, and the sidecar handles its "
    "resolution.",
    "C12": "Strict mTLS needs all traffic through sidecars and DNS answers that they recognise; permissive allows "
    "direct calls and real addresses.",
    "C13": "Choose mode 1 for compatibility and simplicity, mode 2 for performance and control.",
    "C14": "With headless Services and the Endpoints API the sidecar learns instance addresses dynamically.",
    "C15": "A control plane keeps DNS and traffic policy in one place.",
    "C16": "Applications need no change and cannot tell.",
    "C17": "Retries, circuit breaking, load balancing and monitoring work only for traffic that passes the sidecar.",
}


@dataclass(frozen=True)
class Verdict:
    """What the runs say of one claim."""

    claim: str  # C1 to C17
    verdict: Literal["supported", "refuted", "depends", "undecided", "not yet measured"]
    because: str  # one sentence
    numbers: str  # counts, estimates, intervals
    notebook: str  # that shows them; "" if none does


def unmeasured(claim: str, why: str = "no experiment of these runs decides it") -> Verdict:
    """No verdict, and what it would need."""
    return Verdict(claim, UNMEASURED, why, "", "")


def both(found: stats.Difference) -> str:
    """A difference, absolute and relative."""
    return f"{units.interval(found.absolute, signed=True)}, {text.percent(found.relative)}"
