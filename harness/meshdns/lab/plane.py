"""What becomes of pods, as Istio's own control plane is told it."""

from collections.abc import Mapping

# What becomes of a pod, as its endpoints say it; one that is gone is not listed.
READY, UNREADY, ENDING, GONE = "ready", "unready", "ending", "gone"
# Conditions of an endpoint, as the controller of EndpointSlices writes them.
CONDITIONS: Mapping[str, Mapping[str, bool]] = {
    READY: {"ready": True, "serving": True, "terminating": False},
    UNREADY: {"ready": False, "serving": False, "terminating": False},
    ENDING: {"ready": False, "serving": True, "terminating": True},
}
