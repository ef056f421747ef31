"""The mesh configuration people already have: Kubernetes and Istio YAML in, one typed model out.

documents:  YAML text to values that know their line
resources:  the records of each supported kind
kinds, routes, policies: how each kind is read
reader:     files and folders to `Resources`, or all faults at once
coherence:  what only shows across resources: unknown hosts and subsets, addresses claimed twice
registry:   hosts, ports, endpoints, policies and routes, in the order in which Istio takes them
vips:       virtual IPs for entries without an address: stable, persisted, never reshuffled
nametable:  what the mode-2 DNS proxy answers
records:    what the cluster DNS answers
outbound:   listeners, routes and clusters that a sidecar gets
explain:    which way one name and port take, in words
verbs:      `meshdns validate` and `meshdns explain`
"""
