"""Ports of a pod of the testbed: Istio's own, and ours beside them."""

PROXY_UID = 1337  # Istio's sidecar user: the rules tell the proxy's own traffic by it
PORT_OUTBOUND, PORT_INBOUND, PORT_DNS = 15001, 15006, 15053
PORT_ADMIN, PORT_STATS, PORT_STATUS = 15000, 15090, 15020
PORT_DNS_METRICS, PORT_LOADER = 15054, 15099  # the DNS proxy's own counters, those of the eBPF loader
PORT_DNS_DIRECT = 5353  # the cluster DNS again, where nobody captures
PORT_XDS, PORT_PLANE = 15010, 15014  # the control plane: for sidecars, for people
