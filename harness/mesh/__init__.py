"""What the testbed is made of, as pure functions: who has which address, which rules, which proxy configuration.

topology: pods, services and their addresses
names:    what a stub resolver asks for a name (search list, ndots), as messages ready to send
rules:    interception and ClusterIP rules of one pod, as `iptables-restore` input
envoy:    a sidecar's bootstrap
"""
