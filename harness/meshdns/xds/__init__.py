"""The control plane: the mesh's model in, what sidecars, DNS proxies and the cluster DNS are told out.

The compiler, pure functions from the model to Envoy's v3 resources:
  compile:   one sidecar's snapshot; what is equal between sidecars is made once
  bootstrap: what a sidecar starts with, which knows nothing but the control plane
  node:      who a sidecar is
  clusters, routes, listeners, arrivals, naming: CDS with EDS, RDS, LDS outbound, LDS inbound, Envoy's DNS listener
  filters, identity, api: what these are made of
"""
