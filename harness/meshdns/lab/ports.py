"""Ports of a pod of the testbed that are ours; Istio's stand in its conventions."""

PORT_LOADER = 15099  # counters of the eBPF loader
PORT_DNS_DIRECT = 5353  # the cluster DNS again, where nobody captures, and with a delay where one is asked for
PORT_COREDNS_METRICS, PORT_COREDNS_READY = 9153, 8181  # as kubeadm has them
PORT_NODE_DNS = 9253  # what the node's own name server counts, as NodeLocal DNSCache has it
PORT_XDS, PORT_PLANE = 15010, 15014  # the control plane: for sidecars, for people
PORT_PAGES = 15098  # what a server, or a cluster DNS, counts; Pods exclude it from what is captured
PORT_DNS_ASIDE = 15055  # of an agent whose answers nobody wants
